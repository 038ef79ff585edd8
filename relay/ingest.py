"""The RTMP port: connections from encoders, their keys, their time limits.

Invariant: no byte of media is parsed before `check_key` said yes; every connection ends: by the encoder, by a limit,
or with a reason that was sent to it. Connections that publish nothing never keep out one that would: when there are too
many, the oldest of them goes. The key is never logged.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from typing import Final, cast

import structlog

from relay.media.errors import BadMedia, UnsupportedMedia
from relay.media.flv import KEY_FRAME
from relay.origin.live import Catalogue, Live
from relay.origin.settings import OriginSettings
from relay.ports import PublishAuthority
from relay.reading import Rounds, Tap
from relay.rtmp import (
    VIDEO,
    Event,
    Message,
    Metadata,
    PublishRequested,
    ServerConnection,
    Unpublished,
    Violation,
)
from relay.stream_key import granted

log = structlog.get_logger()
_NONCE_BYTES: Final = 1528
_TICK_S: Final = 0.5
_LINGER_S: Final = 1.0


class _Encoder(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: "IngestServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._rtmp = ServerConnection(os.urandom(_NONCE_BYTES))
        self._transport: asyncio.Transport | None = None
        self._live: Live | None = None
        self._since = self._last_media = self._loop.time()
        self._decision: asyncio.Task[None] | None = None
        self._tap: Tap | None = None
        self._closed = False  # the last word is said
        self.received_bytes = 0

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of asyncio's
        if not self._server.admit(self):
            log.warning("rtmp_refused", reason="too many connections")
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._server.received_bytes += len(data)
        if self._closed:
            return  # the encoder has not noticed yet
        events = self._rtmp.receive(data)
        if events and isinstance(events[-1], Message):
            self._last_media = self._loop.time()
        self._handle(events)
        if self._tap is not None:
            self._tap.rest(self._rtmp.missing(self._tap.usual))

    # --- relay.reading.Reads -----------------------------------------------------------------------------------------

    def read_now(self) -> None:
        if self._tap is not None and (data := self._tap.read()):
            self.data_received(data)
        if self._live is not None:
            self._live.fanout.flush()  # its viewers have waited while this was in the socket

    def _join_rounds(self) -> None:
        rounds = self._server.rounds
        if rounds is not None and self._transport is not None:
            with contextlib.suppress(OSError):
                self._tap = Tap(self._transport)
                rounds.join(self)

    def _leave_rounds(self) -> None:
        if self._tap is not None and self._server.rounds is not None:
            self._server.rounds.leave(self)
            with contextlib.suppress(OSError):
                self._tap.wake_at_once()
            self._tap = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        if self._decision is not None:
            self._decision.cancel()
        self._leave(
            clean=False, reason="the connection was lost" if exc is None else f"connection lost: {exc}"
        )
        self._transport = None

    # --- relay.origin.live.Publisher ---------------------------------------------------------------------------------

    @property
    def silent_s(self) -> float:
        return self._loop.time() - self._last_media

    @property
    def publishes(self) -> bool:
        return self._live is not None

    def expel(self, reason: str) -> None:
        self._live = None
        self._leave_rounds()
        self._close(reason)

    # --- events ------------------------------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if type(event) is Message:
                live = self._live
                if live is None or (packager := live.packager) is None:
                    continue  # expelled while the rest of a read is handled
                kind, timestamp, _, body = event
                try:
                    if kind != VIDEO:
                        packager.audio(timestamp, body)
                        continue
                    packager.video(timestamp, body)
                    if self._tap is not None and body.startswith(KEY_FRAME):
                        self._tap.key_frame(len(body))
                except (UnsupportedMedia, BadMedia) as e:
                    self._refuse(live, str(e))
            elif isinstance(event, PublishRequested):
                assert self._transport is not None
                self._transport.pause_reading()  # nothing more until the key is known to be right
                self._decision = self._loop.create_task(self._decide(event.stream_key))
            elif isinstance(event, Metadata):
                if self._live is not None and self._live.packager is not None:
                    self._live.packager.metadata(event.values)
            elif isinstance(event, Unpublished):
                self._leave(clean=True, reason="stopped by the encoder")
                self._close(None)
            elif isinstance(event, Violation):
                self._close(event.reason)
        self._flush()

    def _refuse(self, live: Live, reason: str) -> None:
        """What it sends cannot be carried."""
        live.refuse(self, reason)
        self._leave(clean=True, reason=reason)
        self._close(reason)

    async def _decide(self, stream_key: str) -> None:
        """Accept or refuse. Runs while reading is paused."""
        refused = await self._take(stream_key)
        if self._transport is None or self._transport.is_closing():
            self._leave(clean=False, reason="the connection was lost")
            return
        if refused is not None:
            log.info("publish_refused", reason=refused)
            self._rtmp.refuse_publish(refused)
            self._close(None)
            return
        self._last_media = self._loop.time()
        self._rtmp.accept_publish()
        self._transport.resume_reading()
        self._join_rounds()
        self._handle(self._rtmp.receive(b""))

    async def _take(self, stream_key: str) -> str | None:
        """Take the stream that the key is for; or the reason why not."""
        grant = await granted(self._server.authority, stream_key)
        if isinstance(grant, str):
            return grant
        if self._transport is None:
            return "the connection was lost"
        taken = self._server.catalogue.publish(grant, self)
        if isinstance(taken, str):
            return taken
        self._live = taken
        log.info("publisher_joined", slug=grant.slug)
        return None

    # --- ends ------------------------------------------------------------------------------------------------------

    def check_limits(self) -> None:
        """Called twice a second by the server."""
        now, settings = self._loop.time(), self._server.settings
        if self._live is not None:
            if now - self._last_media > settings.idle_timeout_s:
                reason = f"no media for {settings.idle_timeout_s:g} s"
                self._leave(clean=False, reason=reason)
                self._close(reason)
        elif not self._rtmp.handshake_done and now - self._since > settings.handshake_timeout_s:
            self._close("no handshake in time")
        elif now - self._since > settings.publish_timeout_s:
            self._close("nothing was published in time")

    def _leave(self, *, clean: bool, reason: str) -> None:
        self._leave_rounds()
        live, self._live = self._live, None
        if live is not None:
            live.leave(self, clean=clean, reason=reason)

    def _close(self, reason: str | None) -> None:
        """Tell the encoder why (None: it knows), then close."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._closed:
            return
        self._closed = True
        if reason is not None:
            log.info("rtmp_closed", reason=reason)
            self._rtmp.fail_publish(reason)
            self._leave(clean=False, reason=reason)
        self._flush()
        if reason is None or not transport.can_write_eof():
            transport.close()
            return
        # An encoder in full flow: closing over unread data would reset the connection and the reason would be lost.
        try:
            transport.write_eof()
        except OSError:  # the encoder has just gone; nobody is there to read the reason
            transport.abort()
            return
        self._loop.call_later(_LINGER_S, transport.close)

    def abort(self) -> None:
        """Drop the connection without waiting for what is unsent."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        data = self._rtmp.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


class IngestServer:
    def __init__(self, authority: PublishAuthority, catalogue: Catalogue, settings: OriginSettings) -> None:
        self.authority = authority
        self.catalogue = catalogue
        self.settings = settings
        self.received_bytes = 0
        every_s = settings.reads_together_s
        self.rounds = Rounds(every_s) if every_s > 0 else None
        self._encoders: dict[_Encoder, None] = {}  # in the order in which they came
        self._empty = asyncio.Event()
        self._empty.set()
        self._servers: list[asyncio.Server] = []
        self._ticker: asyncio.Task[None] | None = None

    async def start_on(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> int:
        """Accept from a socket that listens already; with `tls` RTMPS. Returns its port."""
        server = await asyncio.get_running_loop().create_server(
            lambda: _Encoder(self),
            sock=listener,
            ssl=tls,
            ssl_handshake_timeout=self.settings.handshake_timeout_s if tls is not None else None,
            ssl_shutdown_timeout=_LINGER_S if tls is not None else None,
        )
        self._servers.append(server)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="rtmp limits")
        return int(server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._encoders)

    def admit(self, encoder: _Encoder) -> bool:
        if len(self._encoders) >= self.settings.max_connections:
            oldest = next((other for other in self._encoders if not other.publishes), None)
            if oldest is None:
                return False
            oldest.abort()
            self.forget(oldest)
        self._encoders[encoder] = None
        self._empty.clear()
        return True

    def forget(self, encoder: _Encoder) -> None:
        self._encoders.pop(encoder, None)
        if not self._encoders:
            self._empty.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for encoder in list(self._encoders):
                encoder.check_limits()

    def stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        self.stop_listening()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
            self._ticker = None
        for encoder in list(self._encoders):
            encoder.abort()
        await self._empty.wait()
