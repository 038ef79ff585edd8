"""The delivery desk on a real ledger: each verdict, exactly-once credits, resends."""

import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import OperationalError

from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger, Unavailable
from ledger.batch import Batch
from ledger.events import Segment, SegmentsServed
from ledger.keys import KeyPair
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, crew, nodes, streams
from ledger.services.delivery import DeliveryDesk
from ledger.services.judging import ReceiptAnswer, UnknownNodeError
from ledger.ticket import SignedTicket, ViewerClass, WireError

T0 = 1_800_000_000_000_000
HUB = KeyPair(b"h" * 32)


@dataclass
class Crew:
    """A live broadcast with ten segments, and what is needed to deliver them."""

    ledger: Ledger
    desk: DeliveryDesk
    broadcast: Broadcast
    media: dict[int, bytes]
    stream_id: UUID
    now_us: int = T0 + 60_000_000
    codes: "itertools.count[int]" = field(default_factory=itertools.count)

    def node(self, network: bytes = b"") -> tuple[KeyPair, Node]:
        key = KeyPair(os.urandom(32))
        code = f"code{next(self.codes)}"
        nodes.create_invite(
            self.ledger, friend_id=uuid4(), code=code, expires_us=self.now_us * 2, at_us=self.now_us
        )
        node, new = nodes.join_node(
            self.ledger, code=code, public_key=key.public_key, prefix_commitment=network, at_us=self.now_us
        )
        assert new
        return key, node

    def ticket(
        self,
        node: Node,
        viewer: KeyPair | None,
        *,
        first: int = 0,
        session: UUID | None = None,
        network: bytes = b"",
    ) -> SignedTicket:
        session_id = session or uuid4()
        if session is None:
            self.desk.open_session(
                session_id=session_id,
                stream_id=self.stream_id,
                viewer_class=ViewerClass.SIGNING if viewer else ViewerClass.PLAIN,
                viewer_key=viewer.public_key if viewer else b"",
                prefix_commitment=network,
                account_id=None,
                at_us=self.now_us,
            )
        return self.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=uuid4(),
            session_id=session_id,
            node=node,
            broadcast=self.broadcast,
            first_sequence=first,
            nonce=b"n" * 16,
            tariff_version=1,
            at_us=self.now_us,
        )

    def receipt(self, ticket: SignedTicket, viewer: KeyPair, sequences: list[int], counter: int = 1) -> bytes:
        t = ticket.ticket
        return (
            Receipt(
                ticket_hash=t.hash,
                counter=counter,
                base_sequence=t.first_sequence,
                bitmap=to_bitmap(t.first_sequence, sequences),
                digest=fold_digests(
                    segment_digest(t.nonce, self.media.get(s, b"?")) for s in sorted(sequences)
                ),
            )
            .sign(viewer)
            .encode()
        )

    def send(self, node: KeyPair, *receipts: bytes) -> list[ReceiptAnswer]:
        return self.desk.judge_batch(Batch.sign(node, 0, 1, receipts).encode(), at_us=self.now_us)


@pytest.fixture
def live(ledger: Ledger) -> Crew:
    crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=60, at_us=T0)
    key = streams.make_stream_key("main", b"k" * 20)
    sid = streams.register_stream(ledger, slug="main", owner_id=uuid4(), stream_key=key, at_us=T0)
    broadcast, resumed = broadcasts.start_or_resume(
        ledger,
        sid,
        new_broadcast_id=uuid4(),
        new_rendition_id=uuid4(),
        video_codec="avc1.64001f",
        audio_codec="mp4a.40.2",
        grace_s=15,
        at_us=T0,
    )
    assert not resumed
    media = {s: os.urandom(1000 + s) for s in range(10)}
    segments = [Segment(s, 2_000_000, len(m), b"h" * 32, T0 + s * 2_000_000) for s, m in media.items()]
    broadcasts.publish_segments(ledger, broadcast.id, segments, at_us=T0)
    desk = DeliveryDesk(
        ledger,
        digest_of=lambda _, nonce, s: segment_digest(nonce, media[s]) if s in media else None,
    )
    return Crew(ledger, desk, ledger.load(Broadcast, broadcast.id), media, sid)


