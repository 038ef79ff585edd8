"""kill -9 of Postgres during appends, with fsync on: nothing acknowledged is lost, nothing is there twice."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from hub.embedded.postgres import EmbeddedPostgres
from ledger import events as ev
from ledger.aggregates.base import Aggregate
from ledger.application import Conflict, Ledger, Unavailable
from ledger.events import Event
from ledger.store.migrate import migrate

_numbers = itertools.count(1)
KILLS = 3
WRITERS = 4


class Counter(Aggregate):
    def apply(self, event: Event) -> None:
        assert isinstance(event, ev.NodeWentOffline)

    def add(self, reason: str) -> None:
        self.trigger(ev.NodeWentOffline, at_us=1, reason=reason)


@pytest.fixture
def durable(server_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(server_dir / f"durable-{next(_numbers)}")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_kill_9_of_postgres_loses_nothing_that_was_acknowledged(durable: EmbeddedPostgres) -> None:
    migrate(durable.url)
    ledger = Ledger(durable.url)
    acknowledged: dict[int, tuple[UUID, int]] = {}
    shared = uuid4()
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        own = uuid4()
        try:
            while not stop.is_set():
                try:
                    mine, ours = ledger.load_or_new(Counter, own), ledger.load_or_new(Counter, shared)
                    mine.add(f"{number}")
                    if mine.version % 5 == 0:
                        ours.add(f"{number} too")
                    positions = ledger.save(mine, ours)
                except (Conflict, Unavailable):
                    continue
                keys = [(own, mine.version), (shared, ours.version)][: len(positions)]
                for position, key in zip(positions, keys, strict=True):
                    assert position not in acknowledged, "one position for two events"
                    acknowledged[position] = key
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for _ in range(KILLS):
        before = len(acknowledged)
        deadline = time.monotonic() + 30
        while len(acknowledged) < before + 100 and not failures and time.monotonic() < deadline:
            time.sleep(0.01)
        assert durable.process is not None
        durable.process.kill()
        durable.process.wait()
        durable.start()
    final = len(acknowledged)
    deadline = time.monotonic() + 30
    while len(acknowledged) < final + 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()

    assert not failures
    assert len(acknowledged) >= final + 100, "the same ledger works again after the restarts"
    recorded = ledger.read(0, 50_000)
    assert [r.position for r in recorded] == list(range(ledger.size()))
    stands = {r.position: (r.event.originator_id, r.event.originator_version) for r in recorded}
    assert len(set(stands.values())) == len(stands)
    assert {p: stands[p] for p in acknowledged} == acknowledged
    ledger.close()


def test_while_postgres_is_away_calls_end_within_seconds_and_the_same_ledger_comes_back(
    durable: EmbeddedPostgres, tmp_path: Path
) -> None:
    migrate(durable.url)
    ledger = Ledger(durable.url)
    counter = ledger.load_or_new(Counter, uuid4())
    counter.add("before")
    ledger.save(counter)
    ledger.wait(0, 1)
    _kill_with_its_backends(durable)

    counter.add("away")
    elsewhere = Ledger(f"postgresql://nobody@/nothing?host={tmp_path}")
    calls: list[Callable[[], object]] = [
        lambda: ledger.save(counter),
        ledger.size,
        lambda: ledger.read(0, 1),
        lambda: ledger.load(Counter, counter.id),
        lambda: ledger.wait(1, 60),
        elsewhere.size,
    ]
    started = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as executor:
        errors = [future.exception() for future in [executor.submit(call) for call in calls]]
    assert time.monotonic() - started < 12
    assert [type(error) for error in errors] == [Unavailable] * len(calls)
    assert "No such file" in str(errors[-1]), "an operator must be able to see why"
    elsewhere.close()

    durable.start()
    again = ledger.load(Counter, counter.id)
    assert again.version == 1
    again.add("after")
    assert ledger.save(again) == [1]
    assert ledger.wait(1, 10) == 2
    # LISTEN is up again as well: a waiter wakes by the notification, well before its fallback poll.
    time.sleep(1.5)
    other = Ledger(durable.url)
    timer = threading.Timer(0.3, lambda: other.save(_one(uuid4())))
    timer.start()
    started = time.monotonic()
    assert ledger.wait(2, 10) == 3
    assert time.monotonic() - started < 0.9
    timer.join()
    other.close()
    ledger.close()


def _one(aggregate_id: UUID) -> Counter:
    counter = Counter(aggregate_id)
    counter.add("x")
    return counter


def _kill_with_its_backends(postgres: EmbeddedPostgres) -> None:
    """A backend may answer a last query before it sees that the postmaster is gone."""
    assert postgres.process is not None
    pid = postgres.process.pid
    backends = [
        Path("/proc", child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    postgres.process.kill()
    postgres.process.wait()
    deadline = time.monotonic() + 20
    while any(_runs(backend) for backend in backends):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
