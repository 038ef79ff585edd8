"""What an event says of each of its receipts, as columns of numbers: what can be read without knowing the log.

Invariant: `claims` says what the event's bytes say, exactly; where something does not go into these numbers it gives
none. Ids and hashes are given as they lie in memory, eight bytes a number.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from ledger import runs
from ledger.events import SegmentsServed
from ledger.judged import SESSION_BYTES
from ledger.receipt import MAX_BASE_SEQUENCE, SIGNED_BYTES, VERSION

Ints = npt.NDArray[np.int64]
NETWORK_BYTES: Final = 16  # of a commitment, where there is one
_LIMIT: Final = np.uint64(1 << 62)
_MOST: Final = np.uint64(min(MAX_BASE_SEQUENCE, (1 << 62) - 1))

# ledger.receipt: version, ticket hash, counter, base sequence, bitmap, digest; then the signature. Big-endian.
RECEIPT: Final = np.dtype(
    [
        ("version", "u1"),
        ("ticket", "V32"),
        ("counter", ">u4"),
        ("base", ">u8"),
        ("bitmap", "V64"),
        ("digest", "V32"),
        ("signature", "V64"),
    ]
)
assert RECEIPT.itemsize == SIGNED_BYTES

(
    HASH,  # of the ticket: four rows
    _,
    _,
    _,
    SESSION,  # two rows
    _,
    NETWORK,  # two rows, 0 where there is none
    _,
    NETWORKS,  # bytes of the commitment: 16 or 0
    LOW,  # sequence of the first segment that is claimed, and the one after the last; 0 and 0 where none is
    END,
    RUN,  # 1 where all between them are claimed
    VERDICT,
    CAP,
    UNITS,
    SIZE,
) = range(16)
ROWS: Final = 16


def claims(events: Sequence[SegmentsServed]) -> tuple[Ints, list[int]]:
    """`ROWS` rows, one column for each receipt of the events in turn; and how many are each event's, 0 where it does
    not go into numbers."""
    fit = [bool(e.indices) and set(map(len, e.networks)) <= {0, NETWORK_BYTES} for e in events]
    some = [event for event, fits in zip(events, fit, strict=True) if fits]
    counts = [len(event.indices) for event in some]
    if some:
        data = np.frombuffer(b"".join([e.receipts for e in some]), RECEIPT)
        sizes = np.frombuffer(b"".join([e.credited_bytes for e in some]), ">u8").astype(np.uint64)
        fits_all = (data["version"] == VERSION) & (data["base"] <= _MOST) & (sizes < _LIMIT)
        if not fits_all.all():
            of_event = iter(np.logical_and.reduceat(fits_all, np.cumsum([0, *counts[:-1]])).tolist())
            fit = [fits and next(of_event) for fits in fit]
            some = [event for event, fits in zip(events, fit, strict=True) if fits]
            counts = [len(event.indices) for event in some]
    each = iter(counts)
    return _rows(some, counts), [next(each) if fits else 0 for fits in fit]


def _rows(events: Sequence[SegmentsServed], counts: list[int]) -> Ints:
    data = np.frombuffer(b"".join([e.receipts for e in events]), RECEIPT)
    base = data["base"].astype(np.int64)
    rows = np.empty((ROWS, len(data)), np.int64)
    rows[HASH : HASH + 4] = np.ascontiguousarray(data["ticket"]).view(np.int64).reshape(-1, 4).T
    sessions = b"".join([e.sessions for e in events])
    which = _index(events, "session_of", [len(e.sessions) // SESSION_BYTES for e in events], counts)
    rows[SESSION : SESSION + 2] = _words(sessions).take(which, axis=1)
    networks = list(chain.from_iterable([e.networks for e in events]))
    which = _index(events, "network_of", [len(e.networks) for e in events], counts)
    padded = b"".join([network or bytes(NETWORK_BYTES) for network in networks])
    rows[NETWORK : NETWORK + 2] = _words(padded).take(which, axis=1)
    rows[NETWORKS] = np.fromiter(map(len, networks), np.int64, len(networks)).take(which)
    words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(len(data), runs.CELL // 64).T
    low, end, one = runs.ends(np.ascontiguousarray(words, np.uint64))
    offset = base * (low < end)
    rows[LOW], rows[END], rows[RUN] = low + offset, end + offset, one
    rows[VERDICT] = np.frombuffer(b"".join([e.verdicts for e in events]), np.uint8)
    rows[CAP] = np.frombuffer(b"".join([e.caps for e in events]), np.uint8)
    rows[UNITS] = np.frombuffer(b"".join([e.units for e in events]), ">u2")
    rows[SIZE] = np.frombuffer(b"".join([e.credited_bytes for e in events]), ">u8")
    return rows


def _index(events: Sequence[SegmentsServed], column: str, values: list[int], counts: list[int]) -> Ints:
    """Which of all events' values is each receipt's, from which of its own event's it is."""
    before = np.cumsum([0, *values])[:-1]
    own = np.frombuffer(b"".join([getattr(e, column) for e in events]), np.uint8)
    which: Ints = own + np.repeat(before, counts)
    return which


def _words(ids: bytes) -> Ints:
    words: Ints = np.frombuffer(ids, np.int64).reshape(-1, SESSION_BYTES // 8).T
    return words
