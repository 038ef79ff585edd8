"""What a stream's broadcast means to the ledger, in order and durably: start, segments, interruption, end.

Invariant: calls to the authority for one stream never overlap and never change order; a segment reaches `on_listed`
only after `publish_segments` returned for it; sequences are given in that moment and have no gaps. While the ledger is
away, calls are repeated with the same arguments; what waits is bounded by `pending_bytes`, and a segment that finds
no room is dropped before it has a sequence and leaves a discontinuity.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias, TypeVar
from uuid import UUID

import structlog

from ledger.events import Segment
from relay.media.packager import Cut, Format, Packed
from relay.ports import BroadcastGrant, PublishAuthority, Unavailable

log = structlog.get_logger()
T = TypeVar("T")
MAX_BATCH: Final = 8
_FIRST_RETRY_S: Final = 0.1
_LAST_RETRY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Start:
    format: Format


@dataclass(frozen=True, slots=True)
class _Interrupt:
    reason: str


@dataclass(frozen=True, slots=True)
class _End:
    reason: str


_Op: TypeAlias = _Start | _Interrupt | _End | Cut


class Listener(Protocol):
    """The live stream, told what has become durable."""

    def on_started(self, grant: BroadcastGrant, format_: Format) -> None: ...
    def on_listed(self, segment: Segment, packed: Packed) -> None: ...
    def on_ended(self) -> None: ...
    def on_refused(self, reason: str) -> None:
        """The ledger will not have this broadcast (it is not a matter of waiting)."""
        ...


class Registrar:
    def __init__(
        self, stream_id: UUID, slug: str, authority: PublishAuthority, listener: Listener, pending_bytes: int
    ) -> None:
        self._stream_id = stream_id
        self._log = log.bind(slug=slug)
        self._authority = authority
        self._listener = listener
        self._max_pending = pending_bytes
        self._ops: deque[_Op] = deque()
        self._pending = 0
        self._dropped = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._grant: BroadcastGrant | None = None
        self._next_sequence = 0
        self._broken = False  # the next segment is a discontinuity
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"registrar {slug}")

    # --- what happened, in order -----------------------------------------------------------------------------------

    def start(self, format_: Format) -> None:
        self._put(_Start(format_))

    def cut(self, cut: Cut) -> bool:
        """False: there is no room for it to wait in, and it is dropped."""
        if self._pending + len(cut.packed.data) > self._max_pending:
            self._log.warning("segment_dropped", pending_bytes=self._pending)
            self._dropped = True
            return False
        if self._dropped:
            cut, self._dropped = replace(cut, discontinuity=True), False
        self._pending += len(cut.packed.data)
        self._put(cut)
        return True

    def interrupt(self, reason: str) -> None:
        self._put(_Interrupt(reason))

    def end(self, reason: str) -> None:
        self._put(_End(reason))

    @property
    def idle(self) -> bool:
        """Whether everything so far is durable."""
        return self._idle.is_set()

    async def drain(self, timeout_s: float) -> bool:
        """Until everything so far was durable once; False when it is not within `timeout_s`."""
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the result.
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def _put(self, op: _Op) -> None:
        self._ops.append(op)
        self._idle.clear()
        self._wake.set()

    # --- the actor -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            while self._ops:
                await self._one(self._ops.popleft())
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _one(self, op: _Op) -> None:
        cuts: list[Cut] = []
        try:
            if isinstance(op, _Start):
                await self._started(op.format)
            elif isinstance(op, Cut):
                cuts = [op]
                while len(cuts) < MAX_BATCH and self._ops and isinstance(self._ops[0], Cut):
                    cuts.append(self._ops.popleft())  # type: ignore[arg-type]
                await self._publish(cuts)
            elif self._grant is not None and isinstance(op, _Interrupt):
                grant, reason = self._grant, op.reason
                await self._persist(lambda: self._authority.interrupt_broadcast(grant, reason))
            elif self._grant is not None and isinstance(op, _End):
                await self._ended(self._grant, op.reason)
        except Exception as e:  # whatever the ledger says no with, the media process goes on
            self._log.exception("ledger_refused", op=type(op).__name__)
            self._grant = None
            self._listener.on_refused(str(e))
        finally:
            self._pending -= sum(len(c.packed.data) for c in cuts)

    async def _started(self, format_: Format) -> None:
        video = format_.video.codec if format_.video else ""
        audio = format_.audio.codec if format_.audio else ""
        grant = await self._persist(lambda: self._authority.start_broadcast(self._stream_id, video, audio))
        self._broken = grant.resumed
        self._grant = grant
        self._next_sequence = grant.next_sequence
        self._log.info("broadcast_started", resumed=grant.resumed, next_sequence=grant.next_sequence)
        self._listener.on_started(grant, format_)

    async def _publish(self, cuts: list[Cut]) -> None:
        grant = self._grant
        if grant is None:
            return  # refused before
        segments = [
            Segment(
                sequence=self._next_sequence + i,
                duration_us=cut.duration_us,
                segment_bytes=len(cut.packed.data),
                sha256=cut.packed.sha256,
                program_us=cut.program_us,
                discontinuity=cut.discontinuity or (self._broken and i == 0),
            )
            for i, cut in enumerate(cuts)
        ]
        media = [cut.packed.data for cut in cuts]
        await self._persist(lambda: self._authority.publish_segments(grant, segments, media))
        self._broken = False
        self._next_sequence += len(segments)
        for segment, cut in zip(segments, cuts, strict=True):
            self._listener.on_listed(segment, cut.packed)

    async def _ended(self, grant: BroadcastGrant, reason: str) -> None:
        await self._persist(lambda: self._authority.end_broadcast(grant, reason))
        self._grant = None
        self._log.info("broadcast_ended", reason=reason, next_sequence=self._next_sequence)
        self._listener.on_ended()

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat the same call until the ledger answers."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                return await call()
            except Unavailable as e:
                self._log.warning("ledger_unavailable", error=str(e), pending_bytes=self._pending)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_RETRY_S)
