"""Sending a file on a connection of the event loop, past its transport.

Invariant: a file is begun only when the transport has nothing left to send; until it has gone, or the connection has,
the protocol is paused as by its transport, so nobody writes in between.

A file is begun in the next turn of the event loop: a megabyte through the kernel leaves nothing of the program in the
processor's caches, and so it does once for all the requests that came together (ADR 0042).
"""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

from relay.body import Body, File

_MORE: Final = getattr(socket, "MSG_MORE", 0)


class FileSender:
    """One for a connection. `pause` is called when the client does not take all at once, `went` when it has, `fail`
    ends the connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        of: socket.socket,
        pause: Callable[[], None],
        went: Callable[[], None],
        fail: Callable[[], None],
    ) -> None:
        """Raises OSError when there are no more descriptors."""
        # A descriptor of its own: that of the transport is watched by the loop already.
        self._socket = socket.socket(of.family, of.type, of.proto, os.dup(of.fileno()))
        self._fd = self._socket.fileno()
        self._loop = loop
        self._pause, self._went, self._fail = pause, went, fail
        self._head = b""  # what is left of it
        self._body: Body | None = None
        self._file: File | None = None
        self._at = 0

    @property
    def busy(self) -> bool:
        return self._body is not None

    def send(self, head: bytes, body: Body, file: File) -> None:
        """From now on nobody else may write."""
        self._head, self._body, self._file, self._at = head, body, file, 0
        self._loop.call_soon(self._begin)

    def close(self) -> None:
        if self._body is not None:
            self._loop.remove_writer(self._fd)
            self._body = self._file = None
        self._socket.close()

    def _begin(self) -> None:
        if self._body is None:  # closed meanwhile
            return
        if self._sent():
            self._went()
        else:
            self._pause()
            self._loop.add_writer(self._fd, self._go_on)

    def _go_on(self) -> None:
        if self._sent():
            self._loop.remove_writer(self._fd)
            self._went()

    def _sent(self) -> bool:
        """Send what finds room. True when all has, or the connection is lost."""
        assert self._body is not None
        assert self._file is not None
        left = len(self._body) - self._at
        try:
            if self._head:
                self._head = self._head[self._socket.send(self._head, _MORE) :]
                if self._head:
                    return False
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