VIEWER = KeyPair(b"v" * 32)


def test_a_cumulative_receipt_credits_each_segment_once(live: Crew) -> None:
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    first = live.send(key, live.receipt(ticket, VIEWER, [0, 1, 2]))
    assert [(a.verdict, a.units, a.credited_bytes) for a in first] == [("accepted", 3, 1000 + 1001 + 1002)]
    second = live.send(key, live.receipt(ticket, VIEWER, [0, 1, 2, 3], counter=2))
    assert [(a.verdict, a.units, a.credited_bytes) for a in second] == [("accepted", 1, 1003)]
    third = live.send(key, live.receipt(ticket, VIEWER, [1, 3], counter=3))
    assert [(a.verdict, a.units) for a in third] == [("duplicate", 0)]


def test_the_same_batch_again_gets_the_same_answer_and_changes_nothing(live: Crew) -> None:
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    data = Batch.sign(key, 0, 1, [live.receipt(ticket, VIEWER, [0]), b"\0" * 205]).encode()
    answer = live.desk.judge_batch(data, at_us=live.now_us)
    size = live.ledger.size()
    assert live.desk.judge_batch(data, at_us=live.now_us + 5_000_000) == answer
    assert [a.verdict for a in answer] == ["accepted", "malformed"]
    assert live.ledger.size() == size
    again = DeliveryDesk(live.ledger, digest_of=lambda *_: None)  # a restarted hub answers the same
    assert again.judge_batch(data, at_us=live.now_us) == answer


def test_every_answer_names_the_position_where_the_verdict_stands(live: Crew) -> None:
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    [answer] = live.send(key, live.receipt(ticket, VIEWER, [0]))
    [recorded] = live.ledger.read(answer.position, 1)
    assert isinstance(recorded.event, SegmentsServed)
    assert recorded.event.judged[0].units == 1


def verdict_cases() -> list[tuple[str, Callable[[Crew, KeyPair, SignedTicket], bytes]]]:
    def out_of_range(c: Crew, _: KeyPair, t: SignedTicket) -> bytes:
        return c.receipt(t, VIEWER, [0, 11])  # never published

    def forged(c: Crew, _: KeyPair, t: SignedTicket) -> bytes:
        return c.receipt(t, KeyPair(b"x" * 32), [0])

    def wrong_digest(c: Crew, _: KeyPair, t: SignedTicket) -> bytes:
        body = Receipt.decode_body(c.receipt(t, VIEWER, [0])[:-64])
        return replace(body, bitmap=to_bitmap(0, [0, 1])).sign(VIEWER).encode()

    def unknown(c: Crew, _: KeyPair, t: SignedTicket) -> bytes:
        return c.receipt(SignedTicket(replace(t.ticket, nonce=b"z" * 16), t.signature), VIEWER, [0])

    return [
        ("out_of_range", out_of_range),
        ("bad_signature", forged),
        ("digest_mismatch", wrong_digest),
        ("unknown_ticket", unknown),
    ]


