"""The log in parts and the excerpts made of them: what the read models see is what the ledger reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from histories import MOVES, OPENING, History, Log, Move
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import forget, rows_of
from sqlalchemy import Engine
from test_scan import EVENTS, KINDS, filled  # noqa: F401

from ledger import events as e
from ledger.application import Ledger, LogGapError
from ledger.event_codec import EVENT_TYPES, UnknownEventError, decode_stored, encode, tag_of
from ledger.events import Event
from ledger.judged import Judged, pack
from ledger.receipt import SIGNED_BYTES
from ledger.store import parts as store_parts
from ledger.verdict import Verdict
from projections import excerpts
from projections.catalog import PROJECTIONS
from projections.excerpts import EXCERPTS, NoExcerptError, Reader
from projections.runner import Runner

some = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOLDEN = Path(__file__).parents[1] / "golden" / "events"


@pytest.fixture(autouse=True)
def few_events_a_part(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(store_parts, "PART_EVENTS", 7)
    store_parts._statements.cache_clear()
    yield
    store_parts._statements.cache_clear()


def taken(ledger: Ledger, start: int, limit: int, skip: set[type[Event]]) -> tuple[list[int], bytes, int]:
    with ledger.parts(start, limit, skip) as parts:
        found = list(parts)
        return [n for part in found for n in part.positions], b"".join(p.states for p in found), parts.end


# --- parts ------------------------------------------------------------------------------------------------------------


@some
@given(start=st.integers(0, len(EVENTS)), limit=st.integers(1, 60), skip=st.sets(st.sampled_from(KINDS)))
def test_parts_are_the_log_without_what_is_skipped(
    filled: Ledger,  # noqa: F811
    start: int,
    limit: int,
    skip: set[type[Event]],
) -> None:
    read = filled.read(start, limit)
    wanted = [r for r in read if type(r.event) not in skip]
    assert taken(filled, start, limit, skip) == (
        [r.position for r in wanted],
        b"".join(r.data for r in wanted),
        start + len(read),
    )


def test_parts_that_are_left_early_do_no_harm(filled: Ledger) -> None:  # noqa: F811
    for _ in range(20):  # more often than there are connections
        with filled.parts(0, 60, ()) as parts:
            assert next(iter(parts)).positions[0] == 0
    assert taken(filled, 0, 60, set())[2] == len(EVENTS)


@pytest.mark.parametrize("missing", [len(EVENTS), 3 * 7, 2])
def test_a_missing_position_is_never_skipped(filled: Ledger, database_url: str, missing: int) -> None:  # noqa: F811
    """At the end of a part, between two, within the first."""
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE crew_main.events DISABLE TRIGGER ALL")
        connection.execute(
            "UPDATE crew_main.events SET position = position + 1000 WHERE position >= %s", (missing,)
        )
        connection.execute(
            "INSERT INTO crew_main.events (position, originator_id, originator_version, topic, state)"
            " VALUES (%s, gen_random_uuid(), 1, 'node.flew.v9', '')",
            (len(EVENTS) + 1_001,),
        )
    for skip in (set(), set(KINDS)):
        with pytest.raises(LogGapError):
            taken(filled, 0, 10_000, skip)


def served(receipts: int, sessions: int, networks: Sequence[bytes] = (bytes(16),)) -> e.SegmentsServed:
    judged = [Judged(Verdict.ACCEPTED.value, n % 7, n << 20) for n in range(receipts)]
    return e.SegmentsServed(
        originator_id=uuid4(),
        originator_version=1,
        at_us=1,
        node_id=uuid4(),
        batch_header=bytes(147),
        first_sequence=0,
        network_limit=2,
        receipts=bytes(range(SIGNED_BYTES)) * receipts,
        **pack(
            range(receipts),
            [UUID(int=n % sessions) for n in range(receipts)],
            [networks[n % len(networks)] for n in range(receipts)],
            judged,
        ),
    )


@pytest.mark.parametrize("receipts", [0, 1, 2, 8, 9, 20, 70, 100, 255])
@pytest.mark.parametrize("sessions", [1, 60, 255])
@pytest.mark.parametrize("before", [0, 20])
def test_receipts_that_are_left_out_leave_an_event_that_reads_the_same(
    ledger: Ledger, database_url: str, receipts: int, sessions: int, before: int
) -> None:
    """In the first part and in later ones; the names of many sessions stand before the receipts."""
    event = served(receipts, sessions, [n.to_bytes(16) for n in range(sessions)])
    append(database_url, [*(served(1, 1) for _ in range(before)), event])
    positions, states, _ = taken(ledger, 0, 1_000, set())
    read = Reader([e.SegmentsServed]).read(len(positions), states)[-1]
    expected = excerpts.of(event)
    assert fields(read) | {"receipts": None} == fields(expected) | {"receipts": None}
    assert isinstance(read.receipts, int) == (len(encode(event)) > 1_900)


def test_receipts_where_they_cannot_be_are_noticed(ledger: Ledger, database_url: str, engine: Engine) -> None:
    """The name of the field stands in the field before: what is cut there is no event, and is read as a whole."""
    append(database_url, [served(20, 1, [b"\xa8receipts\xc5\1\0" + bytes(4)])])
    positions, states, _ = taken(ledger, 0, 1_000, set())
    with pytest.raises(NoExcerptError):
        Reader([e.SegmentsServed]).read(len(positions), states)


def append(database_url: str, events: list[Event]) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "SELECT crew_main.append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])",
            (
                [event.originator_id for event in events],
                [event.originator_version for event in events],
                [tag_of(event) for event in events],
                [encode(event) for event in events],
            ),
        )


# --- excerpts ---------------------------------------------------------------------------------------------------------


def fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def plain(value: Any) -> Any:
    """Ids as bytes, structs as their values, so that an event and its excerpt can be compared."""
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, msgspec.Struct):
        return tuple(plain(getattr(value, name)) for name in value.__struct_fields__)
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def begins_as(excerpt: Any, event: Any) -> bool:
    """Parts of events are arrays: an excerpt has their first values."""
    if not isinstance(excerpt, tuple):
        return bool(excerpt == event)
    return len(excerpt) <= len(event) and all(map(begins_as, excerpt, event))


READ = [path for path in sorted(GOLDEN.glob("*.bin")) if EVENT_TYPES[path.stem] in EXCERPTS]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_an_excerpt_says_what_the_event_says(path: Path) -> None:
    event = decode_stored(path.read_bytes())
    for name, value in fields(excerpts.of(event)).items():
        own = plain(getattr(event, name))
        assert begins_as(plain(value), own)
        assert not isinstance(value, tuple) or len(value) == len(own)


# --- what has no excerpt ----------------------------------------------------------------------------------------------


class OneByOne(Log):
    """A log of which no part can be read, as if each held an old version of an event."""

    @contextmanager
    def parts(self, *_: Any) -> Iterator[Any]:
        yield [([0], b"\xc1")]


moves = st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 200)), max_size=40)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves)
def test_events_one_by_one_give_the_rows_of_events_in_parts(engine: Engine, moves: list[Move]) -> None:
    events = History().play([*OPENING, *moves])
    rows = []
    for log in (Log(events), OneByOne(events)):
        for projection in PROJECTIONS:
            forget(engine, projection)
        Runner(log, engine, batch_events=11).catch_up()
        rows.append(rows_of(engine, PROJECTIONS))
    assert rows[0] == rows[1]


def test_an_old_version_of_an_event_counts_as_what_replaced_it(
    ledger: Ledger, database_url: str, own_engine: Engine
) -> None:
    events = History().play(OPENING)
    (new,) = [event for event in events if isinstance(event, e.SegmentsServed)][:1]
    old = e.SegmentsServedV1(
        originator_id=new.originator_id,
        originator_version=new.originator_version,
        at_us=new.at_us,
        node_id=new.node_id,
        batch_header=new.batch_header,
        indices=tuple(new.indices),
        receipts=new.receipts,
        sessions=new.session_ids,
        networks=new.viewer_networks,
        judged=new.judged,
        first_sequence=new.first_sequence,
        network_limit=new.network_limit,
    )
    Runner(Log(events), own_engine).catch_up()
    expected = rows_of(own_engine, PROJECTIONS)
    for projection in PROJECTIONS:
        forget(own_engine, projection)
    append(database_url, [old if event is new else event for event in events])
    Runner(ledger, own_engine).catch_up()
    assert rows_of(own_engine, PROJECTIONS) == expected


def test_receipts_that_do_not_fit_stop_the_runner_before_them(
    ledger: Ledger, database_url: str, own_engine: Engine
) -> None:
    """What no hub ever wrote is no event, though its bytes have all the fields."""
    good = served(1, 1)
    bad = encode(good).replace(b"\xa5units\xc4\x02", b"\xa5units\xc4\x03\x00")
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "SELECT crew_main.append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])",
            ([uuid4()], [1], [tag_of(good)], [bad]),
        )
    with pytest.raises(UnknownEventError, match=r"position 0.*do not fit"):
        Runner(ledger, own_engine).catch_up()
