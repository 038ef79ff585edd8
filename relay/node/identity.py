"""Who this node is: its Ed25519 key and what the hub said when it joined, in one folder.

Invariant: the key is made once on this machine, readable by its owner only, never overwritten and never logged; the
profile names exactly one hub, because spooled receipts belong to it.
"""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from ledger.keys import SEED_BYTES, KeyPair
from relay.node.files import create_secret, replace_file

log = structlog.get_logger()

KEY_FILE: Final = "node.key"
PROFILE_FILE: Final = "node.json"
RUNNING_FILE: Final = "running.json"
LOCK_FILE: Final = "node.lock"
MAX_PROFILE_BYTES: Final = 65_536


class IdentityError(Exception):
    """The node's folder cannot be used as it is. The message says what to do."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What `node join` learned, kept as JSON."""

    hub_url: str  # without a trailing slash
    node_id: str
    friend_id: str
    name: str
    port: int
    public_url: str | None
    ticket_keys: list[str]  # hex, 32 bytes each
    heartbeat_s: float = 5.0


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Where the running node listens, for `node status`."""

    port: int
    pid: int
    tls: bool = False


def load_or_create_key(folder: Path) -> KeyPair:
    """The node's key pair, made on first use. Raises IdentityError when the file is not a key of ours."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / KEY_FILE
    if not path.exists():
        create_secret(path, secrets.token_bytes(SEED_BYTES).hex().encode() + b"\n")
    if sys.platform != "win32" and path.stat().st_mode & 0o077:
        log.warning("node key was readable by others, made private", path=str(path))
        path.chmod(0o600)
    try:
        return KeyPair(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except ValueError as e:
        raise IdentityError(f"{path} is not a node key (64 hex digits); restore it from your backup") from e


def load_profile(folder: Path) -> Profile | None:
    """None when this node has not joined a hub. Raises IdentityError when the file is damaged."""
    path = folder / PROFILE_FILE
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_PROFILE_BYTES), type=Profile)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as e:
        raise IdentityError(f"{path} is damaged ({e}); remove it and join again: the key is kept") from e


def save_profile(folder: Path, profile: Profile) -> None:
    replace_file(folder / PROFILE_FILE, msgspec.json.format(msgspec.json.encode(profile)) + b"\n")


def save_running(folder: Path, running: Running) -> None:
    replace_file(folder / RUNNING_FILE, msgspec.json.encode(running))


def load_running(folder: Path) -> Running | None:
    try:
        with (folder / RUNNING_FILE).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_PROFILE_BYTES), type=Running)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one running node. Raises IdentityError when another process has it.

    The lock belongs to the open file, so the operating system frees it when the process dies.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise IdentityError(f"another node is already running with {folder}") from e
        yield
    finally:
        os.close(handle)
