from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ledger import money

amounts = st.integers(0, 10**15)
weights = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(0, 10**12), max_size=12)
bps = st.integers(0, 10_000)


@given(amounts, weights)
def test_what_is_split_is_conserved(total: int, w: dict[str, int]) -> None:
    split = money.apportion(total, w)
    assert sum(split.parts.values()) + split.unallocated == total
    assert split.parts.keys() == w.keys()
    assert all(part >= 0 for part in split.parts.values())
    assert split.unallocated == (0 if any(w.values()) else total)


@given(amounts, weights)
def test_a_larger_weight_never_gets_less_and_no_weight_gets_nothing(total: int, w: dict[str, int]) -> None:
    parts = money.apportion(total, w).parts
    ordered = sorted(w, key=lambda k: w[k])
    for smaller, larger in pairwise(ordered):
        if w[smaller] < w[larger]:
            assert parts[smaller] <= parts[larger]
        else:
            assert abs(parts[smaller] - parts[larger]) <= 1
    assert all(parts[k] == 0 for k in w if w[k] == 0)


@given(amounts, weights, st.randoms())
def test_the_split_does_not_depend_on_the_order(total: int, w: dict[str, int], random: object) -> None:
    shuffled = list(w.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert money.apportion(total, dict(shuffled)) == money.apportion(total, w)


@given(amounts, weights)
def test_every_part_is_its_exact_quota_rounded_up_or_down(total: int, w: dict[str, int]) -> None:
    whole = sum(w.values())
    for key, part in money.apportion(total, w).parts.items():
        if whole:
            assert total * w[key] // whole <= part <= -(-total * w[key] // whole)


def test_equal_remainders_go_by_key() -> None:
    assert money.apportion(2, {"c": 1, "a": 1, "b": 1}).parts == {"a": 1, "b": 1, "c": 0}


@given(amounts, bps)
def test_a_share_and_its_rest_are_the_whole(amount: int, bp: int) -> None:
    share = money.share_bp(amount, bp)
    assert 0 <= share <= amount
    assert share * 10_000 <= amount * bp < (share + 1) * 10_000


@given(amounts, bps)
def test_a_capped_part_is_the_largest_within_its_cap(other: int, cap_bp: int) -> None:
    most = money.most_beside(other, cap_bp)
    if most is None:
        assert cap_bp == 10_000
    else:
        assert most * 10_000 <= cap_bp * (most + other)
        assert (most + 1) * 10_000 > cap_bp * (most + 1 + other)


@given(st.integers(-(10**18), 10**18))
def test_decimal_text_is_exact(amount: int) -> None:
    text = money.decimal_text(amount)
    whole, micro = text.removeprefix("-").split(".")
    sign = -1 if text.startswith("-") else 1
    assert sign * (int(whole) * 10**6 + int(micro)) == amount
    assert len(micro) == 6
