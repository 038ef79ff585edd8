"""Pull the segments to come while somebody watches, so that a viewer never waits for the hub.

Invariant: a rendition is pulled ahead only while a viewer has asked for it within `WATCHED_S`; at most
`MAX_RENDITIONS` at once; a segment that a viewer really got is the only thing that starts or moves the position.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from relay.node.cache import Busy, CorruptSegmentError, SegmentCache
from relay.node.hub_client import HubError

WATCHED_S: Final = 15.0
RETRY_S: Final = 0.5
MAX_RENDITIONS: Final = 8  # each may hold one of the cache's pulls while the hub waits for the next segment


@dataclass(slots=True)
class _Follow:
    next_sequence: int
    watched_at: float
    task: asyncio.Task[None] | None = None


class Prefetcher:
    """`watched` after each segment served. The hub holds a request for the segment to come, which sets the pace."""

    def __init__(self, cache: SegmentCache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._follows: dict[UUID, _Follow] = {}

    def watched(self, rendition: UUID, sequence: int) -> None:
        follow = self._follows.get(rendition)
        if follow is None:
            if len(self._follows) >= MAX_RENDITIONS:
                return
            follow = self._follows[rendition] = _Follow(sequence + 1, self._clock())
            follow.task = asyncio.create_task(self._run(rendition, follow), name=f"prefetch {rendition}")
        follow.watched_at = self._clock()
        follow.next_sequence = max(follow.next_sequence, sequence + 1)

    async def close(self) -> None:
        tasks = [f.task for f in self._follows.values() if f.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, rendition: UUID, follow: _Follow) -> None:
        try:
            while self._clock() - follow.watched_at < WATCHED_S:
                sequence = follow.next_sequence
                try:
                    await self._cache.get(rendition, sequence)
                except (HubError, CorruptSegmentError, Busy):
                    await asyncio.sleep(RETRY_S)
                else:
                    follow.next_sequence = max(follow.next_sequence, sequence + 1)
        finally:
            del self._follows[rendition]
