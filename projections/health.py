"""A node's health: how much the hub may count on it, from 0 to 1000, by integers alone.

Invariant: the score depends only on the node's latest probes and batches, newest counting most, so a node that
mends its ways is trusted again after HISTORY_LENGTH good probes, and no old merit excuses what it does now.

score = probes * (1000 + batches) / 2000, rounded down, where
- probes: the mean over the last 16 probes, the newest weighted 16, the oldest 1. Good counts 1000, slow 500, bad 0.
  Probes that have not been made yet count 500: a new node starts in the middle and has to show itself.
- batches: the same mean over the last 16 batches the node sent. Clean counts 1000, spoiled 0, not yet sent 1000.

Batches can at most halve the score, because a viewer who signs nonsense can spoil one; probes are the hub's own
eyes. Duplicate, late and capped receipts spoil nothing: they are no sign of bad service.
"""

from typing import Final

from ledger.verdict import VERDICTS, Verdict
from projections.schema import HISTORY_LENGTH

GOOD: Final = "."
SLOW: Final = "~"
BAD: Final = "x"

HEALTH_MAX: Final = 1000
_POINTS: Final = {GOOD: HEALTH_MAX, SLOW: HEALTH_MAX // 2, BAD: 0}

SPOILING: Final = frozenset(
    {
        Verdict.MALFORMED,
        Verdict.UNKNOWN_TICKET,
        Verdict.WRONG_NODE,
        Verdict.BAD_SIGNATURE,
        Verdict.OUT_OF_RANGE,
        Verdict.DIGEST_MISMATCH,
    }
)

_CLEAN: Final = bytes(code for code, verdict in enumerate(VERDICTS) if verdict not in SPOILING)


def batch_mark(verdicts: bytes) -> str:
    """The history character of a batch, from its verdicts as they stand in SegmentsServed."""
    return BAD if verdicts.translate(None, _CLEAN) else GOOD


def probe_mark(outcome: str) -> str:
    """The history character of a NodeProbed outcome; whatever is neither ok nor slow is bad."""
    return {"ok": GOOD, "slow": SLOW}.get(outcome, BAD)


def health(recent_probes: str, recent_batches: str) -> int:
    """0..1000 from two histories of marks, oldest first, at most HISTORY_LENGTH long."""
    probes = _mean(recent_probes, absent=HEALTH_MAX // 2)
    batches = _mean(recent_batches, absent=HEALTH_MAX)
    return probes * (HEALTH_MAX + batches) // (2 * HEALTH_MAX)


def _mean(history: str, *, absent: int) -> int:
    points = [absent] * (HISTORY_LENGTH - len(history)) + [_POINTS[mark] for mark in history]
    weights = range(1, HISTORY_LENGTH + 1)
    return sum(w * p for w, p in zip(weights, points, strict=True)) // sum(weights)
