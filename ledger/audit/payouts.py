"""Payouts: what was planned, attempted and answered, held against the money that moved.

Invariant: money is in flight exactly while a line's attempt has no final answer, and it reaches `paid` exactly when
the rail confirmed; the amounts and friends are those of the plan; no more comes back of a line than was paid.
"""

from typing import Final
from uuid import UUID, uuid5

import msgspec

from ledger.audit.books import Books
from ledger.audit.crew import Crew, present, require
from ledger.audit.facts import struct_table
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.store import Store
from ledger.events import (
    PayoutApproved,
    PayoutAttempted,
    PayoutCancelled,
    PayoutLine,
    PayoutLineConfirmed,
    PayoutLineFailed,
    PayoutLineReserved,
    PayoutLineReturned,
    PayoutPlanned,
    PayoutProposed,
    PayoutResolved,
)
from ledger.ids import BOOK_ID

DAY_US: Final = 86_400 * 1_000_000
# The money of a line in each state, once the events of a step are complete.
_MONEY: Final = {
    "planned": "available",
    "attempted": "in_flight",
    "unknown": "in_flight",
    "failed": "available",
    "confirmed": "paid",
}
# A failed line may still be confirmed: a rail that took back what it had said.
_ANSWERS: Final = {
    "planned": {"failed"},
    "attempted": {"confirmed", "failed", "unknown"},
    "unknown": {"confirmed", "failed"},
    "failed": {"confirmed"},
    "confirmed": set[str](),
}


class _Line(msgspec.Struct, array_like=True):
    plan: PayoutLine
    position: int  # of the last event that concerns it
    state: str = "planned"
    attempt: int = 0
    money: str = "available"
    day: int = 0  # of its last reservation
    returned: int = 0  # came back after it was paid


class _Batch(msgspec.Struct, array_like=True):
    number: int
    lines: dict[int, _Line]
    total_micro: int
    planned_by: str = ""
    approved: bool = False
    cancelled: bool = False


class State(msgspec.Struct):
    planned: int = 0  # payouts ever
    days: dict[int, int] = {}  # UTC day -> given to rails on it, without what failed
    # Lines whose money is not where it should be in the end:
    # (number of the payout, line) -> payout, state, money, position.
    uneven: dict[tuple[int, int], tuple[UUID, str, str, int]] = {}


