"""`python -m bench.ledger_size [--events N] [--keep FOLDER]`: what grows with the log, and what does not.

Crews of 10,000, a million and N events (ten million unless said otherwise) on one server, fsync on. Each figure of a
large log is set against that of the small one, measured in turns. N is bounded by the disk: about 1 kB an event.
What is in FOLDER was written once and stays: the next run, of another version of the program too, measures on it. The
small one is written anew, as each run makes it longer.
"""

import argparse
import gc
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from threading import Event
from typing import Final
from uuid import UUID, uuid4

import psycopg
from psycopg.sql import SQL, Identifier

from bench import Row
from bench.__main__ import line
from bench.ledger_append import Anything, deposits, probes
from bench.library import postgres, side_by_side, timed
from hub.embedded.postgres import EmbeddedPostgres
from hub.embedded.warm import warm
from hub.logs import configure_logging
from ledger import events as e
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.ids import BOOK_ID, NAMESPACE, ordered_id
from ledger.keys import KeyPair
from ledger.services.settle import catch_up, keep_index, recall_index
from ledger.store.migrate import migrate
from ledger.tlog.publisher import Publisher

SMALL: Final = 10_000
BYTES_PER_EVENT: Final = 1_000
BATCH: Final = 5_000  # of these, one moves money in the book
ACCOUNTS: Final = 500
ROUNDS: Final = 40
VIEWERS: Final = 10  # who come at once in the mix of a hub
BATCHES: Final = 3  # of their receipts, packed, in the time in which each of them needs one ticket
BATCH_BYTES: Final = 40_000
MEMORY_MIB: Final = 200.0
APPEND_REACH: Final = 1.2
FLAT: Final = 1.5  # what does not grow may still be measured on a busy machine


