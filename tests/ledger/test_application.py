"""The ledger's contract: load, save, read, wait; conflicts; outages."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from eventsourcing.persistence import OperationalError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import events as ev
from ledger.aggregates.base import Aggregate
from ledger.application import Conflict, Ledger, NotFound, StaleAggregateError, Unavailable
from ledger.event_codec import UnknownEventError, encode
from ledger.events import Event
from ledger.store.database import connect


class Probed(Aggregate):
    """The smallest aggregate: counts probes of a node."""

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.count = 0
        self.sequences: list[int] = []

    def apply(self, event: Event) -> None:
        assert isinstance(event, ev.NodeProbed)
        if event.outcome == "explode":
            self.count += 1000
            raise ValueError("explode")
        self.count += 1
        self.sequences.append(event.sequence)

    def probe(self, sequence: int = 0, outcome: str = "ok") -> Event:
        return self.trigger(
            ev.NodeProbed,
            at_us=1,
            outcome=outcome,
            sequence=sequence,
            latency_us=1,
            segment_bytes=1,
            session_id=None,
        )


def test_what_was_saved_is_loaded_and_read_with_its_exact_bytes(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    first, second = aggregate.probe(1), aggregate.probe(2)
    assert ledger.save(aggregate) == [0, 1]
    assert ledger.load(Probed, aggregate.id).sequences == [1, 2]
    recorded = ledger.read(0, 10)
    assert [(r.position, r.event, r.data) for r in recorded] == [
        (0, first, encode(first)),
        (1, second, encode(second)),
    ]
    assert ledger.size() == 2
    assert ledger.read(2, 10) == []
    assert ledger.position_of(aggregate.id, 2) == 1


def test_nothing_pending_saves_nothing(ledger: Ledger) -> None:
    assert ledger.save(Probed(uuid4())) == []
    assert ledger.save() == []
    assert ledger.size() == 0


def test_an_unknown_aggregate_is_not_found_or_new(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        ledger.load(Probed, uuid4())
    with pytest.raises(NotFound):
        ledger.position_of(uuid4(), 1)
    assert ledger.load_or_new(Probed, uuid4()).version == 0


def test_two_ledgers_on_one_version_conflict_and_the_loser_decides_again(
    ledger: Ledger, database_url: str
) -> None:
    other = Ledger(database_url)
    aggregate = Probed(uuid4())
    aggregate.probe(1)
    ledger.save(aggregate)
    mine, theirs = ledger.load(Probed, aggregate.id), other.load(Probed, aggregate.id)
    mine.probe(2)
    theirs.probe(3)
    other.save(theirs)
    with pytest.raises(Conflict):
        ledger.save(mine)
    again = ledger.load(Probed, aggregate.id)
    assert again.sequences == [1, 3]
    again.probe(2)
    assert ledger.save(again) == [2]
    other.close()


def test_several_aggregates_are_saved_together_or_not_at_all(ledger: Ledger) -> None:
    a, b = Probed(uuid4()), Probed(uuid4())
    a.probe(1)
    b.probe(1)
    ledger.save(b)
    stale = Probed(b.id)
    stale.probe(9)
    with pytest.raises(Conflict):
        ledger.save(a, stale)
    with pytest.raises(NotFound):
        ledger.load(Probed, a.id)
    assert ledger.size() == 1


@pytest.mark.parametrize("copy_from", [100, 1], ids=["call", "copy"])
def test_what_was_decided_on_others_is_not_saved_when_they_went_on(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch, copy_from: int
) -> None:
    monkeypatch.setattr("ledger.store.recorder.COPY_FROM", copy_from)
    read, written, never = Probed(uuid4()), Probed(uuid4()), Probed(uuid4())
    read.probe(1)
    ledger.save(read)
    written.probe(1)
    assert ledger.save(written, unchanged=[read, never]) == [1]
    other = Ledger(database_url)
    theirs = other.load(Probed, read.id)
    theirs.probe(2)
    other.save(theirs)
    other.close()
    written.probe(2)
    with pytest.raises(Conflict):
        ledger.save(written, unchanged=[read, never])
    assert ledger.size() == 3
    again = ledger.load(Probed, written.id)
    again.probe(3)
    assert ledger.save(again, unchanged=[ledger.load(Probed, read.id)]) == [3]


def test_of_saves_that_share_a_transaction_one_is_not_decided_on_what_another_changes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first holds the turn until the others wait behind it."""
    read, written, last = Probed(uuid4()), Probed(uuid4()), Probed(uuid4())
    for aggregate in (read, written, last):
        aggregate.probe(1)
    ledger.save(read)
    recorder, go = ledger._store.recorder, threading.Event()
    append = recorder._append
    recorder._group._commit = lambda rows, unchanged: go.wait(10) and append(rows, unchanged)
    as_read = ledger.load(Probed, read.id)
    changed = ledger.load(Probed, read.id)
    changed.probe(2)
    first = Probed(uuid4())
    first.probe(1)
    queue = recorder._group._together._queue
    with ThreadPoolExecutor(4) as pool:
        saves = [pool.submit(ledger.save, first)]
        waiting = [(changed, ()), (written, [as_read]), (last, ())]
        while queue or not recorder._group._together._led:
            time.sleep(0.001)
        for number, (aggregate, unchanged) in enumerate(waiting, 1):
            saves.append(pool.submit(ledger.save, aggregate, unchanged=unchanged))
            while len(queue) < number:
                time.sleep(0.001)
        go.set()
        outcomes = [save.exception() or save.result() for save in saves]
    assert outcomes[:2] == [[1], [2]]
    assert isinstance(outcomes[2], Conflict)
    assert outcomes[3] == [3]


