"""Which of the worker's duties fail just now: told by the worker, read by the origin for its readiness.

Invariant: a duty is in trouble from its first failure that no waiting heals until it succeeds again, across restarts
of either process. One empty file a duty; what the failure was stands in the log.
"""

from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

TROUBLES_FOLDER: Final = "troubles"  # in the data directory


class Troubles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def report(self, duty: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / duty).touch()
        except OSError:  # a full disk must not take the other duties down as well
            log.exception("a trouble cannot be noted", duty=duty)

    def clear(self, duty: str) -> None:
        try:
            (self._folder / duty).unlink(missing_ok=True)
        except OSError:
            log.exception("a trouble cannot be struck out", duty=duty)

    def now(self) -> list[str]:
        """The duties that fail, by name."""
        try:
            return sorted(path.name for path in self._folder.iterdir())
        except FileNotFoundError:
            return []
