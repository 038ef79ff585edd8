"""Ids in the order of time: UUIDs of version 7, that sort as they were made and keep what is random in them."""

from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.ids import ordered_id

TIMES_US = st.integers(0, (1 << 48) * 1_000 - 1)
RANDOM = st.binary(min_size=10, max_size=10)
RANDOM_BITS = ~(0xF << 76 | 0x3 << 62) & (1 << 80) - 1


@given(TIMES_US, RANDOM)
def test_an_ordered_id_is_a_uuid_of_version_7(at_us: int, randomness: bytes) -> None:
    made = ordered_id(at_us, randomness)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 == at_us // 1_000
    assert made.int & RANDOM_BITS == int.from_bytes(randomness) & RANDOM_BITS
    assert UUID(str(made)) == made


@given(TIMES_US, TIMES_US, RANDOM, RANDOM)
def test_what_is_made_in_a_later_millisecond_sorts_later(a_us: int, b_us: int, a: bytes, b: bytes) -> None:
    one, other = ordered_id(a_us, a), ordered_id(b_us, b)
    if a_us // 1_000 < b_us // 1_000:
        assert one.bytes < other.bytes
        assert str(one) < str(other)


def test_randomness_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="ten random bytes"):
        ordered_id(1, bytes(16))
