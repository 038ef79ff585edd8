"""Settlement a second time: fractions and loops, from the rules as they are told in words, and nothing of ledger.money.

A transfer here is (reason, stream, who, amount): who is a friend, or None for the fees.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar
from uuid import UUID

from ledger.settlement import Credit, Tariff

Line = tuple[
    UUID, UUID, UUID, str, int, int, int, int
]  # stream, node, friend, reason, units, bytes, tariff, amount
Paid = tuple[str, UUID, UUID | None, int]
KINDS = ("delivery", "delivery_late", "plain_delivery", "plain_delivery_late", "over_rate")
WHOLE = 10_000
K = TypeVar("K")


def model(
    credits: Sequence[Credit],
    tariffs: Mapping[UUID, Tariff],
    budgets: Mapping[UUID, int],
    late_tariffs: Mapping[tuple[UUID, int], Tariff] | None,
    floor_most_bp: int,
) -> tuple[list[Line], list[Paid]]:
    lines: list[Line] = []
    paid: list[Paid] = []
    for stream in sorted({c.stream_id for c in credits}):
        left = budgets.get(stream, 0)
        groups: dict[int, list[Credit]] = {}
        by_version: dict[int, Tariff | None] = {0: None}
        for c in credits:
            if c.stream_id != stream or not (c.units or c.credited_bytes):
                continue
            tariff = tariffs.get(stream)
            if late_tariffs is not None and c.late:
                tariff = late_tariffs.get((stream, c.published))
            version = tariff.version if tariff else 0
            by_version[version] = tariff
            groups.setdefault(version, []).append(c)
        for version in sorted(groups):
            some, out = one_stream(stream, groups[version], by_version[version], left, floor_most_bp)
            lines += some
            paid += out
            left -= sum(amount for *_, amount in out)
    return lines, paid


def one_stream(
    stream: UUID, credits: Sequence[Credit], tariff: Tariff | None, budget: int, floor_most_bp: int
) -> tuple[list[Line], list[Paid]]:
    rate, fee_bp, floor_bp, plain_bp, cap_bp = (
        (
            tariff.rate_micro_per_gb,
            tariff.fee_bp,
            tariff.floor_bp,
            tariff.plain_bp,
            tariff.plain_income_cap_bp,
        )
        if tariff
        else (0, 0, 0, 0, 0)
    )
    friends = {c.node_id: c.friend_id for c in credits}
    rows = {(c.node_id, kind_of(c)): [0, 0] for c in credits}
    for c in credits:
        rows[c.node_id, kind_of(c)][0] += c.units
        rows[c.node_id, kind_of(c)][1] += c.credited_bytes
    counts_as = {0: Fraction(1), 1: Fraction(1), 2: Fraction(plain_bp, WHOLE), 3: Fraction(plain_bp, WHOLE)}
    full = {key: size * counts_as.get(key[1], Fraction(0)) for key, (_, size) in rows.items()}

    gross = min(int(sum(full.values()) * rate / 10**9), budget)
    fee = gross * fee_bp // WHOLE
    floor = (gross - fee) * floor_bp // WHOLE
    names = {key: (key[0].int, KINDS[key[1]]) for key in rows}
    part = by_largest_remainder(gross - fee - floor, full, names)

    bound = {
        node: sum(part[key] for key in rows if key[0] == node) * floor_most_bp // WHOLE
        if floor_most_bp
        else None
        for node in friends
    }
    share = floor_shares(floor, bound)

    earned = dict(part)
    for node in friends:
        plain = {key: Fraction(part[key]) for key in rows if key[0] == node and key[1] in (2, 3)}
        other = share[node] + sum(part[key] for key in rows if key[0] == node and key not in plain)
        most = most_of_all(other, cap_bp)
        if most is not None and sum(plain.values()) > most:
            earned |= by_largest_remainder(most, plain, names)

    to_nodes = sum(earned.values()) + sum(share.values())
    fee_most = most_of_all(to_nodes, fee_bp)
    fee = fee if fee_most is None else min(fee, fee_most)

    lines: list[Line] = []
    paid: list[Paid] = [("platform_fee", stream, None, fee)] if fee else []
    for node in sorted(friends):
        mine = sorted(key for key in rows if key[0] == node)
        version = tariff.version if tariff else 0
        for key in mine:
            units, size = rows[key]
            lines.append((stream, node, friends[node], KINDS[key[1]], units, size, version, earned[key]))
        if share[node]:
            lines.append((stream, node, friends[node], "floor_share", 0, 0, version, share[node]))
        if total := share[node] + sum(earned[key] for key in mine):
            paid.append(("settlement", stream, friends[node], total))
    return lines, paid


def kind_of(c: Credit) -> int:
    return 4 if c.over_rate else 2 * c.plain + c.late


def by_largest_remainder(total: int, weights: Mapping[K, Fraction], names: Mapping[K, Any]) -> dict[K, int]:
    """Each gets its quota rounded down; what is left goes, one each, to the largest fractions, ties by name."""
    whole = sum(weights.values())
    if not whole:
        return dict.fromkeys(weights, 0)
    quota = {key: total * weight / whole for key, weight in weights.items()}
    given = {key: int(exact) for key, exact in quota.items()}
    waiting = set(weights)
    while sum(given.values()) < total:
        first = min(waiting, key=lambda key: (given[key] - quota[key], names[key]))
        given[first] += 1
        waiting.remove(first)
    return given


def floor_shares(pool: int, bound: Mapping[UUID, int | None]) -> dict[UUID, int]:
    """Equal shares; who may not have so much gets what they may, and the others share the rest."""
    share: dict[UUID, int] = {}
    left = set(bound)
    while left:
        equal = pool // len(left)
        small = [node for node in left if (most := bound[node]) is not None and most <= equal]
        if not small:
            break
        node = min(small, key=lambda n: (bound[n], n))
        share[node] = bound[node] or 0
        pool -= share[node]
        left.remove(node)
    for n, node in enumerate(sorted(left)):
        share[node] = pool // len(left) + (1 if n < pool % len(left) else 0)
    return share


def most_of_all(other: int, bp: int) -> int | None:
    """The most that something may be beside `other` so that it is at most `bp` of both together; None: anything."""
    return None if bp == WHOLE else int(Fraction(other * bp, WHOLE - bp))
