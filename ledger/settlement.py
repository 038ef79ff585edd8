"""Settlement: the credits of one epoch, a tariff and a budget become lines and transfers.

Invariant: for every stream, fee + lines <= budget; every transfer sums to zero; a node's lines add up to its transfer;
the result depends on the set of credits and not on their order. What cannot be split stays in the budget.

Per stream, with `weight = bytes` for signed delivery and `bytes x plain_bp` for plain:

    gross = min(weight x rate, budget)         budgets scale rewards down, never up
    fee   = gross x fee_bp                     at most fee_bp of what really leaves the budget
    floor = (gross - fee) x floor_bp           shared equally among the nodes that served at all, but nobody gets more
                                               than floor_most_bp of what they earn by weight: the others share that
    rest  = gross - fee - floor                by weight; plain income above its cap goes back to the budget

What is late is settled by the tariff that was in force when its segments were published: nobody lowers the price of
what has arrived. So a stream may be settled by several tariffs, the oldest first, each with the budget that is left.

What a node says to have carried beyond the measured rate of its line (`over_rate`) has no weight. Every credited byte
stands in one line: with a part of a segment that the rate left, a line may have bytes and no unit.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ledger import money
from ledger.events import Posting, SettlementLine, TariffSet, Transfer

# A node has at most six lines and one transfer; 48 of those are below 56,000 bytes (an event may have 65,535).
ENTRIES_PER_PAGE: Final = 48
FLOOR_SHARE: Final = "floor_share"
OVER_RATE: Final = "over_rate"


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
    over_rate: bool = False  # more than the node's line can have carried
    published: int = 0  # epoch; of interest where it is late


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Rates in micro-units per 10^9 bytes, parts in basis points; see ledger.events.TariffSet."""

    version: int
    rate_micro_per_gb: int
    fee_bp: int
    floor_bp: int
    plain_bp: int
    plain_income_cap_bp: int


def tariff_of(event: TariffSet) -> Tariff:
    return Tariff(
        version=event.tariff_version,
        rate_micro_per_gb=event.rate_micro_per_gb,
        fee_bp=event.fee_bp,
        floor_bp=event.floor_bp,
        plain_bp=event.plain_bp,
        plain_income_cap_bp=event.plain_income_cap_bp,
    )


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
    credits: Iterable[Credit],
    tariffs: Mapping[UUID, Tariff],
    budgets: Mapping[UUID, int],
    *,
    late_tariffs: Mapping[tuple[UUID, int], Tariff] | None = None,
    floor_most_bp: int = 0,
    to_the_byte: bool = True,
) -> list[Entry]:
    """Entries of all streams, ordered by stream, tariff and node. Without a tariff nothing is earned.

    `tariffs`: those of the epoch that is settled. `late_tariffs`: by stream and epoch of publication, for what is late;
    None: `tariffs` are for that as well.
    `to_the_byte`: a credit of bytes without a whole segment (the rest of a rate) is paid; otherwise it is in no line.
    """
    by_stream: dict[UUID, list[tuple[Credit, Tariff]]] = defaultdict(list)
    for credit in credits:
        if credit.units < 0 or credit.credited_bytes < 0:
            raise ValueError("a credit is never negative")
        if is_settled(credit, to_the_byte=to_the_byte):
            tariff = (
                tariffs.get(credit.stream_id)
                if late_tariffs is None or not credit.late
                else late_tariffs.get((credit.stream_id, credit.published))
            )
            by_stream[credit.stream_id].append((credit, tariff or NO_TARIFF))
    entries: list[Entry] = []
    for stream_id in sorted(by_stream):
        budget = budgets.get(stream_id, 0)
        for derivation in derive_each(stream_id, by_stream[stream_id], budget, floor_most_bp=floor_most_bp):
            entries += entries_of(derivation)
    return entries


def is_settled(credit: Credit, *, to_the_byte: bool) -> bool:
    """Whether it stands in a line."""
    return credit.units > 0 or (to_the_byte and credit.credited_bytes > 0)


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
class Share:
    """One node's delivery from one stream for one reason, and what it comes to."""

    node_id: UUID
    friend_id: UUID
    reason: str
    plain: bool
    units: int = 0
    credited_bytes: int = 0
    weight: int = 0  # bytes x basis points of a full byte
    part_micro: int = 0  # by weight, before the cap on plain income
    amount_micro: int = 0


