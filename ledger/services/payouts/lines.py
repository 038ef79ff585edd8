"""Payout lines: found, held against the book, and what came of them as it is told to whoever asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import IN_FLIGHT, Line, NoPayoutError, Payout, payout_id
from ledger.application import Conflict, Ledger, NotFound
from ledger.ids import BOOK_ID
from ledger.rails import Rail
from ledger.services.destinations import Destination

OVERPAID: Final = (
    "overpaid"  # the rail paid what it had called failed, and the money has been paid out again since
)

RETURNED: Final = "returned"  # it was paid, and the money is back and available


@dataclass(frozen=True, slots=True)
class LineResult:
    line: int
    friend_id: UUID
    amount_micro: int
    state: str  # a LineState, OVERPAID or RETURNED
    reference: str
    action: str  # what was done, or would be in a dry run: "none" | "submit" | "look_up" | "fail" | "retry" |
    # "limit": the day's limit is reached, run it again tomorrow
    was: str  # a LineState, before


def load(ledger: Ledger, batch_id: UUID) -> Payout:
    """Raises NotFound, also for the id of something else."""
    try:
        return ledger.load(Payout, batch_id)
    except NoPayoutError:
        raise NotFound(f"no payout {batch_id}") from None


def batches(ledger: Ledger) -> list[Payout]:
    """All payouts, oldest first: batch number n is element n - 1."""
    found: list[Payout] = []
    while True:
        try:
            found.append(ledger.load(Payout, payout_id(len(found) + 1)))
        except NotFound:
            return found


def load_for(ledger: Ledger, rail: Rail, batch_id: UUID) -> Payout:
    """Raises NotFound, and DomainError for a payout of another rail."""
    payout = load(ledger, batch_id)
    if payout.rail != rail.name:
        raise DomainError(f"the payout is planned for {payout.rail}, not for {rail.name}")
    return payout


def load_both(ledger: Ledger, batch_id: UUID, number: int) -> tuple[Payout, Book]:
    """Payout and book as of one moment, as far as the line goes.

    Raises Conflict when another run saved both between the two loads: decide again.
    """
    payout, book = load(ledger, batch_id), ledger.load_or_new(Book, BOOK_ID)
    if (payout.lines[number].state in IN_FLIGHT) != ((batch_id, number) in book.reservations):
        raise Conflict("another run is at work on this payout line")
    return payout, book


def committed(line: Line, destinations: Mapping[UUID, Destination]) -> Destination | None:
    """Where the plan said that the line goes; None when it was changed or erased since."""
    destination = destinations.get(line.planned.friend_id)
    if destination is None or destination.commitment != line.planned.destination_commitment:
        return None
    return destination


def result(
    number: int, line: Line, action: str, state: str | None = None, *, was: Line | None = None
) -> LineResult:
    return LineResult(
        number,
        line.planned.friend_id,
        line.planned.amount_micro,
        state if state is not None else line.state.value,
        line.reference,
        action,
        (was or line).state.value,
    )
