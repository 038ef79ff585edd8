"""The published files, re-hashed: every entry against its tile, every tile against the tree, the tree against the root.

Invariant: when the iteration ends without AuditFailure, the entries it gave (with those that the tree it began with
stands for) are exactly the leaves of the checkpoint's tree, the tree of the checkpoint the auditor had kept is a prefix
of it, and no file that was read has a wrong byte. At most `SLOTS` bundles are in memory.
"""

import mmap
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from ledger import merkle
from ledger.audit.helpers import Helpers
from ledger.audit.report import AuditFailure
from ledger.checkpoint import Checkpoint
from ledger.checks import CLAIMS_AT, SLOT_BYTES, Broken, Bundle, File, Load, Loaded, fetch, load, told_in
from ledger.claims import Told
from ledger.layout import Admitted
from ledger.merkle import Frontier
from ledger.served import Delivery
from ledger.tlog.reader import LogReader, NotPublished
from ledger.tlog.source import Source, SourceUnavailable
from ledger.tlog.tiles import (
    ENTRIES,
    HASH_BYTES,
    HEIGHT,
    MAX_BUNDLE_BYTES,
    TILE_BYTES,
    WIDTH,
    Tile,
    TileError,
)

SLOTS: Final = 3  # bundles in memory that helpers share
ALONE: Final = 6  # so few bundles are loaded in this process: helpers are not worth it


class Entries(NamedTuple):
    """The entries of one bundle."""

    start: int
    entries: list[memoryview]
    strange: int  # index of the first that is not the one encoding of a known event
    admitted: Admitted  # sessions and tickets among them
    deliveries: list[Delivery]  # others that are the one encoding of theirs
    claims: list[Told]  # by each of these


class Edge(msgspec.Struct, array_like=True):
    """The right edge of a tree of whole level 0 tiles: what must be known to go on."""

    size: int = 0
    peaks: list[tuple[int, bytes]] = []  # of ledger.merkle.Frontier
    levels: list[list[bytes]] = []  # [i]: the hashes of the last, partial tile of level i + 1