@dataclass(slots=True, kw_only=True)
class Derivation:
    """The settlement of one stream with every number on the way: what `settle` pays and what `explain` shows."""

    stream_id: UUID
    tariff: Tariff
    budget_micro: int
    nodes: dict[UUID, list[Share]]  # in the order of their ids
    weight: int  # of all shares
    priced_micro: int  # what that weight costs by the tariff
    gross_micro: int  # what the budget can bear of it
    fee_first_micro: int  # fee_bp of the gross
    floor_pool_micro: int
    rest_micro: int
    floors: dict[UUID, int]
    plain_most_micro: dict[UUID, int | None]  # the most that plain delivery may bring; None: no bound
    fee_micro: int = 0  # due in the end

    @property
    def pool_micro(self) -> int:
        """What the nodes share."""
        return self.gross_micro - self.fee_first_micro

    @property
    def paid_micro(self) -> int:
        """All that leaves the budget."""
        by_weight = sum(share.amount_micro for node in self.nodes.values() for share in node)
        return self.fee_micro + sum(self.floors.values()) + by_weight


def derive_each(
    stream_id: UUID,
    priced: Iterable[tuple[Credit, Tariff]],
    budget_micro: int,
    *,
    floor_most_bp: int = 0,
) -> Iterator[Derivation]:
    """Settle the credits of one stream, tariff by tariff, the oldest first. Raises as `derive` does."""
    groups: dict[int, tuple[Tariff, list[Credit]]] = {}
    for credit, tariff in priced:
        groups.setdefault(tariff.version, (tariff, []))[1].append(credit)
    for version in sorted(groups):
        tariff, credits = groups[version]
        derivation = derive(stream_id, credits, tariff, budget_micro, floor_most_bp=floor_most_bp)
        budget_micro -= derivation.paid_micro
        yield derivation


def derive(
    stream_id: UUID,
    credits: Iterable[Credit],
    tariff: Tariff,
    budget_micro: int,
    *,
    floor_most_bp: int = 0,
) -> Derivation:
    """Settle credits of one stream by one tariff. Raises ValueError for a node credited to two friends.

    `floor_most_bp` 0: a floor share may be any multiple of what a node earns by weight.
    """
    nodes = _by_node(credits, tariff)
    rows = [row for node in nodes.values() for row in node]
    weights = {(row.node_id.int, row.reason): row.weight for row in rows}
    weight = sum(weights.values())
    priced = money.price_micro(weight, tariff.rate_micro_per_gb)
    gross = min(priced, max(budget_micro, 0))
    fee_first = money.share_bp(gross, tariff.fee_bp)
    floor_pool = money.share_bp(gross - fee_first, tariff.floor_bp) if nodes else 0
    rest = gross - fee_first - floor_pool
    parts = money.apportion(rest, weights).parts
    for row in rows:
        row.part_micro = row.amount_micro = parts[row.node_id.int, row.reason]
    floors = _floors(floor_pool, nodes, floor_most_bp)
    most = {
        node_id: _cap_plain(node, floors[node_id], tariff.plain_income_cap_bp)
        for node_id, node in nodes.items()
    }
    derivation = Derivation(
        stream_id=stream_id,
        tariff=tariff,
        budget_micro=budget_micro,
        nodes=nodes,
        weight=weight,
        priced_micro=priced,
        gross_micro=gross,
        fee_first_micro=fee_first,
        floor_pool_micro=floor_pool,
        rest_micro=rest,
        floors=floors,
        plain_most_micro=most,
    )
    # Of income that was capped, no fee is due either.
    fee_most = money.most_beside(sum(floors.values()) + sum(row.amount_micro for row in rows), tariff.fee_bp)
    derivation.fee_micro = fee_first if fee_most is None else min(fee_first, fee_most)
    return derivation


def entries_of(derivation: Derivation) -> list[Entry]:
    entries = [_entry(derivation, node_id, node) for node_id, node in derivation.nodes.items()]
    if derivation.fee_micro:
        fee = _from_budget("platform_fee", derivation.stream_id, money.FEES, derivation.fee_micro)
        entries.insert(0, Entry((), (fee,)))
    return entries


