"""The parts of the relay as processes of their own, so that what each costs can be read from the system.

`python -m bench.relay_rig origin [low-latency]` is ingest and origin with the ledger's ports in memory; it prints its
addresses as one JSON line, answers each line on stdin with one of its own, and ends when stdin does. `... pull URL
COUNT` is a friend's node fetching COUNT segments, checked against their digests; `... drain URL COUNT SECONDS` is COUNT
viewers over HTTP-FLV who throw away what they get.
"""

import asyncio
import hashlib
import json
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_DNS, UUID, uuid4, uuid5

import structlog
import uvicorn
import uvloop

from hub.clock import now_us
from ledger.events import Segment
from ledger.keys import KeyPair
from relay.http import media_protocol
from relay.ingest import IngestServer
from relay.media.h264 import H264Config
from relay.media.packager import Format, Packed
from relay.node.cache import SegmentCache
from relay.node.hub_client import HubClient
from relay.origin.asgi import MediaApp
from relay.origin.live import Catalogue, Live
from relay.origin.settings import OriginSettings
from relay.origin.store import RenditionStore
from relay.ports import Assignment, BroadcastGrant, StreamGrant
from relay.rtmp import amf
from relay.rtmp.chunks import Message, write_message

SESSION = UUID(int=1)
FIXED = UUID(int=2)  # rendition of the segments that `fill` makes
FIXED_BYTES = 1_200_000
FIXED_COUNT = 40


class Authority:
    """relay.ports.PublishAuthority: yes to everybody, and nothing is written down."""

    def __init__(self) -> None:
        self._next: dict[UUID, int] = {}

    async def check_key(self, stream_key: str) -> StreamGrant | None:
        slug = stream_key.split("_")[0]
        return StreamGrant(uuid5(NAMESPACE_DNS, slug), slug)

    async def start_broadcast(self, stream_id: UUID, video_codec: str, audio_codec: str) -> BroadcastGrant:
        return BroadcastGrant(stream_id, "", uuid4(), uuid4(), self._next.get(stream_id, 0), False)

    async def publish_segments(
        self, grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]
    ) -> None:
        self._next[grant.stream_id] = segments[-1].sequence + 1

    async def interrupt_broadcast(self, grant: BroadcastGrant, reason: str) -> None: ...
    async def end_broadcast(self, grant: BroadcastGrant, reason: str) -> None: ...


class Steering:
    """relay.ports.Steering: one session for everybody, served by the hub."""

    async def open_session(self, slug: str, peer_ip: str) -> UUID | None:
        return SESSION

    async def assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        return None

    async def session_slug(self, session_id: UUID) -> str | None:
        return self.slug

    def known_assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        return None

    def known_slug(self, session_id: UUID) -> str | None:
        return self.slug

    slug = "s0"

    def observe_poll(self, session_id: UUID, sequences: Sequence[int], peer_ip: str) -> None: ...
    def observe_fetch(self, session_id: UUID, sequence: int, peer_ip: str) -> None: ...

    def pointed_at_hub(self, session_id: UUID, sequence: int) -> bool:
        return False

    async def node_may_fetch(self, public_key: bytes) -> bool:
        return True


class _Publisher:
    silent_s = 0.0

    def expel(self, reason: str) -> None: ...


async def origin(low_latency: bool) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = OriginSettings(
        max_connections=1000,
        retain_s=20.0,
        files=Path(tempfile.gettempdir()),
        publish_grace_s=1.0,
        container="fmp4" if low_latency else "ts",
        low_latency_viewers=100 if low_latency else 0,
    )
    authority, steering = Authority(), Steering()
    catalogue = Catalogue(authority, settings, now_us)
    ingest = IngestServer(authority, catalogue, settings)
    rtmp_port = await ingest.start_on(socket.create_server(("127.0.0.1", 0)))
    app = MediaApp(catalogue, steering, settings, now_us)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=media_protocol(app.at_once, max_connections=20_000),  # as the hub's
            lifespan="off",
            access_log=False,
            log_level="error",
            interface="asgi3",
            server_header=False,
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    print(json.dumps({"rtmp": rtmp_port, "http": listener.getsockname()[1]}), flush=True)
    loop = asyncio.get_running_loop()
    while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if command.startswith("slug "):  # whose session the one session is
            steering.slug = command[5:]
        elif command == "fill":
            steering.slug = "fixed"
            fill(catalogue, authority, settings)
        held = sum(r.held_bytes for r in catalogue.renditions.values())
        print(json.dumps({"held": held, "live": len(catalogue.lives), "skips": skips(catalogue)}), flush=True)
    server.should_exit = True
    await catalogue.close(1.0)
    await ingest.close()
    await serving


