"""What needs no order: files against their hashes, entries against their one encoding, signatures. Done here, or in a
helper process (`python -m ledger.checks`) for each core. Not in `ledger.audit`: a helper needs nothing of the replay.

Invariant: an answer is about exactly the bytes that the replay reads: they are read once, into memory that both see.
"""

import mmap
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import accumulate
from typing import IO, Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from ledger import merkle, served
from ledger.batch import receipts_digest
from ledger.claims import Claims, Ints, Told, Writer, room_bytes
from ledger.event_codec import MAX_EVENT_BYTES, decode_stored, encode
from ledger.keys import PUBLIC_KEY_BYTES, verify
from ledger.layout import Admitted, admitted
from ledger.receipt import BODY_BYTES, DOMAIN, SIGNED_BYTES
from ledger.served import Delivery, Said
from ledger.tlog.source import Source, SourceUnavailable, open_source
from ledger.tlog.tiles import (
    ENTRIES,
    HASH_BYTES,
    MAX_BUNDLE_BYTES,
    TILE_BYTES,
    WIDTH,
    Tile,
    TileError,
    decode_tile,
    entry_views,
    tile_of,
)

T = TypeVar("T")
LENGTH_BYTES: Final = 4
TOGETHER: Final = 8_192  # receipts in a part of a bundle's claims, and those of one event more
# Memory that is shared: a bundle's file, with room for what is too much, then its claims.
CLAIMS_AT: Final = MAX_BUNDLE_BYTES + 8
SLOT_BYTES: Final = CLAIMS_AT + room_bytes(WIDTH * (MAX_EVENT_BYTES // SIGNED_BYTES))


class AuditFailure(Exception):
    """The log does not hold. `position` is the first event concerned, `file` the published file, where known."""

    def __init__(
        self,
        reason: str,
        *,
        position: int | None = None,
        file: str | None = None,
        before_rules: bool = False,  # found behind the replay, but comes before what the rules say of the event
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position
        self.file = file
        self.before_rules = before_rules

    def comes_before(self, other: "AuditFailure") -> bool:
        """Whether this, found behind the replay, is to be told in place of what stopped the replay."""
        at, of = other.position, self.position or 0
        return at is None or of < at or (of == at and self.before_rules)


# --- bundles


class File(NamedTuple):
    path: str
    data: bytes
    exact: bool  # not a full tile read in place of a partial one that was removed


class Bundle(msgspec.Struct, array_like=True, frozen=True):
    """A bundle of entries that are the leaves of the published tile."""

    length: int  # of the file
    ends: list[int]  # where in the file the entries end; each begins with two bytes of length
    leaves: bytes  # 32 bytes each
    root: bytes  # of these leaves
    strange: int  # index of the first entry that is not the one encoding of a known event
    admitted: Admitted  # sessions and tickets, which are
    deliveries: list[Delivery]  # those among the entries that are as usual
    claims: list[int]  # how many receipts ledger.claims has of each of these
    named: int  # and how many names


class Broken(msgspec.Struct, array_like=True, frozen=True):
    """An AuditFailure on its way between processes; `unavailable`: a SourceUnavailable."""

    reason: str
    position: int | None
    file: str | None
    unavailable: bool


Loaded = tuple[Bundle | None, Broken | None]


def fetch(source: Source, tile: Tile) -> File:
    """A tile's file; the full one when the partial one was removed. Raises AuditFailure when there is neither."""
    path, data = _published(tile, lambda path: source.read(path, TILE_BYTES))
    return File(path, data, path == tile.path)


def _published(tile: Tile, read: Callable[[str], T | None]) -> tuple[str, T]:
    for path in dict.fromkeys((tile.path, tile.full_path)):
        found = read(path)
        if found is not None:
            return path, found
    raise AuditFailure("the file is missing", position=tile.first_entry, file=tile.path)


def load_bundle(source: Source, index: int, size: int, memory: mmap.mmap) -> Bundle:
    """The bundle's file, held against the tile over it, and its claims, in memory of SLOT_BYTES. Raises AuditFailure,
    SourceUnavailable."""
    start = index * WIDTH
    width = min(WIDTH, size - start)
    view, bundle = memoryview(memory), tile_of(ENTRIES, index, size)
    path, length = _published(bundle, lambda path: source.read_into(path, view[:CLAIMS_AT]))
    tile = fetch(source, tile_of(0, index, size))
    try:
        hashes = decode_tile(tile.data, width)
        if tile.exact and len(tile.data) != width * HASH_BYTES:
            raise TileError("the tile holds more than it should")
    except TileError as e:
        raise AuditFailure(str(e), position=start, file=tile.path) from e
    try:
        entries = entry_views(view[:length], width)
        ends = list(accumulate([2 + len(entry) for entry in entries]))
        if path == bundle.path and length != ends[-1]:
            raise TileError("the bundle holds more than it should")
    except TileError as e:
        raise AuditFailure(str(e), position=start, file=path) from e
    leaves = merkle.leaf_hashes(entries)
    if leaves != hashes:
        bad = next(i for i in range(width) if leaves[i] != hashes[i])
        raise AuditFailure(
            f"the entry does not hash to what {tile.path} says", position=start + bad, file=path
        )
    read = read_entries(entries, np.frombuffer(memory, np.int64, offset=CLAIMS_AT))
    return Bundle(
        length,
        ends,
        b"".join(leaves),
        merkle.root_of_hashes(leaves),
        read.strange,
        read.admitted,
        read.deliveries,
        read.claims,
        read.named,
    )


class Read(NamedTuple):
    """What entries say by themselves, as in Bundle."""

    strange: int
    admitted: Admitted
    deliveries: list[Delivery]
    claims: list[int]
    named: int


def read_entries(entries: Sequence[memoryview], room: Ints) -> Read:
    """Their claims stand in `room` (ledger.claims)."""
    known = admitted(entries)
    named = {*known.sessions, *known.tickets}
    strange, waiting = len(entries), 0
    said: list[Said] = []
    deliveries: list[Delivery] = []
    counts: list[int] = []
    writer = Writer(room)

    def write() -> None:
        served.sort_out(deliveries[len(counts) :], said)
        counts.extend(writer.add(said))

    for i, entry in enumerate(entries):
        if i in named:
            continue
        delivery = served.read(i, entry)
        if delivery is not None:
            deliveries.append(delivery[0])
            said.append(delivery[1])
            waiting += len(delivery[1].verdicts)
            if waiting >= TOGETHER:  # more would only take memory
                write()
                said, waiting = [], 0
            continue
        try:
            if encode(decode_stored(entry)) != bytes(entry):  # a view would be compared number by number
                strange = min(strange, i)
        except (ValueError, TypeError):  # the replay will say what is wrong with it, in its turn
            strange = min(strange, i)
    write()
    return Read(strange, known, deliveries, counts, writer.named)


def told_in(room: Ints, counts: list[int], named: int) -> list[Told]:
    """The claims of each delivery, as `read_entries` left them in `room`."""
    claims = Claims(room, named)
    return [Told(claims, end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]


# --- signatures


class Signed(msgspec.Struct, array_like=True, frozen=True, tag=True):
    public_key: bytes
    domain: bytes
    body: bytes
    signature: bytes


class Receipts(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Signed receipts of one event, one after the other."""

    keys: bytes  # of the viewers
    receipts: bytes
    refused: bytes  # u8 for each: 1 where the log says that the signature is bad

    def first_failure(self) -> int:
        keys, receipts = self.keys, self.receipts
        for i, refused in enumerate(self.refused):
            at = i * SIGNED_BYTES
            body, end = receipts[at : at + BODY_BYTES], at + SIGNED_BYTES
            key = keys[i * PUBLIC_KEY_BYTES : (i + 1) * PUBLIC_KEY_BYTES]
            if verify(key, DOMAIN, body, receipts[at + BODY_BYTES : end]) is bool(refused):
                return i
        return -1


class Contents(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The receipts of a whole batch, and what its node signed of them (ledger.batch)."""

    version: int
    digest: bytes
    receipts: bytes

    def holds(self) -> bool:
        return receipts_digest(self.version, self.receipts) == self.digest


Check = Signed | Receipts | Contents


def first_failure(checks: list[Check]) -> tuple[int, int]:
    """(index of the first check that does not hold, which of its receipts), or (-1, 0)."""
    for i, check in enumerate(checks):
        if isinstance(check, Receipts):
            bad = check.first_failure()
            if bad >= 0:
                return i, bad
        elif isinstance(check, Contents):
            if not check.holds():
                return i, 0
        elif not verify(check.public_key, check.domain, check.body, check.signature):
            return i, 0
    return -1, 0


# --- between processes


class Load(msgspec.Struct, array_like=True, frozen=True, tag=True):
    place: str
    index: int
    size: int
    slot: str  # the file that is shared memory


class Verify(msgspec.Struct, array_like=True, frozen=True, tag=True):
    checks: list[Check]


encoder: Final = msgspec.msgpack.Encoder(uuid_format="bytes")
_tasks: Final = msgspec.msgpack.Decoder(Load | Verify)


@lru_cache(8)
def _slot(path: str) -> mmap.mmap:
    with open(path, "r+b") as f:
        return mmap.mmap(f.fileno(), 0)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Say that this process is there, with an empty answer; then answer until the other side closes."""
    answers.write(bytes(LENGTH_BYTES))
    answers.flush()
    with ExitStack() as stack:

        @lru_cache(1)
        def source(place: str) -> Source:
            return stack.enter_context(open_source(place))

        for data in _messages(requests):
            task = _tasks.decode(data)
            reply = encoder.encode(
                first_failure(task.checks)
                if isinstance(task, Verify)
                else load(source(task.place), task.index, task.size, _slot(task.slot))
            )
            answers.write(len(reply).to_bytes(LENGTH_BYTES) + reply)
            answers.flush()


def load(source: Source, index: int, size: int, memory: mmap.mmap) -> Loaded:
    """As `load_bundle`; what it raises is an answer, too."""
    try:
        return load_bundle(source, index, size, memory), None
    except AuditFailure as e:
        return None, Broken(e.reason, e.position, e.file, unavailable=False)
    except SourceUnavailable as e:
        return None, Broken(str(e), None, None, unavailable=True)


def _messages(stream: IO[bytes]) -> Iterator[bytes]:
    while len(head := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
        yield stream.read(int.from_bytes(head))


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the terminal's interrupt is for the audit, which closes this
    serve(sys.stdin.buffer, sys.stdout.buffer)
