"""Publisher: turns the ledger into a folder of tiles, entry bundles and a signed checkpoint.

Invariants: a checkpoint is signed only for a tree that contains the tree of the last one in the folder; every file it
needs is durable before it is written; an interrupted publication, repeated, gives the files of an uninterrupted one.
Work is proportional to the new events. The first publication of a process takes the tree up from the published tiles
and holds the newest events of the ledger against it, so that it does not grow with the log; the events before them are
held against the tiles page by page, one page with each publication, until all are (`ledger.tlog.resume`).
"""

import fcntl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

import structlog

from ledger.aggregates.base import Aggregate
from ledger.aggregates.tree import Tree
from ledger.checkpoint import Checkpoint
from ledger.events import Event, KeyAdded, StateRecorded, Transfer
from ledger.ids import TREE_ID
from ledger.keys import KeyPair
from ledger.note import Note, NoteError, VerifierKey
from ledger.tlog.cosigners import Cosigners, ForkSeen
from ledger.tlog.files import make_folder, remove_tree, sweep_temporaries, write_atomic
from ledger.tlog.reader import LogReader, NotPublished
from ledger.tlog.resume import Memory, take_up
from ledger.tlog.source import FolderSource
from ledger.tlog.tiles import HEIGHT, WIDTH, Tile, TileBuilder, TileError

PAGE: Final = 1_000  # events read at once
TAIL: Final = 4_096  # events at the end of the ledger that a restart reads; of the others, so many each time
CHECKPOINT: Final = "checkpoint"
VKEY: Final = "vkey"
_LOCK: Final = ".lock"

log = structlog.get_logger()


class PublishRefused(Exception):
    """Signing would fork the log, or the folder is not this log's. Nothing was published. The message is for people."""

    exit_code = 5


class Entry(Protocol):
    """One event of the ledger with its exact bytes."""

    @property
    def position(self) -> int: ...
    @property
    def event(self) -> Event: ...
    @property
    def data(self) -> bytes: ...


class Entries(Protocol):
    """What the publisher needs of the ledger."""

    def read(self, start: int, limit: int) -> Sequence[Entry]: ...
    def size(self) -> int: ...
    def last_event(self, aggregate_id: UUID) -> Event | None: ...
    def save(self, *aggregates: Aggregate) -> list[int]: ...


class _Differs(Exception):
    """A published file is not what the ledger gives."""


@dataclass
class _Older:
    """The events before `end`, while they are held against the published tiles."""

    tiles: TileBuilder
    end: int
    root: bytes  # of the first `end` leaves, as published


@dataclass
class _Head:
    """What is known of the events taken so far."""

    tiles: TileBuilder
    tree: Tree
    balances: dict[str, int] = field(default_factory=dict)
    last_fact: int = -1  # position of the last event that is not a state leaf
    covered: int = 0  # events that the last state leaf covers
    known: int = 0  # `balances` had taken in the events before this position when the tree was taken up
    log_keys: list[bytes] = field(default_factory=list)

    def take(self, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, StateRecorded):
            self.covered = event.position
            return
        self.last_fact = entry.position
        if isinstance(event, KeyAdded) and event.purpose == "log":
            self.log_keys.append(event.public_key)
        if entry.position < self.known:
            return
        for transfer in transfers_of(event):
            for posting in transfer.postings:
                self.balances[posting.account] = self.balances.get(posting.account, 0) + posting.amount_micro


