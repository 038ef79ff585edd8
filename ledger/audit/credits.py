"""Credits and live tickets, as rows of numbers: what is judged in columns, or one by one, stands here once.

Invariants: as ledger.credit: a unit is credited to a session once, and the levels of a network say for how many
sessions each of its segments is. A bitmap is cut into cells of 512 segments; a ticket covers at most two of them, side
by side. Cells and tickets that are not in memory are on disk, and memory is bounded.
"""

from typing import Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from ledger.audit.cells import CELL_BITS, CELL_WORDS, Cells
from ledger.audit.facts import Broadcast, Facts
from ledger.audit.store import Store
from ledger.audit.tickets import Tickets
from ledger.credit import CreditSet, Units
from ledger.runs import Words
from ledger.ticket import Ticket

LEVELS: Final = 2  # of a network, in its cell; more are rare and kept beside it
BOUND: Final = 49_152  # tickets in memory, and cells of each kind for twice as many


class Credits:
    def __init__(self, store: Store, facts: Facts) -> None:
        self.sessions = Cells(store, b"C", 1)
        self.networks = Cells(store, b"N", LEVELS)
        self.tickets = Tickets(facts, self.sessions, self.networks)
        # Levels beyond those of the cell, by its key.
        self.more_levels = store.table(b"L", _join, _split, 1_024)
        store.add(self)

    # --- bounded memory

    def flush(self) -> None:
        self.sessions.flush()
        self.networks.flush()

    def trim(self) -> None:
        if max(len(self.tickets), len(self.sessions) // 2, len(self.networks) // 2) > BOUND:
            self.flush()
            self.tickets.clear()
            self.sessions.clear()
            self.networks.clear()

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


def _units(row: Words) -> Units:
    return int.from_bytes(row.astype("<u8").tobytes(), "little")


def _join(levels: list[Units]) -> bytes:
    return b"".join([u.to_bytes(CELL_WORDS * 8, "little") for u in levels])


def _split(data: bytes) -> list[Units]:
    size = CELL_WORDS * 8
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
