"""Paying an approved payout, line by line, and going on after a crash.

Invariant: a line's money is reserved and its attempt recorded in one save before the rail is called.
"""

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

import structlog

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import Line, LineState, Payout
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.rails import Answer, OtherPayment, Outcome, Payment, Rail
from ledger.rails.given import NOTHING, Given, kind_of
from ledger.services import crew
from ledger.services.destinations import Destination
from ledger.services.payouts.lines import LineResult, committed, load, load_both, load_for, result
from ledger.services.payouts.lost import not_taken_up, refuse_lost
from ledger.services.payouts.reconciling import record
from ledger.services.retry import until_saved

log = structlog.get_logger()


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
    payout = load_for(ledger, rail, batch_id)
    refuse_lost(ledger, payout, given)
    if not payout.approved_by or payout.cancelled:
        raise DomainError(f"the payout is {payout.state}: only an approved one is run")
    known = given.get(batch_id, {}).get(kind_of(payout.rail), frozenset())
    lost = not_taken_up(ledger, payout, given)
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


def _show_again(
    ledger: Ledger,
    rail: Rail,
    payout: Payout,
    line: Line,
    destinations: Mapping[UUID, Destination],
    unit: str,
) -> None:
    """The rail knows a line of which nothing is recorded. Raises OtherPayment unless it is the very same payment."""
    number, destination = line.planned.line, committed(line, destinations)
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
    return [x for x in payout.lines.values() if x.state is LineState.PLANNED and committed(x, destinations)]


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
        return result(number, line, action)
    key = f"{batch_id}:{number}"
    answer = Answer(Outcome.ABSENT)
    if action == "look_up":
        answer = rail.look_up(key)
    if answer.outcome is Outcome.ABSENT:
        destination = committed(line, destinations)
        if destination is None:  # attempted by a run that died, erased since: it stays in flight
            return result(number, line, action)
        answer = rail.submit(_payment(key, line, unit, destination))
    return record(ledger, batch_id, number, answer, action, at_us)


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
    payout, book = load_both(ledger, batch_id, number)
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


def _fault(book: Book, line: Line, destinations: Mapping[UUID, Destination]) -> str:
    """Why a planned line cannot be attempted any more; its money stays available for the next plan."""
    if committed(line, destinations) is None:
        return "destination changed since planning"
    if book.available().get(line.planned.friend_id, 0) < line.planned.amount_micro:
        return "less available than planned"
    return ""


def _preview(line: Line, destinations: Mapping[UUID, Destination]) -> LineResult:
    action = {LineState.PLANNED: "submit", LineState.ATTEMPTED: "look_up"}.get(line.state, "none")
    if action == "submit" and committed(line, destinations) is None:
        action = "fail"
    return result(line.planned.line, line, action)
