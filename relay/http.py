"""uvicorn's HTTP protocol with a shorter way for media: the same ASGI application, a third of the work around it.

Invariant: only plain GETs of media paths go the short way, one at a time on a connection; everything else is uvicorn's.
Head and first bytes leave in one write, a segment that many ask for as a file in memory (`relay.body`); chunks of an
answer without a length are framed beside the bytes, so that the very object all viewers share is what is written.
`scope["extensions"][WRITE_NOW]` writes such a chunk without a task where the client keeps up. (Ending the answer with
the connection would be cheaper still, and libavformat would call every end of a broadcast an input/output error.)
"""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TypeAlias, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from relay.answers import RESPOND, Respond, Scope
from relay.body import Body
from relay.filing import FileSender
from relay.http_bounds import BoundedHttpProtocol

MEDIA_PATHS: Final = (b"/live/", b"/segments/")
WRITE_NOW: Final = "relay.write_now"
AtOnce: TypeAlias = Callable[[Scope, Respond, float], bool]
# Targets that cannot mean anything else to a parser.
_PLAIN: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/.-_?&="
_REST_BYTES_MAX: Final = 4_096
_JOIN_BYTES: Final = 65_536  # head and body up to here are joined: copying is cheaper than a second write


class _MediaCycle(RequestResponseCycle):
    """Trusts what the application says: it is ours, and its header names are constants."""

    _head: bytes | None = None
    _left: int | None = None  # of the announced length; None: in chunks
    write_whole: Callable[[bytes, bytes | Body], None]
    close_when_sent: Callable[[], None]

    async def send(self, message: MutableMapping[str, Any]) -> None:  # type: ignore[override]
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message["headers"])
        else:
            self._write(message.get("body", b""), more=message.get("more_body", False))

    def respond(self, status: int, lines: bytes, length: int, body: bytes | Body) -> bool:
        """A whole answer, `length` of its body as announced. False: not now, see `send`."""
        if self.flow.write_paused or self.disconnected or self.response_started:
            return False
        self.response_started = self.response_complete = True
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self.write_whole(_head(status, self.default_headers, lines, length, end), body)
        self._complete()
        return True

    def write_now(self, data: bytes) -> bool:
        """False when the client has not taken what it was sent before, or has gone."""
        if self.flow.write_paused or self.disconnected or self.response_complete or self._head is not None:
            return False
        self._write_chunk(data)
        return True

    def _write_chunk(self, data: bytes) -> None:
        self.transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self._left = 0 if status in (204, 304) else None
        parts = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                self._left = 0 if self.scope["method"] == "HEAD" else int(value)
            parts += (name, b": ", value, b"\r\n")
        if self._left is None and self.scope["method"] == "HEAD":
            self._left = 0
        elif self._left is None:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(parts)

    def _write(self, body: bytes, *, more: bool) -> None:
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer is not as long as it says")
        head, self._head = self._head, None
        if head is not None and (self._left is None or len(body) > _JOIN_BYTES):
            self.transport.write(head)
        elif head is not None:
            body = head + body
        if self._left is None:
            if body:
                self._write_chunk(body)
            if not more:
                self.transport.write(b"0\r\n\r\n")
        elif body:
            self.transport.write(body)
        if not more:
            self.response_complete = True
            self._complete()

    def _complete(self) -> None:
        self.message_event.set()
        if not self.keep_alive:
            self.close_when_sent()
        self.on_response()


_default: tuple[list[tuple[bytes, bytes]], bytes] = (
    [],
    b"",
)  # what uvicorn sets once a second, and its lines


def _lines_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    global _default
    if _default[0] is not headers:
        _default = (headers, b"".join(b"%b: %b\r\n" % line for line in headers))
    return _default[1]


def _head(status: int, default: list[tuple[bytes, bytes]], lines: bytes, length: int, end: bytes) -> bytes:
    return b"%b%b%bcontent-length: %d\r\n%b" % (STATUS_LINE[status], _lines_of(default), lines, length, end)


def nothing_at_once(scope: Scope, respond: Respond, now_s: float) -> bool:  # noqa: ARG001
    return False


