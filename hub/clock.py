"""A wall clock that leaps is noticed before money follows it.

Invariant: `checked` returns the wall clock only while it runs as the machine's own clock does since the start, give or
take `LEAP_S`. An epoch that was settled cannot be taken back: settled by a date that is a month ahead, nothing more
would be settled for a month. After a real correction of the clock the worker is started again.
"""

import time
from collections.abc import Callable
from typing import Final

LEAP_S: Final = 86_400
# Counts on while the machine sleeps; where there is no such clock, a machine that slept for a day looks like a leap.
_OWN_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ClockLeaptError(Exception):
    """The message is for the operator."""


def _own_us() -> int:
    return time.clock_gettime_ns(_OWN_CLOCK) // 1_000


class SteadyClock:
    def __init__(self, wall_us: Callable[[], int], own_us: Callable[[], int] = _own_us) -> None:
        self._wall_us, self._own_us = wall_us, own_us
        self._ahead_us = wall_us() - own_us()

    def checked(self) -> int:
        """Unix microseconds. Raises ClockLeaptError."""
        now_us = self._wall_us()
        leapt_s = (now_us - self._own_us() - self._ahead_us) // 1_000_000
        if abs(leapt_s) > LEAP_S:
            raise ClockLeaptError(
                f"the clock was moved by {leapt_s:+d} s since the worker started: nothing is settled or released "
                "before it is right again; if it is right now, start the hub again"
            )
        return now_us
