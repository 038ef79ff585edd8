"""An origin on real sockets, with the ledger's two ports in memory, and an encoder that sends what it is told."""

import asyncio
import contextlib
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import httpx2
import rtmp_client as rtmp
import uvicorn

from hub.clock import now_us
from ledger.events import Segment
from relay.http import media_protocol
from relay.http_bounds import BoundedHttpProtocol
from relay.media.packager import PackagerSettings
from relay.origin.settings import OriginSettings
from relay.ports import Assignment, BroadcastGrant, StreamGrant, Unavailable, Unknown
from relay.service import Origin

KEY = "main_0123456789abcdefghijklmnopqrstuv"
FAST = OriginSettings(
    packager=PackagerSettings(segment_target_ms=1000),
    publish_grace_s=0.6,
    playlist_wait_s=2.0,
    segment_wait_s=2.0,
    flv_batch_s=0.02,
)


@dataclass
class MemoryAuthority:
    """relay.ports.PublishAuthority. `away` makes every call fail; `amnesia` fails after the work was done."""

    away: bool = False
    amnesia: int = 0
    calls: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    published: dict[int, tuple[Segment, bytes]] = field(default_factory=dict)
    grants: list[BroadcastGrant] = field(default_factory=list)
    current: BroadcastGrant | None = None
    interrupted: bool = False
    next_sequence: int = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise Unavailable("away")

    def _forget(self) -> None:
        if self.amnesia:
            self.amnesia -= 1
            raise Unavailable("done, but you will never know")

    async def check_key(self, stream_key: str) -> StreamGrant | None:
        self._call("check_key")
        slug = stream_key.split("_")[0]
        known = stream_key == KEY or (stream_key.endswith("_other") and slug)
        return StreamGrant(uuid.uuid5(uuid.NAMESPACE_DNS, slug), slug) if known else None

    async def start_broadcast(self, stream_id: UUID, video_codec: str, audio_codec: str) -> BroadcastGrant:
        self._call(f"start {video_codec} {audio_codec}")
        if self.current is None:
            grant = BroadcastGrant(stream_id, "main", uuid.uuid4(), uuid.uuid4(), self.next_sequence, False)
        else:
            assert self.interrupted
            old = self.current
            grant = BroadcastGrant(
                stream_id, "main", old.broadcast_id, old.rendition_id, self.next_sequence, True
            )
        self.current, self.interrupted = grant, False
        self.grants.append(grant)
        return grant

    async def publish_segments(
        self, grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]
    ) -> None:
        self._call(f"publish {[s.sequence for s in segments]}")
        await asyncio.sleep(0)
        for segment, data in zip(segments, media, strict=True):
            known = self.published.get(segment.sequence)
            assert known is None or known == (segment, data), "not idempotent"
            if known is None:
                assert segment.sequence == self.next_sequence
                self.published[segment.sequence] = (segment, data)
                self.next_sequence += 1
        self._forget()

    async def interrupt_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        self._call("interrupt")
        assert self.current is not None
        assert not self.interrupted
        self.interrupted = True

    async def end_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        self._call("end")
        self.current, self.interrupted = None, False
        self.ended.append(reason)

    @property
    def segments(self) -> list[Segment]:
        return [segment for segment, _ in self.published.values()]


@dataclass
class MemorySteering:
    """relay.ports.Steering."""

    assigned: Assignment | None = None
    hub_every: int = 10
    away: bool = False
    sessions: dict[UUID, str] = field(default_factory=dict)
    polls: list[list[int]] = field(default_factory=list)
    fetches: list[int] = field(default_factory=list)
    nodes: set[bytes] = field(default_factory=set)

    async def open_session(self, slug: str, peer_ip: str) -> UUID | None:
        session = uuid.uuid4()
        self.sessions[session] = slug
        return session

    async def assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        if self.away:
            raise Unavailable("away")
        return self.assigned

    def known_assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        if self.away:
            raise Unknown
        return self.assigned

    def known_slug(self, session_id: UUID) -> str | None:
        return self.sessions.get(session_id)

    async def session_slug(self, session_id: UUID) -> str | None:
        return self.sessions.get(session_id)

    def observe_poll(self, session_id: UUID, sequences: Sequence[int], peer_ip: str) -> None:
        self.polls.append(list(sequences))

    def observe_fetch(self, session_id: UUID, sequence: int, peer_ip: str) -> None:
        self.fetches.append(sequence)

    def pointed_at_hub(self, session_id: UUID, sequence: int) -> bool:
        return sequence % self.hub_every == 0

    async def node_may_fetch(self, public_key: bytes) -> bool:
        return public_key in self.nodes


