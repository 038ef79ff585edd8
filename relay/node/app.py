"""The node's HTTP, a bare ASGI application: segments by ticket, receipts, health.

Invariant: a segment leaves only for an admitted ticket; a receipt is answered 204 only when it is on disk; every
refusal is a problem (RFC 9457) that says why. All answers carry open CORS: the tickets are the permission.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import UUID

import msgspec
import structlog

from ledger.receipt import SIGNED_BYTES as RECEIPT_BYTES
from ledger.receipt import SignedReceipt
from ledger.ticket import ViewerClass, WireError
from relay.answers import UUID_TEXT, Respond, uuid_of
from relay.node.cache import Busy, Cached, CorruptSegmentError, SegmentCache
from relay.node.claims import PlainClaims
from relay.node.hub_client import HubError
from relay.node.prefetch import Prefetcher
from relay.node.spool import Conflicting, Spool, SpoolFull
from relay.node.tickets import Admitted, TicketGate, TicketRefused
from relay.node.traffic import Traffic, UploadLimit

log = structlog.get_logger()

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_QUERY_BYTES: Final = 2_048
BODY_S: Final = 10.0
LEAVING: Final = "leaving"  # a status: this node said goodbye
CHUNK_BYTES: Final = 64 * 1024
_SEGMENT: Final = re.compile(rf"/segments/({UUID_TEXT})/([0-9]{{1,19}})\.(ts|m4s)", re.ASCII)
_MIME: Final = {"ts": b"video/mp2t", "m4s": b"video/mp4"}
_OPEN: Final[Headers] = [
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
]
_PREFLIGHT: Final[Headers] = [
    *_OPEN,
    (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
    (b"access-control-allow-headers", b"content-type, range"),
    (b"access-control-allow-private-network", b"true"),  # a viewer in the friend's own home network
    (b"access-control-max-age", b"86400"),
]


class Problem(Exception):
    """Answered as application/problem+json. `reason` is a word that stays; `detail` is for people."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail

    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "type": f"urn:streamrp2p:problem:{self.reason}",
                "title": self.reason.replace("-", " ").capitalize(),
                "status": self.status,
                "detail": self.detail,
            }
        )


