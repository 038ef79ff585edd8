"""Receipts of viewers who just watch on: each receipt of a session claims what it has, and more behind that.

Invariant: for the receipts that `grow` answers, it finds and credits exactly what ledger.audit.fresh would, one after
the other; about all others it says nothing and changes nothing.

Most receipts are such: then all of a session's are answered at once, however many there are. What a session has before
each is the furthest that those before it claimed.
"""

from functools import partial
from typing import Final, NamedTuple

import numpy as np

from ledger.audit import tickets as t
from ledger.audit.cells import CELL_BITS, Cells
from ledger.audit.credits import Credits
from ledger.audit.facts import Ints
from ledger.audit.fresh import Sums, Undo, all_of, which_of
from ledger.runs import Bools, Runs

_INDEX_BITS: Final = 32
_INDEX: Final = (1 << _INDEX_BITS) - 1
_APART: Final = 1 << 20  # more than the segments of two cells


class _Joined(NamedTuple):
    """Runs, as in ledger.runs, over two cells: what sessions have from the start of the first cell on."""

    start: Ints
    end: Ints


class Grown(NamedTuple):
    """One value for each receipt that is answered, in any order."""

    which: Ints  # index of the receipt
    units: Ints  # segments that are new
    sizes: Ints  # their bytes
    undo: Undo


def grow(
    credits: Credits, tickets: Ints, low: Ints, end: Ints, usual: Bools, limit: int, sums: Sums
) -> Grown | None:
    """Of receipts, in their order, each of which claims the segments [low, end) of the broadcast: all of a group where
    all are `usual`, of one session that alone has credits in its network, and each claims something new that begins
    where the credits end. What is usual is accepted, and its claim one run. None when there is no such group."""
    if limit < 1 or not usual.any():
        return None
    # By groups, and in order within each.
    ordered = (tickets[t.GROUP] << _INDEX_BITS) + np.arange(len(usual))
    ordered.sort()
    order, groups = ordered & _INDEX, ordered >> _INDEX_BITS
    first = np.empty(len(order), np.bool_)
    first[0], first[1:] = True, groups[1:] != groups[:-1]
    begins = np.flatnonzero(first)
    counts = np.diff(begins, append=len(order))

    cells = tickets[t.SESSION_0 : t.NETWORK_1 + 1].take(order[begins], axis=1)
    had, alone = _had(credits, cells)
    start_at = tickets[t.START].take(order)
    low, end = low.take(order) - start_at, end.take(order) - start_at
    none = had.end == 0
    start = np.where(none, low[begins], had.start)
    before = np.where(none, low[begins], had.end)

    ok = usual.take(order)
    for field in (t.SESSION_0, t.SESSION_1):
        place = tickets[field].take(order)
        ok[1:] &= first[1:] | (place[1:] == place[:-1])
    furthest = end.copy()
    furthest[begins] = np.maximum(end[begins], before)
    apart = np.repeat(np.arange(len(begins)) * _APART, counts)
    furthest = np.maximum.accumulate(furthest + apart) - apart
    have = np.empty_like(furthest)
    have[1:] = furthest[:-1]
    have[begins] = before
    ok &= (np.repeat(start, counts) <= low) & (low <= have) & (have < end)
    whole = np.logical_and.reduceat(ok, begins) & alone
    if not whole.any():
        return None
    after = _Joined(start, furthest[begins + counts - 1])
    undo = _put(credits, cells, whole, after, had)
    answered = which_of(np.repeat(whole, counts))
    have, end = have[answered], end[answered]
    at = start_at[answered] - sums.gone
    sizes = sums.tail.take(at + end) - sums.tail.take(at + have)
    return Grown(order[answered], end - have, sizes, undo)


def _had(credits: Credits, cells: Ints) -> tuple[_Joined, Bools]:
    """What the sessions of these tickets have, from the start of the first of two cells on; and where that is one run,
    and all that anybody in the session's network has."""
    halves: list[Runs] = []
    alone = np.ones(cells.shape[1], np.bool_)
    for own, shared in zip(cells[:2], cells[2:], strict=True):
        (mine,) = credits.sessions.runs(own)
        halves.append(mine)
        if not own.any():
            continue
        one, *more = credits.networks.runs(shared)
        same = (one.start == mine.start) & (one.end == mine.end) & ~credits.networks.in_bits.take(shared)
        for level in more:
            same &= level.end == 0
        alone &= (same | (shared == 0)) & ~credits.sessions.in_bits.take(own)
    joined, one_run = _joined(*halves)
    return joined, alone & one_run


def _joined(lower: Runs, upper: Runs) -> tuple[_Joined, Bools]:
    """Runs of two cells, the second behind the first, as one; and whether it is one."""
    behind = upper.end > 0
    start = np.where(lower.end > 0, lower.start, upper.start + CELL_BITS * behind).astype(np.int64)
    end = np.where(behind, upper.end + CELL_BITS, lower.end).astype(np.int64)
    one = ~behind | (lower.end == 0) | ((lower.end == CELL_BITS) & (upper.start == 0))
    return _Joined(start, end), one


def _put(credits: Credits, cells: Ints, whole: Bools, after: _Joined, before: _Joined) -> Undo:
    """Exchange what those sessions have that are `whole`, each alone in its network, and the network with it."""
    undo: list[Undo] = []
    for half, (own, shared) in enumerate(zip(cells[:2], cells[2:], strict=True)):
        if not own.any():
            continue
        new, old = _part(after, half), _part(before, half)
        changed = whole & ((new.start != old.start) | (new.end != old.end))
        for known, places in ((credits.sessions, own), (credits.networks, shared)):
            where = np.flatnonzero(changed & (places != 0))
            if len(where):
                _put_runs(known, places[where], new, where)
                undo.append(partial(_put_runs, known, places[where], old, where))
    return all_of(undo)


def _part(joined: _Joined, half: int) -> Runs:
    """What of runs over two cells is in one of them."""
    begin = half * CELL_BITS
    end = np.clip(joined.end - begin, 0, CELL_BITS).astype(np.int16)
    start = np.clip(joined.start - begin, 0, CELL_BITS).astype(np.int16)
    some = start < end
    return Runs(start * some, end * some)


def _put_runs(cells: Cells, places: Ints, runs: Runs, where: Ints) -> None:
    """As the first level; the others are empty."""
    first = Runs(runs.start[where], runs.end[where])
    nothing = np.zeros_like(first.start)
    cells.put_runs(places, [first, *[Runs(nothing, nothing)] * (cells.levels - 1)])
