"""HTTP-FLV: the tags of one stream to all its viewers.

Invariant: a viewer's bytes are always a well-formed FLV file that begins, and after a loss goes on, at a key frame;
what is queued for one viewer never exceeds its bound plus one GOP cache.

Tags are joined for `flv_batch_s` and the same bytes object is queued for every viewer; a key frame starts a new batch,
so that a viewer who has to skip can come back exactly there.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from relay.media import flv
from relay.origin.settings import OriginSettings


class FlvViewer:
    """One viewer's queue. `next` gives bytes to send, None at the end; asked again only when those are sent.

    `write_now` sends at once where the client keeps up (False: it does not); it is used only while nothing waits.
    """

    def __init__(self, max_bytes: int, write_now: Callable[[bytes], bool] | None = None) -> None:
        self._max_bytes = max_bytes
        self._blocks: deque[bytes] = deque()
        self._queued = 0
        self._skipping = False
        self._closed = False
        self._wake = asyncio.Event()
        self._write_now = write_now
        self._sending = True  # what `next` gave is on its way, or nobody has asked yet
        self.skips = 0

    def preload(self, block: bytes, *, at_key: bool) -> None:
        """What a new viewer gets at once; not counted against its bound."""
        self._blocks.append(block)
        self._skipping = not at_key
        self._wake.set()

    def require(self, block: bytes) -> None:
        """A codec header, small and rare: even a viewer who is skipping must have it."""
        self._blocks.append(block)
        self._queued += len(block)
        self._wake.set()

    def offer(self, block: bytes, *, key: bool) -> None:
        if self._queued + len(block) > self._max_bytes:
            self._blocks.clear()
            self._queued = 0
            self._skipping = True
            self.skips += 1
        if self._skipping and not key:
            return
        self._skipping = False
        if self._write_now is not None and not self._sending and not self._blocks and self._write_now(block):
            return
        self._blocks.append(block)
        self._queued += len(block)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    def drop(self) -> None:
        """Forget what is queued: nobody is there to take it."""
        self._blocks.clear()
        self._queued = 0

    async def next(self) -> bytes | None:
        self._sending = False
        while not self._blocks:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        data = b"".join(self._blocks) if len(self._blocks) > 1 else self._blocks[0]
        self._blocks.clear()
        self._queued = 0
        self._sending = True
        return data


class FlvFanout:
    def __init__(self, settings: OriginSettings) -> None:
        self._settings = settings
        self.viewers: set[FlvViewer] = set()
        self._headers: dict[int, bytes] = {}
        self._gop: list[tuple[int, int, bytes]] = []  # (kind, ms, body) since the last key frame
        self._gop_bytes = 0
        self._pending: list[bytes] = []
        self._pending_key = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def started(self) -> bool:
        return bool(self._headers)

    @property
    def key_picture(self) -> tuple[bytes, bytes] | None:
        """The codec's header and the last key frame, as bodies of FLV tags."""
        if not self._gop or flv.VIDEO not in self._headers:
            return None
        return self._headers[flv.VIDEO], self._gop[0][2]

    # --- relay.media.packager.TagSink ----------------------------------------------------------------------------

    def header(self, kind: int, body: bytes, at_ms: int) -> None:
        self.flush()
        self._headers[kind] = body
        self._forget_gop()
        if self.viewers:
            block = flv.tag(kind, at_ms, body)
            for viewer in self.viewers:
                viewer.require(block)

    def frame(self, kind: int, at_ms: int, body: bytes, *, key: bool) -> None:
        if key:
            self.flush()
            self._forget_gop()
            self._pending_key = True
        if key or self._gop:
            self._gop.append((kind, at_ms, body))
            self._gop_bytes += len(body)
            if self._gop_bytes > self._settings.gop_cache_bytes:
                self._forget_gop()
        if self.viewers:
            self._pending.append(flv.tag(kind, at_ms, body))
            if self._settings.flv_batch_s <= 0:
                self.flush()
            elif self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._settings.flv_batch_s, self.flush)

    # --- viewers -------------------------------------------------------------------------------------------------

    def join(self, write_now: Callable[[bytes], bool] | None = None) -> FlvViewer:
        """A new viewer, with file header, codec headers and the GOP so far already queued."""
        self.flush()
        viewer = FlvViewer(self._settings.viewer_queue_bytes, write_now)
        parts = [flv.file_header(video=flv.VIDEO in self._headers, audio=flv.AUDIO in self._headers)]
        parts += [flv.tag(kind, 0, self._headers[kind]) for kind in sorted(self._headers, reverse=True)]
        parts += [flv.tag(*frame) for frame in self._gop]
        viewer.preload(b"".join(parts), at_key=bool(self._gop))
        self.viewers.add(viewer)
        return viewer

    def leave(self, viewer: FlvViewer) -> None:
        self.viewers.discard(viewer)

    def close(self) -> None:
        """The broadcast is over: viewers get what is queued, then the end."""
        self.flush()
        for viewer in self.viewers:
            viewer.close()
        self._headers.clear()
        self._forget_gop()

    def _forget_gop(self) -> None:
        self._gop.clear()
        self._gop_bytes = 0

    def flush(self) -> None:
        """Send what has been joined: nothing more belongs to it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            block, key = b"".join(self._pending), self._pending_key
            self._pending.clear()
            for viewer in self.viewers:
                viewer.offer(block, key=key)
        self._pending_key = False
