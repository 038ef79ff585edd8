"""Receipts of viewers who just watch on, credited at once: as one after the other, and back again."""

import random
from contextlib import closing
from uuid import UUID

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ledger.audit import tickets as t
from ledger.audit.cells import CELL_BITS, CELL_WORDS, Cells
from ledger.audit.credits import Credits
from ledger.audit.facts import Facts, Ints
from ledger.audit.fresh import Sums
from ledger.audit.growth import grow
from ledger.audit.store import Store
from ledger.credit import CreditSet, Units

CELL = (1 << CELL_BITS) - 1
SEGMENTS = 2_000
SUMS = np.cumsum([0, *[1_000 + 7 * n % 400 for n in range(SEGMENTS)]])


class Viewer:
    """A session with a ticket over two cells; `has` and `network_has` are relative to the first of them."""

    def __init__(self, dice: random.Random, n: int) -> None:
        self.id, self.group = UUID(int=n + 1), n
        self.network = dice.randbytes(16) if dice.random() < 0.8 else b""
        self.start = CELL_BITS * dice.randrange(2)
        self.cells = dice.choice([1, 2, 2])
        self.edge = dice.choice([0, 3, 500, 511, 512, 513, 600])  # what it has is up to about here
        most = self.cells * CELL_BITS
        self.low = max(0, min(self.edge, most - 1) - dice.choice([0, 1, 400]))
        has = run(self.low, min(self.edge, most))
        if dice.random() < 0.1:
            has &= ~(1 << dice.randrange(most))
        self.levels = [has] if self.network and has else []
        if self.network and dice.random() < 0.15:  # somebody else there has something, too
            other = dice.choice([run(dice.randrange(most), most), has & run(0, self.low + 1)])
            self.levels = [level for level in (has | other, has & other) if level]
        self.has = has

    def column(self, credits: Credits) -> list[int]:
        column = [0] * t.HASH
        column[t.START], column[t.GROUP] = self.start, self.group
        for half in range(self.cells):
            at = bytes([half]) * 24
            place = column[t.SESSION_0 + half] = credits.sessions.place(at + self.id.bytes)
            put(credits.sessions, place, [self.has >> half * CELL_BITS & CELL])
            if self.network:
                place = column[t.NETWORK_0 + half] = credits.networks.place(at + self.network)
                put(credits.networks, place, [level >> half * CELL_BITS & CELL for level in self.levels])
        return column

    def claim(self, dice: random.Random) -> tuple[int, int]:
        """What it is to claim next, mostly some more."""
        most = self.cells * CELL_BITS
        self.edge = max(1, min(most, self.edge + dice.choice([1, 5, 5, 5, 60, 0, -3])))
        low = min(self.edge - 1, self.low + dice.choice([0, 0, 0, 2]))
        if dice.random() < 0.05:
            low = min(self.edge - 1, max(0, low - 4))
        return self.start + low, self.start + self.edge


def run(low: int, end: int) -> Units:
    return (1 << max(end, low)) - (1 << low)


def put(cells: Cells, place: int, levels: list[Units]) -> None:
    rows = [level.to_bytes(CELL_WORDS * 8, "little") for level in [*levels, 0, 0][: cells.levels]]
    cells.put(np.array([place]), np.frombuffer(b"".join(rows), "<u8").astype(np.uint64)[None])


def held(credits: Credits, tickets: Ints) -> tuple[list[list[Units]], ...]:
    """All that the cells of these tickets hold: of its session and its network, level by level."""

    def of(cells: Cells, fields: Ints) -> list[list[Units]]:
        rows = [np.split(cells.bits(places), cells.levels, axis=1) for places in fields]
        whole: list[list[Units]] = []
        for n in range(fields.shape[1]):
            levels = []
            for level in range(cells.levels):
                halves = [half[level][n].astype("<u8").tobytes() for half in rows]
                levels.append(int.from_bytes(b"".join(halves), "little"))
            whole.append(levels)
        return whole

    return of(credits.sessions, tickets[t.SESSION_0 : t.SESSION_1 + 1]), of(
        credits.networks, tickets[t.NETWORK_0 : t.NETWORK_1 + 1]
    )


