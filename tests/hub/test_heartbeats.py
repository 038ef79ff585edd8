"""A duty that hangs is seen, whoever looks and however the worker ended."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.directory import Directory
from hub import worker
from hub.bootstrap import first_run
from hub.heartbeats import DUTIES, START_S, STEP_S, Heartbeats
from hub.settings import Settings
from hub.troubles import Troubles
from hub.worker import Worker, repeat
from ledger.application import Ledger
from ledger.services import settle
from ledger.store.database import connect_pool
from ledger.tlog import publisher

some = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@some
@given(
    promises=st.lists(st.tuples(st.sampled_from(DUTIES), st.integers(1, 99), st.integers(0, 200)), min_size=1)
)
def test_a_duty_is_overdue_exactly_when_its_last_promise_has_passed(
    tmp_path: Path, promises: list[tuple[str, int, int]]
) -> None:
    clock = Clock()
    heartbeats = Heartbeats(tmp_path, now_s=clock)
    heartbeats.begin()
    due_s = dict.fromkeys(DUTIES, clock.now_s + START_S)
    for duty, within_s, passes_s in promises:
        heartbeats.promise(duty, within_s)
        due_s[duty] = clock.now_s + within_s
        clock.now_s += passes_s
        assert heartbeats.overdue() == {duty: max(0, clock.now_s - at) for duty, at in due_s.items()}


def test_a_worker_that_never_began_is_overdue(tmp_path: Path) -> None:
    assert all(Heartbeats(tmp_path / "none").overdue().values())


def test_what_an_earlier_worker_promised_does_not_make_the_next_start_ready(tmp_path: Path) -> None:
    heartbeats = Heartbeats(tmp_path)
    heartbeats.void()
    for duty in DUTIES:
        heartbeats.promise(duty, STEP_S)
    assert not any(heartbeats.overdue().values())
    heartbeats.void()
    assert all(heartbeats.overdue().values())
    heartbeats.begin()
    assert not any(heartbeats.overdue().values())


def test_a_step_that_hangs_is_seen_and_one_that_comes_back_is_well_again(tmp_path: Path) -> None:
    clock, stop, hangs, release = Clock(), threading.Event(), threading.Event(), threading.Event()
    heartbeats = Heartbeats(tmp_path / "heartbeats", now_s=clock)
    heartbeats.begin()

    def step() -> None:
        hangs.set()
        assert release.wait(60)
        stop.set()

    arguments = ("publisher", 0.01, step, stop, Troubles(tmp_path / "troubles"), heartbeats)
    thread = threading.Thread(target=repeat, args=arguments)
    thread.start()
    assert hangs.wait(60)
    clock.now_s += STEP_S + 3
    assert heartbeats.overdue()["publisher"] == 3
    release.set()
    thread.join(60)
    assert heartbeats.overdue()["publisher"] == 0


def test_a_folder_that_cannot_be_written_stops_no_duty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    heartbeats = Heartbeats(tmp_path / "file")
    heartbeats.promise("nodes", 1)
    assert all(heartbeats.overdue().values())


class LargeLedger(Ledger):
    """Reading a page of it takes nearly as long as a duty may be silent."""

    turn: Callable[[], None]

    def read_rows(self, *arguments: Any) -> Sequence[Any]:
        self.turn()
        return super().read_rows(*arguments)


@pytest.mark.parametrize("duty", ["settlement", "publisher"])
def test_a_step_that_takes_hours_and_goes_on_is_in_time(
    duty: str,
    ledger: Ledger,
    database_url: str,
    valkey_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=database_url, redis_url=valkey_url)
    with connect_pool(database_url) as pool:
        first_run(settings, ledger, Directory(pool))
    clock, turns = Clock(), [0]
    monkeypatch.setattr(settle, "PAGE_EVENTS", 2)
    monkeypatch.setattr(publisher, "PAGE", 2)
    monkeypatch.setattr(worker, "Ledger", LargeLedger)
    monkeypatch.setattr(worker, "Heartbeats", partial(Heartbeats, now_s=clock))

    def turn() -> None:
        clock.now_s += STEP_S - 1
        turns[0] += 1
        assert heartbeats.overdue()[duty] == 0

    monkeypatch.setattr(LargeLedger, "turn", staticmethod(turn), raising=False)
    busy = Worker(settings)
    heartbeats = Heartbeats(tmp_path / "heartbeats", now_s=clock)
    heartbeats.promise(duty, STEP_S)
    {"settlement": busy.settle, "publisher": busy.publish}[duty]()
    assert turns[0] > 3
    assert heartbeats.overdue()[duty] == 0
    busy.close()
