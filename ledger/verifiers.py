"""Receipts' signatures, verified on every core: by processes of their own, since threads that do nothing else come back
to the interpreter's lock after each signature, and wait there for whoever judges.

Invariant: an answer is what `ledger.keys.verify` says of exactly these receipts. A process that dies, or does not
answer, costs time and never a verdict: the thread that asked verifies by itself.

`python -m ledger.verifiers` is such a process. It reads requests from a socket that is its standard input, each a
length (4 bytes, big-endian) and as many records of a key (32 bytes) and a signed receipt (205); it answers each, in the
order in which they came, with a byte a record, 1 where the signature holds; and it ends when the other side is gone.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from typing import Final

from ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify

# As in ledger.receipt, which a process that only verifies need not load.
DOMAIN: Final = b"restream/receipt/v1\n"
BODY_BYTES: Final = 141
RECORD_BYTES: Final = PUBLIC_KEY_BYTES + BODY_BYTES + SIGNATURE_BYTES
LENGTH_BYTES: Final = 4
WORTH_IT: Final = 8  # receipts: fewer are verified in less time than it takes to ask
PATIENCE_S: Final = 10


class Verifiers:
    """Thread-safe. `processes` are started when they are first needed; with none, all is verified where it is asked.

    What is asked waits at the processes, not here: one that is done with a request has the next one, whoever holds the
    interpreter's lock.
    """

    def __init__(self, processes: int) -> None:
        self._max = processes
        self._processes: list[_Process] = []
        self._closed = False
        self._lock = Lock()

    def hold(self, records: bytes) -> bytes:
        """A byte for each record (a key and the receipt it is said to have signed): 1 where the signature holds."""
        count = len(records) // RECORD_BYTES
        processes = self._choose(count // WORTH_IT)
        size = -(-count // max(1, len(processes))) * RECORD_BYTES
        parts = [records[i * size : (i + 1) * size] for i in range(len(processes))]
        questions: list[_Question | None] = []
        try:
            questions += [process.ask(part) for process, part in zip(processes, parts, strict=True)]
            answers = [question.answer() if question is not None else None for question in questions]
        finally:
            for process, question in zip(processes, questions, strict=False):
                if question is None or not question.settle():
                    self._give_up(process)
        held = [
            _held(part) if answer is None else answer for part, answer in zip(parts, answers, strict=True)
        ]
        return b"".join(held) if processes else _held(records)

    def close(self) -> None:
        """End the processes. What is asked afterwards is verified where it is asked."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, []
        for process in processes:
            process.end()

    def _choose(self, most: int) -> "list[_Process]":
        """Those that are idle, at most so many; when none is, the one for which least waits."""
        if not self._max or not most:
            return []
        with self._lock:
            with suppress(OSError):
                while not self._closed and len(self._processes) < self._max:
                    self._processes.append(_Process())
            idle = [process for process in self._processes if not process.waiting]
            return idle[:most] or sorted(self._processes, key=lambda process: process.waiting)[:1]

    def _give_up(self, process: "_Process") -> None:
        with self._lock, suppress(ValueError):  # others may have found it out too
            self._processes.remove(process)
        process.end()


class _Process:
    """Invariant: what is read from it is the answer to the question that reads; after the first failure nothing is."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.socket, theirs = socket.socketpair()
        self.patience(PATIENCE_S)
        self.waiting = 0  # questions
        self.failed = False
        self._lock = Lock()
        self._last = Lock()  # of the last question: held until its answer was read
        with theirs:
            command = [sys.executable, "-m", "ledger.verifiers"]
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)

    def patience(self, seconds: float) -> None:
        """How long it may take nothing in, or say nothing."""
        # The kernel's: Python's is a call of poll, and the interpreter's lock once more, each time.
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def ask(self, records: bytes) -> "_Question | None":
        """None when it takes nothing in. Else the question must be settled."""
        with self._lock:
            if self.failed:
                return None
            try:
                self.socket.sendall(len(records).to_bytes(LENGTH_BYTES) + records)
            except OSError:
                self.failed = True
                return None
            before, self._last = self._last, Lock()
            self._last.acquire()
            self.waiting += 1
            return _Question(self, len(records) // RECORD_BYTES, before, self._last)

    def answered(self) -> None:
        with self._lock:
            self.waiting -= 1
            self._close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        with self._lock:
            self.failed = True
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer need not wait longer
            self._close()

    def _close(self) -> None:
        # Else the number of the file could be another's while it is read.
        if self.failed and not self.waiting:
            self.socket.close()


class _Question:
    """Answers come in the order of the questions, so each is read once the one before it was."""

    __slots__ = ("_after", "_before", "_count", "_process", "_settled")

    def __init__(self, process: _Process, count: int, before: Lock, after: Lock) -> None:
        self._process = process
        self._count = count
        self._before = before
        self._after = after
        self._settled = False

    def answer(self) -> bytes | None:
        """None when there is none."""
        process, found = self._process, None
        with suppress(OSError):
            if self._before.acquire(timeout=PATIENCE_S) and not process.failed:
                found = _read(process.socket, self._count)
        if found is None:
            process.failed = True
        self._done()
        return found

    def settle(self) -> bool:
        """When no answer will be asked for any more. False when its process is of no use any longer."""
        if not self._settled:  # interrupted
            self._process.failed = True
            self._done()
        return not self._process.failed

    def _done(self) -> None:
        self._settled = True
        self._process.answered()
        self._after.release()


def serve(connection: socket.socket) -> None:
    """Answer until the other side is gone."""
    while (head := _read(connection, LENGTH_BYTES)) is not None:
        records = _read(connection, int.from_bytes(head))
        if records is None:
            return
        connection.sendall(_held(records))


def _held(records: bytes) -> bytes:
    key, body, end = PUBLIC_KEY_BYTES, PUBLIC_KEY_BYTES + BODY_BYTES, RECORD_BYTES
    return bytes(
        [
            verify(records[i : i + key], DOMAIN, records[i + key : i + body], records[i + body : i + end])
            for i in range(0, len(records), end)
        ]
    )


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
