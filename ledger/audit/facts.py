"""What the log says of broadcasts, sessions and tickets, for ever: on disk, the latest of it in memory.

Invariant: what was put is found again under its key, whatever came in between; memory does not grow with their number,
nor with the length of a broadcast.
"""

import struct
from bisect import bisect_right
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

from ledger.audit.crew import RACE_US
from ledger.audit.store import Store, Table
from ledger.judge import Manifest, SessionFacts
from ledger.ticket import BODY_BYTES, MAX_SEGMENTS, SIGNED_BYTES, VERSION, SignedTicket, WireError

Ints = npt.NDArray[np.int64]
TAIL: Final = 4_096  # values of a column in memory, at most
PART: Final = 512  # values of a column in one row
SMALL: Final = 16_384  # values of a table in memory; some hundred bytes each
ADMITTED: Final = (
    2  # times as many sessions, and tickets: each costs what fifty receipts do, once it is on disk
)
BROADCASTS: Final = 64  # in memory; up to 100 kB each

T = TypeVar("T")
_encoder: Final = msgspec.msgpack.Encoder()
_TICKET: Final = struct.Struct(">BB8s16s16s16s16s32s32sQQQIQ16s")  # ledger.ticket
assert _TICKET.size == BODY_BYTES


def struct_table(store: Store, name: bytes, kind: type[T], bound: int = SMALL) -> Table[T]:
    return store.table(name, _encoder.encode, msgspec.msgpack.Decoder(kind).decode, bound)


