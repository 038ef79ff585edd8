"""Helper processes: one for each core. Beside the replay they would wait for the interpreter lock.

Invariant: an answer is about exactly the task that was sent; a process that dies is an error of this program, never a
check that holds. Bundles come before signatures: the replay waits for them.
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from queue import PriorityQueue
from typing import Any, Final

import msgspec

from ledger.checks import LENGTH_BYTES, Load, Loaded, Verify, encoder

_KEPT_BYTES: Final = 16 << 20
WAITING: Final = 4  # tasks that wait for a helper; are there more, another one is started
_LOADED: Final = msgspec.msgpack.Decoder(Loaded)
_VERIFIED: Final = msgspec.msgpack.Decoder(tuple[int, int])
_Job = tuple[int, int, Future[Any], Load | Verify | None]


class HelperDied(RuntimeError):
    """A helper process ended before it answered."""


class Helpers:
    """At most `jobs`, started when there is work for them. Close it after use."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._queue: PriorityQueue[_Job] = PriorityQueue()
        self._numbers = count()
        self._threads: list[threading.Thread] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def load(self, task: Load) -> "Future[Loaded]":
        return self._submit(0, task)

    def verify(self, task: Verify) -> "Future[tuple[int, int]]":
        return self._submit(1, task)

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put((-1, next(self._numbers), Future(), None))
        for process in self._processes:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not flushed is of no use to a dead process
                    if pipe is not None:
                        pipe.close()

    def _submit(self, priority: int, task: Load | Verify) -> "Future[Any]":
        future: Future[Any] = Future()
        self._queue.put((priority, next(self._numbers), future, task))
        if len(self._threads) < self._jobs and (not self._threads or self._queue.qsize() > WAITING):
            self._processes.append(_start())
            self._threads.append(threading.Thread(target=self._work, args=(self._processes[-1],)))
            self._threads[-1].start()
        return future

    def _work(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with suppress(OSError, ValueError):
            process.stdout.read(LENGTH_BYTES)  # it is there; until then another may do the work
        while True:
            _, _, future, task = self._queue.get()
            if task is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = _ask(process, task)
            except Exception as e:  # whatever it is, it is for the one who waits
                future.set_exception(e)
            else:
                future.set_result(answer)


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ledger.checks"]
    alone = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",  # numpy's threads for matrices would only be in the way
        # glibc gives memory back after each part of a bundle, and gets it again page by page.
        "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    }
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1 << 20, env=alone
    )


def _ask(process: subprocess.Popen[bytes], task: Load | Verify) -> object:
    assert process.stdin is not None
    assert process.stdout is not None
    data = encoder.encode(task)
    try:
        process.stdin.write(len(data).to_bytes(LENGTH_BYTES) + data)
        process.stdin.flush()
        head = process.stdout.read(LENGTH_BYTES)
        answer = process.stdout.read(int.from_bytes(head))
    except (OSError, ValueError) as e:  # a broken pipe
        raise HelperDied(str(e)) from e
    if len(head) != LENGTH_BYTES or len(answer) != int.from_bytes(head):
        raise HelperDied("a helper process has died")
    return (_LOADED if isinstance(task, Load) else _VERIFIED).decode(answer)
