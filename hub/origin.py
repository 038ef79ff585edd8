"""The origin process: RTMP (and SRT) in, HLS and HTTP-FLV out, and the API, on one event loop.

Invariant: the event loop never waits for the database; media paths are a bare ASGI app, everything else is FastAPI.
When the process dies, its publishers reconnect and go on with the same broadcast; its viewers keep their sessions.
"""

import asyncio
import gc
import os
import random
import resource
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import structlog
import uvicorn

from api.app import create_app
from api.deps import ApiSettings, Audience, Services
from api.directory import Directory
from api.estimates import Estimates
from api.liveness import Liveness, LivenessUnknown
from api.ratelimit import RateLimiter
from api.valkey import connect
from hub.authority import InPool, LedgerAuthority
from hub.clock import ClockWatch, now_us
from hub.digests import SegmentDigests
from hub.embedded.account import among_strangers
from hub.heartbeats import HEARTBEATS_FOLDER, Heartbeats
from hub.keystore import KeyStore
from hub.leaving import leave
from hub.live_nodes import NEW_HEALTH, LiveNode
from hub.logs import configure_logging
from hub.observations import OBSERVE_AFTER_S
from hub.pings import Pings
from hub.presence import Presence
from hub.proxies import TrustedProxies
from hub.rails import check_files
from hub.settings import Settings, load_settings, ports_of
from hub.steering import LedgerSteering
from hub.troubles import TROUBLES_FOLDER, Troubles
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger
from ledger.ids import ordered_id
from ledger.rails.given import given
from ledger.rails.returned import Returns
from ledger.services.broadcasts import end_broadcast
from ledger.services.delivery import DeliveryDesk
from ledger.services.nodes import prefix_commitment, see_at
from ledger.store.database import connect_pool, create_sql_engine
from ledger.store.outage import outage
from ledger.verifiers import Verifiers
from projections.queries import Queries, ReadModelUnavailable
from relay.http import media_protocol
from relay.origin.settings import OriginSettings
from relay.ports import Unavailable
from relay.service import Origin

log = structlog.get_logger("hub.origin")

POOL_THREADS: Final = 8
INGEST_THREADS: Final = 3
MEDIA_PATHS: Final = ("/live/", "/segments/", "/vod/")
RECORDINGS: Final = "recordings"
HTTP_CONNECTIONS: Final = 20_000
LIVENESS_EVERY_S: Final = 1.0
HEALTH_EVERY_S: Final = 10.0
OBSERVE_EVERY_S: Final = 5.0
REAP_EVERY_S: Final = 5.0
SWEEP_EVERY_S: Final = 600.0
STOP_PATIENCE_S: Final = 2


