"""Payout: a batch of lines, its approval, and what became of each line.

Invariant: a rail is called only for a line whose attempt is recorded here; an attempt has one key per line, forever;
a line whose outcome is unknown is not attempted again unless the rail has been asked; a confirmed line is final.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

from ledger.aggregates.base import Aggregate, DomainError
from ledger.aggregates.disputes import check_reason
from ledger.events import (
    Event,
    PayoutApproved,
    PayoutAttempted,
    PayoutCancelled,
    PayoutLine,
    PayoutPlanned,
    PayoutProposed,
    PayoutResolved,
)
from ledger.ids import BOOK_ID
from ledger.rails import MAX_REFERENCE_CHARS, Answer, Outcome

MAX_NAME_CHARS: Final = 100
MAX_LINES: Final = 500  # of about 90 bytes, in one event of at most 65,535


class NoPayoutError(TypeError):
    """The events of this id are those of something else."""


def payout_id(number: int) -> UUID:
    """Batches are numbered 1, 2, ...: two plans made at once want the same id, and one of them loses."""
    return uuid5(BOOK_ID, f"payout:{number}")


def _check_name(operator: str) -> None:
    """It stays in the log, which cannot forget. What was recorded before there was this rule is folded as it is."""
    if len(operator) > MAX_NAME_CHARS or not operator.isascii() or not operator.isprintable():
        raise DomainError(f"an operator is named by 1 to {MAX_NAME_CHARS} printable ASCII characters")


def _same_person(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


class LineState(StrEnum):
    PLANNED = "planned"
    ATTEMPTED = "attempted"  # the rail may or may not have been called
    UNKNOWN = "unknown"  # the rail could not say
    CONFIRMED = "confirmed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Line:
    planned: PayoutLine
    state: LineState = LineState.PLANNED
    attempt: int = 0
    reference: str = ""


IN_FLIGHT: Final = frozenset({LineState.ATTEMPTED, LineState.UNKNOWN})
_SETTLED: Final = frozenset({LineState.CONFIRMED, LineState.FAILED})
# What an answer may make of a line. FAILED -> CONFIRMED is a rail that took back what it had said.
_MAY_BECOME: Final = {
    LineState.PLANNED: {LineState.FAILED},
    LineState.ATTEMPTED: {LineState.CONFIRMED, LineState.FAILED, LineState.UNKNOWN},
    LineState.UNKNOWN: {LineState.CONFIRMED, LineState.FAILED},
    LineState.CONFIRMED: set[LineState](),
    LineState.FAILED: {LineState.CONFIRMED},
}


class Payout(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.rail = ""
        self.planned_us = 0
        self.planned_by = ""  # empty for payouts from before it was recorded
        self.approved_by = ""
        self.cancelled = ""  # the reason
        self.lines: dict[int, Line] = {}

    @property
    def open(self) -> bool:
        """Not cancelled, and some line neither confirmed nor failed."""
        return not self.cancelled and any(line.state not in _SETTLED for line in self.lines.values())

    @property
    def state(self) -> str:
        """planned, approved, cancelled or finished (every line confirmed or failed)."""
        if self.cancelled:
            return "cancelled"
        if not self.open:
            return "finished"
        return "approved" if self.approved_by else "planned"

    @property
    def total_micro(self) -> int:
        return sum(line.planned.amount_micro for line in self.lines.values())

    def key(self, line: int) -> str:
        return f"{self.id}:{line}"

    # --- commands

    def plan(self, *, rail: str, lines: Sequence[PayoutLine], at_us: int, operator: str = "") -> None:
        if self.version:
            raise DomainError("this payout is planned already")
        if operator:
            _check_name(operator)
        self.trigger(PayoutPlanned, at_us=at_us, rail=rail, lines=tuple(lines))
        if operator:
            self.trigger(PayoutProposed, at_us=at_us, operator=operator)

    def approve(self, *, operator: str, at_us: int, second_above_micro: int = 0) -> None:
        """Approving an approved payout changes nothing.

        Of more than `second_above_micro` (0: of any amount) it must be another operator than the one who planned it.
        """
        if self.cancelled:
            raise DomainError("this payout is cancelled")
        if not operator:
            raise DomainError("an approval names the operator")
        _check_name(operator)
        same = not self.planned_by or _same_person(operator, self.planned_by)
        if 0 < second_above_micro < self.total_micro and same:
            raise DomainError(
                f"{self.planned_by or 'nobody known'} planned this payout; of so much, somebody else must approve it"
            )
        if not self.approved_by:
            self.trigger(PayoutApproved, at_us=at_us, operator=operator)

    def cancel(self, *, reason: str, at_us: int) -> None:
        """Only before the first attempt. Cancelling a cancelled payout changes nothing."""
        if any(line.state is not LineState.PLANNED for line in self.lines.values()):
            raise DomainError("this payout has begun and cannot be cancelled; run it to its end")
        check_reason(reason)
        if not self.cancelled:
            self.trigger(PayoutCancelled, at_us=at_us, reason=reason)

    def attempt(self, line: int, *, at_us: int) -> None:
        """Must be saved before the rail is called. Of an unknown line: only when the rail has never seen its key."""
        before = self.lines[line]
        self.trigger(PayoutAttempted, at_us=at_us, line=line, attempt=before.attempt + 1, key=self.key(line))

    def resolve(self, line: int, answer: Answer, *, at_us: int) -> None:
        self.trigger(
            PayoutResolved,
            at_us=at_us,
            line=line,
            attempt=self.lines[line].attempt,
            outcome=answer.outcome.value,
            reference=answer.reference[:MAX_REFERENCE_CHARS],
        )

    # --- folding; every check comes before the first change

    def apply(self, event: Event) -> None:
        match event:
            case PayoutPlanned():
                self._apply_planned(event)
            case PayoutProposed():
                if self.version != 1 or not event.operator:
                    raise DomainError("who planned a payout is recorded with its plan")
                self.planned_by = event.operator
            case PayoutApproved():
                self.approved_by = event.operator
            case PayoutCancelled():
                self.cancelled = event.reason
            case PayoutAttempted():
                self._apply_attempted(event)
            case PayoutResolved():
                self._apply_resolved(event)
            case _:
                raise NoPayoutError(type(event).__name__)

    def _apply_planned(self, event: PayoutPlanned) -> None:
        numbers = [planned.line for planned in event.lines]
        if numbers != list(range(1, len(numbers) + 1)) or not 1 <= len(numbers) <= MAX_LINES:
            raise DomainError(f"a payout has 1 to {MAX_LINES} lines, numbered from 1")
        if len({planned.friend_id for planned in event.lines}) != len(numbers):
            raise DomainError("a payout pays each friend in one line")
        if any(planned.amount_micro <= 0 for planned in event.lines):
            raise DomainError("a payout line has an amount")
        self.rail, self.planned_us = event.rail, event.at_us
        self.lines = {planned.line: Line(planned) for planned in event.lines}

    def _apply_attempted(self, event: PayoutAttempted) -> None:
        line = self._line(event.line)
        if not self.approved_by or self.cancelled:
            raise DomainError("only an approved payout is run")
        if line.state not in (LineState.PLANNED, LineState.UNKNOWN):
            raise DomainError(f"line {event.line} is {line.state}: it is not attempted now")
        if event.attempt != line.attempt + 1 or event.key != self.key(event.line):
            raise DomainError(f"this is not the next attempt of line {event.line}")
        self.lines[event.line] = replace(line, state=LineState.ATTEMPTED, attempt=event.attempt)

    def _apply_resolved(self, event: PayoutResolved) -> None:
        line = self._line(event.line)
        if event.outcome == Outcome.ABSENT:
            raise DomainError("a line that the rail has never seen has no outcome")
        state = LineState(event.outcome)
        if state not in _MAY_BECOME[line.state] or event.attempt != line.attempt:
            raise DomainError(f"line {event.line} is {line.state} and cannot become {state}")
        if line.state is LineState.FAILED and not line.attempt:
            raise DomainError(f"line {event.line} was never attempted")
        if not self.approved_by or self.cancelled:
            raise DomainError("only an approved payout is run")
        self.lines[event.line] = replace(line, state=state, reference=event.reference)

    def _line(self, number: int) -> Line:
        try:
            return self.lines[number]
        except KeyError:
            raise DomainError(f"this payout has no line {number}") from None
