"""The published files, re-hashed: every entry against its tile, every tile against the tree, the tree against the root.

Invariant: when the iteration ends without AuditFailure, the entries it gave are exactly the leaves of the
checkpoint's tree, the tree of the checkpoint the auditor had kept is a prefix of it, and no file that belongs to it
has a wrong byte.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

from ledger import merkle
from ledger.audit.report import AuditFailure
from ledger.checkpoint import Checkpoint
from ledger.tlog.source import Source
from ledger.tlog.tiles import (
    ENTRIES,
    HASH_BYTES,
    HEIGHT,
    MAX_BUNDLE_BYTES,
    TILE_BYTES,
    WIDTH,
    Tile,
    TileBuilder,
    TileError,
    decode_bundle,
    decode_tile,
    tile_of,
)

AHEAD: Final = 8  # tiles fetched before they are needed


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    data: bytes
    exact: bool  # not a full tile read in place of a partial one that was removed


@dataclass(frozen=True, slots=True)
class _Pair:
    bundle: _File
    hashes: _File


def fetch(source: Source, tile: Tile) -> _File:
    """A tile's file; the full one when the partial one was removed. Raises AuditFailure when there is neither."""
    limit = MAX_BUNDLE_BYTES if tile.level == ENTRIES else TILE_BYTES
    for path in dict.fromkeys((tile.path, tile.full_path)):
        data = source.read(path, limit)
        if data is not None:
            return _File(path, data, path == tile.path)
    raise AuditFailure("the file is missing", position=tile.first_entry, file=tile.path)


def _first_difference(expected: bytes, published: _File) -> int | None:
    """Index of the first hash of the tile that is not as expected."""
    for at in range(0, len(expected), HASH_BYTES):
        if published.data[at : at + HASH_BYTES] != expected[at : at + HASH_BYTES]:
            return at // HASH_BYTES
    longer = published.exact and len(published.data) != len(expected)
    return len(expected) // HASH_BYTES - 1 if longer else None


class Entries:
    """Iterates over (position of the first, entries) of each bundle, in order."""

    def __init__(
        self, source: Source, checkpoint: Checkpoint, since: Checkpoint | None, pool: Executor
    ) -> None:
        self._source = source
        self._checkpoint = checkpoint
        self._since = since
        self._pool = pool
        self._tiles = TileBuilder(self._check_tile)

    def __iter__(self) -> Iterator[tuple[int, list[bytes]]]:
        ahead: deque[Future[_Pair]] = deque()
        for n in range(-(-self._checkpoint.size // WIDTH)):
            ahead.append(self._pool.submit(self._fetch_pair, n))
            if len(ahead) > AHEAD:
                yield self._take(ahead.popleft().result())
        while ahead:
            yield self._take(ahead.popleft().result())
        for tile_, data in self._tiles.partials():
            self._check_tile(tile_, data)
        if self._tiles.root() != self._checkpoint.root:
            raise AuditFailure("the root of all entries is not the one that was signed", file="checkpoint")

    def _fetch_pair(self, n: int) -> "_Pair":
        size = self._checkpoint.size
        return _Pair(fetch(self._source, tile_of(ENTRIES, n, size)), fetch(self._source, tile_of(0, n, size)))

    def _take(self, pair: "_Pair") -> tuple[int, list[bytes]]:
        start = self._tiles.size
        width = min(WIDTH, self._checkpoint.size - start)
        bundle, tile = pair.bundle, pair.hashes
        try:
            hashes = decode_tile(tile.data, width)
            if tile.exact and len(tile.data) != width * HASH_BYTES:
                raise TileError("the tile holds more than it should")
        except TileError as e:
            raise AuditFailure(str(e), position=start, file=tile.path) from e
        try:
            entries = decode_bundle(bundle.data, width)
            if bundle.exact and len(bundle.data) != sum(2 + len(e) for e in entries):
                raise TileError("the bundle holds more than it should")
        except TileError as e:
            raise AuditFailure(str(e), position=start, file=bundle.path) from e
        leaves = merkle.leaf_hashes(entries)
        if leaves != hashes:
            bad = next(i for i in range(width) if leaves[i] != hashes[i])
            raise AuditFailure(
                f"the entry does not hash to what {tile.path} says", position=start + bad, file=bundle.path
            )
        self._extend(entries, leaves)
        return start, entries

    def _extend(self, entries: list[bytes], leaves: list[bytes]) -> None:
        """Add to the tree, and stop on the way where the checkpoint ends that was kept."""
        start = self._tiles.size
        if self._since is not None and start < self._since.size <= start + len(entries):
            cut = self._since.size - start
            self._tiles.extend(entries[:cut], leaves[:cut])
            self._check_since(self._since)
            entries, leaves = entries[cut:], leaves[cut:]
        self._tiles.extend(entries, leaves)

    def _check_since(self, since: Checkpoint) -> None:
        if self._tiles.root() != since.root:
            raise AuditFailure(
                f"the log was rewritten: its first {since.size} entries are not those of the checkpoint that "
                f"was kept",
                file="checkpoint",
            )

    def _check_tile(self, tile: Tile, data: bytes) -> None:
        """Hold a tile that follows from the entries against the published one, and its older partial ones."""
        if tile.level > 0:
            published = fetch(self._source, tile)
            bad = _first_difference(data, published)
            if bad is not None:
                position = tile.first_entry + (bad << (HEIGHT * tile.level))
                reason = "the tile does not follow from the entries"
                raise AuditFailure(reason, position=position, file=published.path)
        for width in self._source.widths(tile.full_path):
            if width >= tile.width:
                continue
            older = Tile(tile.level, tile.index, width)
            limit = MAX_BUNDLE_BYTES if tile.level == ENTRIES else TILE_BYTES
            if self._source.read(older.path, limit) != _prefix(tile, data, width):
                raise AuditFailure(
                    "an older partial file does not follow from the entries",
                    position=tile.first_entry,
                    file=older.path,
                )


def _prefix(tile: Tile, data: bytes, width: int) -> bytes:
    if tile.level != ENTRIES:
        return data[: width * HASH_BYTES]
    end = 0
    for _ in range(width):
        end += 2 + int.from_bytes(data[end : end + 2])
    return data[:end]
