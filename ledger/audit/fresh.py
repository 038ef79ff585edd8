"""What receipts claim that is not credited yet, and what of it is payable: for many receipts at once.

Invariants: receipts that are asked about together touch different cells. What is found is what ledger.credit would
find receipt by receipt; `credit` adds it, and what `credit` returns takes it back. A claim and the cells that it
touches are nearly always runs: then it costs some arithmetic. What is not is done in bits.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from ledger.audit import tickets as t
from ledger.audit.cells import CELL_BITS, CELL_WORDS, Cells
from ledger.audit.credits import LEVELS, Credits
from ledger.audit.facts import Ints
from ledger.receipt import BITMAP_BITS
from ledger.runs import Bools, Runs, Words, ends, grown

# Words of a receipt's bitmap as it is laid over the two cells of its ticket, with room for one bitmap on either side.
_MARGIN: Final = BITMAP_BITS // 64
_WIDTH: Final = 2 * CELL_WORDS
_SPREAD: Final = _MARGIN + _WIDTH + _MARGIN + 1
_NEXT: Final = np.arange(_MARGIN + 1)
_ONE: Final = np.uint64(1)
_HALVES: Final = np.array([[0], [CELL_BITS]])  # where the two cells of a ticket begin

Undo = Callable[[], None]


class Claims(NamedTuple):
    """One value a receipt; places are relative to the first cell of its ticket."""

    low: Ints  # first segment that is claimed, and the one after the last
    end: Ints
    run: Bools  # whether all between them are
    bitmaps: Callable[
        [Ints], tuple[Words, Ints]
    ]  # of some receipts: 8 words each, and where the first bit is


class Sums(NamedTuple):
    """Bytes of a broadcast's first so many segments; what is from long ago is not in memory."""

    tail: Ints
    gone: int  # segments before the first value of `tail`

    def between(self, low: Ints, end: Ints) -> Ints:
        """Bytes of the segments [low, end) of the broadcast, none of which is gone."""
        sizes: Ints = self.tail[end - self.gone] - self.tail[low - self.gone]
        return sizes

    def most(self, count: int) -> int:
        """Bytes of so many segments in a row at most, none of which is gone."""
        longer = self.tail[count:] - self.tail[:-count]
        return int(longer.max()) if len(longer) else int(self.tail[-1] - self.tail[0])


class Found:
    """Of each receipt whether it claims anything new, and how much of it is payable. Nothing where not asked."""

    def __init__(self, count: int) -> None:
        self.any = np.zeros(count, np.bool_)
        self.units: Ints = np.zeros(count, np.int64)
        self.sizes: Ints = np.zeros(count, np.int64)
        self.credits: list[Callable[[Bools], Undo]] = []

    def credit(self, accepted: Bools) -> Undo:
        """Add what is payable in the receipts that are accepted. What is returned takes it back."""
        return all_of([credit(accepted) for credit in self.credits])


def all_of(undo: Sequence[Undo]) -> Undo:
    def undo_all() -> None:
        for one in undo:
            one()

    return undo_all


def find(
    credits: Credits, tickets: Ints, claims: Claims, which: Bools, limit: int, sums: Sums
) -> Found | None:
    """Of the receipts `which`, no two of one group. None when it is not known."""
    found = Found(len(which))
    answered = np.zeros_like(which)
    if limit <= LEVELS:
        answered = which & claims.run
        for half in (0, 1):
            _in_runs(credits, tickets, claims, half, limit, sums, found, answered)
    rest = np.flatnonzero(which & ~answered)
    if len(rest) and not _in_bits(credits, tickets[:, rest], *claims.bitmaps(rest), limit, sums, found, rest):
        return None
    return found


def _in_runs(
    credits: Credits,
    tickets: Ints,
    claims: Claims,
    half: int,
    limit: int,
    sums: Sums,
    found: Found,
    answered: Bools,
) -> None:
    """What claims that are runs touch of one of their ticket's two cells. `answered` are those asked about, and after
    this only where a session and its network just go on: where all that they touch is runs and stays so."""
    begin = half * CELL_BITS
    touched = answered & (claims.end > CELL_BITS if half else claims.low < CELL_BITS)
    if not touched.any():
        return
    at = which_of(touched)
    sessions_at, networks_at = tickets[t.SESSION_0 + half][at], tickets[t.NETWORK_0 + half][at]
    (have,) = credits.sessions.runs(sessions_at)
    levels = credits.networks.runs(networks_at)
    low = np.maximum(claims.low[at] - begin, 0).astype(np.int16)
    end = np.minimum(claims.end[at] - begin, CELL_BITS).astype(np.int16)
    known = (have.start <= low) & ~credits.sessions.in_bits.take(sessions_at)
    known &= ~credits.networks.in_bits.take(networks_at)
    low = np.maximum(low, have.end)  # here begins what is new,
    some = low < end
    found.any[at] |= some
    full = levels[limit - 1]
    if full.end.any():
        known &= (full.start <= low) | ~some
        low = np.maximum(low, full.end)  # and what is payable
        some = low < end
    low = np.minimum(low, end)
    found.units[at] += end - low
    first = tickets[t.START][at] + (begin - sums.gone)
    found.sizes[at] += sums.tail.take(first + end) - sums.tail.take(first + low)

    credited, goes_on = grown(have, low, end)
    after, carried = list(levels), end
    for n, level in enumerate(levels):
        longer, one = grown(level, low, carried)
        goes_on &= one | (low >= carried)
        after[n] = Runs(*np.where(low < carried, longer, level)) if n else longer
        carried = np.minimum(level.end, carried)  # what it had of that is for the next level
        if not (low < carried).any():
            break
    else:
        goes_on &= low >= carried
    answered[at] &= known & (goes_on | ~some)

    def credit(accepted: Bools) -> Undo:
        credited_ = some & (accepted & answered)[at]
        where, of_network = which_of(credited_), which_of(credited_ & (networks_at != 0))

        def put(sessions: Runs, networks: list[Runs]) -> None:
            credits.sessions.put_runs(sessions_at[where], [_at(sessions, where)])
            credits.networks.put_runs(networks_at[of_network], [_at(n, of_network) for n in networks])

        put(credited, after)
        return lambda: put(have, levels)

    found.credits.append(credit)


