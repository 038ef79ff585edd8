"""Starts the hub's processes in order, keeps them alive, stops them in reverse order.

Invariants: a service is launched only when all before it are ready; one that dies is launched again, at once the
first time and then ever more slowly; what fails to start because something it stands on died is tried again; when the
supervisor ends, however it ends, its children end. It runs in one thread: children are tied to the life of the thread
that starts them.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import structlog

from hub.embedded.account import die_with_parent

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
STEADY_S = 30.0  # alive for so long: the next death counts as the first again
POLL_S = 0.5
TELL_STARTING_S = 15.0
POLL_STARTING_S = 0.05
_log = structlog.get_logger("hub.supervisor")


class StartFailed(Exception):
    """A service did not come up the first time. The message names it."""

    exit_code = 1


class Service(Protocol):
    """What is supervised: a child process, or an embedded server (hub.embedded.server.EmbeddedServer)."""

    @property
    def name(self) -> str: ...

    @property
    def start_timeout_s(self) -> float: ...

    def launch(self) -> None:
        """Start the process, or start it again; returns at once."""

    def is_ready(self) -> bool:
        """False while it is starting."""

    def poll(self) -> int | None:
        """None while the process lives, else its exit code."""

    def kill(self) -> None:
        """End the process at once; it may be launched again."""

    def stop(self) -> None:
        """Stop it and wait until it is gone, within a few seconds. Safe to call twice."""


@dataclass(slots=True)
class Program:
    """A service that is one child process of ours."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool] = lambda: True
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 60.0
    stop_patience_s: float = 2.5
    pass_fds: tuple[int, ...] = ()  # inherited under the same numbers
    output: int = 2  # stdout is for data: what a service says goes to stderr
    process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            pass_fds=self.pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal is the supervisor's to handle
            preexec_fn=die_with_parent(signal.SIGKILL),
        )

    def is_ready(self) -> bool:
        return self.poll() is None and self.ready()

    def poll(self) -> int | None:
        return -1 if self.process is None else self.process.poll()

    def read_output(self) -> bytes:
        """What it wrote to its stdout, when `output` is a pipe; after its end."""
        if self.process is None or self.process.stdout is None:
            return b""
        with self.process.stdout as output:
            return output.read()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(self.stop_patience_s)
        except subprocess.TimeoutExpired:
            _log.warning("does not stop, killed", service=self.name, after_s=self.stop_patience_s)
        self.kill()

    def kill(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and what it may have started itself
        self.process.wait()


@dataclass(slots=True)
class _Watch:
    service: Service
    launched_at: float = 0.0
    restart_at: float | None = None  # dead, to be launched again at this time
    ready: bool = False
    delay_s: float = BACKOFF_FIRST_S


class Supervisor:
    """`start` each service in order, then `run` until SIGINT or SIGTERM, then `stop` (also on every error)."""

    def __init__(self) -> None:
        self._watched: list[_Watch] = []
        self._stopping = False
        self._deaths = 0
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._old_handlers: dict[int, Any] = {}
        self._old_wakeup = -1

    def __enter__(self) -> "Supervisor":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._on_stop)
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._wake_read.close()
        self._wake_write.close()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def start(self, service: Service) -> bool:
        """Launch, and wait until ready. False when a stop was asked for meanwhile. Raises StartFailed, or what the
        service itself raises. Services started before are kept alive in the meantime."""
        watch = _Watch(service, launched_at=time.monotonic())
        deaths, told_s = self._deaths, TELL_STARTING_S
        service.launch()
        self._watched.append(watch)
        while not self._stopping:
            if (code := service.poll()) is not None:
                if self._not_its_own_fault(watch, code, deaths):
                    _log.warning("ended while it started, trying again", service=service.name, exit_code=code)
                    self._wait(BACKOFF_FIRST_S)
                    deaths = self._deaths
                    if not self._stopping:
                        service.launch()
                    continue
                service.is_ready()  # an embedded server says more about why
                raise StartFailed(
                    f"{service.name} ended while it started (exit code {code}); see its lines above"
                )
            if service.is_ready():
                watch.ready = True
                _log.info(
                    "ready", service=service.name, after_s=round(time.monotonic() - watch.launched_at, 2)
                )
                return True
            waited_s = time.monotonic() - watch.launched_at
            if (
                waited_s > told_s
            ):  # a database that recovers can take minutes, and nobody should kill it for that
                _log.info("still starting", service=service.name, after_s=round(waited_s))
                told_s += TELL_STARTING_S
            if waited_s > service.start_timeout_s:
                raise StartFailed(f"{service.name} was not ready after {service.start_timeout_s:.0f} s")
            self._wait(POLL_STARTING_S)
            for earlier in self._watched[:-1]:
                self._tend(earlier)
        return False

    def step(self, command: Sequence[str], *, timeout_s: float) -> bytes | None:
        """Run a one-time step to its end as a child that dies with us, while the services started before are kept
        alive; again when it failed because one of them died. Returns its stdout (a few kB at most), None when a stop
        was asked for. Raises StartFailed."""
        name = " ".join(command[-2:])
        while not self._stopping:
            deaths = self._deaths
            program = Program(name, command, output=subprocess.PIPE)
            program.launch()
            try:
                code = self._finish(program, time.monotonic() + timeout_s)
                if code == 0:
                    return program.read_output()
            finally:
                program.stop()
            if code is not None:
                if code > 0 and not self._something_died_since(deaths, self._watched):
                    raise StartFailed(f"{name} failed (exit code {code}); see its lines above")
                if self._all_ready(self._watched):
                    _log.warning("a step failed, trying again", step=name, exit_code=code)
        return None

    def _finish(self, program: Program, deadline_s: float) -> int | None:
        """The exit code; None when a stop was asked for. Raises StartFailed after `deadline_s` (monotonic)."""
        while not self._stopping:
            if (code := program.poll()) is not None:
                return code
            if time.monotonic() > deadline_s:
                raise StartFailed(f"{program.name} did not end in time")
            self._wait(POLL_STARTING_S)
            for watch in self._watched:
                self._tend(watch)
        return None

    def _not_its_own_fault(self, watch: _Watch, code: int, deaths: int) -> bool:
        """Whether a service that ended while it started may try again: what it stands on died meanwhile (and is ready
        again when this returns), or somebody killed it and its time is not over."""
        earlier = self._watched[:-1]
        if self._something_died_since(deaths, earlier):
            self._all_ready(earlier)
            watch.launched_at = time.monotonic()
            return True
        return code < 0 and time.monotonic() - watch.launched_at < watch.service.start_timeout_s

    def _something_died_since(self, deaths: int, watched: Sequence[_Watch]) -> bool:
        for watch in watched:
            self._tend(watch)
        return self._deaths > deaths or not all(watch.ready for watch in watched)

    def _all_ready(self, watched: Sequence[_Watch]) -> bool:
        """Wait for it. False when a stop was asked for."""
        while not self._stopping and not all(watch.ready for watch in watched):
            self._wait(POLL_STARTING_S)
            for watch in watched:
                self._tend(watch)
        return not self._stopping

    def run(self) -> None:
        """Keep everything alive until SIGINT or SIGTERM."""
        while not self._stopping:
            for watch in self._watched:
                self._tend(watch)
            waiting = any(not watch.ready for watch in self._watched)
            self._wait(POLL_STARTING_S if waiting else POLL_S)

    def stop(self) -> None:
        """Stop everything, the last started first."""
        self._stopping = True
        while self._watched:
            service = self._watched.pop().service
            began = time.monotonic()
            service.stop()
            _log.info("stopped", service=service.name, after_s=round(time.monotonic() - began, 2))

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _wait(self, seconds: float) -> None:
        """Until a signal (also: a child ended) or the time is over."""
        if select.select([self._wake_read], [], [], seconds)[0]:
            try:
                self._wake_read.recv(4096)
            except BlockingIOError:
                return

    def _tend(self, watch: _Watch) -> None:
        now = time.monotonic()
        if watch.restart_at is not None:
            if now >= watch.restart_at and not self._stopping:
                self._relaunch(watch, now)
        elif (code := watch.service.poll()) is not None:
            self._plan_restart(watch, now, f"exit code {code}")
        elif not watch.ready:
            self._check_ready(watch, now)

    def _plan_restart(self, watch: _Watch, now: float, why: str) -> None:
        if watch.ready and now - watch.launched_at > STEADY_S:
            watch.delay_s = BACKOFF_FIRST_S
        _log.error("died, starting it again", service=watch.service.name, why=why, in_s=watch.delay_s)
        self._deaths += 1
        watch.ready = False
        watch.restart_at = now + watch.delay_s
        watch.delay_s = min(watch.delay_s * 2, BACKOFF_MAX_S)

    def _relaunch(self, watch: _Watch, now: float) -> None:
        watch.restart_at, watch.launched_at = None, now
        try:
            watch.service.launch()
        except Exception as error:
            self._plan_restart(watch, now, f"{type(error).__name__}: {error}")

    def _check_ready(self, watch: _Watch, now: float) -> None:
        try:
            watch.ready = watch.service.is_ready()
        except Exception as error:
            self._plan_restart(watch, now, str(error))
            return
        if watch.ready:
            _log.info("ready again", service=watch.service.name, after_s=round(now - watch.launched_at, 2))
        elif now - watch.launched_at > watch.service.start_timeout_s:
            _log.error("not ready in time, stopping it", service=watch.service.name)
            watch.service.kill()
