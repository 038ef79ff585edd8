"""The networks a node was seen at: what the same-network rule holds its viewers against.

A laptop has an IPv4 and an IPv6 address, and perhaps two uplinks; the hub sees now one of them, now another. Invariant:
whatever network the node was seen at within `REMEMBERED_US` before it was seen last is in the set, up to `NETWORKS_MAX`
of them, the latest first. Being seen again where it was seen lately changes nothing, so that it need not be recorded.
"""

from typing import Final

# A receipt is taken up to two days after its ticket (settle_by_s): moving house before sending it must not help.
REMEMBERED_US: Final = 3 * 86_400 * 1_000_000
NETWORKS_MAX: Final = 32

Networks = dict[bytes, int]  # commitment -> when the node was last recorded there, Unix microseconds


def is_news(networks: Networks, commitment: bytes, at_us: int) -> bool:
    """Whether it must be recorded that the node is seen there: it would be forgotten otherwise, or is not known."""
    seen_us = networks.get(commitment)
    return seen_us is None or at_us - seen_us >= REMEMBERED_US // 2


def seen(networks: Networks, commitment: bytes, at_us: int) -> Networks:
    """The networks after the node was seen at one of them. Whatever the clock says, that one is among them."""
    kept = {c: us for c, us in networks.items() if c != commitment and at_us - us < REMEMBERED_US}
    latest = sorted(kept, key=lambda c: (kept[c], c))[-(NETWORKS_MAX - 1) :]
    return {c: kept[c] for c in latest} | {commitment: at_us}