def skips(catalogue: Catalogue) -> int:
    """How often viewers over HTTP-FLV who are still there were too slow, and went on at a later key frame."""
    return sum(viewer.skips for live in catalogue.lives.values() for viewer in live.fanout.viewers)


def fill(catalogue: Catalogue, authority: Authority, settings: OriginSettings) -> None:
    """A stream `fixed` with segments of a known size, all kept."""
    live = Live(StreamGrant(FIXED, "fixed"), authority, settings, now_us, catalogue)
    live.admit(_Publisher())
    catalogue.lives["fixed"] = live
    format_ = Format(H264Config("avc1.64001f", 1280, 720, 4, b"", b""), None)
    store = RenditionStore(FIXED, format_, 0, settings, time.monotonic)
    for sequence in range(FIXED_COUNT):
        data = os.urandom(FIXED_BYTES)
        sha256 = hashlib.sha256(data).digest()
        store.add(Segment(sequence, 2_000_000, len(data), sha256, 0), Packed(data, sha256))
    live.rendition = catalogue.renditions[FIXED] = store


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def pull(url: str, count: int) -> None:
    async with HubClient(url, KeyPair(bytes(32))) as hub:
        cache = SegmentCache(hub.segment, max_bytes=FIXED_BYTES)  # one at a time: each get is a pull
        await cache.get(FIXED, 0)
        before = _cpu_s()
        for i in range(1, count + 1):
            await cache.get(FIXED, i % FIXED_COUNT)
        spent = (_cpu_s() - before) / count * 1000
        data, before = os.urandom(FIXED_BYTES), _cpu_s()
        for _ in range(50):
            hashlib.sha256(data).digest()
        print(json.dumps({"ms": spent, "check_ms": (_cpu_s() - before) / 50 * 1000}))
        await cache.close()


class _Drain(asyncio.BufferedProtocol):
    buffer = bytearray(1 << 20)

    def __init__(self, request: bytes, totals: dict[str, int]) -> None:
        self._request, self._totals = request, totals

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._totals["bytes"] += nbytes

    def connection_lost(self, exc: Exception | None) -> None:
        self._totals["lost"] += 1


def player(app: str, name: str) -> bytes:
    """What an RTMP player says after the handshake, all at once: connect, createStream, play."""

    def say(values: Sequence[amf.Amf], channel: int, stream: int) -> bytes:
        return write_message(channel, Message(20, 0, stream, amf.encode(values)), 128)

    return (
        say(["connect", 1.0, {"app": app}], 3, 0)
        + say(["createStream", 2.0, None], 3, 0)
        + say(["play", 3.0, None, name], 8, 1)
    )


async def drain(url: str, count: int, seconds: float) -> None:
    parts, totals = urlsplit(url), {"bytes": 0, "lost": 0}
    if parts.scheme == "rtmp":
        request = b"\x03" + bytes(2 * 1536) + player(*parts.path.strip("/").split("/"))
    else:
        request = f"GET {parts.path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.create_connection(lambda: _Drain(request, totals), parts.hostname, parts.port)
    await asyncio.sleep(2.0)  # what they got at once, the cached pictures, is no measure of the rest
    print("ready", flush=True)
    totals["bytes"] = 0
    await asyncio.sleep(seconds)
    print(json.dumps(totals), flush=True)


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    what, *rest = sys.argv[1:]
    if what == "origin":
        uvloop.run(origin(rest == ["low-latency"]))
    elif what == "pull":
        uvloop.run(pull(rest[0], int(rest[1])))
    else:
        uvloop.run(drain(rest[0], int(rest[1]), float(rest[2])))


if __name__ == "__main__":
    main()