def which_of(some: Bools) -> Ints | slice:
    """As an index; nothing is copied for all."""
    return slice(None) if some.all() else np.flatnonzero(some)


def _at(runs: Runs, where: Ints | slice) -> Runs:
    return Runs(runs.start[where], runs.end[where])


def _in_bits(
    credits: Credits,
    tickets: Ints,
    bitmap: Words,
    offset: Ints,
    limit: int,
    sums: Sums,
    found: Found,
    which: Ints,
) -> bool:
    """Of the receipts `which`, whose tickets and bitmaps these are. Returns whether it is known."""
    claimed = _laid(bitmap, offset)
    at = tickets[t.SESSION_0 : t.SESSION_1 + 1]
    networks_at = tickets[t.NETWORK_0 : t.NETWORK_1 + 1]
    have = [credits.sessions.bits(places) for places in at]
    networks = [credits.networks.bits(places) for places in networks_at]
    fresh = claimed & ~np.concatenate(have, axis=1)
    levels = [
        np.concatenate([cell[:, word : word + CELL_WORDS] for cell in networks], axis=1)
        for word in range(0, LEVELS * CELL_WORDS, CELL_WORDS)
    ]
    payable = fresh & ~levels[limit - 1] if limit <= LEVELS else fresh
    carried = levels[0] & payable
    if limit > LEVELS and ((carried & levels[1]).any() or credits.crowded(networks_at)):
        return False
    found.any[which] = fresh.any(axis=1)
    found.units[which] = np.bitwise_count(payable).sum(axis=1, dtype=np.int64)
    found.sizes[which] = _sizes(payable, tickets[t.START], sums)

    def credit(accepted: Bools) -> Undo:
        undo: list[Undo] = []
        mine = accepted.take(which)

        def put(cells: Cells, places: Ints, old: Words, new: Words, where: Bools) -> None:
            which = np.flatnonzero(where & (places != 0))
            if len(which):
                cells.put(places[which], new[which])
                undo.append(lambda: cells.put(places[which], old[which]))

        for half in (0, 1):
            words = slice(half * CELL_WORDS, (half + 1) * CELL_WORDS)
            where = payable[:, words].any(axis=1) & mine
            both = np.concatenate([payable[:, words], carried[:, words]], axis=1)
            put(credits.sessions, at[half], have[half], have[half] | payable[:, words], where)
            put(credits.networks, networks_at[half], networks[half], networks[half] | both, where)
        return all_of(undo)

    found.credits.append(credit)
    return True


def _laid(bitmap: Words, offset: Ints) -> Words:
    """Each bitmap, which begins `offset` segments after the first cell of its ticket, laid over its two cells; nothing
    of it is beyond them."""
    count = len(bitmap)
    at = offset + BITMAP_BITS
    shift = (at & 63).astype(np.uint64)[:, None]
    wide = np.zeros((count, _MARGIN + 1), np.uint64)
    wide[:, :_MARGIN] = bitmap << shift
    wide[:, 1:] |= (bitmap >> _ONE) >> (np.uint64(63) - shift)
    spread = np.zeros((count, _SPREAD), np.uint64)
    spread.reshape(-1)[(np.arange(count) * _SPREAD + (at >> 6))[:, None] + _NEXT] = wide
    return spread[:, _MARGIN : _MARGIN + _WIDTH]


def _sizes(payable: Words, start: Ints, sums: Sums) -> Ints:
    """Bytes of the segments in each row of two cells, the first of which begins at segment `start`."""
    cells = payable.reshape(-1, CELL_WORDS)
    low, end, one = ends(cells.T)
    at = np.where(low < end, (start + _HALVES).T.reshape(-1), sums.gone)
    sizes = sums.between(at + low, at + end)
    for i in np.flatnonzero(~one).tolist():  # with gaps
        bits = np.unpackbits(cells[i].astype("<u8").view(np.uint8), bitorder="little").astype(np.int8)
        edges = np.diff(bits, prepend=0, append=0)
        sizes[i] = sums.between(at[i] + np.flatnonzero(edges > 0), at[i] + np.flatnonzero(edges < 0)).sum()
    both: Ints = sizes.reshape(-1, 2).sum(axis=1)
    return both
