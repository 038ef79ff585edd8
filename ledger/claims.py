"""What an event says of each of its receipts, as columns of numbers: what can be read without knowing the log.

Invariant: `claims` says what the event's bytes say, exactly; where something does not go into these numbers it gives
none. Ids and hashes are given as they lie in memory, eight bytes a number.
"""

from collections.abc import Sequence
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


def claims(events: Sequence[SegmentsServed]) -> list[Ints | None]:
    """For each event `ROWS` rows, one column for each of its receipts."""
    if not events:
        return []
    data = np.frombuffer(b"".join([e.receipts for e in events]), RECEIPT)
    sizes = np.frombuffer(b"".join([e.credited_bytes for e in events]), ">u8").astype(np.uint64)
    base = data["base"].astype(np.uint64)
    lengths = {length for e in events for length in set(map(len, e.networks))}
    fit = (data["version"] == VERSION) & (base <= _MOST) & (sizes < _LIMIT)
    if not lengths <= {0, NETWORK_BYTES} or not fit.all() or not all(e.indices for e in events):
        return [None] if len(events) == 1 else [one for event in events for one in claims([event])]
    ends = np.cumsum([len(e.indices) for e in events])
    rows = np.empty((ROWS, len(data)), np.int64)
    rows[HASH : HASH + 4] = np.ascontiguousarray(data["ticket"]).view(np.int64).reshape(-1, 4).T
    sessions = b"".join([e.sessions for e in events])
    which = _index(events, "session_of", [len(e.sessions) // SESSION_BYTES for e in events], ends)
    rows[SESSION : SESSION + 2] = _words(sessions).take(which, axis=1)
    networks = [network for e in events for network in e.networks]
    which = _index(events, "network_of", [len(e.networks) for e in events], ends)
    padded = b"".join(networks if 0 not in lengths else [n or bytes(NETWORK_BYTES) for n in networks])
    rows[NETWORK : NETWORK + 2] = _words(padded).take(which, axis=1)
    rows[NETWORKS] = NETWORK_BYTES
    if 0 in lengths:
        rows[NETWORKS] = np.array([len(network) for network in networks]).take(which)
    words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(len(data), -1).T
    low, end, one = runs.ends(np.ascontiguousarray(words, np.uint64))
    offset = base.astype(np.int64) * (low < end)
    rows[LOW], rows[END], rows[RUN] = low + offset, end + offset, one
    rows[VERDICT] = np.frombuffer(b"".join([e.verdicts for e in events]), np.uint8)
    rows[CAP] = np.frombuffer(b"".join([e.caps for e in events]), np.uint8)
    rows[UNITS] = np.frombuffer(b"".join([e.units for e in events]), ">u2")
    rows[SIZE] = sizes
    return list(np.split(rows, ends[:-1], axis=1))


def _index(events: Sequence[SegmentsServed], column: str, counts: list[int], ends: Ints) -> Ints:
    """Which of all events' values is each receipt's, from which of its own event's it is."""
    before = np.cumsum([0, *counts[:-1]])
    own = np.frombuffer(b"".join([getattr(e, column) for e in events]), np.uint8)
    which: Ints = own + np.repeat(before, np.diff(ends, prepend=0))
    return which


def _words(ids: bytes) -> Ints:
    words: Ints = np.frombuffer(ids, np.int64).reshape(-1, SESSION_BYTES // 8).T
    return words
