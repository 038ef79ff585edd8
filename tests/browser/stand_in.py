"""A hub's media paths and a friend's node, for the pages' sake: real sockets, real bytes, real tickets."""

import asyncio
import threading
import time
from typing import Any
from uuid import UUID, uuid4

import uvicorn
from api_world import World, new_key

from api.deps import Audience
from api.directory import NodeProfile
from ledger.ids import node_id
from ledger.receipt import SignedReceipt
from ledger.services import nodes, streams
from ledger.ticket import SignedTicket

SEGMENT_S = 1
LISTED = 6
CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-allow-methods", b"*"),
]


class Served:
    """An ASGI app on a port of its own, in a thread of its own."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app,
            interface="asgi3",
            host="127.0.0.1",
            port=0,
            log_config=None,
            lifespan="off",
            access_log=False,
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)


async def answer(
    send: Any, status: int, body: bytes = b"", kind: bytes = b"application/octet-stream"
) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *CORS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


class Node:
    """Serves segments to tickets that name it, takes receipts; may fall asleep in the middle of everything."""

    def __init__(self) -> None:
        self.key = new_key()
        self.media: dict[int, bytes] = {}
        self.asleep = False
        self.served: list[int] = []
        self.receipts: list[SignedReceipt] = []
        self._server = Served(self.asgi)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def stop(self) -> None:
        self._server.stop()

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        while self.asleep:
            await asyncio.sleep(0.05)
        if scope["method"] == "OPTIONS":
            await answer(send, 204)
        elif scope["path"] == "/receipts":
            self.receipts.append(SignedReceipt.decode(await body_of(receive)))
            await answer(send, 204)
        else:
            ticket = SignedTicket.decode_url(scope["query_string"].decode().removeprefix("t="))
            sequence = int(scope["path"].rsplit("/", 1)[1].removesuffix(".ts"))
            assert ticket.ticket.node_key == self.key.public_key
            assert ticket.ticket.covers(sequence)
            self.served.append(sequence)
            await answer(send, 200, self.media[sequence])


class Hub:
    """The real API, and media paths that list one segment more every second."""

    def __init__(self, world: World, node: Node, segments: list[bytes]) -> None:
        self.world = world
        self.node = node
        node.media = dict(enumerate(segments))
        stream_key = streams.make_stream_key("main", b"s" * 20)
        stream_id = streams.register_stream(
            world.ledger, slug="main", owner_id=uuid4(), stream_key=stream_key, at_us=world.now_us
        )
        world.go_live(stream_id)
        world.publish(node.media, SEGMENT_S * 1_000_000)
        self._join()
        world.project()
        self.tickets: dict[UUID, SignedTicket] = {}
        self.from_hub: list[int] = []
        self._started_s = time.monotonic()
        self._server = Served(self.asgi)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def stop(self) -> None:
        self._server.stop()

    def _join(self) -> None:
        world, nid = self.world, node_id(self.node.key.public_key)
        nodes.create_invite(
            world.ledger, friend_id=uuid4(), code="code", expires_us=world.now_us * 2, at_us=world.now_us
        )
        nodes.join_node(
            world.ledger,
            code="code",
            public_key=self.node.key.public_key,
            prefix_commitment=b"node's network..",
            at_us=world.now_us,
        )
        world.directory.save_profile(NodeProfile(nid, "Berta's attic", self.node.url), at_us=world.now_us)
        world.watching["main"] = Audience(viewers=3, by_node={nid: 2})

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if not path.startswith("/live/"):
            await self.world.app(scope, receive, send)
        elif path.endswith("index.m3u8"):
            playlist = await asyncio.to_thread(self._playlist, UUID(path.split("/")[3]))
            await answer(send, 200, playlist.encode(), b"application/vnd.apple.mpegurl")
        elif path.endswith(".m3u8"):
            session_id = await asyncio.to_thread(self.world.open_session, "main", b"")
            master = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=800000\n/live/main/{session_id}/index.m3u8\n"
            await answer(send, 200, master.encode(), b"application/vnd.apple.mpegurl")
        else:
            sequence = int(path.rsplit("/", 1)[1].removesuffix(".ts"))
            self.from_hub.append(sequence)
            await answer(send, 200, self.node.media[sequence])

    def _playlist(self, session_id: UUID) -> str:
        if session_id not in self.tickets:
            self.tickets[session_id] = self.world.issue(session_id, self.node.key, 0)
        ticket = self.tickets[session_id].encode_url()
        end = min(LISTED + int((time.monotonic() - self._started_s) / SEGMENT_S), len(self.node.media))
        first = max(0, end - LISTED)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{SEGMENT_S + 1}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        rendition = self.world.broadcast.rendition_id
        for sequence in range(first, end):
            lines.append(f"#EXTINF:{SEGMENT_S}.0,")
            # As the real hub: a session that had to fetch from it is taken from its node at the next refresh.
            if self.from_hub:
                lines.append(f"/live/main/{session_id}/{sequence}.ts")
            else:
                lines.append(f"{self.node.url}/segments/{rendition}/{sequence}.ts?t={ticket}")
        return "\n".join(lines) + "\n"
