"""`streamrp2p doctor`: what could keep a node or a hub from working, looked at one by one.

Invariant: a check changes nothing but for a file it makes and removes, is bounded in time, and says what to do when
it fails. Looking goes on after a failed check.
"""

import contextlib
import shutil
import socket
import ssl
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

CONNECT_S: Final = 5.0
DAY_S: Final = 86_400


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: State
    said: str
    advice: str = ""  # what to do


def folder(path: Path, *, free_bytes_min: int) -> Finding:
    """Can be written, and has room."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4_096))
            file.flush()
        free = shutil.disk_usage(path).free
    except OSError as e:
        return Finding("folder", State.FAIL, f"{path} cannot be written: {e}", "check its owner and the disk")
    said = f"{path} has {free / 1e9:.1f} GB free"
    if free < free_bytes_min:
        return Finding("folder", State.WARN, said, "make room: what does not fit on the disk is not kept")
    return Finding("folder", State.OK, said)


def port_free(check: str, host: str, port: int, *, advice: str) -> Finding:
    """Nobody listens there, so the program can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as e:
        return Finding(check, State.FAIL, f"port {port} cannot be used: {e.strerror or e}", advice)
    return Finding(check, State.OK, f"port {port} is free")


def answers(check: str, host: str, port: int, *, advice: str) -> Finding:
    began = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as e:
        return Finding(check, State.FAIL, f"nothing answers on port {port}: {e.strerror or e}", advice)
    return Finding(check, State.OK, f"port {port} answers in {(time.monotonic() - began) * 1000:.0f} ms")


def certificate(
    check: str, url: str, *, connect_to: tuple[str, int] | None = None, now_s: float
) -> Finding | None:
    """The certificate of an https URL is trusted, for that name and for some days more. None: the URL is not https.

    `connect_to`: where to find the server, when it is not where the URL says (behind a router, say).
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        return None
    address = connect_to or (parts.hostname, parts.port or 443)
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection(address, timeout=CONNECT_S) as raw,
            context.wrap_socket(raw, server_hostname=parts.hostname) as tls,
        ):
            end_s = ssl.cert_time_to_seconds(str((tls.getpeercert() or {}).get("notAfter", "")))
    except ssl.SSLCertVerificationError as e:
        return Finding(
            check, State.FAIL, f"players refuse it: {e.verify_message}", "renew it for this very name"
        )
    except (OSError, ValueError) as e:
        return Finding(
            check, State.FAIL, f"{parts.hostname} speaks no TLS: {e}", "check address and certificate"
        )
    days = int((end_s - now_s) // DAY_S)
    if days < 14:
        return Finding(check, State.WARN, f"it ends in {days} days", "renew it")
    return Finding(check, State.OK, f"trusted, for {days} days more")


def readable(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file()
    return False
