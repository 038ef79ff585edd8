"""A live stream, nodes and a steering on a real ledger, which can be killed and started again."""

import asyncio
import hashlib
import random
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from hub.authority import InPool
from hub.keystore import KeyStore
from hub.live_nodes import LiveNode
from hub.steering import LedgerSteering
from ledger.application import Ledger
from ledger.events import Segment, TicketIssued
from ledger.keys import KeyPair
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, crew, nodes, streams
from ledger.services.credit_index import CreditIndex
from ledger.services.delivery import DeliveryDesk
from ledger.services.settle import catch_up
from ledger.ticket import SignedTicket
from relay.ports import Assignment

T0 = 1_800_000_000_000_000
HOME = "8.8.8.8"
ELSEWHERE = "9.9.9.9"


class Clock:
    """The monotonic seconds that steering sees, and the wall clock beside them."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def monotonic(self) -> float:
        return self.s

    def now_us(self) -> int:
        return T0 + int(self.s * 1_000_000)


class Doors:
    """Who answers at this moment."""

    def __init__(self) -> None:
        self.silent: set[UUID] = set()
        self.asked = 0
        self.fresh = False

    def answered(self, nid: UUID) -> bool:
        return self.fresh

    async def answers(self, nid: UUID) -> bool:
        self.asked += 1
        return nid not in self.silent


class Hub:
    """A live stream of 40 segments and a steering that can be killed and started again."""

    def __init__(self, ledger: Ledger, folder: Path, pool: ThreadPoolExecutor, clock: Clock) -> None:
        self.ledger, self.clock, self.keys = ledger, clock, KeyStore.open(folder)
        self.in_pool = InPool(pool)
        self.doors = Doors()
        self.media = {n: b"segment %d" % n for n in range(40)}
        crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=3600, at_us=T0)
        self.stream_id = streams.register_stream(
            ledger,
            slug="main",
            owner_id=uuid4(),
            stream_key=streams.make_stream_key("main", b"k" * 20),
            at_us=T0,
        )
        broadcast, _ = broadcasts.start_or_resume(
            ledger,
            self.stream_id,
            new_broadcast_id=uuid4(),
            new_rendition_id=uuid4(),
            video_codec="v",
            audio_codec="a",
            grace_s=15,
            at_us=T0,
        )
        assert broadcast.rendition_id is not None
        self.broadcast_id, self.rendition = broadcast.id, broadcast.rendition_id
        self.publish(self.media)
        self.node_keys: dict[UUID, KeyPair] = {}
        self.start()

    def publish(self, media: dict[int, bytes]) -> None:
        self.media |= media
        segments = [
            Segment(n, 2_000_000, len(data), hashlib.sha256(data).digest(), T0) for n, data in media.items()
        ]
        broadcasts.publish_segments(self.ledger, self.broadcast_id, segments, at_us=self.clock.now_us())

    def start(self) -> None:
        """A new process: nothing of the one before is in memory."""
        self.desk = DeliveryDesk(
            self.ledger,
            digest_of=lambda _, nonce, n: segment_digest(nonce, self.media[n]) if n in self.media else None,
        )
        self.steering = LedgerSteering(
            self.ledger,
            self.desk,
            self.keys,
            self.in_pool,
            now_us=self.clock.now_us,
            new_id=uuid4,
            rng=random.Random(7),
            doors=self.doors,
        )

    def add_nodes(self, count: int) -> list[UUID]:
        for _ in range(count):
            key = KeyPair(random.randbytes(32))
            code = key.public_key.hex()[:20]
            nodes.create_invite(self.ledger, friend_id=uuid4(), code=code, expires_us=2 * T0, at_us=T0)
            node, _ = nodes.join_node(
                self.ledger, code=code, public_key=key.public_key, prefix_commitment=b"", at_us=T0
            )
            self.node_keys[node.id] = key
        self.all_alive()
        return list(self.node_keys)

    def all_alive(self, *but: UUID) -> None:
        self.steering.update_live_nodes(
            [LiveNode(n, f"http://node-{n}", 0) for n in self.node_keys if n not in but]
        )

    def open(self, ip: str = HOME) -> UUID:
        session = run(self.steering.open_session("main", ip))
        assert session is not None
        return session

    def assigned(self, session: UUID, head: int = 20) -> Assignment | None:
        return run(self.steering.assignment(session, self.rendition, head))

    def node_of(self, session: UUID, head: int = 20) -> UUID:
        assignment = self.assigned(session, head)
        assert assignment is not None
        return UUID(assignment.node_url.removeprefix("http://node-"))

    def events(self, *kinds: type) -> list[Any]:
        return [r.event for r in self.ledger.read(0, 10_000) if isinstance(r.event, kinds)]

    def claim(self, signed: SignedTicket, sequences: list[int]) -> str:
        """The verdict on the node's own claim for a plain player."""
        t = signed.ticket
        node = next(k for k in self.node_keys.values() if k.public_key == t.node_key)
        digest = fold_digests(segment_digest(t.nonce, self.media[n]) for n in sequences)
        receipt = Receipt(
            ticket_hash=t.hash,
            counter=1,
            base_sequence=t.first_sequence,
            bitmap=to_bitmap(t.first_sequence, sequences),
            digest=digest,
        )
        return self.desk.judge_receipt(receipt.sign(node).encode(), at_us=self.clock.now_us()).verdict


def run(step: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(step)


def plain_viewer(hub: Hub) -> UUID:
    """A session with a node, to which the hub points some of the segments 15 to 24, and of 25 to 29."""
    while True:
        session = hub.open()
        if all(
            any(hub.steering.pointed_at_hub(session, n) for n in window)
            for window in (range(15, 25), range(25, 30))
        ):
            hub.assigned(session)
            return session


def watch(hub: Hub, session: UUID, first: int = 15, last: int = 25, ip: str = HOME) -> tuple[int, int]:
    """Polls a window and fetches what is pointed at the hub. What must be counted: (polled, fetched)."""
    hub.steering.observe_poll(session, range(first, last), ip)
    sampled = [n for n in range(first, last) if hub.steering.pointed_at_hub(session, n)]
    for n in sampled:
        hub.steering.observe_fetch(session, n, ip)
    return last - first, len(sampled)


def counted(hub: Hub) -> tuple[int, int]:
    """What settlement makes of all observations, (polled, fetched), when the nodes claim all they can."""
    for event in hub.events(TicketIssued):
        signed = SignedTicket.decode(event.ticket)
        hub.claim(signed, [n for n in sorted(hub.media) if signed.ticket.covers(n)])

    def payable(factor: int) -> int:
        crew.change_settings(hub.ledger, {"plain_sample_factor": factor}, at_us=hub.clock.now_us())
        index = CreditIndex()
        catch_up(hub.ledger, index)
        return sum(credit.units for credit in index.credits(0, index.position))

    return payable(1_000), payable(1)  # min(factor x fetched, polled)
