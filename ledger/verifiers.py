"""Receipts' signatures, verified on every core: by processes of their own, since threads that do nothing else come back
to the interpreter's lock after each signature, and wait there for whoever judges.

Invariant: an answer is what `ledger.keys.verify` says of exactly these receipts. A process that dies, or does not
answer, costs time and never a verdict: the thread that asked verifies by itself.

`python -m ledger.verifiers` is such a process. It reads requests from a socket that is its standard input, each a
length (4 bytes, big-endian) and as many records of a key (32 bytes) and a signed receipt (205); it answers each with a
byte a record, 1 where the signature holds; and it ends when the other side is gone.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, LifoQueue
from threading import Lock
from typing import Final

from ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify

DOMAIN: Final = (
    b"restream/receipt/v1\n"  # as in ledger.receipt, which a process that only verifies need not load
)
BODY_BYTES: Final = 141
RECORD_BYTES: Final = PUBLIC_KEY_BYTES + BODY_BYTES + SIGNATURE_BYTES
LENGTH_BYTES: Final = 4
WORTH_IT: Final = 8  # receipts: fewer are verified in less time than it takes to ask
PATIENCE_S: Final = 10.0

Signed = tuple[bytes, bytes]  # public key, signed receipt


class Verifiers:
    """Thread-safe. `processes` are started as they are needed; with none, all is verified where it is asked."""

    def __init__(self, processes: int) -> None:
        self._max = processes
        self._idle: LifoQueue[_Process | None] = LifoQueue()  # None: closed
        self._started = 0
        self._closed = False
        self._lock = Lock()

    def hold(self, signed: Sequence[Signed]) -> list[bool]:
        """Whether each signature holds."""
        found: list[bool] = []
        processes = self._take(len(signed) // WORTH_IT)
        size = -(-len(signed) // max(1, len(processes)))
        parts = [signed[i * size : (i + 1) * size] for i in range(len(processes))]
        asked = [process.ask(part) for process, part in zip(processes, parts, strict=True)]
        for process, part, well in zip(processes, parts, asked, strict=True):
            held = process.answer(len(part)) if well else None
            self._give_back(process, well=held is not None)
            found += [_holds(*one) for one in part] if held is None else [byte == 1 for byte in held]
        return found + [_holds(*one) for one in signed[len(found) :]]

    def close(self) -> None:
        """End the processes. What is asked afterwards is verified where it is asked."""
        with self._lock:
            self._closed = True
            idle = [self._idle.get_nowait() for _ in range(self._idle.qsize())]
            self._idle.put(None)
        for process in idle:
            if process is not None:
                process.end()

    def _take(self, most: int) -> "list[_Process]":
        """Those that are idle, at most so many; when none is, the next to be so."""
        taken: list[_Process] = []
        if not self._max or not most:
            return taken
        with self._lock, suppress(OSError):
            if self._closed:
                return taken
            for _ in range(min(most, self._idle.qsize())):
                with suppress(Empty):  # to one who waits for it without the lock
                    process = self._idle.get_nowait()
                    assert process is not None
                    taken.append(process)
            for _ in range(min(most - len(taken), self._max - self._started)):
                taken.append(_Process())
                self._started += 1
        if not taken:
            with suppress(Empty):
                process = self._idle.get(timeout=PATIENCE_S)
                if process is None:
                    self._idle.put(None)  # for the next
                else:
                    taken.append(process)
        return taken

    def _give_back(self, process: "_Process", *, well: bool) -> None:
        with self._lock:
            if well and not self._closed:
                self._idle.put(process)
                return
            self._started -= 1
        process.end()


class _Process:
    def __init__(self) -> None:
        """Raises OSError."""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE_S)
        with theirs:
            command = [sys.executable, "-m", "ledger.verifiers"]
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)

    def ask(self, signed: Sequence[Signed]) -> bool:
        """Send it these. Then `answer` must be taken. False when it takes nothing."""
        records = b"".join([part for pair in signed for part in pair])
        try:
            self._socket.sendall(len(records).to_bytes(LENGTH_BYTES) + records)
        except OSError:
            return False
        return True

    def answer(self, count: int) -> bytes | None:
        """None when it does not answer."""
        try:
            return _read(self._socket, count)
        except OSError:
            return None

    def end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def serve(connection: socket.socket) -> None:
    """Answer until the other side is gone."""
    while (head := _read(connection, LENGTH_BYTES)) is not None:
        size = int.from_bytes(head)
        records = _read(connection, size)
        if records is None:
            return
        key_end = PUBLIC_KEY_BYTES
        connection.sendall(
            bytes(
                _holds(records[i : i + key_end], records[i + key_end : i + RECORD_BYTES])
                for i in range(0, size, RECORD_BYTES)
            )
        )


def _holds(key: bytes, receipt: bytes) -> bool:
    return verify(key, DOMAIN, receipt[:BODY_BYTES], receipt[BODY_BYTES:])


def _read(connection: socket.socket, size: int) -> bytes | None:
    """Exactly so many bytes; None when the other side is gone."""
    parts, left = [], size
    while left:
        part = connection.recv(left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's interrupt is for the hub, which closes this
    with socket.socket(fileno=os.dup(0)) as connection, suppress(OSError):
        serve(connection)
