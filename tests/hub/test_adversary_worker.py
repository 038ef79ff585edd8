"""A duty of the worker that cannot go on stops alone, says so, and tries again; the others never notice."""

import threading
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from hub import worker
from hub.clock import GRACE_S, ClockLeaptError, ClockWatch, SteadyClock
from hub.heartbeats import Heartbeats
from hub.troubles import Troubles
from ledger.aggregates.delivery import Delivery
from ledger.application import Ledger, Unavailable
from ledger.events import SegmentsServed
from ledger.judged import Judged, pack
from ledger.keys import KeyPair
from ledger.receipt import Receipt
from ledger.services import crew
from ledger.services.credit_index import BrokenLogError
from ledger.services.settle import settle_due_epochs
from projections.queries import ReadModelUnavailable

T0 = 1_800_000_000_000_000


def test_a_broken_log_stops_settlement_alone_and_is_seen_until_it_is_mended(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TROUBLED_FIRST_S", 0.01)
    crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=60, at_us=T0)
    delivery = Delivery(uuid4())
    receipt = Receipt(
        ticket_hash=b"t" * 32, counter=1, base_sequence=0, bitmap=b"\x01" + bytes(63), digest=bytes(32)
    )
    delivery.trigger(
        SegmentsServed,
        at_us=T0,
        node_id=uuid4(),
        batch_header=b"",
        first_sequence=0,
        network_limit=2,
        receipts=receipt.sign(KeyPair(b"v" * 32)).encode(),
        **pack([0], [uuid4()], [b""], [Judged("accepted", 1, 1000)]),
    )
    ledger.save(delivery)
    heartbeats = Heartbeats(tmp_path / "heartbeats")
    stop, troubles, tries, others = threading.Event(), Troubles(tmp_path / "troubles"), [0], [0]

    def settle() -> None:
        tries[0] += 1
        if tries[0] > 3:  # somebody has mended it
            stop.set()
            return
        with pytest.raises(BrokenLogError) as broken:
            settle_due_epochs(ledger, at_us=T0 + 120_000_000)
        if tries[0] > 1:
            assert troubles.now() == ["settlement"]
        raise broken.value

    def other() -> None:
        others[0] += 1

    threads = [
        threading.Thread(target=worker.repeat, args=("settlement", 0.01, settle, stop, troubles, heartbeats)),
        threading.Thread(target=worker.repeat, args=("publisher", 0.01, other, stop, troubles, heartbeats)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert tries[0] == 4
    assert others[0] > 3
    assert troubles.now() == []


def test_an_outage_is_no_trouble(tmp_path: Path) -> None:
    stop, troubles, tries = threading.Event(), Troubles(tmp_path / "troubles"), [0]

    def step() -> None:
        tries[0] += 1
        if tries[0] == 3:
            stop.set()
        raise Unavailable("away")

    worker.repeat("nodes", 0.001, step, stop, troubles, Heartbeats(tmp_path / "heartbeats"))
    assert (tries[0], troubles.now()) == (3, [])


def test_read_models_that_are_being_built_are_told_of_once(tmp_path: Path) -> None:
    stop, tries = threading.Event(), [0]
    why = ["no such column", "no such column", "", "no such column", "too many queries"]

    def step() -> None:
        tries[0] += 1
        if tries[0] == len(why):
            stop.set()
        if said := why[tries[0] - 1]:
            raise ReadModelUnavailable(said)

    with capture_logs() as logs:
        worker.repeat("nodes", 0.001, step, stop, Troubles(tmp_path), Heartbeats(tmp_path / "heartbeats"))
    assert [line["error"] for line in logs] == ["no such column", "no such column", "too many queries"]


def test_a_duty_in_trouble_tries_ever_more_rarely(tmp_path: Path) -> None:
    waits: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            if len(waits) == 10:
                self.set()
            return self.is_set()

    def step() -> None:
        raise RuntimeError("no use")

    worker.repeat("settlement", 1.0, step, Clock(), Troubles(tmp_path), Heartbeats(tmp_path / "heartbeats"))
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2.0, worker.TROUBLED_MAX_S)


def test_a_clock_that_leaps_settles_nothing_until_it_is_right_again() -> None:
    wall, own = [T0], [5_000_000]
    clock = SteadyClock(lambda: wall[0], lambda: own[0])

    def later(wall_s: int, own_s: int) -> int:
        wall[0] += wall_s * 1_000_000
        own[0] += own_s * 1_000_000
        return clock.checked()

    assert later(60, 60) == wall[0]
    assert later(30 * 86_400, 30 * 86_400) == wall[0]  # a machine that slept for a month
    assert later(3_600, 0) == wall[0]  # an hour off, and put right
    for leap_s in (30 * 86_400, -30 * 86_400):
        with pytest.raises(ClockLeaptError):
            later(leap_s, 1)
        assert later(-leap_s, 1) == wall[0]


def test_a_clock_that_is_set_is_told_of_once_and_one_that_is_steered_or_a_machine_that_slept_is_not() -> None:
    wall, own = [T0], [5_000_000]
    clock = ClockWatch(lambda: wall[0], lambda: own[0])

    def later(wall_s: float, own_s: float) -> int:
        wall[0] += round(wall_s * 1_000_000)
        own[0] += round(own_s * 1_000_000)
        return clock.set_by_s()

    assert later(1, 1) == 0
    assert later(28_800, 28_800) == 0
    assert later(3_601, 1) == 3_600
    assert later(1, 1) == 0
    assert later(-3_599, 1) == -3_600
    assert later(1.2, 1) == 0


class Clocks:
    """A machine's two clocks; the hub is started anew by `start`."""

    def __init__(self, kept: Path) -> None:
        self.kept, self.wall_us, self.own_us = kept, T0, 5_000_000
        self.start()

    def start(self) -> SteadyClock:
        self.clock = SteadyClock(lambda: self.wall_us, lambda: self.own_us, kept=self.kept)
        return self.clock

    def pass_s(self, seconds: int) -> bool:
        """Whether the worker settles then."""
        self.wall_us += seconds * 1_000_000
        self.own_us += seconds * 1_000_000
        self.clock.checked()
        return self.clock.is_sure()


@pytest.mark.parametrize("month", [30 * 86_400, -30 * 86_400])
def test_a_clock_that_is_wrong_at_the_start_and_put_right_settles_nothing_by_the_wrong_date(
    tmp_path: Path, month: int
) -> None:
    clocks = Clocks(tmp_path / "clock.last")
    assert clocks.pass_s(120)
    clocks.wall_us += (3_600 + max(0, month)) * 1_000_000  # an hour off, and back with a date of next month
    clocks.start()
    if month > 0:
        assert not clocks.pass_s(1)
        assert not clocks.pass_s(60)
        clocks.wall_us -= month * 1_000_000  # the network has told the time
    assert clocks.pass_s(1)
    assert clocks.pass_s(60)


def test_a_hub_that_really_was_off_for_long_settles_after_some_minutes(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clock.last")
    assert clocks.pass_s(120)
    clocks.wall_us += 90 * 86_400 * 1_000_000
    clocks.start()
    assert not clocks.pass_s(GRACE_S - 1)
    clocks.start()  # started again meanwhile: what it was not sure of is not kept
    assert not clocks.pass_s(1)
    assert clocks.pass_s(GRACE_S)
    clocks.start()
    assert clocks.pass_s(1)


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 5_000])
def test_a_damaged_clock_file_stops_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "clock.last").write_text(text)
    clocks = Clocks(tmp_path / "clock.last")
    clocks.pass_s(GRACE_S)
    assert clocks.pass_s(1)
    assert clocks.start().is_sure()
