"""Whole HTTP answers over bare ASGI: bytes in memory, CORS open, HEAD understood."""

import functools
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias
from uuid import UUID

from relay.body import Body

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

CORS: Final[tuple[Header, ...]] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"etag, repr-digest, content-length"),
)
NO_STORE: Final[Header] = (b"cache-control", b"no-store")
METHODS: Final = b"GET, HEAD, OPTIONS"
# Sends a whole answer at once: status, header lines, length, body. False: not now, as the client has not taken what it
# was sent before. In the scope's extensions, where the server has it.
Respond: TypeAlias = Callable[[int, bytes, int, bytes | Body], bool]
RESPOND: Final = "relay.respond"
UUID_TEXT: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
uuid_of: Final = functools.lru_cache(4096)(UUID)  # a player asks with the same one every two seconds


async def answer(
    scope: Scope,
    send: Send,
    status: int,
    content_type: bytes,
    body: bytes | Body,
    headers: tuple[Header, ...] = (),
) -> None:
    sent: bytes | Body = b"" if scope["method"] == "HEAD" else body
    respond: Respond | None = (scope.get("extensions") or {}).get(RESPOND)
    if respond is not None and respond(status, header_lines(content_type, headers), len(body), sent):
        return
    length = (b"content-length", b"%d" % len(body))
    lines = [(b"content-type", content_type), *CORS, *headers, length]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": sent.data if isinstance(sent, Body) else sent})


@functools.lru_cache(1024)
def header_lines(content_type: bytes, headers: tuple[Header, ...]) -> bytes:
    """Joined once for all answers that are alike: the playlists, and each segment to all its viewers."""
    return b"".join(b"%b: %b\r\n" % line for line in ((b"content-type", content_type), *CORS, *headers))


async def problem(
    scope: Scope, send: Send, status: int, title: str, detail: str, headers: tuple[Header, ...] = ()
) -> None:
    """RFC 9457."""
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
    await answer(scope, send, status, b"application/problem+json", body, (NO_STORE, *headers))


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def peer_ip(scope: Scope) -> str:
    """The client's address as the server sees it; empty when it has none."""
    client = scope.get("client")
    return str(client[0]) if client else ""
