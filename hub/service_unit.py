"""The friend's node as a systemd service, closed to all it does not need (systemd.exec(5)).

Invariant: whatever stands in a path or an argument, the unit runs exactly that command (quoting of systemd.service(5)).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNIT_NAME: Final = "streamrp2p-node.service"
_MEMORY_BESIDE_CACHE_MIB: Final = 256

# Without mount namespaces: also an ordinary user's service manager can do these.
_EVERYWHERE: Final = """\
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077
"""
_SYSTEM: Final = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
PrivateDevices=yes
PrivateTmp=yes
RemoveIPC=yes
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a node's unit depends on. `user` None: for the service manager of whoever installs it."""

    command: Sequence[str]  # program first, an absolute path
    data_dir: Path
    hub_url: str
    cache_mib: int
    user: str | None

    def text(self) -> str:
        system = self.user is not None
        lines = [
            "[Unit]",
            f"Description=StreamrP2P node: carries for {_escape(self.hub_url)}",
            "After=network-online.target",
            "Wants=network-online.target",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            f"ExecStart={' '.join(map(quoted, self.command))}",
            "Environment=STREAMRP2P_LOG_JSON=true",
            "Restart=always",
            "RestartSec=5",
            "TimeoutStopSec=20",
            f"MemoryMax={self.cache_mib + _MEMORY_BESIDE_CACHE_MIB}M",
            "TasksMax=64",
            "LimitNOFILE=8192",
        ]
        if system:
            lines += [
                f"User={self.user}",
                f"ReadWritePaths={quoted(str(self.data_dir))}",
                *_SYSTEM.splitlines(),
            ]
        lines += [
            *_EVERYWHERE.splitlines(),
            "",
            "[Install]",
            f"WantedBy={'multi-user' if system else 'default'}.target",
        ]
        return "\n".join(lines) + "\n"


def install(unit: Unit) -> str:
    """Write the unit, enable and start it; what to tell. Raises OSError, ValueError."""
    if shutil.which("systemctl") is None:
        raise OSError("this computer has no systemd; `--dry-run` prints what the service would run")
    if unit.user is not None and os.geteuid() != 0:
        raise PermissionError(
            "a service of the whole computer needs root: use sudo, or --user for your account alone"
        )
    scope = [] if unit.user is not None else ["--user"]
    folder = Path("/etc/systemd/system") if unit.user is not None else Path.home() / ".config/systemd/user"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNIT_NAME).write_text(unit.text(), encoding="utf-8")
    for words in (["daemon-reload"], ["enable", UNIT_NAME], ["restart", UNIT_NAME]):
        done = subprocess.run(["systemctl", *scope, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"systemctl {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    watch = " ".join(["journalctl", *scope, "-f", "-u", UNIT_NAME])
    told = f"{folder / UNIT_NAME} is installed and runs. Watch it: {watch}"
    if scope:
        told += "\nIt ends when you log out, unless you run once: loginctl enable-linger"
    return told


def own_command() -> list[str]:
    """How this program is started, by absolute paths."""
    script = Path(sys.executable).parent / "streamrp2p"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "hub.cli"]


def quoted(word: str) -> str:
    """One word of a unit file's command line. Raises ValueError for what systemd takes in no form."""
    if any(ord(c) < 32 or ord(c) == 127 for c in word):
        raise ValueError(f"a control character cannot stand in a service file: {word!r}")
    text = _escape(word).replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _escape(text: str) -> str:
    return text.replace("%", "%%")  # a specifier otherwise
