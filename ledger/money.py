"""Money is integers of micro-units, and this is the only place that divides it.

Invariant: what is split is conserved. `sum(parts) + unallocated == total`, no part is negative, no rounding ever adds
a micro-unit, and the result does not depend on the order of the input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from uuid import UUID

BP: Final = 10_000  # basis points in a whole
BYTES_PER_GB: Final = 1_000_000_000
MICRO: Final = 1_000_000  # micro-units in one unit of account
# JSON readers keep integers exactly only up to here (RFC 8259 section 6); a billion units is enough for a crew.
MAX_AMOUNT_MICRO: Final = (1 << 53) - 1

EXTERNAL: Final = "external"
FEES: Final = "fees"


def budget_account(stream_id: UUID) -> str:
    return f"budget:{stream_id}"


def friend_account(friend_id: UUID | str, state: str) -> str:
    """`friend_id` may be given as the id's text; `state` is pending, available, in_flight or paid."""
    return f"friend:{friend_id}:{state}"


K = TypeVar("K", str, int, tuple[int, str])  # whatever has one order everywhere


@dataclass(frozen=True, slots=True)
class Apportioned(Generic[K]):
    parts: dict[K, int]  # one for every key of the weights
    unallocated: int  # all of the total when every weight is zero, else 0


def apportion(total: int, weights: Mapping[K, int]) -> Apportioned[K]:
    """Split `total` by weight with the largest remainder method; equal remainders go by key, ascending.

    A larger weight never gets less than a smaller one and a weight of zero gets nothing. Raises ValueError for a
    negative total or weight.
    """
    if total < 0 or any(w < 0 for w in weights.values()):
        raise ValueError("only amounts and weights of zero or more can be split")
    whole = sum(weights.values())
    if whole == 0:
        return Apportioned(dict.fromkeys(sorted(weights), 0), total)
    parts: dict[K, int] = {}
    remainders: list[tuple[int, K]] = []
    for key in sorted(weights):
        parts[key], remainder = divmod(total * weights[key], whole)
        remainders.append((-remainder, key))
    left = total - sum(parts.values())
    for _, key in sorted(remainders)[:left]:
        parts[key] += 1
    return Apportioned(parts, 0)


def share_bp(amount: int, bp: int) -> int:
    """`bp` hundredths of a percent of `amount`, rounded down. Raises ValueError unless 0 <= bp <= 10,000."""
    if amount < 0 or not 0 <= bp <= BP:
        raise ValueError("a share is 0 to 10,000 basis points of an amount of zero or more")
    return amount * bp // BP


def price_micro(weighted_bytes: int, rate_micro_per_gb: int) -> int:
    """What `weighted_bytes` (bytes times basis points of a full byte) cost, rounded down."""
    if weighted_bytes < 0 or rate_micro_per_gb < 0:
        raise ValueError("bytes and rates are zero or more")
    return weighted_bytes * rate_micro_per_gb // (BYTES_PER_GB * BP)


def most_beside(other: int, cap_bp: int) -> int | None:
    """The largest x that is at most `cap_bp` of `x + other`; None when every x is (a cap of 100 %)."""
    if other < 0 or not 0 <= cap_bp <= BP:
        raise ValueError("a cap is 0 to 10,000 basis points beside an amount of zero or more")
    return None if cap_bp == BP else other * cap_bp // (BP - cap_bp)


def part_of(total: int, units: int, of_units: int) -> int:
    """The part of `total` that `units` out of `of_units` stand for, rounded down."""
    if not 0 <= units <= of_units or total < 0:
        raise ValueError("a part is between nothing and the whole")
    return total * units // of_units if of_units else 0


def decimal_text(amount_micro: int) -> str:
    """Exact decimal text in whole units, for people and for files: 1234500 -> "1.234500"."""
    whole, micro = divmod(abs(amount_micro), MICRO)
    return f"{'-' if amount_micro < 0 else ''}{whole}.{micro:06d}"
