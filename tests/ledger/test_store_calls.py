"""Appends keep one connection: whatever happens to it, the next append is made, and nobody else is in its way."""

from collections.abc import Iterator
from threading import Event, Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import IntegrityError

from ledger.store.binary import NewRow
from ledger.store.database import Datastore
from ledger.store.recorder import DenseRecorder


@pytest.fixture
def datastore(database_url: str) -> Iterator[Datastore]:
    datastore = Datastore(database_url)
    yield datastore
    datastore.close()


@pytest.fixture
def recorder(datastore: Datastore) -> DenseRecorder:
    return DenseRecorder(datastore)


def row(originator_id: UUID, version: int = 1) -> NewRow:
    return originator_id, version, "topic", b"state"


def backends(recorder: DenseRecorder) -> list[int]:
    return [connection.info.backend_pid for _, connection in recorder._calls._kept]


def test_the_same_connection_appends_again_and_again(recorder: DenseRecorder) -> None:
    assert recorder.append([row(uuid4())]) == 0
    [first] = backends(recorder)
    assert recorder.append([row(uuid4())], [(uuid4(), 0)]) == 1
    assert backends(recorder) == [first]


def test_after_a_refusal_the_next_append_is_made(recorder: DenseRecorder) -> None:
    taken = uuid4()
    assert recorder.append([row(taken)]) == 0
    for _ in range(3):
        with pytest.raises(IntegrityError):
            recorder.append([row(taken)])
        with pytest.raises(IntegrityError):
            recorder.append([row(uuid4())], [(taken, 0)])
    assert recorder.append([row(uuid4())]) == 1


def test_a_refused_copy_leaves_a_connection_that_appends(recorder: DenseRecorder) -> None:
    """The driver drops every prepared statement after a rollback, ours too."""
    taken = uuid4()
    assert recorder.append([row(taken)]) == 0
    for _ in range(2):
        with pytest.raises(IntegrityError):
            recorder.append([row(taken)])  # its connection goes back
        with pytest.raises(IntegrityError):
            recorder.append([row(uuid4()) for _ in range(200)] + [row(taken)])
    assert recorder.append([row(uuid4())]) == 1


def test_a_connection_that_died_costs_no_append(database_url: str, recorder: DenseRecorder) -> None:
    assert recorder.append([row(uuid4())]) == 0
    [pid] = backends(recorder)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    assert recorder.append([row(uuid4())]) == 1
    assert backends(recorder) != [pid]


def test_a_second_recorder_of_the_datastore_is_not_in_the_way(
    datastore: Datastore, recorder: DenseRecorder
) -> None:
    other, taken = DenseRecorder(datastore), uuid4()
    assert recorder.append([row(taken)]) == 0
    for each in (recorder, other) * 3:  # each in turn is lent what the other has given back
        with pytest.raises(IntegrityError):
            each.append([row(taken)])
    assert [other.append([row(uuid4())]), recorder.append([row(uuid4())])] == [1, 2]


def test_two_at_once_have_a_connection_each_and_one_is_kept(
    datastore: Datastore, recorder: DenseRecorder
) -> None:
    """A group has one leader, but whoever calls past it must not meet in one connection."""
    held, go = Event(), Event()

    def hold_the_log() -> None:
        with datastore.get_connection() as connection, connection.transaction():
            lock = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
            connection.execute(lock, (f"{datastore.schema}.events",))
            held.set()
            go.wait(10)

    positions: list[int] = []
    threads = [Thread(target=hold_the_log)]
    threads += [
        Thread(target=lambda: positions.append(recorder._append([row(uuid4())], ()))) for _ in range(2)
    ]
    threads[0].start()
    held.wait(10)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(positions) == [0, 1]
    assert len(backends(recorder)) == 1


def test_what_is_kept_goes_back_when_the_datastore_closes(database_url: str) -> None:
    datastore = Datastore(database_url)
    recorder = DenseRecorder(datastore)
    recorder.append([row(uuid4())])
    [(_, connection)] = recorder._calls._kept
    datastore.close()
    assert connection.closed
    assert not backends(recorder)
