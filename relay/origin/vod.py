"""Recordings over HTTP, as a bare ASGI application: `/vod/{slug}` lists them, `/vod/{slug}.m3u8` leads to the newest.

Invariant: only files that a recording's own playlist could name are ever read, never a path from the request; a
recording is served when its broadcast is over. What is read at once is bounded.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Final

from ledger.ids import SLUG
from relay.answers import METHODS, NO_STORE, UUID_TEXT, Receive, Scope, Send, answer, problem
from relay.origin.playlist import CONTENT_TYPE
from relay.origin.recordings import END, PLAYLIST

_LIST: Final = re.compile(rf"/vod/({SLUG})")
_NEWEST: Final = re.compile(rf"/vod/({SLUG})\.m3u8")
_FILE: Final = re.compile(
    rf"/vod/({SLUG})/({UUID_TEXT})/(index\.m3u8|\d{{1,18}}\.ts|\d{{1,18}}\.m4s|init-[0-9a-f]{{16}}\.mp4)"
)
_MIME: Final = {".m3u8": CONTENT_TYPE, ".ts": b"video/mp2t", ".m4s": b"video/mp4", ".mp4": b"video/mp4"}
_CACHE: Final = (b"cache-control", b"public, max-age=3600")
MAX_LISTED: Final = 200
READ_AT_ONCE: Final = 8


class VodApp:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        path, method = scope["path"], scope["method"]
        if method == "OPTIONS":
            allowed = ((b"access-control-allow-methods", METHODS), (b"access-control-allow-headers", b"*"))
            await answer(scope, send, 204, b"text/plain", b"", allowed)
        elif method not in ("GET", "HEAD"):
            await problem(
                scope, send, 405, "Method not allowed", "media is read only", ((b"allow", METHODS),)
            )
        elif match := _FILE.fullmatch(path):
            await self._file(scope, send, self._folder / match[1] / match[2] / match[3])
        elif match := _LIST.fullmatch(path):
            listed = json.dumps({"recordings": await self._in_thread(self._recordings, match[1])}).encode()
            await answer(scope, send, 200, b"application/json", listed, (NO_STORE,))
        elif match := _NEWEST.fullmatch(path):
            found = await self._in_thread(self._recordings, match[1])
            if not found:
                await problem(scope, send, 404, "No recording", "no broadcast of this stream is kept")
                return
            to = (b"location", found[0]["playlist_url"].encode())
            await answer(scope, send, 302, b"text/plain", b"", (to, NO_STORE))
        else:
            await problem(scope, send, 404, "Not found", "there is no recording at this address")

    async def _file(self, scope: Scope, send: Send, path: Path) -> None:
        data = await self._in_thread(_read, path)
        if data is None or (path.name == PLAYLIST and not data.endswith(END.encode())):
            await problem(
                scope, send, 404, "No such recording", "it is not kept, or its broadcast is not over"
            )
            return
        await answer(scope, send, 200, _MIME[path.suffix], data, (_CACHE,))

    async def _in_thread(self, work: Any, argument: Any) -> Any:
        async with self._reading:
            return await asyncio.to_thread(work, argument)

    def _recordings(self, slug: str) -> list[dict[str, Any]]:
        """The complete ones, newest first."""
        found = []
        for playlist in (self._folder / slug).glob(f"*/{PLAYLIST}"):
            text = (_read(playlist) or b"").decode("utf-8", "replace")
            if text.endswith(END):
                lines = text.splitlines()
                seconds = sum(float(line[8:].rstrip(",")) for line in lines if line.startswith("#EXTINF:"))
                started = next(
                    (line[25:] for line in lines if line.startswith("#EXT-X-PROGRAM-DATE-TIME:")), ""
                )
                broadcast = playlist.parent.name
                found.append(
                    {
                        "broadcast_id": broadcast,
                        "started_at": started,
                        "duration_s": round(seconds),
                        "playlist_url": f"/vod/{slug}/{broadcast}/{PLAYLIST}",
                    }
                )
        found.sort(key=lambda r: str(r["started_at"]), reverse=True)
        return found[:MAX_LISTED]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
