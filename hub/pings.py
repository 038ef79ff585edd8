"""Which nodes answer the hub just now: a laptop that was closed sends no goodbye, and no heartbeat is late yet.

Invariant: a node is left out only while it does not answer; one answer brings it back. Nothing here is truth: it only
keeps viewers from being sent to a door that is shut, or to one that opens and nobody is in: a computer that hangs still
takes connections.

Every node is asked once a second over a connection that is kept. In between, whoever is about to list a node to a
player asks again (`answers`): most players wait for ever on a computer that fell silent, so what counts is that it was
there when the player was sent to it.

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
from uuid import UUID

from hub.lines import ANSWER_S, Line
from hub.live_nodes import LiveNode

AT_ONCE: Final = 100
RESOLVE_EVERY_S: Final = 300.0
ADDRESSES_MAX: Final = 8
TIMEOUTS: Final = 2  # in a row; one that refuses is gone at once


class Pings:
    """For one event loop."""

    def __init__(self) -> None:
        self._lines: dict[UUID, Line] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._resolved: dict[UUID, tuple[str, float]] = {}  # node -> URL, when
        self._addresses: dict[UUID, list[str]] = {}

    def reachable(self, nodes: Collection[LiveNode]) -> list[LiveNode]:
        return [n for n in nodes if not self._is_gone(n.node_id)]

    def _is_gone(self, nid: UUID) -> bool:
        line = self._lines.get(nid)
        return line is not None and (line.refused or line.timeouts >= TIMEOUTS)

    async def ping(self, nodes: Collection[LiveNode]) -> None:
        """Ask each node once. Takes at most a few seconds."""
        for node in nodes:
            line = self._lines.get(node.node_id)
            if line is None or line.url != node.url:
                self._drop(node.node_id)
                self._lines[node.node_id] = Line(node.url)
        known = {n.node_id for n in nodes}
        for nid in [nid for nid in self._lines if nid not in known]:
            self._drop(nid)
        await asyncio.gather(*(self._ping(n, self._lines[n.node_id]) for n in nodes))
        self._resolved = {nid: when for nid, when in self._resolved.items() if nid in known}

    def _drop(self, nid: UUID) -> None:
        line = self._lines.pop(nid, None)
        if line is not None:
            line.close()

    async def _ping(self, node: LiveNode, line: Line) -> None:
        async with self._gate:
            if await line.ask():
                with suppress(OSError, TimeoutError):
                    await self._resolve(node, line)

    def answered(self, nid: UUID) -> bool:
        """Whether the node answered a moment ago. True of a node that was never asked."""
        line = self._lines.get(nid)
        return line is None or line.is_fresh()

    async def answers(self, nid: UUID) -> bool:
        """Whether the node answers, within the time in which it usually does."""
        line = self._lines.get(nid)
        return line is None or line.is_fresh() or await line.answers_in_time()

    def close(self) -> None:
        for nid in list(self._lines):
            self._drop(nid)

    # --- names

    def take_addresses(self) -> dict[UUID, list[str]]:
        """What names of nodes have resolved to since the last call."""
        taken, self._addresses = self._addresses, {}
        return taken

    async def _resolve(self, node: LiveNode, line: Line) -> None:
        """Remember all addresses of a name; one that does not resolve now will another time."""
        url, when = self._resolved.get(node.node_id, ("", 0.0))
        if _is_address(line.host) or (url == node.url and time.monotonic() - when < RESOLVE_EVERY_S):
            return
        self._resolved[node.node_id] = (node.url, time.monotonic())
        async with asyncio.timeout(ANSWER_S):
            found = await asyncio.get_running_loop().getaddrinfo(
                line.host, line.port, type=socket.SOCK_STREAM
            )
        self._addresses[node.node_id] = sorted({str(at[4][0]) for at in found})[:ADDRESSES_MAX]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
