"""Publisher: turns the ledger into a folder of tiles, entry bundles and a signed checkpoint.

Invariants: a checkpoint is signed only for a tree that contains the tree of the last one in the folder; every file it
needs is durable before it is written; an interrupted publication, repeated, gives the files of an uninterrupted one.
Work is proportional to the new events. The first publication of a process takes the tree up from the published tiles
and holds the newest events of the ledger against it, so that it does not grow with the log; the events before them are
held against the tiles page by page by `look_back`, until all are (`ledger.tlog.resume`). Once they differed, nothing is
signed before all of the ledger was held against the log.
"""

import fcntl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Final, Protocol
from uuid import UUID

import structlog

from ledger import merkle
from ledger.aggregates.base import Aggregate
from ledger.aggregates.tree import Tree
from ledger.checkpoint import Checkpoint
from ledger.event_codec import decode
from ledger.events import Event, StateRecorded
from ledger.ids import TREE_ID
from ledger.keys import KeyPair
from ledger.note import Note, NoteError, VerifierKey
from ledger.tlog.cosigners import Cosigners, ForkSeen
from ledger.tlog.files import make_folder, remove_tree, write_all
from ledger.tlog.head import Head, Row
from ledger.tlog.reader import LogReader, NotPublished
from ledger.tlog.resume import Memory, take_up
from ledger.tlog.source import FolderSource
from ledger.tlog.tiles import HEIGHT, WIDTH, Tile, TileBuilder, TileError

PAGE: Final = 1_000  # events read at once
TAIL: Final = (
    4_096  # events at the end of the ledger that a restart reads; of the others, a look back so many
)
CHECKPOINT: Final = "checkpoint"
VKEY: Final = "vkey"
LOCK_PATIENCE_S: Final = 5.0  # how long to wait for another process that publishes
_LOCK: Final = ".lock"
_STAGING: Final = ".new"
_LOCK_PAUSE_S: Final = 0.05

log = structlog.get_logger()


class PublishRefused(Exception):
    """Signing would fork the log, or the folder is not this log's. Nothing was published. The message is for people."""

    exit_code = 5


class FolderInUse(Exception):
    """Another process writes to the folder. Try again later."""

    exit_code = 10


class Entries(Protocol):
    """What the publisher needs of the ledger. Rows have no gap between them."""

    def read_rows(self, start: int, limit: int) -> Sequence[Row]: ...
    def size(self) -> int: ...
    def last_event(self, aggregate_id: UUID) -> Event | None: ...
    def save(self, *aggregates: Aggregate) -> list[int]: ...


class _Differs(Exception):
    """A published file is not what the ledger gives."""


@dataclass
class _Older:
    """The events before `end`, while they are held against the published tiles."""

    tiles: TileBuilder  # raises _Differs
    end: int
    root: bytes  # of the first `end` leaves, as published

    def hold(self, ledger: Entries) -> None:
        """Hold the next events, at most TAIL, against the published tiles. Raises _Differs."""
        end = min(self.tiles.size + TAIL, self.end)
        while (start := self.tiles.size) < end:
            page = ledger.read_rows(start, min(PAGE, end - start))
            if not page:
                raise _Differs(f"the ledger has no event at position {start}")
            self.tiles.extend([row.state for row in page])
        if self.done and self.tiles.root() != self.root:
            raise _Differs(f"the root of the first {self.end} events")

    @property
    def done(self) -> bool:
        return self.tiles.size == self.end


