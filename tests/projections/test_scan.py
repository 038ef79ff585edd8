"""What a scan of the log leaves out, and that it skips nothing else."""

import psycopg
import pytest
from histories import OPENING, History
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.aggregates.base import Aggregate
from ledger.application import Ledger, LogGapError
from ledger.event_codec import UnknownEventError
from ledger.events import Event
from projections.base import SESSION

EVENTS = History().play([*OPENING, ("watch", 0), ("serve", 7), ("probe", 1)])
KINDS = sorted({type(event) for event in EVENTS} | SESSION, key=lambda kind: kind.__name__)


class Anything(Aggregate):
    """Carries prepared events into the log."""

    def apply(self, event: Event) -> None:
        pass


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    for event in EVENTS:
        aggregate = Anything(event.originator_id)
        aggregate.version = event.originator_version - 1
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        for known in ("originator_id", "originator_version"):
            del fields[known]
        aggregate.trigger(type(event), **fields)
        ledger.save(aggregate)
    return ledger


def scanned(
    ledger: Ledger, start: int, limit: int, skip: set[type[Event]]
) -> tuple[list[tuple[int, Event]], int]:
    with ledger.scan(start, limit, skip) as scan:
        return list(scan), scan.end


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 60), limit=st.integers(1, 60), skip=st.sets(st.sampled_from(KINDS)))
def test_a_scan_is_the_log_without_what_is_skipped(
    filled: Ledger, start: int, limit: int, skip: set[type[Event]]
) -> None:
    events, end = scanned(filled, start, limit, skip)
    read = filled.read(start, limit)
    assert events == [(r.position, r.event) for r in read if type(r.event) not in skip]
    assert end == start + len(read)


def test_a_scan_that_is_left_early_does_no_harm(filled: Ledger) -> None:
    for _ in range(20):  # more often than there are connections
        with filled.scan(0, 60, ()) as scan:
            assert next(iter(scan)) == (0, EVENTS[0])
    assert scanned(filled, 0, 60, set())[1] == len(EVENTS)


def test_a_scan_ends_before_an_unknown_event_and_then_names_it(filled: Ledger, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO crew_main.events (position, originator_id, originator_version, topic, state)"
            " VALUES (%s, gen_random_uuid(), 1, 'node.flew.v9', ''), (%s, gen_random_uuid(), 1, 'node.flew.v9', '')",
            (len(EVENTS), len(EVENTS) + 1),
        )
    events, end = scanned(filled, 0, 1_000, set())
    assert (len(events), end) == (len(EVENTS), len(EVENTS))
    with pytest.raises(UnknownEventError, match=f"position {len(EVENTS)}.*node.flew.v9"):
        scanned(filled, len(EVENTS), 1_000, set())


def test_a_missing_position_is_never_skipped(filled: Ledger, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE crew_main.events DISABLE TRIGGER ALL")
        connection.execute(
            "INSERT INTO crew_main.events (position, originator_id, originator_version, topic, state)"
            " VALUES (%s, gen_random_uuid(), 1, 'node.flew.v9', '')",
            (len(EVENTS) + 1,),
        )
    for skip in (set(), set(KINDS)):
        with pytest.raises(LogGapError):
            scanned(filled, 0, 1_000, skip)