def _floors(pool: int, nodes: Mapping[UUID, list[Share]], most_bp: int) -> dict[UUID, int]:
    """Equal parts of the floor pool; what a node may not have, the others share. What nobody may have stays."""
    floors: dict[UUID, int] = {}
    left = sorted(nodes)
    if most_bp:
        most = {n: sum(row.part_micro for row in nodes[n]) * most_bp // money.BP for n in nodes}
        left.sort(key=lambda n: (most[n], n), reverse=True)
        while left and most[left[-1]] <= pool // len(left):
            smallest = left.pop()
            floors[smallest] = most[smallest]
            pool -= most[smallest]
    equal = money.apportion(pool, {node_id.int: 1 for node_id in left}).parts
    floors |= {node_id: equal[node_id.int] for node_id in left}
    return {node_id: floors[node_id] for node_id in nodes}


def reason_of(credit: Credit) -> str:
    if credit.over_rate:
        return OVER_RATE
    return ("plain_delivery" if credit.plain else "delivery") + ("_late" if credit.late else "")


def _by_node(credits: Iterable[Credit], tariff: Tariff) -> dict[UUID, list[Share]]:
    """Keyed by integers while adding up: hashing a UUID is slow."""
    found: dict[tuple[int, int], Share] = {}
    for credit in credits:
        # Over the rate it is all one: neither plain nor late.
        key = (credit.node_id.int, 4 if credit.over_rate else 2 * credit.plain + credit.late)
        row = found.get(key)
        if row is None:
            plain = credit.plain and not credit.over_rate
            row = found[key] = Share(credit.node_id, credit.friend_id, reason_of(credit), plain)
        row.units += credit.units
        row.credited_bytes += credit.credited_bytes
        if not credit.over_rate:
            row.weight += credit.credited_bytes * (tariff.plain_bp if credit.plain else money.BP)
        if row.friend_id != credit.friend_id:
            raise ValueError(f"node {credit.node_id} is credited to two friends")
    nodes: dict[UUID, list[Share]] = {}
    for key in sorted(found):
        row = found[key]
        node = nodes.setdefault(row.node_id, [])
        if node and node[0].friend_id != row.friend_id:
            raise ValueError(f"node {row.node_id} is credited to two friends")
        node.append(row)
    return nodes


def _cap_plain(node: list[Share], floor_micro: int, cap_bp: int) -> int | None:
    """Plain income is at most `cap_bp` of all the node earns from this stream. Returns that bound."""
    plain = {row.reason: row.part_micro for row in node if row.plain}
    signed_micro = sum(row.part_micro for row in node if not row.plain)
    most = money.most_beside(signed_micro + floor_micro, cap_bp)
    if most is not None and sum(plain.values()) > most:
        capped = money.apportion(most, plain).parts
        for row in node:
            if row.plain:
                row.amount_micro = capped[row.reason]
    return most


def _entry(derivation: Derivation, node_id: UUID, node: list[Share]) -> Entry:
    tariff, floor_micro, friend_id = derivation.tariff, derivation.floors[node_id], node[0].friend_id

    def line(reason: str, units: int, credited_bytes: int, amount_micro: int) -> SettlementLine:
        return SettlementLine(
            stream_id=derivation.stream_id,
            node_id=node_id,
            friend_id=friend_id,
            reason=reason,
            units=units,
            credited_bytes=credited_bytes,
            rate_micro_per_gb=tariff.rate_micro_per_gb,
            tariff_version=tariff.version,
            amount_micro=amount_micro,
        )

    lines = [line(r.reason, r.units, r.credited_bytes, r.amount_micro) for r in node]
    if floor_micro:
        lines.append(line(FLOOR_SHARE, 0, 0, floor_micro))
    earned = sum(row.amount_micro for row in lines)
    pending = money.friend_account(friend_id, "pending")
    transfers = (_from_budget("settlement", derivation.stream_id, pending, earned),) if earned else ()
    return Entry(tuple(lines), transfers)


def _from_budget(reason: str, stream_id: UUID, account: str, amount_micro: int) -> Transfer:
    return Transfer(
        reason, (Posting(money.budget_account(stream_id), -amount_micro), Posting(account, amount_micro))
    )
