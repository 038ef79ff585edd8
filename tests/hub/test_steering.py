"""Steering on a real ledger: who serves whom, who may ask for it, and what a killed origin forgets."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from steering_rig import ELSEWHERE, HOME, T0, Hub, counted, plain_viewer, run, watch

from hub import steering as module
from ledger import application
from ledger.aggregates.node import Node
from ledger.events import SessionOpened, TicketIssued
from ledger.services import broadcasts, crew, nodes
from relay.ports import Unavailable, Unknown


def test_a_session_keeps_its_node_and_its_ticket_which_stands_in_the_log(hub: Hub) -> None:
    hub.add_nodes(3)
    session = hub.open()
    first = hub.assigned(session, 20)
    assert first is not None
    for head in range(20, 30):
        hub.clock.s += 2
        assert hub.assigned(session, head) is first
    assert [e.ticket for e in hub.events(TicketIssued)] == [first.ticket.encode()]
    assert first.ticket.ticket.covers(20)
    assert first.ticket.verified_by(hub.keys.ticket.public_key)


def test_a_player_is_sent_to_its_node_only_when_that_answers_at_this_moment(hub: Hub) -> None:
    first, second = hub.add_nodes(2)
    session = hub.open()
    own = hub.node_of(session)
    other = second if own == first else first
    assert hub.doors.asked == 1, "before anything was promised to it"
    known = hub.steering.known_assignment
    with pytest.raises(Unknown):
        known(session, hub.rendition, 21)
    hub.doors.fresh = True
    assert known(session, hub.rendition, 21) is hub.assigned(session, 21)
    hub.doors.fresh = False
    hub.doors.silent = {own}
    assert hub.assigned(session, 22) is None, "the hub serves what is listed now"
    hub.steering.observe_fetch(session, 22, HOME)
    hub.doors.silent = set()
    assert hub.node_of(session, 23) == own, "it was only slow, and nobody complained"
    assert len(hub.events(TicketIssued)) == 1
    hub.doors.silent = {own}
    assert {hub.node_of(hub.open()) for _ in range(10)} == {other}, "nobody new is sent there"
    hub.doors.silent = {own, other}
    assert hub.assigned(hub.open()) is None


def test_a_page_that_helps_itself_is_not_asked_for(hub: Hub) -> None:
    hub.add_nodes(1)
    session = run(hub.steering.open_signing_session("main", b"v" * 32, HOME, None))
    hub.doors.silent = set(hub.node_keys)
    for head in (20, 21):
        assert hub.assigned(session, head) is not None
    assert hub.steering.known_assignment(session, hub.rendition, 22) is not None
    assert hub.doors.asked == 0


def test_a_node_that_said_goodbye_is_listed_nowhere(hub: Hub) -> None:
    first, second = hub.add_nodes(2)
    session = hub.open()
    own = hub.node_of(session)
    hub.steering.node_left(own)
    assert hub.node_of(session, 21) == ({first, second} - {own}).pop()


def test_a_stream_that_does_not_exist_and_a_hub_without_nodes(hub: Hub) -> None:
    assert run(hub.steering.open_session("none", HOME)) is None
    assert hub.assigned(hub.open()) is None
    assert hub.assigned(uuid4()) is None


def test_a_ticket_is_renewed_before_its_end_without_a_gap(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    first = hub.assigned(session, 20)
    assert first is not None
    last = first.ticket.ticket.last_sequence
    hub.clock.s += 600
    assert hub.assigned(session, last - module.RENEW_MARGIN) is first
    second = hub.assigned(session, last - module.RENEW_MARGIN + 1)
    assert second is not None
    assert second is not first
    assert second.ticket.ticket.first_sequence <= last
    assert second.ticket.ticket.last_sequence > last


@pytest.mark.parametrize("segments", [1, 2, 5, 16, 40])
def test_short_tickets_are_not_renewed_at_every_refresh(hub: Hub, segments: int) -> None:
    crew.change_settings(hub.ledger, {"ticket_segments": segments}, at_us=T0)
    hub.add_nodes(1)
    session = hub.open()
    for head in range(20, 36):
        for _ in range(3):  # a player that refreshes often
            assignment = hub.assigned(session, head)
            assert assignment is not None
            assert assignment.ticket.ticket.covers(head)
    assert len(hub.events(TicketIssued)) <= 16 // max(1, segments // 4) + 1


def test_a_node_that_is_gone_loses_its_viewers_at_the_next_refresh(hub: Hub) -> None:
    one, two = hub.add_nodes(2)
    session = hub.open()
    served_by = hub.node_of(session)
    hub.all_alive(served_by)
    assert hub.node_of(session) == ({one, two} - {served_by}).pop()


@pytest.mark.parametrize("end", [nodes.suspend, nodes.retire])
def test_a_node_that_is_suspended_or_retired_gets_no_ticket_though_it_is_alive(
    hub: Hub, end: Callable[..., Node]
) -> None:
    bad, good = hub.add_nodes(2)
    end(hub.ledger, bad, reason="test", at_us=T0)
    assert {hub.node_of(hub.open()) for _ in range(10)} == {good}


def test_no_ticket_for_a_rendition_that_is_not_live(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    assert run(hub.steering.assignment(session, uuid4(), 20)) is None
    broadcasts.end_broadcast(hub.ledger, hub.broadcast_id, reason="over", at_us=T0)
    assert hub.assigned(session) is None
    assert hub.events(TicketIssued) == []


# --- an origin that was killed


def test_a_session_is_found_again_in_the_log_and_counted_neither_twice_nor_less(hub: Hub) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    before = hub.assigned(session)
    assert before is not None
    first = watch(hub, session, 15, 25)
    run(hub.steering.record_observations(all_now=True))

    hub.start()  # kill -9
    hub.all_alive()
    assert run(hub.steering.session_slug(session)) == "main"
    after = hub.assigned(session, 22)
    assert after is not None
    assert after.ticket.ticket.hash != before.ticket.ticket.hash
    second = watch(hub, session, 15, 30)  # the player polls the same window, and goes on
    run(hub.steering.record_observations(all_now=True))
    polled, fetched = counted(hub)
    assert (polled, fetched) == (15, second[1])
    assert first[1] < second[1]


def test_the_ticket_of_before_is_still_good_after_a_restart(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    before = hub.assigned(session)
    assert before is not None
    hub.start()
    hub.all_alive()
    assert hub.claim(before.ticket, [15, 16]) == "accepted"
    run(hub.steering.session_slug(session))
    after = hub.assigned(session)
    assert after is not None
    assert hub.claim(after.ticket, [15, 16]) == "duplicate"


def test_a_session_nobody_opened_is_none(hub: Hub) -> None:
    assert run(hub.steering.session_slug(uuid4())) is None


def test_a_session_of_long_ago_does_not_come_back(hub: Hub) -> None:
    session = hub.open()
    hub.start()
    hub.clock.s += module.RECALL_S + 1
    assert run(hub.steering.session_slug(session)) is None


# --- who may ask


@pytest.mark.parametrize(
    "ips", [[HOME], [f"8.8.8.{i}" for i in range(200)], [f"2001:db8:1:{i:x}::1" for i in range(200)]]
)
def test_one_network_cannot_fill_the_log_with_sessions(
    hub: Hub, ips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.ledger, "save", lambda *_: [])  # only the counting is of interest here

    def flood(count: int) -> int:
        opened = 0
        for i in range(count):
            try:
                run(hub.steering.open_session("main", ips[i % len(ips)]))
                opened += 1
            except Unavailable:
                continue
        return opened

    assert flood(400) == module.OPEN_BURST
    hub.clock.s += 10
    assert flood(100) == 10 * module.OPEN_RATE_S
    assert run(hub.steering.open_session("main", ELSEWHERE)) is not None
    assert run(hub.steering.open_session("main", "127.0.0.1")) is not None


def test_a_page_is_told_to_come_again_in_the_words_of_the_api(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.steering._opening, "take", lambda *_: False)
    with pytest.raises(application.Unavailable):
        run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, None))


def test_a_friend_who_says_who_they_are_is_known_to_the_session(hub: Hub) -> None:
    friend = uuid4()
    session = run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, friend))
    assert [e.account_id for e in hub.events(SessionOpened) if e.session_id == session] == [friend]


def test_only_nodes_in_good_standing_may_pull(hub: Hub) -> None:
    (nid,) = hub.add_nodes(1)
    key = hub.node_keys[nid].public_key
    assert run(hub.steering.node_may_fetch(key))
    assert not run(hub.steering.node_may_fetch(b"\x05" * 32))
    nodes.suspend(hub.ledger, nid, reason="test", at_us=T0)
    hub.clock.s += module.NODE_CACHE_S + 0.1
    assert not run(hub.steering.node_may_fetch(key))
