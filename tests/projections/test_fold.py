"""The changes of a batch: the same rows however they are cut, each column as its `Merge` says."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Boolean, Column, Engine, MetaData, Table, Text, Uuid, select
from sqlalchemy.types import TypeEngine

from ledger.events import SegmentsServed
from ledger.judged import Judged, pack
from ledger.receipt import SIGNED_BYTES
from ledger.verdict import VERDICTS, Cap, Verdict
from projections.arrays import array
from projections.fold import ProjectionError, Rows, Tally
from projections.health import BAD, GOOD, SPOILING, batch_mark
from projections.judgements import Judgements
from projections.runner import TRANSIENT
from projections.schema import HISTORY_LENGTH, Merge

SCHEMA = "crew_main"
NOBODY = UUID(int=0)

some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
marks = st.text("abc", max_size=HISTORY_LENGTH + 3)
Change = tuple[int, str, int, str]  # ADD, SET, LATEST, HISTORY
changes = st.lists(
    st.tuples(st.integers(-9, 9), st.sampled_from("xyz"), st.integers(0, 99), marks), max_size=12
)


@pytest.fixture(scope="module")
def table(engine: Engine) -> Table:
    """One column of each kind."""
    table = Table(
        "test_fold",
        MetaData(schema=SCHEMA),
        Column("name", Text, primary_key=True, info={"merge": Merge.KEY}),
        Column("total", BigInteger, nullable=False, info={"merge": Merge.ADD}),
        Column("state", Text, nullable=False, info={"merge": Merge.SET}),
        Column("newest", BigInteger, nullable=False, info={"merge": Merge.LATEST}),
        Column("history", Text, nullable=False, info={"merge": Merge.HISTORY}),
    )
    table.create(engine)
    return table


@pytest.fixture(scope="module")
def made(engine: Engine) -> Table:
    """Columns of each type, some of them with NULLs."""
    fixed = {"merge": Merge.FIXED}
    table = Table(
        "test_made",
        MetaData(schema=SCHEMA),
        Column("number", BigInteger, primary_key=True, autoincrement=False, info={"merge": Merge.KEY}),
        Column("owner", Uuid, nullable=False, info=fixed),
        Column("kind", Text, nullable=False, info=fixed),
        Column("size", BigInteger, nullable=True, info=fixed),
        Column("other", Uuid, nullable=True, info=fixed),
        Column("seen", Boolean, nullable=False, info=fixed),
    )
    table.create(engine)
    return table


@pytest.mark.parametrize("kind", [Rows, Tally])
@some
@given(changes=changes, cuts=st.sets(st.integers(1, 12)))
def test_a_row_is_what_its_columns_say_however_the_changes_are_cut(
    engine: Engine, table: Table, kind: Callable[[Table], Rows | Tally], changes: list[Change], cuts: set[int]
) -> None:
    """Values come in any order here, also newest first: the latest is the greatest, not the last."""
    changes = [(0, "x", 50, ""), *changes]
    fold = kind(table)
    with engine.connect() as connection:
        edges = sorted({0, len(changes), *(c for c in cuts if c < len(changes))})
        for start, end in pairwise(edges):
            for number, (add, state, newest, history) in enumerate(changes[start:end], start):
                values = {"total": add, "state": state, "newest": newest, "history": history}
                if number == 0 and isinstance(fold, Rows):
                    fold.make("one", **values)
                else:
                    fold.change("one", **values)
            fold.flush(connection)
        (row,) = connection.execute(select(table)).all()
        connection.rollback()
    adds, states, newests, histories = zip(*changes, strict=True)
    assert row == ("one", sum(adds), states[-1], max(newests), "".join(histories)[-HISTORY_LENGTH:])


def test_a_change_to_a_row_that_no_event_made_is_refused(engine: Engine, table: Table) -> None:
    fold = Rows(table)
    fold.change("nobody", total=1)
    with engine.connect() as connection, pytest.raises(ProjectionError, match="no event made"):
        fold.flush(connection)


VALUES = {
    BigInteger: st.integers(-(2**63), 2**63 - 1),
    Boolean: st.booleans(),
    Text: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    Uuid: st.uuids(),
}


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
@some
@given(data=st.data())
def test_postgres_reads_an_array_as_the_values_it_was_made_of(
    engine: Engine, kind: type[TypeEngine[Any]], data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.none() | VALUES[kind], max_size=6))
    values *= data.draw(st.sampled_from([1, 20]))  # from 16 on in columns
    one_of_each = st.lists(VALUES[kind], min_size=16, max_size=20)
    values = values or data.draw(one_of_each)
    column = Column("c", kind)
    sent = [v.bytes if isinstance(v, UUID) else v for v in values]
    cast = {BigInteger: "bigint", Boolean: "boolean", Text: "text", Uuid: "uuid"}[kind]
    with engine.connect() as connection:
        read = connection.exec_driver_sql(f"SELECT unnest(%s::{cast}[])", (array(column, sent),))
        assert list(read.scalars()) == values


@some
@given(data=st.data())
def test_a_copy_makes_the_rows_that_an_insert_makes(
    engine: Engine, made: Table, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = st.sampled_from(data.draw(st.lists(VALUES[Text], min_size=1, max_size=3)))
    rows = data.draw(
        st.dictionaries(
            VALUES[BigInteger],
            st.tuples(
                VALUES[Uuid], few, st.none() | VALUES[BigInteger], st.none() | VALUES[Uuid], st.booleans()
            ),
            min_size=1,
            max_size=40,  # from 16 on in columns
        )
    )
    fold = Rows(made)
    with engine.connect() as connection:
        for copy_from in (1, 100):
            monkeypatch.setattr("projections.fold.COPY_FROM", copy_from)
            for number, (owner, kind, size, other, seen) in rows.items():
                rest = {"size": size, "other": other and other.bytes, "seen": seen}
                fold.make(number, owner=owner.bytes, kind=kind, **rest)
            fold.flush(connection)
            assert {r[0]: tuple(r[1:]) for r in connection.execute(select(made))} == rows
            connection.rollback()


@pytest.mark.parametrize("copy_from", [1, 100])
def test_a_row_is_made_once(
    engine: Engine, table: Table, copy_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a batch, and in a later one, by whichever way it goes to the table."""
    monkeypatch.setattr("projections.fold.COPY_FROM", copy_from)
    fold = Rows(table)
    values = {"total": 1, "state": "x", "newest": 1, "history": ""}
    with engine.connect() as connection:
        fold.make("one", **values)
        with pytest.raises(ProjectionError, match="there before"):
            fold.make("one", **values)
        fold.flush(connection)
        fold.change("two", total=1)
        with pytest.raises(ProjectionError, match="there before"):
            fold.make("two", **values)
        fold.discard()
        fold.make("one", **values)
        with pytest.raises(ProjectionError, match="made twice"):
            fold.flush(connection)


