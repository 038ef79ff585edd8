"""Payouts: plan -> approve -> run -> reconcile.

Invariant: killing the process at any instruction loses nothing and pays nobody twice. A line's money is reserved and
its attempt recorded in one save before the rail is called; what the rail answered and where the money went is one
save after it. Whoever comes next finds in the log how far the line came, and asks the rail about its key.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final
from uuid import UUID

import structlog

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import (
    IN_FLIGHT,
    MAX_LINES,
    Line,
    LineState,
    NoPayoutError,
    Payout,
    payout_id,
)
from ledger.application import Conflict, Ledger, NotFound
from ledger.events import PayoutLine
from ledger.ids import BOOK_ID
from ledger.rails import Answer, OtherPayment, Outcome, Payment, Rail
from ledger.rails.given import NOTHING, Given, kind_of
from ledger.rails.returned import Return
from ledger.services import crew
from ledger.services.destinations import Destination
from ledger.services.retry import until_saved
from ledger.services.returns import refuse_forgotten

log = structlog.get_logger()

OVERPAID: Final = (
    "overpaid"  # the rail paid what it had called failed, and the money has been paid out again since
)

RETURNED: Final = "returned"  # it was paid, and the money is back and available


class LostPayments(Exception):
    """Payments were given to a rail that the ledger knows nothing of."""

    exit_code = 5

    def __init__(self, batch_id: UUID, kind: str, what: str, or_else: str = "") -> None:
        super().__init__(
            f"the payment files hold {what} of payout {batch_id} ({kind}), and the ledger knows nothing of that: the "
            f"database is older than what was paid. Restore a newer one; docs/operators.md, Backup, if there is none."
            f"{or_else}"
        )


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


# --- plan, approve, cancel


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
                raise LostPayments(batch_id, kind, _lines_text(lines))
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


# --- run


def run(
    ledger: Ledger,
    rail: Rail,
    batch_id: UUID,
    *,
    destinations: Mapping[UUID, Destination],
    at_us: int,
    given: Given = NOTHING,
    dry_run: bool = False,
) -> list[LineResult]:
    """Pay every line of an approved batch that is not paid yet; start again after a crash to resume.

    Lines whose outcome is unknown are left alone: `reconcile` asks the rail about them. Payouts are numbered, so a
    database from an older backup gives the numbers of lost ones again: what the rail knows already, and the ledger does
    not, is shown to it before anything is recorded. `given` is what all rails were given, read before the call.
    Raises DomainError, LostPayments for what was given and is in no payout, and what the rail raises: OtherPayment, and
    in `prepare`, before anything new is reserved; later the line stays as recorded.
    """
    payout = _load_for(ledger, rail, batch_id)
    _refuse_lost(ledger, payout, given)
    if not payout.approved_by or payout.cancelled:
        raise DomainError(f"the payout is {payout.state}: only an approved one is run")
    known = given.get(batch_id, {}).get(kind_of(payout.rail), frozenset())
    lost = _not_taken_up(ledger, payout, given)
    waits = lost is not None and any(x.planned.line not in known for x in to_submit(payout, destinations))
    if dry_run:
        if lost is not None and waits:
            raise lost
        return [_preview(line, destinations) for line in payout.lines.values()]
    unit, new = crew.crew(ledger).unit, to_submit(payout, destinations)
    for line in payout.lines.values():
        key = payout.key(line.planned.line)
        if line.state is LineState.PLANNED and rail.look_up(key).outcome is not Outcome.ABSENT:
            _show_again(ledger, rail, payout, line, destinations, unit)
    if lost is not None and waits:  # what was paid before is taken up, and nothing else begins
        for number in sorted(known):
            _run_line(ledger, rail, batch_id, number, destinations, unit, at_us)
        raise lost
    rail.prepare([line.planned.amount_micro for line in new])
    ran = (_run_line(ledger, rail, batch_id, n, destinations, unit, at_us) for n in sorted(payout.lines))
    return [replace(r, was=payout.lines[r.line].state.value) for r in ran]


def _refuse_lost(ledger: Ledger, payout: Payout, given: Given) -> None:
    for batch_id, kinds in given.items():
        for kind, lines in kinds.items():
            other = payout if batch_id == payout.id else _found(ledger, batch_id)
            mine = other is not None and kind == kind_of(other.rail)
            strange = lines - other.lines.keys() if other is not None and mine else lines
            if strange:
                raise LostPayments(batch_id, kind, _lines_text(strange))


def _not_taken_up(ledger: Ledger, payout: Payout, given: Given) -> LostPayments | None:
    """Lines of another payout that a rail was given, while the ledger never began them: whom they paid, only that
    payout's own run can tell, and this one might pay the same people."""
    for batch_id, kinds in given.items():
        other = _found(ledger, batch_id) if batch_id != payout.id else None
        for kind, lines in kinds.items() if other is not None else ():
            if begun := sorted(n for n in lines if other is not None and not other.lines[n].attempt):
                return LostPayments(batch_id, kind, _lines_text(begun), " Or run that payout first.")
    return None


