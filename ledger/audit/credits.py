"""Credits and live tickets, as rows of numbers: what is judged in columns, or one by one, stands here once.

Invariants: as ledger.credit: a unit is credited to a session once, and the levels of a network say for how many
sessions each of its segments is. A bitmap is cut into cells of 512 segments; a ticket covers at most two of them, side
by side. Cells and tickets that are not in memory are on disk, and memory is bounded.
"""

from typing import Final, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt

from ledger.audit.facts import Broadcast, Facts, Ints, ticket_fields
from ledger.audit.runs import Bools, Runs, Words, bits, ends
from ledger.audit.store import Store
from ledger.credit import CreditSet, Units
from ledger.keys import PUBLIC_KEY_BYTES
from ledger.ticket import Ticket, ViewerClass

T = TypeVar("T", bound=np.generic)
CELL_BITS: Final = 512
CELL_WORDS: Final = CELL_BITS // 64
LEVELS: Final = 2  # of a network, in its cell; more are rare and kept beside it
ID_WORDS: Final = 2  # of a session's id, and of a network's commitment
HASH_WORDS: Final = 4
_HEADS: Final = 1 << 18  # places where tickets are looked for first, by their hash
BOUND: Final = 49_152  # tickets in memory, and cells of each kind for twice as many
NETWORK_BYTES: Final = 8 * ID_WORDS
_LIMIT: Final = 1 << 62  # what is counted in columns is below: sums of it are exact

# Rows of the matrix of live tickets.
(
    CHUNK,  # the first of its two cells: segments CHUNK * 512 of the broadcast and following
    LO,  # first segment and the one after the last, relative to that cell's first
    HI,
    SETTLE_S,
    BUDGET,
    BROADCAST,  # numbers of things in memory
    NODE,
    NETWORK,
    NETWORK_WHOLE,  # whether its commitment has the usual 16 bytes
    GROUP,  # receipts of one group see each other's credits; those of different groups do not
    ACCOUNT,
    PLAIN,
    POOL,
    ISSUED,
    SESSION_0,  # places of its cells; 0 where there is none
    SESSION_1,
    NETWORK_0,
    NETWORK_1,
    IN_COLUMNS,  # whether its numbers are small enough
) = range(19)
_FIELDS: Final = 19


class Cells:
    """Sets of 512 segments by key, of as many levels as are asked for: runs as long as each level is one, then bits.

    Row 0 is empty and stays so: where a ticket has no cell.
    """

    def __init__(self, store: Store, name: bytes, levels: int) -> None:
        self._store, self._name = store, name
        self.levels = levels
        self.in_bits: Bools  # where a level is not one run: `_rows` has them all
        self._runs: npt.NDArray[np.int16]
        self._rows: Words
        self._changed: Bools
        self.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, key: bytes) -> int:
        """The row of a key, from the store or new."""
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._keys)
            self._keys.append(key)
            if place == len(self.in_bits):
                self._runs = np.concatenate([self._runs, np.zeros_like(self._runs)], axis=2)
                self._rows, self.in_bits = _doubled(self._rows), _doubled(self.in_bits)
                self._changed = _doubled(self._changed)
            data = self._store.get(self._name + key)
            if data is not None:
                self.put(np.array([place]), np.frombuffer(data, "<u8").astype(np.uint64)[None])
                self._changed[place] = False
        return place

    def key(self, place: int) -> bytes:
        return self._keys[place]

    def runs(self, places: Ints) -> list[Runs]:
        """Of each level, where the cells are not `in_bits`."""
        return [Runs(*level.take(places, axis=1)) for level in self._runs]

    def put_runs(self, places: Ints, levels: list[Runs]) -> None:
        """Exchange cells. A place comes once, unless it is 0 and its runs are empty."""
        for known, new in zip(self._runs, levels, strict=True):
            known[0, places], known[1, places] = new.start, new.end
        self.in_bits[places] = False
        self._changed[places] = True

    def bits(self, places: Ints) -> Words:
        """The levels of each cell, one after the other."""
        rows: Words = self._rows[places]
        written = ~self.in_bits[places]
        if written.any():
            runs = self.runs(places[written])
            rows[written] = np.concatenate([bits(level) for level in runs], axis=1)
        return rows

    def put(self, places: Ints, rows: Words) -> None:
        """Exchange cells. A place comes once, unless it is 0 and its row is empty."""
        alike = np.ones(len(places), np.bool_)
        for known, level in zip(self._runs, np.split(rows, self.levels, axis=1), strict=True):
            known[0, places], known[1, places], one = ends(level)
            alike &= one
        self._rows[places] = rows
        self.in_bits[places] = ~alike
        self._changed[places] = True

    def flush(self) -> None:
        places = np.flatnonzero(self._changed)
        rows = self.bits(places)
        some = rows.any(axis=1)
        if some.any():
            keys, data = self._keys, rows.astype("<u8", copy=False)
            written = zip(places[some].tolist(), data[some], strict=True)
            self._store.write([(self._name + keys[i], row.tobytes()) for i, row in written])
        self._changed[:] = False

    def clear(self) -> None:
        self._runs = np.zeros((self.levels, 2, 1_024), np.int16)
        self._rows = np.zeros((1_024, self.levels * CELL_WORDS), np.uint64)
        self.in_bits = np.zeros(1_024, np.bool_)
        self._changed = np.zeros(1_024, np.bool_)
        self._places: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""]


