"""Sessions in memory: bounded, and forgotten when they have gone."""

import pytest
from steering_rig import Hub, run, watch

from hub import viewings
from hub.observations import SESSION_IDLE_S
from ledger.events import SessionObserved


def test_sessions_in_memory_are_bounded_also_when_they_come_from_the_log(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewings, "MAX_SESSIONS", 5)
    sessions = [hub.open() for _ in range(12)]
    for session in sessions:
        assert run(hub.steering.session_slug(session)) == "main"
    assert len(hub.steering._sessions) == 5


def test_a_session_that_was_idle_is_forgotten_after_its_observations_are_written(hub: Hub) -> None:
    hub.add_nodes(1)
    session = hub.open()
    hub.assigned(session)
    watch(hub, session)
    hub.clock.s += SESSION_IDLE_S + 1
    run(hub.steering.record_observations(all_now=True))
    assert len(hub.steering._sessions) == 0
    assert len(hub.events(SessionObserved)) == 1
