"""Tells people now and then what the running epoch would bring.

Invariant: it takes a small part of the worker's time, however much is not settled yet: the longer an estimate takes,
the more rarely one is made.
"""

import time
from collections.abc import Callable
from typing import Final

from api.estimates import Estimates
from ledger.application import Ledger
from ledger.services.credit_index import CreditIndex
from ledger.services.estimate import estimate
from ledger.services.settle import collector_paused

EVERY_S: Final = 5.0
PART_OF_TIME: Final = 50  # at most one part in so many
SHOWN_S: Final = 30  # longer than the next one takes to come


class Estimating:
    """For one thread."""

    def __init__(
        self, ledger: Ledger, estimates: Estimates, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._estimates = estimates
        self._clock_s = clock_s
        self._next_s = 0.0

    def step(
        self, index: CreditIndex, *, at_us: int, settled: bool, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Make an estimate when it is time; at once when something was `settled`. Raises as `estimate` does."""
        started_s = self._clock_s()
        if started_s < self._next_s and not settled:
            return
        with collector_paused():
            made = estimate(self._ledger, index, at_us=at_us, alive=alive)
        pause_s = max(EVERY_S, PART_OF_TIME * (self._clock_s() - started_s))
        self._next_s = started_s + pause_s
        if made is not None:
            self._estimates.share(made, for_s=int(2 * pause_s) + SHOWN_S)
