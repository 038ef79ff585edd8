from collections import defaultdict
from dataclasses import replace
from itertools import product
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger.event_codec import MAX_EVENT_BYTES, encode
from ledger.events import EpochSettled, SettlementLine, Transfer
from ledger.settlement import NO_TARIFF, Credit, Entry, Tariff, derive, pages, settle

STREAMS = [UUID(int=i) for i in range(1, 4)]
NODES = [UUID(int=100 + i) for i in range(5)]
FRIENDS = {node: UUID(int=1_000 + i // 2) for i, node in enumerate(NODES)}
bps = st.integers(0, 10_000)

tariffs = st.builds(
    Tariff,
    version=st.just(1),
    rate_micro_per_gb=st.integers(0, 10**9),
    fee_bp=bps,
    floor_bp=bps,
    plain_bp=bps,
    plain_income_cap_bp=bps,
)


@st.composite
def credit(draw: st.DrawFn) -> Credit:
    node = draw(st.sampled_from(NODES))
    return Credit(
        stream_id=draw(st.sampled_from(STREAMS)),
        node_id=node,
        friend_id=FRIENDS[node],
        plain=draw(st.booleans()),
        late=draw(st.booleans()),
        units=draw(st.integers(0, 500)),
        credited_bytes=draw(st.integers(0, 10**11)),
        over_rate=draw(st.integers(0, 9)) == 0,
        published=draw(st.integers(0, 3)),
    )


cases = st.tuples(
    st.lists(credit(), max_size=20),
    st.dictionaries(st.sampled_from(STREAMS), tariffs),
    st.dictionaries(st.sampled_from(STREAMS), st.integers(0, 10**12)),
)
Case = tuple[list[Credit], dict[UUID, Tariff], dict[UUID, int]]


def credits_of(stream: UUID, weights: list[int]) -> list[Credit]:
    """One unit for each of so many nodes, of a friend each, with these bytes."""
    return [
        Credit(
            stream_id=stream,
            node_id=UUID(int=n),
            friend_id=UUID(int=n),
            plain=False,
            late=False,
            units=1,
            credited_bytes=weight,
        )
        for n, weight in enumerate(weights, 1)
    ]


def flat(entries: list[Entry]) -> tuple[list[SettlementLine], list[Transfer]]:
    return [x for e in entries for x in e.lines], [t for e in entries for t in e.transfers]


def moved(transfers: list[Transfer]) -> dict[str, int]:
    accounts: dict[str, int] = defaultdict(int)
    for transfer in transfers:
        for posting in transfer.postings:
            accounts[posting.account] += posting.amount_micro
    return accounts


@given(cases)
def test_settlement_never_pays_more_than_the_budget(case: Case) -> None:
    _, transfers = flat(settle(*case))
    for account, amount in moved(transfers).items():
        if account.startswith("budget:"):
            assert -amount <= case[2].get(UUID(account[7:]), 0)


@given(cases)
def test_every_transfer_sums_to_zero_and_no_line_is_negative(case: Case) -> None:
    lines, transfers = flat(settle(*case))
    assert all(sum(p.amount_micro for p in t.postings) == 0 for t in transfers)
    assert all(line.amount_micro >= 0 for line in lines)
    assert all(p.amount_micro > 0 for t in transfers for p in t.postings[1:])


@given(cases)
def test_lines_add_up_to_transfers(case: Case) -> None:
    lines, transfers = flat(settle(*case))
    earned: dict[str, int] = defaultdict(int)
    for line in lines:
        earned[f"friend:{line.friend_id}:pending"] += line.amount_micro
    paid = {a: x for a, x in moved(transfers).items() if a.startswith("friend:")}
    assert {a: x for a, x in earned.items() if x} == paid


@given(cases, st.randoms())
def test_the_order_of_credits_does_not_matter(case: Case, random: object) -> None:
    credits, tariff, budget = case
    shuffled = list(credits)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert settle(shuffled, tariff, budget) == settle(credits, tariff, budget)


@given(cases)
def test_plain_income_stays_within_its_cap(case: Case) -> None:
    lines, _ = flat(settle(*case))
    income: dict[tuple[UUID, UUID], list[int]] = defaultdict(lambda: [0, 0])
    for line in lines:
        income[line.stream_id, line.node_id][line.reason.startswith("plain")] += line.amount_micro
    for (stream, _), (other, plain) in income.items():
        tariff = case[1].get(stream)
        assert plain * 10_000 <= (tariff.plain_income_cap_bp if tariff else 0) * (plain + other)


@given(cases)
def test_the_fee_is_within_its_part_of_what_leaves_the_budget(case: Case) -> None:
    for stream in STREAMS:
        mine = [c for c in case[0] if c.stream_id == stream]
        _, transfers = flat(settle(mine, case[1], case[2]))
        accounts = moved(transfers)
        fee, spent = accounts["fees"], -accounts[f"budget:{stream}"]
        assert fee * 10_000 <= (case[1][stream].fee_bp if stream in case[1] else 0) * spent


@st.composite
def priced_cases(draw: st.DrawFn) -> tuple[Case, dict[tuple[UUID, int], Tariff]]:
    """A case whose streams have had tariffs before: in epoch n the n-th, the last one still."""
    credits, _, budgets = draw(cases)
    now, earlier = {}, {}
    for stream in STREAMS:
        history = draw(st.lists(tariffs, max_size=3))
        for epoch in range(4) if history else ():
            n = min(epoch, len(history) - 1)
            earlier[stream, epoch] = now[stream] = replace(history[n], version=n + 1)
    return (credits, now, budgets), earlier


@given(priced_cases(), st.randoms())
def test_late_or_not_no_more_is_paid_than_the_budget_and_all_stands_in_the_lines(
    priced: tuple[Case, dict[tuple[UUID, int], Tariff]], random: object
) -> None:
    (credits, now, budgets), earlier = priced
    made = settle(credits, now, budgets, late_tariffs=earlier)
    lines, transfers = flat(made)
    for account, amount in moved(transfers).items():
        assert not account.startswith("budget:") or -amount <= budgets.get(UUID(account[7:]), 0)
    assert sum(x.units for x in lines) == sum(c.units for c in credits)
    assert sum(x.credited_bytes for x in lines) == sum(c.credited_bytes for c in credits)
    shuffled = list(credits)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert settle(shuffled, now, budgets, late_tariffs=earlier) == made


@given(priced_cases())
def test_what_is_late_is_settled_as_if_it_were_alone_by_the_tariff_of_its_own_time(
    priced: tuple[Case, dict[tuple[UUID, int], Tariff]],
) -> None:
    (credits, now, _), earlier = priced
    rich = dict.fromkeys(STREAMS, 10**30)
    apart: list[Entry] = []
    for stream, version in product(STREAMS, range(4)):
        by = {(s, e): t for (s, e), t in earlier.items() if s == stream and t.version == version}
        current = now.get(stream)
        group = [
            c
            for c in credits
            if c.stream_id == stream
            and ((earlier.get((stream, c.published)) if c.late else current) or NO_TARIFF).version == version
        ]
        tariff = next(iter(by.values()), NO_TARIFF)
        apart += settle(group, {stream: tariff}, rich)
    assert settle(credits, now, rich, late_tariffs=earlier) == apart


@given(cases)
def test_all_served_units_stand_in_the_lines_even_when_nothing_is_paid(case: Case) -> None:
    lines, _ = flat(settle(*case))
    assert sum(line.units for line in lines) == sum(c.units for c in case[0])
    assert sum(x.credited_bytes for x in lines) == sum(c.credited_bytes for c in case[0])
    lines, _ = flat(settle(*case, to_the_byte=False))  # from before that was a setting
    assert sum(x.credited_bytes for x in lines) == sum(c.credited_bytes for c in case[0] if c.units)


def test_a_worked_example() -> None:
    """10 GB at 1.00 a GB: 10.00, fee 5 %, floor 10 % of 9.50 shared by two, 8.55 by bytes 3:1."""
    tariff = Tariff(
        version=1,
        rate_micro_per_gb=1_000_000,
        fee_bp=500,
        floor_bp=1_000,
        plain_bp=5_000,
        plain_income_cap_bp=3_000,
    )
    made = [
        Credit(
            stream_id=STREAMS[0],
            node_id=node,
            friend_id=FRIENDS[node],
            plain=False,
            late=late,
            units=1,
            credited_bytes=b,
        )
        for node, b, late in ((NODES[0], 7_500_000_000, False), (NODES[2], 2_500_000_000, True))
    ]
    lines, transfers = flat(settle(made, {STREAMS[0]: tariff}, {STREAMS[0]: 50_000_000}))
    assert [(x.node_id, x.reason, x.amount_micro) for x in lines] == [
        (NODES[0], "delivery", 6_412_500),
        (NODES[0], "floor_share", 475_000),
        (NODES[2], "delivery_late", 2_137_500),
        (NODES[2], "floor_share", 475_000),
    ]
    assert moved(transfers)["fees"] == 500_000
    assert moved(transfers)[f"budget:{STREAMS[0]}"] == -10_000_000


def test_a_full_page_fits_into_one_log_entry() -> None:
    """Ids, numbers and amounts as large as they get."""
    big = (1 << 53) - 1
    tariff = Tariff(
        version=70_000,
        rate_micro_per_gb=10**12,
        fee_bp=500,
        floor_bp=1_000,
        plain_bp=5_000,
        plain_income_cap_bp=3_000,
    )
    made = [
        Credit(
            stream_id=STREAMS[0],
            node_id=UUID(int=(1 << 127) + n),
            friend_id=UUID(int=(1 << 126) + n),
            plain=plain,
            late=late,
            units=big,
            credited_bytes=big,
            over_rate=over_rate,
        )
        for n in range(200)
        for plain, late, over_rate in [*product((False, True), (False, True), (False,)), (False, False, True)]
    ]
    cut = pages(settle(made, {STREAMS[0]: tariff}, {STREAMS[0]: big}))
    assert len(cut) == 5
    for page in cut:
        event = EpochSettled(
            originator_id=STREAMS[0],
            originator_version=big,
            at_us=big,
            epoch=big,
            page=1,
            pages=5,
            log_from=big,
            log_to=big,
            lines=page.lines,
            transfers=page.transfers,
        )
        assert len(encode(event)) < 57_000 < MAX_EVENT_BYTES
        assert sum(moved(list(page.transfers)).values()) == 0


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=12),
    st.integers(0, 10_000),
    st.integers(0, 30_000),
)
def test_a_floor_share_is_equal_but_never_more_than_its_part_of_what_a_node_earns_by_weight(
    weights: list[int], floor_bp: int, most_bp: int
) -> None:
    stream = STREAMS[0]
    tariff = Tariff(
        version=1,
        rate_micro_per_gb=1_000,
        fee_bp=500,
        floor_bp=floor_bp,
        plain_bp=10_000,
        plain_income_cap_bp=9_999,
    )
    made = credits_of(stream, weights)
    d = derive(stream, made, tariff, 10**15, floor_most_bp=most_bp)
    earned = {node: sum(row.part_micro for row in rows) for node, rows in d.nodes.items()}
    assert sum(d.floors.values()) <= d.floor_pool_micro
    if not most_bp:
        assert sum(d.floors.values()) == d.floor_pool_micro
        assert max(d.floors.values()) - min(d.floors.values()) <= 1
        return
    most = {node: part * most_bp // 10_000 for node, part in earned.items()}
    free = [d.floors[node] for node in d.floors if d.floors[node] < most[node]]
    assert all(d.floors[node] <= most[node] for node in d.floors)
    if free:  # all is given away, and nobody has more than those who could have more
        assert sum(d.floors.values()) == d.floor_pool_micro
        assert max(d.floors.values()) <= min(free) + 1


@given(st.lists(st.integers(10**9, 10**12), min_size=1, max_size=5), st.integers(1, 40))
def test_many_nodes_that_serve_next_to_nothing_take_next_to_nothing_of_the_floor(
    weights: list[int], idlers: int
) -> None:
    stream = STREAMS[0]
    tariff = Tariff(
        version=1,
        rate_micro_per_gb=10**6,
        fee_bp=0,
        floor_bp=1_000,
        plain_bp=5_000,
        plain_income_cap_bp=3_000,
    )

    def incomes(all_weights: list[int]) -> list[int]:
        made = credits_of(stream, all_weights)
        lines, _ = flat(settle(made, {stream: tariff}, {stream: 10**15}, floor_most_bp=10_000))
        return [
            sum(x.amount_micro for x in lines if x.node_id.int == n) for n in range(1, len(all_weights) + 1)
        ]

    tiny = 10**6  # bytes
    before, after = incomes(weights), incomes(weights + [tiny] * idlers)
    delivered = idlers * tiny * tariff.rate_micro_per_gb // 10**9
    assert sum(after[len(weights) :]) <= 2 * delivered
    assert sum(before) - sum(after[: len(weights)]) <= delivered + 10
