"""What the hub observed of plain players, against sets of numbers."""

from collections import defaultdict
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger import events as e
from ledger.judged import Judged, pack
from ledger.receipt import Receipt, to_bitmap
from ledger.services.credit_index import CreditIndex
from ledger.ticket import Ticket, ViewerClass

START = 500_000 * 3_600 * 1_000_000
STREAM, SESSION, RENDITION = UUID(int=1), UUID(int=2), UUID(int=3)
NODES = [UUID(int=10), UUID(int=11)]

tickets = st.tuples(st.sampled_from([0, 1]), st.integers(0, 900), st.integers(1, 512))
observations = st.tuples(
    st.integers(0, 1_400), st.sets(st.integers(0, 511), max_size=30), st.sets(st.integers(0, 511), max_size=6)
)
steps = st.lists(st.one_of(tickets.map(lambda t: ("ticket", *t)), observations.map(lambda o: ("see", *o))))


class Log:
    def __init__(self) -> None:
        self.index = CreditIndex()
        self.count = 0
        self.tickets: list[tuple[int, int, int, bytes]] = []  # node, first, last, hash
        self.add(e.CrewFounded, name="c", unit="EUR", genesis_us=START, epoch_length_s=3_600)
        for node in NODES:
            self.add(
                e.NodeJoined,
                originator_id=node,
                public_key=bytes(32),
                friend_id=UUID(int=node.int + 10),
                invite_id=STREAM,
                prefix_commitment=b"",
            )

    def add(self, kind: type[e.Event], originator_id: UUID = STREAM, **fields: object) -> None:
        event = kind(originator_id=originator_id, originator_version=1, at_us=START, **fields)
        self.index.apply(self.count, event)
        self.count += 1

    def ticket(self, node: int, first: int, length: int) -> None:
        made = Ticket(
            viewer_class=ViewerClass.PLAIN,
            hub_key_id=bytes(8),
            ticket_id=UUID(int=len(self.tickets)),
            session_id=SESSION,
            stream_id=STREAM,
            rendition_id=RENDITION,
            viewer_key=bytes(32),
            node_key=bytes(32),
            first_sequence=first,
            last_sequence=first + length - 1,
            settle_by_s=START // 1_000_000 + 1,
            tariff_version=1,
            byte_budget=1,
            nonce=bytes(16),
        )
        self.tickets.append((node, first, first + length - 1, made.hash))
        self.add(
            e.TicketIssued,
            session_id=SESSION,
            broadcast_id=STREAM,
            node_id=NODES[node],
            ticket=made.body() + bytes(64),
        )

    def claim(self, ticket_hash: bytes, units: int) -> None:
        receipt = Receipt(
            ticket_hash=ticket_hash, counter=1, base_sequence=0, bitmap=to_bitmap(0, [0]), digest=bytes(32)
        )
        self.add(
            e.SegmentsServed,
            node_id=NODES[0],
            batch_header=b"",
            first_sequence=0,
            network_limit=2,
            receipts=receipt.body() + bytes(64),
            **pack([0], [SESSION], [b""], [Judged("accepted", units, units * 1_000)]),
        )


@given(steps)
def test_each_observed_segment_counts_once_for_the_newest_ticket_that_covers_it(
    drawn: list[tuple[str, int, object, object]],
) -> None:
    log = Log()
    seen: dict[str, set[int]] = {"polled": set(), "fetched": set()}
    counted: dict[tuple[int, str], int] = defaultdict(int)
    for what, first, second, third in drawn:
        if what == "ticket":
            assert isinstance(second, int)
            assert isinstance(third, int)
            log.ticket(first, second, third)
            continue
        assert isinstance(second, set)
        assert isinstance(third, set)
        sets = {"polled": {first + x for x in second}, "fetched": {first + x for x in third}}
        log.add(
            e.SessionObserved,
            session_id=SESSION,
            base_sequence=first,
            polled=to_bitmap(first, sets["polled"]),
            fetched_at_hub=to_bitmap(first, sets["fetched"]),
        )
        for kind, sequences in sets.items():
            for sequence in sequences - seen[kind]:
                covering = [t for t in log.tickets if t[1] <= sequence <= t[2]]
                if covering:
                    seen[kind].add(sequence)
                    counted[covering[-1][0], kind] += 1
    claimed: set[int] = set()
    for node, _, _, ticket_hash in log.tickets:
        if node not in claimed:  # claims more than could ever be allowed: what is paid is the bound
            claimed.add(node)
            log.claim(ticket_hash, 50_000)
    paid = {NODES.index(c.node_id): (c.units, c.credited_bytes) for c in log.index.credits(0, log.count)}
    bounds = {node: min(10 * counted[node, "fetched"], counted[node, "polled"]) for node in claimed}
    assert paid == {node: (units, units * 1_000) for node, units in bounds.items() if units}
