"""The nodes that viewers may be sent to: whose heartbeat is fresh, who answer, and who were not stopped since.

Invariant: a node that said goodbye or was stopped is offered to nobody from that moment on, whatever was asked before
and is answered only now; it is again when heartbeats are looked at the next time and it has one.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from hub.live_nodes import LiveNode
from hub.pings import Pings


class Presence:
    """For one event loop, but for `left`."""

    def __init__(
        self,
        pings: Pings,
        offer: Callable[[Sequence[LiveNode]], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pings = pings
        self._offer = offer
        self._clock_s = clock_s
        self._nodes: list[LiveNode] = []
        self._left: dict[UUID, float] = {}

    async def refresh(self, alive: Callable[[], Awaitable[list[LiveNode]]]) -> None:
        """Look at the heartbeats. What `alive` raises changes nothing."""
        asked_s = self._clock_s()
        self._nodes = await alive()
        for nid, left_s in list(self._left.items()):
            if left_s < asked_s:
                self._left.pop(nid, None)
        self._offer_here()

    async def ping(self) -> None:
        """Ask each whether it is there, which takes a moment where one is not."""
        await self._pings.ping(self._nodes)
        self._offer_here()

    def left(self, nid: UUID) -> None:
        """A node said goodbye or was stopped. Thread-safe."""
        self._left[nid] = self._clock_s()

    def _offer_here(self) -> None:
        self._offer(self._pings.reachable([n for n in self._nodes if n.node_id not in self._left]))
