"""Which streams a spot check can leave alone for a while: nobody watches, and nothing has changed since the last one.

Invariant: a stream that somebody watches, or that may be carried by a node which is new, has moved or whose health is
still finding its level, is checked at every turn; any other at the first turn after `REST_S_MAX`, at the latest. What a
node says of itself counts for nothing: who watches is what the hub counts.

A check costs a node as much as a viewer while it lasts. A node that serves nobody can cheat nobody; as soon as it has a
viewer, it is checked as often as ever.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hub.viewings import SEEN_S
from projections.schema import HISTORY_LENGTH

# At random between these, or nodes would know when.
REST_S_MIN: Final = 60.0
REST_S_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class Carrier:
    """A node that is alive."""

    node_id: UUID
    url: str
    health: int
    checks: int  # that were ever made


@dataclass(frozen=True, slots=True)
class _Check:
    ended_s: float
    rest_s: float
    carriers: frozenset[tuple[UUID, str, int]]


class Calm:
    def __init__(self, rng: random.Random, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._rng = rng
        self._clock_s = clock_s
        self._checks: dict[str, _Check] = {}

    def can_wait(self, slug: str, carriers: list[Carrier], viewers: Callable[[], int]) -> bool:
        """`viewers`: how many the hub counts, its own check of a moment ago among them. Asked only where it matters."""
        last = self._checks.get(slug)
        if (
            last is None
            or last.carriers != _state(carriers)
            or any(c.checks < HISTORY_LENGTH for c in carriers)
        ):
            return False
        ago_s = self._clock_s() - last.ended_s
        own = 1 if ago_s < SEEN_S else 0
        return ago_s < last.rest_s and viewers() <= own

    def checked(self, slug: str, carriers: list[Carrier]) -> None:
        """A check is over; `carriers` is who was there when it began."""
        rest_s = self._rng.uniform(REST_S_MIN, REST_S_MAX)
        self._checks[slug] = _Check(self._clock_s(), rest_s, _state(carriers))

    def forget_but(self, slugs: set[str]) -> None:
        """Streams that are off air."""
        self._checks = {slug: check for slug, check in self._checks.items() if slug in slugs}


def _state(carriers: list[Carrier]) -> frozenset[tuple[UUID, str, int]]:
    return frozenset((c.node_id, c.url, c.health) for c in carriers)
