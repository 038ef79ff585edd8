"""Streams that are live, or were a moment ago.

Invariant: a stream has at most one publisher. A second one with the same key is refused while the first sends media;
once the first has been silent for `takeover_silence_s` the newest wins. A lost publisher has `publish_grace_s` to come
back into the same broadcast; a clean stop ends it at once.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog

from ledger.events import Segment
from relay.media.cmaf import CmafMuxer
from relay.media.errors import BadMedia
from relay.media.packager import Cut, Format, Muxer, Packager, Packed
from relay.media.timeline import Timeline
from relay.media.ts import TsMuxer
from relay.origin.edge import Edge
from relay.origin.fanout import FlvFanout
from relay.origin.recordings import Recording, Recordings
from relay.origin.registrar import Registrar
from relay.origin.settings import OriginSettings
from relay.origin.store import RenditionStore
from relay.ports import BroadcastGrant, PublishAuthority, StreamGrant

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an encoder sent could not be taken. Most encoders show their people no more than "disconnected"."""

    reason: str
    at_us: int


class Publisher(Protocol):
    """The connection of an encoder, as the stream sees it."""

    @property
    def silent_s(self) -> float:
        """Seconds since the last complete media message."""
        ...

    def expel(self, reason: str) -> None:
        """Tell the encoder why, and close. `Live.leave` has been called already."""
        ...


class Live:
    """One stream: its publisher, its packager, its broadcast and its viewers over HTTP-FLV."""

    def __init__(
        self,
        grant: StreamGrant,
        authority: PublishAuthority,
        settings: OriginSettings,
        now_us: Callable[[], int],
        catalogue: "Catalogue",
    ) -> None:
        self.slug = grant.slug
        self.stream_id = grant.stream_id
        self.fanout = FlvFanout(settings)
        self.rendition: RenditionStore | None = None
        self.publisher: Publisher | None = None
        self.packager: Packager | None = None
        self._settings = settings
        self._now_us = now_us
        self._catalogue = catalogue
        self._recording: Recording | None = None
        self._timeline = Timeline()
        self._edge: Edge | None = None
        self._muxer: Muxer
        if settings.container == "fmp4":
            self._edge = Edge(self._edge_changed)
            self._muxer = CmafMuxer(self._edge, settings.chunk_ms)
        else:
            self._muxer = TsMuxer()
        self._loop = asyncio.get_running_loop()
        self._grace: asyncio.TimerHandle | None = None
        self._in_broadcast = False  # between the first key frame and the end
        self._sending = False  # this publisher has sent its first key frame
        self.retirement: asyncio.Task[None] | None = None
        self.registrar = Registrar(grant.stream_id, grant.slug, authority, self, settings.pending_bytes)

    @property
    def on_air(self) -> bool:
        """Whether a viewer may expect media: publishing, or within the grace period."""
        return self.publisher is not None or self._grace is not None

    # --- the publisher ---------------------------------------------------------------------------------------------

    def admit(self, publisher: Publisher) -> str | None:
        """Take the stream; or the reason why not."""
        if self.publisher is not None:
            if self.publisher.silent_s <= self._settings.takeover_silence_s:
                return "this stream is already being published; stop the other encoder first"
            old = self.publisher
            self.leave(old, clean=False, reason="replaced by a newer connection with the same key")
            old.expel("a newer connection with the same key has taken over")
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self.publisher = publisher
        self.packager = Packager(
            self._settings.packager,
            self._now_us,
            self._timeline,
            self._muxer,
            self.fanout,
            self._on_format,
            self._on_cut,
        )
        return None

    def refuse(self, publisher: Publisher, reason: str) -> None:
        """What the publisher sends cannot be taken. Remembered until a segment of the stream is there."""
        if self.publisher is publisher:
            self._catalogue.refusals[self.slug] = Refusal(reason, self._now_us())
        self.leave(publisher, clean=True, reason=reason)

    def leave(self, publisher: Publisher, *, clean: bool, reason: str) -> None:
        """The publisher stopped (`clean`) or is lost. Harmless when it has left already."""
        if self.publisher is not publisher:
            return
        if self.packager is not None:
            with contextlib.suppress(BadMedia):
                self.packager.finish()
        self.publisher = self.packager = None  # also breaks the cycle through the packager's callbacks
        if self._edge is not None:
            self._edge.hide()
        log.info("publisher_left", slug=self.slug, clean=clean, reason=reason)
        if not self._in_broadcast:
            self._catalogue.retire(self)
        elif clean:
            self._end(reason)
        else:
            if self._sending:
                self.registrar.interrupt(reason)
            self._sending = False
            self._grace = self._loop.call_later(self._settings.publish_grace_s, self._grace_over)

    def end(self, reason: str) -> None:
        """End the broadcast now, whoever publishes."""
        publisher = self.publisher
        if publisher is not None:
            self.leave(publisher, clean=True, reason=reason)
            publisher.expel(reason)
        elif self._grace is not None:
            self._end(reason)

    def _grace_over(self) -> None:
        self._end("the publisher did not come back")

    def _end(self, reason: str) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._in_broadcast = False
        self.registrar.end(reason)
        self.fanout.close()
        self._catalogue.retire(self)

    # --- from the packager -----------------------------------------------------------------------------------------

    def _on_format(self, format_: Format) -> None:
        self._in_broadcast = self._sending = True
        self.registrar.start(format_)

    def _on_cut(self, cut: Cut, format_: Format) -> None:
        if self.rendition is not None:
            self.rendition.format = format_
        if not self.registrar.cut(cut) and self._edge is not None:
            self._edge.dropped()

    def _edge_changed(self) -> None:
        if self.rendition is not None:
            self.rendition.notify()

    # --- from the registrar (relay.origin.registrar.Listener) ----------------------------------------------------

    def on_started(self, grant: BroadcastGrant, format_: Format) -> None:
        known = self._catalogue.renditions.get(grant.rendition_id)
        if known is None:
            known = RenditionStore(
                grant.rendition_id, format_, grant.next_sequence, self._settings, self._loop.time, self._edge
            )
            self._catalogue.renditions[grant.rendition_id] = known
        if self.rendition is not None and self.rendition is not known:
            self._close_rendition(self.rendition)
        # Closed when the ledger refused it, and now the encoder is back within the grace period.
        known.ended = False
        known.format = format_
        if self._edge is not None:
            self._edge.show(resumed=grant.resumed)
        self.rendition = known
        recordings = self._catalogue.recordings
        if recordings is not None and self._recording is None:
            self._recording = recordings.start(self.slug, grant.broadcast_id, known.extension)
        self._catalogue.changed()

    def on_listed(self, segment: Segment, packed: Packed) -> None:
        self._catalogue.refusals.pop(self.slug, None)
        if self._edge is not None:
            self._edge.recorded()
        if self.rendition is not None:
            self.rendition.add(segment, packed)
        if self._recording is not None:
            self._recording.add(segment, packed)

    def on_ended(self) -> None:
        if self.rendition is not None:
            self._close_rendition(self.rendition)

    def on_refused(self, reason: str) -> None:
        if self.rendition is not None:
            self._close_rendition(self.rendition)
        self._in_broadcast = False
        publisher = self.publisher
        if publisher is not None:
            self.leave(publisher, clean=True, reason=reason)
            publisher.expel("the hub could not record this broadcast; please start again")
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
            self._catalogue.retire(self)
        if self._edge is not None:
            self._edge.clear()

    def _close_rendition(self, rendition: RenditionStore) -> None:
        if self._recording is not None:
            self._recording.end()
            self._recording = None
        if not rendition.ended:
            rendition.end()
            self._loop.call_later(self._settings.retain_s, self._catalogue.forget, rendition)


