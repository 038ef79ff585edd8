"""Positions are dense whatever fails; an append is recognised when it was persisted but reported as failed."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import (
    IntegrityError,
    NotSupportedError,
    OperationalError,
    StoredEvent,
    Tracking,
)

from ledger.store.binary import NewRow
from ledger.store.database import Datastore, connect
from ledger.store.group import GroupCommit, Rows, Versions
from ledger.store.recorder import DenseRecorder


def stored(originator_id: UUID, version: int, state: bytes = b"state") -> StoredEvent:
    return StoredEvent(originator_id, version, "topic", state)


def rows(stored_events: Sequence[StoredEvent]) -> list[NewRow]:
    return [(UUID(str(e.originator_id)), e.originator_version, e.topic, e.state) for e in stored_events]


def positions(recorder: DenseRecorder) -> list[int]:
    return [row.position for row in recorder.select_rows(0, 50_000)]


class FlakyRecorder(DenseRecorder):
    """Raises before or after the statement with the next number in `plan` has run."""

    plan: list[str]

    def _fetch(self, statement: Any, params: Sequence[Any]) -> Any:
        return self._faulty(lambda: super(FlakyRecorder, self)._fetch(statement, params))

    def _call(self, name: bytes, params: Sequence[bytes]) -> int:
        called: int = self._faulty(lambda: super(FlakyRecorder, self)._call(name, params))
        return called

    def _faulty(self, run: Callable[[], Any]) -> Any:
        fault = self.plan.pop(0) if self.plan else "none"
        if fault == "not persisted":
            raise OperationalError("injected before the statement")
        found = run()
        if fault == "persisted":
            raise OperationalError("injected after the commit")
        return found


@pytest.fixture
def datastore(database_url: str) -> Iterator[Datastore]:
    datastore = Datastore(database_url)
    yield datastore
    datastore.close()


@pytest.fixture
def recorder(datastore: Datastore) -> DenseRecorder:
    return DenseRecorder(datastore)


@pytest.fixture
def flaky(datastore: Datastore) -> FlakyRecorder:
    flaky = FlakyRecorder(datastore, patience_s=1)
    flaky.plan = []
    return flaky


def test_positions_are_dense_under_concurrent_conflicts_and_rollbacks(
    database_url: str, recorder: DenseRecorder
) -> None:
    shared = [uuid4() for _ in range(3)]
    written: list[tuple[int, UUID | str, int]] = []
    conflicts = 0
    lock = threading.Lock()

    def work(seed: int) -> None:
        nonlocal conflicts
        rng = random.Random(seed)
        with connect(database_url) as connection:
            for i in range(40):
                if rng.random() < 0.3:
                    append = "SELECT append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])"
                    connection.execute(append, ([uuid4()], [1], ["topic"], [b"gone"]))
                    connection.rollback()
                    continue
                originator = rng.choice(shared)
                existing = recorder.select_events(originator, desc=True, limit=1)
                version = existing[0].originator_version + 1 if existing else 1
                batch = [stored(originator, version + n) for n in range(rng.randint(1, 3))]
                batch.append(stored(uuid4(), 1, f"{seed}/{i}".encode()))
                try:
                    ids = recorder.insert_events(batch)
                except IntegrityError:
                    with lock:
                        conflicts += 1
                    continue
                assert ids is not None
                with lock:
                    written.extend(
                        (id_ - 1, e.originator_id, e.originator_version)
                        for id_, e in zip(ids, batch, strict=True)
                    )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notifications = recorder.select_notifications(1, 50_000)
    assert [n.id - 1 for n in notifications] == list(range(len(written)))
    assert sorted(written) == [(n.id - 1, n.originator_id, n.originator_version) for n in notifications]
    assert conflicts > 0


def test_a_persisted_append_that_was_reported_as_failed_counts_once(flaky: FlakyRecorder) -> None:
    flaky.insert_events([stored(uuid4(), 1)])
    a, b = uuid4(), uuid4()
    flaky.plan = ["persisted"]
    assert flaky.insert_events([stored(a, 1), stored(b, 1), stored(a, 2)]) == [2, 3, 4]
    assert positions(flaky) == [0, 1, 2, 3]


def test_the_proof_of_a_persisted_append_may_fail_too(flaky: FlakyRecorder) -> None:
    flaky.plan = ["persisted", "none", "not persisted", "none", "persisted"]
    assert flaky.insert_events([stored(uuid4(), 1)]) == [1]
    assert positions(flaky) == [0]


def test_an_append_that_was_not_persisted_is_tried_again(flaky: FlakyRecorder) -> None:
    flaky.plan = ["not persisted", "not persisted"]
    assert flaky.insert_events([stored(uuid4(), 1)]) == [1]
    assert positions(flaky) == [0]


@pytest.mark.parametrize(
    "theirs",
    [
        lambda a, b: [stored(a, 1, b"other"), stored(b, 1)],
        lambda a, b: [stored(a, 1)],
        lambda a, b: [stored(a, 1), stored(uuid4(), 1), stored(b, 1)],
        lambda a, b: [stored(b, 1), stored(a, 1)],
        lambda a, b: [StoredEvent(a, 1, "other topic", b"state"), stored(b, 1)],
    ],
    ids=["other bytes", "only a part", "not side by side", "other order", "other topic"],
)
def test_anything_else_found_in_its_place_is_a_conflict(
    flaky: FlakyRecorder, recorder: DenseRecorder, theirs: Any
) -> None:
    a, b = uuid4(), uuid4()
    recorder.insert_events(theirs(a, b))
    before = recorder.select_rows(0, 10)
    flaky.plan = ["not persisted"]
    with pytest.raises(IntegrityError):
        flaky.insert_events([stored(a, 1), stored(b, 1)])
    assert recorder.select_rows(0, 10) == before


def test_the_same_bytes_again_without_doubt_are_a_conflict(recorder: DenseRecorder) -> None:
    event = stored(uuid4(), 1)
    recorder.insert_events([event])
    with pytest.raises(IntegrityError):
        recorder.insert_events([event])


def test_a_connection_that_dies_under_the_append_is_replaced(
    postgres_url: str, datastore: Datastore, recorder: DenseRecorder
) -> None:
    recorder.insert_events([stored(uuid4(), 1)])
    with psycopg.connect(postgres_url, autocommit=True) as superuser:
        killed = superuser.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'streamrp2p'"
        ).fetchone()
        assert killed is not None
        assert killed[0] >= 1
    assert recorder.insert_events([stored(uuid4(), 1)]) == [2]


def test_a_database_that_stays_away_is_reported_in_bounded_time(flaky: FlakyRecorder) -> None:
    flaky.plan = ["not persisted"] * 1000
    with pytest.raises(OperationalError):
        flaky.insert_events([stored(uuid4(), 1)])
    assert len(flaky.plan) > 900


def test_tracking_is_refused_rather_than_dropped(recorder: DenseRecorder) -> None:
    with pytest.raises(NotSupportedError):
        recorder.insert_events([stored(uuid4(), 1)], tracking=Tracking("up", 1))


def test_appends_that_wait_share_a_transaction_and_a_conflict_fails_nobody_else(
    recorder: DenseRecorder,
) -> None:
    taken = stored(uuid4(), 1)
    recorder.insert_events([taken])
    commits: list[int] = []
    first_runs, go = threading.Event(), threading.Event()

    def commit(rows: Rows, unchanged: Versions) -> int:
        commits.append(len(rows))
        first_runs.set()
        assert go.wait(10)
        return recorder._append(rows, unchanged)

    group = GroupCommit(commit)
    outcomes: dict[int, object] = {}

    def append(number: int, events: list[StoredEvent]) -> None:
        try:
            outcomes[number] = group.append(rows(events))
        except IntegrityError as e:
            outcomes[number] = type(e)

    def start(number: int, events: list[StoredEvent]) -> threading.Thread:
        thread = threading.Thread(target=append, args=(number, events))
        thread.start()
        return thread

    def wait_for_queue(size: int) -> None:
        while len(group._together._queue) < size:
            time.sleep(0.001)

    threads = [start(0, [stored(uuid4(), 1)])]
    assert first_runs.wait(10)
    for number in range(1, 4):  # they queue up behind the first
        threads.append(start(number, [stored(uuid4(), 1), stored(uuid4(), 1)]))
        wait_for_queue(number)
    go.set()
    for thread in threads:
        thread.join()
    assert outcomes == {0: 1, 1: 2, 2: 4, 3: 6}
    assert commits == [1, 6]

    go.clear()
    first_runs.clear()
    threads = [start(4, [stored(uuid4(), 1)])]
    assert first_runs.wait(10)
    for number, events in (
        (5, [stored(uuid4(), 1)]),
        (6, [stored(uuid4(), 1), taken]),
        (7, [stored(uuid4(), 1)]),
    ):
        threads.append(start(number, events))
        wait_for_queue(number - 4)
    go.set()
    for thread in threads:
        thread.join()
    assert [outcomes[n] for n in range(4, 8)] == [8, 9, IntegrityError, 10]
    assert positions(recorder) == list(range(11))


def test_whoever_waits_is_woken_though_threads_between_are_interrupted() -> None:
    """A waiter that was interrupted passes the wake on, whether that happened before or after its group was flushed."""
    started, go = threading.Event(), threading.Event()

    def commit(rows: Rows, unchanged: Versions) -> int:
        started.set()
        assert go.wait(10)
        return 0

    group = GroupCommit(commit)
    outcomes: list[int] = []

    def append() -> None:
        outcomes.append(group.append(rows([stored(uuid4(), 1)])))

    def start() -> threading.Thread:
        thread = threading.Thread(target=append)
        thread.start()
        return thread

    threads = [start()]
    assert started.wait(10)
    for number in range(1, 6):
        threads.append(start())
        while len(group._together._queue) < number:
            time.sleep(0.001)
    # What an interruption leaves behind: a waiter in the queue whose thread is no longer there.
    gone = [group._together._queue[1], group._together._queue[3]]
    for waiting in gone:
        waiting.gone = True
    go.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert len(outcomes) == 6