class MediaHttpProtocol(BoundedHttpProtocol):
    """For `uvicorn.Config(http=...)`. What `at_once` answers costs no task and, where the request's lines are those of
    the one before, no parsing either: only what the parser has read once, byte for byte, is known without it."""

    at_once: AtOnce = staticmethod(nothing_at_once)

    _rest = b""  # of the last request: all behind its target
    _rest_headers: list[tuple[bytes, bytes]]
    _started = 0  # requests whose first byte the parser has seen
    _lasting = False  # its connection is kept, and stays HTTP
    _between = True  # no request is under way in the parser
    _answered_s = float("-inf")
    _files: FileSender | None = None
    _closing = False  # when the file that is being sent has gone

    def data_received(self, data: bytes) -> None:
        if self._rest and data.endswith(self._rest) and self._as_before(data):
            return
        fresh, before = self._between, self._started
        super().data_received(data)
        if fresh and self._between and self._started == before + 1:
            self._remember(data)

    def on_message_begin(self) -> None:
        self._started += 1
        self._between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    def _remember(self, data: bytes) -> None:
        """`data` was one whole request."""
        self._rest = b""
        lead = len(self.url) + 4
        rest = data[lead:]
        if (
            data[:lead] == b"GET " + self.url
            and rest.startswith(b" HTTP/1.1\r\n")
            and len(rest) < _REST_BYTES_MAX
            and rest.find(b"\r\n\r\n") == len(rest) - 4
            and self._lasting
            and self.limit_concurrency is None
            and not self.expect_100_continue
            # A trusted proxy is believed about who asks: for whom that is, is known further in (hub.proxies).
            and not any(name.startswith(b"x-forwarded-") for name, _ in self.headers)
        ):
            self._rest, self._rest_headers = rest, self.headers

    def _as_before(self, data: bytes) -> bool:
        """Answer a request that is known but for its target."""
        target = data[4 : -len(self._rest)]
        if data[:5] != b"GET /" or target.translate(None, _PLAIN) or not self._may_answer():
            return False
        path, _, query = target.partition(b"?")
        scope = {
            "path": path.decode("ascii"),
            "query_string": query,
            "headers": self._rest_headers,
            "client": self.client,
        }
        if not self.at_once(scope, self._respond, self.loop.time()):
            return False
        self.server_state.total_requests += 1
        self._answered_s = self.loop.time()
        return True

    def _may_answer(self) -> bool:
        """Whether a whole answer can be written now."""
        return (
            self._between
            and self.cycle.response_complete
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _respond(self, status: int, lines: bytes, length: int, body: bytes | Body) -> bool:
        self.write_whole(_head(status, self.server_state.default_headers, lines, length, b"\r\n"), body)
        return True

    def write_whole(self, head: bytes, body: bytes | Body) -> None:
        if isinstance(body, Body) and self._send_file(head, body):
            return
        data = body.data if isinstance(body, Body) else body
        if len(data) > _JOIN_BYTES:
            self.transport.write(head)
            self.transport.write(data)
        else:
            self.transport.write(head + data)

    # --- files

    def _send_file(self, head: bytes, body: Body) -> bool:
        """False: nothing was sent."""
        if self.scheme != "http" or self.transport.get_write_buffer_size():
            return False
        file = body.file()
        if file is None:
            return False
        if self._files is None:
            of = self.transport.get_extra_info("socket")
            try:
                self._files = FileSender(
                    self.loop, of, self.pause_writing, self._file_went, self.transport.abort
                )
            except OSError:
                return False
        return self._files.send(head, body, file)

    @property
    def _sending(self) -> bool:
        return self._files is not None and self._files.busy

    def _file_went(self) -> None:
        self._answered_s = self.loop.time()
        self.resume_writing()
        if self._closing:
            self.transport.close()

    def close_when_sent(self) -> None:
        if self._sending:
            self._closing = True
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that will ask no more still gets what it asked for."""
        if self._sending:
            self._closing = True
        return self._sending

    def shutdown(self) -> None:
        if self._sending:
            self._closing = True
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        if self._sending:
            self.transport.abort()  # words would stand in the middle of a segment
        else:
            super().send_400_response(msg)

    def timeout_keep_alive_handler(self) -> None:
        since = self.loop.time() if self._sending else self._answered_s
        left = since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def on_headers_complete(self) -> None:
        # Asked now: after a request without a body the parser has forgotten.
        self._lasting = self.parser.should_keep_alive() and not self.parser.should_upgrade()
        url, cycle = self.url, self.cycle
        if (
            not url.startswith(MEDIA_PATHS)
            or b"%" in url
            or b"#" in url
            or (cycle is not None and not cycle.response_complete)
            or self.limit_concurrency is not None
            or self.parser.get_method() not in (b"GET", b"HEAD")
            or self.parser.get_http_version() != "1.1"
            or self.parser.should_upgrade()
        ):
            super().on_headers_complete()
            return
        self.head_complete()
        path, _, query = url.partition(b"?")
        scope = cast("dict[str, Any]", self.scope)
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"], scope["query_string"] = path.decode("latin-1"), path, query
        self.cycle = media = _MediaCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        media.write_whole, media.close_when_sent = self.write_whole, self.close_when_sent
        scope["extensions"] = {WRITE_NOW: media.write_now, RESPOND: media.respond}
        self._start_asgi_task(media, self.app)


def media_protocol(at_once: AtOnce, *, max_connections: int) -> type[MediaHttpProtocol]:
    """`at_once` answers GETs in place where it can: see `MediaApp`, `NodeApp`."""
    own = {"at_once": staticmethod(at_once), "max_connections": max_connections}
    return type("MediaHttpProtocol", (MediaHttpProtocol,), own)
