"""What an event says of each of its receipts, as columns of numbers: what can be read without knowing the log.

Invariant: `claims` says what the event's bytes say, exactly; where something does not go into these numbers it gives
none. Ids and hashes are given as they lie in memory, eight bytes a number.
"""

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


def claims(event: SegmentsServed) -> Ints | None:
    """`ROWS` rows, one column for each receipt."""
    count = len(event.indices)
    lengths = set(map(len, event.networks))
    sizes = np.frombuffer(event.credited_bytes, ">u8")
    data = np.frombuffer(event.receipts, RECEIPT)
    base = data["base"].astype(np.uint64)
    odd = data["version"] != VERSION
    if not count or not lengths <= {0, NETWORK_BYTES} or odd.any() or (base > MAX_BASE_SEQUENCE).any():
        return None
    if (base >= _LIMIT).any() or (sizes >= _LIMIT).any():
        return None
    rows = np.empty((ROWS, count), np.int64)
    rows[HASH : HASH + 4] = np.ascontiguousarray(data["ticket"]).view(np.int64).reshape(count, 4).T
    session_of = np.frombuffer(event.session_of, np.uint8)
    rows[SESSION : SESSION + 2] = _words(event.sessions)[:, session_of]
    network_of = np.frombuffer(event.network_of, np.uint8)
    networks = b"".join([network or bytes(NETWORK_BYTES) for network in event.networks])
    rows[NETWORK : NETWORK + 2] = _words(networks)[:, network_of]
    rows[NETWORKS] = NETWORK_BYTES
    if 0 in lengths:
        rows[NETWORKS] = np.array([len(network) for network in event.networks])[network_of]
    words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(count, -1).T
    low, end, one = runs.ends(np.ascontiguousarray(words, np.uint64))
    offset = base.astype(np.int64) * (low < end)
    rows[LOW], rows[END], rows[RUN] = low + offset, end + offset, one
    rows[VERDICT] = np.frombuffer(event.verdicts, np.uint8)
    rows[CAP] = np.frombuffer(event.caps, np.uint8)
    rows[UNITS] = np.frombuffer(event.units, ">u2")
    rows[SIZE] = sizes
    return rows


def _words(ids: bytes) -> Ints:
    words: Ints = np.frombuffer(ids, np.int64).reshape(-1, SESSION_BYTES // 8).T
    return words