@dataclass(kw_only=True)
class NodeApp:
    gate: TicketGate
    cache: SegmentCache
    prefetcher: Prefetcher
    spool: Spool
    claims: PlainClaims
    traffic: Traffic
    limit: UploadLimit | None
    health: Callable[[bytes | None], dict[str, Any]]  # given the Authorization header: its owner sees more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except Problem as problem:
            self.traffic.refused += 1
            await _answer(send, problem.status, problem.body(), b"application/problem+json", scope["method"])

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method == "OPTIONS":
            await send({"type": "http.response.start", "status": 204, "headers": _PREFLIGHT})
            await send({"type": "http.response.body"})
        elif match := _SEGMENT.fullmatch(path):
            _require(method in ("GET", "HEAD"))
            await self._segment(scope, receive, send, UUID(match[1]), int(match[2]), _MIME[match[3]])
        elif path == "/receipts":
            _require(method == "POST")
            await self._receipt(await _body(receive))
            await send({"type": "http.response.start", "status": 204, "headers": _OPEN})
            await send({"type": "http.response.body"})
        elif path == "/health":
            _require(method in ("GET", "HEAD"))
            header = next((v for n, v in scope["headers"] if n == b"authorization"), None)
            health = self.health(header)
            status = (
                503 if health["status"] == LEAVING else 200
            )  # the hub asks, and sends nobody here any more
            await _answer(send, status, msgspec.json.encode(health), b"application/json", method)
        else:
            raise Problem(
                404, "not-found", "a node serves /segments/{rendition}/{sequence}.ts, /receipts and /health"
            )

    # --- segments

    async def _segment(
        self, scope: Scope, receive: Receive, send: Send, rendition: UUID, sequence: int, mime: bytes
    ) -> None:
        try:
            admitted = await self.gate.admit(_ticket_text(scope["query_string"]), rendition, sequence)
        except TicketRefused as e:
            raise Problem(e.status, e.reason, e.detail) from e
        self.traffic.seen(admitted.ticket.session_id)
        cached = await self._cached(rendition, sequence)
        length = (b"content-length", b"%d" % len(cached.body))
        headers = [*_segment_headers(mime, cached), length]
        self._serves(admitted, rendition, sequence)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        self.traffic.segments += 1
        if admitted.ticket.viewer_class is ViewerClass.PLAIN or self.limit is not None:
            self.traffic.sending += 1
            try:
                await self._send_watching(receive, send, admitted, sequence, cached.body.data)
            finally:
                self.traffic.sending -= 1
        else:
            self.traffic.uploaded_bytes += len(cached.body)
            await send({"type": "http.response.body", "body": cached.body.data})

    def at_once(self, scope: Scope, respond: Respond, now_s: float) -> bool:  # noqa: ARG002
        """Answer a GET of a segment that is here, with a ticket that was verified before, in place. False: it is to be
        asked as usual, and nothing has happened."""
        match = _SEGMENT.fullmatch(scope["path"])
        if match is None or self.limit is not None:
            return False
        rendition, sequence = uuid_of(match[1]), int(match[2])
        try:
            admitted = self.gate.known(_ticket_text(scope["query_string"]), rendition, sequence)
        except (TicketRefused, Problem):
            return False
        if admitted is None or admitted.ticket.viewer_class is ViewerClass.PLAIN:
            return False  # of a plain viewer is to be known whether it took everything
        cached = self.cache.kept(rendition, sequence)
        if cached is None:
            return False
        lines = b"".join(b"%b: %b\r\n" % line for line in _segment_headers(_MIME[match[3]], cached))
        if not respond(200, lines, len(cached.body), cached.body):
            return False
        self.traffic.seen(admitted.ticket.session_id)
        self._serves(admitted, rendition, sequence)
        self.traffic.segments += 1
        self.traffic.uploaded_bytes += len(cached.body)
        return True

    def _serves(self, admitted: Admitted, rendition: UUID, sequence: int) -> None:
        if self.gate.served(admitted):
            self.spool.keep_ticket(admitted.signed)
        self.prefetcher.watched(rendition, sequence)

    async def _cached(self, rendition: UUID, sequence: int) -> Cached:
        try:
            return await self.cache.get(rendition, sequence)
        except HubError as e:
            if e.status == 404:
                raise Problem(404, "no-such-segment", "the hub has no such segment (yet, or any more)") from e
            raise Problem(502, "hub-unreachable", "this node cannot get the segment from the hub") from e
        except CorruptSegmentError as e:
            raise Problem(502, "corrupt-segment", "the hub's bytes do not match their digest") from e
        except Busy as e:
            raise Problem(503, "busy", "this node is pulling too many segments at once") from e

    async def _send_watching(
        self, receive: Receive, send: Send, admitted: Admitted, sequence: int, data: bytes | memoryview
    ) -> None:
        """Send in pieces, each after the socket took most of the last, and stop when the client goes.

        `send` reports no failure after a client has gone (ASGI): only `receive` tells.
        """
        gone = asyncio.create_task(_until_gone(receive))
        try:
            view = memoryview(data)
            while view and not gone.done():
                piece = bytes(view[:CHUNK_BYTES])
                if self.limit is not None:
                    await self.limit.take(len(piece))
                self.traffic.uploaded_bytes += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                view = view[CHUNK_BYTES:]
            await send(
                {"type": "http.response.body", "body": b"", "more_body": True}
            )  # waits for a full socket
            await asyncio.sleep(0)  # lets a disconnect that is already known be told
            complete = not gone.done()
            if complete:
                await send({"type": "http.response.body"})
        finally:
            gone.cancel()
        if complete and admitted.ticket.viewer_class is ViewerClass.PLAIN:
            self.claims.delivered(admitted, sequence, data)

    # --- receipts

    async def _receipt(self, data: bytes) -> None:
        try:
            receipt = SignedReceipt.decode(data)
        except WireError as e:
            raise Problem(400, "malformed-receipt", str(e)) from e
        admitted = self.gate.find_served(receipt.receipt.ticket_hash)
        if admitted is None:
            raise Problem(404, "unknown-ticket", "this node has served nothing with that ticket")
        sequences = receipt.receipt.sequences()
        if not sequences or not all(admitted.ticket.covers(s) for s in sequences):
            raise Problem(403, "out-of-range", "the receipt claims nothing, or segments outside its ticket")
        if not receipt.verified_by(admitted.ticket.viewer_key):
            raise Problem(403, "bad-signature", "the receipt is not signed by the viewer its ticket names")
        try:
            await self.spool.add(receipt)
        except SpoolFull as e:
            raise Problem(507, "spool-full", f"not kept, send it again later: {e}") from e
        except Conflicting as e:
            raise Problem(
                409, "conflicting-receipts", "a receipt is cumulative: it takes nothing back"
            ) from e


def _segment_headers(mime: bytes, cached: Cached) -> Headers:
    """All but its length."""
    return [
        *_OPEN,
        (b"content-type", mime),
        (b"cache-control", b"private, max-age=60, immutable"),
        (b"repr-digest", cached.repr_digest),
    ]


def _require(allowed: bool) -> None:
    if not allowed:
        raise Problem(405, "method-not-allowed", "that method is not for this path")


def _ticket_text(query: bytes) -> str:
    if len(query) > MAX_QUERY_BYTES:
        raise Problem(400, "malformed-ticket", f"the query is longer than {MAX_QUERY_BYTES} bytes")
    if query.startswith(b"t=") and b"&" not in query and b"%" not in query:  # as the hub writes it
        return query[2:].decode("latin-1")
    try:
        values = parse_qs(query.decode("latin-1"), max_num_fields=8).get("t", [])
    except ValueError:
        values = []
    if len(values) != 1:
        raise Problem(400, "malformed-ticket", "a segment URL has one ticket: ?t=...")
    return values[0]


async def _body(receive: Receive) -> bytes:
    """The request's body. Raises Problem unless it is exactly as long as a receipt."""
    data = b""
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "malformed-receipt", "the client has gone")
                data += bytes(message.get("body", b""))
                if len(data) > RECEIPT_BYTES:
                    raise Problem(413, "malformed-receipt", f"a receipt is {RECEIPT_BYTES} bytes")
                if not message.get("more_body", False):
                    break
    except TimeoutError as e:
        raise Problem(408, "too-slow", f"a receipt must arrive within {BODY_S:.0f} s") from e
    return data


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes, content_type: bytes, method: str) -> None:
    headers = [
        *_OPEN,
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
