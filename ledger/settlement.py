"""Settlement: the credits of one epoch, a tariff and a budget become lines and transfers.

Invariant: for every stream, fee + lines <= budget; every transfer sums to zero; a node's lines add up to its transfer;
the result depends on the set of credits and not on their order. What cannot be split stays in the budget.

Per stream, with `weight = bytes` for signed delivery and `bytes x plain_bp` for plain:

    gross = min(weight x rate, budget)         budgets scale rewards down, never up
    fee   = gross x fee_bp                     at most fee_bp of what really leaves the budget
    floor = (gross - fee) x floor_bp           shared equally among the nodes that served at all
    rest  = gross - fee - floor                by weight; plain income above its cap goes back to the budget
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ledger import money
from ledger.events import Posting, SettlementLine, Transfer

# A node has at most five lines and one transfer; 48 of those are below 48,000 bytes (an event may have 65,535).
ENTRIES_PER_PAGE: Final = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Accepted delivery of one node for one stream. Several with the same key are added up."""

    stream_id: UUID
    node_id: UUID
    friend_id: UUID
    plain: bool  # claimed for a plain player, within what the hub observed
    late: bool  # published in an earlier epoch than the one that settles it
    units: int
    credited_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Rates in micro-units per 10^9 bytes, parts in basis points; see ledger.events.TariffSet."""

    version: int
    rate_micro_per_gb: int
    fee_bp: int
    floor_bp: int
    plain_bp: int
    plain_income_cap_bp: int


# Served, but nobody has promised a price: the line stands in the statement with nothing in it.
NO_TARIFF: Final = Tariff(
    version=0, rate_micro_per_gb=0, fee_bp=0, floor_bp=0, plain_bp=0, plain_income_cap_bp=0
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What belongs together on a page: a node's lines and the transfer that pays them, or a fee."""

    lines: tuple[SettlementLine, ...]
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True)
class Page:
    lines: tuple[SettlementLine, ...]
    transfers: tuple[Transfer, ...]


def settle(
    credits: Iterable[Credit], tariffs: Mapping[UUID, Tariff], budgets: Mapping[UUID, int]
) -> list[Entry]:
    """Entries of all streams, ordered by stream and node. A stream without a tariff earns nothing."""
    by_stream: dict[UUID, list[Credit]] = defaultdict(list)
    for credit in credits:
        if credit.units < 0 or credit.credited_bytes < 0:
            raise ValueError("a credit is never negative")
        if credit.units:
            by_stream[credit.stream_id].append(credit)
    entries: list[Entry] = []
    for stream_id in sorted(by_stream):
        tariff = tariffs.get(stream_id, NO_TARIFF)
        entries += _settle_stream(stream_id, by_stream[stream_id], tariff, budgets.get(stream_id, 0))
    return entries


def pages(entries: Iterable[Entry]) -> list[Page]:
    """At least one page; an entry is never torn, so each page balances by itself."""
    rows = list(entries)
    chunks = [rows[i : i + ENTRIES_PER_PAGE] for i in range(0, len(rows), ENTRIES_PER_PAGE)] or [[]]
    return [
        Page(
            tuple(line for entry in chunk for line in entry.lines),
            tuple(transfer for entry in chunk for transfer in entry.transfers),
        )
        for chunk in chunks
    ]


@dataclass(slots=True)
class _Served:
    """One node's delivery from one stream for one reason."""

    node_id: UUID
    friend_id: UUID
    reason: str
    plain: bool
    units: int = 0
    credited_bytes: int = 0
    amount_micro: int = 0

    @property
    def key(self) -> str:
        return f"{self.node_id}:{self.reason}"


