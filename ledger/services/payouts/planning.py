"""Who is paid how much, and who allows it: plan, approve, cancel. No money moves here.

Invariant: everybody with something available is in the plan or is said to wait; nobody stands in two payouts that
are still to be paid; no payout is above the crew's limit.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import MAX_LINES, LineState, Payout, payout_id
from ledger.application import Ledger
from ledger.events import PayoutLine
from ledger.ids import BOOK_ID
from ledger.rails.given import NOTHING, Given
from ledger.rails.returned import Return
from ledger.services import crew
from ledger.services.payouts.lines import batches, load
from ledger.services.payouts.lost import LostPayments, lines_text
from ledger.services.retry import until_saved
from ledger.services.returns import refuse_forgotten


@dataclass(frozen=True, slots=True)
class Waiting:
    """Money that is not in the plan, and why. It stays available."""

    friend_id: UUID
    amount_micro: int
    # "below_threshold" | "below_smallest" (of what the rail can pay) | "no_destination" | "came_back" (what was paid to
    # this destination) | "in_open_payout" | "batch_limit" | "day_limit"
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    batch_id: UUID | None  # None when there is nobody to pay, or in a dry run
    lines: tuple[PayoutLine, ...]
    waiting: tuple[Waiting, ...]
    further: tuple["Plan", ...] = ()  # what does not fit in one payout is planned in more of them


def plan(
    ledger: Ledger,
    *,
    rail: str,
    threshold_micro: int,
    destinations: Mapping[UUID, bytes],
    at_us: int,
    operator: str = "",
    quantum_micro: int = 1,
    remembered: Sequence[Return] = (),
    dry_run: bool = False,
) -> Plan:
    """A batch for everybody with at least `threshold_micro` available. Nothing is reserved yet.

    `destinations` are the commitments of those who said where to pay. Amounts are whole multiples of `quantum_micro`;
    the rest stays available. A batch has up to MAX_LINES lines and pays no more than the crew's limit; all that are
    needed are planned at once. What alone is more than a batch or a day may be waits, and so does what came back from a
    destination until another is set. Who is in another open batch waits for that one; raises DomainError when only such
    friends are left. `remembered` are all returns in the payment files: raises LostReturns when the ledger has not all.
    """

    def attempt() -> Plan:
        earlier = batches(ledger)
        limits = crew.settings(ledger)
        book = ledger.load_or_new(Book, BOOK_ID)
        refuse_forgotten(book, remembered)
        known = {payout.id: payout for payout in earlier}
        came_back = {
            known[batch_id].lines[line].planned.destination_commitment
            for batch_id, line in book.paid.returned
            if batch_id in known
        }
        chosen, waiting = _choose(book, threshold_micro, destinations, came_back, _still_to_pay(earlier))
        fits: list[tuple[UUID, int]] = []
        for friend_id, available_micro in chosen:
            amount_micro = available_micro - available_micro % quantum_micro
            if not amount_micro:
                waiting.append(Waiting(friend_id, available_micro, "below_smallest"))
            elif amount_micro > limits.payout_batch_max_micro:
                waiting.append(Waiting(friend_id, amount_micro, "batch_limit"))
            elif amount_micro > limits.payout_day_max_micro:
                waiting.append(Waiting(friend_id, amount_micro, "day_limit"))
            else:
                fits.append((friend_id, amount_micro))
        if not fits:
            _refuse_overlap(waiting)
        made: list[Plan] = []
        payouts: list[Payout] = []
        for number, part in enumerate(_cut(fits, limits.payout_batch_max_micro), len(earlier) + 1):
            lines = tuple(
                PayoutLine(n, friend_id, amount, destinations[friend_id])
                for n, (friend_id, amount) in enumerate(part, 1)
            )
            payout = Payout(payout_id(number))
            payout.plan(rail=rail, lines=lines, at_us=at_us, operator=operator)
            payouts.append(payout)
            made.append(Plan(None if dry_run else payout.id, lines, ()))
        if payouts and not dry_run:
            ledger.save(*payouts)
        first = made[0] if made else Plan(None, (), ())
        return Plan(first.batch_id, first.lines, tuple(waiting), tuple(made[1:]))

    return until_saved(attempt)


def approve(ledger: Ledger, batch_id: UUID, *, operator: str, at_us: int, dry_run: bool = False) -> Payout:
    """Raises DomainError when the crew's rules ask for another operator than the one who planned it."""

    def attempt() -> Payout:
        payout = load(ledger, batch_id)
        above_micro = crew.settings(ledger).payout_second_above_micro
        payout.approve(operator=operator, at_us=at_us, second_above_micro=above_micro)
        if not dry_run:
            ledger.save(payout)
        return payout

    return until_saved(attempt)


def cancel(
    ledger: Ledger,
    batch_id: UUID,
    *,
    reason: str,
    at_us: int,
    given: Given = NOTHING,
    dry_run: bool = False,
) -> Payout:
    """Only before the first attempt. `given`: what rails were given, read before the call.

    Raises LostPayments when that is something of this payout: cancelled, its money would leave again.
    """

    def attempt() -> Payout:
        payout = load(ledger, batch_id)
        if not any(line.attempt for line in payout.lines.values()):
            for kind, lines in given.get(batch_id, {}).items():
                raise LostPayments(batch_id, kind, lines_text(lines))
        payout.cancel(reason=reason, at_us=at_us)
        if not dry_run:
            ledger.save(payout)
        return payout

    return until_saved(attempt)


def _choose(
    book: Book,
    threshold_micro: int,
    destinations: Mapping[UUID, bytes],
    came_back: Set[bytes],
    busy: Set[UUID],
) -> tuple[list[tuple[UUID, int]], list[Waiting]]:
    chosen: list[tuple[UUID, int]] = []
    waiting: list[Waiting] = []
    for friend_id, amount_micro in book.available().items():
        if amount_micro < threshold_micro:
            waiting.append(Waiting(friend_id, amount_micro, "below_threshold"))
        elif friend_id not in destinations:
            waiting.append(Waiting(friend_id, amount_micro, "no_destination"))
        elif destinations[friend_id] in came_back:
            waiting.append(Waiting(friend_id, amount_micro, "came_back"))
        elif friend_id in busy:
            waiting.append(Waiting(friend_id, amount_micro, "in_open_payout"))
        else:
            chosen.append((friend_id, amount_micro))
    return chosen, waiting


def _cut(chosen: list[tuple[UUID, int]], limit_micro: int) -> list[list[tuple[UUID, int]]]:
    """Batches of at most MAX_LINES lines and `limit_micro` each; nobody alone is more than that."""
    batches_: list[list[tuple[UUID, int]]] = []
    left_micro = -1
    for friend_id, amount_micro in chosen:
        if amount_micro > left_micro or len(batches_[-1]) == MAX_LINES:
            batches_.append([])
            left_micro = limit_micro
        batches_[-1].append((friend_id, amount_micro))
        left_micro -= amount_micro
    return batches_


def _still_to_pay(earlier: list[Payout]) -> set[UUID]:
    """Money of lines that were attempted is in flight, out of reach of a new plan; that of planned lines is not."""
    return {
        line.planned.friend_id
        for payout in earlier
        if payout.open
        for line in payout.lines.values()
        if line.state is LineState.PLANNED
    }


def _refuse_overlap(waiting: list[Waiting]) -> None:
    busy = next((w for w in waiting if w.reason == "in_open_payout"), None)
    if busy is not None:
        raise DomainError(f"an open payout would pay friend {busy.friend_id} too: run or cancel it first")
