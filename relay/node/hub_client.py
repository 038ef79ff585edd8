"""The node's side of the hub's HTTP: every answer is bounded, every failure says whether trying again can help.

Invariant: a method returns a complete, well-formed answer or raises HubError; nothing of the node's secrets is sent
but signatures (ledger.request), dated by the hub's clock where that and this computer's are too far apart (ADR 0053).
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import msgspec

from ledger.batch import Batch
from ledger.keys import PUBLIC_KEY_BYTES, KeyPair
from ledger.request import MAX_SKEW_S, sign_request
from ledger.verdict import Verdict
from relay.node.pull_client import Answer, PullClient, PullError, Unfit

MAX_JSON_BYTES: Final = 1024 * 1024
MAX_SEGMENT_BYTES: Final = 32 * 1024 * 1024
MAX_KEYS: Final = 64
_HEADERS: Final = {"accept-encoding": "identity", "user-agent": "streamrp2p-node"}
_T = TypeVar("_T")


class HubError(Exception):
    """The hub did not do what was asked. The message is for people.

    `status` is the HTTP status, 0 when there was no answer. `transient`: trying again later can help.
    """

    def __init__(self, message: str, *, status: int = 0, transient: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient


@dataclass(frozen=True, slots=True)
class Pulled:
    """A segment as it came."""

    data: bytes | memoryview
    sha256: bytes  # of the data
    repr_digest: str  # the hub's `Repr-Digest` header; "" when there is none


class Joined(msgspec.Struct, frozen=True):
    node_id: str
    friend_id: str
    ticket_keys: list[str]
    heartbeat_s: float = 5.0


class Earned(msgspec.Struct, frozen=True):
    unit: str = ""  # of account; hubs of before that was told leave it out
    pending_micro: int = 0
    available_micro: int = 0
    in_flight_micro: int = 0  # a bank or a chain has it and has not confirmed it yet
    paid_micro: int = 0
    estimate_micro: int | None = None  # of what is not settled yet; in none of the others


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    status: str
    ticket_keys: list[str]
    earned: Earned
    reason: str = ""  # why the node was suspended or retired
    batch_version: int = 1  # a hub that does not say takes the first format only


class VerdictLine(msgspec.Struct, frozen=True):
    """The hub's answer to one receipt of a batch."""

    index: int
    verdict: Verdict
    units: int = 0
    bytes: int = 0
    cap: str = ""
    position: int | None = None


class Checked(msgspec.Struct, frozen=True):
    """Whether the hub reaches this node."""

    url: str
    reachable: bool
    why: str = ""
    took_ms: int = 0


class _Verdicts(msgspec.Struct, frozen=True):
    verdicts: list[VerdictLine]


class _Key(msgspec.Struct, frozen=True):
    public_key: str


class _Keys(msgspec.Struct, frozen=True):
    ticket: list[_Key]


class _Problem(msgspec.Struct, frozen=True):
    title: str = ""
    detail: str = ""


def public_keys(texts: list[str]) -> list[bytes]:
    """Hub ticket keys from hex. Raises HubError for anything else, or for too many."""
    if len(texts) > MAX_KEYS:
        raise HubError(f"the hub names {len(texts)} ticket keys; at most {MAX_KEYS} are kept")
    try:
        keys = [bytes.fromhex(t) for t in texts]
    except ValueError as e:
        raise HubError("the hub's ticket keys are not hex") from e
    if any(len(k) != PUBLIC_KEY_BYTES for k in keys):
        raise HubError(f"a ticket key is {PUBLIC_KEY_BYTES} bytes")
    return keys


