"""Deliveries in the published log, read without decoding them: where a field stands follows from lengths before it.

Invariant: what `read` gives, sorted out, is what `event_codec.decode_stored` says of these bytes, and they are the one
encoding of that event. What it does not read (None), right or wrong, is for `decode_stored`.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import numpy as np

from ledger.batch import HEADER_BYTES
from ledger.event_codec import decode_stored, prefix_of
from ledger.events import SegmentsServed
from ledger.judged import SESSION_BYTES, SIZE_BYTES, UNITS_BYTES, all_different, as_first_met, numbers_fit
from ledger.receipt import SIGNED_BYTES

NETWORK_BYTES: Final = 16  # of a commitment, where there is one
_BIN: Final = 0xC4  # MessagePack: bytes whose length is in one byte
_INTS: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}  # MessagePack: bytes of a number that is not negative


class Delivery(msgspec.Struct, array_like=True):
    """An `events.SegmentsServed` apart from what it says of its receipts, which is for columns (ledger.claims)."""

    index: int  # of the entry in its bundle
    receipts_at: int  # where in the entry they begin
    node_id: UUID
    batch_header: bytes
    first_sequence: int
    network_limit: int
    indices: bytes
    originator_id: UUID
    originator_version: int
    at_us: int
    in_order: (
        bool  # ledger.judged, of its sessions and networks; from `read` it does not say that they differ
    )
    entry: memoryview | None = None  # set by whoever has it

    @property
    def receipts(self) -> bytes:
        assert self.entry is not None
        return bytes(self.entry[self.receipts_at :][: len(self.indices) * SIGNED_BYTES])

    def whole(self) -> SegmentsServed:
        assert self.entry is not None
        event = decode_stored(self.entry)
        assert isinstance(event, SegmentsServed)
        return event


class Said(NamedTuple):
    """What an event says of its receipts. As in `events.SegmentsServed`, but for the networks."""

    receipts: bytes | memoryview
    sessions: bytes
    networks: bytes  # 16 bytes each, zeros where there is none
    network_bytes: bytes  # u8: 16 or 0
    session_of: bytes
    network_of: bytes
    verdicts: bytes
    caps: bytes
    units: bytes
    credited_bytes: bytes

    @classmethod
    def of(cls, event: SegmentsServed) -> "Said | None":
        """None when a network's commitment has another length."""
        if not set(map(len, event.networks)) <= {0, NETWORK_BYTES}:
            return None
        return cls(
            event.receipts,
            event.sessions,
            b"".join([network or bytes(NETWORK_BYTES) for network in event.networks]),
            bytes(map(len, event.networks)),
            event.session_of,
            event.network_of,
            event.verdicts,
            event.caps,
            event.units,
            event.credited_bytes,
        )


def _name(field: str) -> bytes:
    return msgspec.msgpack.encode(field)


def _bin_head(size: int) -> bytes:
    return bytes((_BIN, size)) if size < 256 else b"\xc5" + size.to_bytes(2)


_BEGIN: Final = prefix_of(SegmentsServed) + _name("node_id") + _bin_head(16)
_BATCH: Final = _name("batch_header") + _bin_head(HEADER_BYTES)
_NO_BATCH: Final = _name("batch_header") + _bin_head(0)
_FIRST, _LIMIT = _name("first_sequence"), _name("network_limit")
_SESSIONS, _NETWORKS, _RECEIPTS = _name("sessions"), _name("networks"), _name("receipts")
_AT_US: Final = _name("at_us")
_HEAD_BYTES: Final = 320  # the fields before the sessions are shorter
_COLUMNS: Final = {  # bytes of a value for each receipt
    "indices": 1,
    "session_of": 1,
    "network_of": 1,
    "verdicts": 1,
    "caps": 1,
    "units": UNITS_BYTES,
    "credited_bytes": SIZE_BYTES,
}
_NETWORK: Final = np.dtype([("head", "V2"), ("value", f"V{NETWORK_BYTES}")])
_ODD: Final = np.uint32(0x9E3779B9)
_id: Final = lru_cache(1_024)(lambda value: UUID(bytes=value))  # of few things; making one takes long


class _Other(Exception):
    """Not of the usual layout."""


def read(index: int, entry: memoryview) -> tuple[Delivery, Said] | None:
    """The entry at `index` of a bundle. `sort_out` is for all that were read."""
    head = bytes(entry[:_HEAD_BYTES])
    if not head.startswith(_BEGIN):
        return None
    try:
        return _read(index, entry, head)
    except (_Other, IndexError, KeyError, struct.error):
        return None


