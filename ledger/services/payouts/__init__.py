"""Payouts: plan -> approve -> run -> reconcile.

Invariant: killing the process at any instruction loses nothing and pays nobody twice. A line's money is reserved and
its attempt recorded in one save before the rail is called; what the rail answered and where the money went is one
save after it. Whoever comes next finds in the log how far the line came, and asks the rail about its key.
"""

from ledger.services.payouts.lines import OVERPAID, RETURNED, LineResult, batches, load
from ledger.services.payouts.lost import LostPayments
from ledger.services.payouts.planning import Plan, Waiting, approve, cancel, plan
from ledger.services.payouts.reconciling import reconcile
from ledger.services.payouts.running import run, to_submit

__all__ = [
    "OVERPAID",
    "RETURNED",
    "LineResult",
    "LostPayments",
    "Plan",
    "Waiting",
    "approve",
    "batches",
    "cancel",
    "load",
    "plan",
    "reconcile",
    "run",
    "to_submit",
]
