"""The life of one embedded server: prepared once, launched, found ready, stopped; launched again after a
crash.

Invariants: at most one server runs on a home, owned by the object that holds its lock; the URL stays the
same from the first launch to `stop`, however often the server is launched again in between.
"""

import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import structlog

from hub.embedded.account import Account, account_for
from hub.embedded.errors import EmbeddedError
from hub.embedded.home import choose_home, release_socket_folder, socket_folder, stop_orphans, take_lock

LOG_BYTES_MAX = 8_000_000
_log = structlog.get_logger("hub.embedded")


class EmbeddedServer(ABC):
    """`start()` blocks until ready; a supervisor that has other children to watch uses `launch()` and
    `is_ready()`.

    `throwaway=True` is for tests: nothing is synced to disk and `stop()` removes the data.
    Call `launch` from a thread that lives as long as the server should (see `Account.spawn`).
    """

    program: ClassVar[str]
    folder: ClassVar[str]  # of the data, in the home; also the server's working directory
    socket_name: ClassVar[str]
    stop_signals: ClassVar[tuple[signal.Signals, ...]]  # from polite to rude; SIGKILL is always last
    stop_patience_s: ClassVar[tuple[float, ...]]  # after each of them
    start_timeout_s: ClassVar[float]

    def __init__(self, data_dir: Path, *, throwaway: bool = False) -> None:
        self.data_dir = data_dir.absolute()
        self.throwaway = throwaway
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._home: Path | None = None
        self._sockets: Path | None = None
        self._account: Account | None = None

    @property
    def name(self) -> str:
        return self.program

    @property
    @abstractmethod
    def url(self) -> str:
        """For clients; contains no secret: the socket's folder is closed to other accounts."""

    @abstractmethod
    def _set_up(self) -> None:
        """Create the data once, so that a crash halfway leaves nothing that looks complete."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool:
        """One quick try to speak with the server."""

    @property
    def home(self) -> Path:
        assert self._home is not None, "not launched"
        return self._home

    @property
    def account(self) -> Account:
        assert self._account is not None, "not launched"
        return self._account

    @property
    def sockets(self) -> Path:
        assert self._sockets is not None, "not launched"
        return self._sockets

    @property
    def data(self) -> Path:
        return self.home / self.folder

    def start(self, timeout_s: float | None = None) -> str:
        """Launch and wait until it answers. Returns the URL; raises EmbeddedError with the server's own last
        words."""
        deadline = time.monotonic() + (timeout_s or self.start_timeout_s)
        try:
            self.launch()
            while not self.is_ready():
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"{self.program} did not answer in time; its log ends:\n{self.last_words()}"
                    )
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        return self.url

    def launch(self) -> None:
        """Start the server process, or start it again after it died."""
        if self.process is not None and self.process.poll() is None:
            return
        if self._lock is None:
            self._prepare()
        stop_orphans(self.data, self.program, self.stop_signals, patience_s=5)
        log_path = self.home / f"{self.program}.log"
        if log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX:
            log_path.replace(log_path.with_suffix(".log.1"))
        with log_path.open("ab") as log:
            self.process = self.account.spawn(
                self._command(), cwd=self.data, log=log, death_signal=self.stop_signals[0]
            )

    def is_ready(self) -> bool:
        """False while it is starting. Raises EmbeddedError when the process has ended."""
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise EmbeddedError(
                f"{self.program} ended at start (exit code {code}); its log ends:\n{self.last_words()}"
            )
        return self._answers()

    def poll(self) -> int | None:
        """None while the process lives, else its exit code (-1: never launched)."""
        return -1 if self.process is None else self.process.poll()

    def kill(self) -> None:
        """End the process at once (Postgres recovers when launched again). The home stays ours."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Stop it, from polite to rude, within 5 s; let go of the home. Safe to call twice."""
        if self.process is not None:
            self._stop_process(self.process)
            self.process = None
        if self._sockets is not None:
            release_socket_folder(self.home, self._sockets)
            self._sockets = None
        if self._home is not None and self.throwaway:
            shutil.rmtree(self._home, ignore_errors=True)
            shutil.rmtree(self.data_dir, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def last_words(self) -> str:
        """The end of the server's log, at most 2,000 bytes."""
        try:
            with (self.home / f"{self.program}.log").open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 2000))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return "(nothing)"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        self._account = account_for(self.data_dir / self.folder)
        self._home = choose_home(self.data_dir, self._account)
        self._account = account_for(self.data)
        self._lock = take_lock(self.home, self.program)
        try:
            self._sockets = socket_folder(self.home, self.socket_name, self.account)
            self._set_up()
        except BaseException:
            self.stop()
            raise

    def _stop_process(self, process: subprocess.Popen[bytes]) -> None:
        for number, patience_s in zip(
            (*self.stop_signals, signal.SIGKILL), (*self.stop_patience_s, 5.0), strict=True
        ):
            process.send_signal(number)  # does nothing once the process has ended
            try:
                process.wait(patience_s)
                return
            except subprocess.TimeoutExpired:
                _log.warning(
                    "a server does not stop", program=self.program, signal=number.name, after_s=patience_s
                )
