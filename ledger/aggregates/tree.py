"""Tree: state leaves, the books' fingerprint written into the log itself before each checkpoint.

Invariant: a state leaf is a function of the balances after all events before its `position`, and positions only grow.
The fingerprint is SHA-256 over one line for each account whose balance is not zero, `account TAB amount_micro LF`
(UTF-8, decimal, a minus sign for debts), sorted by the account's bytes (docs/auditors.md).
"""

import hashlib
from collections.abc import Mapping
from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.events import Event, StateRecorded
from ledger.ids import TREE_ID


def balances_digest(balances: Mapping[str, int]) -> tuple[int, bytes]:
    """(accounts with a balance, SHA-256 of the sorted lines). Amounts in micro-units."""
    nonzero = sorted((account.encode(), amount) for account, amount in balances.items() if amount)
    digest = hashlib.sha256()
    for account, amount in nonzero:
        digest.update(b"%s\t%d\n" % (account, amount))
    return len(nonzero), digest.digest()


class Tree(Aggregate):
    def __init__(self, aggregate_id: UUID = TREE_ID) -> None:
        super().__init__(aggregate_id)
        self.position = -1  # of the last state leaf: the number of events its balances cover

    @classmethod
    def after(cls, event: StateRecorded) -> "Tree":
        """As it is after its newest event: the fold of millions of state leaves is the last of them."""
        tree = cls(event.originator_id)
        tree.position, tree.version = event.position, event.originator_version
        return tree

    def record(self, *, position: int, balances: Mapping[str, int], at_us: int) -> None:
        """`balances` are those after all events before `position`."""
        if position <= self.position:
            raise DomainError(f"a state leaf covers {self.position} events already; {position} is not more")
        accounts, digest = balances_digest(balances)
        self.trigger(StateRecorded, at_us=at_us, position=position, accounts=accounts, balances_sha256=digest)

    def apply(self, event: Event) -> None:
        if not isinstance(event, StateRecorded):
            raise TypeError(type(event).__name__)
        self.position = event.position
