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
from ledger.served import Said

Ints = npt.NDArray[np.int64]
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


def claims(said: Sequence[Said], room: Ints) -> tuple[Ints, list[int]]:
    """`ROWS` rows, one column for each receipt of the events in turn; and how many are each event's, 0 where it does
    not go into numbers. They stand at the beginning of `room`, `ROWS` values for each receipt."""
    counts = [len(one.verdicts) for one in said]
    rows = room[: ROWS * sum(counts)].reshape(ROWS, -1) if said else room[:0].reshape(ROWS, 0)
    if not said:
        return rows, counts
    data = np.frombuffer(b"".join([one.receipts for one in said]), RECEIPT)
    sizes = np.frombuffer(b"".join([one.credited_bytes for one in said]), ">u8").astype(np.uint64)
    base = data["base"].astype(np.uint64)
    fits = (data["version"] == VERSION) & (base <= _MOST) & (sizes < _LIMIT)
    if not fits.all():
        of_event = np.logical_and.reduceat(fits, np.cumsum([0, *counts[:-1]])).tolist()
        rows, some = claims([one for one, fits_ in zip(said, of_event, strict=True) if fits_], room)
        each = iter(some)
        return rows, [next(each) if fits_ else 0 for fits_ in of_event]
    rows[HASH : HASH + 4] = np.ascontiguousarray(data["ticket"]).view(np.int64).reshape(-1, 4).T
    which = _index([one.session_of for one in said], [len(one.sessions) // SESSION_BYTES for one in said])
    rows[SESSION : SESSION + 2] = _words(b"".join([one.sessions for one in said])).take(which, axis=1)
    which = _index([one.network_of for one in said], [len(one.network_bytes) for one in said])
    rows[NETWORK : NETWORK + 2] = _words(b"".join([one.networks for one in said])).take(which, axis=1)
    rows[NETWORKS] = np.frombuffer(b"".join([one.network_bytes for one in said]), np.uint8).take(which)
    words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(len(data), runs.CELL // 64).T
    low, end, one_run = runs.ends(np.ascontiguousarray(words, np.uint64))
    offset = base.astype(np.int64) * (low < end)
    rows[LOW], rows[END], rows[RUN] = low + offset, end + offset, one_run
    rows[VERDICT] = np.frombuffer(b"".join([one.verdicts for one in said]), np.uint8)
    rows[CAP] = np.frombuffer(b"".join([one.caps for one in said]), np.uint8)
    rows[UNITS] = np.frombuffer(b"".join([one.units for one in said]), ">u2")
    rows[SIZE] = sizes
    return rows, counts


def claims_of(event: SegmentsServed) -> Ints:
    """Of one event; no columns where it does not go into numbers."""
    said = Said.of(event)
    some = [said] if said is not None and said.verdicts else []
    return claims(some, np.empty(ROWS * len(event.verdicts), np.int64))[0]


def _index(own: list[bytes], values: list[int]) -> Ints:
    """Which of all events' values is each receipt's, from which of its own event's it is."""
    before = np.cumsum([0, *values])[:-1]
    which: Ints = np.frombuffer(b"".join(own), np.uint8) + np.repeat(before, [len(one) for one in own])
    return which


def _words(ids: bytes) -> Ints:
    words: Ints = np.frombuffer(ids, np.int64).reshape(-1, SESSION_BYTES // 8).T
    return words
