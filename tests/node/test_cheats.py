"""Every way a node may try to be paid for nothing, against the real delivery desk on a real ledger."""

import asyncio
import os
import random
from dataclasses import dataclass
from uuid import uuid4

import pytest
from stand_in_hub import CODE, StandInHub

from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger
from ledger.batch import Batch
from ledger.events import Segment
from ledger.keys import KeyPair
from ledger.receipt import SignedReceipt, segment_digest
from ledger.services import broadcasts, crew, nodes, streams
from ledger.services.delivery import DeliveryDesk
from ledger.ticket import SignedTicket, ViewerClass
from relay.node.service import join
from relay.viewers.cheat import CheatingNode, claim, flipped, forged, out_of_range

T0 = 1_800_000_000_000_000
NOW = T0 + 60_000_000
HUB, VIEWER = KeyPair(b"h" * 32), KeyPair(b"v" * 32)
MEDIA = {s: b"%d" % s * 500 for s in range(10)}


@dataclass
class Desk:
    ledger: Ledger
    desk: DeliveryDesk
    broadcast: Broadcast

    def node(self) -> tuple[KeyPair, Node]:
        key, code = KeyPair(os.urandom(32)), uuid4().hex
        nodes.create_invite(self.ledger, friend_id=uuid4(), code=code, expires_us=NOW * 2, at_us=NOW)
        node, _ = nodes.join_node(
            self.ledger, code=code, public_key=key.public_key, prefix_commitment=b"", at_us=NOW
        )
        return key, node

    def ticket(self, node: Node, viewer: KeyPair | None) -> SignedTicket:
        session_id = uuid4()
        assert self.broadcast.stream_id is not None
        self.desk.open_session(
            session_id=session_id,
            stream_id=self.broadcast.stream_id,
            viewer_class=ViewerClass.SIGNING if viewer else ViewerClass.PLAIN,
            viewer_key=viewer.public_key if viewer else b"",
            prefix_commitment=b"",
            account_id=None,
            at_us=NOW,
        )
        return self.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=uuid4(),
            session_id=session_id,
            node=node,
            broadcast=self.broadcast,
            first_sequence=0,
            nonce=b"n" * 16,
            tariff_version=1,
            at_us=NOW,
        )

    def send(self, node: KeyPair, *receipts: SignedReceipt) -> list[tuple[str, int]]:
        batch = Batch.sign(node, 0, 1, [r.encode() for r in receipts])
        return [(str(a.verdict), a.units) for a in self.desk.judge_batch(batch.encode(), at_us=NOW)]


@pytest.fixture
def desk(ledger: Ledger) -> Desk:
    crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=60, at_us=T0)
    key = streams.make_stream_key("main", b"k" * 20)
    stream_id = streams.register_stream(ledger, slug="main", owner_id=uuid4(), stream_key=key, at_us=T0)
    broadcast, _ = broadcasts.start_or_resume(
        ledger,
        stream_id,
        new_broadcast_id=uuid4(),
        new_rendition_id=uuid4(),
        video_codec="avc1.64001f",
        audio_codec="mp4a.40.2",
        grace_s=15,
        at_us=T0,
    )
    segments = [Segment(s, 2_000_000, len(m), b"h" * 32, T0 + s * 2_000_000) for s, m in MEDIA.items()]
    broadcasts.publish_segments(ledger, broadcast.id, segments, at_us=T0)

    def digest_of(_rendition: object, nonce: bytes, sequence: int) -> bytes | None:
        return segment_digest(nonce, MEDIA[sequence]) if sequence in MEDIA else None

    return Desk(ledger, DeliveryDesk(ledger, digest_of=digest_of), ledger.load(Broadcast, broadcast.id))


def test_no_cheat_is_paid_and_the_honest_receipt_beside_them_is(desk: Desk) -> None:
    key, node = desk.node()
    other_key, other = desk.node()
    ticket, moved_ticket = desk.ticket(node, VIEWER), desk.ticket(other, VIEWER)
    some = {s: MEDIA[s] for s in (0, 1, 2)}
    honest = claim(ticket, some, VIEWER)
    cheats = [
        forged(desk.ticket(node, VIEWER), some, KeyPair(b"m" * 32)),
        claim(moved_ticket, some, VIEWER),
        out_of_range(desk.ticket(node, VIEWER), b"x", VIEWER),
        flipped(claim(fresh := desk.ticket(node, VIEWER), some, VIEWER), fresh, VIEWER),
        claim(ticket.ticket.sign(KeyPair(b"x" * 32)), some, KeyPair(b"x" * 32)),
    ]
    verdicts = desk.send(key, *cheats, honest)
    assert verdicts == [
        ("bad_signature", 0),
        ("wrong_node", 0),
        ("out_of_range", 0),
        ("digest_mismatch", 0),
        ("bad_signature", 0),
        ("accepted", 3),
    ]
    assert desk.send(key, honest) == [("duplicate", 0)]  # replay
    assert desk.send(other_key, honest) == [("wrong_node", 0)]
    assert desk.send(other_key, claim(moved_ticket, some, VIEWER)) == [("accepted", 3)]


def test_a_plain_claim_that_is_made_up_is_not_credited(desk: Desk) -> None:
    key, node = desk.node()
    ticket = desk.ticket(node, None)
    honest = claim(ticket, {0: MEDIA[0]}, key)
    made_up = claim(desk.ticket(node, None), {0: b"not these bytes"}, key)
    verdicts = desk.send(key, flipped(honest, ticket, key), made_up)
    assert verdicts == [("digest_mismatch", 0), ("digest_mismatch", 0)]


def test_the_same_batch_ten_times_in_random_order_is_credited_once(desk: Desk) -> None:
    key, node = desk.node()
    receipts = [
        claim(desk.ticket(node, VIEWER), {s: MEDIA[s] for s in range(n + 1)}, VIEWER) for n in range(6)
    ]
    shuffle, total = random.Random(7), 0
    for _ in range(10):
        shuffle.shuffle(receipts)
        total += sum(units for _, units in desk.send(key, *receipts))
    assert total == 1 + 2 + 3 + 4 + 5 + 6


def test_the_cheating_node_speaks_http(hub: StandInHub, tmp_path) -> None:
    async def main() -> None:
        await join(tmp_path, hub.url, CODE, name="bad", port=8100, public_url=None)
        async with CheatingNode(hub.url, KeyPair(b"c" * 32)) as cheat:
            ticket = hub.issue(cheat.key.public_key, VIEWER.public_key)
            honest = claim(ticket, {100: hub.media[100]}, VIEWER)
            bad = forged(ticket, {100: hub.media[100]}, KeyPair(b"m" * 32))
            answers = await cheat.send_shuffled([honest, bad], times=10, seed=3)
            assert {a[1].verdict for a in answers} == {"bad_signature"}
            assert [a[0].verdict for a in answers] == ["accepted"] + ["duplicate"] * 9

    asyncio.run(main())
