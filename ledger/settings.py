"""The crew's numbers: caps, holds, factors. Each change is an event with the full set, so a replay uses those in force.

Invariant: settings are a function of the log's prefix. Unknown names and values out of range are refused.
"""

from typing import Final, Self

import msgspec

from ledger.aggregates.base import DomainError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    hold_s: int = 72 * 3600
    payout_threshold_micro: int = 1_000_000
    payout_batch_max_micro: int = 100_000_000_000  # of one payout
    payout_day_max_micro: int = 100_000_000_000  # given to rails in one UTC day, over all payouts
    # a payout of more is approved by somebody else than planned it; 0: never asked
    payout_second_above_micro: int = 0
    ticket_segments: int = 300  # about 10 minutes
    settle_by_s: int = 48 * 3600  # how long after its issue a ticket's receipts are taken
    ticket_bytes_max: int = 4_000_000_000
    plain_sample_factor: int = 10  # plain claims count at most this many times what the hub observed
    prefix_sessions_max: int = 2  # paid sessions per viewer network and segment
    same_network_forbidden: int = 1
    suspended_signed_paid: int = 1  # what viewers signed is paid also after the node was suspended
    # a node carries at most so many times what probes measured of its line; 0: no bound
    node_rate_factor: int = 4
    node_rate_floor: int = 5_000_000  # bytes a second that every node is believed to carry
    # what is within the rate is paid to the byte; 0: a part of a segment is left out
    rate_to_the_byte: int = 1
    # late delivery is paid by the tariff it was made under; 0: by that of the epoch that settles it
    late_by_own_tariff: int = 1
    floor_most_bp: int = 10_000  # a node's floor share, beside what it earns by weight; 0: no bound
    stale_after_s: int = 90 * 86_400  # a stream that was never live for so long is stale; 0: never
    rate_micro_per_gb: int = 10_000
    fee_bp: int = 500
    floor_bp: int = 1_000
    plain_bp: int = 5_000
    plain_income_cap_bp: int = 3_000

    @classmethod
    def recorded(cls, numbers: dict[str, int]) -> Self:
        """The settings that an event of the log puts in force, also one from before some of them existed."""
        return cls(**BEFORE).changed(numbers)

    def changed(self, changes: dict[str, int]) -> Self:
        """A copy with `changes`. Raises DomainError naming the setting that is unknown or out of range."""
        for name, value in changes.items():
            if name not in BOUNDS:
                raise DomainError(f"unknown setting {name!r}; known are {', '.join(sorted(BOUNDS))}")
            low, high = BOUNDS[name]
            if type(value) is not int or not low <= value <= high:
                raise DomainError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        return msgspec.structs.replace(self, **changes)

    def as_dict(self) -> dict[str, int]:
        return msgspec.structs.asdict(self)


_DAY: Final = 86_400
BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "hold_s": (0, 365 * _DAY),
    "payout_threshold_micro": (1, 10**15),
    "payout_batch_max_micro": (1, 10**15),
    "payout_day_max_micro": (0, 10**15),
    "payout_second_above_micro": (0, 10**15),
    "ticket_segments": (1, 512),
    "settle_by_s": (60, 30 * _DAY),
    "ticket_bytes_max": (1, 10**12),
    "plain_sample_factor": (0, 1_000),
    "prefix_sessions_max": (1, 1_000),
    "same_network_forbidden": (0, 1),
    "suspended_signed_paid": (0, 1),
    "node_rate_factor": (0, 1_000),
    "node_rate_floor": (0, 10**12),
    "rate_to_the_byte": (0, 1),
    "late_by_own_tariff": (0, 1),
    "floor_most_bp": (0, 10**6),
    "stale_after_s": (0, 10 * 365 * _DAY),
    "rate_micro_per_gb": (0, 10**12),
    "fee_bp": (0, 10_000),
    "floor_bp": (0, 10_000),
    "plain_bp": (0, 10_000),
    "plain_income_cap_bp": (0, 9_999),
}

# What held before a setting existed, where that is not its default: a hub that knew no such rule did not apply it.
BEFORE: Final[dict[str, int]] = {
    "suspended_signed_paid": 0,
    "node_rate_factor": 0,
    "rate_to_the_byte": 0,
    "late_by_own_tariff": 0,
    "floor_most_bp": 0,
    "stale_after_s": 0,
}
