"""What this node is doing just now, for the heartbeat, `node status` and the upload limit. Memory only.

Invariant: bounded whatever the traffic; nothing here decides about money.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from uuid import UUID

VIEWER_S: Final = 15.0
MAX_SESSIONS: Final = 20_000
_BURST_S: Final = 0.25


class Traffic:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[UUID, float] = OrderedDict()  # by session, oldest first
        self.uploaded_bytes = 0
        self.segments = 0
        self.refused = 0
        self.sending = 0  # segments under way
        self._asked_at = clock()

    def seen(self, session: UUID) -> None:
        self._seen[session] = self._asked_at = self._clock()
        self._seen.move_to_end(session)
        if len(self._seen) > MAX_SESSIONS:
            self._seen.popitem(last=False)

    def viewers(self) -> int:
        """Sessions that asked for something within the last `VIEWER_S` seconds."""
        limit = self._clock() - VIEWER_S
        while self._seen and next(iter(self._seen.values())) < limit:
            self._seen.popitem(last=False)
        return len(self._seen)

    def quiet_s(self) -> float:
        """For how long nobody has asked for anything; 0 while something is being sent."""
        return 0.0 if self.sending else self._clock() - self._asked_at


class UploadLimit:
    """At most so many bits a second over all viewers: each write waits for its turn in line."""

    def __init__(self, mbit_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if mbit_s <= 0:
            raise ValueError("the upload limit is a positive number of Mbit/s")
        self._bytes_per_s = mbit_s * 1_000_000 / 8
        self._clock = clock
        self._free_at = clock()

    async def take(self, size_bytes: int) -> None:
        now = self._clock()
        self._free_at = max(self._free_at, now) + size_bytes / self._bytes_per_s
        delay_s = self._free_at - now - _BURST_S
        if delay_s > 0:
            await asyncio.sleep(delay_s)