@dataclass
class Rig:
    origin: Origin
    authority: MemoryAuthority
    steering: MemorySteering
    rtmp_port: int
    http_port: int
    http: httpx2.AsyncClient

    @property
    def rtmp_url(self) -> str:
        return f"rtmp://127.0.0.1:{self.rtmp_port}/live/{KEY}"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    async def media_playlist(self, slug: str = "main") -> str:
        """The path of a new session's media playlist."""
        answer = await self.http.get(self.url(f"/live/{slug}.m3u8"))
        assert answer.status_code == 200, answer.text
        return answer.text.splitlines()[-1]

    async def until(self, ready: Callable[[], object], timeout_s: float = 8.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not ready():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def rig(settings: OriginSettings = FAST, **ports: object) -> AsyncIterator[Rig]:
    authority, steering = MemoryAuthority(), MemorySteering()
    for name, value in ports.items():
        setattr(authority if hasattr(authority, name) else steering, name, value)
    origin = Origin(authority, steering, settings, now_us)
    rtmp = socket.create_server(("127.0.0.1", 0))
    rtmp_port = rtmp.getsockname()[1]
    await origin.start_rtmp_on([rtmp])
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        origin.asgi,
        http=media_protocol(origin.asgi.at_once, max_connections=BoundedHttpProtocol.max_connections),
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with httpx2.AsyncClient(timeout=10) as http:
            yield Rig(origin, authority, steering, rtmp_port, listener.getsockname()[1], http)
    finally:
        for encoder in list(_encoders):
            await encoder.kill()
        await origin.close(2.0)
        server.should_exit = True
        await serving
        listener.close()


Tag = tuple[int, int, bytes]  # kind, timestamp in ms, body


def read_flv(data: bytes) -> list[Tag]:
    """All tags of an FLV file; raises when it is not well formed."""
    assert data[:4] == b"FLV\x01"
    tags, at = [], 13
    while at + 11 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        stamp = int.from_bytes(data[at + 4 : at + 7], "big") | data[at + 7] << 24
        body = data[at + 11 : at + 11 + size]
        if len(body) < size or at + 15 + size > len(data):
            break  # a live file ends anywhere
        assert int.from_bytes(data[at + 11 + size : at + 15 + size], "big") == size + 11
        tags.append((data[at], stamp, body))
        at += 15 + size
    return tags


def is_header(tag: Tag) -> bool:
    return tag[0] in (8, 9) and tag[2][1] == 0


def is_key(tag: Tag) -> bool:
    return tag[0] == 9 and tag[2][0] >> 4 == 1 and tag[2][1] == 1


_encoders: set["Encoder"] = set()


class Encoder:
    """A publisher under the test's control."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.answers = b""
        _encoders.add(self)

    @classmethod
    async def connect(
        cls, port: int, key: str = KEY, app: str = "live", tls: ssl.SSLContext | None = None
    ) -> "Encoder":
        name = "localhost" if tls is not None else None
        encoder = cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name))
        encoder._writer.write(rtmp.hello(key, app) + rtmp.set_chunk_size(65536))
        return encoder

    async def answered(self, text: bytes) -> bool:
        """Read until the server said `text`; False when it closed without."""
        async with asyncio.timeout(8):
            while text not in self.answers:
                data = await self._reader.read(65536)
                if not data:
                    return False
                self.answers += data
        return True

    async def closed(self) -> bool:
        """Read until the server closes."""
        async with asyncio.timeout(8):
            try:
                while data := await self._reader.read(65536):
                    self.answers += data
            except ConnectionError:
                pass
        return True

    async def send(self, tags: Iterable[Tag], shift: int = 0) -> None:
        for kind, stamp, body in tags:
            data = rtmp.chunk(4, kind, (stamp + shift) & 0xFFFFFFFF, body, 1, 65536)
            self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def send_raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def stop(self) -> None:
        """As OBS does."""
        self._writer.write(rtmp.unpublish(KEY))
        await self.closed()
        await self.kill()

    async def kill(self) -> None:
        _encoders.discard(self)
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def publishing(rig: Rig, key: str = KEY) -> Encoder:
    encoder = await Encoder.connect(rig.rtmp_port, key)
    assert await encoder.answered(b"NetStream.Publish.Start"), encoder.answers
    return encoder
