"""What a node's line can have carried: no settlement, and no two of them together, pay for more."""

import pickle
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import events as e
from ledger import node_rates
from ledger.judged import Judged, pack
from ledger.node_rates import HOUR_US, Epochs, NodeRates
from ledger.receipt import Receipt, to_bitmap
from ledger.services.credit_index import CreditIndex
from ledger.settings import Settings
from ledger.settlement import OVER_RATE, settle
from ledger.ticket import Ticket, ViewerClass

START = 500_000 * HOUR_US
STREAM, SESSION, RENDITION, NODE, FRIEND = (UUID(int=n) for n in range(1, 6))
FACTOR, FLOOR = 2, 1_000  # of the settings here
RULES = Settings().changed({"node_rate_factor": FACTOR, "node_rate_floor": FLOOR})

probes = st.lists(
    st.tuples(
        st.sampled_from(["ok", "slow"]), st.integers(0, 200), st.integers(-1, 10**6), st.integers(0, 10**7)
    )
)


def probe(outcome: str, hour: int, latency_us: int, size: int) -> e.NodeProbed:
    return e.NodeProbed(
        originator_id=NODE,
        originator_version=1,
        at_us=START + hour * HOUR_US,
        outcome=outcome,
        sequence=0,
        latency_us=latency_us,
        segment_bytes=size,
        session_id=None,
    )


@given(probes, st.integers(0, 200), st.integers(0, 40))
def test_the_bound_is_the_best_of_a_day_and_a_probe_more_never_takes_anything(
    made: list[tuple[str, int, int, int]], hour: int, position: int
) -> None:
    rates = NodeRates()
    for at, one in enumerate(made):
        rates.probed(at, probe(*one))
    start, end = START + hour * HOUR_US, START + (hour + 1) * HOUR_US
    best = max(
        (
            size * 1_000_000 // latency_us
            for at, (outcome, of, latency_us, size) in enumerate(made)
            if outcome == "ok" and latency_us > 0 and at < position and hour - 24 <= of <= hour + 2
        ),
        default=0,
    )
    most = rates.most_bytes(NODE, start, end, position, RULES)
    assert most == max(FACTOR * best, FLOOR) * 3_600
    more = rates.most_bytes(NODE, start, end, position + 1, RULES)
    assert most is not None
    assert more is not None
    assert most <= more
    assert rates.most_bytes(NODE, start, end, position, Settings.recorded({})) is None
    rates.forget_before(start, Epochs(START, HOUR_US))
    assert rates.most_bytes(NODE, start, end, position, RULES) == most


many = st.lists(
    st.one_of(
        st.tuples(st.just("probe"), st.integers(0, 3), st.integers(0, 60), st.integers(1, 9)),
        st.tuples(st.just("forget"), st.integers(0, 60)),
        st.tuples(st.just("keep")),
    )
)


@given(many, st.integers(0, 60))
def test_rates_of_many_nodes_are_those_of_a_table_and_what_is_over_leaves_nothing(
    steps: list[tuple[str, int, int, int]], position: int
) -> None:
    nodes = [UUID(int=1), UUID(int=2**64 + 1), UUID(int=2**64 + 2), UUID(int=2**128 - 1)]
    rates, table, oldest = NodeRates(), list[tuple[UUID, int, int, int]](), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_rates, "_NEWER_BYTES", 120)
        for at, step in enumerate(steps):
            match step:
                case "probe", node, hour, size:
                    event = probe("ok", hour, 1_000_000, 1_000 * size)
                    event = msgspec.structs.replace(event, originator_id=nodes[node])
                    rates.probed(at, event)
                    table.append((nodes[node], hour, at, 1_000 * size))
                case "forget", hour:
                    rates.forget_before(START + hour * HOUR_US, Epochs(START, HOUR_US))
                    oldest = max(oldest, hour)
                    table = [row for row in table if row[1] >= hour - 24]
                case _:
                    rates = msgspec.msgpack.decode(msgspec.msgpack.encode(rates), type=NodeRates)
                    rates = pickle.loads(pickle.dumps(rates))
    for node in nodes:
        for hour in range(oldest, 62, 7):
            start = START + hour * HOUR_US
            best = [
                rate
                for n, of, at, rate in table
                if n == node and at < position and hour - 24 <= of <= hour + 2
            ]
            most = rates.most_bytes(node, start, start + HOUR_US, position, RULES)
            assert most == max(FACTOR * max(best, default=0), FLOOR) * 3_600
    rates.forget_before(START + 200 * HOUR_US, Epochs(START, HOUR_US))
    assert rates == NodeRates()


