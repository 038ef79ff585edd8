"""Waits for NOTIFY on one channel, on a connection and a thread of its own.

Invariant: after every commit that notifies, and after every time the connection was made anew (commits may have been
missed then), `on_notify` is called. It costs nothing while nothing happens.
"""

import selectors
import socket
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, Final

import psycopg
import structlog
from psycopg.sql import SQL, Identifier

from ledger.store.outage import outage

logger = structlog.get_logger()

_RECONNECT_PAUSE_S: Final = 0.5


class Listener:
    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], channel: str, on_notify: Callable[[], None]
    ) -> None:
        """`connect` opens an autocommit connection; `on_notify` is called on the listener's thread."""
        self._connect = connect
        self._listen = SQL("LISTEN {}").format(Identifier(channel))
        self._on_notify = on_notify
        self._closing = Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = Thread(target=self._run, name=f"listen-{channel}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._wake.send(b"\0")
            self._thread.join()
            self._wake.close()
            self._woken.close()

    def _run(self) -> None:
        interrupted = False
        while not self._closing.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(self._listen)
                    if interrupted:
                        logger.debug("listening for new events again")
                        interrupted = False
                    self._on_notify()
                    self._forward(connection)
            except psycopg.Error as e:
                if not interrupted and not self._closing.is_set():
                    if isinstance(e, psycopg.OperationalError):
                        outage.failed(str(e).strip())
                    else:
                        logger.warning("listening for new events was interrupted", error=str(e).strip())
                    interrupted = True
                self._closing.wait(_RECONNECT_PAUSE_S)

    def _forward(self, connection: psycopg.Connection[Any]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                selector.select()
                if not self._closing.is_set() and list(connection.notifies(timeout=0)):
                    self._on_notify()
