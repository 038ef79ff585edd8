"""A picture of each stream, for posters: its last key frame as a JPEG, made when somebody asks.

Invariant: one is made at a time, and a stream's at most every `every_s`, however many ask; whoever asks meanwhile gets
the one before, or waits for the first. A frame that cannot be decoded costs its picture and nothing else.
"""

import asyncio
import sys
from dataclasses import dataclass
from typing import Final

import structlog

from relay.origin.live import Live

log = structlog.get_logger()
TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 1 << 20


@dataclass(slots=True)
class _Kept:
    jpeg: bytes | None
    at_s: float


class Stills:
    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._kept: dict[str, _Kept] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)

    async def of(self, live: Live) -> bytes | None:
        """None: there is none (yet)."""
        now_s = asyncio.get_running_loop().time()
        kept = self._kept.get(live.slug)
        frame = live.fanout.key_picture
        if frame is not None and (kept is None or now_s - kept.at_s >= self._every_s):
            if live.slug not in self._making:
                task = asyncio.create_task(self._make(live.slug, *frame), name=f"still {live.slug}")
                self._making[live.slug] = task
            if kept is None or kept.jpeg is None:
                await asyncio.wait([self._making[live.slug]])
                kept = self._kept.get(live.slug)
        return kept.jpeg if kept is not None else None

    def forget_but(self, slugs: set[str]) -> None:
        for slug in self._kept.keys() - slugs:
            del self._kept[slug]

    async def close(self) -> None:
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, slug: str, header: bytes, frame: bytes) -> None:
        jpeg = None
        try:
            async with self._turn:
                jpeg = await _decoded(len(header).to_bytes(4, "big") + header + frame)
        except (OSError, TimeoutError) as e:
            log.warning("no_still", slug=slug, error=str(e) or type(e).__name__)
        finally:
            self._kept[slug] = _Kept(jpeg, asyncio.get_running_loop().time())
            del self._making[slug]


async def _decoded(given: bytes) -> bytes:
    """Raises OSError or TimeoutError."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "relay.media.still", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            jpeg, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0 or not 0 < len(jpeg) <= MAX_BYTES:
        raise OSError("the key frame cannot be decoded")
    return jpeg
