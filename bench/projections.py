"""Projections against the eventsourcing library's own projection runner, both in this run, on one Postgres with fsync.

Figures are events a second of CPU, of this process and the server together, so that other work on the machine does not
count; the library also waits for its commits, which is not held against it here. The library, as shipped, keeps account
balances over its own store, with a transaction an event. Ours stands beside it with balances alone, with each other
projection on the events it has most to do with, and with all on a mixed log (4 of 10 events hold 20 judged
receipts). Rounds of both take turns; the medians count.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import sysconf
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate as LibraryAggregate
from eventsourcing.domain import event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection as LibraryProjection
from eventsourcing.projection import ProjectionRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from bench import Row
from bench.library import postgres, side_by_side
from ledger import events as e
from ledger.aggregates.base import Aggregate
from ledger.application import Ledger
from ledger.ids import delivery_id
from ledger.judged import Judged, pack
from ledger.store.database import create_sql_engine
from ledger.store.migrate import migrate
from ledger.verdict import Verdict
from projections.balances import Balances
from projections.base import Projection
from projections.catalog import PROJECTIONS
from projections.nodes import Nodes
from projections.payouts import Payouts
from projections.rebuild import rebuild
from projections.runner import Runner
from projections.statements import Statements
from projections.streams import Streams

REACH = 50.0
EVENTS = 30_000
ROUNDS = 3
ACCOUNTS = 50
LIBRARY_EVENTS = 1_000
LIBRARY_SAVE_EVENTS = 500  # its insert in a pipeline can stand still for ever with thousands
SAVE_EVENTS = 2_000
RECEIPTS = 20


class Anything(Aggregate):
    """Carries prepared events into the log."""

    def apply(self, event: e.Event) -> None:
        pass


class Cpu:
    """Seconds of CPU that this process and the Postgres server with all its backends have used."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            ((folder,),) = connection.execute("SHOW data_directory").fetchall()
        self._server = int(Path(folder, "postmaster.pid").read_text().split()[0])

    def __call__(self) -> float:
        children = Path(f"/proc/{self._server}/task/{self._server}/children").read_text().split()
        server = _ticks(self._server, 4) + sum(_ticks(int(pid), 2) for pid in children)
        return time.process_time() + server / sysconf("SC_CLK_TCK")

    def of(self, work: Callable[[], object]) -> float:
        before = self()
        work()
        return self() - before