class HubClient:
    """Connections to one hub, a pool for segments and one for all else. `now_s` is the clock of request signatures."""

    def __init__(self, hub_url: str, key: KeyPair, *, now_s: Callable[[], float] = time.time) -> None:
        self.hub_url = hub_url.rstrip("/")
        self._key = key
        self._now_s = now_s
        self.hub_ahead_s = 0  # of this computer's clock, in signatures; 0 while the hub takes ours
        self.batch_version = 1  # the newest that the hub takes, as far as it has said
        self._prefix = urlsplit(self.hub_url).path
        self._http = _general_client()
        self._before: httpx2.AsyncClient | None = None  # what is under way on it may end
        self._pulls = PullClient(self.hub_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pulls.close()
        await self._http.aclose()
        if self._before is not None:
            await self._before.aclose()

    async def connect_anew(self) -> None:
        """Use no connection of before: this computer slept, and nobody may be at the other end any more."""
        self._pulls.close()
        if self._before is not None:
            await self._before.aclose()
        self._before, self._http = self._http, _general_client()

    async def join(self, invite_code: str, name: str, url: str | None, port: int) -> Joined:
        body = {"invite_code": invite_code, "name": name, "url": url, "port": port}
        return await self._json("POST", "/api/nodes", body, Joined)

    async def heartbeat(
        self, *, url: str | None, port: int, viewers: int, uploaded_bytes: int
    ) -> HeartbeatAnswer:
        body = {"url": url, "port": port, "viewers": viewers, "uploaded_bytes": uploaded_bytes}
        answer = await self._json("POST", "/api/nodes/me/heartbeat", body, HeartbeatAnswer)
        self.batch_version = answer.batch_version
        return answer

    async def goodbye(self) -> None:
        """No more viewers, until the next heartbeat."""
        await self._send("DELETE", "/api/nodes/me/heartbeat", b"", MAX_JSON_BYTES)

    async def ticket_keys(self) -> list[bytes]:
        """Every ticket key the hub has ever had, retired ones too: their tickets may still be in use."""
        answer = await self._json("GET", "/api/keys", None, _Keys)
        return public_keys([k.public_key for k in answer.ticket])

    async def send_batch(self, batch: Batch) -> list[VerdictLine]:
        """One verdict for each receipt, in the batch's order."""
        body = batch.encode()
        _, data = await self._send(
            "POST", "/api/receipts/batches", body, MAX_JSON_BYTES, content_type="application/octet-stream"
        )
        verdicts = sorted(_decode(data, _Verdicts).verdicts, key=lambda v: v.index)
        if [v.index for v in verdicts] != list(range(len(batch.receipts))):
            raise HubError("the hub did not answer every receipt of the batch")
        return verdicts

    async def check(self, *, url: str | None, port: int) -> Checked:
        """Ask the hub to look for this node where it would send viewers."""
        return await self._json("POST", "/api/nodes/me/check", {"url": url, "port": port}, Checked)

    async def upload(self, data: bytes) -> None:
        """Bytes that the hub drops, for measuring the line."""
        await self._send(
            "POST", "/api/nodes/me/upload", data, MAX_JSON_BYTES, content_type="application/octet-stream"
        )

    async def segment(self, rendition: UUID, sequence: int) -> Pulled:
        """A segment. What it hashes to and what the hub says are not compared here.

        The hub may hold the request for some seconds when the segment is the next to come; then HubError 404.
        """
        path = f"/segments/{rendition}/{sequence}.ts"
        if self._pulls.direct:
            try:
                answer = await self._pull(path)
                return Pulled(answer.body, answer.sha256, answer.headers.get("repr-digest", ""))
            except Unfit:
                self._pulls.direct = (
                    False  # something in front of the hub leaves the length out, and will again
                )
        headers, data = await self._send("GET", path, b"", MAX_SEGMENT_BYTES)
        return Pulled(data, hashlib.sha256(data).digest(), headers.get("repr-digest", ""))

    async def _pull(self, path: str) -> Answer:
        answer = await self._pull_once(path)
        if self._learns_time(answer.status, answer.headers):
            answer = await self._pull_once(path)
        if answer.status // 100 != 2:
            raise _refusal(answer.status, answer.body)
        return answer

    async def _pull_once(self, path: str) -> Answer:
        target = self._prefix + path
        headers = {**_HEADERS, "authorization": self._signed("GET", target, b"")}
        try:
            return await self._pulls.get(target, headers, MAX_SEGMENT_BYTES)
        except (PullError, OSError) as e:  # TimeoutError is an OSError
            raise HubError(f"no answer from {self.hub_url}: {str(e) or type(e).__name__}") from e

    async def _json(self, method: str, path: str, body: dict[str, Any] | None, kind: type[_T]) -> _T:
        sent = b"" if body is None else msgspec.json.encode(body)
        _, data = await self._send(method, path, sent, MAX_JSON_BYTES, content_type="application/json")
        return _decode(data, kind)

    async def _send(
        self, method: str, path: str, body: bytes, limit: int, *, content_type: str = ""
    ) -> tuple[httpx2.Headers, bytes]:
        kind = {"content-type": content_type} if content_type and body else {}
        status, headers, data = await self._send_once(method, path, body, limit, kind)
        if self._learns_time(status, headers):
            status, headers, data = await self._send_once(method, path, body, limit, kind)
        if status // 100 != 2:
            raise _refusal(status, data)
        return headers, data

    async def _send_once(
        self, method: str, path: str, body: bytes, limit: int, kind: dict[str, str]
    ) -> tuple[int, httpx2.Headers, bytes]:
        headers = {"authorization": self._signed(method, self._prefix + path, body), **kind}
        try:
            async with self._http.stream(
                method, self.hub_url + path, content=body or None, headers=headers
            ) as response:
                data = await _read(response, limit)
        except (httpx2.HTTPError, httpx2.InvalidURL) as e:
            raise HubError(f"no answer from {self.hub_url}: {str(e) or type(e).__name__}") from e
        return response.status_code, response.headers, data

    # --- whose clock

    def _signed(self, method: str, target: str, body: bytes) -> str:
        return sign_request(self._key, method, target, body, now_s=int(self._now_s()) + self.hub_ahead_s)

    def _learns_time(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a request was refused for its time, and is worth sending again, dated by the hub's clock.

        Nobody here knows which of the two clocks is wrong, and nothing but the replay of requests depends on them.
        """
        if status != 401:
            return False
        try:
            ahead_s = round(parsedate_to_datetime(headers.get("date", "")).timestamp() - self._now_s())
        except (ValueError, OverflowError):
            return False
        if abs(ahead_s - self.hub_ahead_s) <= MAX_SKEW_S:
            return False  # refused for something else
        self.hub_ahead_s = ahead_s if abs(ahead_s) > MAX_SKEW_S else 0
        return True


def clocks_apart(hub_ahead_s: float) -> str:
    """Says so, and blames nobody."""
    by_s = abs(hub_ahead_s)
    much = f"{by_s / 60:.0f} minutes" if by_s >= 120 else f"{by_s:.0f} s"
    side = "behind" if hub_ahead_s > 0 else "ahead of"
    return f"this computer's clock is {much} {side} the hub's: one of the two is wrong"


def _refusal(status: int, data: bytes | memoryview) -> HubError:
    try:
        problem = msgspec.json.decode(data, type=_Problem)
        said = problem.detail or problem.title
    except msgspec.MsgspecError:
        said = ""
    message = said or f"the hub answered {status}"
    return HubError(message, status=status, transient=status in (408, 425, 429) or status >= 500)


def _general_client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(10.0, connect=5.0),
        limits=httpx2.Limits(max_connections=32, max_keepalive_connections=16),
        headers=_HEADERS,
    )


async def _read(response: httpx2.Response, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > limit:
            raise HubError(f"the hub's answer is larger than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as e:
        raise HubError(f"the hub's answer is not what was expected: {e}") from e
