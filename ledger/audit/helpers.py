"""Helper processes: one for each core. Beside the replay they would wait for the interpreter lock.

Invariant: an answer is about exactly the task that was sent; a process that dies is an error of this program, never a
check that holds. Bundles come before signatures: the replay waits for them.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from queue import PriorityQueue
from typing import IO, Any, Final, Protocol

import msgspec

from ledger.checks import LENGTH_BYTES, Load, Loaded, Verify, encoder, serve

_KEPT_BYTES: Final = 16 << 20
# A helper has nothing to do while the thread that has its next task waits for the replay to let it.
HANDED_OVER_S: Final = 0.0001
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
        self._processes: list[Helper] = []
        self._former_s = sys.getswitchinterval()

    def load(self, task: Load) -> "Future[Loaded]":
        return self._submit(0, task)

    def verify(self, task: Verify) -> "Future[tuple[int, int]]":
        return self._submit(1, task)

    def close(self) -> None:
        sys.setswitchinterval(self._former_s)
        for _ in self._threads:
            self._queue.put((-1, next(self._numbers), Future(), None))
        for process in self._processes:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            for pipe in (process.requests, process.answers):
                with suppress(OSError):  # what was not flushed is of no use to a dead process
                    pipe.close()

    def _submit(self, priority: int, task: Load | Verify) -> "Future[Any]":
        future: Future[Any] = Future()
        self._queue.put((priority, next(self._numbers), future, task))
        if len(self._threads) < self._jobs and (not self._threads or self._queue.qsize() > WAITING):
            sys.setswitchinterval(HANDED_OVER_S)
            self._processes.append(_start())
            self._threads.append(threading.Thread(target=self._work, args=(self._processes[-1],)))
            self._threads[-1].start()
        return future

    def _work(self, process: "Helper") -> None:
        with suppress(OSError, ValueError):
            process.answers.read(LENGTH_BYTES)  # it is there; until then another may do the work
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


class Helper(Protocol):
    """A process that serves (ledger.checks)."""

    @property
    def requests(self) -> IO[bytes]: ...

    @property
    def answers(self) -> IO[bytes]: ...

    def kill(self) -> None: ...

    def wait(self) -> object: ...


class Twin:
    """This process once more, by fork: it has at once what a new one would read for a third of a second.

    It runs nothing but `serve`, and ends without what a process does when it ends: files, rows and threads are this
    process's alone. A twin that never says that it is there gets no work.
    """

    def __init__(self) -> None:
        (asked, ask), (answered, answer) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's interrupt is for the audit
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                gc.freeze()  # nothing that is this process's is finalized there
                os.close(ask)
                os.close(answered)
                serve(os.fdopen(asked, "rb", 1 << 20), os.fdopen(answer, "wb", 1 << 20))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(asked)
        os.close(answer)
        self.requests: IO[bytes] = os.fdopen(ask, "wb", 1 << 20)
        self.answers: IO[bytes] = os.fdopen(answered, "rb", 1 << 20)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


class Program:
    """`python -m ledger.checks`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ledger.checks"]
        alone = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",  # numpy's threads for matrices would only be in the way
            # glibc gives memory back after each part of a bundle, and gets it again page by page.
            "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BYTES),
            "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
        }
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1 << 20, env=alone
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.requests, self.answers = self._process.stdin, self._process.stdout

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.wait()


def _start() -> Helper:
    return Twin() if sys.platform == "linux" else Program()


def _ask(process: Helper, task: Load | Verify) -> object:
    data = encoder.encode(task)
    try:
        process.requests.write(len(data).to_bytes(LENGTH_BYTES) + data)
        process.requests.flush()
        head = process.answers.read(LENGTH_BYTES)
        answer = process.answers.read(int.from_bytes(head))
    except (OSError, ValueError) as e:  # a broken pipe
        raise HelperDied(str(e)) from e
    if len(head) != LENGTH_BYTES or len(answer) != int.from_bytes(head):
        raise HelperDied("a helper process has died")
    return (_LOADED if isinstance(task, Load) else _VERIFIED).decode(answer)
