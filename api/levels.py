"""Whether the read models may be shown.

Invariant: ready is said only when every projection of this program is built in its present shape, has taken in all
that stood in the log when this process first looked, and is at most so many events, and so long, behind.
"""

from collections.abc import Sequence
from typing import Final

from projections.catalog import PROJECTIONS
from projections.views import Lag

LEVEL: Final = ""
EVENTS_BEHIND_MAX: Final = 10_000
BEHIND_US_MAX: Final = 30_000_000
_VERSIONS: Final = {p.name: p.version for p in PROJECTIONS}


class Levels:
    """One a process."""

    def __init__(self) -> None:
        self._begin: int | None = None  # the size of the log at the first look

    def missing(self, lags: Sequence[Lag], log_events: int) -> str:
        """What keeps the read models from being shown; LEVEL when nothing does."""
        if self._begin is None:
            self._begin = log_events
        found = {lag.name: lag for lag in lags}
        # These first: no waiting helps, and what goes on is of no use to who looks for the reason.
        stopped = [lag for lag in lags if lag.stopped and _VERSIONS.get(lag.name) == lag.version]
        if stopped:
            return "; ".join(
                f"{lag.name} stopped at position {lag.position}: {lag.stopped}" for lag in stopped
            )
        for name, version in _VERSIONS.items():
            lag = found.get(name)
            if lag is None:
                return "not built yet"
            if lag.version != version:
                return f"{name} is being rebuilt"
            if lag.position < self._begin:
                return f"{name} is catching up: {lag.events} events behind"
            if lag.events > EVENTS_BEHIND_MAX or lag.behind_us > BEHIND_US_MAX:
                return f"{name} is {lag.events} events, {lag.behind_us // 1_000_000} s behind"
        return LEVEL