@pytest.mark.parametrize("copy_from", [100, 2], ids=["call", "copy"])
def test_whoever_decides_on_what_it_remembers_stands_behind_exactly_that(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch, copy_from: int
) -> None:
    """Threads of two processes write down how many events they saw of what some of them change all the while."""
    monkeypatch.setattr("ledger.store.recorder.COPY_FROM", copy_from)
    read = Probed(uuid4())
    read.probe(0)
    ledger.save(read)
    other, shared, own = Ledger(database_url), read.id, [uuid4() for _ in range(6)]
    del read

    def change(n: int) -> int:
        mine, conflicts = (ledger, other)[n % 2], 0
        for _ in range(15):
            while True:
                aggregate = mine.load(Probed, shared)
                aggregate.probe(-1)
                try:
                    mine.save(aggregate)
                    break
                except Conflict:
                    conflicts += 1
            time.sleep(0.002)
        return conflicts

    def decide(n: int) -> int:
        mine, conflicts, fresh = (ledger, other)[n % 2], 0, False
        for _ in range(40):
            while True:
                load = mine.load_each if fresh else mine.remembered
                seen, written = load((Probed, shared), (Probed, own[n]))
                assert isinstance(seen, Probed)
                written = written or Probed(own[n])
                assert isinstance(written, Probed)
                written.probe(seen.version)
                try:
                    mine.save(written, unchanged=[seen])
                    fresh = False
                    break
                except Conflict:
                    conflicts, fresh = conflicts + 1, True
        return conflicts

    with ThreadPoolExecutor(8) as pool:
        changes = [pool.submit(change, n) for n in range(2)]
        conflicts = sum(pool.map(decide, range(6)))
        for done in changes:
            done.result()
    other.close()
    count = decided = 0
    for recorded in ledger.read(0, 1_000):
        assert isinstance(recorded.event, ev.NodeProbed)
        if recorded.event.originator_id == shared:
            count += 1
        else:
            decided += 1
            assert recorded.event.sequence == count
    assert (count, decided) == (31, 240)
    assert conflicts > 0


@pytest.mark.parametrize("persisted", [False, True])
def test_a_save_in_doubt_whose_reading_was_overtaken_is_known_by_its_bytes(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch, persisted: bool
) -> None:
    read, written = Probed(uuid4()), Probed(uuid4())
    read.probe(1)
    ledger.save(read)
    recorder, other, failed = ledger._store.recorder, Ledger(database_url), []
    append = recorder._append

    def fail_once(rows: Any, unchanged: Any) -> int:
        if not failed:
            failed.append(True)
            if persisted:
                append(rows, unchanged)
            theirs = other.load(Probed, read.id)
            theirs.probe(2)
            other.save(theirs)
            raise OperationalError("connection lost")
        return append(rows, unchanged)

    recorder._group._commit = fail_once
    written.probe(1)
    if persisted:
        assert ledger.save(written, unchanged=[read]) == [1]
    else:
        with pytest.raises(Conflict):
            ledger.save(written, unchanged=[read])
    other.close()
    assert ledger.size() == (3 if persisted else 2)


