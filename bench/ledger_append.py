"""Appending, against the library as shipped and against bare Postgres; fsync on, both sides on one server in turns."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from bench import Row
from bench.library import Book, LibraryLedger, books, library, many_writers, postgres, side_by_side, timed
from ledger import events as e
from ledger.aggregates.base import Aggregate
from ledger.application import Ledger
from ledger.batch import HEADER_BYTES, MAX_RECEIPTS, Batch
from ledger.ids import delivery_id, node_id
from ledger.judged import Judged, pack
from ledger.keys import KeyPair
from ledger.receipt import SIGNED_BYTES
from ledger.store.binary import copied
from ledger.store.mapper import columns_of, new_rows
from ledger.store.migrate import migrate
from ledger.tlog.publisher import PAGE
from ledger.tlog.tiles import TileBuilder
from ledger.verdict import Verdict

BATCH: Final = 5_000
LIBRARY_BATCH: Final = 1_000
# Batches on each side, before it is the other's turn. Only at the end of a turn does anybody wait for the tree to
# come after: in a log that goes on growing, never.
ROUND: Final = 12
BATCHES: Final = "crew_batches"  # schemas
PACKED: Final = "crew_packed"
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
            yield from batches(shipped, url)
            yield packed(url)
            yield growth(ledger)
        finally:
            ledger.close()
            shipped.close()


# --- single events ----------------------------------------------------------------------------------------------------


def single(ledger: Ledger, shipped: LibraryLedger) -> Iterator[Row]:
    def ours(_: int) -> Callable[[], None]:
        node = Anything(uuid4())

        def once() -> None:
            node.trigger(
                e.NodeProbed,
                at_us=1,
                outcome="ok",
                sequence=7,
                latency_us=900,
                segment_bytes=1_000,
                session_id=None,
            )
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
            e.NodeProbed,
            at_us=n,
            outcome="ok",
            sequence=n,
            latency_us=900,
            segment_bytes=1_000,
            session_id=None,
        )
    return made


# --- batches ----------------------------------------------------------------------------------------------------------


def deposits(count: int, aggregates: int, new_id: Callable[[], UUID] = uuid4) -> list[Anything]:
    """`count` pending events in all, of `aggregates` new aggregates."""
    made = [Anything(new_id()) for _ in range(aggregates)]
    stream_id = uuid4()
    for n in range(count):
        transfer = e.Transfer("deposit", (e.Posting("external", -1_000), e.Posting("budget:1", 1_000)))
        made[n % aggregates].trigger(
            e.BudgetDeposited, at_us=n, stream_id=stream_id, reference=str(n), transfer=transfer
        )
    return made


def batches(shipped: LibraryLedger, url: str) -> Iterator[Row]:
    """Domain events that are ready, until they are durable; ours also read back and hashed into the tree.

    Each side writes its batches one after the other into a log of its own that grows alike. The library has two
    writers: one encodes while the database takes in what the other wrote.
    """
    migrate(url, BATCHES)
    ledger = Ledger(url, schema=BATCHES)
    tree = Tree(url, BATCHES)

    def ours() -> float:
        made = [deposits(BATCH, 50) for _ in range(ROUND)]
        return ROUND * BATCH / timed(lambda: with_writers(lambda m: ledger.save(*m), made, tree, writers=1))

    def theirs() -> float:
        made = [books(50, LIBRARY_BATCH // 50) for _ in range(ROUND)]
        return ROUND * LIBRARY_BATCH / timed(lambda: with_writers(lambda m: shipped.save(*m), made))

    with psycopg.connect(url) as connection:
        bare_table(connection)
        bare = Bare(connection)
        ours(), theirs(), bare.run()
        rate, library_rate, bare_rate = side_by_side(ROUNDS, ours, theirs, bare.run)
    tree.close()
    ledger.close()
    name = "append in batches (encode, tree, index, commit)"
    yield Row(f"{name} against save() of 1,000", rate, library_rate, "events/s", 5.0)
    yield Row(f"{name} against a bare binary COPY", rate, bare_rate, "events/s", 0.6)


class Tree:
    """The tree grows in a process of its own that reads what was committed, as the hub's worker does."""

    def __init__(self, url: str, schema: str) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=open_log, initargs=(url, schema)
        )
        self.grow(0).result()

    def grow(self, size: int) -> Future[int]:
        """Take in the log up to its first `size` events."""
        return self._pool.submit(grow, size)

    def close(self) -> None:
        self._pool.shutdown()


