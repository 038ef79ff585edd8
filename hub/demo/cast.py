"""The cast of the demo: processes with their own data directories and logs.

Invariant: whatever happens to the demo, its processes end with it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hub.embedded.account import die_with_parent

STOP_S: Final = 12.0
STREAMRP2P: Final = (sys.executable, "-m", "hub.cli")


class DemoError(Exception):
    """Something in the cast did not play its part. Names the log to read."""


@dataclass
class Actor:
    """One process; what it says goes to a log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, name: str, command: tuple[str, ...], folder: Path, environment: Mapping[str, str]
    ) -> "Actor":
        log = folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )
        return cls(name, process, log)

    def must_live(self) -> None:
        if self.process.poll() is not None:
            raise DemoError(
                f"{self.name} ended with code {self.process.returncode}; see {self.log}\n{self.tail()}"
            )

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    def kill(self) -> None:
        """As a laptop that is closed: no goodbye."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        self.kill()


def run_command(*arguments: str, environment: Mapping[str, str], ok: tuple[int, ...] = (0,)) -> str:
    """Run `streamrp2p ...` to its end; its stdout. Raises DemoError."""
    done = subprocess.run(
        [*STREAMRP2P, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode not in ok:
        raise DemoError(
            f"streamrp2p {' '.join(arguments[:2])} ended with code {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_for_http(url: str, actor: Actor, timeout_s: float) -> None:
    """Until `url` answers 200. Raises DemoError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        actor.must_live()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise DemoError(f"{actor.name} was not ready after {timeout_s:.0f} s; see {actor.log}\n{actor.tail()}")
