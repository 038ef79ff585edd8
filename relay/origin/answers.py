"""Whole HTTP answers over bare ASGI: bytes in memory, CORS open, HEAD understood."""

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias

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


async def answer(
    scope: Scope, send: Send, status: int, content_type: bytes, body: bytes, headers: Sequence[Header] = ()
) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(body)),
                *CORS,
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def problem(
    scope: Scope, send: Send, status: int, title: str, detail: str, headers: Sequence[Header] = ()
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
