"""What became of a line: the rail's answer, and the movement of money that follows from it, in one save.

Invariant: nothing here pays anybody. An answer that says nothing new changes nothing, however often it is heard.
"""

from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID

import structlog

from ledger.aggregates.book import Book
from ledger.aggregates.payout import IN_FLIGHT, Line, LineState, Payout
from ledger.application import Ledger
from ledger.rails import Answer, Outcome, Rail
from ledger.services.payouts.lines import OVERPAID, LineResult, load, load_both, load_for, result
from ledger.services.retry import until_saved

log = structlog.get_logger()


def record(
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
        payout, book = load_both(ledger, batch_id, number)
        line = payout.lines[number]
        in_flight = line.state in IN_FLIGHT
        taken_back = line.state is LineState.FAILED and answer.outcome is Outcome.CONFIRMED
        unchanged = line.state.value == answer.outcome.value or answer.outcome is Outcome.ABSENT
        if unchanged or not (in_flight or taken_back):
            return result(number, line, action)
        if answer.outcome is Outcome.UNKNOWN:
            payout.resolve(number, answer, at_us=at_us)
            save(payout)
            return result(number, payout.lines[number], action, was=line)
        if taken_back and not _reserve_again(book, batch_id, number, line, at_us):
            if not dry_run:
                log.error("paid twice by the rail", batch=str(batch_id), line=number, rail=payout.rail)
            return result(number, line, action, OVERPAID)
        payout.resolve(number, answer, at_us=at_us)
        if answer.outcome is Outcome.CONFIRMED:
            book.confirm_payout_line(batch_id, number, at_us=at_us)
        else:
            book.fail_payout_line(batch_id, number, at_us=at_us)
        save(payout, book)
        return result(number, payout.lines[number], action, was=line)

    return until_saved(attempt)


def _reserve_again(book: Book, batch_id: UUID, number: int, line: Line, at_us: int) -> bool:
    friend_id, amount_micro = line.planned.friend_id, line.planned.amount_micro
    if book.available().get(friend_id, 0) < amount_micro:
        return False
    book.reserve_payout_line(batch_id, number, friend_id=friend_id, amount_micro=amount_micro, at_us=at_us)
    return True


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
    payout = load_for(ledger, rail, batch_id)
    results = []
    for number, line in sorted(payout.lines.items()):
        if not line.attempt or line.state is LineState.CONFIRMED:
            results.append(result(number, line, "none"))
            continue
        answer = told.get(payout.key(number)) or rail.look_up(payout.key(number))
        if line.state is LineState.UNKNOWN and answer.outcome is Outcome.ABSENT:
            results.append(_release(ledger, batch_id, number, at_us, dry_run=dry_run))
        else:
            results.append(record(ledger, batch_id, number, answer, "look_up", at_us, dry_run=dry_run))
    return results


def _release(ledger: Ledger, batch_id: UUID, number: int, at_us: int, *, dry_run: bool) -> LineResult:
    def attempt() -> LineResult:
        payout = load(ledger, batch_id)
        before = payout.lines[number]
        if before.state is LineState.UNKNOWN:
            payout.attempt(number, at_us=at_us)
            if not dry_run:
                ledger.save(payout)
        return result(number, payout.lines[number], "retry", was=before)

    return until_saved(attempt)
