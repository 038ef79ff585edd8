"""What a delivery knows after judging is what a fold of its events gives."""

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_judge_columns import HOME, NODE_KEY, NOW_S, Case, cases, known, session

from ledger.aggregates.delivery import Delivery, Presented
from ledger.batch import HEADER_BYTES, batch_hash
from ledger.event_codec import decode, encode
from ledger.events import Event, SegmentsServed
from ledger.judge import Manifest, NodeFacts
from ledger.settings import Settings

BROADCAST = UUID(int=9)
SESSIONS = [session(n) for n in range(15)]


def judged(delivery: Delivery, batch: list[Case], header: bytes, limit: int) -> SegmentsServed | int:
    return delivery.judge(
        Presented(
            indices=bytes(range(len(batch))),
            receipts=b"".join(c.receipt.body() + bytes(64) for c in batch),
            tickets=known(batch),
            signed=np.array([c.signed for c in batch]),
        ),
        batch_header=header,
        node_id=UUID(int=8),
        node=NodeFacts(NODE_KEY, UUID(int=77), frozenset({HOME}), suspended=False),
        manifest=Manifest(10, range(90)),
        settings=Settings(prefix_sessions_max=limit),
        digest_of=lambda *_: None,
        at_us=NOW_S * 1_000_000,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cases(10), min_size=1, max_size=8), min_size=1, max_size=4), st.integers(1, 3))
def test_judging_and_folding_lead_to_the_same(batches: list[list[Case]], limit: int) -> None:
    delivery, headers = Delivery.of(BROADCAST), []
    for n, batch in enumerate(batches):
        alone = len(batch) == 1
        headers.append(b"" if alone else n.to_bytes(HEADER_BYTES, "big"))
        outcome = judged(delivery, batch, headers[-1], limit)
        if alone:  # anybody may send it again
            assert judged(delivery, batch, b"", limit) == (
                outcome if isinstance(outcome, int) else outcome.originator_version
            )
    folded = Delivery.of(BROADCAST)
    events: list[Event] = delivery.collect_events()
    for event in events:
        folded.mutate(decode(encode(event)))
    networks = {c.facts.network for batch in batches for c in batch}
    ours, theirs = (d.credits.copy_of(SESSIONS, networks) for d in (delivery, folded))
    assert [ours.credited(s) for s in SESSIONS] == [theirs.credited(s) for s in SESSIONS]
    assert ours._by_network == theirs._by_network
    for header in filter(None, headers):
        name = batch_hash(header)
        assert folded.judged_before(name) == delivery.judged_before(name) is not None
    total = sum(j.units for e in events if isinstance(e, SegmentsServed) for j in e.judged)
    assert total == sum(ours.credited(s).bit_count() for s in SESSIONS)


def state(delivery: Delivery, networks: set[bytes]) -> object:
    credits = delivery.credits.copy_of(SESSIONS, networks)
    rows = delivery.credits._rows[: delivery.credits._used].tobytes()
    batches, alone = list(delivery._batches.items()), list(delivery._alone.items())
    return delivery.version, credits._by_session, credits._by_network, rows, batches, alone


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(cases(10), min_size=1, max_size=8), min_size=1, max_size=5),
    st.lists(st.lists(cases(10), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_what_could_not_be_saved_leaves_no_trace(
    saved: list[list[Case]], lost: list[list[Case]], limit: int, room: int
) -> None:
    networks = {c.facts.network for batch in saved + lost for c in batch}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ledger.aggregates.delivery.REMEMBERED_BATCHES", room)
        delivery, other = Delivery.of(BROADCAST), Delivery.of(BROADCAST)
        for n, batch in enumerate(saved):
            before = state(delivery, networks)
            for m, unsaved in enumerate(lost):
                judged(delivery, unsaved, (n << 8 | m).to_bytes(HEADER_BYTES, "big") if m else b"", limit)
            if delivery.collect_events():
                delivery.take_back()
            assert state(delivery, networks) == before
            header = (n << 16).to_bytes(HEADER_BYTES, "big") if len(batch) > 1 else b""
            assert judged(delivery, batch, header, limit) == judged(other, batch, header, limit)
            assert delivery.collect_events() == other.collect_events()
            delivery.settle()
            assert state(delivery, networks) == state(other, networks)
