"""The credits of a broadcast in arrays: what ledger.credit says, for a batch at a time and in little memory.

Invariant: after the same credits, `copy_of` gives what a `CreditSet` holds of those sessions and networks. A session is
a row of 40 bytes: its id, its network, and the run of segments it is credited for, relative to the broadcast's first.
Only what is no run has a bitmap beside it, and only a network of several sessions has its levels counted.
"""

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ledger.credit import CreditSet, Units

K = TypeVar("K")
T = TypeVar("T")
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Guesses = NDArray[np.int32]  # rows, in which a session may stand or not
Rows = NDArray[Any]

KEY_BYTES: Final = 16
_KEY: Final = struct.Struct("<QQ")
_ROW: Final = np.dtype([("session", "<u8", 2), ("network", "<u8", 2), ("start", "<i4"), ("end", "<i4")])
_NO_RUN: Final = -1  # the `end` of a row whose credits are a bitmap


class Claims(NamedTuple):
    """What receipts claim of a broadcast, one row each: the run [start, end), relative to its first segment."""

    sessions: Sequence[bytes]  # different ones, 16 bytes each
    session_of: NDArray[np.uint8]
    networks: Sequence[bytes]  # different ones, 16 bytes or none
    network_of: NDArray[np.uint8]
    start: Ints
    end: Ints

    @classmethod
    def of(
        cls,
        sessions: Sequence[bytes],
        session_of: NDArray[np.uint8],
        networks: Sequence[bytes],
        network_of: NDArray[np.uint8],
        lowest: NDArray[np.uint64],
        highest: NDArray[np.uint64],
        first_sequence: int,
    ) -> "Claims":
        """From the sequences between which a receipt claims; none may be before the broadcast's first."""
        first = np.uint64(first_sequence)
        start, last = (lowest - first).astype(np.int64), (highest - first).astype(np.int64)
        return cls(sessions, session_of, networks, network_of, start, last + 1)

    def where(self, chosen: Flags) -> "Claims":
        """Some of the claims."""
        return self._replace(
            session_of=self.session_of[chosen],
            network_of=self.network_of[chosen],
            start=self.start[chosen],
            end=self.end[chosen],
        )


class Plan(NamedTuple):
    """What is new in each claim of a run. It is right where it is `alone`."""

    sole: Flags  # nobody else has a say in it: no other claim of the batch, no other session of the network
    alone: Flags  # and what is credited stays a run
    start: Ints  # what is new is the run [start, end), when that is not empty
    end: Ints
    rows: Ints  # of the sessions; -1 when there is none yet

    def where(self, chosen: Flags) -> "Plan":
        return Plan(
            self.sole[chosen], self.alone[chosen], self.start[chosen], self.end[chosen], self.rows[chosen]
        )


class _Before(NamedTuple):
    """What was there before the changes since `begin`, latest last."""

    used: int
    runs: list[tuple[Any, Any, Any]]  # row or rows, start, end
    bits: list[tuple[int, Units | None]]
    levels: list[tuple[bytes, list[Units] | None]]


