"""Appends by COPY are appends like any other: dense, whole, recognised when they were persisted after all."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import IntegrityError, OperationalError, StoredEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple
from psycopg.rows import tuple_row

from ledger.aggregates.base import Aggregate
from ledger.application import Ledger, StaleAggregateError
from ledger.event_codec import encode
from ledger.events import Event, NodeProbed
from ledger.store.binary import PART_ROWS, NewRow, columns, copied, in_columns
from ledger.store.database import Datastore
from ledger.store.group import GROUP_EVENTS_MAX, Rows, Versions
from ledger.store.recorder import COPY_FROM, DenseRecorder


def events(originator_id: UUID, first: int, count: int) -> list[StoredEvent]:
    return [StoredEvent(originator_id, first + n, f"topic.v{n % 3}", b"%d" % n) for n in range(count)]


def rows(stored: Sequence[StoredEvent]) -> list[NewRow]:
    return [(UUID(str(e.originator_id)), e.originator_version, e.topic, e.state) for e in stored]


class FlakyCopy(DenseRecorder):
    """Fails before or after the COPY with the next number in `plan` has been committed."""

    plan: list[str]

    def _append_copy(self, rows: Rows, unchanged: Versions) -> int:
        fault = self.plan.pop(0) if self.plan else "none"
        if fault == "not persisted":
            raise OperationalError("injected before the COPY")
        position = super()._append_copy(rows, unchanged)
        if fault == "persisted":
            raise OperationalError("injected after the commit")
        return position


@pytest.fixture
def recorder(database_url: str) -> Iterator[FlakyCopy]:
    datastore = Datastore(database_url)
    datastore.pool.open(
        wait=True
    )  # its thread draws random numbers as it fills, and Hypothesis would take them for ours
    recorder = FlakyCopy(datastore, patience_s=2)
    recorder.plan = []
    yield recorder
    datastore.close()


def log_of(recorder: DenseRecorder) -> list[tuple[int, str, bytes]]:
    return [astuple(row) for row in recorder.select_rows(0, 50_000)]  # type: ignore[misc]


def test_a_copied_batch_reads_back_as_it_was_given(recorder: FlakyCopy) -> None:
    few, many = events(uuid4(), 1, 3), events(uuid4(), 1, 3 * PART_ROWS)
    assert recorder.insert_events(few) == [1, 2, 3]
    assert recorder.insert_events(many) == list(range(4, 4 + len(many)))
    assert log_of(recorder) == [(i, e.topic, e.state) for i, e in enumerate(few + many)]
    assert list(recorder.select_events(many[0].originator_id)) == many


@pytest.mark.parametrize("plan", [["persisted"], ["not persisted"], ["not persisted", "persisted", "none"]])
def test_a_few_large_events_are_copied_and_count_once(recorder: FlakyCopy, plan: list[str]) -> None:
    recorder.plan = list(plan)
    large = [replace(e, state=bytes([i]) * 60_000) for i, e in enumerate(events(uuid4(), 1, 3))]
    assert recorder.insert_events(large) == [1, 2, 3]
    assert recorder.plan == []
    assert log_of(recorder) == [(i, e.topic, e.state) for i, e in enumerate(large)]


@pytest.mark.parametrize("plan", [["persisted"], ["not persisted"], ["not persisted", "persisted", "none"]])
def test_a_copy_that_fails_either_way_counts_once(recorder: FlakyCopy, plan: list[str]) -> None:
    recorder.plan = list(plan)
    batch = events(uuid4(), 1, COPY_FROM)
    assert recorder.insert_events(batch) == list(range(1, COPY_FROM + 1))
    assert len(log_of(recorder)) == COPY_FROM


def test_a_copy_that_conflicts_leaves_nothing_and_the_connection_is_used_again(recorder: FlakyCopy) -> None:
    taken = uuid4()
    recorder.insert_events(events(taken, COPY_FROM, 1))
    for _ in range(20):  # more than the pool has connections
        with pytest.raises(IntegrityError) as caught:
            recorder.insert_events(events(taken, 1, COPY_FROM))
        assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert recorder.insert_events(events(uuid4(), 1, COPY_FROM)) == list(range(2, COPY_FROM + 2))
    assert [position for position, _, _ in log_of(recorder)] == list(range(COPY_FROM + 1))


def test_an_event_that_is_too_long_fails_its_batch_and_no_other(recorder: FlakyCopy) -> None:
    batch = events(uuid4(), 1, COPY_FROM)
    batch[50] = StoredEvent(batch[50].originator_id, 51, "topic", bytes(65_536))
    with pytest.raises(IntegrityError):
        recorder.insert_events(batch)
    assert log_of(recorder) == []


def test_writers_of_all_sizes_share_one_dense_log(recorder: FlakyCopy) -> None:
    sizes = (1, 2, COPY_FROM - 1, COPY_FROM, 300)
    acknowledged: list[int] = []
    lock = threading.Lock()

    def work(n: int) -> None:
        for i in range(6):
            ids = recorder.insert_events(events(uuid4(), 1, sizes[(n + i) % len(sizes)]))
            with lock:
                acknowledged.extend(ids or ())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
    assert [position + 1 for position, _, _ in log_of(recorder)] == sorted(acknowledged)


@given(st.integers(0, 1 << 62), st.integers(0, 3 * PART_ROWS))
def test_the_parts_are_one_stream_of_rows(first: int, count: int) -> None:
    data = b"".join(copied(first, in_columns(rows(events(UUID(int=7), 1, count)))))
    assert data.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    offset, positions = 19, []
    while (columns := int.from_bytes(data[offset : offset + 2], signed=True)) != -1:
        assert columns == 5
        offset += 2
        for column in range(5):
            length = int.from_bytes(data[offset : offset + 4])
            if column == 0:
                positions.append(int.from_bytes(data[offset + 4 : offset + 4 + length]))
            offset += 4 + length
    assert data[offset + 2 :] == b""
    assert positions == list(range(first, first + count))


@given(
    st.lists(
        st.tuples(
            st.uuids(),
            st.integers(1, 1 << 62),
            st.text(st.characters(codec="utf-8", exclude_characters="\0")),
            st.binary(),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_postgres_reads_the_arrays_as_the_rows_they_were_made_of(
    recorder: FlakyCopy, given_rows: list[NewRow]
) -> None:
    with recorder.datastore.get_connection() as connection:
        cursor = connection.cursor(row_factory=tuple_row)
        query = "SELECT * FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::bytea[])"
        assert cursor.execute(query, columns(given_rows)).fetchall() == given_rows


def test_a_batch_that_fills_a_flush_is_encoded_on_the_way_and_fails_whole(
    ledger: Ledger, database_url: str
) -> None:
    aggregate = Probed(uuid4())
    for _ in range(GROUP_EVENTS_MAX):
        aggregate.probe()
    aggregate.probe("x" * 70_000)
    with pytest.raises(ValueError, match="at most 65535"):
        ledger.save(aggregate)
    assert ledger.size() == 0
    with pytest.raises(StaleAggregateError):
        ledger.save(aggregate)
    again = Probed(uuid4())
    for _ in range(GROUP_EVENTS_MAX + 1):
        again.probe()
    events = again.pending
    assert ledger.save(again) == list(range(GROUP_EVENTS_MAX + 1))
    assert [r.data for r in ledger.read(0, 5_000)] == [encode(event) for event in events]


class Probed(Aggregate):
    @property
    def pending(self) -> list[Event]:
        return list(self._pending)

    def probe(self, outcome: str = "ok") -> None:
        self.trigger(
            NodeProbed, at_us=1, outcome=outcome, sequence=0, latency_us=1, segment_bytes=1, session_id=None
        )

    def apply(self, event: Event) -> None:
        pass