class Log:
    """One node with one endless ticket. Segment n is published in hour n."""

    def __init__(self) -> None:
        self.index, self.count = CreditIndex(), 0
        self.add(e.CrewFounded, genesis_us=START, name="c", unit="EUR", epoch_length_s=3_600)
        self.add(e.SettingsChanged, settings=RULES.as_dict())
        self.add(
            e.NodeJoined,
            originator_id=NODE,
            public_key=bytes(32),
            friend_id=FRIEND,
            invite_id=STREAM,
            prefix_commitment=b"",
        )
        ticket = Ticket(
            viewer_class=ViewerClass.SIGNING,
            hub_key_id=bytes(8),
            ticket_id=STREAM,
            session_id=SESSION,
            stream_id=STREAM,
            rendition_id=RENDITION,
            viewer_key=bytes(32),
            node_key=bytes(32),
            first_sequence=0,
            last_sequence=300,
            settle_by_s=START // 1_000_000 + 10**7,
            tariff_version=1,
            byte_budget=1,
            nonce=bytes(16),
        )
        self.ticket_hash = ticket.hash
        data = ticket.body() + bytes(64)
        self.add(e.TicketIssued, session_id=SESSION, broadcast_id=STREAM, node_id=NODE, ticket=data)
        segments = tuple(e.Segment(n, 1, 1, b"", START + n * HOUR_US) for n in range(4))
        self.add(e.SegmentsPublished, rendition_id=RENDITION, segments=segments)

    def add(
        self, kind: type[e.Event], *, originator_id: UUID = STREAM, at_us: int = START, **fields: object
    ) -> None:
        self.index.apply(
            self.count, kind(originator_id=originator_id, originator_version=1, at_us=at_us, **fields)
        )
        self.count += 1

    def claim(self, hour: int, credited_bytes: int, at_us: int) -> None:
        receipt = Receipt(
            ticket_hash=self.ticket_hash,
            counter=1,
            base_sequence=hour,
            bitmap=to_bitmap(hour, [hour]),
            digest=bytes(32),
        )
        self.add(
            e.SegmentsServed,
            at_us=at_us,
            node_id=NODE,
            batch_header=b"",
            first_sequence=0,
            network_limit=2,
            receipts=receipt.body() + bytes(64),
            **pack([0], [SESSION], [b""], [Judged("accepted", 1, credited_bytes)]),
        )


claims = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3_000_000)), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(claims, st.integers(0, 2_000)), min_size=1, max_size=4))
def test_of_one_hour_no_more_is_ever_paid_than_the_line_can_have_carried(
    epochs: list[tuple[list[tuple[int, int]], int]],
) -> None:
    log, paid, claimed = Log(), dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    best = 0
    for epoch, (made, rate) in enumerate(epochs):
        at_us = START + epoch * HOUR_US
        event = probe("ok", 0, 1_000_000, rate)
        log.index.apply(log.count, event)
        log.count, best = log.count + 1, max(best, rate)
        for hour, credited_bytes in made:
            log.claim(hour, credited_bytes, at_us)
            claimed[hour] += credited_bytes
        log_to = log.count
        credits = log.index.credits(epoch, log_to)
        assert sum(c.credited_bytes for c in credits) == sum(b for _, b in made)
        lines = [line for entry in settle(credits, {}, {}) for line in entry.lines]
        assert sum(line.credited_bytes for line in lines) == sum(b for _, b in made)  # each byte in one line
        within = sum(line.credited_bytes for line in lines if line.reason != OVER_RATE)
        assert within == sum(
            c.credited_bytes for c in credits if not c.over_rate
        )  # as counted for the next time
        for part in log.index._parts(log.index._claims(log_to)[0], log_to)[0]:
            paid[part.published] += 0 if part.over_rate else part.credited_bytes
        log.add(
            e.EpochSettled,
            at_us=at_us + HOUR_US,
            epoch=epoch,
            page=1,
            pages=1,
            log_from=0,
            log_to=log_to,
            lines=(),
            transfers=(),
        )
        for hour in range(4):
            most = max(FACTOR * best, FLOOR) * 3_600
            assert paid[hour] <= most
            if claimed[hour] <= FLOOR * 3_600:  # what every node is believed to carry
                assert paid[hour] == claimed[hour]
