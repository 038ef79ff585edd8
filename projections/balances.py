"""Balances: what every account holds.

Invariant: an account's amount is the sum of all postings to it, and the sum over all accounts is zero.
"""

from typing import Any, Final

from sqlalchemy import Table

from ledger import events as e
from projections import base
from projections.excerpts import Transfer
from projections.fold import Tally
from projections.schema import Tables

SINGLE: Final = (
    e.BudgetDeposited,
    e.BudgetWithdrawn,
    e.PayoutLineReserved,
    e.PayoutLineConfirmed,
    e.PayoutLineFailed,
    e.PayoutLineReturned,
    e.AdjustmentBooked,
)
PAGES: Final = (e.EpochSettled, e.HoldsReleased, e.DisputeUpheld, e.DisputeRejected)


class Balances(base.Projection):
    name = "balances"
    version = 1
    ignores = base.EVERY - base.MONEY | {e.DisputeOpened}

    def __init__(self, tables: Tables) -> None:
        self._accounts = Tally(tables.balances)
        self._change = self._accounts.changer("amount_micro", "last_position")
        handles: dict[type[e.Event], base.Handler] = dict.fromkeys(SINGLE, self._single)
        self.use([self._accounts], handles | dict.fromkeys(PAGES, self._page))

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.balances,)

    def _single(self, event: Any, position: int) -> None:
        self._post(event.transfer, position)

    def _page(self, event: Any, position: int) -> None:
        for transfer in event.transfers:
            self._post(transfer, position)

    def _post(self, transfer: Transfer, position: int) -> None:
        base.check_balanced(transfer, position)
        change = self._change
        for account, amount_micro in transfer.postings:
            change(account, amount_micro, position)