def _settle_stream(stream_id: UUID, credits: list[Credit], tariff: Tariff, budget_micro: int) -> list[Entry]:
    nodes = _by_node(credits)
    rows = [row for node in nodes.values() for row in node]
    weights = {row.key: row.credited_bytes * (tariff.plain_bp if row.plain else money.BP) for row in rows}
    gross = min(money.price_micro(sum(weights.values()), tariff.rate_micro_per_gb), max(budget_micro, 0))
    fee = money.share_bp(gross, tariff.fee_bp)
    floors = money.apportion(
        money.share_bp(gross - fee, tariff.floor_bp), {str(node_id): 1 for node_id in nodes}
    ).parts
    parts = money.apportion(gross - fee - sum(floors.values()), weights).parts
    for row in rows:
        row.amount_micro = parts[row.key]
    for node_id, node in nodes.items():
        _cap_plain(node, floors[str(node_id)], tariff.plain_income_cap_bp)
    paid = sum(floors.values()) + sum(row.amount_micro for row in rows)
    # Of income that was capped, no fee is due either.
    fee_most = money.most_beside(paid, tariff.fee_bp)
    fee = fee if fee_most is None else min(fee, fee_most)
    entries = [
        _entry(stream_id, node, floors[str(node_id)], tariff) for node_id, node in sorted(nodes.items())
    ]
    if fee:
        entries.insert(0, Entry((), (_from_budget("platform_fee", stream_id, money.FEES, fee),)))
    return entries


def _by_node(credits: list[Credit]) -> dict[UUID, list[_Served]]:
    found: dict[tuple[UUID, str], _Served] = {}
    for credit in sorted(credits, key=lambda c: (c.node_id, c.plain, c.late)):
        reason = ("plain_delivery" if credit.plain else "delivery") + ("_late" if credit.late else "")
        row = found.setdefault(
            (credit.node_id, reason), _Served(credit.node_id, credit.friend_id, reason, credit.plain)
        )
        if row.friend_id != credit.friend_id:
            raise ValueError(f"node {credit.node_id} is credited to two friends")
        row.units += credit.units
        row.credited_bytes += credit.credited_bytes
    nodes: dict[UUID, list[_Served]] = defaultdict(list)
    for (node_id, _), row in found.items():
        nodes[node_id].append(row)
    return nodes


def _cap_plain(node: list[_Served], floor_micro: int, cap_bp: int) -> None:
    """Plain income is at most `cap_bp` of all the node earns from this stream."""
    plain = {row.key: row.amount_micro for row in node if row.plain}
    signed_micro = sum(row.amount_micro for row in node if not row.plain)
    most = money.most_beside(signed_micro + floor_micro, cap_bp)
    if most is None or sum(plain.values()) <= most:
        return
    capped = money.apportion(most, plain).parts
    for row in node:
        if row.plain:
            row.amount_micro = capped[row.key]


def _entry(stream_id: UUID, node: list[_Served], floor_micro: int, tariff: Tariff) -> Entry:
    first = node[0]

    def line(reason: str, units: int, credited_bytes: int, amount_micro: int) -> SettlementLine:
        return SettlementLine(
            stream_id=stream_id,
            node_id=first.node_id,
            friend_id=first.friend_id,
            reason=reason,
            units=units,
            credited_bytes=credited_bytes,
            rate_micro_per_gb=tariff.rate_micro_per_gb,
            tariff_version=tariff.version,
            amount_micro=amount_micro,
        )

    lines = [line(r.reason, r.units, r.credited_bytes, r.amount_micro) for r in node]
    if floor_micro:
        lines.append(line("floor_share", 0, 0, floor_micro))
    earned = sum(row.amount_micro for row in lines)
    pending = money.friend_account(first.friend_id, "pending")
    transfers = (_from_budget("settlement", stream_id, pending, earned),) if earned else ()
    return Entry(tuple(lines), transfers)


def _from_budget(reason: str, stream_id: UUID, account: str, amount_micro: int) -> Transfer:
    return Transfer(
        reason, (Posting(money.budget_account(stream_id), -amount_micro), Posting(account, amount_micro))
    )
