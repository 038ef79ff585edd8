"""Which nodes the hub cannot reach just now: a laptop that was closed sends no goodbye, and no heartbeat is late yet.

Invariant: a node is left out only while connecting to it fails; one connection that succeeds brings it back. Nothing
here is truth: it only keeps viewers from being sent to a door that is shut.
"""

import asyncio
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from hub.steering import LiveNode

CONNECT_S: Final = 1.5
AT_ONCE: Final = 100
TIMEOUTS: Final = 2  # in a row; one that refuses is gone at once


class Pings:
    """For one event loop."""

    def __init__(self) -> None:
        self._failures: dict[UUID, int] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    def reachable(self, nodes: Collection[LiveNode]) -> list[LiveNode]:
        return [n for n in nodes if self._failures.get(n.node_id, 0) < TIMEOUTS]

    async def ping(self, nodes: Collection[LiveNode]) -> None:
        """Connect to each node once. Takes at most a few seconds."""
        await asyncio.gather(*(self._ping(n) for n in nodes))
        known = {n.node_id for n in nodes}
        self._failures = {nid: count for nid, count in self._failures.items() if nid in known}

    async def _ping(self, node: LiveNode) -> None:
        async with self._gate:
            try:
                parts = urlsplit(node.url)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                async with asyncio.timeout(CONNECT_S):
                    _, writer = await asyncio.open_connection(parts.hostname, port)
            except TimeoutError:
                self._failures[node.node_id] = self._failures.get(node.node_id, 0) + 1
            except (
                OSError,
                ValueError,
            ):  # ValueError: a name that no resolver takes, a node may say anything
                self._failures[node.node_id] = TIMEOUTS
            else:
                self._failures.pop(node.node_id, None)
                writer.close()
