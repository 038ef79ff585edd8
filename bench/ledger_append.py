"""Appending, against the library as shipped and against bare Postgres; fsync on, both sides on one server in turns."""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Final
from uuid import uuid4

import psycopg

from bench import Row
from bench.library import Book, LibraryLedger, books, library, many_writers, postgres, side_by_side, timed
from ledger import events as e
from ledger.aggregates.base import Aggregate
from ledger.application import Ledger
from ledger.batch import HEADER_BYTES, MAX_RECEIPTS, Batch
from ledger.ids import delivery_id, node_id
from ledger.judged import pack
from ledger.keys import KeyPair
from ledger.receipt import SIGNED_BYTES
from ledger.store.migrate import migrate
from ledger.tlog.tiles import TileBuilder
from ledger.verdict import Verdict

BATCH: Final = 5_000
LIBRARY_BATCH: Final = 1_000
WRITER_BATCHES: Final = 3  # of each writer
ROUNDS: Final = 5
SINGLE_S: Final = 6.0
FILL_S: Final = 60.0


class Anything(Aggregate):
    """Carries prepared events into the log."""

    @property
    def pending(self) -> tuple[e.Event, ...]:
        return tuple(self._pending)

    def apply(self, event: e.Event) -> None:
        pass


def rows() -> Iterator[Row]:
    with postgres() as url:
        migrate(url)
        ledger, shipped = Ledger(url), library(url)
        try:
            yield from single(ledger, shipped)
            yield from batches(ledger, shipped, url)
            yield packed(ledger, url)
            yield growth(ledger)
        finally:
            ledger.close()
            shipped.close()


# --- single events ----------------------------------------------------------------------------------------------------


def single(ledger: Ledger, shipped: LibraryLedger) -> Iterator[Row]:
    def ours(_: int) -> Callable[[], None]:
        node = Anything(uuid4())

        def once() -> None:
            node.trigger(e.NodeProbed, at_us=1, outcome="ok", sequence=7, latency_us=900, segment_bytes=1_000)
            ledger.save(node)

        return once

    def theirs(_: int) -> Callable[[], None]:
        book = Book()

        def once() -> None:
            book.transfer("external", "budget:1", 1_000)
            shipped.save(book)

        return once

    latencies: list[float] = []

    def ours_rate() -> float:
        rate, p99_ms = many_writers(64, SINGLE_S, ours)
        latencies.append(p99_ms)
        return rate

    rate, other = side_by_side(3, ours_rate, lambda: many_writers(8, SINGLE_S, theirs)[0])
    yield Row(
        "durable append, 64 writers of one event against the library with 8", rate, other, "events/s", 18.0
    )
    yield Row("durable append, 64 writers: p99, against 15 ms", sorted(latencies)[1], 15.0, "ms", 1.0, True)


def probes(count: int, aggregates: int) -> list[Anything]:
    """`count` pending events in all, of `aggregates` new aggregates: facts that move no money."""
    made = [Anything(uuid4()) for _ in range(aggregates)]
    for n in range(count):
        made[n % aggregates].trigger(
            e.NodeProbed, at_us=n, outcome="ok", sequence=n, latency_us=900, segment_bytes=1_000
        )
    return made


# --- batches ----------------------------------------------------------------------------------------------------------


def deposits(count: int, aggregates: int) -> list[Anything]:
    """`count` pending events in all, of `aggregates` new aggregates."""
    made = [Anything(uuid4()) for _ in range(aggregates)]
    stream_id = uuid4()
    for n in range(count):
        transfer = e.Transfer("deposit", (e.Posting("external", -1_000), e.Posting("budget:1", 1_000)))
        made[n % aggregates].trigger(
            e.BudgetDeposited, at_us=n, stream_id=stream_id, reference=str(n), transfer=transfer
        )
    return made