class Log:
    """Iterates over the entries of a published log, in order, from where `edge` ends."""

    def __init__(
        self,
        source: Source,
        checkpoint: Checkpoint,
        since: Checkpoint | None,
        helpers: Helpers,
        edge: Edge | None = None,
    ) -> None:
        self._source = source
        self._checkpoint = checkpoint
        self._since = since
        self._helpers = helpers
        edge = edge or Edge()
        self._began = self._size = edge.size
        self._levels = [list(level) for level in edge.levels]
        self._full = Frontier()  # of full level 0 tiles
        for level, hash_ in edge.peaks:
            self._full.append(hash_, level)
        self._last: list[bytes] = []  # leaves of the last, partial tile

    def edge(self) -> Edge:
        """Of the entries that were given so far, when these are whole bundles."""
        return Edge(self._size, self._full.peaks(), [list(level) for level in self._levels])

    def __iter__(self) -> Generator[Entries, None, None]:
        if self._since is not None and self._since.size <= self._began:
            self._continues(self._since)
        for n, memory, bundle in self._bundles(self._began // WIDTH, -(-self._checkpoint.size // WIDTH)):
            start, data = n * WIDTH, memoryview(memory)[: bundle.length]
            entries = [data[begin + 2 : end] for begin, end in pairwise([0, *bundle.ends])]
            self._add(data, bundle, len(entries))
            claims = told_in(np.frombuffer(memory, np.int64, offset=CLAIMS_AT), bundle.claims, bundle.named)
            yield Entries(start, entries, bundle.strange, bundle.admitted, bundle.deliveries, claims)
        self._finish()

    # --- bundles

    def _bundles(self, first: int, end: int) -> Iterator[tuple[int, mmap.mmap, Bundle]]:
        """In order. What no helper has begun when it is wanted is loaded here."""
        helped = end - first > ALONE
        with ExitStack() as stack:
            free = deque(_Slots(stack).take(SLOTS) if helped else [_Slot("", mmap.mmap(-1, SLOT_BYTES))])
            ahead: deque[_Ahead] = deque()
            following = first
            for n in range(first, end):
                while free and following < end:
                    slot = free.popleft()
                    task = Load(self._source.name, following, self._checkpoint.size, slot.path)
                    ahead.append(_Ahead(following, slot, self._helpers.load(task) if helped else Future()))
                    following += 1
                now = ahead[0]
                for one in ahead:  # the first that is not begun, while the one that is wanted is not there
                    if now.answer.done() or self._load_here(one):
                        break
                bundle = _answer(*now.answer.result())
                yield n, now.slot.memory, bundle
                free.append(ahead.popleft().slot)

    def _load_here(self, one: "_Ahead") -> bool:
        """When no helper has begun to."""
        if not one.answer.cancel():
            return False
        one.answer = Future()
        one.answer.set_result(load(self._source, one.index, self._checkpoint.size, one.slot.memory))
        return True

    # --- the tree

    def _add(self, data: memoryview, bundle: Bundle, width: int) -> None:
        """Add to the tree, and stop on the way where the checkpoint ends that was kept."""
        since, leaves = self._since, bundle.leaves
        if since is not None and self._size < since.size <= self._size + width:
            edge = self._full.copy()
            for i in range(since.size - self._size):
                edge.append(leaves[i * HASH_BYTES : (i + 1) * HASH_BYTES])
            if edge.root() != since.root:
                raise _rewritten(since)
        tile = self._size // WIDTH
        self._check_partials(Tile(ENTRIES, tile, width), lambda n: _prefix(data, n))
        self._check_partials(Tile(0, tile, width), lambda n: leaves[: n * HASH_BYTES])
        self._size += width
        if width == WIDTH:
            self._full.append(bundle.root, HEIGHT)
            self._append(0, bundle.root)
        else:
            self._last = [leaves[i : i + HASH_BYTES] for i in range(0, len(leaves), HASH_BYTES)]

    def _append(self, below: int, root: bytes) -> None:
        """Add the root of a full tile of level `below` to the tile above it."""
        if below == len(self._levels):
            self._levels.append([])
        hashes = self._levels[below]
        hashes.append(root)
        if len(hashes) == WIDTH:
            level = below + 1
            self._check_tile(Tile(level, (self._size >> (HEIGHT * (level + 1))) - 1), b"".join(hashes))
            root = merkle.root_of_hashes(hashes)
            hashes.clear()
            self._append(level, root)

    def _finish(self) -> None:
        for below, hashes in enumerate(self._levels):
            if hashes:
                level = below + 1
                self._check_tile(
                    Tile(level, self._size >> (HEIGHT * (level + 1)), len(hashes)), b"".join(hashes)
                )
        edge = self._full.copy()
        for leaf in self._last:
            edge.append(leaf)
        if edge.root() != self._checkpoint.root:
            raise AuditFailure("the root of all entries is not the one that was signed", file="checkpoint")

    def _check_tile(self, tile: Tile, data: bytes) -> None:
        """Hold a tile that follows from the entries against the published one, and its older partial ones."""
        published = fetch(self._source, tile)
        bad = _first_difference(data, published)
        if bad is not None:
            position = tile.first_entry + (bad << (HEIGHT * tile.level))
            reason = "the tile does not follow from the entries"
            raise AuditFailure(reason, position=position, file=published.path)
        self._check_partials(tile, lambda n: data[: n * HASH_BYTES])

    def _check_partials(self, tile: Tile, prefix: Callable[[int], bytes]) -> None:
        for width in self._source.widths(tile.full_path):
            if width >= tile.width:
                continue
            older = Tile(tile.level, tile.index, width)
            limit = MAX_BUNDLE_BYTES if tile.level == ENTRIES else TILE_BYTES
            if self._source.read(older.path, limit) != prefix(width):
                raise AuditFailure(
                    "an older partial file does not follow from the entries",
                    position=tile.first_entry,
                    file=older.path,
                )

    def _continues(self, since: Checkpoint) -> None:
        """A kept checkpoint from before the entries that are read now: proven from the published tiles."""
        now = self._checkpoint
        try:
            reader = LogReader(self._source, now.size)
            proof = merkle.consistency_proof(reader.subtree, since.size, now.size)
        except (NotPublished, TileError) as e:
            raise AuditFailure(f"the tiles do not prove what was kept: {e}", file="checkpoint") from e
        if not merkle.verify_consistency(since.size, now.size, proof, since.root, now.root):
            raise _rewritten(since)


def _rewritten(since: Checkpoint) -> AuditFailure:
    return AuditFailure(
        f"the log was rewritten: its first {since.size} entries are not those of the checkpoint that was kept",
        file="checkpoint",
    )


def _answer(bundle: Bundle | None, broken: Broken | None) -> Bundle:
    if bundle is not None:
        return bundle
    assert broken is not None
    if broken.unavailable:
        raise SourceUnavailable(broken.reason)
    raise AuditFailure(broken.reason, position=broken.position, file=broken.file)


class _Slot(NamedTuple):
    path: str
    memory: mmap.mmap


@dataclass(slots=True)
class _Ahead:
    """A bundle on its way."""

    index: int
    slot: _Slot
    answer: Future[Loaded]


class _Slots:
    """Memory that helpers write to and the replay reads from: files that are in memory, or never meant for the disk."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def take(self, count: int) -> Iterator[_Slot]:
        if sys.platform == "linux":
            yield from self._in_memory(count)
        else:
            yield from self._in_files(count)

    def _in_memory(self, count: int) -> Iterator[_Slot]:
        for n in range(count):
            file = os.memfd_create(f"streamrp2p-audit-{n}")
            self._stack.callback(os.close, file)
            os.truncate(file, SLOT_BYTES)
            yield _Slot(f"/proc/{os.getpid()}/fd/{file}", mmap.mmap(file, 0))

    def _in_files(self, count: int) -> Iterator[_Slot]:
        # Windows keeps a file that is still mapped: views of it may outlive this, in the traceback of a failure.
        temporary = tempfile.TemporaryDirectory(prefix="streamrp2p-audit-", ignore_cleanup_errors=True)
        folder = Path(self._stack.enter_context(temporary))
        for n in range(count):
            path = folder / str(n)
            with open(path, "w+b") as f:
                # A full disk is found here, and not in the mapping.
                allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
                if allocate is not None:
                    allocate(f.fileno(), 0, SLOT_BYTES)
                else:
                    f.write(bytes(SLOT_BYTES))
                    f.flush()
                memory = mmap.mmap(f.fileno(), 0)
            yield _Slot(str(path), memory)


def _first_difference(expected: bytes, published: File) -> int | None:
    """Index of the first hash of the tile that is not as expected."""
    for at in range(0, len(expected), HASH_BYTES):
        if published.data[at : at + HASH_BYTES] != expected[at : at + HASH_BYTES]:
            return at // HASH_BYTES
    longer = published.exact and len(published.data) != len(expected)
    return len(expected) // HASH_BYTES - 1 if longer else None


def _prefix(bundle: memoryview, width: int) -> bytes:
    """The file of a bundle's first entries."""
    end = 0
    for _ in range(width):
        end += 2 + int.from_bytes(bundle[end : end + 2])
    return bytes(bundle[:end])