def _found(ledger: Ledger, batch_id: UUID) -> Payout | None:
    try:
        return load(ledger, batch_id)
    except NotFound:
        return None


def _lines_text(lines: Iterable[int]) -> str:
    return f"line{'s' if len(found := sorted(lines)) > 1 else ''} {', '.join(map(str, found))}"


def _show_again(
    ledger: Ledger,
    rail: Rail,
    payout: Payout,
    line: Line,
    destinations: Mapping[UUID, Destination],
    unit: str,
) -> None:
    """The rail knows a line of which nothing is recorded. Raises OtherPayment unless it is the very same payment."""
    number, destination = line.planned.line, _committed(line, destinations)
    if destination is not None:
        rail.submit(_payment(payout.key(number), line, unit, destination))
    book = ledger.load_or_new(Book, BOOK_ID)
    if _fault(book, line, destinations) and not _begun_meanwhile(ledger, payout.id, number):
        raise OtherPayment(payout.key(number))  # it would fail, and its money be paid by the next payout


def _begun_meanwhile(ledger: Ledger, batch_id: UUID, number: int) -> bool:
    """By another run: whoever gives a line to a rail has recorded it before."""
    return load(ledger, batch_id).lines[number].state is not LineState.PLANNED


def to_submit(payout: Payout, destinations: Mapping[UUID, Destination]) -> list[Line]:
    """The lines that a run would begin."""
    return [x for x in payout.lines.values() if x.state is LineState.PLANNED and _committed(x, destinations)]


def _run_line(
    ledger: Ledger,
    rail: Rail,
    batch_id: UUID,
    number: int,
    destinations: Mapping[UUID, Destination],
    unit: str,
    at_us: int,
) -> LineResult:
    line, action = until_saved(lambda: _prepare(ledger, batch_id, number, destinations, at_us))
    if action not in ("submit", "look_up"):
        return _result(number, line, action)
    key = f"{batch_id}:{number}"
    answer = Answer(Outcome.ABSENT)
    if action == "look_up":
        answer = rail.look_up(key)
    if answer.outcome is Outcome.ABSENT:
        destination = _committed(line, destinations)
        if destination is None:  # attempted by a run that died, erased since: it stays in flight
            return _result(number, line, action)
        answer = rail.submit(_payment(key, line, unit, destination))
    return _record(ledger, batch_id, number, answer, action, at_us)


def _payment(key: str, line: Line, unit: str, destination: Destination) -> Payment:
    return Payment(
        key=key,
        friend_id=line.planned.friend_id,
        amount_micro=line.planned.amount_micro,
        unit=unit,
        destination=destination.text,
    )


def _prepare(
    ledger: Ledger, batch_id: UUID, number: int, destinations: Mapping[UUID, Destination], at_us: int
) -> tuple[Line, str]:
    """Reserve and record the attempt, in one save. Returns the line and what to do with it."""
    payout, book = _load_both(ledger, batch_id, number)
    line = payout.lines[number]
    if line.state is LineState.ATTEMPTED:
        return line, "look_up"
    if line.state is not LineState.PLANNED:
        return line, "none"
    fault = _fault(book, line, destinations)
    if fault:
        payout.resolve(number, Answer(Outcome.FAILED, fault), at_us=at_us)
        ledger.save(payout)
        return payout.lines[number], "fail"
    if book.paid_out_on(at_us) + line.planned.amount_micro > crew.settings(ledger).payout_day_max_micro:
        log.warning("payout limit of the day reached", batch=str(batch_id), line=number)
        return line, "limit"
    payout.attempt(number, at_us=at_us)
    book.reserve_payout_line(
        batch_id,
        number,
        friend_id=line.planned.friend_id,
        amount_micro=line.planned.amount_micro,
        at_us=at_us,
    )
    ledger.save(payout, book)
    return payout.lines[number], "submit"