@pytest.mark.parametrize(("verdict", "make"), verdict_cases(), ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_receipt_is_refused_and_the_good_one_beside_it_is_paid(
    live: Crew, verdict: str, make: Callable[[Crew, KeyPair, SignedTicket], bytes]
) -> None:
    key, node = live.node()
    bad, good = live.ticket(node, VIEWER), live.ticket(node, VIEWER)
    answers = live.send(key, make(live, key, bad), live.receipt(good, VIEWER, [0, 1]))
    assert [(a.index, a.verdict, a.units) for a in answers] == [(0, verdict, 0), (1, "accepted", 2)]


def test_a_receipt_moved_to_another_node_is_refused(live: Crew) -> None:
    _, honest = live.node()
    thief_key, _ = live.node()
    ticket = live.ticket(honest, VIEWER)
    [answer] = live.send(thief_key, live.receipt(ticket, VIEWER, [0]))
    assert answer.verdict == "wrong_node"


def test_a_receipt_after_settle_by_is_late(live: Crew) -> None:
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    live.now_us = (ticket.ticket.settle_by_s + 1) * 1_000_000
    [answer] = live.send(key, live.receipt(ticket, VIEWER, [0]))
    assert answer.verdict == "late"


def test_after_reassignment_the_first_receipt_for_a_segment_wins(live: Crew) -> None:
    (key_a, a), (key_b, b) = live.node(), live.node()
    ticket_a = live.ticket(a, VIEWER)
    ticket_b = live.ticket(b, VIEWER, session=ticket_a.ticket.session_id)
    assert live.send(key_b, live.receipt(ticket_b, VIEWER, [3, 4]))[0].units == 2
    assert live.send(key_a, live.receipt(ticket_a, VIEWER, [2, 3, 4]))[0].units == 1


def test_of_one_network_two_sessions_are_paid_for_a_segment(live: Crew, database_url: str) -> None:
    key, node = live.node()
    tickets = [live.ticket(node, VIEWER, network=b"N" * 16) for _ in range(3)]
    answers = live.send(key, *(live.receipt(t, VIEWER, [0, 1]) for t in tickets))
    assert [(a.verdict, a.cap, a.units) for a in answers] == [
        ("accepted", "", 2),
        ("accepted", "", 2),
        ("capped", "prefix_sessions", 0),
    ]
    # A fold of the log agrees: a third session gets nothing for 0 and 1, but its share of 2.
    batch = Batch.sign(key, 2, 3, [live.receipt(tickets[2], VIEWER, [0, 1, 2], counter=2)])
    restarted = Ledger(database_url)
    try:
        desk = DeliveryDesk(restarted, digest_of=lambda *_: None)
        assert desk.judge_batch(batch.encode(), at_us=live.now_us)[0].units == 1
    finally:
        restarted.close()


def test_viewer_and_node_on_one_network_are_not_paid(live: Crew) -> None:
    key, node = live.node(network=b"N" * 16)
    ticket = live.ticket(node, VIEWER, network=b"N" * 16)
    [answer] = live.send(key, live.receipt(ticket, VIEWER, [0]))
    assert (answer.verdict, answer.cap) == ("capped", "same_network")


def test_a_stranger_s_batch_is_refused_whole(live: Crew) -> None:
    with pytest.raises(UnknownNodeError):
        live.send(KeyPair(b"s" * 32), b"\0" * 205)


def test_a_viewer_may_send_its_receipt_itself(live: Crew) -> None:
    _, node = live.node()
    ticket = live.ticket(node, VIEWER)
    answer = live.desk.judge_receipt(live.receipt(ticket, VIEWER, [0]), at_us=live.now_us)
    assert (answer.verdict, answer.units) == ("accepted", 1)
    with pytest.raises(WireError):
        live.desk.judge_receipt(live.receipt(ticket, KeyPair(b"x" * 32), [1]), at_us=live.now_us)


def test_in_any_order_and_however_often_the_credits_are_the_same(live: Crew) -> None:
    rng = random.Random(7)
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    receipts = [live.receipt(ticket, VIEWER, list(range(n + 1)), counter=n) for n in range(10)] * 3
    rng.shuffle(receipts)
    answers = [a for r in receipts for a in live.send(key, r)]
    recorded = {a.position: a for a in answers}.values()  # a batch sent again is answered from the log
    assert sum(a.units for a in recorded) == 10
    assert sum(a.credited_bytes for a in recorded) == sum(map(len, live.media.values()))


def test_a_full_batch_fits_one_event_whatever_the_verdicts(live: Crew) -> None:
    key, node = live.node()
    tickets = [live.ticket(node, VIEWER, network=os.urandom(16)) for _ in range(20)]
    receipts = [live.receipt(t, KeyPair(b"x" * 32), [0], counter=n) for n in range(10) for t in tickets]
    answers = live.send(key, *receipts)
    assert [a.verdict for a in answers] == ["bad_signature"] * 200
    assert len(live.ledger.read(answers[0].position, 1)[0].data) < 65_535


# --- what others recorded meanwhile


def reads(live: Crew, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries for events from here on, as they are made."""
    recorder, made = live.ledger._store.recorder, []

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(recorder, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return method(*args, **kwargs)

        return call

    for name in ("select_events", "select_newer"):
        monkeypatch.setattr(recorder, name, counted(name))
    return made


def test_what_is_remembered_is_not_asked_for(live: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    del node
    live.send(key, live.receipt(ticket, VIEWER, [0]))
    made = reads(live, monkeypatch)
    for n in range(1, 4):
        [answer] = live.send(key, live.receipt(ticket, VIEWER, list(range(n + 1)), counter=n))
        assert (answer.verdict, answer.units) == ("accepted", 1)
    assert made == []


def elsewhere_suspended(other: Ledger, live: Crew, node_id: UUID) -> None:
    node = other.load(Node, node_id)
    node.suspend(reason="probes", at_us=live.now_us)
    other.save(node)
    crew.change_settings(other, {"suspended_signed_paid": 0}, at_us=live.now_us)


def elsewhere_published(other: Ledger, live: Crew, _: UUID) -> None:
    more = [Segment(s, 2_000_000, 1000, b"h" * 32, T0 + s * 2_000_000) for s in range(10, 12)]
    broadcasts.publish_segments(other, live.broadcast.id, more, at_us=live.now_us)


def elsewhere_nothing(other: Ledger, live: Crew, _: UUID) -> None:
    pass


@pytest.mark.parametrize("many", [False, True], ids=["call", "copy"])
@pytest.mark.parametrize(
    ("happened", "verdicts"),
    [
        (elsewhere_nothing, ["accepted", "out_of_range"]),
        (elsewhere_suspended, ["capped", "out_of_range"]),
        (elsewhere_published, ["accepted", "accepted"]),
    ],
)
def test_a_verdict_rests_on_the_log_as_it_is_where_it_stands(
    live: Crew,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    happened: Callable[[Ledger, Crew, UUID], None],
    verdicts: list[str],
    many: bool,
) -> None:
    """Another process appended after all was loaded: at the last moment before this append."""
    if many:
        monkeypatch.setattr("ledger.store.recorder.COPY_FROM", 1)
    live.media.update({10: b"ten", 11: b"eleven"})
    key, node = live.node()
    node_id, tickets = node.id, [live.ticket(node, VIEWER) for _ in range(3)]
    del node
    live.send(key, live.receipt(tickets[0], VIEWER, [0]))
    recorder, other = live.ledger._store.recorder, Ledger(database_url)
    append, happening = recorder.append, [happened]

    def late(*args: Any) -> Any:
        if happening:
            happening.pop()(other, live, node_id)
        return append(*args)

    monkeypatch.setattr(recorder, "append", late)
    made = reads(live, monkeypatch)
    try:
        answers = live.send(
            key, live.receipt(tickets[1], VIEWER, [0, 1]), live.receipt(tickets[2], VIEWER, [9, 10, 11])
        )
    finally:
        other.close()
    assert [a.verdict for a in answers] == verdicts
    assert made == ([] if happened is elsewhere_nothing else ["select_newer"])
    assert len({a.position for a in answers}) == 1


def test_a_delivery_that_another_hub_went_on_with_is_not_folded_from_its_beginning(
    live: Crew, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, node = live.node()
    ticket = live.ticket(node, VIEWER)
    del node
    other = Ledger(database_url)
    try:
        desks = [live.desk, DeliveryDesk(other, digest_of=lambda *_: None)]
        total, made = 0, []
        for n in range(10):
            data = Batch.sign(
                key, n, n, [live.receipt(ticket, VIEWER, list(range(n + 1)), counter=n)]
            ).encode()
            if n == 2:
                made = reads(live, monkeypatch)
            total += sum(a.units for a in desks[n % 2].judge_batch(data, at_us=live.now_us))
        assert total == 10
        assert set(made) == {"select_newer"}
    finally:
        other.close()


# --- failures and repeats


def failing_once(live: Crew, monkeypatch: pytest.MonkeyPatch, *, persisted: bool) -> None:
    """The next append is reported as failed, after or before it was persisted."""
    live.ledger.load(Broadcast, live.broadcast.id)  # what is remembered is as of now: no conflict comes first
    recorder = live.ledger._store.recorder
    append, failed = recorder.append, []

    def fail(rows: Any, unchanged: Any) -> int:
        if failed:
            return append(rows, unchanged)
        failed.append(True)
        if persisted:
            append(rows, unchanged)
        raise OperationalError("connection lost")

    monkeypatch.setattr(recorder, "append", fail)


@pytest.mark.parametrize("persisted", [False, True])
def test_a_batch_whose_save_failed_is_sent_again_and_paid_once(
    live: Crew, monkeypatch: pytest.MonkeyPatch, persisted: bool
) -> None:
    key, node = live.node()
    ticket, other = live.ticket(node, VIEWER), live.ticket(node, VIEWER)
    receipts = [live.receipt(ticket, VIEWER, [0, 1]), b"\0" * 205, live.receipt(other, VIEWER, [2])]
    data = Batch.sign(key, 0, 1, receipts).encode()
    size = live.ledger.size()
    failing_once(live, monkeypatch, persisted=persisted)
    with pytest.raises(Unavailable):
        live.desk.judge_batch(data, at_us=live.now_us)
    assert live.ledger.size() == size + (2 if persisted else 0)
    answers = [live.desk.judge_batch(data, at_us=live.now_us + n) for n in range(3)]
    assert [(a.verdict, a.units) for a in answers[0]] == [("accepted", 2), ("malformed", 0), ("accepted", 1)]
    assert answers == [answers[0]] * 3
    assert live.ledger.size() == size + 2


@pytest.mark.parametrize("persisted", [False, True])
def test_a_receipt_whose_save_failed_is_sent_again_and_paid_once(
    live: Crew, monkeypatch: pytest.MonkeyPatch, persisted: bool
) -> None:
    _, node = live.node()
    data = live.receipt(live.ticket(node, VIEWER), VIEWER, [0, 1])
    size = live.ledger.size()
    failing_once(live, monkeypatch, persisted=persisted)
    with pytest.raises(Unavailable):
        live.desk.judge_receipt(data, at_us=live.now_us)
    answers = [live.desk.judge_receipt(data, at_us=live.now_us + n) for n in range(2)]
    assert [(a.verdict, a.units) for a in answers] == [("accepted", 2)] * 2
    assert live.ledger.size() == size + 1


def test_two_hubs_and_many_threads_that_get_the_same_batches_credit_each_segment_once(
    live: Crew, database_url: str
) -> None:
    key, node = live.node()
    tickets = [live.ticket(node, VIEWER) for _ in range(6)]
    batches = [
        Batch.sign(
            key,
            n,
            n + 1,
            [live.receipt(t, VIEWER, list(range(n + 1)), counter=n) for t in tickets[: n + 2]],
        ).encode()
        for n in range(5)
    ]
    other = Ledger(database_url)
    try:
        elsewhere = DeliveryDesk(other, digest_of=lambda *_: None)
        sent = [(desk, data) for desk in (live.desk, elsewhere) for data in batches * 2]
        random.Random(3).shuffle(sent)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda s: (s[1], s[0].judge_batch(s[1], at_us=live.now_us)), sent))
    finally:
        other.close()
    by_batch = dict(answers)
    assert all(by_batch[data] == answer for data, answer in answers)
    # Ticket n is in the batches from n - 2 on; the last claims segments 0 to 4.
    assert sum(a.units for answer in by_batch.values() for a in answer) == 6 * 5
    assert {a.verdict for answer in by_batch.values() for a in answer} <= {"accepted", "duplicate"}


def test_what_waits_is_judged_together_and_what_cannot_be_fails_nobody_else(
    live: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, node = live.node()
    tickets = [live.ticket(node, VIEWER) for _ in range(5)]
    receipts = [live.receipt(t, VIEWER, [0, 1]) for t in tickets]
    batches = [Batch.sign(key, n, n, [receipt]).encode() for n, receipt in enumerate(receipts[:4])]
    longer = Batch.sign(key, 9, 9, [live.receipt(tickets[1], VIEWER, [0, 1, 2], 2), b"\0" * 205]).encode()
    stranger = Batch.sign(KeyPair(b"?" * 32), 0, 0, [receipts[0]]).encode()

    load, loads = live.ledger.remembered, []
    first_runs, go = threading.Event(), threading.Event()

    def load_each(*wanted: Any) -> Any:
        loads.append(wanted)
        first_runs.set()
        assert go.wait(10)
        return load(*wanted)

    monkeypatch.setattr(live.ledger, "remembered", load_each)

    def judge(data: bytes) -> Any:
        if len(data) == 205:
            return live.desk.judge_receipt(data, at_us=live.now_us)
        return live.desk.judge_batch(data, at_us=live.now_us)

    queue = live.desk._judging._together._queue
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(judge, batches[0])]
        assert first_runs.wait(10)
        waiting = [batches[1], stranger, batches[2], batches[2], longer, receipts[4], batches[3]]
        for number, data in enumerate(waiting, 1):
            answers.append(pool.submit(judge, data))
            while len(queue) < number:
                time.sleep(0.001)
        go.set()
        outcomes = [a.exception() or a.result() for a in answers]
    assert len(loads) == 2
    assert isinstance(outcomes.pop(2), UnknownNodeError)
    assert outcomes[2] == outcomes[3]  # the same batch
    alone = outcomes.pop(5)
    assert (alone.verdict, alone.units) == ("accepted", 2)
    units = [[(a.verdict, a.units) for a in answer] for answer in outcomes]
    assert units == [
        *[[("accepted", 2)]] * 4,
        [("accepted", 1), ("malformed", 0)],  # after the two segments of the batch before it
        [("accepted", 2)],
    ]
    for data, answer in zip([*batches[:3], batches[2], longer, batches[3]], outcomes, strict=True):
        assert judge(data) == answer


def test_a_save_that_fails_fails_all_that_waited_for_it_and_each_may_be_sent_again(
    live: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, node = live.node()
    batches = [
        Batch.sign(key, n, n, [live.receipt(live.ticket(node, VIEWER), VIEWER, [0])]).encode()
        for n in range(3)
    ]
    live.ledger.load(Broadcast, live.broadcast.id)  # what is remembered is as of now: no conflict comes first
    load, first_runs, go = live.ledger.remembered, threading.Event(), threading.Event()

    def load_each(*wanted: Any) -> Any:
        first_runs.set()
        assert go.wait(10)
        return load(*wanted)

    monkeypatch.setattr(live.ledger, "remembered", load_each)

    def judge(data: bytes) -> list[ReceiptAnswer]:
        return live.desk.judge_batch(data, at_us=live.now_us)

    queue = live.desk._judging._together._queue
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(judge, batches[0])]
        assert first_runs.wait(10)
        for number in (1, 2):
            answers.append(pool.submit(judge, batches[number]))
            while len(queue) < number:
                time.sleep(0.001)
        size = live.ledger.size()
        save, saves = live.ledger.save, []

        def fail_second(*aggregates: Any, unchanged: Any) -> Any:
            saves.append(aggregates)
            if len(saves) == 2:
                save(*aggregates, unchanged=unchanged)
                raise Unavailable("it is not known whether they were recorded")
            return save(*aggregates, unchanged=unchanged)

        monkeypatch.setattr(live.ledger, "save", fail_second)
        go.set()
        outcomes = [a.exception() for a in answers]
    assert outcomes[0] is None
    assert all(isinstance(e, Unavailable) for e in outcomes[1:])
    assert outcomes[1] is not outcomes[2]
    again = [judge(data) for data in batches]
    assert [(a.verdict, a.units) for answer in again for a in answer] == [("accepted", 1)] * 3
    assert live.ledger.size() == size + 3