def batches(ledger: Ledger, shipped: LibraryLedger, url: str) -> Iterator[Row]:
    """Domain events that are ready, until they are durable; ours also hashed into the tree.

    Both sides have two writers: one encodes while the database takes in what the other wrote.
    """
    tree = Tree()

    def ours() -> float:
        made = [deposits(BATCH, 50) for _ in range(2 * WRITER_BATCHES)]
        return len(made) * BATCH / timed(lambda: with_writers(lambda m: ledger.save(*m), made, tree))

    def theirs() -> float:
        made = [books(50, LIBRARY_BATCH // 50) for _ in range(2 * WRITER_BATCHES)]
        return len(made) * LIBRARY_BATCH / timed(lambda: with_writers(lambda m: shipped.save(*m), made))

    with psycopg.connect(url) as connection:
        bare_table(connection)
        bare = Bare(connection)
        ours(), theirs(), bare.run()
        rate, library_rate, bare_rate = side_by_side(ROUNDS, ours, theirs, bare.run)
    tree.close()
    name = "append in batches (encode, tree, index, commit)"
    yield Row(f"{name} against save() of 1,000", rate, library_rate, "events/s", 5.0)
    yield Row(f"{name} against a bare binary COPY", rate, bare_rate, "events/s", 0.6)


class Tree:
    """The tree grows in a process of its own, as in the hub."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.extend([]).result()

    def extend(self, events: Sequence[e.Event]) -> Future[int]:
        return self._pool.submit(grow, [e.encode(event) for event in events])

    def close(self) -> None:
        self._pool.shutdown()


_tree: Final = TileBuilder(lambda tile, data: None)


def grow(entries: list[bytes]) -> int:
    _tree.extend(entries)
    return _tree.size


def with_writers(
    save: Callable[[Any], object], made: Sequence[Any], tree: Tree | None = None, writers: int = 2
) -> None:
    """Saves of two writers, and beside them the tree."""
    with ThreadPoolExecutor(writers) as pool:
        saving = [pool.submit(lambda part: [save(m) for m in part], made[i::writers]) for i in range(writers)]
        hashing = [tree.extend([event for a in m for event in a.pending]) for m in made] if tree else []
        for future in (*saving, *hashing):
            future.result()


def bare_table(connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE TABLE bare (position bigint PRIMARY KEY, originator_id uuid NOT NULL,"
        " originator_version bigint NOT NULL, topic text NOT NULL, state bytea NOT NULL,"
        " UNIQUE (originator_id, originator_version))"
    )
    connection.execute("ALTER TABLE bare ALTER COLUMN state SET STORAGE EXTERNAL")
    connection.commit()


class Bare:
    """One COPY of rows that were encoded beforehand, in the order in which we would write them."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._next = 0

    def run(self) -> float:
        parts = [b"PGCOPY\n\xff\r\n\0" + bytes(8)]
        for event in (event for aggregate in deposits(BATCH, 50) for event in aggregate.pending):
            topic, state = e.tag_of(event).encode(), e.encode(event)
            parts.append(
                struct.pack(
                    f">hiqi16siqi{len(topic)}si{len(state)}s",
                    *(5, 8, self._next, 16, event.originator_id.bytes, 8, event.originator_version),
                    *(len(topic), topic, len(state), state),
                )
            )
            self._next += 1
        data = b"".join([*parts, b"\xff\xff"])

        def work() -> None:
            with (
                self._connection.cursor() as cursor,
                cursor.copy("COPY bare FROM STDIN (FORMAT binary)") as copy,
            ):
                copy.write(data)
            self._connection.commit()

        return BATCH / timed(work)


# --- receipts packed in events ----------------------------------------------------------------------------------------


def packed(ledger: Ledger, url: str) -> Row:
    """A node's batches taken in: root and signature checked, recorded with verdicts, hashed into the tree, durable."""
    key = KeyPair(bytes(32))
    sessions = [uuid4() for _ in range(MAX_RECEIPTS)]
    tree = Tree()
    hashing: list[Future[int]] = []
    count = 100
    sent = [
        Batch.sign(
            key, n, n + 10, [n.to_bytes(8) + i.to_bytes(SIGNED_BYTES - 8) for i in range(MAX_RECEIPTS)]
        ).encode()
        for n in range(count)
    ]
    judged = [e.Judged(Verdict.ACCEPTED.value, 5, 5_000_000)] * MAX_RECEIPTS
    verdicts = pack(range(MAX_RECEIPTS), sessions, [bytes(16)] * MAX_RECEIPTS, judged)

    def take_in(part: list[bytes]) -> list[Anything]:
        delivery = Anything(delivery_id(uuid4()))
        for data in part:
            batch = Batch.decode(data)
            delivery.trigger(
                e.SegmentsServed,
                at_us=1,
                node_id=node_id(batch.node_key),
                batch_header=data[:HEADER_BYTES],
                first_sequence=0,
                network_limit=2,
                receipts=data[HEADER_BYTES:],
                **verdicts,
            )
        hashing.append(tree.extend(delivery.pending))
        return [delivery]

    def work() -> None:
        with_writers(
            lambda part: ledger.save(*take_in(part)), [sent[i : i + 20] for i in range(0, count, 20)]
        )
        while hashing:
            hashing.pop().result()

    def ours() -> float:
        return count * MAX_RECEIPTS / timed(work)

    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE bare_packed (position bigserial PRIMARY KEY, state bytea NOT NULL)")
        connection.execute("ALTER TABLE bare_packed ALTER COLUMN state SET STORAGE EXTERNAL")
        connection.commit()
        state = b"".join(sent[0] for _ in range(5))

        def bare() -> float:
            def work() -> None:
                with connection.cursor() as cursor:
                    cursor.executemany(
                        "INSERT INTO bare_packed (state) VALUES (%b)", [(state,)] * (count // 5)
                    )
                connection.commit()

            return count * MAX_RECEIPTS / timed(work)

        ours(), bare()
        rate, other = side_by_side(ROUNDS, ours, bare)
    tree.close()
    return Row(
        "receipts packed in batch events against a bare INSERT of 1,000 a row", rate, other, "receipts/s", 0.4
    )


# --- growth -----------------------------------------------------------------------------------------------------------


def growth(ledger: Ledger) -> Row:
    """Time of a small and a large save at the size the log has here, and again after filling it for a minute."""

    def cost_us() -> float:
        def one_event() -> float:
            aggregate = deposits(1, 1)
            return timed(lambda: ledger.save(*aggregate)) * 1e6

        def thousand() -> float:
            aggregates = deposits(1_000, 50)
            return timed(lambda: ledger.save(*aggregates)) * 1e6

        return sum(side_by_side(40, one_event, thousand))

    small = ledger.size()
    before = cost_us()
    end = time.perf_counter() + FILL_S
    while time.perf_counter() < end:
        ledger.save(*deposits(BATCH, 50))
    large = ledger.size()
    after = cost_us()
    return Row(f"cost of an append at {large:,} events against {small:,}", after, before, "us", 1.2, True)
