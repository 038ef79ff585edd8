"""Settle the epochs that are over; release the earnings whose hold is over.

Invariant: each epoch is settled once and each hold released once, whoever runs this, however often and wherever it
dies: all pages of a settlement are one save against the Book's version, and what the Book says is done is done.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

import structlog

from ledger.aggregates.book import Book
from ledger.application import Conflict, Ledger
from ledger.ids import BOOK_ID
from ledger.services.credit_index import CreditIndex
from ledger.services.retry import until_saved
from ledger.settlement import Page, pages, settle

PAGE_EVENTS: Final = 1_000  # of 64 KiB at most
GRACE_US: Final = 2_000_000
INDEX_NAME: Final = "credits"
INDEX_KEPT_EVERY: Final = 20_000  # events
SAID_EVERY_S: Final = 10.0

log = structlog.get_logger()


def catch_up(ledger: Ledger, index: CreditIndex, *, alive: Callable[[], None] = lambda: None) -> None:
    """Fold everything that is in the log and not yet in the index. `alive` is called after each page."""
    while rows := ledger.read_rows(index.position, PAGE_EVENTS):
        index.take(rows)
        alive()


def recall_index(ledger: Ledger) -> CreditIndex:
    """The index as it was kept last, or an empty one: `catch_up` does the rest. Raises Unavailable."""
    return ledger.recall(INDEX_NAME, CreditIndex) or CreditIndex()


def kept_on_the_way(
    ledger: Ledger, index: CreditIndex, alive: Callable[[], None], now_s: Callable[[], float] = monotonic
) -> Callable[[], None]:
    """An `alive` for `catch_up` where it may take minutes: a new version of the program folds the whole log once.

    Now and then it says how far it is, and keeps that: who is stopped goes on from there. Raises Unavailable.
    """
    last_s = now_s()

    def step() -> None:
        nonlocal last_s
        alive()
        if now_s() - last_s >= SAID_EVERY_S:
            log.info("settlement reads the log", events=index.position, of=ledger.size())
            keep_index(ledger, index)
            last_s = now_s()

    return step


def keep_index(ledger: Ledger, index: CreditIndex) -> None:
    """Keep the index now and then, so that the next start need not fold the whole log. Raises Unavailable."""
    ledger.keep(INDEX_NAME, index.position, index, every=INDEX_KEPT_EVERY)


def draft(index: CreditIndex, book: Book, *, epoch: int, log_to: int) -> list[Page]:
    """The pages that settle `epoch`: what the hub records, and what an auditor expects to find recorded.

    `index` has folded the log at least to `log_to`, `book` is the book just before this settlement.
    """
    credits = index.credits(epoch, log_to)
    streams = {credit.stream_id for credit in credits}
    tariffs = {s: tariff for s in streams if (tariff := book.tariff(s, epoch)) is not None}
    budgets = {s: book.budget(s) for s in streams}
    late = {(c.stream_id, c.published) for c in credits if c.late}
    late_tariffs = {of: tariff for of in late if (tariff := book.tariff(*of)) is not None}
    rules = index.settings(log_to)
    return pages(
        settle(
            credits,
            tariffs,
            budgets,
            late_tariffs=late_tariffs if rules.late_by_own_tariff else None,
            floor_most_bp=rules.floor_most_bp,
            to_the_byte=bool(rules.rate_to_the_byte),
        )
    )


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection for the length of a settlement: its many lines hold no cycle, and looking
    through them again and again would take as long as making them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def settle_due_epochs(
    ledger: Ledger,
    *,
    at_us: int,
    index: CreditIndex | None = None,
    alive: Callable[[], None] = lambda: None,
    grace_us: int = 0,
) -> list[int]:
    """Settle all epochs that ended `grace_us` before `at_us` or earlier; returns those settled now, ascending.

    A busy hub gives a grace (GRACE_US): what was judged in an epoch's last moments may still be on its way into the
    log, and would be settled with the next epoch, by that epoch's tariff and perhaps as late.

    Keep one `index` between calls: then only new events are read. Without it the whole log is. `alive` is called after
    each page of the log and each epoch: what does not come back to it hangs.
    Raises Unavailable (try again) and BrokenLogError (the log credits what it does not contain).
    """
    known = index if index is not None else CreditIndex()
    settled: list[int] = []
    while (epoch := until_saved(lambda: _settle_next(ledger, known, at_us, grace_us, alive))) is not None:
        settled.append(epoch)
        alive()
    return settled


def _settle_next(
    ledger: Ledger, index: CreditIndex, at_us: int, grace_us: int, alive: Callable[[], None]
) -> int | None:
    book = ledger.load_or_new(Book, BOOK_ID)
    catch_up(ledger, index, alive=alive)
    due = index.due(at_us)
    if due is None or index.epoch_of(at_us - grace_us) <= due[0]:
        return None
    if (index.next_epoch, index.settled_to) != (book.next_epoch, book.settled_to):
        raise Conflict("another settlement came between loading the book and reading the log")
    epoch, log_to = due
    with collector_paused():
        drafted = draft(index, book, epoch=epoch, log_to=log_to)
        alive()
        book.settle_epoch(epoch, log_to=log_to, pages=drafted, at_us=at_us)
        alive()
        ledger.save(book)
    lines = [line for page in drafted for line in page.lines]
    log.info("epoch settled", epoch=epoch, lines=len(lines), paid_micro=sum(x.amount_micro for x in lines))
    return epoch


def release_due_holds(ledger: Ledger, *, hold_s: int, at_us: int) -> list[int]:
    """Make available what was settled at least `hold_s` seconds ago; returns the epochs released now."""

    def attempt() -> list[int]:
        book = ledger.load_or_new(Book, BOOK_ID)
        due = [
            epoch
            for epoch, hold in sorted(book.holds.items())
            if hold.amounts and hold.settled_us + hold_s * 1_000_000 <= at_us  # all of it may be in dispute
        ]
        for epoch in due:
            book.release_hold(epoch, at_us=at_us)
        if due:
            ledger.save(book)
        return due

    return until_saved(attempt)
