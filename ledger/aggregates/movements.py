"""Movements: transfers in the one form that each reason has.

Invariant: a transfer made here sums to zero and moves a positive amount between two accounts; what is read from a log
is compared with what would have been made.
"""

from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

from ledger import money
from ledger.aggregates.base import DomainError
from ledger.events import Posting, SettlementLine, Transfer


def move(
    reason: str, source: str, target: str, amount_micro: int, rests_on: tuple[int, ...] = ()
) -> Transfer:
    """Raises DomainError for an amount that cannot be moved."""
    if not 0 < amount_micro <= money.MAX_AMOUNT_MICRO:
        raise DomainError(f"an amount is a whole number from 1 to {money.MAX_AMOUNT_MICRO} micro-units")
    return Transfer(reason, (Posting(source, -amount_micro), Posting(target, amount_micro)), rests_on)


def friend_move(reason: str, friend_id: UUID | str, source: str, target: str, amount_micro: int) -> Transfer:
    source, target = money.friend_account(friend_id, source), money.friend_account(friend_id, target)
    return move(reason, source, target, amount_micro)


def amount_of(transfer: Transfer, reason: str, source: str, target: str) -> int:
    """The amount, when the transfer is exactly `source -> target` for that reason."""
    amount = transfer.postings[-1].amount_micro if transfer.postings else 0
    if transfer != move(reason, source, target, amount):
        raise DomainError(f"a {reason} moves one amount from {source} to {target}")
    return amount


def friend_of(transfer: Transfer) -> UUID:
    try:
        return UUID(transfer.postings[0].account.split(":")[1])
    except (IndexError, ValueError):
        raise DomainError("a payout line moves the money of one friend") from None


def earned(lines: Iterable[SettlementLine], transfers: Iterable[Transfer]) -> dict[str, int]:
    """Friend (the id's text) -> earned on this page. Raises DomainError unless lines and transfers say the same.

    Money may only go from a budget to its streams' friends (pending, as the lines say) and to the fees.
    """
    # Keyed by plain integers: a book is folded from thousands of pages, and hashing a UUID is slow.
    said: dict[tuple[int, int], int] = defaultdict(int)
    for line in lines:
        if line.amount_micro < 0:
            raise DomainError("a settlement line is never negative")
        said[line.stream_id.int, line.friend_id.int] += line.amount_micro
    earned_by: dict[str, int] = defaultdict(int)
    expected: dict[tuple[str, str], int] = {}
    for (stream, friend), amount in said.items():
        if amount:
            friend_id = str(UUID(int=friend))
            earned_by[friend_id] += amount
            source = money.budget_account(UUID(int=stream))
            expected[source, money.friend_account(friend_id, "pending")] = amount
    done: dict[tuple[str, str], int] = defaultdict(int)
    for transfer in transfers:
        source, target = (p.account for p in transfer.postings) if len(transfer.postings) == 2 else ("", "")
        reason = "platform_fee" if target == money.FEES else "settlement"
        amount = amount_of(transfer, reason, source, target)
        if not source.startswith("budget:"):
            raise DomainError("a settlement is paid from budgets")
        if target != money.FEES:
            done[source, target] += amount
    if done != expected:
        raise DomainError("the lines of a settlement and its transfers differ")
    return earned_by