class Catalogue:
    """All streams by slug, all renditions by id. What is over stays for `retain_s`, then is forgotten."""

    def __init__(
        self, authority: PublishAuthority, settings: OriginSettings, now_us: Callable[[], int]
    ) -> None:
        self._authority = authority
        self._settings = settings
        self._now_us = now_us
        self.lives: dict[str, Live] = {}
        self.renditions: dict[UUID, RenditionStore] = {}
        self.refusals: dict[str, Refusal] = {}  # by slug
        self.recordings: Recordings | None = None
        if settings.recordings is not None:
            self.recordings = Recordings(
                settings.recordings,
                keep_s=settings.recording_keep_s,
                reserve_bytes=settings.recording_reserve_bytes,
                queue_bytes=settings.recording_queue_bytes,
                longest_s=-(-settings.packager.segment_max_ms // 1000),
            )
        self.closed = False  # nothing will begin any more
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Future[None] | None = None

    def publish(self, grant: StreamGrant, publisher: Publisher) -> Live | str:
        """The stream, taken by `publisher`; or the reason why it is refused."""
        live = self.lives.get(grant.slug)
        if live is None:
            live = Live(grant, self._authority, self._settings, self._now_us, self)
            self.lives[grant.slug] = live
        refused = live.admit(publisher)
        if refused is None:
            self.changed()
            return live
        return refused

    def forget(self, rendition: RenditionStore) -> None:
        """Let go of its segments, unless it was taken up again."""
        if rendition.ended:
            self.renditions.pop(rendition.rendition_id, None)

    def changed(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        self._waiting = None

    async def wait_changed(self, timeout_s: float) -> None:
        """Until a stream begins somewhere, or `timeout_s` is over."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._waiting], timeout=timeout_s)

    def retire(self, live: Live) -> None:
        """Forget the stream after a while, unless it is on air again by then."""
        if live.retirement is not None:
            live.retirement.cancel()
        live.retirement = task = asyncio.get_running_loop().create_task(self._retire(live))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, live: Live) -> None:
        await asyncio.sleep(self._settings.retain_s)
        while not live.registrar.idle:  # asked again after each wait: more may have been put in meanwhile
            await live.registrar.drain(60.0)
        if not live.on_air and self.lives.get(live.slug) is live:
            del self.lives[live.slug]
            await live.registrar.close()
            live.rendition = (
                None  # live and registrar know each other: without this the segments wait for the gc
            )

    async def close(self, timeout_s: float) -> None:
        """End every broadcast and wait for the ledger to know."""
        self.closed = True
        lives = list(self.lives.values())
        for live in lives:
            live.end("the hub is shutting down")
        await asyncio.gather(*(live.registrar.drain(timeout_s) for live in lives))
        await asyncio.gather(*(live.registrar.close() for live in lives))
        for task in list(self._tasks):
            task.cancel()
        if self.recordings is not None:
            await asyncio.to_thread(self.recordings.close)
        self.lives.clear()
        self.renditions.clear()
        self.changed()  # who waits for a stream waits for nothing
