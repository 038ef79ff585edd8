"""How much a node can have carried: at most what spot checks measured of its line, with room for a loaded one.

A node and viewers who collude can sign for bytes that were never sent; for more than its line holds they are not paid.
Invariants: the bound of an hour depends on the log before `position` alone and only grows with it, so that a probe more
never takes anything from anybody; of one hour no more is ever paid, in however many settlements; and what is over is
taken from all credits of the hour in proportion, so that no order of receipts matters. Bytes are split to the byte and
units rounded down, so that what is within the rate may be bytes without a whole segment.

What a probe measures is a share of the line: of n transfers at a time it gets one part in n + 1. `node_rate_factor`
makes up for that, and the best of a day's probes counts, so that a line that is never idle is not taken for a slow one.

What was measured is kept in columns: a crew may have many nodes, each of them probed all day long.
"""

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt

from ledger.events import NodeProbed
from ledger.money import part_of
from ledger.settings import Settings

HOUR_US: Final = 3_600_000_000
BEST_OF_HOURS: Final = 24

_ROW: Final = struct.Struct("<16sqqq")  # node, hour, position, rate
_NODE: Final = struct.Struct("<qq")
_WORD: Final = np.dtype("<i8")
_COLUMNS: Final = 5  # the node is two of them
_MOST: Final = 2**62  # bytes a second: more than anybody claims
_NEWER_BYTES: Final = 4_096 * _ROW.size
_Columns = npt.NDArray[np.int64]  # of five rows

P = TypeVar("P")


class Part(NamedTuple, Generic[P]):
    """Credits of one pool that were published in one epoch, or the part of them that is over the rate."""

    pool: P
    plain: bool
    published: int
    units: int
    credited_bytes: int
    over_rate: bool