def _ticks(pid: int, fields: int) -> int:
    """utime and stime; with 4 fields also those of children that ended (proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended just now: its parent has its time
        return 0
    return sum(map(int, stat[11 : 11 + fields]))


# --- the library, as shipped ------------------------------------------------------------------------------------------


class LibraryBook(LibraryAggregate):
    @event("Opened")
    def __init__(self) -> None:
        self.transfers = 0

    @event("Transferred")
    def transfer(self, source: str, target: str, amount_micro: int) -> None:
        self.transfers += 1


class LibraryLedger(Application[UUID]):
    name = "libraryledger"


class LibraryView(PostgresTrackingRecorder):
    def __init__(self, datastore: Any, **options: Any) -> None:
        super().__init__(datastore, **options)
        self.table = f"{datastore.schema}.library_balances"
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS {0}.library_balances"
                " (account text PRIMARY KEY, amount_micro bigint NOT NULL)"
            ).format(Identifier(datastore.schema))
        )

    def transfer(self, source: str, target: str, amount_micro: int, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            for account, amount in sorted([(source, -amount_micro), (target, amount_micro)]):
                cursor.execute(
                    f"INSERT INTO {self.table} AS t VALUES (%s, %s) "
                    "ON CONFLICT (account) DO UPDATE SET amount_micro = t.amount_micro + excluded.amount_micro",
                    (account, amount),
                )


class LibraryBalances(LibraryProjection[LibraryView]):
    name = "librarybalances"
    topics = ()
    last = 0
    reached = threading.Event()  # `last`; the library's own wait looks every 0.8 s only

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        if isinstance(domain_event, LibraryBook.Transferred):  # type: ignore[attr-defined]  # made by @event
            self.view.transfer(domain_event.source, domain_event.target, domain_event.amount_micro, tracking)
            if tracking.notification_id == self.last:
                self.reached.set()


def library_env(url: str) -> dict[str, str]:
    given = conninfo_to_dict(url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(given["dbname"]),
        "POSTGRES_HOST": str(given["host"]),
        "POSTGRES_PORT": str(given.get("port", "5432")),
        "POSTGRES_USER": str(given["user"]),
        "POSTGRES_PASSWORD": str(given.get("password", "")),
    }


def library_rate(url: str, cpu: Cpu) -> float:
    """Of the library's runner."""
    env = library_env(url)
    app = LibraryLedger(env)
    book = LibraryBook()
    for n in range(LIBRARY_EVENTS):
        book.transfer("external", f"budget:{n % ACCOUNTS}", 1_000)
        if (n + 1) % LIBRARY_SAVE_EVENTS == 0:
            LibraryBalances.last = app.save(book)[-1].notification.id
    app.close()
    LibraryBalances.reached.clear()
    before = cpu()
    with ProjectionRunner(
        application_class=LibraryLedger,
        projection_class=LibraryBalances,
        view_class=LibraryView,
        env=env,
    ):
        if not LibraryBalances.reached.wait(300):
            raise TimeoutError("the library's runner did not get to the end")
        return LIBRARY_EVENTS / (cpu() - before)


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """A log that is written event by event and saved in pages."""

    ledger: Ledger
    stream: Anything = field(default_factory=lambda: Anything(uuid4()))
    broadcast: Anything = field(default_factory=lambda: Anything(uuid4()))
    book: Anything = field(default_factory=lambda: Anything(uuid4()))
    batch: Anything = field(default_factory=lambda: Anything(uuid4()))
    nodes: list[Anything] = field(default_factory=lambda: [Anything(uuid4()) for _ in range(20)])

    def __post_init__(self) -> None:
        self.delivery = Anything(delivery_id(self.broadcast.id))
        self.friends = [uuid4() for _ in self.nodes]
        self.receipts = random.Random(7).randbytes(205 * RECEIPTS)  # signatures do not compress
        judged = (Judged(Verdict.ACCEPTED.value, 5, 5_000_000),) * RECEIPTS
        sessions, networks = [self.stream.id] * RECEIPTS, [bytes(16)] * RECEIPTS
        self.columns = pack(range(RECEIPTS), sessions, networks, judged)

    def begin(self) -> None:
        """What the other events need: a stream that is live, nodes, a payout that is planned."""
        self.stream.trigger(
            e.StreamRegistered, at_us=0, name="s", key_sha256=bytes(32), owner_id=self.friends[0]
        )
        self.broadcast.trigger(
            e.BroadcastStarted,
            at_us=0,
            stream_id=self.stream.id,
            rendition_id=self.broadcast.id,
            first_sequence=0,
            video_codec="h264",
            audio_codec="aac",
        )
        for node, friend_id in zip(self.nodes, self.friends, strict=True):
            node.trigger(
                e.NodeJoined,
                at_us=0,
                public_key=bytes(32),
                friend_id=friend_id,
                invite_id=friend_id,
                prefix_commitment=bytes(16),
            )
        lines = [e.PayoutLine(n + 1, f, 1_000, bytes(32)) for n, f in enumerate(self.friends)]
        self.batch.trigger(e.PayoutPlanned, at_us=0, rail="csv", lines=tuple(lines))
        self.save()

    def save(self) -> None:
        self.ledger.save(self.stream, self.broadcast, self.book, self.batch, self.delivery, *self.nodes)

    def deposit(self, n: int) -> None:
        postings = (e.Posting("external", -1_000), e.Posting(f"budget:{n % ACCOUNTS}", 1_000))
        transfer = e.Transfer("deposit", postings)
        self.book.trigger(
            e.BudgetDeposited, at_us=n, stream_id=self.stream.id, reference=str(n), transfer=transfer
        )

    def reserve(self, n: int) -> None:
        name = f"friend:{self.friends[n % len(self.friends)]}"
        postings = (e.Posting(f"{name}:available", -1_000), e.Posting(f"{name}:in_flight", 1_000))
        transfer = e.Transfer("payout", postings)
        self.book.trigger(
            e.PayoutLineReserved, at_us=n, batch_id=self.batch.id, line=n % 20 + 1, transfer=transfer
        )

    def attempt(self, n: int) -> None:
        self.batch.trigger(e.PayoutAttempted, at_us=n, line=n % 20 + 1, attempt=n, key=str(n))

    def probe(self, n: int) -> None:
        self.nodes[n % 20].trigger(
            e.NodeProbed,
            at_us=n,
            outcome="ok",
            sequence=n,
            latency_us=9,
            segment_bytes=1_000_000,
            session_id=None,
        )

    def publish(self, n: int) -> None:
        segment = e.Segment(n, 4_000_000, 1_000_000, bytes(32), n)
        self.broadcast.trigger(
            e.SegmentsPublished, at_us=n, rendition_id=self.broadcast.id, segments=(segment,)
        )

    def serve(self, n: int) -> None:
        self.delivery.trigger(
            e.SegmentsServed,
            at_us=n,
            node_id=self.nodes[n % 20].id,
            batch_header=bytes(147),
            first_sequence=0,
            network_limit=2,
            receipts=self.receipts,
            **self.columns,
        )