class Crew:
    """One crew's log and its publication."""

    def __init__(self, url: str, folder: Path, events: int) -> None:
        self.url, self.schema, self.folder, self.events = url, f"crew_{events}", folder / str(events), events
        if events == SMALL:
            with psycopg.connect(url) as connection:
                connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(self.schema)))
            shutil.rmtree(self.folder, ignore_errors=True)
        migrate(url, self.schema)
        self.ledger = Ledger(url, schema=self.schema)
        self.publisher = publisher_of(self.ledger, self.folder)
        self.delivery = Anything(uuid4())

    def fill(self) -> None:
        if self.ledger.size() == 0:
            book = self.ledger.load_or_new(Book, BOOK_ID)
            for n in range(ACCOUNTS):
                self.deposit(book, n)
            for n in range(ACCOUNTS, self.events, BATCH):
                self.deposit(book, n)
                self.ledger.save(book, *probes(BATCH - 1, 50))
        self.ledger.load(Book, BOOK_ID)
        self.publisher.publish(at_us=self.events)

    def fold(self) -> None:
        """Keep the unsettled credits as a hub does that runs all the while."""
        index = recall_index(self.ledger)
        catch_up(self.ledger, index)
        keep_index(self.ledger, index)

    @staticmethod
    def deposit(book: Book, n: int) -> None:
        stream_id = UUID(int=NAMESPACE.int + n % ACCOUNTS)
        book.deposit(stream_id, amount_micro=1_000_000, reference=f"d{n}", at_us=n)

    # --- what is measured

    def append(self, new_id: Callable[[], UUID]) -> float:
        """us of an append of one event and of a thousand, together, all of new aggregates."""
        one, thousand = deposits(1, 1, new_id), deposits(1_000, 50, new_id)
        return 1e6 * (timed(lambda: self.ledger.save(*one)) + timed(lambda: self.ledger.save(*thousand)))

    def append_mix(self) -> float:
        """us of what a hub appends when viewers come: a session and a ticket for each, and some batches of receipts.

        Each is durable before the next. The batches go on in the aggregate of one broadcast.
        """
        sessions, tickets = ([deposits(1, 1, of) for _ in range(VIEWERS)] for of in (by_time, uuid4))

        def arrive() -> None:
            for one in (*sessions, *tickets):
                self.ledger.save(*one)
            for _ in range(BATCHES):
                self.delivery.trigger(
                    e.BudgetDeposited,
                    at_us=1,
                    stream_id=NAMESPACE,
                    reference="r" * BATCH_BYTES,
                    transfer=e.Transfer("deposit", ()),
                )
                self.ledger.save(self.delivery)

        return 1e6 * timed(arrive)

    def publish(self) -> float:
        """ms to publish a thousand new events."""
        self.ledger.save(*probes(1_000, 50))
        return 1e3 * timed(lambda: self.publisher.publish(at_us=1))

    def balances(self) -> float:
        """us to ask the ledger for every balance."""
        return 1e6 * timed(lambda: self.ledger.load(Book, BOOK_ID).available())

    def start(self) -> tuple[float, float]:
        """(s until a new process has the log, its book, its unsettled credits and its tree, MiB at most)."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(start, self.url, self.schema, self.folder).result()


def by_time() -> UUID:
    """As the hub names sessions and broadcasts; tickets are named by their hash, which is as good as random."""
    return ordered_id(time.time_ns() // 1_000, secrets.token_bytes(10))


def publisher_of(ledger: Ledger, folder: Path) -> Publisher:
    return Publisher(ledger, folder, KeyPair(bytes(32)), "bench.example/log")


def start(url: str, schema: str, folder: Path) -> tuple[float, float]:
    gc.freeze()  # as the worker of a hub does
    began = time.perf_counter()
    ledger = Ledger(url, schema=schema)
    book = ledger.load(Book, BOOK_ID)
    index = recall_index(ledger)
    catch_up(ledger, index)
    publisher_of(ledger, folder).publish(at_us=1)
    took = time.perf_counter() - began
    assert sum(book.accounts.values()) == 0
    ledger.close()
    return took, getrusage(RUSAGE_SELF).ru_maxrss / 1024


def rows_of(crews: list[Crew]) -> Iterator[Row]:
    small, *larger = crews

    def against_small(
        what: str, unit: str, reach: float, rounds: int, measure: Callable[[Crew], float]
    ) -> Iterator[Row]:
        for crew in crews:
            measure(crew)  # warm
        figures = side_by_side(rounds, *[lambda crew=crew: measure(crew) for crew in crews])
        for crew, figure in zip(larger, figures[1:], strict=True):
            yield Row(
                f"{what} at {crew.events:,} events against {small.events:,}",
                figure,
                figures[0],
                unit,
                reach,
                True,
            )

    for how, new_id in (("by time", by_time), ("at random", uuid4)):
        name = f"append of 1 and of 1,000, named {how},"
        yield from against_small(name, "us", APPEND_REACH, ROUNDS, partial(Crew.append, new_id=new_id))
    each = f"{VIEWERS} sessions, {VIEWERS} tickets, {BATCHES} batches of receipts, one append each,"
    yield from against_small(each, "us", APPEND_REACH, ROUNDS, Crew.append_mix)
    yield from against_small("publication of 1,000 more", "ms", FLAT, ROUNDS // 2, Crew.publish)
    yield from against_small("all balances", "us", FLAT, ROUNDS, Crew.balances)
    memory: dict[int, float] = {}

    for crew in crews:
        crew.fold()

    def start_s(crew: Crew) -> float:
        took, memory[crew.events] = crew.start()
        return took

    yield from against_small("start of the ledger's part of a hub", "s", FLAT, 5, start_s)
    for crew in crews:
        name = f"memory of the ledger's part at {crew.events:,} events"
        yield Row(name, memory[crew.events], MEMORY_MIB, "MiB", 1.0, True)


@contextmanager
def server(kept: Path | None) -> Iterator[tuple[str, Path]]:
    """(URL, folder of the published logs); gone afterwards unless they are kept."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="streamrp2p-bench-") as folder, postgres() as url:
            yield url, Path(folder)
        return
    kept.mkdir(parents=True, exist_ok=True)
    kept.chmod(0o755)
    (kept / "logs").mkdir(exist_ok=True)
    embedded = EmbeddedPostgres(kept / "postgres")
    try:
        yield embedded.start(), kept / "logs"
    finally:
        embedded.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ledger_size", description=__doc__.partition(":")[2]
    )
    parser.add_argument("--events", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    events = arguments.events
    sizes = sorted({SMALL, min(1_000_000, events), events})
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if arguments.keep is None and (events < SMALL or free < sum(sizes) * BYTES_PER_EVENT):
        print(f"--events is {SMALL} to {free // BYTES_PER_EVENT - sum(sizes[:-1])} here", file=sys.stderr)
        return 2
    configure_logging(json=False, level="warning")
    with server(arguments.keep) as (url, folder):
        crews = []
        for size in sizes:
            crew = Crew(url, folder, size)
            written, folded = timed(crew.fill), timed(crew.fold)
            print(
                f"bench: {size:,} events written and published in {written:.0f} s, folded in {folded:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            crews.append(crew)
        for crew in crews:
            warm(url, Event(), schema=crew.schema)  # as the worker of a hub does
        for row in rows_of(crews):
            print(line(row), flush=True)
        for crew in crews:
            crew.ledger.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
