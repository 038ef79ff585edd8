"""Sessions and tickets in the published log, read by the bundle: their events have a layout, and are columns of bytes.

Invariant: what `admitted` names are exactly the one encodings of events that are the first of their aggregates, with
every field where the row type of the layout says; a ticket among them can be read and has the id of its hash. What it
does not name, right or wrong, is for `ledger.event_codec.decode_stored`.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

from ledger.event_codec import encode
from ledger.events import SessionOpened, TicketIssued
from ledger.ids import NAMESPACE
from ledger.ticket import BODY_BYTES, DOMAIN, MAX_SEGMENTS, SIGNED_BYTES, VERSION, ViewerClass

# ledger.ticket: the body, then the hub's signature. Big-endian.
TICKET_BODY: Final = np.dtype(
    [
        ("version", "u1"),
        ("viewer_class", "u1"),
        ("hub_key_id", "V8"),
        ("ticket_id", "V16"),
        ("session", "V16"),
        ("stream", "V16"),
        ("rendition", "V16"),
        ("viewer_key", "V32"),
        ("node_key", "V32"),
        ("first", ">u8"),
        ("last", ">u8"),
        ("settle_by_s", ">u8"),
        ("tariff_version", ">u4"),
        ("byte_budget", ">u8"),
        ("nonce", "V16"),
    ]
)
TICKET: Final = np.dtype([*TICKET_BODY.descr, ("signature", "V64")])
assert TICKET.itemsize == SIGNED_BYTES
_AT_US: Final = 0x0102030405060708  # as any time of ours: nine bytes in MessagePack


class Layout:
    """How events of a type are encoded whose fields have given lengths: constant bytes, and fields between them."""

    def __init__(self, sample: SessionOpened | TicketIssued, fields: dict[str, tuple[Any, bytes]]) -> None:
        """`fields`: for each its row type, and what it is in `sample`, which stands nowhere else in it."""
        data = encode(sample)
        self.size = len(data)
        self.rows = np.dtype(
            {
                "names": list(fields),
                "formats": [kind for kind, _ in fields.values()],
                "offsets": [data.index(value) for _, value in fields.values()],
                "itemsize": self.size,
            }
        )
        constant = np.full(self.size, 0xFF, np.uint8)
        for _, value in fields.values():
            assert data.count(value) == 1
            constant[data.index(value) :][: len(value)] = 0
        self._constant = constant
        self._bytes = np.frombuffer(data, np.uint8) & constant

    def read(self, entries: Sequence[bytes | memoryview]) -> npt.NDArray[np.void]:
        """Entries of this layout, one row each."""
        return np.frombuffer(b"".join(entries), self.rows)

    def fits(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """Which of these, read from entries of the layout's size, are of it."""
        raw = rows.view(np.uint8).reshape(len(rows), self.size)
        at_us = rows["at_us"].astype(np.uint64)
        short, long = np.uint64(1 << 32), np.uint64(1 << 63)  # smaller ones have a shorter encoding
        fits: npt.NDArray[np.bool_] = ((raw & self._constant) == self._bytes).all(axis=1)
        return fits & (at_us >= short) & (at_us < long)


def _of(n: int, size: int) -> bytes:
    """A value for a sample."""
    return bytes([n]) * size


def _session(viewer_class: ViewerClass, key_bytes: int, account: UUID | None) -> Layout:
    sample = SessionOpened(
        originator_id=UUID(bytes=_of(0xE1, 16)),
        originator_version=1,
        at_us=_AT_US,
        session_id=UUID(bytes=_of(0xE2, 16)),
        stream_id=UUID(bytes=_of(0xE3, 16)),
        viewer_class=viewer_class,
        viewer_key=_of(0xE4, key_bytes),
        prefix_commitment=_of(0xE5, 16),
        account_id=account,
    )
    fields = {
        "originator": ("V16", _of(0xE1, 16)),
        "at_us": (">u8", _AT_US.to_bytes(8)),
        "session": ("V16", _of(0xE2, 16)),
        "stream": ("V16", _of(0xE3, 16)),
        "network": ("V16", _of(0xE5, 16)),
    }
    if key_bytes:
        fields["viewer_key"] = (f"V{key_bytes}", _of(0xE4, key_bytes))
    if account is not None:
        fields["account"] = ("V16", account.bytes)
    return Layout(sample, fields)


