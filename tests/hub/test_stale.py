"""Streams that nobody uses become stale once, by the log and the time alone, and wake when somebody pushes."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from hub.stale import mark_stale_streams
from ledger.aggregates.stream import StreamState
from ledger.application import Ledger
from ledger.services import broadcasts, crew, streams
from ledger.settings import Settings
from ledger.store.database import create_sql_engine
from projections.queries import Queries
from projections.runner import Runner

T0 = 1_800_000_000_000_000
DAY_US = 86_400 * 1_000_000
KEY = "{slug}_" + "k" * 32


class Hub:
    def __init__(self, ledger: Ledger, database_url: str) -> None:
        self.ledger = ledger
        self._engine = create_sql_engine(database_url)
        self._reads, self._runner = Queries(self._engine), Runner(ledger, self._engine)
        self._runner.prepare()
        crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=T0)

    def close(self) -> None:
        self._engine.dispose()

    def register(self, slug: str) -> UUID:
        key = KEY.format(slug=slug)
        return streams.register_stream(self.ledger, slug=slug, owner_id=uuid4(), stream_key=key, at_us=T0)

    def go_live(self, sid: UUID, at_us: int) -> None:
        broadcast, _ = broadcasts.start_or_resume(
            self.ledger,
            sid,
            new_broadcast_id=uuid4(),
            new_rendition_id=uuid4(),
            video_codec="avc1",
            audio_codec="mp4a",
            grace_s=15,
            at_us=at_us,
        )
        broadcasts.end_broadcast(self.ledger, broadcast.id, reason="stopped", at_us=at_us + 1)

    def looks(self, at_us: int) -> list[str]:
        self._runner.catch_up()
        return mark_stale_streams(self.ledger, self._reads, at_us=at_us)

    def state(self, slug: str) -> StreamState:
        found = streams.load_stream(self.ledger, slug)
        assert found is not None
        return found.state


@pytest.fixture
def hub(ledger: Ledger, database_url: str) -> Iterator[Hub]:
    hub = Hub(ledger, database_url)
    yield hub
    hub.close()


def test_what_was_never_live_is_stale_after_ninety_days_and_a_push_wakes_it(hub: Hub) -> None:
    idle, used, renewed = hub.register("idle"), hub.register("used"), hub.register("renewed")
    hub.go_live(used, T0 + DAY_US)
    new = KEY.format(slug="renewed")[:-1] + "l"
    streams.rotate_key(hub.ledger, renewed, stream_key=new, at_us=T0 + 60 * DAY_US)
    assert hub.looks(T0 + 90 * DAY_US - 1) == []
    assert hub.looks(T0 + 90 * DAY_US) == ["idle"]
    size = hub.ledger.size()
    assert hub.looks(T0 + 100 * DAY_US) == []
    assert hub.ledger.size() == size
    assert hub.looks(T0 + 150 * DAY_US) == ["renewed"]
    assert hub.state("used") is StreamState.OFFLINE
    opened = streams.check_stream_key(hub.ledger, KEY.format(slug="idle"))
    assert opened is not None
    hub.go_live(idle, T0 + 151 * DAY_US)
    assert hub.looks(T0 + 999 * DAY_US) == []
    assert hub.state("idle") is StreamState.OFFLINE


def test_a_crew_that_does_not_want_it_has_no_stale_streams(hub: Hub) -> None:
    hub.register("idle")
    crew.change_settings(hub.ledger, {"stale_after_s": 0}, at_us=T0)
    assert hub.looks(T0 + 9_999 * DAY_US) == []
    crew.change_settings(hub.ledger, {"stale_after_s": 60}, at_us=T0)
    assert hub.looks(T0 + DAY_US) == ["idle"]


def test_a_crew_older_than_the_rule_does_not_have_it() -> None:
    assert Settings.recorded({"hold_s": 1}).stale_after_s == 0
