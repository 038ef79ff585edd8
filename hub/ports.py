"""Is a port free, and if not, who has it? Asked before anything is started, so that the answer is one clear line. And
the listening sockets, which outlive the process that accepts from them."""

import errno
import os
import socket
import time
from pathlib import Path

BACKLOG = 1024  # connections that wait while the process that accepts them starts again


class PortInUse(Exception):
    """Another program listens where the hub would."""

    exit_code = 1


def require_free_port(host: str, port: int, *, use: str, setting: str, patience_s: float = 1.0) -> None:
    """Raise PortInUse that names the port, the setting and, where it can be read, the program. A port of a process
    that is just ending is waited for up to `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        problem = _bind_problem(host, port)
        if problem is None:
            return
        if problem != errno.EADDRINUSE:
            raise PortInUse(
                f"cannot listen on {host}:{port} for {use}: {os.strerror(problem)} (set {setting})"
            )
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    holder = listener_of(port)
    by = f" by {holder}" if holder else ""
    raise PortInUse(f"port {port} ({use}) is in use{by}: stop that program, or set {setting} to a free port")


def _bind_problem(host: str, port: int) -> int | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EIO
    return None


def listen_on(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`. Whoever holds them keeps the port open: a connection made while
    nobody accepts waits, and is not refused. Raises OSError."""
    found = dict.fromkeys(
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    )
    return [socket.create_server(address[:2], family=family, backlog=BACKLOG) for family, address in found]


def listener_of(port: int) -> str | None:
    """`name (process 123)` of the program that listens on this TCP port; None where /proc does not say."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) in inodes for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:  # gone, or another account's
            continue
    return None


def _listening_inodes(port: int) -> list[str]:
    """From proc(5): column 1 is the local address in hex, column 3 the state (0A = LISTEN), column 9 the inode."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                found.append(columns[9])
    return found
