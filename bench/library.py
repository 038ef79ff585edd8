"""The other side of the ledger's comparisons: the eventsourcing library as shipped, and bare Postgres.

Invariant: nothing of the library is tuned or crippled here: its own aggregates, JSON transcoder, Postgres recorder and
pool, on the same server with fsync on.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from psycopg.conninfo import conninfo_to_dict

from hub.embedded.postgres import EmbeddedPostgres


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a new server, fsync on, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="streamrp2p-bench-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder / "postgres")
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Book(Aggregate):
    @event("Opened")
    def __init__(self) -> None:
        self.amounts: dict[str, int] = {}

    @event("Transferred")
    def transfer(self, source: str, target: str, amount_micro: int) -> None:
        self.amounts[source] = self.amounts.get(source, 0) - amount_micro
        self.amounts[target] = self.amounts.get(target, 0) + amount_micro


class LibraryLedger(Application[UUID]):
    name = "libraryledger"


def library(url: str) -> LibraryLedger:
    given = conninfo_to_dict(url)
    return LibraryLedger(
        {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(given["dbname"]),
            "POSTGRES_HOST": str(given["host"]),
            "POSTGRES_PORT": str(given.get("port", "5432")),
            "POSTGRES_USER": str(given["user"]),
            "POSTGRES_PASSWORD": str(given.get("password", "")),
            "POSTGRES_POOL_SIZE": "8",
        }
    )


def books(count: int, events: int) -> list[Book]:
    """`count` aggregates, each with `events` pending events."""
    made = [Book() for _ in range(count)]
    for book in made:
        for n in range(events - 1):
            book.transfer("external", f"budget:{n % 50}", 1_000)
    return made


def many_writers(
    threads: int, seconds: float, write: Callable[[int], Callable[[], None]]
) -> tuple[float, float]:
    """(writes a second, their 99th percentile in ms). `write(i)` makes the writer of one thread."""
    writers = [write(i) for i in range(threads)]
    end = time.perf_counter() + seconds

    def run(once: Callable[[], None]) -> list[float]:
        took, started = [], time.perf_counter()
        while started < end:
            once()
            now = time.perf_counter()
            took.append(now - started)
            started = now
        return took

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        times = sorted(t for took in pool.map(run, writers) for t in took)
        return len(times) / (time.perf_counter() - began), times[len(times) * 99 // 100] * 1_000


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(rounds: int, *works: Callable[[], float]) -> list[float]:
    """The median figure of each, measured in turns so that a busy moment meets all of them."""
    figures: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for kept, work in zip(figures, works, strict=True):
            kept.append(work())
    return [median(kept) for kept in figures]
