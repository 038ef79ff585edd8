"""The node's own page: what it is doing and earning, for the person who sits at this computer.

Invariant: it listens on loopback only and answers only requests that name this computer (Host), so that neither the
network nor a page of some other site that points its name here (DNS rebinding) reads what a friend earns.
"""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from relay.node.page.metrics import METRICS_TYPE, metrics_text

Status = Callable[[], dict[str, Any]]

_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_FILES: Final[Mapping[str, tuple[str, bytes]]] = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/page.css": ("page.css", b"text/css; charset=utf-8"),
    "/page.js": ("page.js", b"text/javascript; charset=utf-8"),
}
_HEADERS: Final = [
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class NodePage:
    """A bare ASGI application. `status` is what the node's owner may see."""

    def __init__(self, status: Status) -> None:
        self._status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - ASGI
        if scope["type"] != "http":
            return
        status, kind, body = self._answer(scope)
        headers = [*_HEADERS, (b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, scope: Any) -> tuple[int, bytes, bytes]:
        path, text = scope["path"], b"text/plain; charset=utf-8"
        if not names_this_computer(scope["headers"]):
            return 403, text, b"this page is for the node's own computer: open it by 127.0.0.1\n"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, text, b"this page is only read\n"
        if path in _FILES:
            name, kind = _FILES[path]
            return 200, kind, files(__name__).joinpath(name).read_bytes()
        if path == "/status.json":
            return 200, b"application/json", msgspec.json.encode(self._status())
        if path == "/metrics":
            return 200, METRICS_TYPE, metrics_text(self._status()).encode()
        return 404, text, b"here are /, /status.json and /metrics\n"


def names_this_computer(headers: list[tuple[bytes, bytes]]) -> bool:
    """Exactly one Host, and it is a name or address of loopback."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return False
    try:
        return urlsplit("//" + hosts[0].decode("ascii")).hostname in _HERE
    except ValueError:
        return False
