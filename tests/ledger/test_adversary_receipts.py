"""Receipts made by somebody who wants more than was delivered, or wants the log to grow without end."""

import os
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import networks
from ledger.aggregates import node as node_module
from ledger.aggregates.base import DomainError
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger
from ledger.batch import Batch
from ledger.credit import CreditSet
from ledger.events import Segment
from ledger.judge import Manifest, NodeFacts, SessionFacts, judge
from ledger.keys import KeyPair
from ledger.receipt import BITMAP_BITS, Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, crew, nodes, streams
from ledger.services.delivery import DeliveryDesk
from ledger.settings import Settings
from ledger.ticket import SignedTicket, Ticket, ViewerClass
from ledger.verdict import Cap, Verdict

T0 = 1_800_000_000_000_000
HUB = KeyPair(b"h" * 32)
NODE = KeyPair(b"n" * 32)
VIEWER = KeyPair(b"v" * 32)
NONCE = b"n" * 16


def make_ticket(first: int, last: int, byte_budget: int) -> Ticket:
    return Ticket(
        viewer_class=ViewerClass.SIGNING,
        hub_key_id=HUB.key_id,
        ticket_id=uuid4(),
        session_id=uuid4(),
        stream_id=uuid4(),
        rendition_id=uuid4(),
        viewer_key=VIEWER.public_key,
        node_key=NODE.public_key,
        first_sequence=first,
        last_sequence=last,
        settle_by_s=2_000_000_000,
        tariff_version=1,
        byte_budget=byte_budget,
        nonce=NONCE,
    )


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 1_000), min_size=1, max_size=40),
    first=st.integers(0, 60),
    length=st.integers(1, 40),
    budget=st.integers(1, 20_000),
    claims=st.lists(
        st.tuples(st.integers(0, 80), st.sets(st.integers(0, 45), max_size=20)), min_size=1, max_size=8
    ),
)
def test_a_ticket_never_pays_for_more_bytes_than_it_allows_however_its_segments_are_claimed(
    sizes: list[int], first: int, length: int, budget: int, claims: list[tuple[int, set[int]]]
) -> None:
    manifest = Manifest(10)
    for size in sizes:
        manifest.append(size)
    ticket, credits = make_ticket(first, first + length - 1, budget), CreditSet()
    paid = 0
    for counter, (base, bits) in enumerate(claims):
        receipt = Receipt(
            ticket_hash=ticket.hash,
            counter=counter,
            base_sequence=base,
            bitmap=to_bitmap(base, [base + b for b in bits]),
            digest=bytes(32),
        ).sign(VIEWER)
        judgement = judge(
            receipt,
            ticket,
            node=NodeFacts(NODE.public_key, uuid4(), frozenset(), suspended=False),
            session=SessionFacts(b"", None),
            manifest=manifest,
            credits=credits,
            settings=Settings(),
            digest_of=lambda *_: None,
            now_s=1,
        )
        credits.credit(ticket.session_id, b"", judgement.units)
        paid += judgement.judged.credited_bytes
        if judgement.judged.verdict == Verdict.ACCEPTED:
            assert all(ticket.covers(base + b) and 10 <= base + b < 10 + len(sizes) for b in bits)
        assert paid <= budget


@pytest.mark.parametrize("base", [0, (1 << 63) - 1 - BITMAP_BITS])
def test_sequences_that_never_were_are_out_of_range_and_cost_nothing_to_judge(base: int) -> None:
    manifest = Manifest(5)
    manifest.append(100)
    ticket = make_ticket(base, base + 511, 1)
    receipt = Receipt(
        ticket_hash=ticket.hash, counter=1, base_sequence=base, bitmap=b"\xff" * 64, digest=bytes(32)
    ).sign(VIEWER)
    judgement = judge(
        receipt,
        ticket,
        node=NodeFacts(NODE.public_key, uuid4(), frozenset(), suspended=False),
        session=SessionFacts(b"", None),
        manifest=manifest,
        credits=CreditSet(),
        settings=Settings(),
        digest_of=lambda *_: None,
        now_s=1,
    )
    assert judgement.judged.verdict == Verdict.OUT_OF_RANGE


