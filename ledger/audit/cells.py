"""Which segments a session or a network has, by cells of 512 segments of a broadcast.

Invariant: a cell is what was put there last, in memory or on disk. Memory is bounded by who asks for places: `clear`,
after `flush`, lets go of all.
"""

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from ledger.audit.facts import Ints
from ledger.audit.store import Store
from ledger.runs import Bools, Runs, Words, bits, ends

T = TypeVar("T", bound=np.generic)
CELL_BITS: Final = 512
CELL_WORDS: Final = CELL_BITS // 64


class Cells:
    """Sets of 512 segments by key, of as many levels as are asked for: runs as long as each level is one, then bits.

    Row 0 is empty and stays so: where a ticket has no cell.
    """

    def __init__(self, store: Store, name: bytes, levels: int) -> None:
        self._store, self._name = store, name
        self.levels = levels
        self.in_bits: Bools  # where a level is not one run: `_rows` has them all
        self._runs: npt.NDArray[np.int16]
        self._rows: Words
        self._changed: Bools
        self.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, key: bytes) -> int:
        """The row of a key, from the store or new."""
        return self.places([key])[0]

    def places(self, keys: list[bytes]) -> list[int]:
        known = self._places
        new = [key for key in dict.fromkeys(keys) if key not in known]
        if new:
            known.update(zip(new, range(len(self._keys), len(self._keys) + len(new)), strict=True))
            self._keys += new
            while len(self._keys) > len(self.in_bits):
                self._runs = np.concatenate([self._runs, np.zeros_like(self._runs)], axis=2)
                self._rows, self.in_bits = doubled(self._rows), doubled(self.in_bits)
                self._changed = doubled(self._changed)
            stored = self._store.get_all(self._name, new)
            if stored:
                at = np.array([known[key[1:]] for key in stored])
                rows = np.frombuffer(b"".join(stored.values()), "<u8").astype(np.uint64)
                self.put(at, rows.reshape(len(at), -1))
                self._changed[at] = False
        return list(map(known.__getitem__, keys))

    def key(self, place: int) -> bytes:
        return self._keys[place]

    def runs(self, places: Ints) -> list[Runs]:
        """Of each level, where the cells are not `in_bits`."""
        return [Runs(*level.take(places, axis=1)) for level in self._runs]

    def put_runs(self, places: Ints, levels: list[Runs]) -> None:
        """Exchange cells. A place comes once, unless it is 0 and its runs are empty."""
        for (starts, ends_), new in zip(self._runs, levels, strict=True):
            starts[places], ends_[places] = new.start, new.end
        self.in_bits[places] = False
        self._changed[places] = True

    def bits(self, places: Ints) -> Words:
        """The levels of each cell, one after the other."""
        rows: Words = self._rows[places]
        written = ~self.in_bits[places]
        if written.any():
            runs = self.runs(places[written])
            rows[written] = np.concatenate([bits(level) for level in runs]).T
        return rows

    def put(self, places: Ints, rows: Words) -> None:
        """Exchange cells. A place comes once, unless it is 0 and its row is empty."""
        alike = np.ones(len(places), np.bool_)
        for known, level in zip(self._runs, np.split(rows, self.levels, axis=1), strict=True):
            known[0, places], known[1, places], one = ends(level.T)
            alike &= one
        self._rows[places] = rows
        self.in_bits[places] = ~alike
        self._changed[places] = True

    def flush(self) -> None:
        places = np.flatnonzero(self._changed)
        rows = self.bits(places)
        some = rows.any(axis=1)
        if some.any():
            keys, data = self._keys, rows.astype("<u8", copy=False)
            written = zip(places[some].tolist(), data[some], strict=True)
            self._store.write([(self._name + keys[i], row.tobytes()) for i, row in written])
        self._changed[:] = False

    def clear(self) -> None:
        self._runs = np.zeros((self.levels, 2, 1_024), np.int16)
        self._rows = np.zeros((1_024, self.levels * CELL_WORDS), np.uint64)
        self.in_bits = np.zeros(1_024, np.bool_)
        self._changed = np.zeros(1_024, np.bool_)
        self._places: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""]


def doubled(rows: npt.NDArray[T]) -> npt.NDArray[T]:
    return np.concatenate([rows, np.zeros_like(rows)])
