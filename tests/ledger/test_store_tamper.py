"""One bit of the events table that is another, in any column of any row: the check of the log names the position.

Bits of tiles, of the checkpoint and of proofs: test_audit.py, test_note.py and test_tlog_proof.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from crew_life import LOG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from ledger.aggregates.book import Book
from ledger.application import Ledger, LogGapError
from ledger.event_codec import UnknownEventError
from ledger.ids import BOOK_ID, stream_id
from ledger.store.mapper import CorruptRowError
from ledger.tlog.publisher import Publisher, PublishRefused

EVENTS = 300  # a full tile, and a partial one
UNLOCK: list[LiteralString] = [
    "ALTER TABLE crew_main.events DISABLE TRIGGER ALL",
    "ALTER TABLE crew_main.events DROP CONSTRAINT events_pkey",
    "ALTER TABLE crew_main.events DROP CONSTRAINT events_originator_id_originator_version_key",
    "ALTER TABLE crew_main.events DROP CONSTRAINT events_position_check",
]
COLUMNS: dict[str, LiteralString] = {
    "position": "UPDATE crew_main.events SET position = %s WHERE ctid = %s::tid",
    "originator_id": "UPDATE crew_main.events SET originator_id = encode(%b, 'hex')::uuid WHERE ctid = %s::tid",
    "originator_version": "UPDATE crew_main.events SET originator_version = %s WHERE ctid = %s::tid",
    "topic": "UPDATE crew_main.events SET topic = %s WHERE ctid = %s::tid",
    "state": "UPDATE crew_main.events SET state = %b WHERE ctid = %s::tid",
}


def flipped(value: Any, draw: Any) -> Any:
    match value:
        case bytes():
            at, bit = draw(st.integers(0, len(value) - 1)), draw(st.integers(0, 7))
            return value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :]
        case str():  # what stays text: Postgres itself refuses the rest
            at, bit = draw(st.integers(0, len(value) - 1)), draw(st.integers(0, 4))
            return value[:at] + chr(ord(value[at]) ^ 1 << bit) + value[at + 1 :]
        case _:
            return int(value) ^ 1 << draw(st.integers(0, 62))


def check(ledger: Ledger, folder: Path) -> None:
    """As `streamrp2p log check` does."""
    rows = 0
    while page := ledger.check_rows(rows, 100):
        rows += page
    Publisher(ledger, folder, LOG, "hub.example/log").check()


@pytest.fixture
def unlocked(ledger: Ledger, database_url: str, tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    """The database of a published log as a superuser can have it, without its guards."""
    book = Book(BOOK_ID)
    for n in range(EVENTS):
        book.deposit(stream_id(f"s{n % 7}"), amount_micro=n + 1, reference=f"d{n}", at_us=n)
    ledger.save(book)
    Publisher(ledger, tmp_path, LOG, "hub.example/log").publish(at_us=EVENTS)
    check(ledger, tmp_path)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in UNLOCK:
            connection.execute(statement)
        yield connection


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), position=st.integers(0, EVENTS), column=st.sampled_from(list(COLUMNS)))
def test_a_flipped_bit_anywhere_in_the_table_is_found_by_position(
    unlocked: psycopg.Connection[Any],
    ledger: Ledger,
    tmp_path: Path,
    data: st.DataObject,
    position: int,
    column: str,
) -> None:
    query: LiteralString = "SELECT *, ctid::text FROM crew_main.events WHERE position = %s"
    row = unlocked.cursor(binary=True, row_factory=dict_row).execute(query, (position,)).fetchone()
    assert row is not None
    old = row[column].bytes if column == "originator_id" else row[column]
    new = flipped(old, data.draw)
    moved = unlocked.execute(COLUMNS[column] + " RETURNING ctid::text", (new, row["ctid"])).fetchone()
    assert moved is not None
    try:
        with pytest.raises((CorruptRowError, LogGapError, UnknownEventError, PublishRefused)) as caught:
            check(ledger, tmp_path)
    finally:
        unlocked.execute(COLUMNS[column], (old, moved[0]))
    named = re.search(r"position (\d+)", str(caught.value))
    assert named is not None, caught.value
    if column == "position":  # two rows with one position: the gap that is found first comes after the other
        assert int(named[1]) in (position, new + 1)
    else:
        assert int(named[1]) == position
