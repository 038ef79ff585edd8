"""A hub small enough to read, over real HTTP, with real signatures: what the node and the viewers are tested against.

It keeps credits as a set of (session, rendition, sequence) and nothing else, so it is also the slow, obvious model of
what a receipt is worth. Knobs make it fail in both ways: not done, and done but reported as failed.
"""

import asyncio
import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import uvicorn

from ledger.batch import Batch
from ledger.ids import NAMESPACE, node_id
from ledger.keys import KeyPair, key_id
from ledger.receipt import SignedReceipt, fold_digests, segment_digest
from ledger.request import RequestAuthError, verify_request
from ledger.ticket import SignedTicket, Ticket, ViewerClass, WireError

SLUG = "show"
CODE = "let-me-in"
TICKET_SEGMENTS = 300
_SEGMENT = re.compile(r"/segments/([0-9a-f-]{36})/(\d+)\.ts")
_LIVE = re.compile(r"/live/show/([0-9a-f-]{36})/(\d+)\.ts")
_MEDIA = re.compile(r"/live/show/([0-9a-f-]{36})/index\.m3u8")


def segment_bytes(sequence: int, size: int) -> bytes:
    return hashlib.shake_256(b"segment %d" % sequence).digest(size)


class _Answer(Exception):
    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail


