"""What an operator reads when the database goes and comes back: one line each, and nothing else is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import CapturingLogger

from hub.embedded.postgres import EmbeddedPostgres
from ledger.application import Ledger, Unavailable
from ledger.store import outage as module
from ledger.store.database import create_sql_engine
from ledger.store.migrate import migrate
from ledger.store.outage import AGAIN_S, SURE_S, Outage
from projections.runner import Runner


class Lines:
    """Of every logger, as (level, what, fields)."""

    def __init__(self) -> None:
        self.log = CapturingLogger()

    def told(self, *levels: str) -> list[str]:
        return [
            call.args[0] for call in self.log.calls if call.method_name in (levels or ("info", "warning"))
        ]

    def fields(self, what: str) -> list[dict[str, object]]:
        return [call.kwargs for call in self.log.calls if call.args[0] == what]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    made = Lines()
    structlog.configure(
        processors=[lambda _l, _m, e: ((e.pop("event"),), e)], logger_factory=lambda *_: made.log
    )
    yield made
    structlog.reset_defaults()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_two_lines_and_a_long_one_is_told_each_minute(lines: Lines) -> None:
    clock = Clock()
    seen = Outage(clock)
    seen.called("worker")
    seen.connected()
    assert lines.log.calls == []
    for n in range(1 + int(3 * AGAIN_S)):
        seen.failed("refused" if n < 10 else "starting up")
        clock.now += 1
    seen.connected()
    seen.connected()
    assert lines.told() == [
        "the database is away",
        *["the database is still away"] * 3,
        "the database is back",
    ]
    assert [x["error"] for x in lines.fields("the database is still away")] == ["starting up"] * 3
    (back,) = lines.fields("the database is back")
    assert back == {"process": "worker", "after_s": 181.0, "failures": 181, "last_error": "starting up"}
    seen.failed("refused")
    assert lines.told()[-1] == "the database is away"
    seen.connected()  # the last error was the first: once is enough
    assert lines.fields("the database is back")[-1] == {"process": "worker", "after_s": 0.0, "failures": 1}


def test_what_is_met_meanwhile_is_detail_and_before_and_after_it_is_told(lines: Lines) -> None:
    clock = Clock()
    seen, log = Outage(clock), structlog.get_logger()
    assert seen.symptom(log, "one", error="terminated")
    seen.failed("refused")
    clock.now += SURE_S - 1
    assert not seen.symptom(log, "two")
    clock.now += 1  # no connection failed for so long: what is met now may be something else
    assert seen.symptom(log, "three")
    seen.failed("refused")
    assert not seen.symptom(log, "four")
    seen.connected()
    assert seen.symptom(log, "five")
    assert lines.told("warning") == ["one", "the database is away", "three", "five"]
    assert lines.told("debug") == ["two", "the database is away", "four"]


def test_a_database_that_dies_and_comes_back_is_two_lines(
    lines: Lines, server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger, its listener and the read models of one process, and a real server that is stopped under them."""
    seen = Outage()
    for name in ("database", "folds", "listener"):
        monkeypatch.setattr(f"ledger.store.{name}.outage", seen)
    monkeypatch.setattr("projections.runner.outage", seen)
    assert module.outage is not seen
    server = EmbeddedPostgres(server_dir / "outage")
    url = server.start()
    migrate(url)
    ledger, engine = Ledger(url), create_sql_engine(url)
    runner = Runner(ledger, engine)
    try:
        assert ledger.size() == 0
        runner.catch_up()
        lines.log.calls.clear()
        server.stop()
        with pytest.raises(Unavailable):  # tries for some seconds, again and again
            ledger.size()
        assert lines.told("warning").count("the database is away") == 1
        server.start()
        assert ledger.size() == 0
        assert lines.told("info").count("the database is back") == 1
    finally:
        ledger.close()
        engine.dispose()
        server.stop()