class CreditColumns:
    def __init__(self) -> None:
        self._rows: Rows = np.zeros(8, _ROW)
        self._used = 0
        self._by_session = _Index("session")
        self._by_network = _Index("network")  # -> the first session of that network
        self._bits: dict[int, Units] = {}  # row -> its credits relative to `start`, where they are no run
        self._levels: dict[bytes, list[Units]] = {}  # network of several sessions -> as in CreditSet
        self._before: _Before | None = None

    def begin(self) -> None:
        """What is credited from here on can be taken back, until it is settled."""
        self._before = _Before(self._used, [], [], [])

    def settle(self) -> None:
        self._before = None

    def take_back(self) -> None:
        """As it was at `begin`. Costs a look at every session."""
        before, self._before = self._before, None
        if before is None:
            raise ValueError("nothing was begun")
        for rows, start, end in reversed(before.runs):
            self._rows["start"][rows], self._rows["end"][rows] = start, end
        _put_back(self._bits, before.bits)
        _put_back(self._levels, before.levels)
        self._rows[before.used : self._used] = np.zeros((), _ROW)
        self._used = before.used
        self._by_session.keep(self._rows, before.used)
        self._by_network.keep(self._rows, before.used)

    def copy_of(self, sessions: Iterable[UUID], networks: Iterable[bytes]) -> CreditSet:
        """The parts named, to try receipts on one after the other."""
        by_session = {s: self.credited(s) for s in sessions}
        by_network = {n: self._levels_of(n) for n in networks}
        return CreditSet.of(by_session, by_network)

    def credited(self, session_id: UUID) -> Units:
        row = self._by_session.find(self._rows, session_id.bytes)
        return self._units(row) if row >= 0 else 0

    def credit(self, session_id: UUID, network: bytes, units: Units) -> None:
        """Add `units`, none of which the session may have yet."""
        if not units:
            return
        row, before = self._by_session.find(self._rows, session_id.bytes), 0
        if row >= 0:
            before = self._units(row)
            if self._rows["network"][row].tobytes() != _key(network):
                raise ValueError("a session has one network")
        if units & before:
            raise ValueError("a unit may be credited only once")
        if row < 0:
            row = self._append([session_id.bytes], [network])
        if network:
            self._count(row, network, units)
        self._set_units(row, before | units)

    def plan(self, claims: Claims, guesses: Guesses | None = None) -> Plan:
        """What each claim would newly credit if it were the only one. Changes nothing.

        `guesses`, of the row of each claim's session, are corrected.
        """
        rows = self._rows_of(claims, guesses)
        known = rows >= 0
        first, past = self._rows["start"][rows].astype(np.int64), self._rows["end"][rows].astype(np.int64)
        if not every(known):  # a session that has nothing has an empty run where it claims
            first, past = np.where(known, first, claims.start), np.where(known, past, claims.start)
        sole = _once(claims.session_of) & self._sole(claims, rows)
        later = (first <= claims.start) & (claims.start <= past)  # it begins in the run, or right behind it
        end = np.maximum(claims.end, past)
        if every(later):
            return Plan(sole, sole, past, end, rows)
        earlier = (claims.start < first) & (first <= claims.end) & (claims.end <= past)
        start, end = np.where(later, past, claims.start), np.where(later, end, first)
        return Plan(sole, sole & (later | earlier), start, end, rows)

    def credit_alone(self, claims: Claims, plan: Plan) -> None:
        """Credit what `plan` found of these claims. All must be `alone`; nothing may have changed in between."""
        if not every(plan.alone):
            raise ValueError("a claim that others have a say in")
        fresh = plan.start < plan.end
        known = fresh & (plan.rows >= 0)
        rows, first, past = plan.rows, plan.start, plan.end
        if not every(known):
            rows, first, past = rows[known], first[known], past[known]
        start, end = self._rows["start"][rows], self._rows["end"][rows]
        if self._before is not None:
            self._before.runs.append((rows, start, end))
        self._rows["start"][rows] = np.minimum(start, first)
        self._rows["end"][rows] = np.maximum(end, past)
        new = (fresh & (plan.rows < 0)).nonzero()[0]
        if not len(new):
            return
        networks = [claims.networks[n] for n in claims.network_of[new].tolist()]
        at = self._append([claims.sessions[s] for s in claims.session_of[new].tolist()], networks)
        self._rows["start"][at : at + len(new)] = plan.start[new]
        self._rows["end"][at : at + len(new)] = plan.end[new]
        self._by_network.add(self._rows, [at + i for i, network in enumerate(networks) if network])

    def _rows_of(self, claims: Claims, guesses: Guesses | None) -> Ints:
        """The row of each claim's session, or -1."""
        of = claims.session_of
        if guesses is None or len(guesses) != len(of) or len(claims.sessions) != len(of):
            return self._by_session.find_all(self._rows, claims.sessions)[of]
        # A session each, in the order of the claims. A row says itself whose it is.
        if self._used > guesses.max(initial=0):
            rows = guesses.astype(np.int64)
            if self._rows["session"][rows].tobytes() == b"".join(claims.sessions):
                return rows
        rows = self._by_session.find_all(self._rows, claims.sessions)
        np.maximum(rows, 0, out=guesses, casting="same_kind")
        return rows

    def _sole(self, claims: Claims, rows: Ints) -> Flags:
        """Whether the session is the only one of its network, here and in the batch; or has no network."""
        if not any(claims.networks):
            return np.ones(len(rows), np.bool_)
        of = claims.network_of
        sole = _once(of)
        if self._levels:
            sole &= ~np.array([network in self._levels for network in claims.networks], np.bool_)[of]
        # Of a network without levels only one session has credits; who has none yet is alone when nobody has any.
        new = (rows < 0).nonzero()[0]
        if len(new):
            sole[new] &= (
                self._by_network.find_all(self._rows, [claims.networks[n] for n in of[new].tolist()]) < 0
            )
        if b"" in claims.networks:
            sole |= np.array([not network for network in claims.networks], np.bool_)[of]
        return sole

    def _append(self, sessions: Sequence[bytes], networks: Sequence[bytes]) -> int:
        """The first of the new rows."""
        session_keys, network_keys = _keys(sessions), _keys(networks)
        at, self._used = self._used, self._used + len(sessions)
        if self._used > len(self._rows):
            room = np.zeros(self._used + self._used // 16, _ROW)
            room[:at] = self._rows[:at]
            self._rows = room
        self._rows["session"][at : self._used] = session_keys
        self._rows["network"][at : self._used] = network_keys
        self._by_session.add(self._rows, range(at, self._used))
        return at

    def _count(self, row: int, network: bytes, units: Units) -> None:
        """Take what is about to be credited to `row` into the levels of its network."""
        first = self._by_network.find(self._rows, network)
        if first < 0:
            self._by_network.add(self._rows, [row])
            return
        levels = self._levels.get(network)
        if levels is None and first == row:
            return
        if self._before is not None:
            self._before.levels.append((network, levels and list(levels)))
        if levels is None:
            levels = self._levels[network] = [self._units(first)]
        carry = units
        for k, level in enumerate(levels):
            levels[k], carry = level | carry, level & carry
        if carry:
            levels.append(carry)

    def _levels_of(self, network: bytes) -> list[Units]:
        first = self._by_network.find(self._rows, network) if network else -1
        if first < 0:
            return []
        return list(self._levels.get(network) or [self._units(first)])

    def _units(self, row: int) -> Units:
        start, end = int(self._rows["start"][row]), int(self._rows["end"][row])
        return (self._bits[row] if end == _NO_RUN else (1 << (end - start)) - 1) << start

    def _set_units(self, row: int, units: Units) -> None:
        start = (units & -units).bit_length() - 1
        bits = units >> start
        run = not bits & (bits + 1)
        if self._before is not None:
            self._before.runs.append((row, self._rows["start"][row], self._rows["end"][row]))
            self._before.bits.append((row, self._bits.get(row)))
        self._rows["start"][row] = start
        self._rows["end"][row] = start + bits.bit_length() if run else _NO_RUN
        if run:
            self._bits.pop(row, None)
        else:
            self._bits[row] = bits


class _Index:
    """Rows by a key of 16 random bytes: a hash table with open addressing whose slots are row numbers.

    It is at most three quarters full; a key's k-th probe is k slots behind the one before, which reaches every slot.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._slots: NDArray[np.int32] = np.full(16, -1, np.int32)
        self._used = 0

    def find(self, rows: Rows, key: bytes) -> int:
        """The row of the key, or -1."""
        low, high = _KEY.unpack(_key(key))
        mask = len(self._slots) - 1
        at, step = _mixed(low ^ high) & mask, 0
        keys = rows[self._field]
        while (row := int(self._slots[at])) >= 0 and keys[row].tobytes() != _key(key):
            step += 1
            at = (at + step) & mask
        return row

    def find_all(self, rows: Rows, keys: Sequence[bytes]) -> Ints:
        """The row of each key, or -1."""
        wanted, held = _keys(keys), rows[self._field]
        low, high, mask = held[:, 0], held[:, 1], len(self._slots) - 1
        home = self._home(wanted)
        found: Ints = self._slots[home].astype(np.int64)
        same = (low[found] == wanted[:, 0]) & (high[found] == wanted[:, 1])
        if every(same):
            return found
        left, first = ((found >= 0) & ~same).nonzero()[0], 1  # of a free slot nobody went on
        found[left] = -1
        while len(left):  # once, but for the few with many others before them
            there = self._slots[(home[left, None] + _steps(first)) & mask]
            taken, asked = there >= 0, wanted[left]
            same = taken & (low[there] == asked[:, :1]) & (high[there] == asked[:, 1:])
            which, probe = np.nonzero(same)
            found[left[which]] = there[which, probe]
            left, first = left[taken.all(1) & ~same.any(1)], first + _PROBES
        return found

    def add(self, rows: Rows, new: Iterable[int]) -> None:
        """Index rows whose keys are not in it, and different."""
        left = np.fromiter(new, np.int64)
        self._used += len(left)
        size = len(self._slots)
        while self._used > size * 3 // 4:
            size *= 2
        if size > len(self._slots):
            left = np.concatenate((self._slots[self._slots >= 0].astype(np.int64), left))
            self._slots = np.full(size, -1, np.int32)
        at, step = self._home(rows[self._field][left]), 0
        while len(left):
            free = self._slots[at] < 0
            self._slots[at[free]] = left[free]  # of several, one gets the slot
            on = self._slots[at] != left
            step += 1
            left, at = left[on], (at[on] + step) & (size - 1)

    def keep(self, rows: Rows, used: int) -> None:
        """Forget all rows from `used` on."""
        kept = self._slots[(self._slots >= 0) & (self._slots < used)]
        self._slots[:] = -1
        self._used = 0
        self.add(rows, kept.tolist())

    def _home(self, keys: NDArray[np.uint64]) -> Ints:
        mixed = keys[:, 0] ^ keys[:, 1]
        mixed = (mixed ^ (mixed >> _HALF)) * _MIX_WORD
        return (mixed >> _HALF).view(np.int64) & (len(self._slots) - 1)


_PROBES: Final = 8  # at once


@cache
def _steps(first: int) -> Ints:
    """How far behind the first slot the next ones are."""
    at = np.arange(first, first + _PROBES)
    return at * (at + 1) // 2


_MIX: Final = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
_MIX_WORD, _HALF = np.uint64(_MIX), np.uint64(32)


def _mixed(word: int) -> int:
    """The upper half depends on every bit of the word, so that keys need not be random in all of them."""
    return (word ^ (word >> 32)) * _MIX % 2**64 >> 32


def _put_back(values: dict[K, T], before: list[tuple[K, T | None]]) -> None:
    for key, value in reversed(before):
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value


def every(flags: Flags) -> bool:
    return bool(np.count_nonzero(flags) == len(flags))  # its own method costs three times as much


def _once(numbers: NDArray[np.uint8]) -> Flags:
    """Where a number stands that stands nowhere else."""
    counts = np.bincount(numbers)
    if np.count_nonzero(counts) == len(numbers):
        return np.ones(len(numbers), np.bool_)
    once: Flags = counts[numbers] == 1
    return once


def _key(key: bytes) -> bytes:
    if len(key) not in (0, KEY_BYTES):
        raise ValueError(f"a session or a network is named by {KEY_BYTES} bytes, not {len(key)}")
    return key or bytes(KEY_BYTES)


def _keys(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    if set(map(len, keys)) != {KEY_BYTES}:
        keys = [_key(key) for key in keys]
    return np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