class Credits:
    def __init__(self, store: Store, facts: Facts) -> None:
        self._facts = facts
        self.sessions = Cells(store, b"C", 1)
        self.networks = Cells(store, b"N", LEVELS)
        # Levels beyond those of the cell, by its key.
        self.more_levels = store.table(b"L", _join, _split, 1_024)
        self._clear()
        store.add(self)

    def _clear(self) -> None:
        self.sessions.clear()
        self.networks.clear()
        self._slots: dict[bytes, int] = {}  # ticket hash -> column of `tickets`
        self._heads = np.zeros(_HEADS, np.int32)
        self.tickets: Ints = np.zeros((_FIELDS, 1_024), np.int64)
        # The same columns' ticket hash, session, network (where it has 16 bytes) and viewer key.
        self._hashes: Words = np.zeros((1_024, HASH_WORDS), np.uint64)
        self.session_ids: Words = np.zeros((1_024, ID_WORDS), np.uint64)
        self.network_ids: Words = np.zeros((1_024, ID_WORDS), np.uint64)
        self.viewer_keys = np.zeros((1_024, PUBLIC_KEY_BYTES), np.uint8)
        self.numbers: dict[bytes, int] = {}  # of sessions, networks, keys, accounts, broadcasts; from 0

    # --- bounded memory

    def flush(self) -> None:
        self.sessions.flush()
        self.networks.flush()

    def trim(self) -> None:
        if max(len(self._slots), len(self.sessions) // 2, len(self.networks) // 2) > BOUND:
            self.flush()
            self._clear()

    # --- tickets

    def number(self, thing: bytes) -> int:
        return self.numbers.setdefault(thing, len(self.numbers))

    def places(self, hashes: Words) -> Ints | None:
        """The columns of these tickets; None when one was never issued."""
        places: Ints = self._heads[hashes[:, 0] & np.uint64(_HEADS - 1)].astype(np.int64)
        wrong = np.flatnonzero((self._hashes[places] != hashes).any(axis=1))
        for i in wrong.tolist():  # not in memory, or another one is found at its place
            place = self.load(hashes[i].tobytes())
            if place is None:
                return None
            places[i] = place
        return places

    def load(self, hash_: bytes) -> int | None:
        """The column of a ticket, None when it was never issued."""
        slot = self._slots.get(hash_)
        if slot is not None:
            return slot
        known = self._facts.tickets.get(hash_)
        if known is None:
            return None
        ticket = ticket_fields(known.body)
        session = self._facts.sessions.get(ticket.session)
        broadcast = self._facts.broadcast(known.broadcast)
        assert session is not None
        assert broadcast is not None
        slot = self._slots[hash_] = len(self._slots) + 1  # the first stands for none
        if slot == self.tickets.shape[1]:
            self.tickets = np.concatenate([self.tickets, np.zeros_like(self.tickets)], axis=1)
            self._hashes, self.session_ids = _doubled(self._hashes), _doubled(self.session_ids)
            self.network_ids, self.viewer_keys = _doubled(self.network_ids), _doubled(self.viewer_keys)
        first = broadcast.manifest.first
        low, high = max(ticket.first - first, 0), max(ticket.last + 1 - first, 0)
        chunk = low // CELL_BITS
        start = chunk * CELL_BITS
        session_number, network_number = (
            self.number(b"s" + ticket.session),
            self.number(b"w" + session.network),
        )
        cells = [0, 0, 0, 0]
        for n in range(chunk, (high - 1) // CELL_BITS + 1) if high > low else ():
            at = known.broadcast + n.to_bytes(8)
            cells[n - chunk] = self.sessions.place(at + ticket.session)
            if session.network:
                cells[2 + n - chunk] = self.networks.place(at + session.network)
        numbers = [
            chunk,
            low - start,
            high - start,
            ticket.settle_by_s,
            ticket.byte_budget,
            self.number(b"b" + known.broadcast),
            self.number(b"k" + ticket.node_key),
            network_number,
            int(len(session.network) == NETWORK_BYTES),
            network_number if session.network else session_number,
            self.number(b"f" + session.account_id) if session.account_id else -1,
            int(ticket.viewer_class == ViewerClass.PLAIN),
            known.pool,
            known.position,
            *cells,
        ]
        fit = first >= 0 and max(numbers) < _LIMIT and max(first, ticket.last) < _LIMIT
        self.tickets[:, slot] = [*numbers, 1] if fit else [0] * _FIELDS
        self._hashes[slot] = np.frombuffer(hash_, np.uint64)
        self._heads[int(self._hashes[slot, 0]) & (_HEADS - 1)] = slot
        self.session_ids[slot] = np.frombuffer(ticket.session, np.uint64)
        if len(session.network) == NETWORK_BYTES:
            self.network_ids[slot] = np.frombuffer(session.network, np.uint64)
        self.viewer_keys[slot] = np.frombuffer(ticket.viewer_key, np.uint8)
        return slot

    def crowded(self, places: npt.NDArray[np.int64]) -> bool:
        """Whether any of these cells of networks has more levels than it has room for."""
        return any(self.more_levels.get(self.networks.key(i)) for i in places.ravel().tolist() if i)

    # --- one by one

    def scratch(self, broadcast: Broadcast, tickets: list[tuple[Ticket, bytes]]) -> "Scratch":
        """What the sessions and networks of these tickets (each with its network) are credited for."""
        first, scratch = broadcast.manifest.first, Scratch()
        seen: set[bytes] = set()
        for ticket, network in tickets:
            low, high = max(ticket.first_sequence - first, 0), max(ticket.last_sequence + 1 - first, 0)
            for chunk in range(low // CELL_BITS, -(-high // CELL_BITS)):
                at, shift = broadcast.key + chunk.to_bytes(8), chunk * CELL_BITS
                key = b"s" + at + ticket.session_id.bytes
                if key not in seen:
                    seen.add(key)
                    units = _units(self.sessions.bits(np.array([self.sessions.place(key[1:])])))
                    scratch.credit(ticket.session_id, b"", units << shift)
                key = b"n" + at + network
                if network and key not in seen:
                    seen.add(key)
                    levels = self._levels(self.networks.place(key[1:]))
                    scratch.merge(network, [units << shift for units in levels])
        return scratch

    def credit(self, session_id: UUID, network: bytes, broadcast: Broadcast, units: Units) -> None:
        """Add units (relative to the broadcast's first segment) that the session lacks."""
        while units:
            chunk = ((units & -units).bit_length() - 1) // CELL_BITS
            part = units >> (chunk * CELL_BITS) & ((1 << CELL_BITS) - 1)
            units ^= part << (chunk * CELL_BITS)
            at = broadcast.key + chunk.to_bytes(8)
            self._add(self.sessions, self.sessions.place(at + session_id.bytes), part)
            if not network:
                continue
            place = self.networks.place(at + network)
            part = self._add(self.networks, place, part)
            key = self.networks.key(place)
            more = self.more_levels.get(key) or []
            for i, level_units in enumerate(more):
                more[i], part = level_units | part, level_units & part
            if part:
                more.append(part)
            if more:
                self.more_levels.put(key, more)

    def _levels(self, place: int) -> list[Units]:
        """Of a network's cell."""
        known = _split(self.networks.bits(np.array([place])).astype("<u8").tobytes())
        return [u for u in known if u] + (self.more_levels.get(self.networks.key(place)) or [])

    def _add(self, cells: Cells, place: int, units: Units) -> Units:
        """To the first level, and to each following what was there before. Returns what is too much for the last."""
        at = np.array([place])
        levels = _split(cells.bits(at).astype("<u8").tobytes())
        for n, level in enumerate(levels):
            levels[n], units = level | units, level & units
        cells.put(at, np.frombuffer(_join(levels), "<u8").astype(np.uint64)[None])
        return units


class Scratch(CreditSet):
    """The credits that some tickets can touch, taken from their cells to try receipts on. Changes nothing there."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions: dict[UUID, Units] = {}
        self._networks: dict[bytes, list[Units]] = {}

    def copy(self) -> "Scratch":
        twin = Scratch()
        twin._sessions = dict(self._sessions)
        twin._networks = {network: list(levels) for network, levels in self._networks.items()}
        return twin

    def credited(self, session_id: UUID) -> Units:
        return self._sessions.get(session_id, 0)

    def missing(self, session_id: UUID, units: Units) -> Units:
        return units & ~self.credited(session_id)

    def within_network_limit(self, network: bytes, units: Units, limit: int) -> Units:
        levels = self._networks.get(network, [])
        return units & ~levels[limit - 1] if len(levels) >= limit else units

    def credit(self, session_id: UUID, network: bytes, units: Units) -> None:
        self._sessions[session_id] = self.credited(session_id) | units
        if network:
            self.merge(network, [units])

    def merge(self, network: bytes, more: list[Units]) -> None:
        """Add what so many more sessions of the network are credited for."""
        levels = self._networks.setdefault(network, [])
        for carry in more:
            for k, level in enumerate(levels):
                levels[k], carry = level | carry, level & carry
            if carry:
                levels.append(carry)


def _doubled(rows: npt.NDArray[T]) -> npt.NDArray[T]:
    return np.concatenate([rows, np.zeros_like(rows)])


def _units(row: Words) -> Units:
    return int.from_bytes(row.astype("<u8").tobytes(), "little")


def _join(levels: list[Units]) -> bytes:
    return b"".join([u.to_bytes(CELL_WORDS * 8, "little") for u in levels])


def _split(data: bytes) -> list[Units]:
    size = CELL_WORDS * 8
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