class OriginProcess:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.resolved_database_url()
        keys = KeyStore.open(settings.data_dir / "keys")
        self._ledger = Ledger(url)
        self._tables = connect_pool(url)
        self._engine = create_sql_engine(url)
        self._queries = Queries(self._engine)
        self._threads = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="ledger")
        # Viewers, however many and whatever they ask, never keep a publisher waiting.
        self._ingest_threads = ThreadPoolExecutor(INGEST_THREADS, thread_name_prefix="ingest")
        in_pool = InPool(self._threads)
        self._in_pool = in_pool
        digests = SegmentDigests(self._tables, keys)
        self._verifiers = Verifiers(os.cpu_count() or 1)
        desk = DeliveryDesk(self._ledger, digest_of=digests.get, verifiers=self._verifiers)
        self._pings = Pings()
        self._steering = LedgerSteering(
            self._ledger,
            desk,
            keys,
            in_pool,
            now_us=now_us,
            new_id=new_id,
            rng=random.SystemRandom(),
            # An epoch's plain credits are settled with it, and not all in the next.
            observe_after_s=min(OBSERVE_AFTER_S, settings.epoch_length_s / 10),
            doors=self._pings,
        )
        self._presence = Presence(self._pings, self._steering.update_live_nodes)
        authority = LedgerAuthority(
            self._ledger,
            digests,
            InPool(self._ingest_threads),
            grace_s=settings.publish_grace_s,
            now_us=now_us,
            new_id=new_id,
        )
        recorded = settings.record_days > 0
        media = OriginSettings(
            publish_grace_s=settings.publish_grace_s,
            container=settings.segments,
            low_latency_viewers=settings.low_latency_viewers,
            still_every_s=settings.thumbnail_s,
            files=settings.data_dir,
            recordings=settings.data_dir / RECORDINGS if recorded else None,
            recording_keep_s=settings.record_days * 86_400.0,
        )
        strangers = among_strangers(signal.SIGKILL)
        self._origin = Origin(authority, self._steering, media, now_us, child_setup=strangers)
        self._network_salt = keys.network_salt
        valkey = connect(settings.resolved_redis_url())
        self._liveness = Liveness(valkey)
        self._health: dict[UUID, int] = {}
        self._health_s = -HEALTH_EVERY_S
        self._rtmp_ready = False
        self._clock = ClockWatch(now_us)
        self._api = create_app(
            Services(
                settings=ApiSettings(
                    crew_name=settings.crew_name,
                    rtmp_url=settings.rtmp_server,
                    public_url=settings.base_url,
                ),
                ledger=self._ledger,
                desk=desk,
                reads=self._queries,
                directory=Directory(self._tables),
                liveness=self._liveness,
                estimates=Estimates(valkey),
                limiter=RateLimiter(settings.resolved_redis_url()),
                log_folder=settings.data_dir / "log",
                now_us=now_us,
                open_signing_session=self._steering.open_signing_session,
                audience=self._audience,
                commit_network=self._commit_network,
                ingest_ready=lambda: self._rtmp_ready,
                refusal=self._refusal,
                node_left=self._node_left,
                given=lambda: given(check_files(settings)),
                returned=lambda: Returns(check_files(settings)).all(),
                troubles=Troubles(settings.data_dir / TROUBLES_FOLDER).now,
                overdue=Heartbeats(settings.data_dir / HEARTBEATS_FOLDER).overdue,
            )
        )

    def _audience(self, slug: str) -> Audience:
        by_node = self._steering.carriers(slug)
        return Audience(viewers=self._steering.viewers(slug), by_node=Counter(by_node))

    def _refusal(self, slug: str) -> tuple[str, int] | None:
        refusal = self._origin.refusal(slug)
        return None if refusal is None else (refusal.reason, refusal.at_us)

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(MEDIA_PATHS):
            await self._origin.asgi(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    async def run(
        self, rtmp: list[socket.socket], http: list[socket.socket], rtmps: list[socket.socket]
    ) -> None:
        """Accept from these listening sockets until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await self._origin.start_rtmp_on(rtmp)
        await self._origin.start_rtmp_on(rtmps, self._settings.rtmps_context())
        if self._settings.srt_ports is not None:
            secret = self._settings.srt_passphrase
            await self._origin.start_srt(
                self._settings.rtmp_host,
                ports_of(self._settings.srt_ports),
                secret.get_secret_value() if secret is not None else None,
            )
        self._rtmp_ready = True
        server = uvicorn.Server(
            uvicorn.Config(
                TrustedProxies(self.asgi, self._settings.trusted_proxies, self._api.state.metrics.forwarded),
                # Connections that say nothing, or take nothing, do not hold one for ever.
                http=media_protocol(self._origin.asgi.at_once, max_connections=HTTP_CONNECTIONS),
                interface="asgi3",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=STOP_PATIENCE_S,
            )
        )
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        tasks: list[asyncio.Task[Any]] = [
            loop.create_task(server.serve(sockets=http)),
            loop.create_task(_forever(LIVENESS_EVERY_S, self._refresh_nodes)),
            # A loop of its own: a node that falls silent must not keep one that was suspended listed meanwhile.
            loop.create_task(_forever(LIVENESS_EVERY_S, self._ping_nodes)),
            loop.create_task(_forever(OBSERVE_EVERY_S, self._steering.record_observations)),
            loop.create_task(_forever(REAP_EVERY_S, self._end_abandoned)),
            loop.create_task(_forever(SWEEP_EVERY_S, self._sweep_recordings)),
        ]
        waiting = loop.create_task(stop.wait())
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        self._api.state.live.close()
        await self._origin.close(STOP_PATIENCE_S)
        with suppress(Exception):  # said in the log by the loop that failed before
            async with asyncio.timeout(STOP_PATIENCE_S):
                await self._steering.record_observations(all_now=True)
        await asyncio.wait(tasks[:1], timeout=STOP_PATIENCE_S + 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pings.close()
        self._close()
        for task in done - {waiting}:
            task.result()  # whatever ended the process comes to light

    def _close(self) -> None:
        for threads in (self._threads, self._ingest_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._verifiers.close()
        self._ledger.close()
        self._tables.close()
        self._engine.dispose()

    async def _refresh_nodes(self) -> None:
        if by_s := self._clock.set_by_s():
            log.warning(
                "this computer's clock was set; nodes date their requests by it, whatever theirs say",
                by_s=by_s,
            )
        with suppress(LivenessUnknown):
            await self._presence.refresh(self._alive)
        await self._refresh_health()

    async def _alive(self) -> list[LiveNode]:
        alive = await self._in_pool(lambda: self._liveness.alive(now_us=now_us()))
        return [
            LiveNode(p.node_id, p.url, p.viewers, self._health.get(p.node_id, NEW_HEALTH))
            for p in alive.values()
        ]

    async def _ping_nodes(self) -> None:
        await self._presence.ping()
        for nid, addresses in self._pings.take_addresses().items():
            await self._in_pool(self._see_at, nid, addresses)

    def _node_left(self, nid: UUID) -> None:
        self._presence.left(nid)
        self._steering.node_left(nid)

    async def _refresh_health(self) -> None:
        """Now and then: it changes with probes. Without read models it stays what it was."""
        now = time.monotonic()
        if now - self._health_s < HEALTH_EVERY_S:
            return
        self._health_s = now
        with suppress(ReadModelUnavailable):
            views = await self._in_pool(self._queries.nodes)
            self._health = {view.node_id: view.health for view in views}

    def _commit_network(self, ip: str, unique: bytes) -> bytes:
        return prefix_commitment(self._network_salt, ip, unique=unique)

    def _see_at(self, nid: UUID, addresses: list[str]) -> None:
        """Record the networks of a node that are news. One a minute: what is not recorded comes again."""
        node, at_us = self._ledger.load(Node, nid), now_us()
        for address in addresses:
            node = see_at(self._ledger, node, self._commit_network(address, nid.bytes), at_us=at_us)

    async def _sweep_recordings(self) -> None:
        self._origin.sweep_recordings()

    async def _end_abandoned(self) -> None:
        """End broadcasts whose publisher did not come back after this process, or the one before it, lost them."""
        on_air = {live.slug for live in self._origin.stats().live}
        for stream in await self._in_pool(self._queries.streams):
            broadcast_id = stream.broadcast_id
            if stream.state != "LIVE" or broadcast_id is None or stream.slug in on_air:
                continue
            broadcast = await self._in_pool(self._ledger.load, Broadcast, broadcast_id)
            silent_us = now_us() - broadcast.last_event_us
            if silent_us > (self._settings.publish_grace_s + REAP_EVERY_S) * 1_000_000:
                log.info("broadcast abandoned", stream=stream.slug)
                await self._in_pool(
                    end_broadcast, self._ledger, broadcast_id, reason="publisher gone", at_us=now_us()
                )


def new_id() -> UUID:
    """For sessions, tickets and broadcasts."""
    return ordered_id(now_us(), secrets.token_bytes(10))


async def _forever(seconds: float, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await step()
        except (Unavailable, ReadModelUnavailable) as error:
            outage.symptom(log, "will be tried again", step=step.__name__, error=str(error))
        except Exception:  # streams and viewers do not stop for housekeeping that fails
            log.exception("housekeeping fails: somebody must look", step=step.__name__)
        await asyncio.sleep(seconds)


def main() -> None:
    """Arguments: the numbers of the listening sockets inherited from the supervisor, for RTMP, HTTP, RTMPS."""
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Often 1024: a thousand viewers would be the end.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    import uvloop

    rtmp, http, rtmps = (
        [socket.socket(fileno=int(fd)) for fd in text.split(",") if fd] for text in sys.argv[1:4]
    )
    outage.called("origin")
    process = OriginProcess(settings)
    # 150,000 objects that stay. A full collection would look through them for a tenth of a second, and no media moves
    # meanwhile.
    gc.collect()
    gc.freeze()
    uvloop.run(process.run(rtmp, http, rtmps))
    leave()


if __name__ == "__main__":
    main()
