"""Payments that a rail was given and the ledger knows nothing of: its database is from an older backup.

Invariant: while there is one, nothing begins that might pay it again (docs/adr/0038).
"""

from collections.abc import Iterable
from uuid import UUID

from ledger.aggregates.payout import Payout
from ledger.application import Ledger, NotFound
from ledger.rails.given import Given, kind_of
from ledger.services.payouts.lines import load


class LostPayments(Exception):
    """Payments were given to a rail that the ledger knows nothing of."""

    exit_code = 5

    def __init__(self, batch_id: UUID, kind: str, what: str, or_else: str = "") -> None:
        super().__init__(
            f"the payment files hold {what} of payout {batch_id} ({kind}), and the ledger knows nothing of that: the "
            f"database is older than what was paid. Restore a newer one; docs/operators.md, Backup, if there is none."
            f"{or_else}"
        )


def refuse_lost(ledger: Ledger, payout: Payout, given: Given) -> None:
    """Raises LostPayments for what was given and is in no payout, or was given by another rail than the payout's."""
    for batch_id, kinds in given.items():
        for kind, lines in kinds.items():
            other = payout if batch_id == payout.id else _found(ledger, batch_id)
            mine = other is not None and kind == kind_of(other.rail)
            strange = lines - other.lines.keys() if other is not None and mine else lines
            if strange:
                raise LostPayments(batch_id, kind, lines_text(strange))


def not_taken_up(ledger: Ledger, payout: Payout, given: Given) -> LostPayments | None:
    """Lines of another payout that a rail was given, while the ledger never began them: whom they paid, only that
    payout's own run can tell, and this one might pay the same people."""
    for batch_id, kinds in given.items():
        other = _found(ledger, batch_id) if batch_id != payout.id else None
        for kind, lines in kinds.items() if other is not None else ():
            if begun := sorted(n for n in lines if other is not None and not other.lines[n].attempt):
                return LostPayments(batch_id, kind, lines_text(begun), " Or run that payout first.")
    return None


def _found(ledger: Ledger, batch_id: UUID) -> Payout | None:
    try:
        return load(ledger, batch_id)
    except NotFound:
        return None


def lines_text(lines: Iterable[int]) -> str:
    return f"line{'s' if len(found := sorted(lines)) > 1 else ''} {', '.join(map(str, found))}"
