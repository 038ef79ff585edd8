"""One line when this process loses the database, one when it has it again; what its parts meet meanwhile is detail.

Invariant: nothing is kept from the log that is not the same outage again. What is muted is there at level `debug`; the
line at the end has the last error, where it is another than the first; an outage that lasts is told again each minute.
"""

from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Any, Final

import structlog

logger = structlog.get_logger()

AGAIN_S: Final = 60.0  # between two lines on the same outage
SURE_S: Final = 10.0  # so long after a connection failed, nobody knows whether one still would


class Outage:
    """Of one database, as a process sees it. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._since = 0.0
        self._failures = 0  # 0: it is there
        self._failed = self._told = 0.0
        self._first = self._last = ""
        self._fields: dict[str, str] = {}

    def called(self, process: str) -> None:
        """Whose lines these are: several processes write into one log."""
        self._fields = {"process": process}

    def failed(self, error: str) -> None:
        """A connection was lost, or a new one could not be made."""
        with self._lock:
            now = self._failed = self._clock()
            self._failures += 1
            self._last = error
            first = self._failures == 1
            if first:
                self._since, self._first = now, error
            tell = first or now - self._told >= AGAIN_S
            if tell:
                self._told = now
            for_s = round(now - self._since, 1)
        if first:
            logger.warning("the database is away", **self._fields, error=error)
        elif tell:
            logger.warning("the database is still away", **self._fields, for_s=for_s, error=error)
        else:
            logger.debug("the database is away", for_s=for_s, error=error)

    def connected(self) -> None:
        """A new connection was made."""
        if not self._failures:
            return
        with self._lock:
            after_s, failures, self._failures = self._clock() - self._since, self._failures, 0
            last = {"last_error": self._last} if self._last != self._first else {}
        if failures:
            logger.info(
                "the database is back", **self._fields, after_s=round(after_s, 1), failures=failures, **last
            )

    def symptom(self, log: Any, what: str, **fields: Any) -> bool:
        """Tell what a part of the program met for want of the database, and sits out. False: it is known to be away."""
        with self._lock:
            known = self._failures > 0 and self._clock() - self._failed < SURE_S
        (log.debug if known else log.warning)(what, **fields)
        return not known


outage: Final = Outage()  # of this process
