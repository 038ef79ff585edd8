"""Reading a published log: single entries, and proofs computed from its tiles.

Invariant: nothing is read that the checkpoint at hand does not cover. What is read here is not yet proven: the audit,
or a proof against a signed checkpoint, does that.
"""

from collections.abc import Iterator
from functools import lru_cache

from ledger import merkle
from ledger.checkpoint import Checkpoint
from ledger.note import MAX_NOTE_BYTES, Note
from ledger.tlog.source import Source
from ledger.tlog.tiles import (
    ENTRIES,
    HEIGHT,
    MAX_BUNDLE_BYTES,
    TILE_BYTES,
    WIDTH,
    Tile,
    decode_bundle,
    decode_tile,
    tile_of,
)

_CACHED_TILES = 256


class NotPublished(Exception):
    """The log has no checkpoint, or lacks a file that its checkpoint speaks of."""

    exit_code = 4


def read_note(source: Source) -> tuple[bytes, Checkpoint]:
    """The checkpoint as it is served, and what it says; its signature is not verified. Raises NotPublished."""
    note = source.read("checkpoint", MAX_NOTE_BYTES)
    if note is None:
        raise NotPublished(f"there is no checkpoint at {source.name}")
    return note, Checkpoint.parse_text(Note.parse(note).text)


class LogReader:
    """The log as of one checkpoint."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size
        self.hashes = lru_cache(_CACHED_TILES)(self._read_hashes)

    def entries(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """(position, bytes) of the entries in [start, end), as far as the log goes."""
        end = min(end, self._size)
        for n in range(start // WIDTH, -(-end // WIDTH)):
            tile = tile_of(ENTRIES, n, self._size)
            for position, data in enumerate(
                decode_bundle(self._read(tile, MAX_BUNDLE_BYTES), tile.width), n * WIDTH
            ):
                if start <= position < end:
                    yield position, data

    def subtree(self, level: int, index: int) -> bytes:
        """The hash of a full subtree (ledger.merkle.Subtree), from the tiles."""
        tile_level, inner = divmod(level, HEIGHT)
        first = index << inner
        hashes = self.hashes(tile_level, first // WIDTH)
        return merkle.root_of_hashes(hashes[first % WIDTH :][: 1 << inner])

    def _read_hashes(self, level: int, index: int) -> list[bytes]:
        """The hashes of one tile, as many as there were at this checkpoint."""
        tile = tile_of(level, index, self._size)
        return decode_tile(self._read(tile, TILE_BYTES), tile.width)

    def _read(self, tile: Tile, limit: int) -> bytes:
        for path in (tile.path, tile.full_path):
            data = self._source.read(path, limit)
            if data is not None:
                return data
        raise NotPublished(f"{self._source.name} has no {tile.path}")
