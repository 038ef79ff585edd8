"""What an audit says: everything holds, or the first thing that does not.

Invariant: a report is `ok` exactly when it names no problem; amounts are integers of micro-units.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from ledger.checks import AuditFailure as AuditFailure


class NothingThere(Exception):
    """There is no checkpoint at the source."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Problem:
    reason: str
    position: int | None = None
    file: str | None = None


@dataclass(slots=True)
class Counts:
    """What was checked. `signatures` counts Ed25519 verifications, the checkpoint's among them."""

    events: int = 0
    tickets: int = 0
    batches: int = 0
    receipts: int = 0
    accepted: int = 0
    credited_bytes: int = 0
    signatures: int = 0
    epochs: int = 0
    transfers: int = 0
    state_leaves: int = 0
    payout_lines: int = 0


@dataclass(slots=True)
class Open:
    """What breaks no rule, and is for people to look at: a hub may be slow, or take its time."""

    unsettled_bytes: int = 0  # credited, and in no settlement yet
    overdue_micro: int = 0  # still held, though the hold is over
    in_flight_micro: int = 0  # given to a rail that has not answered for good
    disputes: int = 0  # nobody has decided yet
    dated_back_s: int = (
        0  # the most that an event is dated before one that stands before it, when over a minute
    )
    dated_back_at: int | None = None  # its position


@dataclass(slots=True)
class Report:
    """The outcome of an audit of the first `size` events."""

    source: str
    origin: str = ""
    size: int = 0
    root: str = ""  # hex
    checkpoint: str = ""  # the signed note, to keep for the next audit
    vkey: str = ""
    pinned: bool = False  # the key was given by the auditor, not taken from the log's own folder
    cosigned_s: dict[str, int] = field(default_factory=dict)  # witness -> when, Unix seconds; those asked for
    consistent_with: int | None = None  # size of the checkpoint the auditor had kept
    resumed_from: int = 0  # the events before were replayed by an earlier audit of this auditor
    counts: Counts = field(default_factory=Counts)
    open: Open = field(default_factory=Open)
    paid_micro: int = 0  # all that ever reached friends' `paid` accounts
    balances: dict[str, int] = field(default_factory=dict)  # account -> micro-units, where not zero
    problem: Problem | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}
