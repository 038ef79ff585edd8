"""The nodes that a session can be sent to, and which of them it is.

Invariant: chance decides, so that nobody chooses who pays them. Viewers can keep others from a node only by saying from
several networks that it failed them, and only when they are many of those who watch through it.
"""

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hub.viewings import Viewings

SUSPECT_S: Final = 10.0  # a node that failed several viewers is not given to anybody for so long
SUSPECT_NETWORKS: Final = 2  # so many must say so, independently,
SUSPECT_SHARE: Final = (
    4  # and one in so many of those who watch through it: a rival has not that many sessions there
)
NEW_HEALTH: Final = 500
HEALTH_LEAST: Final = 50  # a node of bad health is seldom drawn, but can get better


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A node that sent a heartbeat a moment ago."""

    node_id: UUID
    url: str
    viewers: int
    health: int = NEW_HEALTH  # 0 to 1000, from probes and receipts (docs/projections.md)


class LiveNodes:
    def __init__(self, viewings: Viewings, rng: random.Random) -> None:
        self._viewings = viewings
        self._rng = rng
        self._live: dict[UUID, LiveNode] = {}
        self._complaints: dict[UUID, dict[UUID, tuple[bytes, float]]] = {}  # node -> session -> network, when

    def __len__(self) -> int:
        return len(self._live)

    def update(self, nodes: Sequence[LiveNode]) -> None:
        self._live = {n.node_id: n for n in nodes}

    def leave(self, nid: UUID) -> None:
        """Thread-safe."""
        self._live.pop(nid, None)

    def is_at(self, nid: UUID, url: str) -> bool:
        """Whether viewers may go there, by that address."""
        live = self._live.get(nid)
        return live is not None and live.url == url and not self._is_suspect(nid)

    def complain(self, nid: UUID, session_id: UUID, network: bytes) -> None:
        """The node failed a session whose viewer is in that network (a commitment)."""
        self._complaints.setdefault(nid, {})[session_id] = (network, time.monotonic())

    def forget_complaints(self) -> None:
        """Those that count no more."""
        now = time.monotonic()
        self._complaints = {
            n: fresh
            for n, sessions in self._complaints.items()
            if (fresh := {s: (net, at) for s, (net, at) in sessions.items() if now - at < SUSPECT_S})
        }

    def draw(self, avoid: Collection[UUID], count: int) -> list[LiveNode]:
        """At most `count`: the fewer viewers and the better health a node has, the likelier and the earlier."""
        load = self._viewings.load()
        drawn: list[LiveNode] = []
        left = [n for n in self._live.values() if n.node_id not in avoid and not self._is_suspect(n.node_id)]
        while left and len(drawn) < count:
            weights = [max(n.health, HEALTH_LEAST) / (1 + load[n.node_id]) ** 2 for n in left]
            drawn.append(left.pop(self._rng.choices(range(len(left)), weights)[0]))
        return drawn

    def _is_suspect(self, nid: UUID) -> bool:
        now = time.monotonic()
        recent = [net for net, at in self._complaints.get(nid, {}).values() if now - at < SUSPECT_S]
        if len(set(recent)) < SUSPECT_NETWORKS:
            return False
        content = sum(v.node_id == nid for v in self._viewings.watching())
        return len(recent) * SUSPECT_SHARE >= content