_tree: Final = TileBuilder(lambda tile, data: None)
_log: list[Ledger] = []


def open_log(url: str, schema: str) -> None:
    _log.append(Ledger(url, schema=schema))


def grow(size: int) -> int:
    while _tree.size < size:
        _tree.extend([row.state for row in _log[0].read_rows(_tree.size, PAGE)])
    return _tree.size


def with_writers(
    save: Callable[[Any], Sequence[Any]], made: Sequence[Any], tree: Tree | None = None, writers: int = 2
) -> None:
    """Saves of some writers, and beside them the tree."""
    hashing: list[Future[int]] = []

    def write(part: Sequence[Any]) -> None:
        for m in part:
            positions = save(m)
            if tree is not None:
                hashing.append(tree.grow(positions[-1] + 1))

    with ThreadPoolExecutor(writers) as pool:
        for future in [pool.submit(write, made[i::writers]) for i in range(writers)]:
            future.result()
    for growing in hashing:
        growing.result()


def bare_table(connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE TABLE bare (position bigint PRIMARY KEY, originator_id uuid NOT NULL,"
        " originator_version bigint NOT NULL, topic text NOT NULL, state bytea NOT NULL,"
        " UNIQUE (originator_id, originator_version))"
    )
    connection.execute("ALTER TABLE bare ALTER COLUMN state SET STORAGE EXTERNAL")
    connection.commit()


class Bare:
    """COPY of rows that were encoded beforehand, in the order in which we would write them."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._next = 0

    def run(self) -> float:
        made = [self._stream() for _ in range(ROUND)]

        def work() -> None:
            for data in made:
                with (
                    self._connection.cursor() as cursor,
                    cursor.copy("COPY bare FROM STDIN (FORMAT binary)") as copy,
                ):
                    copy.write(data)
                self._connection.commit()

        return ROUND * BATCH / timed(work)

    def _stream(self) -> bytes:
        events = [event for aggregate in deposits(BATCH, 50) for event in aggregate.pending]
        self._next += len(events)
        return b"".join(copied(self._next - len(events), columns_of(new_rows(events))))


# --- receipts packed in events ----------------------------------------------------------------------------------------


def packed(url: str) -> Row:
    """A node's batches taken in: contents and signature held, recorded with verdicts, hashed into the tree, durable."""
    key = KeyPair(bytes(32))
    sessions = [uuid4() for _ in range(MAX_RECEIPTS)]
    migrate(url, PACKED)
    ledger, tree = Ledger(url, schema=PACKED), Tree(url, PACKED)
    count = 100
    sent = [
        Batch.sign(
            key, n, n + 10, [n.to_bytes(8) + i.to_bytes(SIGNED_BYTES - 8) for i in range(MAX_RECEIPTS)]
        ).encode()
        for n in range(count)
    ]
    judged = [Judged(Verdict.ACCEPTED.value, 5, 5_000_000)] * MAX_RECEIPTS
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
        return [delivery]

    def work() -> None:
        parts = [sent[i : i + 20] for i in range(0, count, 20)]
        with_writers(lambda part: ledger.save(*take_in(part)), parts, tree)

    def ours() -> float:
        return count * MAX_RECEIPTS / timed(work)

    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE bare_packed (position bigserial PRIMARY KEY, state bytea NOT NULL)")
        connection.execute("ALTER TABLE bare_packed ALTER COLUMN state SET STORAGE EXTERNAL")
        connection.commit()
        state = b"".join(sent[0] for _ in range(5))
        rows = [(state,)] * (20 // 5)  # what one of our appends holds

        def bare() -> float:
            def work() -> None:
                for _ in range(0, count, 20):
                    with connection.cursor() as cursor:
                        cursor.executemany("INSERT INTO bare_packed (state) VALUES (%b)", rows)
                    connection.commit()

            return count * MAX_RECEIPTS / timed(work)

        ours(), bare()
        rate, other = side_by_side(ROUNDS, ours, bare)
    tree.close()
    ledger.close()
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
