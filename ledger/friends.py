"""Whose node each is, in 32 bytes for every node that ever joined: a crew forgets none, and few are asked for."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

_NEWER_MOST: Final = 1_024
_ID: Final = 16
_ROW: Final = 2 * _ID


@dataclass(slots=True)
class Friends:
    """Plain bytes, so that it can be kept as it is."""

    sorted: bytes = b""  # node and friend, by node
    newer: dict[UUID, UUID] = field(default_factory=dict)  # node -> friend

    def joined(self, node_id: UUID, friend_id: UUID) -> None:
        """A node that joins again is the later friend's."""
        self.newer[node_id] = friend_id
        if len(self.newer) >= max(_NEWER_MOST, len(self.sorted) // _ROW // 8):
            self._sort_in()

    def of(self, node_id: UUID) -> UUID | None:
        found, key, rows = self.newer.get(node_id), node_id.bytes, self.sorted
        if found is not None:
            return found
        at = _ROW * bisect_left(range(len(rows) // _ROW), key, key=lambda i: rows[_ROW * i : _ROW * i + _ID])
        return UUID(bytes=rows[at + _ID : at + _ROW]) if rows[at : at + _ID] == key else None

    def _sort_in(self) -> None:
        rows = {self.sorted[i : i + _ID]: self.sorted[i : i + _ROW] for i in range(0, len(self.sorted), _ROW)}
        rows |= {node.bytes: node.bytes + friend.bytes for node, friend in self.newer.items()}
        self.sorted, self.newer = b"".join(rows[node] for node in sorted(rows)), {}
