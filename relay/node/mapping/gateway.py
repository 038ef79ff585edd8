"""The router of the home network, asked over UDP.

Invariant: bounded: a few requests, then the router counts as silent; only datagrams of that router are looked at.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeVar

from relay.node.mapping.lease import SilentError

WAITS_S: Final = (0.25, 0.5, 1.0, 2.0)  # RFC 6886, section 3.1, cut short: a friend waits for the answer
_ROUTES: Final = Path("/proc/net/route")
_UP_AND_GATEWAY: Final = 0x3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gateway:
    address: IPv4Address
    client: IPv4Address  # this computer, as the router sees it
    port: int


def find_gateway(port: int, routes: Path = _ROUTES) -> Gateway:
    """The default route's router. Raises SilentError when there is none, or it cannot be known (not Linux)."""
    try:
        lines = routes.read_text(encoding="ascii").splitlines()[1:]
    except (OSError, UnicodeDecodeError) as e:
        raise SilentError("this computer does not say which router it uses") from e
    best: tuple[int, IPv4Address] | None = None
    for line in lines:
        columns = line.split()
        try:
            target, via, flags, metric = columns[1], columns[2], int(columns[3], 16), int(columns[6])
            address = IPv4Address(struct.pack("=I", int(via, 16)))  # written in the machine's byte order
        except (IndexError, ValueError, struct.error):
            continue
        is_default = int(target, 16) == 0 and flags & _UP_AND_GATEWAY == _UP_AND_GATEWAY
        if is_default and (best is None or metric < best[0]):
            best = metric, address
    if best is None:
        raise SilentError("this computer has no router on IPv4")
    return Gateway(best[1], _client_of(best[1], port), port)


def _client_of(router: IPv4Address, port: int) -> IPv4Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((str(router), port))  # sends nothing: it only chooses the way
        return IPv4Address(probe.getsockname()[0])


async def ask(gateway: Gateway, data: bytes, parse: Callable[[bytes], T | None]) -> T:
    """What `parse` makes of the first datagram that it takes. Raises what it raises, and SilentError."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        try:
            udp.connect((str(gateway.address), gateway.port))
            for wait_s in WAITS_S:
                await loop.sock_sendall(udp, data)
                try:
                    async with asyncio.timeout(wait_s):
                        while True:
                            parsed = parse(await loop.sock_recv(udp, 2_048))
                            if parsed is not None:
                                return parsed
                except TimeoutError:
                    continue
        except OSError as e:  # "connection refused": nobody listens there
            raise SilentError(f"the router does not listen: {e.strerror or e}") from e
    raise SilentError("the router did not answer")
