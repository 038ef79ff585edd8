"""Tiles and entry bundles (c2sp.org/tlog-tiles): how a Merkle tree and its leaves are laid out in files.

Invariant: a tree of a given size has exactly one set of tiles, and the bytes of every tile follow from the leaves.
Paths are relative to the log's prefix, with forward slashes.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ledger import merkle

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT  # hashes, or entries, in a full tile
HASH_BYTES: Final = 32
TILE_BYTES: Final = WIDTH * HASH_BYTES
MAX_ENTRY_BYTES: Final = 65_535
MAX_BUNDLE_BYTES: Final = WIDTH * (2 + MAX_ENTRY_BYTES)
_LENGTH: Final = struct.Struct(">H")


class TileError(ValueError):
    """Bytes that are not the tile or the bundle they should be."""


def _index_path(n: int) -> str:
    """Groups of three digits, all but the last with an `x`: 1234067 -> x001/x234/067."""
    path = f"{n % 1000:03d}"
    while n >= 1000:
        n //= 1000
        path = f"x{n % 1000:03d}/{path}"
    return path


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A tile of hashes at `level` 0, 1, ..., or (level -1) the bundle with the entries of the level 0 tile."""

    level: int
    index: int
    width: int = WIDTH

    def __post_init__(self) -> None:
        if not (-1 <= self.level < 64 and self.index >= 0 and 1 <= self.width <= WIDTH):
            raise TileError(f"there is no tile {self.level}/{self.index} of width {self.width}")

    @property
    def full_path(self) -> str:
        level = "entries" if self.level < 0 else str(self.level)
        return f"tile/{level}/{_index_path(self.index)}"

    @property
    def path(self) -> str:
        return self.full_path if self.width == WIDTH else f"{self.full_path}.p/{self.width}"

    @property
    def first_entry(self) -> int:
        """The lowest log position that this tile spans."""
        return self.index << (HEIGHT * (max(self.level, 0) + 1))


ENTRIES: Final = -1  # the level of entry bundles


def tile_of(level: int, index: int, size: int) -> Tile:
    """Tile `index` of `level` as it is in a tree of `size` leaves: full, or partial at the right edge.

    Raises TileError when the tree has no such tile.
    """
    nodes = size >> (HEIGHT * max(level, 0))
    return Tile(level, index, min(WIDTH, nodes - index * WIDTH))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Each entry with its 16-bit length before it. Raises TileError for an entry that is too long."""
    pack = _LENGTH.pack
    try:
        return b"".join([part for e in entries for part in (pack(len(e)), e)])
    except struct.error:
        longest = max(len(e) for e in entries)
        raise TileError(f"a log entry is at most {MAX_ENTRY_BYTES} bytes, not {longest}") from None


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """The first `width` entries. Raises TileError when there are fewer, or when bytes are left over."""
    return [bytes(entry) for entry in entry_views(data, width)]


def entry_views(data: bytes | memoryview, width: int) -> list[memoryview]:
    """As `decode_bundle`, without copying.

    A bundle that is already full may be read for a smaller width (partial bundles are deleted then): what is
    beyond `width` must still be whole entries.
    """
    view = memoryview(data)
    entries: list[memoryview] = []
    offset, end = 0, len(view)
    while offset < end:
        if offset + 2 > end:
            raise TileError("the bundle ends inside an entry's length")
        start = offset + 2
        offset = start + (view[offset] << 8 | view[offset + 1])
        if offset > end:
            raise TileError("the bundle ends inside an entry")
        entries.append(view[start:offset])
    if not width <= len(entries) <= WIDTH:
        raise TileError(f"the bundle holds {len(entries)} entries, not {width}")
    return entries[:width]


def decode_tile(data: bytes, width: int) -> list[bytes]:
    """The first `width` hashes. Raises TileError unless there are that many, up to a full tile."""
    if len(data) % HASH_BYTES or not width * HASH_BYTES <= len(data) <= TILE_BYTES:
        raise TileError(f"a tile of {width} hashes is not {len(data)} bytes")
    return [data[i : i + HASH_BYTES] for i in range(0, width * HASH_BYTES, HASH_BYTES)]


Sink = Callable[[Tile, bytes], None]


class TileBuilder:
    """Turns leaves into tiles, in order. Full tiles go to `sink` as soon as they are full.

    Invariant: what `sink` received, with `partials()`, is the whole tile set of a tree of `size` leaves.
    """

    def __init__(
        self, sink: Sink, *, levels: list[list[bytes]] | None = None, full: merkle.Frontier | None = None
    ) -> None:
        """Empty, or at a whole number of tiles: `levels` and `full` as below."""
        self.sink = sink  # may be exchanged between two leaves
        self._full = full or merkle.Frontier()  # of full level 0 tiles
        self._bundle = bytearray()
        self._levels = levels or [[]]  # the hashes of the last, partial tile of each level
        self.size = self._full.size

    def append(self, entry: bytes) -> None:
        """Add a leaf."""
        self.extend((entry,))

    def extend(self, entries: Sequence[bytes], leaves: Sequence[bytes] | None = None) -> None:
        """Add leaves. `leaves` are their leaf hashes when the caller knows them already.

        Raises TileError for an entry that is too long; then none of its tile's entries that are new is added.
        """
        done = 0
        while done < len(entries):
            end = done + WIDTH - self.size % WIDTH
            part = entries[done:end]
            self._bundle += encode_bundle(part)
            self._levels[0] += leaves[done:end] if leaves is not None else merkle.leaf_hashes(part)
            self.size += len(part)
            done += len(part)
            if self.size % WIDTH == 0:
                self.sink(Tile(ENTRIES, self.size // WIDTH - 1), bytes(self._bundle))
                self._bundle.clear()
                self._close(0)

    def _close(self, level: int) -> None:
        hashes = self._levels[level]
        self.sink(Tile(level, (self.size >> (HEIGHT * (level + 1))) - 1), b"".join(hashes))
        root = merkle.root_of_hashes(hashes)
        hashes.clear()
        if level == 0:
            self._full.append(root, HEIGHT)
        if level + 1 == len(self._levels):
            self._levels.append([])
        self._levels[level + 1].append(root)
        if len(self._levels[level + 1]) == WIDTH:
            self._close(level + 1)

    def partials(self) -> Iterator[tuple[Tile, bytes]]:
        """The partial tiles of the tree as it is now, the bundle first."""
        if self._bundle:
            yield Tile(ENTRIES, self.size // WIDTH, self.size % WIDTH), bytes(self._bundle)
        for level, hashes in enumerate(self._levels):
            if hashes:
                index = self.size >> (HEIGHT * (level + 1))
                yield Tile(level, index, len(hashes)), b"".join(hashes)

    def root(self) -> bytes:
        """The root of all leaves so far."""
        edge = self._full.copy()
        for leaf in self._levels[0]:
            edge.append(leaf)
        return edge.root()
