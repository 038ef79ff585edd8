"""Processes that do nothing but verify signatures: beside the replay they would wait for the interpreter lock.

Invariant: an answer is about exactly the chunk that was sent; a process that dies is an error of this program, never
a signature that holds.
"""

import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Final

import msgspec

from ledger.keys import verify

_Check = tuple[
    bytes, bytes, bytes, bytes, bool
]  # public key, domain, body, signature, whether it should hold
_LENGTH_BYTES: Final = 4
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[_Check])


class VerifierDied(RuntimeError):
    """A verifying process ended before it answered."""


def first_failure(checks: list[_Check]) -> int:
    """Index of the first check that does not come out as it should, or -1."""
    for i, (public_key, domain, body, signature, holds) in enumerate(checks):
        if verify(public_key, domain, body, signature) is not holds:
            return i
    return -1


class Verifiers:
    """One process for each thread that asks. Close it after use."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._lock = threading.Lock()

    def first_failure(self, checks: list[_Check]) -> int:
        """As the function of that name. Raises VerifierDied."""
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        data = _encoder.encode(checks)
        try:
            process.stdin.write(len(data).to_bytes(_LENGTH_BYTES) + data)
            process.stdin.flush()
            answer = process.stdout.read(_LENGTH_BYTES)
        except (OSError, ValueError) as e:  # a broken pipe, or one that `close` has closed
            raise VerifierDied(str(e)) from e
        if len(answer) != _LENGTH_BYTES:
            raise VerifierDied("a process that verifies signatures has died")
        return int.from_bytes(answer, signed=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            processes, self._all = self._all, []
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # what was not flushed is of no use to a dead process
                    if pipe is not None:
                        pipe.close()

    def _process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self._mine, "process", None)
        if process is not None:
            return process
        with self._lock:
            if self._closed:
                raise VerifierDied("closed")
            process = subprocess.Popen(
                [sys.executable, "-m", "ledger.verifiers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=1 << 20,
            )
            self._all.append(process)
        self._mine.process = process
        return process


def serve(source: IO[bytes], target: IO[bytes]) -> None:
    """Answer until the other side closes."""
    while len(head := source.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
        answer = first_failure(_decoder.decode(source.read(int.from_bytes(head))))
        target.write(answer.to_bytes(_LENGTH_BYTES, signed=True))
        target.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