class Publisher:
    """One per process; processes exclude each other by a lock on the folder. Methods may be called from any thread."""

    def __init__(
        self,
        ledger: Entries,
        folder: Path,
        log_key: KeyPair,
        origin: str,
        *,
        cosigners: Cosigners | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`origin` names the log: its public URL without the scheme. Raises NoteError when it cannot be a key name.

        `alive` is called with each page of events and each witness: what does not come back to it hangs.
        """
        self._cosigners = cosigners
        self._alive = alive
        self._ledger = ledger
        self._folder = folder
        self._key = log_key
        # Signed before `log_key` and is not retired: both sign, for those who read the one verifier key or the other.
        self.former_key: KeyPair | None = None
        self._origin = origin
        self._vkey = VerifierKey(origin, log_key.public_key)
        self._mutex = threading.Lock()
        self._head: Head | None = None
        self._older: _Older | None = None  # events that were not yet held against the log since the restart
        self._differed = False  # older events did, and not all of the ledger was held against the log since
        self._published: bytes | None = None  # the checkpoint file as this process last saw it
        self._unwritten: dict[Tile, bytes] = {}

    def publish(self, *, at_us: int) -> Checkpoint:
        """Append a state leaf if there is anything new, write the tiles, then sign.

        Raises PublishRefused when the ledger does not continue the published log, FolderInUse, and what the ledger and
        the file system raise; whatever is raised, calling again is safe.
        """
        with self._mutex, self._exclusive():
            try:
                if self._head is None or self._read(CHECKPOINT) != self._published:
                    self._head = self._recover()
                return self._advance(self._head, at_us)
            except BaseException:
                self._head = None  # tiles in memory may be ahead of the files
                raise

    def look_back(self) -> bool:
        """Hold the next older events against the published log; False: none are left since the restart.

        To be called between publications, so that none waits for it. When they differ, the next publication holds all
        of the ledger against the log: it mends files that were lost, or refuses. Raises what the ledger and the file
        system raise; calling again is safe.
        """
        with self._mutex:
            older, self._older = self._older, None
            if older is None:
                return False
            try:
                same = self._same(older)
            except BaseException:
                self._head = None  # what is held so far is lost: the next publication begins anew
                raise
            if not same:
                self._head, self._differed = None, True
            elif not older.done:
                self._older = older
            return self._older is not None

    def check(self) -> Checkpoint | None:
        """Hold the whole ledger against the published log, and mend files that were lost; None: nothing is published.

        The folder is locked for the end of it only, unless there is something to mend: others go on publishing.
        Raises as `publish` does.
        """
        note = self._read(CHECKPOINT)
        if note is None:
            return None
        last = self._parse(note)
        older = _Older(self._tile_checker(), last.size, last.root)
        same = True
        while same and not older.done:
            same = self._same(older)
        with self._mutex, self._exclusive():
            self._head = None
            head = self._recover() if same else self._replay()
            self._older = None
            self._head = head
            return self._parse(self._published) if self._published is not None else None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        make_folder(self._folder)
        deadline = monotonic() + LOCK_PATIENCE_S
        with open(self._folder / _LOCK, "wb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as e:
                    if monotonic() >= deadline:
                        raise FolderInUse(f"another process is publishing to {self._folder}") from e
                sleep(_LOCK_PAUSE_S)
            self._unwritten.clear()
            yield

    def _advance(self, head: Head, at_us: int) -> Checkpoint:
        memory: Memory | None = None
        self._take(head, self._ledger.size())
        if head.last_fact >= head.covered:
            covered, balances = head.tiles.size, dict(head.balances)
            head.tree.record(position=covered, balances=balances, at_us=at_us)
            (position,) = self._ledger.save(head.tree)
            self._take(head, position + 1)
            memory = Memory(position, covered, balances)
        self._unwritten.update(head.tiles.partials())
        self._write_tiles()
        checkpoint = Checkpoint(self._origin, head.tiles.size, head.tiles.root())
        note = self._cosigned(checkpoint)
        # Whoever reads the verifier key and then a checkpoint finds one that it signed, in between two files too.
        files = ((CHECKPOINT, note), (VKEY, f"{self._vkey}\n".encode()))
        for path, data in files if self.former_key is not None else reversed(files):
            self._put(path, data)
        self._published = note
        if memory is not None and checkpoint.size > TAIL:
            memory.write(self._folder)
        return checkpoint

    def _cosigned(self, checkpoint: Checkpoint) -> bytes:
        """The signed note, with the cosignatures it has already and those that can be had now."""
        note = checkpoint.sign(*self._keys())
        published = self._read(CHECKPOINT)
        if published is not None and published.startswith(note):
            note = published
        if self._cosigners is None:
            return note
        reader = LogReader(FolderSource(self._folder), checkpoint.size)
        try:
            return self._cosigners.cosign(note, reader.subtree, alive=self._alive)
        except ForkSeen as e:
            raise PublishRefused(str(e)) from e

    def _keys(self) -> list[KeyPair]:
        return [self._key] if self.former_key is None else [self._key, self.former_key]

    def _take(self, head: Head, end: int) -> None:
        """Fold and publish the full tiles of the events up to `end`."""
        while (start := head.tiles.size) < end:
            self._alive()
            page = self._ledger.read_rows(start, min(PAGE, end - start))
            if not page:
                raise PublishRefused(f"the ledger has no event at position {start}")
            for row in page:
                head.take(row)
            head.tiles.extend([row.state for row in page])
            self._write_tiles()

    def _recover(self) -> Head:
        """What is known of the events that were published: taken up from the files, else from all of the ledger."""
        if (self._folder / _STAGING).exists():  # half written by a process that died
            remove_tree(self._folder / _STAGING)
        return (None if self._differed else self._take_up()) or self._replay()

    def _take_up(self) -> Head | None:
        """From the published tiles and the end of the ledger; None when they do not fit, or are few."""
        note, memory = self._read(CHECKPOINT), Memory.read(self._folder)
        if note is None or memory is None:
            return None
        last = self._parse(note)
        if last.size <= TAIL or self._ledger.size() < last.size or not memory.leaf < last.size:
            return None
        newest = self._ledger.last_event(TREE_ID)
        if not isinstance(newest, StateRecorded) or not self._remembers(memory):
            return None
        damaged: list[str] = []
        start = min(memory.covered, last.size - TAIL) // WIDTH * WIDTH
        try:
            reader = LogReader(FolderSource(self._folder), last.size)
            tiles = take_up(reader, start, lambda tile, data: self._compare(tile, data, damaged))
        except (NotPublished, TileError) as e:
            log.warning("log.tiles_unreadable", error=str(e))
            return None
        head = Head(
            tiles, Tree.after(newest), dict(memory.balances), memory.covered - 1, known=memory.covered
        )
        older = _Older(self._tile_checker(), start, tiles.root())
        self._take(head, last.size)
        for tile, data in head.tiles.partials():
            self._compare(tile, data, damaged)
        if damaged or head.tiles.root() != last.root:
            return None
        try:
            Checkpoint.open(note, *(VerifierKey(self._origin, key.public_key) for key in self._keys()))
        except NoteError:
            return None  # signed by a key before this one: it stands somewhere in the log
        head.tiles.sink = self._write_full
        self._drop_unsigned(last.size)
        self._published, self._older = note, older
        return head

    def _remembers(self, memory: Memory) -> bool:
        leaf = self._ledger.read_rows(memory.leaf, 1)
        return bool(leaf) and memory.fits(decode(leaf[0].state, leaf[0].topic))

    def _tile_checker(self) -> TileBuilder:
        """A tree from the first event on that is only compared with the files. Raises _Differs."""

        def compare(tile: Tile, data: bytes) -> None:
            if self._read(tile.path) != data:
                raise _Differs(tile.path)

        return TileBuilder(compare)

    def _same(self, older: _Older) -> bool:
        self._alive()
        try:
            older.hold(self._ledger)
        except _Differs as e:
            log.warning("log.differs", what=str(e))
            return False
        return True

    def _replay(self) -> Head:
        """Hold the ledger against the published log, event by event, and mend files that were lost."""
        self._older = None
        note = self._read(CHECKPOINT)
        newest = self._ledger.last_event(TREE_ID)
        tree = Tree.after(newest) if isinstance(newest, StateRecorded) else Tree(TREE_ID)
        head = Head(TileBuilder(self._write_full), tree)
        if note is not None:
            last = self._parse(note)
            size = self._ledger.size()
            if size < last.size:
                raise PublishRefused(
                    f"the database is older than the published log: it holds {size} events, the last "
                    f"checkpoint {last.size}; restore a newer backup"
                )
            damaged: list[str] = []
            head.tiles.sink = lambda tile, data: self._compare(tile, data, damaged)
            self._take(head, last.size)
            if head.tiles.root() != last.root:
                raise PublishRefused(
                    f"the database is not the one the log was published from: its first {last.size} events "
                    f"have another root than the last checkpoint{self._where(last.size)}"
                )
            self._must_be_ours(note, head.log_keys)
            for tile, data in head.tiles.partials():
                self._compare(tile, data, damaged)
            if damaged:
                log.warning("log.mending", files=len(damaged), first=damaged[0])
                head = Head(TileBuilder(self._write_full), tree)
                self._take(head, last.size)
            head.tiles.sink = self._write_full
            self._drop_unsigned(last.size)
        self._published, self._differed = note, False
        return head

    def _where(self, size: int) -> str:
        """The first event whose leaf is not the one in the published tiles, for people; empty when they cannot tell."""
        reader = LogReader(FolderSource(self._folder), size)
        try:
            for start in range(0, size, PAGE):
                self._alive()
                for row in self._ledger.read_rows(start, min(PAGE, size - start)):
                    tile, n = divmod(row.position, WIDTH)
                    if merkle.leaf_hash(row.state) != reader.hashes(0, tile)[n]:
                        return f"; the first that differs is at position {row.position}"
        except (NotPublished, TileError) as e:
            log.warning("log.tiles_unreadable", error=str(e))
        return ""

    def _parse(self, note: bytes) -> Checkpoint:
        try:
            last = Checkpoint.parse_text(Note.parse(note).text)
        except NoteError as e:
            raise PublishRefused(f"the published checkpoint is damaged: {e}") from e
        if last.origin != self._origin:
            raise PublishRefused(f"the folder holds the log {last.origin!r}, not {self._origin!r}")
        return last

    def _must_be_ours(self, note: bytes, log_keys: list[bytes]) -> None:
        """The last checkpoint is signed by this key, or by one the log itself named before."""
        keys = (self._vkey, *(VerifierKey(self._origin, k) for k in log_keys))
        try:
            Checkpoint.open(note, *keys)
        except NoteError as e:
            raise PublishRefused(f"the published checkpoint is not signed by this log: {e}") from e

    def _read(self, path: str) -> bytes | None:
        try:
            return (self._folder / path).read_bytes()
        except FileNotFoundError:
            return None

    def _compare(self, tile: Tile, data: bytes, damaged: list[str]) -> None:
        superseded = tile.width == WIDTH and (self._folder / f"{tile.full_path}.p").exists()
        if superseded or self._read(tile.path) != data:
            damaged.append(tile.path)

    def _drop_unsigned(self, size: int) -> None:
        """Remove partial tiles wider than the last checkpoint: an interrupted publication left them."""
        level = -1
        while (nodes := size >> (HEIGHT * max(level, 0))) or level < 1:
            edge = self._folder / f"{Tile(level, nodes // WIDTH).full_path}.p"
            for file in edge.iterdir() if edge.is_dir() else ():
                if int(file.name) > nodes % WIDTH:
                    file.unlink()
            level += 1

    def _write_full(self, tile: Tile, data: bytes) -> None:
        self._unwritten[tile] = data

    def _write_tiles(self) -> None:
        """Durably. A full tile takes the place of its partial ones (c2sp.org/tlog-tiles, partial tiles)."""
        changed = {
            self._folder / tile.path: data
            for tile, data in self._unwritten.items()
            if self._read(tile.path) != data
        }
        write_all(changed, self._folder / _STAGING)
        for tile in self._unwritten:
            partial = self._folder / f"{tile.full_path}.p"
            if tile.width == WIDTH and partial.exists():
                remove_tree(partial)
        self._unwritten.clear()

    def _put(self, path: str, data: bytes) -> None:
        if self._read(path) != data:
            write_all({self._folder / path: data}, self._folder / _STAGING)
