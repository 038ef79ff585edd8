"""Kept folds: the same as folding everything, and never believed when anything about them is odd."""

import hashlib
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from crew_life import Life, live_fully
from eventsourcing.persistence import OperationalError

from ledger import application
from ledger.aggregates.base import Aggregate
from ledger.aggregates.book import Book
from ledger.aggregates.node import Node
from ledger.aggregates.stream import Stream
from ledger.application import KEPT, Ledger
from ledger.ids import BOOK_ID
from ledger.services import settle
from ledger.services.credit_index import CreditIndex
from ledger.store.folds import shape


@pytest.fixture(autouse=True)
def _kept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "KEPT_EVERY", 4)
    monkeypatch.setattr(settle, "INDEX_KEPT_EVERY", 1)


def fill(ledger: Ledger, deposits: int) -> None:
    stream_id = uuid4()
    for n in range(deposits):
        book = ledger.load_or_new(Book, BOOK_ID)
        book.deposit(stream_id, amount_micro=n + 1, reference=str(uuid4()), at_us=n)
        ledger.save(book)


def folded(ledger: Ledger) -> Book:
    """The book from all of its events."""
    events = [r.event for r in ledger.read(0, 10_000) if r.event.originator_id == BOOK_ID]
    book = Book.projector()(None, events)
    assert book is not None
    return book


def state(fold: object) -> dict[str, Any]:
    return {name: pickle.dumps(value) for name, value in sorted(vars(fold).items()) if name != "_pending"}


def reloaded(database_url: str) -> tuple[Book, int]:
    """The book as a new process loads it, and the version that it was recalled at."""
    fresh = Ledger(database_url)
    try:
        recalled = fresh._recall(Book, BOOK_ID)
        return fresh.load(Book, BOOK_ID), recalled.version if recalled is not None else 0
    finally:
        fresh.close()


def test_a_recalled_book_is_the_fold_of_its_events(ledger: Ledger, database_url: str) -> None:
    fill(ledger, 30)
    book, recalled_at = reloaded(database_url)
    assert recalled_at >= 25
    assert book.version == 30
    assert vars(book).keys() == vars(folded(ledger)).keys()
    assert book.accounts == folded(ledger).accounts
    fill(ledger, 3)
    assert reloaded(database_url)[0].accounts == folded(ledger).accounts