class StandInHub:
    def __init__(self, *, size: int = 20_000, duration_s: float = 0.2) -> None:
        self.key = KeyPair(secrets.token_bytes(32))
        self.retired: list[KeyPair] = []
        self.rendition = uuid4()
        self.stream_id = uuid5(NAMESPACE, "stream:" + SLUG)
        self.size, self.duration_s = size, duration_s
        self.media: dict[int, bytes] = {}
        self.first_sequence = 100
        self.ended = False
        self.nodes: dict[bytes, dict[str, Any]] = {}
        self.heartbeats: list[dict[str, Any]] = []
        self.goodbyes = 0
        self.tickets: dict[bytes, SignedTicket] = {}
        self.sessions: dict[UUID, tuple[ViewerClass, bytes]] = {}
        self.session_tickets: dict[UUID, SignedTicket] = {}
        self.credits: set[tuple[UUID, UUID, int]] = set()
        self.verdicts: list[str] = []
        self.direct_receipts = 0
        self.pulls: list[int] = []
        self.key_requests = 0
        self.steer_to: str | None = None  # node URL
        self.refuse_batches = 0  # answer so many with 503, nothing done
        self.batch_version = 1  # the newest it takes; 1: it says nothing of that, as hubs once did
        self.batch_versions_seen: list[int] = []
        self.standing: dict[str, str] = {}  # what heartbeats are answered beside that all is well
        self.lose_answers = 0  # do so many, then answer 500
        self.hold_batches_s = 0.0
        self.corrupt_pulls = 0
        self.pull_delay_s = 0.0
        self.clock_offset_s = 0
        self.uploads: list[int] = []
        self.unreachable = ""  # why the hub does not reach nodes
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start(self._socket)

    def _start(self, listener: socket.socket) -> None:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            self,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            date_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def restart(self) -> None:
        self._start(socket.create_server(("127.0.0.1", self.port)))

    def publish(self, count: int) -> None:
        start = max(self.media, default=self.first_sequence - 1) + 1
        for sequence in range(start, start + count):
            self.media[sequence] = segment_bytes(sequence, self.size)

    def issue(self, node_key: bytes, viewer_key: bytes | None, **changes: Any) -> SignedTicket:
        """A ticket signed by this hub; `viewer_key` None: for a plain player."""
        fields: dict[str, Any] = {
            "viewer_class": ViewerClass.SIGNING if viewer_key else ViewerClass.PLAIN,
            "hub_key_id": key_id(self.key.public_key),
            "ticket_id": uuid4(),
            "session_id": uuid4(),
            "stream_id": self.stream_id,
            "rendition_id": self.rendition,
            "viewer_key": viewer_key or node_key,
            "node_key": node_key,
            "first_sequence": self.first_sequence,
            "last_sequence": self.first_sequence + TICKET_SEGMENTS - 1,
            "settle_by_s": int(time.time()) + 172_800,
            "tariff_version": 1,
            "byte_budget": 10**9,
            "nonce": secrets.token_bytes(16),
        } | changes
        ticket = Ticket(**fields).sign(self.key)
        self.tickets[ticket.ticket.hash] = ticket
        return ticket

    def judge(self, data: bytes) -> dict[str, Any]:
        def line(verdict: str, units: int = 0) -> dict[str, Any]:
            self.verdicts.append(verdict)
            return {"verdict": verdict, "units": units, "bytes": units * self.size, "cap": "", "position": 1}

        try:
            receipt = SignedReceipt.decode(data)
        except WireError:
            return line("malformed")
        signed = self.tickets.get(receipt.receipt.ticket_hash)
        if signed is None:
            return line("unknown_ticket")
        ticket = signed.ticket
        if not receipt.verified_by(ticket.viewer_key):
            return line("bad_signature")
        sequences = receipt.receipt.sequences()
        if not all(ticket.covers(s) and s in self.media for s in sequences):
            return line("out_of_range")
        digests = (segment_digest(ticket.nonce, self.media[s]) for s in sequences)
        if fold_digests(digests) != receipt.receipt.digest:
            return line("digest_mismatch")
        new = {(ticket.session_id, ticket.rendition_id, s) for s in sequences} - self.credits
        self.credits |= new
        return line("accepted", len(new)) if new else line("duplicate")

    # --- HTTP

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            status, content_type, data, headers = await self._route(scope, body)
        except _Answer as answer:
            status, content_type, headers = answer.status, "application/problem+json", {}
            data = json.dumps({"title": "no", "status": status, "detail": answer.detail}).encode()
        now = datetime.now(UTC) + timedelta(seconds=self.clock_offset_s)
        sent = {
            "date": format_datetime(now, usegmt=True),
            "content-type": content_type,
            "content-length": str(len(data)),
            **headers,
        }
        encoded = [(k.encode(), v.encode()) for k, v in sent.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": data})

    async def _route(self, scope: Any, body: bytes) -> tuple[int, str, bytes, dict[str, str]]:
        method, path = scope["method"], scope["path"]
        auth = next((v.decode() for n, v in scope["headers"] if n == b"authorization"), None)

        def signer() -> bytes:
            try:
                now = int(time.time()) + self.clock_offset_s
                return verify_request(auth, method, path, body, now_s=now)
            except RequestAuthError as e:
                raise _Answer(401, str(e)) from e

        def answer(status: int, value: Any) -> tuple[int, str, bytes, dict[str, str]]:
            return status, "application/json", json.dumps(value).encode(), {}

        keys = [k.public_key.hex() for k in (self.key, *self.retired)]
        if path == "/api/keys":
            self.key_requests += 1
            return answer(
                200, {"ticket": [{"key_id": "", "public_key": k, "retired": False} for k in keys], "log": []}
            )
        if path == "/api/nodes":
            return self._join(signer(), json.loads(body), keys, answer)
        if path == "/api/nodes/me/heartbeat":
            if signer() not in self.nodes:
                raise _Answer(403, "not a node")
            if method == "DELETE":
                self.goodbyes += 1
                return 204, "application/json", b"", {}
            self.heartbeats.append(json.loads(body))
            earned = {"unit": "EUR", "pending_micro": 1_500_000, "available_micro": 20, "paid_micro": 0}
            earned |= {"in_flight_micro": 250_000, "estimate_micro": 38_000}
            told = {"status": "active", "ticket_keys": keys, "earned": earned, **self.standing}
            return answer(
                200, told if self.batch_version == 1 else told | {"batch_version": self.batch_version}
            )
        if path == "/api/health":
            return answer(200, {})
        if path in ("/api/nodes/me/check", "/api/nodes/me/upload"):
            if signer() not in self.nodes:
                raise _Answer(403, "not a node")
            if path.endswith("upload"):
                self.uploads.append(len(body))
                return answer(200, {"received_bytes": len(body)})
            port = json.loads(body)["port"]
            why = self.unreachable
            told = {"url": f"http://127.0.0.1:{port}", "reachable": not why, "why": why, "took_ms": 1}
            return answer(200, told)
        if path == "/api/sessions":
            session = uuid4()
            self.sessions[session] = (ViewerClass.SIGNING, bytes.fromhex(json.loads(body)["viewer_key"]))
            return answer(
                201, {"session_id": str(session), "playlist_url": f"/live/{SLUG}/{session}/index.m3u8"}
            )
        if path == "/api/receipts/batches":
            return answer(200, await self._batch(body))
        if path == "/api/receipts":
            self.direct_receipts += 1
            return answer(200, {"index": 0, **self.judge(body)})
        return await self._media_route(path, signer)

    def _join(self, key: bytes, asked: Any, keys: list[str], answer: Any) -> Any:
        known = key in self.nodes
        if not known and asked["invite_code"] == "expired":
            raise _Answer(409, "this invite has expired")
        if not known and asked["invite_code"] != CODE:
            raise _Answer(409, "no such invite")
        self.nodes.setdefault(key, asked)
        told = {
            "node_id": str(node_id(key)),
            "friend_id": str(uuid5(NAMESPACE, "friend")),
            "ticket_keys": keys,
        }
        return answer(200 if known else 201, told | {"heartbeat_s": 1})

    async def _batch(self, body: bytes) -> Any:
        if self.refuse_batches:
            self.refuse_batches -= 1
            raise _Answer(503, "the ledger is away")
        try:
            batch = Batch.decode(body)
        except WireError as e:
            raise _Answer(400, str(e)) from e
        self.batch_versions_seen.append(batch.version)
        verdicts = [{"index": i, **self.judge(r)} for i, r in enumerate(batch.receipts)]
        await asyncio.sleep(self.hold_batches_s)
        if self.lose_answers:
            self.lose_answers -= 1
            raise _Answer(500, "done, but you will never know")
        return {"verdicts": verdicts}

    async def _media_route(self, path: str, signer: Any) -> tuple[int, str, bytes, dict[str, str]]:
        if match := _SEGMENT.fullmatch(path):
            if signer() not in self.nodes:
                raise _Answer(403, "not a node")
            self.pulls.append(int(match[2]))
            await asyncio.sleep(self.pull_delay_s)
            data = self.media.get(int(match[2]))
            if data is None or UUID(match[1]) != self.rendition:
                raise _Answer(404, "no such segment")
            digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
            if self.corrupt_pulls:
                self.corrupt_pulls -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            return 200, "video/mp2t", data, {"repr-digest": f"sha-256=:{digest}:"}
        if path == f"/live/{SLUG}.m3u8":
            session = uuid4()
            self.sessions[session] = (ViewerClass.PLAIN, b"")
            text = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000000\n{SLUG}/{session}/index.m3u8\n"
            return 200, "application/vnd.apple.mpegurl", text.encode(), {}
        if match := _MEDIA.fullmatch(path):
            return 200, "application/vnd.apple.mpegurl", self._playlist(UUID(match[1])).encode(), {}
        if match := _LIVE.fullmatch(path):
            data = self.media.get(int(match[2]))
            if data is not None:
                return 200, "video/mp2t", data, {}
        raise _Answer(404, "nothing here")

    def _playlist(self, session: UUID) -> str:
        if session not in self.sessions:
            raise _Answer(404, "no such session")
        listed = sorted(self.media)[-6:] if not self.ended else sorted(self.media)
        first = listed[0] if listed else self.first_sequence
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{max(1, round(self.duration_s))}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        for sequence in listed:
            lines += [f"#EXTINF:{self.duration_s:.3f},", self._segment_url(session, sequence)]
        return "\n".join(lines + (["#EXT-X-ENDLIST"] if self.ended else [])) + "\n"

    def _segment_url(self, session: UUID, sequence: int) -> str:
        if self.steer_to is None or not self.nodes:
            return f"{sequence}.ts"
        if session not in self.session_tickets:
            viewer_class, viewer_key = self.sessions[session]
            signing = viewer_key if viewer_class is ViewerClass.SIGNING else None
            self.session_tickets[session] = self.issue(next(iter(self.nodes)), signing, session_id=session)
        ticket = self.session_tickets[session].encode_url()
        return f"{self.steer_to}/segments/{self.rendition}/{sequence}.ts?t={ticket}"