def _ticket() -> Layout:
    sample = TicketIssued(
        originator_id=UUID(bytes=_of(0xE1, 16)),
        originator_version=1,
        at_us=_AT_US,
        session_id=UUID(bytes=_of(0xE2, 16)),
        broadcast_id=UUID(bytes=_of(0xE3, 16)),
        node_id=UUID(bytes=_of(0xE4, 16)),
        ticket=_of(0xE5, SIGNED_BYTES),
    )
    return Layout(
        sample,
        {
            "originator": ("V16", _of(0xE1, 16)),
            "at_us": (">u8", _AT_US.to_bytes(8)),
            "session": ("V16", _of(0xE2, 16)),
            "broadcast": ("V16", _of(0xE3, 16)),
            "node": ("V16", _of(0xE4, 16)),
            "ticket": (TICKET, _of(0xE5, SIGNED_BYTES)),
        },
    )


_ACCOUNT: Final = UUID(bytes=_of(0xE6, 16))
TICKETS: Final = _ticket()
SESSIONS: Final = {
    layout.size: (viewer_class, layout)
    for viewer_class, key_bytes in ((ViewerClass.SIGNING, 32), (ViewerClass.PLAIN, 0))
    for layout in (_session(viewer_class, key_bytes, account) for account in (None, _ACCOUNT))
}
assert len({TICKETS.size, *SESSIONS}) == 5  # the length of an entry says which layout it may have


class Admitted(msgspec.Struct, array_like=True, frozen=True):
    """Which entries of a bundle are sessions and tickets of a layout: u8 indices, ascending."""

    sessions: bytes = b""
    tickets: bytes = b""

    @property
    def count(self) -> int:
        return len(self.sessions) + len(self.tickets)

    def between(self, low: int, end: int) -> "Admitted":
        """Those of the entries [low, end)."""
        return Admitted(
            self.sessions[bisect_left(self.sessions, low) : bisect_left(self.sessions, end)],
            self.tickets[bisect_left(self.tickets, low) : bisect_left(self.tickets, end)],
        )


def admitted(entries: Sequence[memoryview]) -> Admitted:
    by_size: dict[int, list[int]] = {}
    for i, entry in enumerate(entries):
        by_size.setdefault(len(entry), []).append(i)
    sessions: list[int] = []
    for size, (_, layout) in SESSIONS.items():
        some = by_size.get(size)
        if some:
            rows = layout.read([entries[i] for i in some])
            fits = layout.fits(rows) & (rows["originator"] == rows["session"])
            sessions += np.array(some)[fits].tolist()
    tickets = by_size.get(TICKETS.size, [])
    rows = TICKETS.read([entries[i] for i in tickets])
    fits = TICKETS.fits(rows)
    tickets, rows = np.array(tickets, np.int64)[fits].tolist(), rows[fits]
    if not tickets:
        return Admitted(bytes(sorted(sessions)))
    data = rows["ticket"].tobytes()
    hashes = [
        hashlib.sha256(DOMAIN + data[at : at + BODY_BYTES]).digest()
        for at in range(0, len(data), SIGNED_BYTES)
    ]
    fits = _readable(rows["ticket"]) & (rows["session"] == rows["ticket"]["session"])
    fits &= record_ids(hashes) == rows["originator"]
    return Admitted(
        bytes(sorted(sessions)),
        bytes(np.array(tickets)[fits].tolist()),
    )


def _readable(tickets: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Which of them `ledger.ticket` reads."""
    first, last = tickets["first"].astype(np.uint64), tickets["last"].astype(np.uint64)
    kind = tickets["viewer_class"]
    readable: npt.NDArray[np.bool_] = (tickets["version"] == VERSION) & ((kind == 1) | (kind == 2))
    readable &= (first <= last) & (last - first < np.uint64(MAX_SEGMENTS))
    return readable


def record_ids(hashes: Sequence[bytes]) -> npt.NDArray[np.void]:
    """`ledger.ids.ticket_record_id` of each hash, as bytes."""
    head = hashlib.sha1(NAMESPACE.bytes + b"ticket:", usedforsecurity=False)
    digests = []
    for hash_ in hashes:
        one = head.copy()
        one.update(hash_.hex().encode())
        digests.append(one.digest())
    ids = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 20)[:, :16].copy()
    ids[:, 6] = ids[:, 6] & 0x0F | 0x50  # RFC 9562, section 5.5
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return ids.view("V16").reshape(-1)
