"""Where a request comes from: what a trusted proxy says in `X-Forwarded-For`, and otherwise its connection's own peer.

Invariant: nobody but the proxies that the operator named says for whom a request is made. Caps on networks and limits
on requests go by that address, so whoever could choose it could choose what they are paid for.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

log = structlog.get_logger()

_HEADER: Final = b"x-forwarded-for"
_SAID_EVERY_S: Final = 60.0  # anybody can send the header, and none of them fills the log


class TrustedProxies:
    """ASGI. `trusted`: addresses and networks, commas between. `count` is told of each request with the header,
    whether it was believed."""

    def __init__(self, app: Any, trusted: str, count: Callable[[bool], None]) -> None:
        self._app = ProxyHeadersMiddleware(app, trusted)
        self._trusted = self._app.trusted_hosts
        self._count = count
        self._said_s = float("-inf")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and any(name == _HEADER for name, _ in scope["headers"]):
            peer = scope["client"][0]
            believed = peer in self._trusted
            self._count(believed)
            if not believed:
                self._say(peer)
        await self._app(scope, receive, send)

    def _say(self, peer: str) -> None:
        if time.monotonic() - self._said_s < _SAID_EVERY_S:
            return
        self._said_s = time.monotonic()
        log.warning(
            "X-Forwarded-For is not believed from this address: if it is a proxy of yours, name it in "
            "STREAMRP2P_TRUSTED_PROXIES",
            peer=peer,
        )
