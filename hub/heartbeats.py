"""Whether the worker's duties go on: each promises when it will be heard again; the origin reads who is overdue.

Invariant: a duty that hangs, or whose process is gone, is overdue as soon as what it promised last has passed; one that
has much to do promises anew with each part of it, and is in time however long it takes. One file a duty, beside its
troubles: neither Postgres nor Valkey is needed to see that the worker stands still. The file's modification time is the
promise.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

HEARTBEATS_FOLDER: Final = "heartbeats"  # in the data directory
DUTIES: Final = ("projections", "settlement", "publisher", "nodes", "probes")
START_S: Final = 60.0  # from the worker's start to the first sign of each
STEP_S: Final = 120.0  # one part of a duty's step takes less, or it hangs


class Heartbeats:
    def __init__(self, folder: Path, *, now_s: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now_s = now_s

    def begin(self, duties: Iterable[str] = DUTIES) -> None:
        """The worker starts: what an earlier one promised is void."""
        for duty in duties:
            self.promise(duty, START_S)

    def void(self) -> None:
        """The hub starts: until its worker begins, nothing is promised, whatever an earlier one said last."""
        for duty in DUTIES:
            (self._folder / duty).unlink(missing_ok=True)

    def promise(self, duty: str, within_s: float) -> None:
        due_s = self._now_s() + within_s
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / duty
            path.touch()
            os.utime(path, (due_s, due_s))
        except OSError:  # a full disk must not stop the duty as well
            log.exception("a heartbeat cannot be written", duty=duty)

    def overdue(self) -> dict[str, int]:
        """For each duty the seconds since it should have been heard; 0 when it is in time."""
        return {duty: max(0, round(self._now_s() - self._due_s(duty))) for duty in DUTIES}

    def _due_s(self, duty: str) -> float:
        try:
            return (self._folder / duty).stat().st_mtime
        except OSError:  # what cannot be read promises nothing
            return 0.0
