"""Payouts: each batch with its lines, what was attempted and what came of it.

Invariant: a line is `confirmed` or `failed` only after the book moved its money; what the rail answered stands beside
it in `outcome`, and what came back of it later in `returned_micro`.
"""

from typing import Any

from sqlalchemy import Table

from ledger import events as e
from projections import base
from projections import excerpts as x
from projections.fold import Rows
from projections.schema import Tables


class Payouts(base.Projection):
    name = "payouts"
    version = 3
    ignores = (base.EVERY - base.PAYOUT - base.MONEY | base.DISPUTES) | {
        e.BudgetDeposited,
        e.BudgetWithdrawn,
        e.EpochSettled,
        e.HoldsReleased,
        e.AdjustmentBooked,
    }

    def __init__(self, tables: Tables) -> None:
        self._batches = Rows(tables.payouts)
        self._lines = Rows(tables.payout_lines)
        self._touch = self._batches.changer("last_position")
        self._attempt = self._lines.changer("state", "attempts", "attempt_key", "last_position")
        self.use(
            [self._batches, self._lines],
            {
                e.PayoutPlanned: self._planned,
                e.PayoutProposed: self._proposed,
                e.PayoutApproved: self._approved,
                e.PayoutCancelled: self._cancelled,
                e.PayoutAttempted: self._attempted,
                e.PayoutResolved: self._resolved,
                e.PayoutLineReserved: self._reserved,
                e.PayoutLineConfirmed: self._confirmed,
                e.PayoutLineFailed: self._failed,
                e.PayoutLineReturned: self._returned,
            },
        )

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.payouts, tables.payout_lines)

    def _planned(self, event: x.PayoutPlanned, position: int) -> None:
        self._batches.make(
            event.originator_id,
            rail=event.rail,
            planned_us=event.at_us,
            lines=len(event.lines),
            total_micro=sum(line.amount_micro for line in event.lines),
            state="planned",
            planned_by="",
            decided_by="",
            reason="",
            last_position=position,
        )
        for line in event.lines:
            self._lines.make(
                event.originator_id,
                line.line,
                friend_id=line.friend_id,
                amount_micro=line.amount_micro,
                state="planned",
                attempts=0,
                attempt_key="",
                outcome="",
                reference="",
                returned_micro=0,
                last_position=position,
            )

    def _proposed(self, event: x.PayoutProposed, position: int) -> None:
        self._batches.change(event.originator_id, planned_by=event.operator, last_position=position)

    def _approved(self, event: x.PayoutApproved, position: int) -> None:
        self._decided(event, position, state="approved", decided_by=event.operator)

    def _cancelled(self, event: x.PayoutCancelled, position: int) -> None:
        self._decided(event, position, state="cancelled", reason=event.reason)

    def _decided(self, event: x.Excerpt, position: int, **values: Any) -> None:
        self._batches.change(event.originator_id, decided_us=event.at_us, last_position=position, **values)

    def _attempted(self, event: x.PayoutAttempted, position: int) -> None:
        line = (event.originator_id, event.line)
        self._attempt(line, "attempted", event.attempt, event.key, position)
        self._touch(event.originator_id, position)

    def _resolved(self, event: x.PayoutResolved, position: int) -> None:
        known = {} if event.outcome != "unknown" else {"state": "unknown"}
        self._line(
            event.originator_id,
            event.line,
            position,
            outcome=event.outcome,
            reference=event.reference,
            **known,
        )

    def _reserved(self, event: x.PayoutLineReserved, position: int) -> None:
        self._line(event.batch_id, event.line, position, state="reserved")

    def _confirmed(self, event: x.PayoutLineConfirmed, position: int) -> None:
        self._line(event.batch_id, event.line, position, state="confirmed")

    def _failed(self, event: x.PayoutLineFailed, position: int) -> None:
        self._line(event.batch_id, event.line, position, state="failed")

    def _returned(self, event: x.PayoutLineReturned, position: int) -> None:
        _, amount_micro = event.transfer.postings[-1]
        self._line(event.batch_id, event.line, position, returned_micro=amount_micro)

    def _line(self, batch_id: bytes, line: int, position: int, **values: Any) -> None:
        self._lines.change(batch_id, line, last_position=position, **values)
        self._touch(batch_id, position)
