"""Projections against the eventsourcing library's own projection runner, both in this run, on one Postgres with fsync.

Figures are events a second. Both sides fold the same transfers into account balances; the library, as shipped,
over its own store and with a transaction per event. `all six` shows what the whole set of read models costs on a
mixed log (4 of 10 events hold 20 judged receipts), against the same figure of the library, which keeps only balances.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

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
from bench.library import postgres, timed
from ledger import events as e
from ledger.aggregates.base import Aggregate
from ledger.application import Ledger
from ledger.ids import delivery_id
from ledger.judged import pack
from ledger.store.database import create_sql_engine
from ledger.store.migrate import migrate
from ledger.verdict import Verdict
from projections.balances import Balances
from projections.base import Projection
from projections.catalog import PROJECTIONS
from projections.rebuild import rebuild
from projections.runner import Runner

REACH = 50.0
EVENTS = 50_000
ACCOUNTS = 50
LIBRARY_EVENTS = 3_000
LIBRARY_SAVE_EVENTS = 500  # its insert in a pipeline can stand still for ever with thousands
SAVE_EVENTS = 2_000
RECEIPTS = 20


class Anything(Aggregate):
    """Carries prepared events into the log."""

    def apply(self, event: e.Event) -> None:
        pass


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

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        if isinstance(domain_event, LibraryBook.Transferred):  # type: ignore[attr-defined]  # made by @event
            self.view.transfer(domain_event.source, domain_event.target, domain_event.amount_micro, tracking)


def library_rate(url: str) -> float:
    """Events a second of the library's runner."""
    given = conninfo_to_dict(url)
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(given["dbname"]),
        "POSTGRES_HOST": str(given["host"]),
        "POSTGRES_PORT": str(given.get("port", "5432")),
        "POSTGRES_USER": str(given["user"]),
        "POSTGRES_PASSWORD": str(given.get("password", "")),
    }
    app = LibraryLedger(env)
    book = LibraryBook()
    last = 0
    for n in range(LIBRARY_EVENTS):
        book.transfer("external", f"budget:{n % ACCOUNTS}", 1_000)
        if (n + 1) % LIBRARY_SAVE_EVENTS == 0:
            last = app.save(book)[-1].notification.id
    app.close()
    started = time.perf_counter()
    with ProjectionRunner(
        application_class=LibraryLedger,
        projection_class=LibraryBalances,
        view_class=LibraryView,
        env=env,
    ) as runner:
        runner.wait(last, timeout=300)
    return LIBRARY_EVENTS / (time.perf_counter() - started)


# --- ours -------------------------------------------------------------------------------------------------------------


def write_transfers(ledger: Ledger, count: int) -> None:
    book = Anything(uuid4())
    for n in range(count):
        stream_id = UUID(int=n % ACCOUNTS)
        postings = (e.Posting("external", -1_000), e.Posting(f"budget:{n % ACCOUNTS}", 1_000))
        transfer = e.Transfer("deposit", postings)
        book.trigger(e.BudgetDeposited, at_us=n, stream_id=stream_id, reference=str(n), transfer=transfer)
        if book.version % SAVE_EVENTS == 0:
            ledger.save(book)
    ledger.save(book)


def write_mixed(ledger: Ledger, count: int) -> None:
    """As of a busy evening: batches of receipts, segments, probes, sessions, and deposits."""
    stream, broadcast, book = Anything(uuid4()), Anything(uuid4()), Anything(uuid4())
    delivery, nodes = Anything(delivery_id(broadcast.id)), [Anything(uuid4()) for _ in range(20)]
    stream.trigger(e.StreamRegistered, at_us=0, name="s", key_sha256=bytes(32), owner_id=uuid4())
    broadcast.trigger(
        e.BroadcastStarted,
        at_us=0,
        stream_id=stream.id,
        rendition_id=broadcast.id,
        first_sequence=0,
        video_codec="h264",
        audio_codec="aac",
    )
    for node in nodes:
        node.trigger(
            e.NodeJoined,
            at_us=0,
            public_key=bytes(32),
            friend_id=uuid4(),
            invite_id=uuid4(),
            prefix_commitment=bytes(16),
        )
    ledger.save(stream, broadcast, *nodes)
    judged = (e.Judged(Verdict.ACCEPTED.value, 5, 5_000_000),) * RECEIPTS
    for n in range(count):
        node = nodes[n % len(nodes)]
        match n % 5:
            case 0 | 1:
                delivery.trigger(
                    e.SegmentsServed,
                    at_us=n,
                    node_id=node.id,
                    batch_header=bytes(147),
                    first_sequence=0,
                    network_limit=2,
                    receipts=bytes(205 * RECEIPTS),
                    **pack(range(RECEIPTS), [stream.id] * RECEIPTS, [bytes(16)] * RECEIPTS, judged),
                )
            case 2:
                segment = e.Segment(n, 4_000_000, 1_000_000, bytes(32), n)
                broadcast.trigger(
                    e.SegmentsPublished, at_us=n, rendition_id=broadcast.id, segments=(segment,)
                )
            case 3:
                node.trigger(
                    e.NodeProbed, at_us=n, outcome="ok", sequence=n, latency_us=9, segment_bytes=1_000_000
                )
            case _:
                transfer = e.Transfer("deposit", (e.Posting("external", -1), e.Posting("budget:1", 1)))
                book.trigger(
                    e.BudgetDeposited, at_us=n, stream_id=stream.id, reference=str(n), transfer=transfer
                )
        if n % SAVE_EVENTS == 0:
            ledger.save(delivery, broadcast, book, *nodes)
    ledger.save(delivery, broadcast, book, *nodes)


def our_rates(
    url: str,
    schema: str,
    write: Callable[[Ledger, int], None],
    count: int,
    projections: list[type[Projection]],
) -> tuple[float, float]:
    """Events a second: runner, rebuild."""
    migrate(url, schema)
    ledger, engine = Ledger(url, schema=schema), create_sql_engine(url, schema)
    try:
        write(ledger, count)
        size = ledger.size()
        runner = Runner(ledger, engine, schema_name=schema, projections=projections)
        runner.prepare()
        steady_s = timed(runner.catch_up)
        rebuild_s = timed(lambda: rebuild(ledger, engine, projections, schema_name=schema))
        return size / steady_s, size / rebuild_s
    finally:
        ledger.close()
        engine.dispose()


def rows() -> Iterator[Row]:
    with postgres() as url:
        other = library_rate(url)
        steady, rebuilt = our_rates(url, "bench_transfers", write_transfers, EVENTS, [Balances])
        yield row("projections: balances, runner", steady, other)
        yield row("projections: balances, rebuild", rebuilt, other)
        steady, rebuilt = our_rates(url, "bench_mixed", write_mixed, EVENTS, list(PROJECTIONS))
        yield row("projections: all six on a mixed log, runner", steady, other)
        yield row("projections: all six on a mixed log, rebuild", rebuilt, other)


def row(name: str, ours: float, other: float) -> Row:
    return Row(name, ours, other, "events/s", REACH)