def _record(
    ledger: Ledger,
    batch_id: UUID,
    number: int,
    answer: Answer,
    action: str,
    at_us: int,
    *,
    dry_run: bool = False,
) -> LineResult:
    """The answer and the movement that follows from it, in one save. What says nothing new changes nothing."""

    def save(*changed: Payout | Book) -> None:
        if not dry_run:
            ledger.save(*changed)

    def attempt() -> LineResult:
        payout, book = _load_both(ledger, batch_id, number)
        line = payout.lines[number]
        in_flight = line.state in IN_FLIGHT
        taken_back = line.state is LineState.FAILED and answer.outcome is Outcome.CONFIRMED
        unchanged = line.state.value == answer.outcome.value or answer.outcome is Outcome.ABSENT
        if unchanged or not (in_flight or taken_back):
            return _result(number, line, action)
        if answer.outcome is Outcome.UNKNOWN:
            payout.resolve(number, answer, at_us=at_us)
            save(payout)
            return _result(number, payout.lines[number], action, was=line)
        if taken_back and not _reserve_again(book, batch_id, number, line, at_us):
            if not dry_run:
                log.error("paid twice by the rail", batch=str(batch_id), line=number, rail=payout.rail)
            return _result(number, line, action, OVERPAID)
        payout.resolve(number, answer, at_us=at_us)
        if answer.outcome is Outcome.CONFIRMED:
            book.confirm_payout_line(batch_id, number, at_us=at_us)
        else:
            book.fail_payout_line(batch_id, number, at_us=at_us)
        save(payout, book)
        return _result(number, payout.lines[number], action, was=line)

    return until_saved(attempt)


def _reserve_again(book: Book, batch_id: UUID, number: int, line: Line, at_us: int) -> bool:
    friend_id, amount_micro = line.planned.friend_id, line.planned.amount_micro
    if book.available().get(friend_id, 0) < amount_micro:
        return False
    book.reserve_payout_line(batch_id, number, friend_id=friend_id, amount_micro=amount_micro, at_us=at_us)
    return True


# --- reconcile


def reconcile(
    ledger: Ledger,
    rail: Rail,
    batch_id: UUID,
    *,
    at_us: int,
    told: Mapping[str, Answer] = MappingProxyType({}),
    dry_run: bool = False,
) -> list[LineResult]:
    """Ask the rail about every line that was attempted and is not confirmed. Pays nothing.

    A key the rail has never seen is released for `run` to submit again, under the same key. A failed line that the
    rail did pay becomes confirmed, or is reported as OVERPAID when its money has left again since. `told`, for a dry
    run: what the rail would answer by then, by key.
    """
    payout = _load_for(ledger, rail, batch_id)
    results = []
    for number, line in sorted(payout.lines.items()):
        if not line.attempt or line.state is LineState.CONFIRMED:
            results.append(_result(number, line, "none"))
            continue
        answer = told.get(payout.key(number)) or rail.look_up(payout.key(number))
        if line.state is LineState.UNKNOWN and answer.outcome is Outcome.ABSENT:
            results.append(_release(ledger, batch_id, number, at_us, dry_run=dry_run))
        else:
            results.append(_record(ledger, batch_id, number, answer, "look_up", at_us, dry_run=dry_run))
    return results


def _release(ledger: Ledger, batch_id: UUID, number: int, at_us: int, *, dry_run: bool) -> LineResult:
    def attempt() -> LineResult:
        payout = load(ledger, batch_id)
        before = payout.lines[number]
        if before.state is LineState.UNKNOWN:
            payout.attempt(number, at_us=at_us)
            if not dry_run:
                ledger.save(payout)
        return _result(number, payout.lines[number], "retry", was=before)

    return until_saved(attempt)


# --- helpers


def _load_for(ledger: Ledger, rail: Rail, batch_id: UUID) -> Payout:
    payout = load(ledger, batch_id)
    if payout.rail != rail.name:
        raise DomainError(f"the payout is planned for {payout.rail}, not for {rail.name}")
    return payout


def _load_both(ledger: Ledger, batch_id: UUID, number: int) -> tuple[Payout, Book]:
    """Payout and book as of one moment, as far as the line goes.

    Raises Conflict when another run saved both between the two loads: decide again.
    """
    payout, book = load(ledger, batch_id), ledger.load_or_new(Book, BOOK_ID)
    if (payout.lines[number].state in IN_FLIGHT) != ((batch_id, number) in book.reservations):
        raise Conflict("another run is at work on this payout line")
    return payout, book


def _committed(line: Line, destinations: Mapping[UUID, Destination]) -> Destination | None:
    destination = destinations.get(line.planned.friend_id)
    if destination is None or destination.commitment != line.planned.destination_commitment:
        return None
    return destination


def _fault(book: Book, line: Line, destinations: Mapping[UUID, Destination]) -> str:
    """Why a planned line cannot be attempted any more; its money stays available for the next plan."""
    if _committed(line, destinations) is None:
        return "destination changed since planning"
    if book.available().get(line.planned.friend_id, 0) < line.planned.amount_micro:
        return "less available than planned"
    return ""


def _preview(line: Line, destinations: Mapping[UUID, Destination]) -> LineResult:
    action = {LineState.PLANNED: "submit", LineState.ATTEMPTED: "look_up"}.get(line.state, "none")
    if action == "submit" and _committed(line, destinations) is None:
        action = "fail"
    return _result(line.planned.line, line, action)


def _result(
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
