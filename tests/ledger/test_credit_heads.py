"""What the fold of credits makes of rows is what it makes of their events."""

import pickle
import random
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from crew_life import live_fully
from hypothesis import given
from hypothesis import strategies as st

from ledger import friends
from ledger.application import Ledger
from ledger.event_codec import EVENT_TYPES, UPCASTERS, UnknownEventError, decode
from ledger.events import TicketIssued
from ledger.friends import Friends
from ledger.services import settle
from ledger.services.credit_heads import FOLDED, READ, read
from ledger.services.credit_index import CreditIndex
from ledger.store.recorder import Row
from ledger.ticket import BODY_BYTES, MAX_SEGMENTS, Ticket, ViewerClass, WireError

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
ROWS = [Row(n, p.stem, p.read_bytes()) for n, p in enumerate(sorted(GOLDEN.glob("*.bin")))]


def state(index: CreditIndex) -> bytes:
    index._rates._sort_in()  # it does so now and then, or when it is asked
    return pickle.dumps(vars(index))


@pytest.mark.parametrize("row", ROWS, ids=[row.topic for row in ROWS])
def test_of_an_event_that_is_not_folded_the_time_is_all_that_counts(row: Row) -> None:
    (head,) = read([row]) or [None]
    kind = EVENT_TYPES[row.topic]
    assert (head is None) == (kind in UPCASTERS or kind in FOLDED - READ)
    if head is None:
        return
    event = decode(row.state, row.topic)
    assert head.at_us == event.at_us
    if isinstance(event, TicketIssued):
        return  # the golden one is for no node
    taken, applied, passed = CreditIndex(), CreditIndex(), CreditIndex()
    taken.take([row])
    applied.apply(0, event)
    assert state(taken) == state(applied)
    if type(event) not in FOLDED:
        passed._passed(0, event.at_us)
        passed.position = 1
        assert state(applied) == state(passed)


@pytest.mark.parametrize("seed", range(5))
def test_rows_in_any_pages_make_what_their_events_make(ledger: Ledger, tmp_path: Path, seed: int) -> None:
    live_fully(ledger, tmp_path, lambda at_us: None)
    taken, applied, dice = CreditIndex(), CreditIndex(), random.Random(seed)
    while rows := ledger.read_rows(taken.position, dice.choice([1, 2, 3, 10, 50])):
        taken.take(rows)
        for row in rows:
            applied.apply(row.position, decode(row.state, row.topic))
        assert vars(taken).keys() == vars(applied).keys()
        assert (taken.position, taken._runs) == (applied.position, applied._runs)
        for epoch in range(applied.next_epoch, applied.next_epoch + 3):
            assert taken.credits(epoch, taken.position) == applied.credits(epoch, applied.position)
    assert taken.position == ledger.size()


@pytest.mark.parametrize(
    "odd",
    [
        Row(1, "stream.painted.v1", msgspec.msgpack.encode({"type": "stream.painted.v1", "at_us": 1})),
        Row(1, "session.opened.v1", b"\xc1"),
        Row(1, "session.opened.v1", next(r.state for r in ROWS if r.topic == "node.probed.v2")),
        Row(1, "node.probed.v2", next(r.state for r in ROWS if r.topic == "node.joined.v1")),
    ],
    ids=["unknown", "no event", "another's name", "another's bytes"],
)
def test_before_what_is_no_event_all_is_folded(odd: Row) -> None:
    first = next(r for r in ROWS if r.topic == "session.opened.v1")
    index = CreditIndex()
    with pytest.raises(UnknownEventError):
        index.take([first, odd, first])
    assert index.position == 1
    with pytest.raises(UnknownEventError):
        index.take([odd])


def test_every_event_has_its_row_here() -> None:
    assert {row.topic for row in ROWS} == set(EVENT_TYPES)


class Stopped(Exception):
    pass


def test_a_long_fold_that_is_stopped_goes_on_from_where_it_was_kept(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "INDEX_KEPT_EVERY", 1)
    monkeypatch.setattr(settle, "PAGE_EVENTS", 5)
    live_fully(ledger, tmp_path, lambda at_us: None)
    clock, pages = [0.0], 0

    def alive() -> None:
        nonlocal pages
        pages += 1
        clock[0] += settle.SAID_EVERY_S / 2
        if pages == 6:
            raise Stopped

    index = settle.recall_index(ledger)
    with pytest.raises(Stopped):
        settle.catch_up(ledger, index, alive=settle.kept_on_the_way(ledger, index, alive, lambda: clock[0]))
    again, whole = settle.recall_index(ledger), CreditIndex()
    assert again.position == 20  # after the fourth page, which is ten seconds after the second
    for each in (again, whole):
        settle.catch_up(ledger, each)
    for epoch in range(whole.next_epoch + 3):
        assert again.credits(epoch, again.position) == whole.credits(epoch, whole.position)


ids = st.integers(0, 30).map(lambda n: UUID(int=n << 64 | 7 * n % 5))


@given(st.lists(st.tuples(ids, ids)), st.integers(1, 5))
def test_friends_are_a_dictionary(joined: list[tuple[UUID, UUID]], most: int) -> None:
    known, plain = Friends(), dict[UUID, UUID]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(friends, "_NEWER_MOST", most)
        for node, friend in joined:
            known.joined(node, friend)
            plain[node] = friend
            assert known.of(node) == friend
            kept: Any = pickle.loads(pickle.dumps(known))
            assert kept == known
    for n in range(31):
        node = UUID(int=n << 64 | 7 * n % 5)
        assert known.of(node) == plain.get(node)
    assert len(known.newer) < max(most, len(plain) // 8 + 1)


NODE, FRIEND = UUID(int=5), UUID(int=6)
TICKET = Ticket(
    viewer_class=ViewerClass.SIGNING,
    hub_key_id=bytes(8),
    ticket_id=UUID(int=1),
    session_id=UUID(int=2),
    stream_id=UUID(int=3),
    rendition_id=UUID(int=4),
    viewer_key=bytes(32),
    node_key=bytes(32),
    first_sequence=1 << 40,
    last_sequence=(1 << 40) + MAX_SEGMENTS - 1,
    settle_by_s=1 << 33,
    tariff_version=1,
    byte_budget=1,
    nonce=bytes(16),
).body()


@given(st.integers(0, len(TICKET)), st.binary(max_size=9))
def test_a_ticket_is_refused_as_it_is_read(at: int, odd: bytes) -> None:
    body = TICKET[:at] + odd + TICKET[at + len(odd) :]
    index = CreditIndex()
    index._friends.joined(NODE, FRIEND)
    try:
        ticket = Ticket.decode_body(body[:BODY_BYTES])
    except WireError as error:
        with pytest.raises(WireError, match=re.escape(str(error))):
            index._apply_ticket(0, 0, NODE.bytes, body + bytes(64 * (len(body) == BODY_BYTES)))
        return
    index._apply_ticket(0, 0, NODE.bytes, body + bytes(64))
    (known,) = index._tickets.items()
    assert known[0] == ticket.hash
    assert known[1].settle_by_us == ticket.settle_by_s * 1_000_000
    assert known[1].pool.stream_id == ticket.stream_id
    assert known[1].pool.node_id == NODE
    assert known[1].marks is index._published[ticket.rendition_id.bytes]
    plain = index._plain_tickets.get(ticket.session_id, [])
    assert bool(plain) == (ticket.viewer_class is ViewerClass.PLAIN)
    for one in plain:
        assert (one.first, one.last) == (ticket.first_sequence, ticket.last_sequence)