def test_events_of_several_aggregates_stand_in_the_order_given(ledger: Ledger) -> None:
    a, b = Probed(uuid4()), Probed(uuid4())
    for aggregate, sequence in ((b, 1), (a, 2), (b, 3)):
        aggregate.probe(sequence)
    assert ledger.save(a, b) == [0, 1, 2]
    assert [e.sequence for r in ledger.read(0, 9) if isinstance(e := r.event, ev.NodeProbed)] == [2, 1, 3]


def test_an_event_too_large_for_the_log_is_refused_before_the_database(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe(outcome="x" * 70_000)
    with pytest.raises(ValueError, match="at most 65535"):
        ledger.save(aggregate)
    assert ledger.size() == 0


def test_an_aggregate_whose_save_failed_cannot_be_saved_again(ledger: Ledger) -> None:
    first, second = Probed(uuid4()), Probed(uuid4())
    first.probe()
    ledger.save(first)
    stale = Probed(first.id)
    stale.probe()
    second.probe()
    with pytest.raises(Conflict):
        ledger.save(stale, second)
    with pytest.raises(StaleAggregateError):
        ledger.save(second)


def test_a_command_that_broke_halfway_leaves_no_trace_in_later_loads(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe()
    ledger.save(aggregate)
    with pytest.raises(ValueError, match="explode"):
        aggregate.probe(outcome="explode")
    with pytest.raises(StaleAggregateError):
        ledger.save(aggregate)
    aggregate_id = aggregate.id
    del aggregate
    assert ledger.load(Probed, aggregate_id).count == 1


def test_what_was_decided_but_not_saved_leaves_no_trace_in_later_loads(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe()
    ledger.save(aggregate)
    aggregate.probe()
    aggregate_id = aggregate.id
    del aggregate
    assert ledger.load(Probed, aggregate_id).count == 1


def test_an_aggregate_that_somebody_holds_is_not_lent_again(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe()
    ledger.save(aggregate)
    loaded = ledger.load(Probed, aggregate.id)
    assert loaded is not aggregate
    assert loaded is not ledger.load(Probed, aggregate.id)


def test_an_aggregate_that_nobody_holds_is_lent_without_folding_it_again(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe()
    ledger.save(aggregate)
    aggregate_id, identity = aggregate.id, id(aggregate)
    del aggregate
    assert id(ledger.load(Probed, aggregate_id)) == identity


def test_a_cached_aggregate_follows_other_processes(ledger: Ledger, database_url: str) -> None:
    other = Ledger(database_url)
    aggregate = Probed(uuid4())
    aggregate.probe(1)
    ledger.save(aggregate)
    aggregate_id = aggregate.id
    del aggregate
    for sequence in range(2, 5):
        theirs = other.load(Probed, aggregate_id)
        theirs.probe(sequence)
        other.save(theirs)
        assert ledger.load(Probed, aggregate_id).sequences == list(range(1, sequence + 1))
    other.close()


def test_a_long_aggregate_is_folded_whole(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    for sequence in range(2_500):
        aggregate.probe(sequence)
    ledger.save(aggregate)
    assert ledger.load(Probed, aggregate.id).sequences == list(range(2_500))


def test_threads_on_one_aggregate_lose_no_update(ledger: Ledger) -> None:
    aggregate_id = uuid4()

    def add(number: int) -> None:
        while True:
            aggregate = ledger.load_or_new(Probed, aggregate_id)
            aggregate.probe(number)
            try:
                ledger.save(aggregate)
            except Conflict:
                continue
            return

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(add, range(80)))
    assert sorted(ledger.load(Probed, aggregate_id).sequences) == list(range(80))


def test_the_reader_stops_at_an_event_this_program_does_not_know(ledger: Ledger, database_url: str) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe(1)
    ledger.save(aggregate)
    future = uuid4()
    data = msgspec.msgpack.encode({"type": "node.flew.v9", "originator_id": future.bytes})
    with connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])",
            ([future], [1], ["node.flew.v9"], [data]),
        )
    aggregate.probe(2)
    ledger.save(aggregate)
    assert [r.position for r in ledger.read(0, 10)] == [0]
    with pytest.raises(UnknownEventError, match=r"position 1.*node\.flew\.v9"):
        ledger.read(1, 10)
    with pytest.raises(UnknownEventError):
        ledger.load(Probed, future)
    assert [r.position for r in ledger.read(2, 10)] == [2]


@pytest.mark.parametrize(("start", "limit"), [(-1, 1), (0, 0), (0, 50_001)])
def test_reads_are_bounded(ledger: Ledger, start: int, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        ledger.read(start, limit)


def test_wait_wakes_within_200_ms_of_a_commit_by_another_ledger(ledger: Ledger, database_url: str) -> None:
    other = Ledger(database_url)
    delays_s = []
    assert ledger.wait(0, 0.05) == 0
    for size in range(5):
        committed_at = 0.0

        def commit() -> None:
            nonlocal committed_at
            aggregate = Probed(uuid4())
            aggregate.probe()
            other.save(aggregate)
            committed_at = time.monotonic()

        timer = threading.Timer(0.1, commit)
        timer.start()
        assert ledger.wait(size, 10) == size + 1
        woke_at = time.monotonic()
        timer.join()
        delays_s.append(woke_at - committed_at)
    # The middle one: the machine that runs the tests may be busy.
    assert sorted(delays_s)[2] < 0.2
    other.close()


def test_wait_returns_at_once_when_there_is_news_already_and_at_its_timeout_when_not(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    aggregate.probe()
    ledger.save(aggregate)
    assert ledger.wait(0, 60) == 1
    started = time.monotonic()
    assert ledger.wait(1, 0.2) == 1
    assert 0.2 <= time.monotonic() - started < 2


def test_a_closed_ledger_says_so_and_closes_twice(database_url: str) -> None:
    ledger = Ledger(database_url)
    ledger.wait(0, 0)
    ledger.close()
    ledger.close()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        ledger.size()
    assert time.monotonic() - started < 1


def test_nothing_in_the_environment_changes_how_events_are_stored(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PERSISTENCE_MODULE": "eventsourcing.popo",
        "COMPRESSOR_TOPIC": "zlib",
        "IS_SNAPSHOTTING_ENABLED": "y",
        "MAPPER_TOPIC": "eventsourcing.persistence:Mapper",
    }.items():
        monkeypatch.setenv(name, value)
    ledger = Ledger(database_url)
    aggregate = Probed(uuid4())
    event = aggregate.probe()
    ledger.save(aggregate)
    assert ledger.read(0, 1)[0].data == encode(event)
    ledger.close()


# --- against a small, slow, obvious model ---

Step = tuple[int, int, tuple[int, ...]]
steps = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, hold=st.booleans(), stale=st.sets(st.integers(0, 11), max_size=4))
def test_the_ledger_behaves_like_a_dict_of_lists_and_one_list(
    ledger: Ledger, database_url: str, steps: list[Step], hold: bool, stale: set[int]
) -> None:
    ledgers = (ledger, Ledger(database_url))
    start = ledger.size()
    ids = [uuid4() for _ in range(3)]
    streams: dict[UUID, list[int]] = {i: [] for i in ids}
    log: list[tuple[UUID, int]] = []
    held = []
    for number, (which, who, sequences) in enumerate(steps):
        one = ledgers[which]
        aggregate = one.load_or_new(Probed, ids[who])
        assert aggregate.sequences == streams[ids[who]]
        if hold:
            held.append(aggregate)
        if number in stale and sequences:
            rival = ledgers[1 - which].load_or_new(Probed, ids[who])
            rival.probe(99)
            assert ledgers[1 - which].save(rival) == [start + len(log)]
            streams[ids[who]].append(99)
            log.append((ids[who], 99))
        for sequence in sequences:
            aggregate.probe(sequence)
        if number in stale and sequences:
            with pytest.raises(Conflict):
                one.save(aggregate)
            continue
        first = start + len(log)
        assert one.save(aggregate) == list(range(first, first + len(sequences)))
        streams[ids[who]] += sequences
        log += [(ids[who], s) for s in sequences]
    events = [r.event for r in ledger.read(start, 1000)]
    assert [(e.originator_id, e.sequence) for e in events if isinstance(e, ev.NodeProbed)] == log
    assert ledger.size() == start + len(log)
    ledgers[1].close()
