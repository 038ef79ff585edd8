"""Statements: for each friend, every reason why money was earned or moved, one line each.

Invariant: the sum of a friend's `earned` lines is what was ever credited to them, and each later line moves a part of
it: `released` makes it available, `payout_reserved` puts it in flight, `payout_confirmed` pays it out, and
`payout_failed`, or `payout_returned` when it had been paid, makes it available again. `disputed` freezes a line;
`dispute_upheld` takes its amount away, and `dispute_rejected` lets it be released. `adjusted_up` and `adjusted_down`
are corrections of what is available. Amounts are what was earned, frozen or moved, never negative.
"""

from functools import partial
from typing import Any, Final

from sqlalchemy import Table

from ledger import events as e
from projections import base
from projections import excerpts as x
from projections.fold import ProjectionError, Rows
from projections.schema import Tables

PAYOUT_KINDS: Final[dict[type[e.Event], str]] = {
    e.PayoutLineReserved: "payout_reserved",
    e.PayoutLineConfirmed: "payout_confirmed",
    e.PayoutLineFailed: "payout_failed",
    e.PayoutLineReturned: "payout_returned",
}
DISPUTE_KINDS: Final[dict[type[e.Event], str]] = {
    e.DisputeOpened: "disputed",
    e.DisputeUpheld: "dispute_upheld",
    e.DisputeRejected: "dispute_rejected",
}
# Of what did not come from a settlement.
_NO_DELIVERY: Final = {"units": 0, "credited_bytes": 0, "rate_micro_per_gb": 0}


class Statements(base.Projection):
    name = "statements"
    version = 2
    ignores = base.EVERY - base.MONEY | {e.BudgetDeposited, e.BudgetWithdrawn}

    def __init__(self, tables: Tables) -> None:
        self._lines = Rows(tables.statements)
        self._make_moved = self._lines.maker(
            "kind", "at_us", "reason", "amount_micro", "epoch", "batch_id", "payout_line", *_NO_DELIVERY
        )
        handles: dict[type[e.Event], base.Handler] = {
            e.EpochSettled: self._settled,
            e.HoldsReleased: self._released,
            e.AdjustmentBooked: self._adjusted,
        }
        handles |= {event: partial(self._payout, kind) for event, kind in PAYOUT_KINDS.items()}
        handles |= {event: partial(self._disputed, kind) for event, kind in DISPUTE_KINDS.items()}
        self.use([self._lines], handles)

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.statements,)

    def _settled(self, event: x.EpochSettled, position: int) -> None:
        for number, line in enumerate(event.lines):
            self._lines.make(
                line.friend_id,
                position,
                number,
                kind="earned",
                at_us=event.at_us,
                epoch=event.epoch,
                stream_id=line.stream_id,
                node_id=line.node_id,
                reason=line.reason,
                units=line.units,
                credited_bytes=line.credited_bytes,
                rate_micro_per_gb=line.rate_micro_per_gb,
                amount_micro=line.amount_micro,
            )

    def _released(self, event: x.HoldsReleased, position: int) -> None:
        for number, transfer in enumerate(event.transfers):
            self._moved("released", event, position, number, transfer, epoch=event.epoch)

    def _payout(self, kind: str, event: Any, position: int) -> None:
        why = event.reason if isinstance(event, x.PayoutLineReturned) else ""
        place = {"batch_id": event.batch_id, "payout_line": event.line}
        self._moved(kind, event, position, 0, event.transfer, why=why, **place)

    def _disputed(self, kind: str, event: Any, position: int) -> None:
        self._lines.make(
            event.friend_id,
            position,
            0,
            kind=kind,
            at_us=event.at_us,
            reason=event.reason,
            amount_micro=event.amount_micro,
            **_NO_DELIVERY,
        )

    def _adjusted(self, event: x.AdjustmentBooked, position: int) -> None:
        for account, amount_micro in event.transfer.postings:
            if base.friend_of(account) is not None:
                kind = "adjusted_up" if amount_micro > 0 else "adjusted_down"
                self._moved(kind, event, position, 0, event.transfer, why=event.reason)

    def _moved(
        self,
        kind: str,
        event: x.Excerpt,
        position: int,
        number: int,
        transfer: x.Transfer,
        *,
        epoch: int | None = None,
        batch_id: bytes | None = None,
        payout_line: int | None = None,
        why: str = "",
    ) -> None:
        """The line of a transfer from one pot of a friend to another; `why`: what a person wrote."""
        friend_id, amount_micro = None, 0
        for account, amount in transfer.postings:
            friend = base.friend_of(account)
            if friend is not None:
                if friend_id is not None and friend != friend_id:
                    raise _not_of_one_friend(position)
                friend_id = friend
            if amount > 0:
                amount_micro += amount
        if friend_id is None:
            raise _not_of_one_friend(position)
        key = (friend_id, position, number)
        self._make_moved(
            key,
            kind,
            event.at_us,
            why or transfer.reason,
            amount_micro,
            epoch,
            batch_id,
            payout_line,
            0,
            0,
            0,
        )


def _not_of_one_friend(position: int) -> ProjectionError:
    return ProjectionError(f"the transfer at position {position} does not move the money of one friend")
