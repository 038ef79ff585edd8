"""Disputes and adjustments: corrections that leave what was recorded as it is.

Invariant: a dispute freezes one line that stands in the log, and its own amount; whoever is not the operator opens it
on a line of their own only. An adjustment is booked once per reference.
"""

from uuid import UUID

from ledger.aggregates.book import Book
from ledger.aggregates.disputes import Dispute
from ledger.application import Ledger, NotFound
from ledger.events import EpochSettled, SettlementLine
from ledger.ids import BOOK_ID
from ledger.services.retry import until_saved


def open_dispute(
    ledger: Ledger,
    position: int,
    line: int,
    *,
    reason: str,
    at_us: int,
    friend_id: UUID | None = None,
    stream_id: UUID | None = None,
    opened_by: str = "operator",
    dry_run: bool = False,
) -> Dispute:
    """Freeze the settlement line at `position`: of that friend or stream, where one is given.

    `opened_by` is operator, friend or creator; who may is the caller's to check. Raises NotFound, and
    DomainError when the line was disputed before or is released already.
    """
    event, recorded = _line(ledger, position, line)
    if friend_id not in (None, recorded.friend_id) or stream_id not in (None, recorded.stream_id):
        raise NotFound(f"there is no such line at {position}:{line}")

    def attempt() -> Dispute:
        book = ledger.load(Book, BOOK_ID)
        number = book.open_dispute(
            recorded,
            epoch=event.epoch,
            position=position,
            settled_version=event.originator_version,
            number=line,
            opened_by=opened_by,
            reason=reason,
            at_us=at_us,
        )
        if not dry_run:
            ledger.save(book)
        return book.disputes[number]

    return until_saved(attempt)


def decide_dispute(
    ledger: Ledger, number: int, *, uphold: bool, reason: str, at_us: int, dry_run: bool = False
) -> Dispute:
    """Upheld: the amount goes back to the budget. Rejected: it is released. Raises DomainError when it is not open."""

    def attempt() -> Dispute:
        book = ledger.load_or_new(Book, BOOK_ID)
        decide = book.uphold_dispute if uphold else book.reject_dispute
        decide(number, reason=reason, at_us=at_us)
        if not dry_run:
            ledger.save(book)
        return book.disputes[number]

    return until_saved(attempt)


def disputes(ledger: Ledger) -> list[Dispute]:
    """All, oldest first."""
    return list(ledger.load_or_new(Book, BOOK_ID).disputes.values())


def adjust(
    ledger: Ledger,
    *,
    source: str,
    target: str,
    amount_micro: int,
    reference: str,
    reason: str,
    rests_on: tuple[int, ...] = (),
    at_us: int,
    dry_run: bool = False,
) -> bool:
    """Move `amount_micro` between a budget, the fees and what is available to a friend. False: booked before.

    `rests_on` are the log positions that it corrects. Raises DomainError, NotFound when one of them is not in the log.
    """
    if any(not 0 <= position < ledger.size() for position in rests_on):
        raise NotFound("an adjustment rests on positions of the log")

    def attempt() -> bool:
        book = ledger.load_or_new(Book, BOOK_ID)
        booked = book.adjust(
            source=source,
            target=target,
            amount_micro=amount_micro,
            reference=reference,
            reason=reason,
            rests_on=rests_on,
            at_us=at_us,
        )
        if booked and not dry_run:
            ledger.save(book)
        return booked

    return until_saved(attempt)


def _line(ledger: Ledger, position: int, line: int) -> tuple[EpochSettled, SettlementLine]:
    recorded = ledger.read(position, 1) if position >= 0 else []
    event = recorded[0].event if recorded else None
    if not isinstance(event, EpochSettled) or not 0 <= line < len(event.lines):
        raise NotFound(f"there is no settlement line at {position}:{line}")
    return event, event.lines[line]
