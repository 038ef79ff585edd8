"""One running node: its parts wired together, started, and stopped without losing a receipt.

Invariant: `serve` returns only after the listener is closed, the spool is written and, within `FLUSH_S`, what it held
was offered to the hub; what the hub did not take stays in the spool for the next start.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import structlog
import uvicorn

from ledger.keys import KeyPair
from ledger.request import RequestAuthError, verify_request
from relay.node.app import NodeApp
from relay.node.cache import SegmentCache
from relay.node.claims import PlainClaims
from relay.node.heartbeat import Heartbeat
from relay.node.http_protocol import BoundedHttpProtocol
from relay.node.hub_client import HubClient, HubError, public_keys
from relay.node.identity import (
    IdentityError,
    Profile,
    Running,
    load_or_create_key,
    load_profile,
    locked,
    save_profile,
    save_running,
)
from relay.node.mapping.keeper import PortKeeper
from relay.node.prefetch import Prefetcher
from relay.node.sender import Sender
from relay.node.spool import Spool
from relay.node.tickets import Admitted, TicketGate
from relay.node.traffic import Traffic, UploadLimit

log = structlog.get_logger()

FLUSH_S: Final = 3.0
DRAIN_S: Final = 2
MIB: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Options:
    host: str = ""  # every address, IPv4 and IPv6
    port: int | None = None  # None: as joined; 0: any free one
    cache_bytes: int = 256 * MIB
    send_interval_s: float = 5.0
    upload_limit_mbit_s: float | None = None
    map_port: bool = True  # ask the home router to lead its port here
    max_connections: int = 1_000


async def join(
    folder: Path, hub_url: str, invite_code: str, *, name: str, port: int, public_url: str | None
) -> Profile:
    """Make the key, register with the hub, store what it said. Again: the same answer.

    Raises HubError (see its status) and IdentityError.
    """
    key = load_or_create_key(folder)
    known = load_profile(folder)
    hub_url = hub_url.rstrip("/")
    if known is not None and known.hub_url != hub_url:
        raise IdentityError(
            f"this node belongs to {known.hub_url}; for another hub use another --data-dir (receipts belong to one hub)"
        )
    async with HubClient(hub_url, key) as hub:
        joined = await hub.join(invite_code, name, public_url, port)
    public_keys(joined.ticket_keys)
    profile = Profile(
        hub_url=hub_url,
        node_id=joined.node_id,
        friend_id=joined.friend_id,
        name=name,
        port=port,
        public_url=public_url,
        ticket_keys=joined.ticket_keys,
        heartbeat_s=min(max(joined.heartbeat_s, 1.0), 60.0),
    )
    save_profile(folder, profile)
    return profile


def _maps_port(options: Options, profile: Profile) -> bool:
    """Not when the friend said how viewers reach this node, nor when node or hub live on this computer alone."""
    here = (options.host, urlsplit(profile.hub_url).hostname or "")
    return options.map_port and profile.public_url is None and not any(map(_is_loopback, here))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the node stops when its own event says so, and exits 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    folder: Path,
    options: Options,
    stop: asyncio.Event,
    *,
    ready: Callable[[Profile, int], None],
) -> None:
    """Run until `stop`; `ready(profile, port)` is called once, when it listens.

    Raises IdentityError (not joined, folder in use) and OSError (port taken, disk).
    """
    with locked(folder):
        key, profile = load_or_create_key(folder), load_profile(folder)
        if profile is None:
            raise IdentityError("this node has not joined a hub yet: run `streamrp2p node join HUB_URL CODE`")
        listener = listen(options.host, profile.port if options.port is None else options.port)
        with listener:
            port = int(listener.getsockname()[1])
            save_running(folder, Running(port=port, pid=os.getpid()))
            async with HubClient(profile.hub_url, key) as hub:
                await _Node(folder, options, key, profile, hub, port).run(listener, stop, ready)


class _Node:
    def __init__(
        self, folder: Path, options: Options, key: KeyPair, profile: Profile, hub: HubClient, port: int
    ) -> None:
        self._options, self._key, self._profile = options, key, profile
        self._port = port
        self.ports = PortKeeper(port) if _maps_port(options, profile) else None
        self.traffic = Traffic()
        self.gate = TicketGate(key.public_key, public_keys(profile.ticket_keys), hub.ticket_keys)
        self.cache = SegmentCache(hub.segment, max_bytes=options.cache_bytes)
        self.prefetcher = Prefetcher(self.cache)
        self.spool = Spool(folder)
        self.claims = PlainClaims(key, now_s=time.time)
        self.sender = Sender(key, hub, self.spool, self.claims, interval_s=options.send_interval_s)
        self.heartbeat = Heartbeat(hub, self.gate, self.traffic, profile, folder, port=self._public_port)
        for ticket in self.spool.tickets:
            self.gate.served(Admitted(ticket, ticket.ticket.hash))

    async def run(
        self, listener: socket.socket, stop: asyncio.Event, ready: Callable[[Profile, int], None]
    ) -> None:
        server = _Server(self._config())
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(sockets=[listener]))
                sending = tasks.create_task(self.sender.run(stop))
                beating = tasks.create_task(self.heartbeat.run(stop))
                if self.ports is not None:
                    tasks.create_task(self.ports.run(stop))
                ready(self._profile, self._port)
                await stop.wait()
                await self.prefetcher.close()
                server.should_exit = True
                await serving
                beating.cancel()
                await asyncio.wait({sending}, timeout=FLUSH_S)  # a batch may be under way
                sent_nothing_more = sending.cancel()
            if not sent_nothing_more:
                await self._flush()
        finally:
            await self.prefetcher.close()
            await self.cache.close()
            await self.spool.close()

    def _public_port(self) -> int:
        return self._port if self.ports is None else self.ports.port

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_S):
                await self.sender.send_all()
        except TimeoutError:
            log.warning(
                "the hub is slow; receipts stay on disk for the next start", receipts=self.spool.pending
            )

    def _config(self) -> uvicorn.Config:
        limit = self._options.upload_limit_mbit_s
        app = NodeApp(
            gate=self.gate,
            cache=self.cache,
            prefetcher=self.prefetcher,
            spool=self.spool,
            claims=self.claims,
            traffic=self.traffic,
            limit=None if limit is None else UploadLimit(limit),
            health=self.health,
        )
        protocol = type(
            "NodeHttpProtocol", (BoundedHttpProtocol,), {"max_connections": self._options.max_connections}
        )
        return uvicorn.Config(
            app,
            http=protocol,
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

    # --- what `node status` shows

    def health(self, authorization: bytes | None) -> dict[str, Any]:
        """For anyone: that it works. For the holder of the node's key (`node status`) also receipts and earnings."""
        ago_s = self.heartbeat.answered_ago_s()
        told: dict[str, Any] = {
            "status": "ok" if ago_s is not None and ago_s < 30 else "alone",
            "node_id": self._profile.node_id,
            "version": _version(),
            "viewers": self.traffic.viewers(),
        }
        if not self._is_mine(authorization):
            return told
        earned = self.heartbeat.earned
        return told | {
            "name": self._profile.name,
            "hub": {
                "url": self._profile.hub_url,
                "node_status": self.heartbeat.status,
                "heartbeat_ago_s": None if ago_s is None else round(ago_s, 1),
                "error": self.heartbeat.error or self.sender.error,
            },
            "traffic": {
                "uploaded_bytes": self.traffic.uploaded_bytes,
                "segments": self.traffic.segments,
                "refused": self.traffic.refused,
            },
            "port": self._port_told(),
            "cache": {
                "segments": len(self.cache),
                "bytes": self.cache.kept_bytes,
                "pulled_bytes": self.cache.pulled_bytes,
                "corrupt": self.cache.corrupt,
            },
            "receipts": {
                "waiting": self.spool.pending,
                "spool_bytes": self.spool.file_bytes,
                "batches": self.sender.batches,
                "verdicts": dict(self.sender.verdicts),
                "units": self.sender.units,
                "credited_bytes": self.sender.credited_bytes,
                "recent": list(self.sender.history),
            },
            "earned": None if earned is None else msgspec.to_builtins(earned),
        }

    def _port_told(self) -> dict[str, Any]:
        lease = self.ports.lease if self.ports else None
        return {
            "listening": self._port,
            "public": self._public_port(),
            "opened_by": lease.protocol if lease else None,
            "problem": self.ports.problem if self.ports else "",
        }

    def _is_mine(self, authorization: bytes | None) -> bool:
        if authorization is None:
            return False
        try:
            signer = verify_request(
                authorization.decode("latin-1"), "GET", "/health", b"", now_s=int(time.time())
            )
        except RequestAuthError:
            return False
        return signer == self._key.public_key


def _version() -> str:
    try:
        return version("streamrp2p")
    except PackageNotFoundError:
        return "unknown"


__all__ = ["HubError", "IdentityError", "Options", "join", "listen", "serve"]
