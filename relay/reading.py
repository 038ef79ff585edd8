"""Encoders' sockets are read together, some ten times a second, in place of each one at every frame.

A stream is 77 messages a second. To be woken for each costs more than what is then done with it; read one encoder
after the other, they find the program in the processor's caches.

Invariant: what has arrived is handed on within `every_s`, and at once when it is as much as most of a key frame, so
that a frame that ends a segment does not wait for its turn (the kernel wakes nobody for less: SO_RCVLOWAT). Where
there is no picture nothing waits. Bytes come in their order: both ways read one socket, on one thread.
"""

import asyncio
import os
import socket
from typing import Final, Protocol

import structlog

log = structlog.get_logger()
_LEAST_BYTES: Final = 1 << 10
_MOST_BYTES: Final = 64 << 10  # what waits longest: half of the smallest receive buffer that Linux gives
_BUFFER: Final = bytearray(256 << 10)
_VIEW: Final = memoryview(_BUFFER)


class Tap:
    """The socket under a transport that is not encrypted, which may be read beside the event loop."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Raises OSError where the system cannot do this."""
        self._transport = transport
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._waits_for = 1
        self._key_frame_bytes = 0
        self.usual = 1  # what the event loop is woken for
        if self._socket is None or transport.get_extra_info("sslcontext") is not None:
            raise OSError("there is no socket with the bytes that the protocol gets")
        self.wake_at_once()

    def key_frame(self, size: int) -> None:
        """One of `size` bytes has come: from now on wake the event loop for three quarters of the smaller of the last
        two, and no longer for less."""
        least, self._key_frame_bytes = min(size, self._key_frame_bytes or size), size
        self.usual = min(max(least * 3 // 4, _LEAST_BYTES), _MOST_BYTES)

    def rest(self, missing: int) -> None:
        """Everything is read; so much is missing of what will be a key frame, 0 if none is on its way."""
        self._wait_for(min(missing, self.usual) if missing else self.usual)

    def wake_at_once(self) -> None:
        self._wait_for(1)

    def _wait_for(self, size: int) -> None:
        if size != self._waits_for or size == 1:
            assert self._socket is not None
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._waits_for = size

    def read(self) -> bytes:
        """What is there; empty when nothing is. The end of the connection is the event loop's to find."""
        if self._transport.is_closing():
            return b""  # its number may be another's by now
        assert self._socket is not None
        try:
            count = os.readv(self._socket.fileno(), (_BUFFER,))
        except OSError:
            return b""
        return bytes(_VIEW[:count])


class Reads(Protocol):
    """Somebody whose turn it is in each round."""

    def read_now(self) -> None: ...
    def abort(self) -> None: ...


class Rounds:
    """`every_s` apart, as long as somebody takes part."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._members: dict[Reads, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, member: Reads) -> None:
        self._members[member] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.every_s, self._round)

    def leave(self, member: Reads) -> None:
        self._members.pop(member, None)
        if not self._members and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _round(self) -> None:
        self._timer = None
        for member in list(self._members):
            try:
                member.read_now()
            except Exception:  # the others do not stop for what went wrong with one
                log.exception("encoder_failed")
                member.abort()
        if self._members and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.every_s, self._round)
