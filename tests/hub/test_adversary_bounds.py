"""Bounds that hold whatever comes: opened sessions, and the commitments that stand for networks."""

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from hub import buckets as module
from hub.buckets import Buckets
from ledger.services.nodes import COMMITMENT_BYTES, prefix_commitment

SALT = b"s" * 32
ADDRESSES = st.ip_addresses().filter(lambda a: not a.is_loopback)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"", b"a", b"b", b"c"]), st.floats(-1, 5)), max_size=200),
    st.integers(1, 8),
    st.integers(1, 12),
)
def test_no_more_is_allowed_than_the_buckets_hold(
    steps: list[tuple[bytes, float]], burst: int, all_burst: int
) -> None:
    buckets = Buckets(burst=burst, rate_s=0.5, all_burst=all_burst, all_rate_s=1.0)
    now, allowed = 100.0, {b"": 0, b"a": 0, b"b": 0, b"c": 0}
    oldest = newest = 100.0
    for key, step in steps:
        now += step
        # A clock that goes back and forth gives nothing away: only the time from its first to its last reading counts.
        oldest, newest = min(oldest, now), max(newest, now)
        allowed[key] += buckets.take(key, now)
    forward = newest - oldest
    assert sum(allowed.values()) <= all_burst + forward + 1e-6
    for key in (b"a", b"b", b"c"):
        assert allowed[key] <= burst + 0.5 * forward + 1e-6


def test_the_keys_remembered_are_bounded() -> None:
    buckets = Buckets(burst=2, rate_s=1, all_burst=10**9, all_rate_s=1)
    for n in range(module.MAX_KEYS + 500):
        assert buckets.take(b"%d" % n, 1.0)
    assert len(buckets._by_key) == module.MAX_KEYS


@settings(max_examples=200, deadline=None)
@given(ADDRESSES, ADDRESSES, st.binary(max_size=16), st.binary(max_size=16))
def test_two_addresses_have_one_commitment_just_when_they_are_of_one_network(
    one: ipaddress.IPv4Address | ipaddress.IPv6Address,
    two: ipaddress.IPv4Address | ipaddress.IPv6Address,
    some: bytes,
    other: bytes,
) -> None:
    def network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> object:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False)

    first = prefix_commitment(SALT, str(one), unique=some)
    assert len(first) == COMMITMENT_BYTES
    assert first == prefix_commitment(SALT, str(one), unique=other)
    assert (first == prefix_commitment(SALT, str(two), unique=some)) == (network(one) == network(two))
    assert first != prefix_commitment(b"t" * 32, str(one), unique=some)
    if one.version == 4:
        assert first == prefix_commitment(SALT, f"::ffff:{one}", unique=other)


@given(st.sampled_from(["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "", "no address"]))
def test_a_machine_of_the_hubs_own_is_no_network_that_two_share(ip: str) -> None:
    assert prefix_commitment(SALT, ip, unique=b"1") != prefix_commitment(SALT, ip, unique=b"2")
