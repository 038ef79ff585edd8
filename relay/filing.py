"""Sending a file on a connection of the event loop, past its transport.

Invariant: a file is begun only when the transport has nothing left to send; until it has gone, or the connection has,
the protocol is paused as by its transport, so nobody writes in between.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

from relay.body import Body, File

_MORE: Final = getattr(socket, "MSG_MORE", 0)


class FileSender:
    """One for a connection. `pause` and `resume` are the protocol's; it is paused anew whenever something has gone.
    `fail` ends the connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        of: socket.socket,
        pause: Callable[[], None],
        resume: Callable[[], None],
        fail: Callable[[], None],
    ) -> None:
        """Raises OSError when there are no more descriptors."""
        # A descriptor of its own: that of the transport is watched by the loop already.
        self._socket = socket.socket(of.family, of.type, of.proto, os.dup(of.fileno()))
        self._fd = self._socket.fileno()
        self._loop = loop
        self._pause, self._resume, self._fail = pause, resume, fail
        self._body: Body | None = None
        self._file: File | None = None
        self._at = 0  # sent so far

    @property
    def busy(self) -> bool:
        return self._body is not None

    def send(self, head: bytes, body: Body, file: File) -> bool:
        """False: nothing was sent."""
        try:
            if self._socket.send(head, _MORE) < len(head):
                self._fail()  # a socket that has nothing to send and no room for a head
                return True
        except BlockingIOError:
            return False
        except OSError:
            self._fail()
            return True
        self._body, self._file, self._at = body, file, 0
        if not self._went():
            self._pause()
            self._loop.add_writer(self._fd, self._go_on)
        return True

    def close(self) -> None:
        if self._body is not None:
            self._loop.remove_writer(self._fd)
            self._body = self._file = None
        self._socket.close()

    def _go_on(self) -> None:
        at = self._at
        if self._went():
            self._loop.remove_writer(self._fd)
            self._resume()
        elif self._at > at:
            self._pause()  # slow, and no slower than that: as a transport would that drains and fills again

    def _went(self) -> bool:
        """Send what finds room. True when all has, or the connection is lost."""
        assert self._body is not None
        assert self._file is not None
        left = self._body.length - self._at
        try:
            sent = os.sendfile(self._fd, self._file.fd, self._at, left)
        except BlockingIOError:
            return False
        except OSError:
            sent = 0
        self._at += sent
        if sent and sent < left:
            return False
        self._body = self._file = None
        if not sent:
            self._fail()
        return True
