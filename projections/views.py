"""What the read models say of one thing each: an account, a line, a node, a stream, a payout, how far they are.

Invariant: amounts are integer micro-units, times Unix microseconds, sizes bytes, positions those of the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Balance:
    account: str
    amount_micro: int
    last_position: int  # of the last transfer that touched it


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One reason why money was earned by or moved for a friend."""

    friend_id: UUID
    position: int
    line: int  # within the position; (position, line) is the cursor for `before`
    kind: (
        str  # "earned" | "released" | one of PAYOUT_KINDS or DISPUTE_KINDS | "adjusted_up" | "adjusted_down"
    )
    at_us: int
    epoch: int | None
    stream_id: UUID | None
    node_id: UUID | None
    reason: str
    units: int
    credited_bytes: int
    rate_micro_per_gb: int
    amount_micro: int
    batch_id: UUID | None
    payout_line: int | None


@dataclass(frozen=True, slots=True)
class Carried:
    """A friend's part in a stream, as it was settled."""

    friend_id: UUID
    credited_bytes: int
    earned_micro: int


@dataclass(frozen=True, slots=True)
class NodeView:
    node_id: UUID
    friend_id: UUID
    state: str  # "joined" | "online" | "offline" | "suspended" | "retired"
    state_reason: str  # why it was suspended or retired
    health: int  # 0..1000, projections.health
    joined_us: int
    last_seen_us: int
    last_position: int  # of the last event about it
    probes_ok: int
    probes_bad: int
    receipts_accepted: int
    receipts_refused: int
    verdicts: Mapping[str, int]  # receipts by ledger.verdict.Verdict
    caps: Mapping[str, int]  # those that were capped by ledger.verdict.Cap
    credited_units: int  # segments
    credited_bytes: int


@dataclass(frozen=True, slots=True)
class StreamView:
    stream_id: UUID
    slug: str
    owner_id: UUID
    state: str  # "READY" | "LIVE" | "OFFLINE" | "ARCHIVED" | "STALE"
    interrupted: bool  # LIVE, but the publisher is away and within its grace period
    broadcast_id: UUID | None  # the current one; None when not LIVE
    rendition_id: UUID | None  # of the current broadcast
    broadcasts: int
    segments: int
    published_bytes: int
    duration_us: int
    sessions: int  # opened, over all broadcasts
    registered_us: int
    started_us: int | None  # of the latest broadcast
    ended_us: int | None  # of the latest broadcast; None while LIVE
    last_sequence: int | None
    last_position: int


@dataclass(frozen=True, slots=True)
class PayoutLineView:
    line: int
    friend_id: UUID
    amount_micro: int
    state: str  # "planned" | "reserved" | "attempted" | "unknown" | "confirmed" | "failed"
    attempts: int
    attempt_key: str  # the deterministic key of the last attempt
    outcome: str  # what the rail said last: "" | "confirmed" | "failed" | "unknown"
    reference: str  # the rail's own
    returned_micro: int  # came back after it was confirmed
    last_position: int


@dataclass(frozen=True, slots=True)
class PayoutView:
    batch_id: UUID
    number: int  # by which the commands know it: 1, 2, ...
    rail: str
    state: str  # "planned" | "approved" | "cancelled" | "finished" (every line confirmed or failed)
    planned_us: int
    planned_by: str  # the operator; "" when it was not recorded yet
    decided_us: int | None
    decided_by: str
    reason: str
    total_micro: int
    confirmed_micro: int
    failed_micro: int
    returned_micro: int  # of what was confirmed
    line_count: int
    waiting_lines: int  # planned, and not yet given to the rail
    lines: tuple[PayoutLineView, ...]  # empty in `payouts()`
    last_position: int


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a projection is behind the log."""

    name: str
    version: int
    position: int  # events 0..position-1 are applied
    events: int  # not yet applied
    behind_us: int  # age of the oldest event that is not applied; 0 when there is none
    stopped: str  # why it cannot apply the event at `position`; "" while it goes on
