"""Sets of small numbers that are one run, in columns: what a viewer has of a stretch of a broadcast nearly always is.

Invariant: where a function says that its answer is one run, it is exactly the set asked for; where it does not say so,
the answer means nothing. A run is [start, end); an empty one is always [0, 0). Numbers are not negative.
"""

from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

N = TypeVar("N", bound=np.signedinteger)
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Small = npt.NDArray[np.int16]
Ints = npt.NDArray[np.int64]
WORD: Final = 64
CELL: Final = 512  # bits of the longest bitmap that can be written out
_ONE: Final = np.uint64(1)
_SMEAR: Final = tuple(np.uint64(by) for by in (1, 2, 4, 8, 16, 32))
# Column n: the first n of 512 bits, as eight little-endian words.
_FIRST: Final = np.array(
    [[(((1 << n) - 1) >> at) & (2**WORD - 1) for n in range(CELL + 1)] for at in range(0, CELL, WORD)],
    np.uint64,
)
_FIRST_ROWS: Final = np.ascontiguousarray(_FIRST.T)
_LOW_BYTES, _BYTE = np.uint64(0x00FF00FF00FF00FF), np.uint64(8)
_SUM_OF_FOUR, _TOP = np.uint64(0x0001000100010001), np.uint64(48)


class Runs(NamedTuple):
    start: Small
    end: Small


def grown(runs: Runs, start: Small, end: Small) -> tuple[Runs, Bools]:
    """With [start, end), which is not empty, and whether that is one run: where it begins in a run, or at its end."""
    none = runs.end == 0
    one = (runs.start <= start) & ((start <= runs.end) | none)
    return Runs(np.where(none, start, runs.start), np.maximum(runs.end, end)), one


def bits(runs: Runs) -> Words:
    """Written out: a column of eight words for each, the lowest bits first."""
    written: Words = _FIRST.take(runs.end, axis=1) & ~_FIRST.take(runs.start, axis=1)
    return written


def ends(words: Words) -> tuple[Ints, Ints, Bools]:
    """For each column of eight words its lowest bit, the one after its highest (0 and 0 where there is none), and
    whether it is one run."""
    counts = np.bitwise_count(words).sum(axis=0, dtype=np.int64)
    low, end, one = np.zeros_like(counts), counts.copy(), np.ones(len(counts), np.bool_)
    rest = np.flatnonzero((words != _FIRST.take(counts, axis=1)).any(axis=0))  # most are the first so many
    if len(rest):
        low[rest], end[rest] = _ends(words[:, rest])
        one[rest] = end[rest] - low[rest] == counts[rest]
    return low, end, one


def ends_of_rows(words: Words) -> tuple[Ints, Ints, Bools]:
    """As `ends`, for each row of eight words."""
    # Bits of each word, then sums of neighbours in the same eight bytes: at most 512.
    pairs = np.bitwise_count(words).view(np.uint64).reshape(-1)
    pairs = (pairs & _LOW_BYTES) + (pairs >> _BYTE & _LOW_BYTES)
    counts = (pairs * _SUM_OF_FOUR >> _TOP).astype(np.int64)
    low, end, one = np.zeros_like(counts), counts, np.ones(len(counts), np.bool_)
    unlike = words != _FIRST_ROWS.take(counts, axis=0)
    if unlike.any():
        rest = np.flatnonzero(unlike.any(axis=1))
        end = counts.copy()
        low[rest], end[rest] = _ends(words[rest].T)
        one[rest] = end[rest] - low[rest] == counts[rest]
    return low, end, one


def _ends(words: Words) -> tuple[Ints, Ints]:
    some = words != 0
    columns, height = np.arange(words.shape[1]), len(words)
    first, last = some.argmax(axis=0), height - 1 - some[::-1].argmax(axis=0)
    low, high = words[first, columns], words[last, columns]
    for by in _SMEAR:  # every bit below the highest
        high = high | high >> by
    return (
        first * WORD + np.bitwise_count((low & -low) - _ONE),
        last * WORD + np.bitwise_count(high),
    )
