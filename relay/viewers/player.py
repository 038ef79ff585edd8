"""What every viewer does: poll the media playlist, fetch what is new in order, keep count.

Invariant: each sequence is fetched once and in ascending order; a stall is counted exactly when playback, started
with the first segment, had to wait for the next one.
"""

import asyncio
import contextlib
import functools
import hashlib
import ssl
import time
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx2

from relay.viewers.playlist import Listed, MediaPlaylist, PlaylistError, parse_media

MAX_PLAYLIST_BYTES: Final = 1024 * 1024
MAX_SEGMENT_BYTES: Final = 32 * 1024 * 1024
MAX_HASHES: Final = 4_096
HUB_PATIENCE_S: Final = 10.0
LIVE_EDGE: Final = (
    3  # a player starts this many segments before the end of the playlist (RFC 8216 section 6.3.3)
)


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all viewers of the process: reading the certificates takes longer than a segment."""
    return httpx2.create_ssl_context(trust_env=False)


class ViewerError(Exception):
    """The viewer cannot go on: no such stream, or the hub refuses."""


class FetchError(Exception):
    """One request failed; `status` is 0 when there was no complete answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Stats:
    segments: int = 0
    received_bytes: int = 0
    from_node: int = 0
    from_hub: int = 0
    fallbacks: int = 0  # a node failed and something else was done about it
    missed: int = 0  # segments that left the playlist before they could be had
    polls: int = 0
    poll_errors: int = 0
    stalls: int = 0
    stalled_s: float = 0.0  # all stalls together
    stall_s_max: float = 0.0  # the longest
    startup_s: float | None = None  # from entering the viewer to its first segment
    receipts: int = 0  # receipts somebody acknowledged
    receipt_errors: int = 0
    hashes: OrderedDict[int, bytes] = field(
        default_factory=OrderedDict
    )  # sequence -> SHA-256, the last 4,096


class Player:
    """Subclasses say where the playlist is and how a listed segment is had. Use as `async with`."""

    def __init__(self, hub_url: str, slug: str, *, from_start: bool = False) -> None:
        self.hub_url = hub_url.rstrip("/")
        self.slug = slug
        self.stats = Stats()
        self.ended = False
        self._from_start = from_start
        self._next: int | None = None
        self._arrived = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._played_until: float | None = None
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(HUB_PATIENCE_S, connect=3.0),
            headers={"accept-encoding": "identity"},
            trust_env=False,
            verify=_tls(),
        )

    async def __aenter__(self) -> Self:
        self._started_at = time.monotonic()
        try:
            await self._open()
        except BaseException:
            await self._http.aclose()
            raise
        self._tasks = [asyncio.create_task(c) for c in (self._play(), *self._background())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._goodbye()
        finally:
            await self._http.aclose()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def wait_for_segments(self, count: int, timeout_s: float) -> None:
        """Until `count` segments have arrived in all. Raises TimeoutError; what the player died of, if it did."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: self.stats.segments >= count or self._tasks[0].done())
        if self.stats.segments < count:
            await self._tasks[0]
            raise ViewerError(f"the stream ended after {self.stats.segments} segments")

    # --- for subclasses

    async def _open(self) -> None:
        """Before the first poll. Raises ViewerError."""
        raise NotImplementedError

    async def _playlist(self) -> MediaPlaylist:
        """One poll. Raises FetchError or PlaylistError."""
        raise NotImplementedError

    async def _segment(self, listed: Listed) -> bytes | None:
        """The bytes, or None to look at the playlist again first."""
        raise NotImplementedError

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        """What else runs while it plays."""
        return []

    async def _goodbye(self) -> None:
        """After the last fetch, before the connections close."""

    # --- playing

    async def _play(self) -> None:
        try:
            while not self.ended:
                pause_s = await self._turn()
                await asyncio.sleep(pause_s)
        finally:
            with contextlib.suppress(RuntimeError):
                async with self._arrived:
                    self._arrived.notify_all()

    async def _turn(self) -> float:
        """One poll and what it brings; the pause until the next."""
        self.stats.polls += 1
        try:
            playlist = await self._playlist()
        except (FetchError, PlaylistError):
            self.stats.poll_errors += 1
            return 0.5
        complete = True
        for listed in self._fresh(playlist):
            data = await self._segment(listed)
            if data is None:
                complete = False
                break
            await self._got(listed, data)
        self.ended = playlist.ended and complete
        return min(max(playlist.target_s / 4, 0.1), 1.0)

    def _fresh(self, playlist: MediaPlaylist) -> tuple[Listed, ...]:
        segments = playlist.segments
        if not segments:
            return ()
        if self._next is None:
            self._next = segments[0 if self._from_start else -min(LIVE_EDGE, len(segments))].sequence
        if segments[0].sequence > self._next:
            self.stats.missed += segments[0].sequence - self._next
            self._next = segments[0].sequence
        return tuple(s for s in segments if s.sequence >= self._next)

    async def _got(self, listed: Listed, data: bytes) -> None:
        stats, now = self.stats, time.monotonic()
        if self._played_until is None:
            stats.startup_s = now - self._started_at
            self._played_until = now
        elif now > self._played_until:
            stats.stalls += 1
            stall_s = now - self._played_until
            stats.stalled_s += stall_s
            stats.stall_s_max = max(stats.stall_s_max, stall_s)
            self._played_until = now
        self._played_until += listed.duration_s
        self._next = listed.sequence + 1
        stats.segments += 1
        stats.received_bytes += len(data)
        stats.hashes[listed.sequence] = hashlib.sha256(data).digest()
        if len(stats.hashes) > MAX_HASHES:
            stats.hashes.popitem(last=False)
        async with self._arrived:
            self._arrived.notify_all()

    # --- HTTP

    async def _get(self, url: str, limit: int, *, patience_s: float = HUB_PATIENCE_S) -> bytes:
        """A whole body of at most `limit` bytes within `patience_s`. Raises FetchError."""
        try:
            async with asyncio.timeout(patience_s), self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    raise FetchError(f"{response.status_code} for {urlsplit(url).path}", response.status_code)
                chunks, size = [], 0
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > limit:
                        raise FetchError(f"more than {limit} bytes")
                    chunks.append(chunk)
                return b"".join(chunks)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as e:
            raise FetchError(f"no answer for {urlsplit(url).path}: {type(e).__name__}") from e

    async def _get_playlist(self, url: str) -> MediaPlaylist:
        return parse_media((await self._get(url, MAX_PLAYLIST_BYTES)).decode("utf-8", "replace"), url)
