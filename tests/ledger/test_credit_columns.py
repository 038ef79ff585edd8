"""Credits in arrays against the credits as they are defined (ledger.credit), batch after batch."""

import struct
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.credit import CreditSet
from ledger.credit_columns import Claims, CreditColumns

SESSIONS = [UUID(int=i << 64 | i) for i in range(12)]
NETWORKS = [b"", b"A" * 16, b"B" * 16, bytes(16)]


def network_of(session: UUID) -> bytes:
    """Some alone in theirs, some with others, some without."""
    number = SESSIONS.index(session)
    return NETWORKS[number % 4] if number < 8 else session.bytes


receipts = st.tuples(
    st.sampled_from(SESSIONS),
    st.one_of(
        st.tuples(st.integers(0, 40), st.integers(1, 30)).map(lambda run: ((1 << run[1]) - 1) << run[0]),
        st.integers(1, 2**40),
    ),
)
batches = st.lists(st.lists(receipts, min_size=1, max_size=8), max_size=12)


def columns(batch: list[tuple[UUID, int]]) -> Claims:
    """Of receipts that claim runs."""
    sessions = list(dict.fromkeys(s.bytes for s, _ in batch))
    networks = list(dict.fromkeys(network_of(s) for s, _ in batch))
    return Claims(
        sessions,
        np.array([sessions.index(s.bytes) for s, _ in batch], np.uint8),
        networks,
        np.array([networks.index(network_of(s)) for s, _ in batch], np.uint8),
        np.array([(units & -units).bit_length() - 1 for _, units in batch], np.int64),
        np.array([units.bit_length() for _, units in batch], np.int64),
    )


def is_run(units: int) -> bool:
    bits = units // (units & -units)
    return not bits & (bits + 1)


@settings(max_examples=60)
@given(batches, st.integers(1, 3))
def test_credits_in_arrays_are_those_of_the_definition(
    drawn: list[list[tuple[UUID, int]]], limit: int
) -> None:
    defined, packed = CreditSet(), CreditColumns()
    for batch in drawn:
        claims = columns(batch)
        plan = packed.plan(claims)
        alone = plan.alone & np.array([is_run(units) for _, units in batch])
        for i, (session, units) in enumerate(batch):
            fresh = defined.missing(session, units)
            if alone[i]:
                assert defined.within_network_limit(network_of(session), fresh, limit) == fresh
                start, end = int(plan.start[i]), int(plan.end[i])
                assert fresh == ((1 << (end - start)) - 1 << start if start < end else 0)
        for session, units in (r for i, r in enumerate(batch) if not alone[i]):
            scratch = packed.copy_of([session], [network_of(session)])
            fresh = scratch.within_network_limit(network_of(session), scratch.missing(session, units), limit)
            packed.credit(session, network_of(session), fresh)
        # Those alone depend on none of the others, so it makes no difference which come first.
        again = packed.plan(claims.where(alone))
        assert again.alone.all()
        packed.credit_alone(claims.where(alone), again)
        for session, units in batch:
            network = network_of(session)
            fresh = defined.within_network_limit(network, defined.missing(session, units), limit)
            defined.credit(session, network, fresh)
        assert held(packed) == held(defined)


def held(credits: CreditSet | CreditColumns) -> tuple[dict[UUID, int], dict[bytes, list[int]]]:
    copy = credits.copy_of(set(SESSIONS), {network_of(s) for s in SESSIONS})
    by_session = {s: copy.credited(s) for s in SESSIONS}
    return by_session, {n: levels for n, levels in copy._by_network.items() if levels}


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(1, 40))
def test_every_session_is_found_again_however_many_there_are(count: int, batch: int) -> None:
    credits = CreditColumns()
    sessions = [UUID(bytes=struct.pack(">QQ", n * 0x1_0001, n)) for n in range(count)]
    for at in range(0, count, batch):
        some = sessions[at : at + batch]
        claims = Claims(
            [s.bytes for s in some],
            np.arange(len(some), dtype=np.uint8),
            [s.bytes[::-1] for s in some],
            np.arange(len(some), dtype=np.uint8),
            np.arange(at, at + len(some)),
            np.arange(at + 1, at + len(some) + 1),
        )
        credits.credit_alone(claims, credits.plan(claims))
    assert [credits.credited(s) for s in sessions] == [1 << n for n in range(count)]
    assert credits.credited(UUID(int=2**127)) == 0


@settings(max_examples=60)
@given(batches, st.data())
def test_a_guess_where_a_session_stands_changes_no_plan_right_or_wrong(
    drawn: list[list[tuple[UUID, int]]], data: st.DataObject
) -> None:
    credits = CreditColumns()
    for batch in drawn:
        claims = columns(batch)
        guesses = np.array(data.draw(st.lists(st.integers(0, 50), min_size=len(batch), max_size=len(batch))))
        guesses = guesses.astype(np.int32)
        wanted = credits.plan(claims)
        for _ in range(2):  # as they were drawn, and corrected
            for ours, theirs in zip(credits.plan(claims, guesses), wanted, strict=True):
                assert ours.tolist() == theirs.tolist()
        if len(claims.sessions) == len(batch):
            known = wanted.rows >= 0
            assert guesses[known].tolist() == wanted.rows[known].tolist()
        for session, units in batch:
            credits.credit(session, network_of(session), units & ~credits.credited(session))


def test_what_is_credited_may_not_be_credited_again() -> None:
    credits = CreditColumns()
    credits.credit(SESSIONS[1], b"A" * 16, 0b110)
    with pytest.raises(ValueError, match="only once"):
        credits.credit(SESSIONS[1], b"A" * 16, 0b100)
    with pytest.raises(ValueError, match="one network"):
        credits.credit(SESSIONS[1], b"B" * 16, 0b1000)
    with pytest.raises(ValueError, match="16 bytes"):
        credits.credit(SESSIONS[2], b"B", 0b1000)
    assert credits.credited(SESSIONS[1]) == 0b110
    assert credits.credited(SESSIONS[2]) == 0


def test_who_shares_a_network_is_not_the_only_one_in_it_however_long_that_is_known() -> None:
    credits, other = CreditColumns(), SESSIONS[4]
    first, second, newcomer = SESSIONS[1], SESSIONS[5], SESSIONS[9]
    credits.begin()
    credits.credit(first, b"A" * 16, 0b1)
    assert credits.plan(columns([(first, 0b11)])).sole.tolist() == [True]
    assert sole(credits, second) == [False]  # it has nothing yet, and the network has somebody
    credits.credit(second, b"A" * 16, 0b1)
    credits.credit(newcomer, newcomer.bytes, 0b1)
    for session in (first, second):
        assert sole(credits, session) == [False]
    assert sole(credits, newcomer, other) == [True, True]  # a network of its own, and none
    credits.take_back()
    assert sole(credits, first) == sole(credits, second) == [True]


def sole(credits: CreditColumns, *sessions: UUID) -> list[bool]:
    flags: list[bool] = credits.plan(columns([(session, 0b11) for session in sessions])).sole.tolist()
    return flags
