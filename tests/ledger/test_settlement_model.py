"""Every settlement, to the last micro-unit, against a second one of fractions and loops (settlement_model.py)."""

from dataclasses import replace
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settlement_model import Line, Paid, by_largest_remainder, model, most_of_all
from test_settlement import NODES, STREAMS, Case, flat, priced_cases

from ledger import money
from ledger.settlement import Credit, Entry, Tariff, settle

# Small numbers, so that ties, remainders and bounds are met in most cases.
few = st.integers(0, 4)
some_bp = st.sampled_from([0, 1, 500, 3_333, 5_000, 9_999, 10_000])


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Case, dict[tuple[UUID, int], Tariff]]:
    credits = [
        Credit(
            stream_id=STREAMS[draw(st.integers(0, 1))],
            node_id=(node := draw(st.sampled_from(NODES[:3]))),
            friend_id=UUID(int=1_000 + node.int // 2),
            plain=draw(st.booleans()),
            late=draw(st.booleans()),
            units=draw(st.integers(0, 2)),
            credited_bytes=draw(few),
            over_rate=draw(st.integers(0, 9)) == 0,
            published=draw(st.integers(0, 2)),
        )
        for _ in range(draw(st.integers(1, 7)))
    ]
    now, earlier = {}, {}
    for stream in STREAMS[:2]:
        history = [
            Tariff(
                version=n,
                rate_micro_per_gb=draw(st.sampled_from([0, 10**9, 3 * 10**9, 333_333_333_333])),
                fee_bp=draw(some_bp),
                floor_bp=draw(some_bp),
                plain_bp=draw(some_bp),
                plain_income_cap_bp=draw(some_bp),
            )
            for n in range(1, 1 + draw(st.integers(0, 2)))
        ]
        for epoch in range(3) if history else ():
            earlier[stream, epoch] = now[stream] = history[min(epoch, len(history) - 1)]
    budgets = {s: draw(st.sampled_from([0, 1, 2, 3, 7, 10**4, 10**12])) for s in STREAMS[:2]}
    return (credits, now, budgets), earlier


def said(entries: list[Entry]) -> tuple[list[Line], list[Paid]]:
    """In the words of the model."""
    lines, transfers = flat(entries)
    paid: list[Paid] = []
    for t in transfers:
        source, target = t.postings
        assert source.amount_micro == -target.amount_micro
        friend = None if target.account == money.FEES else UUID(target.account.split(":")[1])
        assert target.account in (money.FEES, f"friend:{friend}:pending")
        paid.append((t.reason, UUID(source.account.removeprefix("budget:")), friend, target.amount_micro))
    return [
        (
            x.stream_id,
            x.node_id,
            x.friend_id,
            x.reason,
            x.units,
            x.credited_bytes,
            x.tariff_version,
            x.amount_micro,
        )
        for x in lines
    ], paid


def same_as_the_model(
    priced: tuple[Case, dict[tuple[UUID, int], Tariff]], own_tariff: bool, most_bp: int
) -> None:
    (credits, now, budgets), earlier = priced
    late = earlier if own_tariff else None
    made = settle(credits, now, budgets, late_tariffs=late, floor_most_bp=most_bp)
    assert said(made) == model(credits, now, budgets, late, most_bp)


@settings(max_examples=400)
@given(small_cases(), st.booleans(), st.sampled_from([0, 0, 1, 5_000, 10_000, 30_000]))
def test_a_small_settlement_is_the_models(
    priced: tuple[Case, dict[tuple[UUID, int], Tariff]], own_tariff: bool, most_bp: int
) -> None:
    same_as_the_model(priced, own_tariff, most_bp)


@given(priced_cases(), st.booleans(), st.sampled_from([0, 0, 5_000, 10_000, 30_000]))
def test_a_large_settlement_is_the_models(
    priced: tuple[Case, dict[tuple[UUID, int], Tariff]], own_tariff: bool, most_bp: int
) -> None:
    same_as_the_model(priced, own_tariff, most_bp)


@given(st.integers(0, 50), st.dictionaries(st.integers(0, 9), st.integers(0, 6), max_size=8))
def test_the_largest_remainders_get_what_is_left_and_ties_go_by_key(
    total: int, weights: dict[int, int]
) -> None:
    exact = {key: Fraction(weight) for key, weight in weights.items()}
    names = {key: key for key in weights}
    assert money.apportion(total, weights).parts == by_largest_remainder(total, exact, names)


@given(st.integers(0, 10**6), some_bp)
def test_what_is_most_beside_something(other: int, bp: int) -> None:
    assert money.most_beside(other, bp) == most_of_all(other, bp)


def test_what_has_no_order_or_sense_is_refused() -> None:
    """One past each border, and the border itself."""
    assert money.share_bp(7, 10_000) == 7
    assert money.share_bp(0, 0) == money.price_micro(0, 0) == money.part_of(0, 0, 0) == 0
    assert money.most_beside(7, 10_000) is None
    assert money.part_of(7, 3, 3) == 7
    assert money.part_of(7, 2, 3) == 4
    for wrong in (
        lambda: money.share_bp(-1, 0),
        lambda: money.share_bp(1, -1),
        lambda: money.share_bp(1, 10_001),
        lambda: money.price_micro(-1, 0),
        lambda: money.price_micro(0, -1),
        lambda: money.most_beside(-1, 0),
        lambda: money.most_beside(0, -1),
        lambda: money.most_beside(0, 10_001),
        lambda: money.part_of(1, 2, 1),
        lambda: money.part_of(1, -1, 1),
        lambda: money.part_of(-1, 1, 1),
        lambda: money.apportion(-1, {"a": 1}),
        lambda: money.apportion(1, {"a": 2, "b": -1}),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_a_node_is_of_one_friend() -> None:
    one = Credit(
        stream_id=STREAMS[0],
        node_id=NODES[0],
        friend_id=UUID(int=1),
        plain=False,
        late=False,
        units=1,
        credited_bytes=1,
    )
    for other in (replace(one, friend_id=UUID(int=2)), replace(one, friend_id=UUID(int=2), late=True)):
        with pytest.raises(ValueError):
            settle([one, other], {}, {})


def test_a_credit_is_never_negative() -> None:
    one = Credit(
        stream_id=STREAMS[0],
        node_id=NODES[0],
        friend_id=UUID(int=1),
        plain=False,
        late=False,
        units=1,
        credited_bytes=1,
    )
    for wrong in (replace(one, units=-1), replace(one, credited_bytes=-1)):
        with pytest.raises(ValueError):
            settle([wrong], {}, {})
