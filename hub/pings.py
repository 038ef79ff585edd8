"""Which nodes the hub cannot reach just now: a laptop that was closed sends no goodbye, and no heartbeat is late yet.

Invariant: a node is left out only while it does not answer; one answer brings it back. Nothing here is truth: it only
keeps viewers from being sent to a door that is shut, or to one that opens and nobody is in: a computer that hangs still
takes connections. Over TLS, where an answer costs both sides a handshake, the open door is enough.

A node that is known by a name may have several addresses, IPv4 and IPv6, of which viewers use any: what the name
resolves to is told now and then (`take_addresses`), because its networks are the node's own.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

from hub.steering import LiveNode

ANSWER_S: Final = 1.5
AT_ONCE: Final = 100
RESOLVE_EVERY_S: Final = 300.0
ADDRESSES_MAX: Final = 8
TIMEOUTS: Final = 2  # in a row; one that refuses is gone at once


class Pings:
    """For one event loop."""

    def __init__(self) -> None:
        self._failures: dict[UUID, int] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._resolved: dict[UUID, tuple[str, float]] = {}  # node -> URL, when
        self._addresses: dict[UUID, list[str]] = {}

    def reachable(self, nodes: Collection[LiveNode]) -> list[LiveNode]:
        return [n for n in nodes if self._failures.get(n.node_id, 0) < TIMEOUTS]

    async def ping(self, nodes: Collection[LiveNode]) -> None:
        """Ask each node once. Takes at most a few seconds."""
        await asyncio.gather(*(self._ping(n) for n in nodes))
        known = {n.node_id for n in nodes}
        self._failures = {nid: count for nid, count in self._failures.items() if nid in known}
        self._resolved = {nid: when for nid, when in self._resolved.items() if nid in known}

    def take_addresses(self) -> dict[UUID, list[str]]:
        """What names of nodes have resolved to since the last call."""
        taken, self._addresses = self._addresses, {}
        return taken

    async def _ping(self, node: LiveNode) -> None:
        async with self._gate:
            try:
                parts = urlsplit(node.url)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                async with asyncio.timeout(ANSWER_S):
                    await _ask(parts, port)
            except TimeoutError:
                self._failures[node.node_id] = self._failures.get(node.node_id, 0) + 1
            except (
                OSError,
                ValueError,
            ):  # ValueError: a name that no resolver takes, a node may say anything
                self._failures[node.node_id] = TIMEOUTS
            else:
                self._failures.pop(node.node_id, None)
                with suppress(OSError, TimeoutError):
                    await self._resolve(node, parts.hostname or "", port)

    async def _resolve(self, node: LiveNode, host: str, port: int) -> None:
        """Remember all addresses of a name; one that does not resolve now will another time."""
        url, when = self._resolved.get(node.node_id, ("", 0.0))
        if _is_address(host) or (url == node.url and time.monotonic() - when < RESOLVE_EVERY_S):
            return
        self._resolved[node.node_id] = (node.url, time.monotonic())
        async with asyncio.timeout(ANSWER_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._addresses[node.node_id] = sorted({str(at[4][0]) for at in found})[:ADDRESSES_MAX]


async def _ask(url: SplitResult, port: int) -> None:
    """Raises OSError when nobody is there."""
    reader, writer = await asyncio.open_connection(url.hostname, port)
    try:
        if url.scheme == "http":
            writer.write(f"HEAD {url.path}/health HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode("ascii"))
            if not await reader.read(1):
                raise ConnectionResetError("closed without an answer")
    finally:
        writer.close()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