class Desk:
    """A stream with ten segments, one node, one signing viewer's ticket."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.now_us = ledger, T0
        crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=60, at_us=T0)
        key = streams.make_stream_key("main", b"k" * 20)
        self.stream_id = streams.register_stream(
            ledger, slug="main", owner_id=uuid4(), stream_key=key, at_us=T0
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
        self.media = {s: os.urandom(1_000) for s in range(10)}
        segments = [Segment(s, 2_000_000, 1_000, b"h" * 32, T0) for s in self.media]
        broadcasts.publish_segments(ledger, broadcast.id, segments, at_us=T0)
        self.broadcast = ledger.load(Broadcast, broadcast.id)
        self.desk = DeliveryDesk(
            ledger,
            digest_of=lambda _, nonce, s: segment_digest(nonce, self.media[s]) if s in self.media else None,
        )
        nodes.create_invite(ledger, friend_id=uuid4(), code="code", expires_us=2 * T0, at_us=T0)
        self.node, _ = nodes.join_node(
            ledger, code="code", public_key=NODE.public_key, prefix_commitment=b"the node's home.", at_us=T0
        )

    def ticket(self, network: bytes = b"", *, plain: bool = False) -> SignedTicket:
        session_id = uuid4()
        self.desk.open_session(
            session_id=session_id,
            stream_id=self.stream_id,
            viewer_class=ViewerClass.PLAIN if plain else ViewerClass.SIGNING,
            viewer_key=b"" if plain else VIEWER.public_key,
            prefix_commitment=network,
            account_id=None,
            at_us=self.now_us,
        )
        return self.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=uuid4(),
            session_id=session_id,
            node=self.ledger.load(Node, self.node.id),
            broadcast=self.broadcast,
            first_sequence=0,
            nonce=NONCE,
            tariff_version=1,
            at_us=self.now_us,
        )

    def receipt(
        self,
        ticket: SignedTicket,
        sequences: list[int],
        counter: int = 1,
        *,
        signer: KeyPair = VIEWER,
        media: dict[int, bytes] | None = None,
    ) -> bytes:
        got = self.media if media is None else media
        digest = fold_digests(segment_digest(NONCE, got.get(s, b"?")) for s in sequences)
        receipt = Receipt(
            ticket_hash=ticket.ticket.hash,
            counter=counter,
            base_sequence=0,
            bitmap=to_bitmap(0, sequences),
            digest=digest,
        )
        return receipt.sign(signer).encode()


@pytest.fixture
def desk(ledger: Ledger) -> Desk:
    return Desk(ledger)


def test_the_same_receipt_from_a_viewer_gets_the_same_answer_and_changes_nothing(desk: Desk) -> None:
    receipt = desk.receipt(desk.ticket(), [0, 1])
    first = desk.desk.judge_receipt(receipt, at_us=T0)
    assert first.verdict == "accepted"
    size = desk.ledger.size()
    assert [desk.desk.judge_receipt(receipt, at_us=T0 + i) for i in range(3)] == [first] * 3
    again = DeliveryDesk(desk.ledger, digest_of=lambda *_: None)  # after a restart
    assert again.judge_receipt(receipt, at_us=T0) == first
    assert desk.ledger.size() == size


@pytest.mark.parametrize(
    ("network", "sequences", "verdict"),
    [
        (b"", [0], "duplicate"),
        (b"the node's home.", [0], "capped"),
        (b"", [50], "out_of_range"),
        (b"", [], "duplicate"),
    ],
)
def test_a_viewer_cannot_fill_the_log_with_refusals(
    desk: Desk, network: bytes, sequences: list[int], verdict: str
) -> None:
    ticket = desk.ticket(network)
    desk.desk.judge_receipt(desk.receipt(ticket, [0]), at_us=T0)
    first = desk.desk.judge_receipt(desk.receipt(ticket, sequences, counter=2), at_us=T0)
    size = desk.ledger.size()
    answers = [
        desk.desk.judge_receipt(desk.receipt(ticket, sequences, counter=n), at_us=T0) for n in range(3, 30)
    ]
    assert {(a.verdict, a.position) for a in answers} == {(verdict, first.position)}
    assert desk.ledger.size() == size
    if verdict != "capped":  # and what is new in it is taken all the same
        assert desk.desk.judge_receipt(desk.receipt(ticket, [0, 7], counter=99), at_us=T0).units == 1


def test_a_node_cannot_claim_its_own_viewers_receipt_twice_by_batch_and_by_itself(desk: Desk) -> None:
    receipt = desk.receipt(desk.ticket(), [0, 1, 2])
    assert desk.desk.judge_receipt(receipt, at_us=T0).units == 3
    batches = [Batch.sign(NODE, n, n, [receipt] * 3).encode() for n in range(3)]
    for batch in batches:
        assert {a.verdict for a in desk.desk.judge_batch(batch, at_us=T0)} == {"duplicate"}


def test_settle_by_is_the_last_second_in_which_a_receipt_is_taken(desk: Desk) -> None:
    ticket = desk.ticket()
    last_us = ticket.ticket.settle_by_s * 1_000_000 + 999_999
    assert desk.desk.judge_receipt(desk.receipt(ticket, [0]), at_us=last_us).verdict == "accepted"
    assert desk.desk.judge_receipt(desk.receipt(ticket, [1], 2), at_us=last_us + 1).verdict == "late"


def test_a_broadcast_that_ended_still_pays_what_it_delivered_and_nothing_after_its_end(desk: Desk) -> None:
    ticket = desk.ticket()
    broadcasts.end_broadcast(desk.ledger, desk.broadcast.id, reason="over", at_us=T0)
    assert desk.desk.judge_receipt(desk.receipt(ticket, [8, 9]), at_us=T0).units == 2
    assert desk.desk.judge_receipt(desk.receipt(ticket, [10], 2), at_us=T0).verdict == "out_of_range"


@pytest.mark.parametrize("end", [nodes.suspend, nodes.retire])
def test_a_suspension_takes_the_nodes_own_claims_and_never_what_viewers_signed_for(desk: Desk, end) -> None:  # type: ignore[no-untyped-def]
    signed, plain = desk.ticket(), desk.ticket(plain=True)
    end(desk.ledger, desk.node.id, reason="wrong bytes", at_us=T0)
    assert desk.desk.judge_receipt(desk.receipt(signed, [0]), at_us=T0).verdict == "accepted"
    answer = desk.desk.judge_receipt(desk.receipt(plain, [0], signer=NODE), at_us=T0)
    assert (answer.verdict, answer.cap) == ("capped", Cap.NODE_SUSPENDED)
    wrong = desk.receipt(signed, [0, 1], 2, media={0: desk.media[0], 1: b"garbage"})
    assert desk.desk.judge_receipt(wrong, at_us=T0).verdict == "digest_mismatch"


def test_before_there_was_a_setting_for_it_a_suspension_took_everything(desk: Desk) -> None:
    crew.change_settings(desk.ledger, {"suspended_signed_paid": 0}, at_us=T0)
    ticket = desk.ticket()
    nodes.suspend(desk.ledger, desk.node.id, reason="wrong bytes", at_us=T0)
    answer = desk.desk.judge_receipt(desk.receipt(ticket, [0]), at_us=T0)
    assert (answer.verdict, answer.cap) == ("capped", Cap.NODE_SUSPENDED)
    assert Settings.recorded({}).suspended_signed_paid == 0


def test_a_viewer_in_any_of_the_nodes_networks_is_not_paid_for_also_after_the_node_moved(desk: Desk) -> None:
    at_home, away = desk.ticket(b"the node's home."), desk.ticket(b"a cafe somewhere")
    nodes.change_node(desk.ledger, desk.node.id, lambda n: n.see_at(b"a cafe somewhere", at_us=T0 + 1))
    for ticket in (at_home, away):
        answer = desk.desk.judge_receipt(desk.receipt(ticket, [0]), at_us=T0 + 2)
        assert (answer.verdict, answer.cap) == ("capped", Cap.SAME_NETWORK)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), max_size=80))
def test_every_network_of_the_last_days_is_remembered_and_no_more_than_there_is_room_for(
    visits: list[tuple[int, int]],
) -> None:
    """Hours pass between visits; what was recorded is compared with what really happened."""
    known: networks.Networks = {b"\0": T0}
    really, now_us = {b"\0": T0}, T0
    for network, hours in visits:
        now_us += hours * 3_600 * 1_000_000
        commitment = bytes([network])
        really[commitment] = now_us
        if networks.is_news(known, commitment, now_us):
            known = networks.seen(known, commitment, now_us)
        lately = sorted((us, c) for c, us in really.items() if now_us - us < networks.REMEMBERED_US // 2)
        assert commitment in known
        if len(lately) < networks.NETWORKS_MAX // 2:
            assert {c for _, c in lately} <= set(known)
        assert len(known) <= networks.NETWORKS_MAX


def test_receipts_that_belong_to_nothing_fill_the_log_only_so_far_each_day(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "REFUSED_PER_DAY_MAX", 10)

    def send(n: int, count: int = 4) -> None:
        garbage = [os.urandom(205) for _ in range(count)]
        answers = desk.desk.judge_batch(Batch.sign(NODE, n, n, garbage).encode(), at_us=desk.now_us)
        assert {a.verdict for a in answers} == {"malformed"}

    send(1)
    send(2)
    with pytest.raises(DomainError, match="tomorrow"):
        send(3)
    size = desk.ledger.size()
    honest = Batch.sign(NODE, 9, 9, [desk.receipt(desk.ticket(), [0])]).encode()
    assert [a.verdict for a in desk.desk.judge_batch(honest, at_us=desk.now_us)] == ["accepted"]
    assert desk.ledger.size() == size + 3  # a session, a ticket, a verdict
    desk.now_us += 86_400 * 1_000_000
    send(4)


def test_a_node_that_hops_between_networks_is_a_move_a_minute_at_most(desk: Desk) -> None:
    node = desk.ledger.load(Node, desk.node.id)
    for second in range(300):
        node.see_at(second.to_bytes(16, "big"), at_us=T0 + second * 1_000_000)
    assert len(node.collect_events()) <= 6
    for second in range(300):  # two uplinks
        node.see_at(b"ab"[second % 2 : second % 2 + 1] * 16, at_us=T0 + (300 + second) * 1_000_000)
    assert len(node.collect_events()) == 2
    node.see_at(b"c" * 16, at_us=T0 - 3_600 * 1_000_000)  # a clock set back stops no move
    assert {b"a" * 16, b"b" * 16, b"c" * 16} <= set(node.networks)


def test_a_retired_node_does_not_come_online(desk: Desk) -> None:
    node = nodes.retire(desk.ledger, desk.node.id, reason="moved out", at_us=T0)
    node.go_online(at_us=T0)
    assert not node.online


FIELDS = {  # of a signed receipt: where a byte is changed, and what becomes of it
    "version": (0, "malformed"),
    "ticket hash": (1, "unknown_ticket"),
    "ticket hash, last byte": (32, "unknown_ticket"),
    "counter": (36, "bad_signature"),
    "base": (37, "malformed"),
    "base, last byte": (44, "bad_signature"),
    "bitmap": (45, "bad_signature"),
    "bitmap, last byte": (108, "bad_signature"),
    "digest": (109, "bad_signature"),
    "signature": (141, "bad_signature"),
    "signature, last byte": (204, "bad_signature"),
}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.dictionaries(st.integers(0, 11), st.sampled_from(sorted(FIELDS)), max_size=6))
def test_whatever_is_wrong_with_some_receipts_of_a_batch_the_others_are_paid(
    desk: Desk, places: dict[int, str]
) -> None:
    receipts, expected = [], []
    for n in range(12):
        made = bytearray(desk.receipt(desk.ticket(), [0, 1]))
        at, verdict = FIELDS[places[n]] if n in places else (None, "accepted")
        if at is not None:
            made[at] ^= 128
        receipts.append(bytes(made))
        expected.append((n, verdict, 0 if at is not None else 2))
    answers = desk.desk.judge_batch(Batch.sign(NODE, 0, 0, receipts).encode(), at_us=T0)
    assert [(a.index, a.verdict, a.units) for a in answers] == expected
    for answer in answers:  # and where the log says so
        assert desk.ledger.read(answer.position, 1)[0].event.at_us == T0
