"""What an event says of each of its receipts, as columns of numbers: what can be read without knowing the log.

Invariant: `claims` says what the event's bytes say, exactly; where something does not go into these numbers it gives
none. Ids and hashes are given as they lie in memory, eight bytes a number.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

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

# Rows of what is claimed.
(
    NAME,  # which of the names it is: the ticket, its session and its network
    LOW,  # sequence of the first segment that is claimed, and the one after the last; 0 and 0 where none is
    END,
    RUN,  # 1 where all between them are claimed
    VERDICT,
    CAP,
    UNITS,
    SIZE,
) = range(8)
ROWS: Final = 8
# Numbers of a name.
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
) = range(9)
WORDS: Final = 9
_NAME: Final = np.dtype(
    [("ticket", "V32"), ("session", "V16"), ("network", "V16"), ("network_bytes", np.int64)]
)
assert _NAME.itemsize == WORDS * 8
# Another in each process: a hub that looks for tickets whose hashes meet cannot know which do.
_SALT: Final = hash("claims") | 1
_BITS: Final = 17


def room_bytes(receipts: int) -> int:
    """Of what so many receipts claim."""
    return 8 * (ROWS * receipts + WORDS * (receipts + 1))


class Claims:
    """What the events of a bundle say, a column for each receipt, and the names that stand in it, each once: a viewer's
    receipts come again and again, and who they are is looked up once."""

    def __init__(self, room: Ints, named: int) -> None:
        """`named`: how many names stand in `room`."""
        self._rows, names = _parts(room)
        self.names = names[:named].T
        self.places: Ints = np.zeros(named, np.int64)  # for who looks up names: 0 where it was not found yet
        self.places_in = 0  # which places these are

    def between(self, begin: int, end: int) -> Ints:
        return self._rows[:, begin:end]


class Told(NamedTuple):
    """What one event claims. Nothing where it does not go into numbers."""

    claims: Claims
    begin: int
    end: int


class Writer:
    """Fills `Claims`."""

    def __init__(self, room: Ints, bits: int = _BITS) -> None:
        self._rows, self._names = _parts(room)
        self._names[0] = 0  # the first name is none at all
        self.named = 1
        self._end = 0
        self._shift = np.uint64(64 - bits)
        self._heads = np.zeros(1 << bits, np.int32)  # the first name whose hash has these bits
        self._others: dict[bytes, int] = {}  # further ones

    def add(self, said: Sequence[Said]) -> list[int]:
        """Returns how many of the next columns are each event's: 0 where it does not go into numbers."""
        counts = [len(one.verdicts) for one in said]
        if not said:
            return counts
        data = np.frombuffer(b"".join([one.receipts for one in said]), RECEIPT)
        sizes = np.frombuffer(b"".join([one.credited_bytes for one in said]), ">u8").astype(np.uint64)
        base = data["base"].astype(np.uint64)
        fits = (data["version"] == VERSION) & (base <= _MOST) & (sizes < _LIMIT)
        if not fits.all():
            of_event = np.logical_and.reduceat(fits, np.cumsum([0, *counts[:-1]])).tolist()
            some = iter(self.add([one for one, fits_ in zip(said, of_event, strict=True) if fits_]))
            return [next(some) if fits_ else 0 for fits_ in of_event]
        rows = self._rows[:, self._end : self._end + len(data)]
        self._end += len(data)
        rows[NAME] = self._numbers(_words_of(said, data))
        words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(len(data), runs.CELL // 64)
        low, end, one_run = runs.ends_of_rows(np.ascontiguousarray(words, np.uint64))
        offset = base.astype(np.int64) * (low < end)
        rows[LOW], rows[END], rows[RUN] = low + offset, end + offset, one_run
        rows[VERDICT] = np.frombuffer(b"".join([one.verdicts for one in said]), np.uint8)
        rows[CAP] = np.frombuffer(b"".join([one.caps for one in said]), np.uint8)
        rows[UNITS] = np.frombuffer(b"".join([one.units for one in said]), ">u2")
        rows[SIZE] = sizes
        return counts

    def _numbers(self, words: Ints) -> Ints:
        """Of the names in these rows, known or new."""
        at = ((words[:, HASH] * _SALT).view(np.uint64) >> self._shift).view(np.int64)
        found: Ints = self._heads.take(at).astype(np.int64)
        left = self._unlike(found, words)
        if len(left):
            free = left[found[left] == 0]
            numbers = np.arange(1, len(free) + 1, dtype=np.int32)
            self._heads[at[free]] = -numbers  # of several, one gets the place
            free = free[self._heads[at[free]] == -numbers]
            self._heads[at[free]] = self._new(words[free])
            found[left] = self._heads[at[left]]
            left = left[self._unlike(found[left], words[left])]
        for i in left.tolist():
            name = words[i].tobytes()
            number = self._others.get(name)
            if number is None:
                number = self._others[name] = int(self._new(words[i : i + 1])[0])
            found[i] = number
        return found

    def _unlike(self, numbers: Ints, words: Ints) -> Ints:
        """Which of these rows are not the names of these numbers."""
        unlike = self._names.take(numbers, axis=0) != words
        return np.flatnonzero(unlike.any(axis=1)) if unlike.any() else numbers[:0]

    def _new(self, words: Ints) -> Ints:
        begin, self.named = self.named, self.named + len(words)
        self._names[begin : self.named] = words
        return np.arange(begin, self.named)


def told_by(event: SegmentsServed) -> Told:
    """By one event."""
    said = Said.of(event)
    some = [said] if said is not None and said.verdicts else []
    room = np.empty(room_bytes(len(event.verdicts)) // 8, np.int64)
    writer = Writer(room, bits=10)
    count = sum(writer.add(some))
    return Told(Claims(room, writer.named), 0, count)


def _parts(room: Ints) -> tuple[Ints, Ints]:
    """Where columns of claims are, and where rows of names."""
    most = (len(room) - WORDS) // (ROWS + WORDS)
    return room[: ROWS * most].reshape(ROWS, most), room[ROWS * most :][: WORDS * (most + 1)].reshape(
        -1, WORDS
    )


def _words_of(said: Sequence[Said], data: npt.NDArray[np.void]) -> Ints:
    """The name of each receipt."""
    names = np.empty(len(data), _NAME)
    names["ticket"] = data["ticket"]
    which = _index([one.session_of for one in said], [len(one.sessions) // SESSION_BYTES for one in said])
    names["session"] = _ids(b"".join([one.sessions for one in said])).take(which)
    which = _index([one.network_of for one in said], [len(one.network_bytes) for one in said])
    names["network"] = _ids(b"".join([one.networks for one in said])).take(which)
    names["network_bytes"] = np.frombuffer(b"".join([one.network_bytes for one in said]), np.uint8).take(
        which
    )
    return names.view(np.int64).reshape(-1, WORDS)


def _index(own: list[bytes], values: list[int]) -> Ints:
    """Which of all events' values is each receipt's, from which of its own event's it is."""
    before = np.cumsum([0, *values])[:-1]
    which: Ints = np.frombuffer(b"".join(own), np.uint8) + np.repeat(before, [len(one) for one in own])
    return which


def _ids(ids: bytes) -> npt.NDArray[np.void]:
    return np.frombuffer(ids, f"V{SESSION_BYTES}")
