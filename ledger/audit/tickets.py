"""Live tickets as columns of numbers, found by their hash.

Invariant: a ticket's column says what the log says of the ticket, its session and its broadcast, and where the cells of
its credits are; what cannot be said in numbers that sums of are exact has no `BROADCAST`.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ledger.audit.cells import CELL_BITS, Cells, doubled
from ledger.audit.facts import Facts, Ints
from ledger.audit.facts import Ticket as KnownTicket
from ledger.claims import Claims
from ledger.keys import PUBLIC_KEY_BYTES
from ledger.layout import TICKET_BODY, record_ids
from ledger.runs import Bools
from ledger.served import NETWORK_BYTES
from ledger.ticket import ViewerClass

_HEADS: Final = 1 << 18  # places where tickets are looked for first, by their hash
# Another in each process: a hub that looks for tickets whose hashes meet cannot know which do.
_SALT: Final = hash("tickets") | 1
_LIMIT: Final = 1 << 62  # what is counted in columns is below: sums of it are exact

# Rows of the matrix of live tickets.
(
    START,  # segment of the broadcast with which the first of its two cells begins
    LOW,  # its first segment and the one after the last
    HIGH,
    SETTLE_S,
    BUDGET,
    BROADCAST,  # numbers of things in memory
    NODE,
    NETWORK,
    GROUP,  # receipts of one group see each other's credits; those of different groups do not
    ACCOUNT,
    PLAIN,
    POOL,
    ISSUED,
    SESSION_0,  # places of its cells; 0 where there is none
    SESSION_1,
    NETWORK_0,
    NETWORK_1,
    HASH,  # four rows, as in ledger.claims, and so on: what is looked for, and not said of those that are found
    _,
    _,
    _,
    SESSION_ID,
    _,
    NETWORK_ID,
    _,
    NETWORKS,
) = range(26)
_FIELDS: Final = 26


class Tickets:
    def __init__(self, facts: Facts, sessions: Cells, networks: Cells) -> None:
        self._facts = facts
        self._sessions = sessions
        self._networks = networks
        self._cleared = 0
        self.clear()

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Let go of all. Cells are to be cleared with them."""
        self._cleared += 1
        self._count = 0
        self._heads: Ints = np.zeros(_HEADS, np.int64)  # by some bits of the hash: the last that was loaded
        self._next: Ints = np.zeros(1_024, np.int64)  # of the same bits: the one before; 0 after the first
        self.columns: Ints = np.zeros((_FIELDS, 1_024), np.int64)
        self.viewer_keys = np.zeros((1_024, PUBLIC_KEY_BYTES), np.uint8)
        self._met = np.zeros(1_024, np.int64)
        self.numbers: dict[bytes, int] = {}  # of sessions, networks, keys, accounts, broadcasts; from 0

    def find(self, claims: Claims, names: Ints) -> tuple[Ints, Ints] | None:
        """Places and columns (without names) of the tickets of some receipts, whose names stand in `claims`; None when
        one was never issued, or is of another session or network than is said."""
        if claims.places_in != self._cleared:
            claims.places_in, claims.places = self._cleared, np.zeros_like(claims.places)
        places: Ints = claims.places.take(names)
        if not places.all():
            wanted = np.zeros(len(claims.places), np.bool_)
            wanted[names] = True
            new = np.flatnonzero(wanted & (claims.places == 0))
            found = self._named(claims.names[:, new])
            if found is None:
                return None
            claims.places[new] = found
            places = claims.places.take(names)
        return places, self.columns[:HASH].take(places, axis=1)

    def _named(self, names: Ints) -> Ints | None:
        """Places of the tickets of different names."""
        hashes = names[:4]
        places: Ints = self._heads.take(_bits(hashes[0]))
        wrong = np.flatnonzero((self.columns[HASH : HASH + 4, places] != hashes).any(axis=0))
        if len(wrong):
            found = self._search(hashes[:, wrong], places[wrong])
            if found is None:
                return None
            places[wrong] = found
        return places if (self.columns[HASH:, places] == names).all() else None

    def _search(self, hashes: Ints, places: Ints) -> Ints | None:
        """The places of tickets that are not at these, which have the same bits; from the log where not in memory."""
        left = np.arange(len(places))
        while len(left):
            places[left] = self._next.take(places[left])
            left = left[places[left] > 0]
            left = left[(self.columns[HASH : HASH + 4, places[left]] != hashes[:, left]).any(axis=0)]
        new = np.flatnonzero(places == 0)
        if len(new):
            keys = [row.tobytes() for row in hashes[:, new].T]
            once = list(dict.fromkeys(keys))
            records = record_ids(once).tolist()
            known = [ticket for key in records if (ticket := self._facts.tickets.get(key)) is not None]
            if len(known) < len(once):
                return None
            at = dict(zip(once, self._load(once, known), strict=True))
            places[new] = [at[key] for key in keys]
        return places

    def firsts(self, groups: Ints) -> Bools:
        """Which of these receipts are the first of their group."""
        if len(self._met) < len(self.numbers):
            self._met = np.zeros(2 * len(self.numbers), np.int64)
        order = np.arange(len(groups))
        self._met[groups[::-1]] = order[::-1]
        firsts: Bools = self._met.take(groups) == order
        return firsts

    def _load(self, hashes: list[bytes], known: list[KnownTicket]) -> range:
        """Returns their places."""
        count, begin = len(known), self._count + 1  # the first column stands for none
        end = begin + count
        while end > self.columns.shape[1]:
            self.columns = np.concatenate([self.columns, np.zeros_like(self.columns)], axis=1)
            self.viewer_keys, self._next = doubled(self.viewer_keys), doubled(self._next)
        self._count += count
        rows = np.frombuffer(b"".join([ticket.body for ticket in known]), TICKET_BODY)
        named = rows["session"].tolist()
        sessions = [session for s in named if (session := self._facts.sessions.get(s)) is not None]
        networks = [session.network for session in sessions]
        lengths = np.array([len(network) for network in networks])
        hash_words = _words(b"".join(hashes), 4)
        self._link(_bits(hash_words[0]), np.arange(begin, end))
        padded = b"".join([network.ljust(NETWORK_BYTES, b"\0") for network in networks])
        self.viewer_keys[begin:end] = rows["viewer_key"].copy().view(np.uint8).reshape(count, -1)

        of = [ticket.broadcast for ticket in known]
        firsts = {key: self._first(key) for key in set(of)}
        first = np.array([firsts[key] for key in of], np.int64)
        fit = (first >= 0) & ((lengths == NETWORK_BYTES) | (lengths == 0))
        numbers = []
        for name in ("first", "last", "settle_by_s", "byte_budget"):
            column = rows[name].astype(np.uint64)
            fit &= column < _LIMIT
            numbers.append((column & np.uint64(_LIMIT - 1)).astype(np.int64))
        low, high = np.maximum(numbers[0] - first, 0), np.maximum(numbers[1] + 1 - first, 0)
        chunk = low // CELL_BITS
        numbered = [self._number(b"w" + network) for network in networks]
        self.columns[:, begin:end] = np.stack(
            [
                chunk * CELL_BITS,
                low,
                high,
                numbers[2],
                numbers[3],
                self._numbers(b"b", of),
                self._numbers(b"k", rows["node_key"].tolist()),
                numbered,
                [
                    number if network else self._number(b"s" + session)
                    for number, network, session in zip(numbered, networks, named, strict=True)
                ],
                [self._number(b"f" + s.account_id) if s.account_id else -1 for s in sessions],
                rows["viewer_class"] == ViewerClass.PLAIN,
                [ticket.pool for ticket in known],
                [ticket.position for ticket in known],
                *self._cells(of, named, networks, chunk, low, high),
                *hash_words,
                *_words(b"".join(named), 2),
                *_words(padded, 2),
                lengths,
            ]
        )
        self.columns[:HASH, begin:end] *= fit
        self.columns[BROADCAST, begin:end] -= ~fit
        return range(begin, end)

    def _link(self, heads: Ints, places: Ints) -> None:
        while len(places):
            self._next[places] = self._heads.take(heads)
            self._heads[heads] = places
            again = self._heads.take(heads) != places  # of several that have the same bits, one is first
            heads, places = heads[again], places[again]

    def _cells(
        self,
        of: list[bytes],
        sessions: list[bytes],
        networks: list[bytes],
        chunk: Ints,
        low: Ints,
        high: Ints,
    ) -> npt.NDArray[np.int64]:
        """Places of the cells of each ticket: two of its session, two of its network; 0 where there is none."""
        places = np.zeros((4, len(of)), np.int64)
        for half in (0, 1):
            number = (chunk + half).astype(">i8").tobytes()
            which = np.flatnonzero((high > low) & (high > (chunk + half) * CELL_BITS)).tolist()
            at = {i: of[i] + number[8 * i : 8 * i + 8] for i in which}
            places[half, which] = self._sessions.places([key + sessions[i] for i, key in at.items()])
            shared = [i for i in which if networks[i]]
            places[2 + half, shared] = self._networks.places([at[i] + networks[i] for i in shared])
        return places

    def _first(self, broadcast: bytes) -> int:
        """The sequence of its first segment, -1 when it is no number for columns."""
        known = self._facts.broadcast(broadcast)
        assert known is not None
        return known.manifest.first if 0 <= known.manifest.first < _LIMIT else -1

    def _numbers(self, kind: bytes, things: list[bytes]) -> list[int]:
        """Of things of which there are few."""
        numbers = {thing: self._number(kind + thing) for thing in set(things)}
        return [numbers[thing] for thing in things]

    def _number(self, thing: bytes) -> int:
        return self.numbers.setdefault(thing, len(self.numbers))


def _bits(words: Ints) -> Ints:
    bits: Ints = words * _SALT >> 46 & _HEADS - 1
    return bits


def _words(ids: bytes, words: int) -> Ints:
    rows: Ints = np.frombuffer(ids, np.int64).reshape(-1, words).T
    return rows
