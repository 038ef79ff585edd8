"""GET over kept HTTP/1.1 connections, for segments: the body is read from the socket straight into its place, and
hashed while it comes.

Invariant: `get` returns one complete answer of at most `limit` bytes with the hash of exactly these, or raises; a
connection is used again only after an answer whose length was known and which left nothing over. An answer without a
length raises `Unfit`: the caller then asks in the general way (HubClient), which costs several times as much.
"""

import asyncio
import hashlib
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import httptools

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_IDLE: Final = 16
CONNECT_S: Final = 5.0
STALL_S: Final = 10.0  # without a byte
_SPARE: Final = 1  # room behind a body: a read that leaves some of its room empty need not be tried again


class PullError(Exception):
    """No complete answer. Transient."""


class Unfit(Exception):
    """An answer that has no length in front."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]  # lower-case names
    body: memoryview
    sha256: bytes  # of the body


class _Connection(asyncio.BufferedProtocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._limit = 0
        self._stall: asyncio.TimerHandle | None = None
        self._head = bytearray(MAX_HEAD_BYTES)
        self.received = 0  # bytes of the answer so far
        self._begin()

    def _begin(self) -> None:
        self._head_bytes = 0
        self._length: int | None = None  # of the body, once its head is there
        self._body = memoryview(b"")
        self._body_bytes = 0
        self._hash = hashlib.sha256()
        self._headers: dict[str, str] = {}
        self._status, self._keep = 0, False
        self._parser = httptools.HttpResponseParser(self)

    # --- one request

    async def ask(self, request: bytes, limit: int) -> Answer:
        """Raises PullError or Unfit."""
        assert self._transport is not None
        self._begin()
        self._limit, self.received = limit, 0
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answer = answer
        self._stall = self._loop.call_later(STALL_S, self._look, 0)
        self._transport.write(request)
        try:
            return await answer
        finally:
            self._answer = None
            self._stall.cancel()

    def _look(self, seen: int) -> None:
        """From time to time: `seen` bytes had come when it was looked last."""
        if seen == self.received:
            self._fail(PullError(f"not a byte for {STALL_S:.0f} s"))
        else:
            self._stall = self._loop.call_later(STALL_S, self._look, self.received)

    @property
    def reusable(self) -> bool:
        """Whether another request may go out on it."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclass of asyncio's

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        if self._length is not None:
            return self._body[self._body_bytes :]
        return memoryview(self._head)[self._head_bytes :]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        if self._answer is None or self._answer.done():
            self.close()  # more than was asked for
        elif self._length is not None:
            self._take_body(self._body_bytes + nbytes)
        else:
            self._head_bytes += nbytes
            self._take_head()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(PullError("the connection was lost" if exc is None else f"connection lost: {exc}"))
        self._transport = None

    # --- the head

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        # Asked now: after an answer without a body the parser has already forgotten.
        self._status, self._keep = self._parser.get_status_code(), self._parser.should_keep_alive()

    def _take_head(self) -> None:
        end = self._head.find(b"\r\n\r\n", 0, self._head_bytes) + 4
        if end < 4:
            if self._head_bytes == MAX_HEAD_BYTES:
                self._fail(PullError(f"an answer's head is longer than {MAX_HEAD_BYTES} bytes"))
            return
        try:
            self._parser.feed_data(self._head[:end])
        except httptools.HttpParserError as e:
            self._fail(PullError(f"the answer is not HTTP: {e}"))
            return
        text = self._headers.get("content-length", "")
        if not (text.isascii() and text.isdigit()) or "transfer-encoding" in self._headers or len(text) > 15:
            self._fail(Unfit())
            return
        length, over = int(text), self._head_bytes - end
        if length > self._limit or over > length:
            self._fail(PullError(f"the answer is larger than {self._limit} bytes, or than it says"))
            return
        self._length, self._body = length, memoryview(bytearray(length + _SPARE))
        self._body[:over] = self._head[end : self._head_bytes]
        self._take_body(over)

    # --- the body

    def _take_body(self, to: int) -> None:
        """It is there up to `to`."""
        assert self._length is not None
        if to > self._length:
            self._fail(PullError("the answer is larger than it says"))
            return
        self._hash.update(self._body[self._body_bytes : to])
        self._body_bytes = to
        if to == self._length:
            self._complete()

    def _complete(self) -> None:
        assert self._answer is not None
        body = self._body[: self._length].toreadonly()
        self._length, self._head_bytes, self._body = None, 0, memoryview(b"")
        self._answer.set_result(Answer(self._status, self._headers, body, self._hash.digest()))
        if not self._keep:
            self.close()


class PullClient:
    """`base_url`: http or https. `direct` is False where a proxy stands between: then it must not be used."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.direct = parts.scheme not in getproxies()
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._name = parts.netloc.rpartition("@")[2]
        self._idle: list[_Connection] = []

    async def get(self, target: str, headers: dict[str, str], limit: int) -> Answer:
        """Raises PullError, Unfit or OSError (no connection)."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"GET {target} HTTP/1.1\r\nhost: {self._name}\r\n{lines}\r\n".encode("latin-1")
        while self._idle:
            connection = self._idle.pop()
            if not connection.reusable:
                continue
            try:
                return await self._ask(connection, request, limit)
            except PullError:
                if connection.received:
                    raise
                # The hub closed it just now, as it may: asked again on a connection of its own.
        return await self._ask(await self._connect(), request, limit)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(CONNECT_S):
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        return connection

    async def _ask(self, connection: _Connection, request: bytes, limit: int) -> Answer:
        try:
            answer = await connection.ask(request, limit)
        except BaseException:
            connection.close()  # cancelled too: an answer would come that nobody waits for
            raise
        if connection.reusable and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer
