"""The outermost layer: the bound on bodies, headers that every answer has, and the counting of requests.

Invariant: no endpoint ever reads more than `limit` bytes of a request, and nothing below has to remember that.
"""

import re
import time
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from api.problems import Problem, ProblemType, render

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Browsers heed it where nobody can have changed the page on its way, and complain in their console everywhere else.
_OPENER: Final = ("Cross-Origin-Opener-Policy", "same-origin")
_THIS_COMPUTER: Final = re.compile(rb"(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::\d+)?", re.IGNORECASE)
UNMATCHED: Final = "(none)"


class Edge:
    def __init__(
        self,
        app: ASGIApp,
        *,
        body_bytes_max: int,
        exceptions: Mapping[str, int],
        metrics: Metrics,
        https: bool,
    ) -> None:
        """`exceptions`: paths whose bodies may be larger. `https`: so people reach the hub, whatever a request says
        that came through a proxy."""
        self._app = app
        self._https = https
        self._limit = body_bytes_max
        self._exceptions = exceptions
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = 500
        limit = self._exceptions.get(scope["path"], self._limit)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._https or _is_trustworthy(scope):
                    headers.setdefault(*_OPENER)
            await send(message)

        try:
            if _declared_bytes(scope) > limit:
                await render(_too_large(limit))(scope, receive, send_with_headers)
            else:
                await self._app(scope, _bounded(receive, limit), send_with_headers)
        finally:
            # Routing leaves its route in the scope; its template keeps the number of label values small.
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._metrics.request(scope["method"], route, status, time.perf_counter() - started_s)


def _is_trustworthy(scope: Scope) -> bool:
    """Whether browsers take the origin for one (W3C Secure Contexts, 3.1)."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return scope["scheme"] == "https" or _THIS_COMPUTER.fullmatch(host) is not None


def _bounded(receive: Receive, limit: int) -> Receive:
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return bounded


def _too_large(limit: int) -> Problem:
    # The rest of the body is not read: the connection cannot be used again.
    return Problem(ProblemType.TOO_LARGE, f"at most {limit} bytes are taken", headers={"Connection": "close"})


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
