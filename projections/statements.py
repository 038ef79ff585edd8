"""Statements: for each friend, every reason why money was earned or moved, one line each.

Invariant: the sum of a friend's `earned` lines is what was ever credited to them, and each later line moves a part of
it: `released` makes it available, `payout_reserved` puts it in flight, `payout_confirmed` pays it out and
`payout_failed` makes it available again. `disputed` freezes a line; `dispute_upheld` takes its amount away, and
`dispute_rejected` lets it be released. `adjusted_up` and `adjusted_down` are corrections of what is available. Amounts
are what was earned, frozen or moved, never negative.
"""

from typing import Any, Final

from sqlalchemy import Table

from ledger import events as e
from projections import base
from projections.fold import ProjectionError, Rows
from projections.schema import Tables

PAYOUT_KINDS: Final[dict[type[e.Event], str]] = {
    e.PayoutLineReserved: "payout_reserved",
    e.PayoutLineConfirmed: "payout_confirmed",
    e.PayoutLineFailed: "payout_failed",
}
DISPUTE_KINDS: Final[dict[type[e.Event], str]] = {
    e.DisputeOpened: "disputed",
    e.DisputeUpheld: "dispute_upheld",
    e.DisputeRejected: "dispute_rejected",
}
_EMPTY: Final[dict[str, Any]] = {
    "epoch": None,
    "stream_id": None,
    "node_id": None,
    "units": 0,
    "credited_bytes": 0,
    "rate_micro_per_gb": 0,
    "batch_id": None,
    "payout_line": None,
}


class Statements(base.Projection):
    name = "statements"
    version = 1
    ignores = (
        base.CREW
        | base.STREAM
        | base.BROADCAST
        | base.SESSION
        | base.DELIVERY
        | base.INVITE
        | base.NODE
        | base.TARIFF
        | base.PAYOUT
        | base.TREE
        | {e.BudgetDeposited, e.BudgetWithdrawn}
    )

    def __init__(self, tables: Tables) -> None:
        self._lines = Rows(tables.statements)
        handles: dict[type[e.Event], base.Handler] = dict.fromkeys(PAYOUT_KINDS, self._payout)
        handles |= {e.EpochSettled: self._settled, e.HoldsReleased: self._released}
        handles |= dict.fromkeys(DISPUTE_KINDS, self._disputed)
        handles[e.AdjustmentBooked] = self._adjusted
        self.use([self._lines], handles)

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.statements,)

    def _settled(self, event: e.EpochSettled, position: int) -> None:
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
                batch_id=None,
                payout_line=None,
            )

    def _released(self, event: e.HoldsReleased, position: int) -> None:
        for number, transfer in enumerate(event.transfers):
            self._moved("released", event, position, number, transfer, epoch=event.epoch)

    def _payout(self, event: Any, position: int) -> None:
        kind = PAYOUT_KINDS[type(event)]
        reference = {"batch_id": event.batch_id, "payout_line": event.line}
        self._moved(kind, event, position, 0, event.transfer, **reference)

    def _disputed(self, event: Any, position: int) -> None:
        self._lines.make(
            event.friend_id,
            position,
            0,
            kind=DISPUTE_KINDS[type(event)],
            at_us=event.at_us,
            reason=event.reason,
            amount_micro=event.amount_micro,
            **_EMPTY,
        )

    def _adjusted(self, event: e.AdjustmentBooked, position: int) -> None:
        for posting in event.transfer.postings:
            if base.friend_of(posting.account) is not None:
                kind = "adjusted_up" if posting.amount_micro > 0 else "adjusted_down"
                self._moved(kind, event, position, 0, event.transfer)

    def _moved(
        self, kind: str, event: e.Event, position: int, number: int, transfer: e.Transfer, **more: Any
    ) -> None:
        """The line of a transfer from one pot of a friend to another."""
        friends = {base.friend_of(p.account) for p in transfer.postings} - {None}
        friend_id = next(iter(friends), None)
        if len(friends) != 1 or friend_id is None:
            raise ProjectionError(
                f"the transfer at position {position} does not move the money of one friend"
            )
        amount_micro = sum(p.amount_micro for p in transfer.postings if p.amount_micro > 0)
        values = _EMPTY | more
        self._lines.make(
            friend_id,
            position,
            number,
            kind=kind,
            at_us=event.at_us,
            reason=transfer.reason,
            amount_micro=amount_micro,
            **values,
        )