def _read(index: int, entry: memoryview, head: bytes) -> tuple[Delivery, Said]:
    at = len(_BEGIN)
    node, at = head[at : at + 16], at + 16
    if head.startswith(_BATCH, at):
        at += len(_BATCH)
        batch_header, at = head[at : at + HEADER_BYTES], at + HEADER_BYTES
    else:
        batch_header, at = b"", _past(_NO_BATCH, head, at)
    first_sequence, at = _number(head, _past(_FIRST, head, at))
    network_limit, at = _number(head, _past(_LIMIT, head, at))
    size, at = _bin(head, _past(_SESSIONS, head, at))
    sessions, at = bytes(entry[at : at + size]), at + size

    head = bytes(entry[at : at + 16])
    networks_at = at + _past(_NETWORKS, head, 0)
    known, networks, network_bytes, at = _networks(entry, networks_at)

    head = bytes(entry[at : at + 16])
    size, begin = _bin(head, _past(_RECEIPTS, head, 0))
    count, odd = divmod(size, SIGNED_BYTES)
    if odd or not count:
        raise _Other
    layout, constant = _tail(count)
    found = layout.unpack_from(entry, at)
    if found[:1] + found[1::2] != constant:
        raise _Other
    indices, session_of, network_of, verdicts, caps, units, credited_bytes, originator = found[2::2]
    receipts_at = at + begin
    head = bytes(entry[at + layout.size :])
    version, end = _number(head, 0)
    at_us, end = _number(head, _past(_AT_US, head, end))
    if end != len(head) or len(sessions) % SESSION_BYTES:
        raise _Other
    if not numbers_fit(len(sessions) // SESSION_BYTES, known, session_of, network_of, verdicts, caps):
        raise _Other
    delivery = Delivery(
        index,
        receipts_at,
        _id(node),
        batch_header,
        first_sequence,
        network_limit,
        indices,
        _id(originator),
        version,
        at_us,
        as_first_met(len(sessions) // SESSION_BYTES, session_of, known, network_of),
    )
    receipts = entry[receipts_at : receipts_at + size]
    said = Said(
        receipts,
        sessions,
        networks,
        network_bytes,
        session_of,
        network_of,
        verdicts,
        caps,
        units,
        credited_bytes,
    )
    return delivery, said


def sort_out(deliveries: Sequence[Delivery], said: Sequence[Said]) -> None:
    """Mark those in which a session or a network stands twice as not in order."""
    if _surely_different(said):
        return
    for delivery, one in zip(deliveries, said, strict=True):
        networks = [
            one.networks[i * NETWORK_BYTES : i * NETWORK_BYTES + size]
            for i, size in enumerate(one.network_bytes)
        ]
        delivery.in_order = delivery.in_order and all_different(one.sessions, networks)


def _surely_different(said: Sequence[Said]) -> bool:
    """Of all at once, by the last bytes of each id, which tell nearly always; those of another event are others."""
    for ids in ([one.sessions for one in said], [one.networks for one in said]):
        ends = np.frombuffer(b"".join(ids), np.uint32)[3::4]
        events = np.arange(len(ids), dtype=np.uint32) * _ODD
        ordered = np.sort(ends ^ np.repeat(events, [len(some) // SESSION_BYTES for some in ids]))
        if (ordered[1:] == ordered[:-1]).any():
            return False
    return True


@lru_cache(256)
def _tail(count: int) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """From the receipts to the name of the version, which is of any length: constant bytes and columns in turn."""
    heads = [_RECEIPTS + _bin_head(count * SIGNED_BYTES)]
    parts = [f">{len(heads[0])}s{count * SIGNED_BYTES}x"]
    for name, size in (*((name, count * size) for name, size in _COLUMNS.items()), ("originator_id", 16)):
        heads.append(_name(name) + _bin_head(size))
        parts.append(f"{len(heads[-1])}s{size}s")
    heads.append(_name("originator_version"))
    return struct.Struct("".join([*parts, f"{len(heads[-1])}s"])), tuple(heads)


def _networks(entry: memoryview, at: int) -> tuple[int, bytes, bytes, int]:
    """Of the array there: how many, the commitments, their lengths, and where it ends."""
    if entry[at] & 0xF0 == 0x90:
        count, at = entry[at] & 0x0F, at + 1
    elif entry[at] == 0xDC:
        count, at = int.from_bytes(entry[at + 1 : at + 3]), at + 3
        if count < 16:
            raise _Other
    else:
        raise _Other
    end = at + count * _NETWORK.itemsize
    data, lengths = bytes(entry[at:end]), bytes((NETWORK_BYTES,)) * count
    if data[:: _NETWORK.itemsize] == bytes((_BIN,)) * count and data[1 :: _NETWORK.itemsize] == lengths:
        return count, np.frombuffer(data, _NETWORK)["value"].tobytes(), lengths, end
    some, found = [], bytearray()
    for _ in range(count):  # some of them are empty
        size = entry[at + 1]
        if entry[at] != _BIN or size not in (0, NETWORK_BYTES):
            raise _Other
        some.append(bytes(entry[at + 2 : at + 2 + size]) or bytes(NETWORK_BYTES))
        found.append(size)
        at += 2 + size
    return count, b"".join(some), bytes(found), at


def _past(name: bytes, data: bytes, at: int) -> int:
    if not data.startswith(name, at):
        raise _Other
    return at + len(name)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The number there, in its shortest form, and where it ends."""
    first = data[at]
    if first < 0x80:
        return first, at + 1
    size = _INTS[first]
    value, end = int.from_bytes(data[at + 1 : at + 1 + size]), at + 1 + size
    if value < (0x80 if size == 1 else 1 << (4 * size)):
        raise _Other
    return value, end


def _bin(data: bytes, at: int) -> tuple[int, int]:
    """The length of the bytes there, in its shortest form, and where they begin."""
    if data[at] == _BIN:
        return data[at + 1], at + 2
    size = int.from_bytes(data[at + 1 : at + 3])
    if data[at] != 0xC5 or size < 256:
        raise _Other
    return size, at + 3
