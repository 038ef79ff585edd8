"""The relay's publish authority, on the ledger: keys, broadcasts, and the durable record of what was published.

Invariant: `publish_segments` returns only when the segments stand in the log and their digests are kept. The ledger
is synchronous: every call runs in a thread pool, never on the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, ParamSpec, TypeVar
from uuid import UUID

from hub.digests import SegmentDigests
from ledger import application
from ledger.aggregates.stream import Stream
from ledger.application import Ledger
from ledger.events import Segment
from ledger.services import broadcasts, streams
from relay.ports import BroadcastGrant, StreamGrant, Unavailable

P = ParamSpec("P")
T = TypeVar("T")


WAITING_MAX: Final = 1_000


class InPool:
    """Runs blocking ledger calls in a pool and speaks the relay's language about outages. For one event loop.

    Whoever would be the thousandth to wait is told at once to come again: with a slow database a queue without an end
    answers nobody in time.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._waiting = 0

    async def __call__(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._waiting >= WAITING_MAX:
            raise Unavailable("too much waits for the database")
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._pool, lambda: call(*args, **kwargs))
        except application.Unavailable as e:
            raise Unavailable(str(e)) from e
        finally:
            self._waiting -= 1


class LedgerAuthority:
    """Implements `relay.ports.PublishAuthority`."""

    def __init__(
        self,
        ledger: Ledger,
        digests: SegmentDigests,
        in_pool: InPool,
        *,
        grace_s: int,
        now_us: Callable[[], int],
        new_id: Callable[[], UUID],
    ) -> None:
        self._ledger = ledger
        self._digests = digests
        self._in_pool = in_pool
        self._grace_s = grace_s
        self._now_us = now_us
        self._new_id = new_id

    async def check_key(self, stream_key: str) -> StreamGrant | None:
        stream = await self._in_pool(streams.check_stream_key, self._ledger, stream_key)
        return StreamGrant(stream.id, stream.slug) if stream else None

    async def start_broadcast(self, stream_id: UUID, video_codec: str, audio_codec: str) -> BroadcastGrant:
        return await self._in_pool(self._start, stream_id, video_codec, audio_codec)

    def _start(self, stream_id: UUID, video_codec: str, audio_codec: str) -> BroadcastGrant:
        broadcast, resumed = broadcasts.start_or_resume(
            self._ledger,
            stream_id,
            new_broadcast_id=self._new_id(),
            new_rendition_id=self._new_id(),
            video_codec=video_codec,
            audio_codec=audio_codec,
            grace_s=self._grace_s,
            at_us=self._now_us(),
        )
        if broadcast.rendition_id is None:
            raise RuntimeError("a started broadcast has a rendition")
        return BroadcastGrant(
            stream_id=stream_id,
            slug=self._ledger.load(Stream, stream_id).slug,
            broadcast_id=broadcast.id,
            rendition_id=broadcast.rendition_id,
            next_sequence=broadcast.next_sequence,
            resumed=resumed,
        )

    async def publish_segments(
        self, grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]
    ) -> None:
        await self._in_pool(self._publish, grant, segments, media)

    def _publish(self, grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]) -> None:
        # Digests first: when the log says a segment was published, receipts for it can be checked.
        for segment, data in zip(segments, media, strict=True):
            self._digests.put(grant.rendition_id, segment.sequence, data)
        broadcasts.publish_segments(self._ledger, grant.broadcast_id, segments, at_us=self._now_us())

    async def interrupt_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        await self._in_pool(
            broadcasts.interrupt_broadcast,
            self._ledger,
            grant.broadcast_id,
            reason=reason,
            at_us=self._now_us(),
        )

    async def end_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        await self._in_pool(
            broadcasts.end_broadcast, self._ledger, grant.broadcast_id, reason=reason, at_us=self._now_us()
        )