@given(st.integers(0, 10**9), st.sampled_from([1, 2, 3]))
def test_what_grows_is_credited_as_one_after_the_other_and_can_be_taken_back(seed: int, limit: int) -> None:
    dice = random.Random(seed)
    with closing(Store()) as store:
        credits = Credits(store, Facts(store))
        viewers = [Viewer(dice, n) for n in range(dice.randrange(1, 8))]
        known = [viewer.column(credits) for viewer in viewers]
        who = dice.choices(range(len(viewers)), k=dice.randrange(1, 30))
        tickets = np.array([known[n] for n in who], np.int64).T
        claims = [viewers[n].claim(dice) for n in who]
        low, end = np.array(claims, np.int64).T
        usual = np.array([dice.random() < 0.95 for _ in who])
        before = held(credits, tickets)
        grown = grow(credits, tickets, low, end, usual, limit, Sums(SUMS, 0))
        if grown is None:
            assert held(credits, tickets) == before
            return
        answers = dict(
            zip(
                grown.which.tolist(),
                zip(grown.units.tolist(), grown.sizes.tolist(), strict=True),
                strict=True,
            )
        )
        assert len(answers) == len(grown.which)
        one_by_one = CreditSet()
        for viewer in viewers:
            one_by_one._by_session[viewer.id] = viewer.has
            one_by_one._by_network[viewer.network] = list(viewer.levels)
        for i, n in enumerate(who):
            viewer = viewers[n]
            assert (i in answers) == (who.index(n) in answers)  # all of a group, or none
            if i not in answers:
                continue
            assert usual[i]
            claimed = run(claims[i][0] - viewer.start, claims[i][1] - viewer.start)
            fresh = one_by_one.missing(viewer.id, claimed)
            if viewer.network:
                assert one_by_one.within_network_limit(viewer.network, fresh, limit) == fresh
            segments = [viewer.start + s for s in range(2 * CELL_BITS) if fresh >> s & 1]
            assert answers[i] == (len(segments), sum(int(SUMS[s + 1] - SUMS[s]) for s in segments))
            one_by_one.credit(viewer.id, viewer.network, fresh)
        sessions, networks = held(credits, tickets)
        for i, n in enumerate(who):
            viewer = viewers[n]
            assert sessions[i] == [one_by_one.credited(viewer.id)]
            levels = one_by_one._by_network[viewer.network] if viewer.network else []
            assert networks[i] == [*levels, 0, 0][:2]
        grown.undo()
        assert held(credits, tickets) == before


def test_who_only_watches_on_is_always_answered() -> None:
    with closing(Store()) as store:
        credits = Credits(store, Facts(store))
        dice = random.Random(1)
        viewers = [Viewer(dice, n) for n in range(40)]
        for viewer in viewers:
            viewer.has, viewer.levels, viewer.low, viewer.cells = 0, [], 5, 2
        columns = [viewer.column(credits) for viewer in viewers]
        for round_ in range(3):  # 5 to 1,005, over the edge of the first cell
            ends = [5 + 50 * (k + 1) + 330 * round_ for k in range(6)]
            claims = [
                (n, viewer.start + 5, viewer.start + end) for end in ends for n, viewer in enumerate(viewers)
            ]
            tickets = np.array([columns[n] for n, _, _ in claims], np.int64).T
            low, end = np.array([claim[1:] for claim in claims], np.int64).T
            grown = grow(credits, tickets, low, end, np.ones(len(claims), np.bool_), 2, Sums(SUMS, 0))
            assert grown is not None
            assert sorted(grown.which.tolist()) == list(range(len(claims)))