class Column:
    """Integers below 2^63 that are added at the end and looked up by place. All but the end is on disk."""

    __slots__ = ("_key", "_parts", "_tail", "_used", "start")

    def __init__(self, parts: Table[bytes], key: bytes, start: int = 0, tail: bytes = b"") -> None:
        self._parts, self._key = parts, key
        self.start = start  # place of the first value in memory
        self._used = len(tail) // 8
        self._tail: Ints = np.zeros(max(256, 2 * self._used), np.int64)
        self._tail[: self._used] = np.frombuffer(tail, "<i8")

    def __len__(self) -> int:
        return self.start + self._used

    def __getitem__(self, place: int) -> int:
        if place < 0:
            place += len(self)
        if place >= self.start:
            return int(self.tail[place - self.start])
        part = self._parts.get(self._key + (place // PART).to_bytes(8))
        assert part is not None
        return int.from_bytes(part[place % PART * 8 :][:8], "little", signed=True)

    def append(self, value: int) -> None:
        if self._used == TAIL:
            half = TAIL // 2
            for at in range(0, half, PART):
                key = self._key + ((self.start + at) // PART).to_bytes(8)
                self._parts.put(key, self._tail[at : at + PART].astype("<i8").tobytes())
            self._tail[:half] = self._tail[half:TAIL]
            self.start, self._used = self.start + half, half
        elif self._used == len(self._tail):
            self._tail = np.concatenate([self._tail, np.zeros_like(self._tail)])
        self._tail[self._used] = value
        self._used += 1

    @property
    def tail(self) -> Ints:
        """The values from `start` on."""
        return self._tail[: self._used]

    def saved(self) -> tuple[int, bytes]:
        return self.start, self.tail.astype("<i8").tobytes()


class _SpilledManifest(Manifest):
    """A manifest whose sums are a column."""

    __slots__ = ()

    def __init__(self, first: int, sums: Column) -> None:
        super().__init__(first)
        self._sums = sums  # type: ignore[assignment]
        self.next = first + len(sums) - 1


class _SavedBroadcast(msgspec.Struct, array_like=True):
    stream_id: bytes
    rendition_id: bytes
    first: int
    sums: tuple[int, bytes]
    marks_us: tuple[int, bytes]
    marks_next: tuple[int, bytes]


class Broadcast:
    """One broadcast: its segments' sizes as sums, and when how many of them were published."""

    __slots__ = ("key", "manifest", "marks_next", "marks_us", "rendition_id", "stream_id", "sums")

    def __init__(self, parts: Table[bytes], key: bytes, saved: _SavedBroadcast) -> None:
        self.key = key  # the broadcast's id
        self.stream_id, self.rendition_id = UUID(bytes=saved.stream_id), UUID(bytes=saved.rendition_id)
        self.sums = Column(parts, b"s" + key, *saved.sums)
        self.marks_us = Column(parts, b"u" + key, *saved.marks_us)
        self.marks_next = Column(parts, b"n" + key, *saved.marks_next)
        self.manifest: Manifest = _SpilledManifest(saved.first, self.sums)

    def saved(self) -> _SavedBroadcast:
        return _SavedBroadcast(
            self.stream_id.bytes,
            self.rendition_id.bytes,
            self.manifest.first,
            self.sums.saved(),
            self.marks_us.saved(),
            self.marks_next.saved(),
        )

    def mark(self, at_us: int) -> None:
        """The segments so far were published by then."""
        self.marks_us.append(at_us)
        self.marks_next.append(self.manifest.next - self.manifest.first)

    def now(self) -> "Published":
        return Published(len(self.sums) - 1, len(self.marks_us))

    def manifest_at(self, then: "Published") -> Manifest:
        return self.manifest.before(self.manifest.first + then.segments)

    def manifests(self, at_us: int, then: "Published") -> Iterator[Manifest]:
        """The manifest as it was then, and the shortest that the hub may still have seen at `at_us`."""
        yield self.manifest_at(then)
        i = bisect_right(self.marks_us, at_us - RACE_US, hi=then.marks)
        segments = self.marks_next[i - 1] if i else 0
        if segments < then.segments:
            yield self.manifest.before(self.manifest.first + segments)


class Published(NamedTuple):
    """How much of a broadcast was published at some position: it only grows."""

    segments: int
    marks: int


class Session(msgspec.Struct, array_like=True, frozen=True, gc=False):
    stream_id: bytes
    viewer_class: int
    viewer_key: bytes
    network: bytes
    account_id: bytes  # empty when unknown
    position: int

    @property
    def facts(self) -> SessionFacts:
        return SessionFacts(self.network, UUID(bytes=self.account_id) if self.account_id else None)


class Ticket(msgspec.Struct, array_like=True, frozen=True, gc=False):
    body: bytes  # of ledger.ticket.Ticket
    broadcast: bytes  # id
    position: int
    pool: int  # what its credits are added up in (ledger.audit.dues)


class TicketFields(NamedTuple):
    """Of a ledger.ticket.Ticket; made without objects for its ids, of which there are many."""

    version: int
    viewer_class: int
    hub_key_id: bytes
    ticket_id: bytes
    session: bytes
    stream: bytes
    rendition: bytes
    viewer_key: bytes
    node_key: bytes
    first: int
    last: int
    settle_by_s: int
    tariff_version: int
    byte_budget: int
    nonce: bytes


def ticket_fields(data: bytes) -> TicketFields:
    """Of a signed ticket, or of its body alone. Raises WireError, as ledger.ticket does."""
    fields = TicketFields(*_TICKET.unpack_from(data)) if len(data) in (BODY_BYTES, SIGNED_BYTES) else None
    if (
        fields is None
        or fields.version != VERSION
        or fields.viewer_class not in (1, 2)
        or not fields.first <= fields.last < fields.first + MAX_SEGMENTS
    ):
        SignedTicket.decode(data)  # says what is wrong with it
        raise WireError("this is not a ticket")
    return fields


class Facts:
    def __init__(self, store: Store) -> None:
        self._parts = store.table(b"c", bytes, bytes, 256)
        decode = msgspec.msgpack.Decoder(_SavedBroadcast).decode
        self._broadcasts: Table[Broadcast] = store.table(
            b"b",
            lambda b: b.key + _encoder.encode(b.saved()),
            lambda data: Broadcast(self._parts, data[:16], decode(data[16:])),
            BROADCASTS,
        )
        self.sessions = struct_table(store, b"s", Session, ADMITTED * SMALL)
        self.tickets = struct_table(store, b"t", Ticket, ADMITTED * SMALL)  # by the id of the ticket's record
        self.broadcast_of = store.table(b"d", bytes, bytes, SMALL)  # delivery -> broadcast

    def opened(self, key: bytes) -> int:
        """1 when a session or the record of a ticket has that id, else 0."""
        return 1 if key in self.sessions or key in self.tickets else 0

    def any_opened(self, keys: Collection[bytes]) -> bool:
        return self.sessions.any(keys) or self.tickets.any(keys)

    def broadcast(self, key: bytes) -> Broadcast | None:
        return self._broadcasts.get(key)

    def start_broadcast(self, key: bytes, stream_id: UUID, rendition_id: UUID, first: int) -> None:
        empty = (0, b"")
        saved = _SavedBroadcast(stream_id.bytes, rendition_id.bytes, first, (0, bytes(8)), empty, empty)
        self._broadcasts.put(key, Broadcast(self._parts, key, saved))

    def changed(self, broadcast: Broadcast) -> None:
        self._broadcasts.put(broadcast.key, broadcast)
