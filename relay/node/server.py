"""Listening: sockets, TLS, and uvicorn without what a node does not want of it.

Invariant: a certificate that was renewed on disk is the one that new connections get; one that cannot be read leaves
the old one in use.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn

from relay.http import AtOnce, media_protocol, nothing_at_once

log = structlog.get_logger()

DRAIN_S: Final = 2
RENEWAL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its private key, PEM files."""

    certificate: Path
    key: Path

    def load(self, context: ssl.SSLContext) -> None:
        """Raises OSError (ssl.SSLError is one) that names the files."""
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as e:
            raise OSError(
                f"the certificate {self.certificate} and the key {self.key} cannot be used: {e}"
            ) from e

    def changed_ns(self) -> tuple[int, int]:
        return self.certificate.stat().st_mtime_ns, self.key.stat().st_mtime_ns


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; without a host on IPv6 and IPv4 where the machine has both. Raises OSError."""
    listener = _bind(host, port)
    # Connections inherit it. asyncio sets it itself only on sockets made with an explicit IPPROTO_TCP, and without it
    # an answer of two writes waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the node stops when its own event says so, and exits 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def server(
    app: Any,
    *,
    max_connections: int,
    context: ssl.SSLContext | None = None,
    at_once: AtOnce = nothing_at_once,
) -> Server:
    """Over TLS when a context is given. `at_once`: see `NodeApp`."""
    config = bounded_config(app, max_connections=max_connections, at_once=at_once)
    config.load()
    config.ssl = context
    return Server(config)


def bounded_config(app: Any, *, max_connections: int, at_once: AtOnce = nothing_at_once) -> uvicorn.Config:
    """For a small ASGI application that strangers may reach: bounded, and silent about itself."""
    return uvicorn.Config(
        app,
        http=media_protocol(at_once, max_connections=max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=DRAIN_S,
    )


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Raises OSError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    tls.load(context)
    return context


async def keep_renewed(tls: Tls, context: ssl.SSLContext, stop: asyncio.Event) -> None:
    """Load the files again whenever they change, until `stop`."""
    loaded = await asyncio.to_thread(tls.changed_ns)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), RENEWAL_S)
        try:
            changed = tls.changed_ns()
            if changed != loaded:
                tls.load(context)
                log.info("the certificate was renewed", certificate=str(tls.certificate))
                loaded = changed
        except OSError as e:
            log.warning("the certificate cannot be renewed, the old one stays in use", reason=str(e))
