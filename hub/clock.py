"""The wall clock, and that it is wrong noticed before money follows it.

Invariant: `checked` returns the wall clock only while it runs as the machine's own clock does since the start, give or
take `LEAP_S`. An epoch that was settled cannot be taken back: settled by a date that is a month ahead, nothing more
would be settled for a month. After a real correction of the clock the worker is started again.

At the start there is nothing to hold it against but the time at which the worker was last sure of it. A hub that was
off for more than a day, or whose clock is that far ahead, does not settle for `GRACE_S`: a machine that sets its clock
from the network has done so by then, and what it corrects in this time needs no new start. Events that were dated by
the wrong clock stay where they are in the log: order is the position's, an event from the future ends no epoch, and its
credits are settled with the epoch that is over next.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ledger.tlog.files import write_atomic

LEAP_S: Final = 86_400
GRACE_S: Final = 600
SET_S: Final = 5
KEPT_EVERY_S: Final = 60
# Counts on while the machine sleeps; where there is no such clock, a machine that slept for a day looks like a leap.
_OWN_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ClockLeaptError(Exception):
    """The message is for the operator."""


def now_us() -> int:
    """The wall clock, as it is set: Unix microseconds."""
    return time.time_ns() // 1_000


def _own_us() -> int:
    return time.clock_gettime_ns(_OWN_CLOCK) // 1_000


class ClockWatch:
    """Tells once that the wall clock was set, by how much. Asked often: what is told is what came in between."""

    def __init__(self, wall_us: Callable[[], int], own_us: Callable[[], int] = _own_us) -> None:
        self._wall_us, self._own_us = wall_us, own_us
        self._ahead_us = wall_us() - own_us()

    def set_by_s(self) -> int:
        """0: it runs as the machine's own does, give or take `SET_S`."""
        ahead_us = self._wall_us() - self._own_us()
        by_s = round((ahead_us - self._ahead_us) / 1_000_000)
        if abs(by_s) < SET_S:
            return 0
        self._ahead_us = ahead_us
        return by_s


class SteadyClock:
    def __init__(
        self, wall_us: Callable[[], int], own_us: Callable[[], int] = _own_us, *, kept: Path | None = None
    ) -> None:
        """`kept`: a file of this clock's own, for the last time at which it was sure."""
        self._wall_us, self._own_us, self._kept = wall_us, own_us, kept
        self._ahead_us = wall_us() - own_us()
        self._started_us = own_us()
        self._written_us = self._read()
        self._unsure = self._is_far(wall_us())

    def is_sure(self) -> bool:
        """Whether settling by this clock may begin."""
        if self._unsure and self._own_us() - self._started_us >= GRACE_S * 1_000_000:
            self._unsure = False
        return not self._unsure

    def checked(self) -> int:
        """Unix microseconds. Raises ClockLeaptError."""
        now_us = self._wall_us()
        leapt_s = (now_us - self._own_us() - self._ahead_us) // 1_000_000
        if abs(leapt_s) > LEAP_S:
            if self.is_sure():
                raise ClockLeaptError(
                    f"the clock was moved by {leapt_s:+d} s since the worker started: nothing is settled or released "
                    "before it is right again; if it is right now, start the hub again"
                )
            self._ahead_us = now_us - self._own_us()
            self._unsure = self._is_far(now_us)
        if self.is_sure():
            self._keep(now_us)
        return now_us

    def _is_far(self, now_us: int) -> bool:
        return self._written_us is not None and now_us - self._written_us > LEAP_S * 1_000_000

    def _read(self) -> int | None:
        """None when this is the first start, or the file says nothing."""
        with suppress(OSError, ValueError):
            return int(self._kept.read_text()) if self._kept is not None else None
        return None

    def _keep(self, now_us: int) -> None:
        before_us = self._written_us
        if self._kept is None or (
            before_us is not None and 0 <= now_us - before_us < KEPT_EVERY_S * 1_000_000
        ):
            return
        self._written_us = now_us
        with suppress(OSError):  # a full disk stops other duties, and says so
            write_atomic(self._kept, f"{now_us}\n".encode())
