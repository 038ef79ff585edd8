"""Credits against an obvious model: a set of (session, sequence) pairs and a count for each network."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger.credit import CreditSet, count
from ledger.judge import to_sequences

SESSIONS = [UUID(int=i) for i in range(4)]
NETWORKS = [b"", b"A" * 16, b"B" * 16]
LIMIT = 2

claims = st.lists(
    st.tuples(st.sampled_from(SESSIONS), st.sets(st.integers(100, 130), min_size=1)), min_size=1, max_size=30
)


def to_units(sequences: list[int], first: int) -> int:
    return sum(1 << (s - first) for s in sequences)


def network_of(session: UUID) -> bytes:
    return NETWORKS[session.int % 3]


def credit_all(receipts: list[tuple[UUID, set[int]]]) -> set[tuple[UUID, int]]:
    credits, paid = CreditSet(), set()
    for session, sequences in receipts:
        fresh = credits.missing(session, to_units(sorted(sequences), 100))
        units = credits.within_network_limit(network_of(session), fresh, LIMIT)
        credits.credit(session, network_of(session), units)
        new = {(session, s) for s in to_sequences(units, 100)}
        assert not new & paid, "a unit is paid once"
        assert len(new) == count(units)
        paid |= new
    return paid


def obvious(receipts: list[tuple[UUID, set[int]]]) -> set[tuple[UUID, int]]:
    paid: set[tuple[UUID, int]] = set()
    for session, sequences in receipts:
        for s in sequences:
            network = network_of(session)
            same = sum(network_of(other) == network for other, sequence in paid if sequence == s)
            if (session, s) not in paid and (not network or same < LIMIT):
                paid.add((session, s))
    return paid


@given(claims)
def test_a_unit_is_credited_once_and_a_network_never_more_than_its_limit(
    receipts: list[tuple[UUID, set[int]]],
) -> None:
    assert credit_all(receipts) == obvious(receipts)


@given(claims, st.randoms(use_true_random=False))
def test_without_network_limits_the_order_and_the_repeats_of_receipts_do_not_matter(
    receipts: list[tuple[UUID, set[int]]], rng: object
) -> None:
    alone = [(SESSIONS[0], sequences) for _, sequences in receipts]
    shuffled = alone * 2
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert credit_all(alone) == credit_all(shuffled) == {(SESSIONS[0], s) for _, q in alone for s in q}


@given(st.sets(st.integers(100, 600)))
def test_units_and_sequences_are_two_ways_to_say_the_same(sequences: set[int]) -> None:
    assert list(to_sequences(to_units(sorted(sequences), 100), 100)) == sorted(sequences)
