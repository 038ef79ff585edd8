"""One running node: its parts wired together, started, and stopped without losing a receipt.

Invariant: `serve` returns only after the listener is closed, the spool is written and, within `FLUSH_S`, what it held
was offered to the hub; what the hub did not take stays in the spool for the next start.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from ledger.keys import KeyPair
from relay.node.absence import Absence
from relay.node.app import NodeApp
from relay.node.cache import SegmentCache
from relay.node.claims import PlainClaims
from relay.node.heartbeat import Heartbeat
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
from relay.node.logind import watch_sleep
from relay.node.mapping.keeper import PortKeeper
from relay.node.page import NodePage
from relay.node.prefetch import Prefetcher
from relay.node.sender import Sender
from relay.node.server import Server, Tls, keep_renewed, listen, server, tls_context
from relay.node.spool import Spool
from relay.node.status import NodeStatus
from relay.node.tickets import Admitted, TicketGate
from relay.node.traffic import Traffic, UploadLimit

log = structlog.get_logger()

FLUSH_S: Final = 3.0
LINGER_S: Final = 1.0  # viewers who were sent here just before the goodbye are still served
LINGER_QUIET_S: Final = 0.3
PAGE_CONNECTIONS: Final = 20
PAGE_PORTS_TRIED: Final = 10  # several nodes on one computer have a page each
MIB: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Options:
    host: str = ""  # every address, IPv4 and IPv6
    port: int | None = None  # None: as joined; 0: any free one
    cache_bytes: int = 256 * MIB
    send_interval_s: float = 5.0
    upload_limit_mbit_s: float | None = None
    map_port: bool = True  # ask the home router to lead its port here
    page_port: int | None = None  # of the node's own page on loopback, or one of the next; None: no page
    tls: Tls | None = None
    max_connections: int = 1_000


@dataclass(frozen=True, slots=True)
class Started:
    """What `serve` tells when the node listens."""

    profile: Profile
    port: int
    page_port: int | None


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


async def serve(
    folder: Path, options: Options, stop: asyncio.Event, *, ready: Callable[[Started], None]
) -> None:
    """Run until `stop`; `ready` is called once, when it listens.

    Raises IdentityError (not joined, folder in use) and OSError (port taken, certificate, disk).
    """
    with locked(folder):
        key, profile = load_or_create_key(folder), load_profile(folder)
        if profile is None:
            raise IdentityError("this node has not joined a hub yet: run `streamrp2p node join HUB_URL CODE`")
        listener = listen(options.host, profile.port if options.port is None else options.port)
        page = _page_listener(options.page_port)
        with listener:
            port = int(listener.getsockname()[1])
            save_running(folder, Running(port=port, pid=os.getpid(), tls=options.tls is not None))
            async with HubClient(profile.hub_url, key) as hub:
                await _Node(folder, options, key, profile, hub, port).run(listener, page, stop, ready)


def _page_listener(port: int | None) -> socket.socket | None:
    if port is None:
        return None
    for tried in range(port, min(port + PAGE_PORTS_TRIED, 65_536)):
        try:
            return listen("127.0.0.1", tried)
        except OSError:
            continue
    log.warning("no port is free for this node's page", first=port, tried=PAGE_PORTS_TRIED)
    return None


async def _reaches(hub: HubClient, port: int) -> bool:
    """Whether the hub reaches this node on that port of the address it comes from; False when the hub does not say."""
    try:
        return (await hub.check(url=None, port=port)).reachable
    except HubError:
        return False


class _Node:
    def __init__(
        self, folder: Path, options: Options, key: KeyPair, profile: Profile, hub: HubClient, port: int
    ) -> None:
        self._options, self._profile, self._port = options, profile, port
        maps = _maps_port(options, profile)
        self._ports = PortKeeper(port, reached=partial(_reaches, hub)) if maps else None
        self._gate = TicketGate(key.public_key, public_keys(profile.ticket_keys), hub.ticket_keys)
        self._cache = SegmentCache(hub.segment, max_bytes=options.cache_bytes)
        self._prefetcher = Prefetcher(self._cache)
        self._spool = Spool(folder)
        self._claims = PlainClaims(key, now_s=time.time)
        self._sender = Sender(key, hub, self._spool, self._claims, interval_s=options.send_interval_s)
        self._traffic = Traffic()
        self._heartbeat = Heartbeat(
            hub,
            self._gate,
            self._traffic,
            profile,
            folder,
            port=lambda: self._ports.port if self._ports else port,
            back=self._sender.hub_is_back,
        )
        self._absence = Absence(self._heartbeat, self._traffic, self._sender, hub)
        self._status = NodeStatus(
            key=key,
            profile=profile,
            port=port,
            ports=self._ports,
            traffic=self._traffic,
            cache=self._cache,
            spool=self._spool,
            sender=self._sender,
            heartbeat=self._heartbeat,
        )
        for ticket in self._spool.tickets:
            self._gate.served(Admitted(ticket, ticket.ticket.hash))

    async def run(
        self,
        listener: socket.socket,
        page: socket.socket | None,
        stop: asyncio.Event,
        ready: Callable[[Started], None],
    ) -> None:
        tls = self._options.tls
        context = tls_context(tls) if tls else None
        app, most = self._app(), self._options.max_connections
        servers = [(server(app, max_connections=most, context=context, at_once=app.at_once), listener)]
        if page is not None:
            servers.append((server(NodePage(self._status.owner), max_connections=PAGE_CONNECTIONS), page))
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = [tasks.create_task(one.serve(sockets=[at])) for one, at in servers]
                sending = tasks.create_task(self._sender.run(stop))
                beating = tasks.create_task(self._heartbeat.run(stop))
                if self._ports is not None:
                    tasks.create_task(self._ports.run(stop))
                sleep = tasks.create_task(watch_sleep(self._absence.leave, self._absence.come_back))
                if tls and context:
                    tasks.create_task(keep_renewed(tls, context, stop))
                ready(Started(self._profile, self._port, page.getsockname()[1] if page else None))
                await stop.wait()
                sleep.cancel()
                await self._heartbeat.goodbye()
                if self._traffic.viewers():
                    await self._absence.quieten(LINGER_QUIET_S, LINGER_S)
                await self._prefetcher.close()
                await _end([one for one, _ in servers], serving)
                beating.cancel()
                await asyncio.wait({sending}, timeout=FLUSH_S)  # a batch may be under way
                sent_nothing_more = sending.cancel()
            if not sent_nothing_more:
                await self._flush()
        finally:
            await self._prefetcher.close()
            await self._cache.close()
            await self._spool.close()

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._sender.send_all()
        except TimeoutError:
            log.warning(
                "the hub is slow; receipts stay on disk for the next start", receipts=self._spool.pending
            )

    def _app(self) -> NodeApp:
        limit = self._options.upload_limit_mbit_s
        return NodeApp(
            gate=self._gate,
            cache=self._cache,
            prefetcher=self._prefetcher,
            spool=self._spool,
            claims=self._claims,
            traffic=self._traffic,
            limit=None if limit is None else UploadLimit(limit),
            health=self._status.health,
        )


async def _end(servers: list[Server], serving: list[asyncio.Task[None]]) -> None:
    for one in servers:
        one.should_exit = True
    await asyncio.wait(serving)