class Payouts:
    def __init__(
        self, books: Books, crew: Crew, store: Store, counts: Counts, state: State | None = None
    ) -> None:
        self.state = state or State()
        self._books = books
        self._crew = crew
        self._counts = counts
        self._batches = struct_table(store, b"Y", _Batch, 64)

    def finish(self) -> None:
        for (_, number), (batch_id, state, money, position) in sorted(self.state.uneven.items()):
            raise AuditFailure(
                f"line {number} of payout {batch_id} is {state}, but its money is {money}", position=position
            )

    def before(self, event: object) -> None:
        """A payout is saved together with its money: nothing comes between what became of a line and that."""
        for (_, number), (batch_id, state, money, _) in self.state.uneven.items():
            moves = isinstance(event, PayoutLineReserved | PayoutLineConfirmed | PayoutLineFailed) and (
                (event.batch_id, event.line) == (batch_id, number)
            )
            if not moves:
                raise AuditFailure(
                    f"line {number} of payout {batch_id} is {state}, but its money stays {money}"
                )

    # --- the payout's own events

    def planned(self, position: int, event: PayoutPlanned) -> None:
        expected = uuid5(BOOK_ID, f"payout:{self.state.planned + 1}")
        require(event.originator_id == expected, "the payout is not the next one")
        numbers = [line.line for line in event.lines]
        numbered = bool(numbers) and numbers == list(range(1, len(numbers) + 1))
        require(numbered, "the lines are not numbered from 1")
        require(len({line.friend_id for line in event.lines}) == len(numbers), "a friend has two lines")
        require(all(line.amount_micro > 0 for line in event.lines), "a line has no amount")
        total = sum(line.amount_micro for line in event.lines)
        within = any(
            total <= s.payout_batch_max_micro
            for s in self._crew.settings.in_force(event.at_us, self._crew.log_us(position))
        )
        require(within, "the payout is larger than the crew's limit")
        self.state.planned += 1
        batch = _Batch(self.state.planned, {x.line: _Line(x, position) for x in event.lines}, total)
        self._batches.put(event.originator_id.bytes, batch)

    def proposed(self, event: PayoutProposed) -> None:
        batch = self._batch(event.originator_id)
        require(event.originator_version == 2 and bool(event.operator), "a plan is attributed afterwards")
        batch.planned_by = event.operator
        self._batches.put(event.originator_id.bytes, batch)

    def approved(self, position: int, event: PayoutApproved) -> None:
        batch = self._batch(event.originator_id)
        require(not batch.cancelled, "a cancelled payout is approved")
        require(not batch.approved, "the payout was approved before")
        require(bool(event.operator), "nobody approves the payout")
        other = bool(batch.planned_by) and not _same_person(event.operator, batch.planned_by)
        enough = any(
            other or not 0 < s.payout_second_above_micro < batch.total_micro
            for s in self._crew.settings.in_force(event.at_us, self._crew.log_us(position))
        )
        require(enough, "a payout of so much is approved by the operator who planned it")
        batch.approved = True
        self._batches.put(event.originator_id.bytes, batch)

    def cancelled(self, event: PayoutCancelled) -> None:
        batch = self._batch(event.originator_id)
        begun = any(line.state != "planned" for line in batch.lines.values())
        require(not begun, "a payout is cancelled after it began")
        require(not batch.cancelled, "the payout was cancelled before")
        batch.cancelled = True
        self._batches.put(event.originator_id.bytes, batch)

    def attempted(self, position: int, event: PayoutAttempted) -> None:
        batch = self._batch(event.originator_id)
        line = _line(event.originator_id, batch, event.line)
        require(batch.approved and not batch.cancelled, "an attempt of a payout that is not approved")
        require(line.state in ("planned", "unknown"), f"an attempt of a line that is {line.state}")
        require(event.attempt == line.attempt + 1, f"attempt {line.attempt + 1} should be next")
        require(event.key == f"{event.originator_id}:{event.line}", "the attempt has another key")
        line.state, line.attempt, line.position = "attempted", event.attempt, position
        self._changed(event.originator_id, batch, line)

    def resolved(self, position: int, event: PayoutResolved) -> None:
        batch = self._batch(event.originator_id)
        line = _line(event.originator_id, batch, event.line)
        require(batch.approved and not batch.cancelled, "an answer for a payout that is not approved")
        allowed = event.outcome in _ANSWERS[line.state] and event.attempt == line.attempt
        # A line that fails without an attempt was never given to the rail, and stays so.
        require(
            allowed and (line.state != "failed" or line.attempt > 0),
            f"a line that is {line.state} becomes {event.outcome}",
        )
        line.state, line.position = event.outcome, position
        self._changed(event.originator_id, batch, line)

    # --- the movements in the book

    def reserved(self, position: int, event: PayoutLineReserved) -> None:
        batch = self._batch(event.batch_id)
        line = _line(event.batch_id, batch, event.line)
        amount, day = line.plan.amount_micro, event.at_us // DAY_US
        total = self.state.days.get(day, 0) + amount
        # What a rail paid after it had said no is booked in any case.
        within = line.state == "confirmed" or any(
            total <= s.payout_day_max_micro
            for s in self._crew.settings.in_force(event.at_us, self._crew.log_us(position))
        )
        require(within, "more is given to rails than the crew's limit of the day")
        self._move(position, event, "payout_reserved", "available", "in_flight", ("attempted", "confirmed"))
        self.state.days[day], line.day = total, day
        self._changed(event.batch_id, batch, line)

    def confirmed(self, position: int, event: PayoutLineConfirmed) -> None:
        self._move(position, event, "payout_confirmed", "in_flight", "paid", ("confirmed",))
        self._counts.payout_lines += 1

    def failed(self, position: int, event: PayoutLineFailed) -> None:
        self._move(position, event, "payout_failed", "in_flight", "available", ("failed",))
        line = _line(event.batch_id, self._batch(event.batch_id), event.line)
        self.state.days[line.day] -= line.plan.amount_micro

    def returned(self, position: int, event: PayoutLineReturned) -> None:
        batch = self._batch(event.batch_id)
        line = _line(event.batch_id, batch, event.line)
        require(line.money == "paid", f"what came back is of a line whose money is {line.money}")
        self._books.refer(event.reference)
        friend = f"friend:{line.plan.friend_id}"
        amount = self._books.move(
            position, event.transfer, "payout_returned", f"{friend}:paid", f"{friend}:available"
        )
        line.returned += amount
        require(line.returned <= line.plan.amount_micro, "more came back of the line than was paid")
        line.position = position
        self._changed(event.batch_id, batch, line)

    def _move(
        self,
        position: int,
        event: PayoutLineReserved | PayoutLineConfirmed | PayoutLineFailed,
        reason: str,
        source: str,
        target: str,
        states: tuple[str, ...],
    ) -> None:
        batch = self._batch(event.batch_id)
        line = _line(event.batch_id, batch, event.line)
        require(line.state in states, f"money moves for a payout line that is {line.state}")
        require(line.money == source, f"the line's money is {line.money}, not {source}")
        friend = f"friend:{line.plan.friend_id}"
        amount = self._books.move(
            position, event.transfer, reason, f"{friend}:{source}", f"{friend}:{target}"
        )
        require(amount == line.plan.amount_micro, f"{line.plan.amount_micro} micro-units were planned")
        line.money, line.position = target, position
        self._changed(event.batch_id, batch, line)

    def _batch(self, batch_id: UUID) -> _Batch:
        return present(self._batches.get(batch_id.bytes), f"payout {batch_id} was never planned")

    def _changed(self, batch_id: UUID, batch: _Batch, line: _Line) -> None:
        self._batches.put(batch_id.bytes, batch)
        key = (batch.number, line.plan.line)
        if line.money == _MONEY[line.state]:
            self.state.uneven.pop(key, None)
        else:
            self.state.uneven[key] = (batch_id, line.state, line.money, line.position)


def _same_person(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _line(batch_id: UUID, batch: _Batch, number: int) -> _Line:
    return present(batch.lines.get(number), f"payout {batch_id} has no line {number}")
