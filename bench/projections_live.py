"""Read models beside a log that grows by a few events at a time, as on an evening, against the library's runner.

Each side writes deposits into its own log, some at a time, forty times a second for two seconds, and is then given a
second: once alone, once with its follower (ours keeps all read models, the library's keeps balances). The CPU that
the follower adds, of this process and the server together, is what the events cost. Rounds of both take turns.

And what that costs in time: how long after the return of a save a reader on a connection of its own sees the event in
all read models, one event at a time.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eventsourcing.projection import ProjectionRunner

from bench import Row
from bench.library import postgres, side_by_side
from bench.projections import (
    Cpu,
    LibraryBalances,
    LibraryBook,
    LibraryLedger,
    LibraryView,
    Writer,
    library_env,
)
from ledger.application import Ledger
from ledger.store.database import create_sql_engine
from ledger.store.migrate import migrate
from projections.queries import Queries
from projections.runner import Runner

SAVES = 80
EVERY_S = 0.025
AFTER_S = 1.0
ROUNDS = 3
# At a time -> the ratio to come to. A transaction costs ours, of all read models, somewhat more than the library's, of
# one: what is saved is to have fewer of them, and fifty times is for a log that comes faster than this.
CASES = {1: 1.0, 5: 5.0, 50: 35.0}
LOOK_S = 0.002
LAG_ROUNDS = 5  # of SAVES events each
LAG_REACH_MS = {50: 150.0, 99: 350.0}  # a rest of at most 0.25 s, and the batch after it


def feed(save: Callable[[], object]) -> None:
    due = time.monotonic()
    for _ in range(SAVES):
        save()
        due += EVERY_S
        time.sleep(max(0.0, due - time.monotonic()))
    time.sleep(AFTER_S)


@contextmanager
def ours_follows(ledger: Ledger, url: str, schema: str) -> Iterator[None]:
    engine, stop = create_sql_engine(url, schema), threading.Event()
    runner = Runner(ledger, engine, schema_name=schema)
    runner.catch_up()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        followed = set(Queries(engine, schema).positions().values())
        engine.dispose()
    if followed != {ledger.size()}:
        raise TimeoutError("our runner did not get to the end")


def our_cost(url: str, schema: str, at_a_time: int, cpu: Cpu) -> float:
    """Events a second of CPU that following them adds."""
    ledger = Ledger(url, schema=schema)
    writer = Writer(ledger)
    writer.begin()
    number = iter(range(1_000_000_000))

    def save() -> None:
        for _ in range(at_a_time):
            writer.deposit(next(number))
        writer.save()

    try:
        ledger.wait(0, 0)  # its listener is there in both
        alone = cpu.of(lambda: feed(save))
        with ours_follows(ledger, url, schema):
            both = cpu.of(lambda: feed(save))
    finally:
        ledger.close()
    return at_a_time * SAVES / max(both - alone, 1e-3)


def library_cost(url: str, at_a_time: int, cpu: Cpu) -> float:
    app, book = LibraryLedger(library_env(url)), LibraryBook()

    def save() -> None:
        for n in range(at_a_time):
            book.transfer("external", f"budget:{n}", 1_000)
        LibraryBalances.last = app.save(book)[-1].notification.id

    try:
        alone = cpu.of(lambda: feed(save))
        LibraryBalances.reached.clear()
        with ProjectionRunner(
            application_class=LibraryLedger,
            projection_class=LibraryBalances,
            view_class=LibraryView,
            env=library_env(url),
        ):
            if not LibraryBalances.reached.wait(300):
                raise TimeoutError("the library's runner did not get to the beginning")
            LibraryBalances.reached.clear()
            both = cpu.of(lambda: (feed(save), LibraryBalances.reached.wait(300)))
    finally:
        app.close()
    return at_a_time * SAVES / max(both - alone, 1e-3)


class Watch:
    """A reader who looks every two milliseconds how far the read models are."""

    def __init__(self, url: str, schema: str) -> None:
        self._engine = create_sql_engine(url, schema)
        self._queries = Queries(self._engine, schema)
        self._stop = threading.Event()
        self.seen: list[tuple[float, int]] = []  # when, and how many events were in all of them
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            level = min(self._queries.positions().values())
            if not self.seen or level > self.seen[-1][1]:
                self.seen.append((time.monotonic(), level))


def lags_ms(url: str, schema: str) -> list[float]:
    """From the return of each save until its event could be read, ascending."""
    ledger = Ledger(url, schema=schema)
    writer = Writer(ledger)
    writer.begin()
    saved: list[tuple[float, int]] = []  # when, and the size of the log then
    number = iter(range(1_000_000_000))

    def save() -> None:
        writer.deposit(next(number))
        writer.save()
        saved.append((time.monotonic(), ledger.size()))

    try:
        with ours_follows(ledger, url, schema), Watch(url, schema) as watch:
            for _ in range(LAG_ROUNDS):
                feed(save)
    finally:
        ledger.close()
    levels = [level for _, level in watch.seen]
    return sorted(1e3 * (watch.seen[bisect_left(levels, size)][0] - at) for at, size in saved)


def rows() -> Iterator[Row]:
    with postgres() as url:
        cpu = Cpu(url)
        for at_a_time, reach in CASES.items():
            schema = f"live_{at_a_time}"
            migrate(url, schema)

            def ours(schema: str = schema, at_a_time: int = at_a_time) -> float:
                return our_cost(url, schema, at_a_time, cpu)

            def library(at_a_time: int = at_a_time) -> float:
                return library_cost(url, at_a_time, cpu)

            name = f"projections: live, {at_a_time} at a time, 40 times a second"
            yield Row(name, *side_by_side(ROUNDS, ours, library), "events/cpu s", reach)
        migrate(url, "live_lag")
        lags = lags_ms(url, "live_lag")
        for percent, limit_ms in LAG_REACH_MS.items():
            name = f"projections: live, append to visible in all: p{percent}, against {limit_ms:.0f} ms"
            yield Row(name, lags[len(lags) * percent // 100], limit_ms, "ms", 1.0, True)
