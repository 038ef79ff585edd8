"""What the hub sees of plain players stands in the log: once, in time, and whatever fails."""

from typing import Any

import pytest
from steering_rig import ELSEWHERE, HOME, Hub, counted, plain_viewer, run, watch

from hub.observations import OBSERVE_AFTER_S, SESSION_IDLE_S
from hub.steering import SAMPLE
from ledger import application
from ledger.application import NotFound
from ledger.events import SessionObserved
from relay.ports import Unavailable


def test_one_segment_in_ten_comes_from_the_hub_the_same_ones_after_a_restart(hub: Hub) -> None:
    session = hub.open()
    drawn = [n for n in range(20_000) if hub.steering.pointed_at_hub(session, n)]
    assert 1_800 < len(drawn) < 2_200
    assert SAMPLE == 10
    other = hub.open()
    assert [n for n in range(20_000) if hub.steering.pointed_at_hub(other, n)] != drawn
    hub.start()
    run(hub.steering.session_slug(session))
    assert [n for n in range(20_000) if hub.steering.pointed_at_hub(session, n)] == drawn
    signing = run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, None))
    assert not any(hub.steering.pointed_at_hub(signing, n) for n in range(1_000))


def test_what_was_observed_is_recorded_once(hub: Hub) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    seen = watch(hub, session)
    for _ in range(3):
        run(hub.steering.record_observations(all_now=True))
    assert len(hub.events(SessionObserved)) == 1
    assert counted(hub) == seen
    assert watch(hub, session)[0] == 10  # the same window once more
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == seen


def test_a_session_is_one_event_a_minute_and_its_last_words_are_written_when_it_has_gone(hub: Hub) -> None:
    hub.add_nodes(1)
    hub.publish({n: b"segment %d" % n for n in range(40, 200)})
    session = plain_viewer(hub)
    for head in range(25, 165):  # not quite five minutes
        run(hub.steering.session_slug(session))
        watch(hub, session, head - 10, head)
        hub.clock.s += 2
        run(hub.steering.record_observations())
    assert len(hub.events(SessionObserved)) == 4
    hub.clock.s += SESSION_IDLE_S + 1
    run(hub.steering.record_observations())
    assert len(hub.events(SessionObserved)) == 5
    assert counted(hub)[0] == 149  # 15 to 163, each once


def test_a_killed_origin_loses_a_minute_of_what_it_observed_at_most(hub: Hub) -> None:
    hub.add_nodes(1)
    hub.publish({n: b"segment %d" % n for n in range(40, 200)})
    session = plain_viewer(hub)
    for head in range(25, 100):
        watch(hub, session, head - 10, head)
        hub.clock.s += 2
        run(hub.steering.record_observations())
    hub.start()  # kill -9
    assert 85 - counted(hub)[0] <= OBSERVE_AFTER_S / 2 + 1


def test_observations_survive_an_outage_that_comes_after_the_save(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    seen = watch(hub, session)
    saved = hub.ledger.save

    def save_and_lose_the_answer(*aggregates: Any) -> list[int]:
        saved(*aggregates)
        raise application.Unavailable("the connection broke")

    monkeypatch.setattr(hub.ledger, "save", save_and_lose_the_answer)
    with pytest.raises(Unavailable):
        run(hub.steering.record_observations(all_now=True))
    monkeypatch.setattr(hub.ledger, "save", saved)
    run(hub.steering.record_observations(all_now=True))
    assert len(hub.events(SessionObserved)) == 2
    assert counted(hub) == seen


@pytest.mark.parametrize("error", [application.Unavailable("away"), NotFound("gone"), RuntimeError("bug")])
def test_observations_that_could_not_be_written_are_written_the_next_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    seen = watch(hub, session)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(hub.desk, "observe", fail)
        with pytest.raises((Unavailable, NotFound, RuntimeError)):
            run(hub.steering.record_observations(all_now=True))
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == seen


def test_what_others_do_with_a_session_read_in_the_public_log_earns_its_node_nothing(hub: Hub) -> None:
    hub.add_nodes(1)
    session = plain_viewer(hub)
    watch(hub, session, ip=ELSEWHERE)
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == (0, 0)
    seen = watch(hub, session, ip="8.8.8.77")  # another machine of the same network
    run(hub.steering.record_observations(all_now=True))
    assert counted(hub) == seen


def test_a_signing_viewer_is_not_observed(hub: Hub) -> None:
    hub.add_nodes(1)
    session = run(hub.steering.open_signing_session("main", b"\x01" * 32, HOME, None))
    hub.assigned(session)
    hub.steering.observe_poll(session, [1, 2], HOME)
    run(hub.steering.record_observations(all_now=True))
    assert hub.events(SessionObserved) == []
