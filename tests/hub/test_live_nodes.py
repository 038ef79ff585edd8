"""Which node a session gets: by chance, and what viewers who were failed may say against one."""

from uuid import UUID

from steering_rig import ELSEWHERE, HOME, Hub

from hub.live_nodes import SUSPECT_S, LiveNode
from hub.steering import AVOID_S
from ledger.events import SessionOpened


def test_the_fewer_viewers_a_node_has_the_likelier_it_is_drawn(hub: Hub) -> None:
    hub.add_nodes(3)
    sessions = [hub.open(f"8.8.{i}.1") for i in range(30)]
    by_node = [hub.node_of(s) for s in sessions]
    assert all(by_node.count(n) >= 5 for n in hub.node_keys)


def test_the_better_the_health_of_a_node_the_likelier_it_is_drawn_and_the_worst_has_a_chance(
    hub: Hub,
) -> None:
    bad, good = hub.add_nodes(2)
    health = {bad: 0, good: 1_000}
    hub.steering.update_live_nodes([LiveNode(n, f"http://node-{n}", 0, health[n]) for n in health])
    drawn = [hub.steering._nodes.draw((), 1)[0].node_id for _ in range(2_000)]
    assert 40 < drawn.count(bad) < 200


def fetch_unsampled(hub: Hub, session: UUID, ip: str = HOME) -> None:
    """The player asks the hub for a segment that its node should have served."""
    n = next(n for n in range(15, 35) if not hub.steering.pointed_at_hub(session, n))
    hub.steering.observe_fetch(session, n, ip)


def test_a_session_whose_node_failed_it_gets_another_and_not_the_same_for_a_while(hub: Hub) -> None:
    hub.add_nodes(2)
    session = hub.open()
    failed = hub.node_of(session)
    fetch_unsampled(hub, session)
    other = hub.node_of(session)
    assert other != failed
    hub.all_alive(other)
    assert hub.assigned(session) is None  # the hub serves it
    hub.clock.s += AVOID_S + 1
    assert hub.node_of(session) == failed


def test_a_node_that_fails_viewers_of_several_networks_is_given_to_nobody_for_a_while(hub: Hub) -> None:
    hub.add_nodes(1)
    sessions = {ip: hub.open(ip) for ip in (HOME, ELSEWHERE, "7.7.7.7")}
    for ip in (HOME, ELSEWHERE):
        assert hub.assigned(sessions[ip]) is not None
        fetch_unsampled(hub, sessions[ip], ip)
    assert hub.assigned(sessions["7.7.7.7"]) is None
    hub.clock.s += SUSPECT_S + 1
    assert hub.assigned(sessions["7.7.7.7"]) is not None


def test_a_rival_with_many_sessions_on_one_network_takes_nobody_else_from_a_node(hub: Hub) -> None:
    hub.add_nodes(1)
    viewer = hub.open(HOME)
    served = hub.assigned(viewer)
    for _ in range(20):
        session = hub.open(ELSEWHERE)
        assert hub.assigned(session) is not None
        fetch_unsampled(hub, session, ELSEWHERE)
    assert hub.assigned(viewer) is served


def test_a_few_complaints_among_many_content_viewers_take_nobody_from_a_node(hub: Hub) -> None:
    hub.add_nodes(1)
    viewers = [hub.open(f"8.1.{i}.1") for i in range(12)]
    served = [hub.assigned(v) for v in viewers]
    for ip in (HOME, ELSEWHERE):
        session = hub.open(ip)
        assert hub.assigned(session) is not None
        fetch_unsampled(hub, session, ip)
    assert [hub.assigned(v) for v in viewers] == served


def test_sessions_read_in_the_public_log_are_no_voice_against_a_node(hub: Hub) -> None:
    hub.add_nodes(1)
    viewers = [hub.open(f"8.1.{i}.1") for i in range(4)]
    served = [hub.assigned(v) for v in viewers]
    for event in hub.events(SessionOpened):
        fetch_unsampled(hub, event.session_id, ELSEWHERE)
    assert [hub.assigned(v) for v in viewers] == served
