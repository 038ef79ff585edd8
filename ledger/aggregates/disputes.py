"""Disputes: what each decision moves, and what an adjustment may touch.

Invariant: a decision moves exactly the disputed line's amount, once, and its transfer names the settlement it rests on.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ledger import money
from ledger.aggregates.base import DomainError
from ledger.aggregates.movements import move
from ledger.events import Transfer

OPENERS: Final = ("operator", "friend", "creator")
MAX_REASON_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class Dispute:
    """A settlement line that does not move until somebody decides."""

    number: int
    epoch: int
    position: int
    settled_version: int
    line: int
    friend_id: UUID
    stream_id: UUID
    amount_micro: int
    opened_by: str
    reason: str
    opened_us: int
    state: str = "open"  # "open" | "upheld" | "rejected"
    decision: str = ""


def upheld(dispute: Dispute) -> Transfer:
    pending = money.friend_account(dispute.friend_id, "pending")
    budget = money.budget_account(dispute.stream_id)
    return move("dispute_upheld", pending, budget, dispute.amount_micro, (dispute.position,))


def rejected(dispute: Dispute) -> Transfer:
    pending, available = (money.friend_account(dispute.friend_id, s) for s in ("pending", "available"))
    return move("dispute_rejected", pending, available, dispute.amount_micro, (dispute.position,))


def check_reason(reason: str) -> None:
    """It stays in the log, which cannot forget: a word, not a story."""
    if not 1 <= len(reason) <= MAX_REASON_CHARS or not reason.isascii() or not reason.isprintable():
        raise DomainError(f"a reason has 1 to {MAX_REASON_CHARS} printable ASCII characters")


def adjustable_kind(account: str) -> str:
    """What an adjustment may touch: "budget", "fees" or "friend"; empty for any other account."""
    kind, _, rest = account.partition(":")
    try:
        if account == money.FEES:
            return "fees"
        if kind == "budget" and money.budget_account(UUID(rest)) == account:
            return kind
        friend, _, _ = rest.partition(":")
        if kind == "friend" and money.friend_account(UUID(friend), "available") == account:
            return kind
    except ValueError:
        pass
    return ""