def transfers_of(event: Event) -> tuple[Transfer, ...]:
    """The movements of money that an event records."""
    single: Transfer | None = getattr(event, "transfer", None)
    if single is not None:
        return (single,)
    several: tuple[Transfer, ...] = getattr(event, "transfers", ())
    return several


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
    ) -> None:
        """`origin` names the log: its public URL without the scheme. Raises NoteError when it cannot be a key name."""
        self._cosigners = cosigners
        self._ledger = ledger
        self._folder = folder
        self._key = log_key
        self._origin = origin
        self._vkey = VerifierKey(origin, log_key.public_key)
        self._mutex = threading.Lock()
        self._head: _Head | None = None
        self._older: _Older | None = None  # events that were not yet held against the log since the restart
        self._published: bytes | None = None  # the checkpoint file as this process last saw it

    def publish(self, *, at_us: int) -> Checkpoint:
        """Append a state leaf if there is anything new, write the tiles, then sign.

        Raises PublishRefused when the ledger does not continue the published log, and what the ledger and the file
        system raise; whatever is raised, calling again is safe.
        """
        with self._mutex, self._exclusive():
            try:
                if self._head is None or self._read(CHECKPOINT) != self._published:
                    self._head = self._recover()
                elif self._older is not None and not self._hold_older(self._older):
                    self._head = self._replay()
                return self._advance(self._head, at_us)
            except BaseException:
                self._head = None  # tiles in memory may be ahead of the files
                raise

    def check(self) -> Checkpoint | None:
        """Hold the whole ledger against the published log, and mend files that were lost; None: nothing is published.

        Raises as `publish` does.
        """
        with self._mutex, self._exclusive():
            self._head = None
            head = self._replay()
            self._head = head
            return self._parse(self._published) if self._published is not None else None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        make_folder(self._folder)
        with open(self._folder / _LOCK, "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise PublishRefused(f"another process is publishing to {self._folder}") from e
            yield

    def _advance(self, head: _Head, at_us: int) -> Checkpoint:
        memory: Memory | None = None
        self._take(head, self._ledger.size())
        if head.last_fact >= head.covered:
            covered, balances = head.tiles.size, dict(head.balances)
            head.tree.record(position=covered, balances=balances, at_us=at_us)
            (position,) = self._ledger.save(head.tree)
            self._take(head, position + 1)
            memory = Memory(position, covered, balances)
        for tile, data in head.tiles.partials():
            self._put(tile.path, data)
        checkpoint = Checkpoint(self._origin, head.tiles.size, head.tiles.root())
        self._put(VKEY, f"{self._vkey}\n".encode())
        note = self._cosigned(checkpoint)
        self._put(CHECKPOINT, note)
        self._published = note
        if memory is not None and checkpoint.size > TAIL:
            memory.write(self._folder)
        return checkpoint

    def _cosigned(self, checkpoint: Checkpoint) -> bytes:
        """The signed note, with the cosignatures it has already and those that can be had now."""
        note = checkpoint.sign(self._key)
        published = self._read(CHECKPOINT)
        if published is not None and published.startswith(note):
            note = published
        if self._cosigners is None:
            return note
        reader = LogReader(FolderSource(self._folder), checkpoint.size)
        try:
            return self._cosigners.cosign(note, reader.subtree)
        except ForkSeen as e:
            raise PublishRefused(str(e)) from e

    def _take(self, head: _Head, end: int) -> None:
        """Fold and publish the full tiles of the events up to `end`."""
        while (start := head.tiles.size) < end:
            page = self._ledger.read(start, min(PAGE, end - start))
            if not page:
                raise PublishRefused(f"the ledger has no event at position {start}")
            for expected, entry in enumerate(page, start):
                if entry.position != expected:
                    raise PublishRefused(
                        f"the ledger has no event at position {expected}, but one at {entry.position}"
                    )
                head.take(entry)
            head.tiles.extend([entry.data for entry in page])

    def _recover(self) -> _Head:
        """What is known of the events that were published: taken up from the files, else from all of the ledger."""
        sweep_temporaries(self._folder)
        return self._take_up() or self._replay()

    def _take_up(self) -> _Head | None:
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
        head = _Head(
            tiles, Tree.after(newest), dict(memory.balances), memory.covered - 1, known=memory.covered
        )
        older = _Older(self._tile_checker(), start, tiles.root())
        self._take(head, last.size)
        for tile, data in head.tiles.partials():
            self._compare(tile, data, damaged)
        if damaged or head.tiles.root() != last.root:
            return None
        try:
            Checkpoint.open(note, self._vkey)
        except NoteError:
            return None  # signed by a key before this one: it stands somewhere in the log
        head.tiles.sink = self._write_full
        self._drop_unsigned(last.size)
        self._published, self._older = note, older
        return head

    def _remembers(self, memory: Memory) -> bool:
        leaf = self._ledger.read(memory.leaf, 1)
        return bool(leaf) and memory.fits(leaf[0].event)

    def _tile_checker(self) -> TileBuilder:
        """A tree from the first event on that is only compared with the files. Raises _Differs."""

        def compare(tile: Tile, data: bytes) -> None:
            if self._read(tile.path) != data:
                raise _Differs(tile.path)

        return TileBuilder(compare)

    def _hold_older(self, older: "_Older") -> bool:
        """Hold one more page of old events against the published tiles. False when they are not the same."""
        tiles = older.tiles
        end = min(tiles.size + TAIL, older.end)
        try:
            for start in range(tiles.size, end, PAGE):
                page = self._ledger.read(start, min(PAGE, end - start))
                tiles.extend([entry.data for entry in page])
            if tiles.size < older.end:
                return True
            same = tiles.root() == older.root
        except _Differs as e:
            log.warning("log.differs", file=str(e))
            same = False
        self._older = None
        return same

    def _replay(self) -> _Head:
        """Hold the ledger against the published log, event by event, and mend files that were lost."""
        self._older = None
        note = self._read(CHECKPOINT)
        newest = self._ledger.last_event(TREE_ID)
        tree = Tree.after(newest) if isinstance(newest, StateRecorded) else Tree(TREE_ID)
        head = _Head(TileBuilder(self._write_full), tree)
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
                    f"have another root than the last checkpoint"
                )
            self._must_be_ours(note, head.log_keys)
            for tile, data in head.tiles.partials():
                self._compare(tile, data, damaged)
            if damaged:
                log.warning("log.mending", files=len(damaged), first=damaged[0])
                head = _Head(TileBuilder(self._write_full), tree)
                self._take(head, last.size)
            head.tiles.sink = self._write_full
            self._drop_unsigned(last.size)
        self._published = note
        return head

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
        """A full tile takes the place of its partial ones (c2sp.org/tlog-tiles, partial tiles)."""
        self._put(tile.path, data)
        partial = self._folder / f"{tile.full_path}.p"
        if partial.exists():
            remove_tree(partial)

    def _put(self, path: str, data: bytes) -> None:
        if self._read(path) != data:
            write_atomic(self._folder / path, data)