@dataclass(frozen=True, slots=True)
class Epochs:
    genesis_us: int
    epoch_us: int

    @property
    def per_window(self) -> int:
        """Epochs that are taken together: an hour's, or one."""
        return max(1, HOUR_US // self.epoch_us) if self.epoch_us else 1

    def window_us(self, window: int) -> tuple[int, int]:
        first = window * self.per_window
        start_us = self.genesis_us + first * self.epoch_us
        return start_us, start_us + self.per_window * self.epoch_us


@dataclass(slots=True)
class NodeRates:
    """Plain bytes, so that it can be kept as it is."""

    # Five columns of eight bytes, by node and hour, then by position; each better than those before it in the hour.
    sorted: bytes = b""
    newer: bytearray = field(
        default_factory=bytearray
    )  # _ROW each: what was measured since, in the order of the log
    carried: dict[tuple[UUID, int], int] = field(default_factory=dict)  # (node, window) -> bytes settled

    def probed(self, position: int, event: NodeProbed) -> None:
        self.measured(
            position,
            event.originator_id.bytes,
            event.at_us,
            event.outcome,
            event.latency_us,
            event.segment_bytes,
        )

    def measured(
        self, position: int, node: bytes, at_us: int, outcome: str, latency_us: int, segment_bytes: int
    ) -> None:
        """What a probe says of the node of that id (16 bytes)."""
        if outcome != "ok" or latency_us <= 0 or segment_bytes <= 0:
            return
        rate = segment_bytes * 1_000_000 // latency_us
        self.newer += _ROW.pack(node, at_us // HOUR_US, position, rate if rate < _MOST else _MOST)
        if len(self.newer) >= _NEWER_BYTES and len(self.newer) >= len(self.sorted) // 2:
            self._sort_in()

    def most_bytes(
        self, node_id: UUID, start_us: int, end_us: int, position: int, settings: Settings
    ) -> int | None:
        """What the node can have carried from `start_us` to `end_us`, by the log before `position`; None: no bound."""
        if not settings.node_rate_factor:
            return None
        hours, positions, rates = self._of(node_id)
        counts = (hours >= start_us // HOUR_US - BEST_OF_HOURS) & (hours < end_us // HOUR_US + 2)
        best = int(rates[counts & (positions < position)].max(initial=0))
        rate = max(settings.node_rate_factor * best, settings.node_rate_floor)
        return rate * (end_us - start_us) // 1_000_000

    def parts(
        self,
        totals: Mapping[tuple[P, bool, int], Sequence[int]],
        nodes: Mapping[P, UUID],
        log_to: int,
        settings: Settings,
        epochs: Epochs,
    ) -> list[Part[P]]:
        """The credits of a settlement, split where they are more than their nodes can have carried.

        `totals`: (pool, plain, epoch of publication) -> units, bytes. Changes nothing.
        """
        of_window: dict[tuple[UUID, int], int] = defaultdict(int)
        for (pool, _, published), (_, size) in totals.items():
            of_window[nodes[pool], published // epochs.per_window] += size
        left: dict[tuple[UUID, int], int] = {}
        for (node_id, window), total in of_window.items():
            most = self.most_bytes(node_id, *epochs.window_us(window), log_to, settings)
            carried = self.carried.get((node_id, window), 0)
            if most is not None and carried + total > most:
                left[node_id, window] = max(0, most - carried)
        found: list[Part[P]] = []
        for (pool, plain, published), (units, size) in totals.items():
            key = nodes[pool], published // epochs.per_window
            within = (units, size)
            if key in left:
                within = (part_of(units, left[key], of_window[key]), part_of(size, left[key], of_window[key]))
                over = (units - within[0], size - within[1])
                found.append(Part(pool, plain, published, *over, over_rate=True))
            found.append(Part(pool, plain, published, *within, over_rate=False))
        return found

    def settled(self, parts: Sequence[Part[P]], nodes: Mapping[P, UUID], epochs: Epochs) -> None:
        """The settlement that pays these parts is in the log."""
        for part in parts:
            if not part.over_rate:
                key = nodes[part.pool], part.published // epochs.per_window
                self.carried[key] = self.carried.get(key, 0) + part.credited_bytes

    def forget_before(self, time_us: int, epochs: Epochs) -> None:
        """Nothing that was published before is asked for any more."""
        self._sort_in(time_us // HOUR_US - BEST_OF_HOURS)
        self.carried = {
            key: size for key, size in self.carried.items() if epochs.window_us(key[1])[1] > time_us
        }

    def _of(self, node_id: UUID) -> _Columns:
        """Hours, positions and rates of one node."""
        if self.newer:
            self._sort_in()
        columns = np.frombuffer(self.sorted, _WORD).reshape(_COLUMNS, -1)
        first, second = _NODE.unpack(node_id.bytes)
        start, end = columns[0].searchsorted(first), columns[0].searchsorted(first, "right")
        some = columns[:, start:end]
        return some[2:, some[1] == second]

    def _sort_in(self, oldest: int | None = None) -> None:
        """Take in what is newer, and forget the hours before `oldest`."""
        columns = np.frombuffer(self.sorted, _WORD).reshape(_COLUMNS, -1)
        if self.newer:
            newer = np.frombuffer(self.newer, _WORD).reshape(-1, _COLUMNS).T
            columns = np.concatenate((columns, newer), axis=1)
            columns = columns[:, np.lexsort(columns[2::-1])]  # stable: positions go on ascending
            columns = columns[:, _better(columns)]
        if oldest is not None:
            columns = columns[:, columns[2] >= oldest]
        self.sorted, self.newer = columns.tobytes(), bytearray()


def _better(columns: _Columns) -> npt.NDArray[np.bool_]:
    """Where a rate is better than all before it of the same node and hour."""
    new = np.ones(columns.shape[1], np.bool_)
    new[1:] = (columns[:3, 1:] != columns[:3, :-1]).any(axis=0)
    # The rank of the rate below the number of its node and hour: then the best so far is the greatest so far.
    _, rank = np.unique(columns[4], return_inverse=True)
    ranked = np.cumsum(new) * (len(rank) + 1) + rank
    new[1:] |= ranked[1:] > np.maximum.accumulate(ranked)[:-1]
    return new
