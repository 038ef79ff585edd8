"""Runs are sets: where an answer is said to be one run, it is the set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ledger import runs
from ledger.runs import Runs

run = st.tuples(st.integers(0, 511), st.integers(1, 512)).map(
    lambda r: (r[0], r[1]) if r[0] < r[1] else (0, 0)
)


def columns(some: list[tuple[int, int]]) -> Runs:
    start, end = np.array(some, np.int16).reshape(-1, 2).T
    return Runs(start, end)


def sets(found: Runs) -> list[set[int]]:
    pairs = list(zip(found.start.tolist(), found.end.tolist(), strict=True))
    assert all((start, end) == (0, 0) or start < end for start, end in pairs)
    return [set(range(start, end)) for start, end in pairs]


def is_run(members: set[int]) -> bool:
    return not members or len(members) == max(members) - min(members) + 1


@given(st.lists(st.tuples(run, run.filter(lambda r: r[0] < r[1])), max_size=30))
def test_a_run_that_grows(pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    a, b = columns([p[0] for p in pairs]), columns([p[1] for p in pairs])
    found, one = runs.grown(a, b.start, b.end)
    pairs_ = zip(found.start.tolist(), found.end.tolist(), strict=True)
    for (start, end), x, y, known in zip(pairs_, sets(a), sets(b), one.tolist(), strict=True):
        assert known == (not x or (min(x) <= min(y) <= max(x) + 1))
        assert not known or set(range(start, end)) == x | y


@given(st.lists(st.integers(0, (1 << 512) - 1) | run.map(lambda r: (1 << r[1]) - (1 << r[0])), max_size=20))
def test_ends_of_bitmaps(bitmaps: list[int]) -> None:
    words = np.frombuffer(b"".join([b.to_bytes(64, "little") for b in bitmaps]), "<u8").reshape(-1, 8).T
    low, end, one = runs.ends(words.astype(np.uint64))
    for there, here in zip(runs.ends_of_rows(words.T.astype(np.uint64)), (low, end, one), strict=True):
        assert (there == here).all()
    for bits, start, stop, alike in zip(bitmaps, low.tolist(), end.tolist(), one.tolist(), strict=True):
        members = {i for i in range(512) if bits >> i & 1}
        assert (start, stop) == ((min(members), max(members) + 1) if members else (0, 0))
        assert alike == is_run(members)


@given(st.lists(run, max_size=20))
def test_runs_are_written_out(some: list[tuple[int, int]]) -> None:
    written = runs.bits(columns(some))
    assert [int.from_bytes(c.astype("<u8").tobytes(), "little") for c in written.T] == [
        (1 << end) - (1 << start) for start, end in some
    ]
