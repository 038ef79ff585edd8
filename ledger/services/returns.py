"""Returns: money that had been paid and came back, such as from an account that was closed.

Invariant: the same reference is booked once, and never more than was paid for the line. What the bank kept of it stays
paid: it did leave. What is booked is also kept in a file, and what that file knows and the ledger does not (the
database is from an older backup) is booked again before anything is planned.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.rails.returned import Return, Returns
from ledger.services.retry import until_saved


class LostReturns(Exception):
    """The files know of returns that the ledger knows nothing of."""

    exit_code = 5

    def __init__(self, lost: Sequence[Return]) -> None:
        said = "; ".join(f"of line {r.line} of payout {r.batch_id} ({r.reference})" for r in lost)
        super().__init__(
            f"the payment files know that money came back {said}, and the ledger does not: the database is older than "
            f"that. Restore a newer one, or book it from the files: streamrp2p payout reconcile"
        )


@dataclass(frozen=True, slots=True)
class Returned:
    line: int
    friend_id: UUID
    amount_micro: int  # that came back
    left_micro: int  # paid, and not come back
    reference: str
    reason: str
    booked: bool  # now; False: it was in the book before


def return_line(
    ledger: Ledger,
    batch_id: UUID,
    line: int,
    *,
    amount_micro: int | None,
    reference: str,
    reason: str,
    at_us: int,
    memory: Returns | None = None,
    dry_run: bool = False,
) -> Returned:
    """Paid becomes available for what came back of a line; None: for all that is left of it.

    Raises DomainError for a line that was not paid, for more than is left of it, and for a reference that stands for
    something else; LostReturns while `memory` has another return of this line that the ledger does not; OSError.
    """
    known = memory.all() if memory else ()
    mine = next((r for r in known if r.reference == reference), None)
    if mine is not None and (
        (mine.batch_id, mine.line) != (batch_id, line) or amount_micro not in (None, mine.amount_micro)
    ):
        raise DomainError(f"reference {reference!r} stands for another return in the payment files")

    def attempt() -> Returned:
        book = ledger.load_or_new(Book, BOOK_ID)
        lost = [r for r in forgotten(book, known) if (r.batch_id, r.line) == (batch_id, line) and r != mine]
        if lost:
            raise LostReturns(lost)
        amount = mine.amount_micro if mine is not None else amount_micro
        booked = book.return_payout_line(
            batch_id, line, amount_micro=amount, reference=reference, reason=reason, at_us=at_us
        )
        if booked and not dry_run:
            ledger.save(book)
        paid = book.paid[batch_id, line]
        came_back = book.returned_by(reference)
        return Returned(line, paid.friend_id, came_back, paid.left_micro, reference, reason, booked)

    made = until_saved(attempt)
    if memory is not None and mine is None and not dry_run:
        memory.remember(Return(batch_id, line, made.amount_micro, reference, reason))
    return made


def return_all_told(
    ledger: Ledger,
    batch_id: UUID,
    line: int,
    *,
    reference: str,
    reason: str,
    at_us: int,
    memory: Returns,
    dry_run: bool = False,
) -> Returned | None:
    """A rail says that a payment came back, and no amount: all of it did, unless somebody said how much already."""
    book = ledger.load_or_new(Book, BOOK_ID)
    paid = book.paid.get((batch_id, line))
    if paid is not None and paid.returned_micro and not book.knows(reference):
        return None
    return return_line(
        ledger,
        batch_id,
        line,
        amount_micro=None,
        reference=reference,
        reason=reason,
        at_us=at_us,
        memory=memory,
        dry_run=dry_run,
    )


def returned(ledger: Ledger, batch_id: UUID, line: int) -> int:
    """What came back of a line, in micro-units."""
    paid = ledger.load_or_new(Book, BOOK_ID).paid.get((batch_id, line))
    return paid.returned_micro if paid is not None else 0


def forgotten(book: Book, remembered: Iterable[Return]) -> list[Return]:
    """Returns of lines that the book has as paid, and does not have itself."""
    found = []
    for one in remembered:
        paid = book.paid.get((one.batch_id, one.line))
        if paid is not None and one.amount_micro <= paid.left_micro and not book.knows(one.reference):
            found.append(one)
    return found


def refuse_forgotten(book: Book, remembered: Iterable[Return]) -> None:
    """Raises LostReturns: a plan made now would leave out what is owed again."""
    if lost := forgotten(book, remembered):
        raise LostReturns(lost)


def book_forgotten(
    ledger: Ledger, batch_id: UUID, remembered: Iterable[Return], *, at_us: int, dry_run: bool = False
) -> list[Returned]:
    """Book again what the files know to have come back of a payout."""
    lost = forgotten(ledger.load_or_new(Book, BOOK_ID), (r for r in remembered if r.batch_id == batch_id))
    return [
        return_line(
            ledger,
            batch_id,
            one.line,
            amount_micro=one.amount_micro,
            reference=one.reference,
            reason=one.reason,
            at_us=at_us,
            dry_run=dry_run,
        )
        for one in lost
    ]