Turn = Callable[[Writer, int], None]
MIXED: tuple[Turn, ...] = (Writer.serve, Writer.serve, Writer.publish, Writer.probe, Writer.deposit)
# What each projection is measured on: the events that it has most to do with.
CASES: tuple[tuple[str, list[type[Projection]], tuple[Turn, ...]], ...] = (
    ("all five, busy evening", list(PROJECTIONS), MIXED),
    ("balances, deposits", [Balances], (Writer.deposit,)),
    ("statements, payout lines", [Statements], (Writer.reserve,)),
    ("nodes, probes and 20 receipts", [Nodes], (Writer.probe, Writer.serve)),
    ("streams, segments", [Streams], (Writer.publish,)),
    ("payouts, attempts", [Payouts], (Writer.attempt,)),
    ("nodes, 20 receipts", [Nodes], (Writer.serve,)),
)


def write(ledger: Ledger, turns: Sequence[Turn], count: int) -> None:
    writer = Writer(ledger)
    writer.begin()
    for n in range(count):
        turns[n % len(turns)](writer, n)
        if n % SAVE_EVENTS == 0:
            writer.save()
    writer.save()


def our_rates(
    url: str, schema: str, turns: Sequence[Turn], projections: list[type[Projection]]
) -> tuple[float, float, float]:
    """Runner, rebuild, and the library's in between, so that a busy moment meets all of them."""
    migrate(url, schema)
    ledger, engine = Ledger(url, schema=schema), create_sql_engine(url, schema)
    try:
        write(ledger, turns, EVENTS)
        size, cpu = ledger.size(), Cpu(url)
        runner = Runner(ledger, engine, schema_name=schema, projections=projections)

        def steady() -> float:
            with engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE IF EXISTS read_positions")
            runner.prepare()
            return size / cpu.of(runner.catch_up)

        def rebuilt() -> float:
            return size / cpu.of(lambda: rebuild(ledger, engine, projections, schema_name=schema))

        ours, again, other = side_by_side(ROUNDS, steady, rebuilt, lambda: library_rate(url, cpu))
        return ours, again, other
    finally:
        ledger.close()
        engine.dispose()


def rows() -> Iterator[Row]:
    with postgres() as url:
        for number, (name, projections, turns) in enumerate(CASES):
            steady, rebuilt, other = our_rates(url, f"bench_{number}", turns, projections)
            yield Row(f"projections: {name}, runner", steady, other, "events/cpu s", REACH)
            yield Row(f"projections: {name}, rebuild", rebuilt, other, "events/cpu s", REACH)