ODD = {
    "another program": "shape = sha256('x')",
    "a damaged state": "state = set_byte(state, 40, 7)",
    "another log": "anchor = sha256('x')",
    "a position that is not there": "position = position + 1000",
    "an earlier position": "position = position - 1",
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_a_fold_with_anything_odd_about_it_is_folded_again(
    ledger: Ledger, database_url: str, change: str
) -> None:
    fill(ledger, 12)
    with psycopg.connect(database_url) as connection:
        assert connection.execute(f"UPDATE crew_main.folds SET {change}").rowcount == 1
    book, recalled_at = reloaded(database_url)
    assert recalled_at == 0
    assert book.accounts == folded(ledger).accounts


@pytest.mark.parametrize("fault", ["not persisted", "persisted"])
def test_a_fold_that_was_not_kept_or_seems_not_to_be_changes_nothing(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    fill(ledger, 12)
    connections = ledger._folds._datastore.get_connection

    @contextmanager
    def failing() -> Iterator[Any]:
        if fault == "not persisted":
            raise OperationalError("injected before the statement")
        with connections() as connection:
            yield connection
        raise OperationalError("injected after the commit")

    def keep_failing(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ledger._folds._datastore, "get_connection", failing)
            kept(*args)

    kept = ledger._folds.keep
    monkeypatch.setattr(ledger._folds, "keep", keep_failing)
    fill(ledger, 12)
    book, recalled_at = reloaded(database_url)
    assert (recalled_at > 12) is (fault == "persisted")
    assert (book.version, book.accounts) == (24, folded(ledger).accounts)
    monkeypatch.setattr(ledger._folds, "keep", kept)
    fill(ledger, 5)
    book, recalled_at = reloaded(database_url)
    assert recalled_at > 24
    assert book.accounts == folded(ledger).accounts


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/evil"),))


@pytest.mark.parametrize("wrong", ["evil", "unbalanced", "balanced", "not a book"])
def test_whoever_can_write_the_table_can_neither_run_code_nor_make_money(
    ledger: Ledger, database_url: str, wrong: str
) -> None:
    fill(ledger, 12)
    book = folded(ledger)
    book.accounts["fees"] = 10**9
    gift = folded(ledger)
    gift.accounts |= {"external": gift.accounts["external"] - 9, f"friend:{UUID(int=1)}:available": 9}
    made = {"evil": Evil(), "unbalanced": book, "balanced": gift, "not a book": CreditIndex()}
    forged = pickle.dumps(made[wrong])
    digest, last = hashlib.sha256(forged).digest(), ledger.read(11, 1)[0].data
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE crew_main.folds SET state = %b, digest = %b, position = 12, anchor = %b, shape = %b",
            (forged, digest, hashlib.sha256(last).digest(), shape()),
        )
    again, recalled_at = reloaded(database_url)
    assert recalled_at == 0
    assert again.accounts == folded(ledger).accounts


def longest(ledger: Ledger, *founding: str) -> list[UUID]:
    """Of the aggregates that begin with such an event, each time the one with the most."""
    events = [r.event for r in ledger.read(0, 10_000)]
    most = Counter(e.originator_id for e in events).__getitem__
    return [max((e.originator_id for e in events if type(e).__name__ == f), key=most) for f in founding]


def recalled(database_url: str, cls: type[Aggregate], aggregate_id: UUID) -> Aggregate | None:
    fresh = Ledger(database_url)
    try:
        return fresh._recall(cls, aggregate_id)
    finally:
        fresh.close()


def test_whatever_is_kept_is_recalled_as_the_fold_of_its_events(
    ledger: Ledger, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "KEPT_EVERY", 1)
    live_fully(ledger, tmp_path, lambda at_us: None)
    events = [r.event for r in ledger.read(0, 10_000)]
    node_id, stream_id = longest(ledger, "NodeJoined", "StreamRegistered")
    kept: dict[type[Aggregate], UUID] = {Book: BOOK_ID, Node: node_id, Stream: stream_id}
    assert kept.keys() == KEPT.keys()
    for cls, aggregate_id in kept.items():
        loaded = ledger.load(cls, aggregate_id)
        found = recalled(database_url, cls, aggregate_id)
        assert found is not None
        version = found.version
        cls.projector()(found, [e for e in events if e.originator_id == aggregate_id][version:])
        assert state(found) == state(loaded)


def test_a_node_with_another_key_and_a_stream_with_another_name_are_not_believed(
    ledger: Ledger, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "KEPT_EVERY", 1)
    live_fully(ledger, tmp_path, lambda at_us: None)
    node_id, stream_id = longest(ledger, "NodeJoined", "StreamRegistered")
    node, stream = ledger.load(Node, node_id), ledger.load(Stream, stream_id)
    node.public_key, stream.slug = b"k" * 32, "mine"
    for forged in (node, stream):
        assert recalled(database_url, type(forged), forged.id) is not None
        data = pickle.dumps(forged)
        last = ledger.find([(forged.id, forged.version)])[0].data
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "UPDATE crew_main.folds SET state = %b, digest = %b, position = %s, anchor = %b WHERE name = %s",
                (
                    data,
                    hashlib.sha256(data).digest(),
                    forged.version,
                    hashlib.sha256(last).digest(),
                    f"{type(forged).__name__}:{forged.id}",
                ),
            )
        assert recalled(database_url, type(forged), forged.id) is None


def test_a_recalled_credit_index_goes_on_like_one_that_read_everything(
    ledger: Ledger, tmp_path: Path
) -> None:
    kept: list[CreditIndex] = []

    def between(at_us: int) -> None:
        index = settle.recall_index(ledger)
        settle.catch_up(ledger, index)
        settle.keep_index(ledger, index)
        kept.append(index)

    live_fully(ledger, tmp_path, between)
    recalled, everything = settle.recall_index(ledger), CreditIndex()
    assert recalled.position > 0
    for index in (recalled, everything):
        settle.catch_up(ledger, index)
    at_us = Life(ledger).now_us + 10**12
    assert recalled.due(at_us) == everything.due(at_us)
    assert vars(recalled).keys() == vars(everything).keys()
    for epoch in range(everything.next_epoch + 3):
        assert recalled.credits(epoch, recalled.position) == everything.credits(epoch, everything.position)