@pytest.mark.parametrize("copy_from", [1, 100])
def test_a_connection_that_breaks_while_rows_are_made_is_transient(
    engine: Engine, postgres_url: str, table: Table, copy_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.fold.COPY_FROM", copy_from)
    fold = Rows(table)
    fold.make("one", total=1, state="x", newest=1, history="")
    with psycopg.connect(postgres_url, autocommit=True) as operator, pytest.raises(TRANSIENT):
        flush_and_lose(engine, fold, operator)
    with engine.connect() as connection:
        assert connection.execute(select(table)).all() == []


def flush_and_lose(engine: Engine, fold: Rows, operator: psycopg.Connection[Any]) -> None:
    with engine.begin() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        operator.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        fold.flush(connection)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_number_that_no_column_holds_is_refused(engine: Engine, table: Table, rows: int) -> None:
    fold = Tally(table)
    for number in range(2 * rows):
        fold.change(f"row {number % rows}", total=2**62 + number, state="x", newest=1)
    with engine.connect() as connection, pytest.raises(ProjectionError, match="no room for a number"):
        fold.flush(connection)


judgements = st.lists(
    st.builds(
        Judged,
        st.sampled_from([v.value for v in Verdict]),
        st.integers(0, 2**16 - 1),
        st.integers(0, 2**40),
        st.sampled_from([c.value for c in Cap]),
    ),
    max_size=8,
)


def served(judged: list[Judged]) -> SegmentsServed:
    count = len(judged)
    return SegmentsServed(
        originator_id=NOBODY,
        originator_version=1,
        at_us=0,
        node_id=NOBODY,
        batch_header=b"",
        first_sequence=0,
        network_limit=0,
        receipts=bytes(count * SIGNED_BYTES),
        **pack(range(count), [NOBODY] * count, [b""] * count, judged),
    )


@settings(deadline=None)
@given(batches=st.lists(st.tuples(st.sampled_from("abc"), judgements), max_size=8))
def test_judgements_in_columns_are_those_receipt_by_receipt(batches: list[tuple[str, list[Judged]]]) -> None:
    fold: Judgements[str] = Judgements()
    expected: dict[tuple[str, str, str], list[int]] = {}
    for position, (group, judged) in enumerate(batches):
        fold.add(group, served(judged), position)
        for j in judged:
            row = expected.setdefault((group, j.verdict, j.cap), [0, 0, 0, 0])
            row[:] = [row[0] + 1, row[1] + j.units, row[2] + j.credited_bytes, position]
    assert {t[:3]: list(t[3:]) for t in fold.totals()} == expected
    fold.clear()
    assert list(fold.totals()) == []


def test_judgements_that_cannot_be_added_up_are_refused() -> None:
    fold: Judgements[str] = Judgements()
    for _ in range(2):
        fold.add("a", served([Judged(Verdict.ACCEPTED.value, 1, 2**63)]), 0)
    with pytest.raises(ProjectionError, match="more than can be added up"):
        list(fold.totals())


@given(st.lists(st.sampled_from(list(Verdict))))
def test_a_batch_is_spoiled_by_one_spoiling_verdict(verdicts: list[Verdict]) -> None:
    mark = batch_mark(bytes(VERDICTS.index(v) for v in verdicts))
    assert mark == (BAD if any(v in SPOILING for v in verdicts) else GOOD)
