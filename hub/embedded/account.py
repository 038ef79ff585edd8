"""Which Unix account an embedded server runs as, and what that account can reach.

Invariant: a server never runs as root. Started by root it runs as the owner of its data, or as `nobody` when
there is no data yet; no account is created and no permission outside the data directory is changed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NOBODY = 65534
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Account:
    """`switch` is true when a child must change to (uid, gid): only root has to."""

    uid: int
    gid: int
    switch: bool

    def _options(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def run(self, command: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run to its end as this account, from `/` because the caller's folder may be closed to it."""
        return subprocess.run(
            command,
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            **self._options(),
        )

    def spawn(
        self, command: Sequence[str], *, cwd: Path, log: IO[bytes], death_signal: signal.Signals
    ) -> subprocess.Popen[bytes]:
        """Start a server in a session of its own (Ctrl-C in the terminal is the supervisor's to handle). On
        Linux it gets `death_signal` when the *thread* that started it ends, so a supervisor killed with -9
        leaves no orphan."""
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(death_signal),
            **self._options(),
        )

    def own(self, path: Path) -> None:
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def reaches(self, path: Path) -> bool:
        """Asked of the kernel, as the account itself: ACLs and mount options count too."""
        if not self.switch:
            return os.access(path, os.R_OK | os.X_OK)
        return self.run(["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)], timeout_s=10).returncode == 0


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` (it runs after the uid changes, which would clear the setting). None where there is no
    prctl: there the next start finds and stops the orphan."""
    if _LIBC is None:
        return None
    libc, parent, number = _LIBC, os.getpid(), int(death_signal)

    def preexec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return preexec


def among_strangers(death_signal: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn` for a program that reads what strangers send: it dies with us, and is never root."""
    die = die_with_parent(death_signal)

    def preexec() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        if die is not None:
            die()

    return preexec


def account_for(existing_data: Path) -> Account:
    """The account that may open `existing_data`, which need not exist yet."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), switch=False)
    try:
        owner = existing_data.stat()
    except OSError:
        return Account(NOBODY, NOBODY, switch=True)
    if owner.st_uid == 0:
        return Account(NOBODY, NOBODY, switch=True)
    return Account(owner.st_uid, owner.st_gid, switch=True)


def _environment() -> dict[str, str]:
    """Nothing of ours leaks into a server: no settings, no tokens, no PG* variables of the operator's
    shell."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
