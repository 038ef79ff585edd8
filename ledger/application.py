"""The ledger: load an aggregate, decide, save; read the log in order.

Invariants: what `save` returns is committed, all of it or none; a loaded aggregate is the fold of every event that
was committed before the call; `read` never skips a position. One `Ledger` serves many threads and outlives restarts
of the database.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from time import monotonic
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import psycopg.errors
from eventsourcing import persistence
from psycopg.rows import TupleRow

from ledger.aggregates.base import Aggregate
from ledger.aggregates.book import Book
from ledger.aggregates.node import Node
from ledger.aggregates.stream import Stream
from ledger.event_codec import UnknownEventError, decode, happened_us
from ledger.events import Event
from ledger.ids import node_id, stream_id
from ledger.store.cache import AggregateCache
from ledger.store.database import Datastore
from ledger.store.factory import Store
from ledger.store.folds import Folds
from ledger.store.listener import Listener
from ledger.store.mapper import CorruptRowError, new_rows
from ledger.store.parts import PartGap, Parts
from ledger.store.recorder import Row

A = TypeVar("A", bound=Aggregate)
F = TypeVar("F")

READ_LIMIT_MAX: Final = 50_000
KEPT_EVERY: Final = 256  # events of an aggregate between two times that it is kept
_FOLD_PAGE: Final = 1_000
_FALLBACK_POLL_S: Final = 1.0


def _balanced(book: Any) -> bool:
    found: bool = book.adds_up()
    return found


def _of_its_key(node: Any) -> bool:
    found: bool = node.id == node_id(node.public_key)
    return found


def _of_its_name(stream: Any) -> bool:
    found: bool = stream.id == stream_id(stream.slug)
    return found


# Aggregates that live as long as the crew, with what must hold of one that was kept. The others are short. A node has
# an event with each spot check: hundreds of thousands, each in a page of its own.
KEPT: Final[dict[type[Aggregate], Callable[[Any], bool]]] = {
    Book: _balanced,
    Node: _of_its_key,
    Stream: _of_its_name,
}


class Conflict(Exception):
    """Somebody else's events came first. Load again and decide again."""

    exit_code = 10


class Unavailable(Exception):
    """The database is away or too slow. Try again later; after a save, load first: it may have been recorded."""

    exit_code = 10


class NotFound(Exception):
    """No aggregate has this id."""

    exit_code = 4


class LogGapError(Exception):
    """The log does not hold the position that must come next: the database is damaged."""

    exit_code = 5


class StaleAggregateError(RuntimeError):
    """A save or a command on this aggregate failed before. It must be loaded again, not saved again."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One event of the log. `data` is its exact stored bytes, the leaf of the tree at `position`."""

    position: int
    event: Event
    data: bytes


class Scan:
    """Part of the log, to be taken once and in order: each event with its position."""

    def __init__(self, start: int, end: int, rows: Iterable[TupleRow]) -> None:
        self._start = start
        self.end = end  # the next position; of an unknown event, once that was met
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[int, Event]]:
        """Ends before an event that this program does not know; raises UnknownEventError when it is the first."""
        for position, topic, state in self._rows:
            try:
                event = decode(state, topic)
            except UnknownEventError as e:
                if position > self._start:
                    self.end = position
                    return
                raise UnknownEventError(f"position {position}: {e}") from e
            yield position, event


class Ledger:
    def __init__(self, database_url: str, *, schema: str = "crew_main") -> None:
        """Connects when first used. Raises DatabaseUrlError."""
        self._datastore = Datastore(database_url, schema)
        self._store = Store(self._datastore)
        self._cache = AggregateCache()
        self._folds = Folds(self._datastore)
        self._kept: dict[str, int] = {}  # name of a fold -> how far it was kept last
        self._news = Condition()
        self._generation = 0
        self._listener: Listener | None = None

    def load(self, cls: type[A], aggregate_id: UUID) -> A:
        """The aggregate as of now. It belongs to the caller. Raises NotFound, Unavailable, UnknownEventError."""
        aggregate = self._load(cls, aggregate_id)
        if aggregate is None:
            raise NotFound(f"no {cls.__name__.lower()} {aggregate_id}")
        return aggregate

    def load_or_new(self, cls: type[A], aggregate_id: UUID) -> A:
        """As `load`, or a new one without events. Raises Unavailable, UnknownEventError."""
        return self._load(cls, aggregate_id) or cls(aggregate_id)

    def load_each(self, *wanted: tuple[type[Aggregate], UUID]) -> list[Aggregate | None]:
        """As `load`, of different aggregates together: those in memory cost one query. None for one without events."""
        warm = {
            i: a for i, (cls, a_id) in enumerate(wanted) if (a := self._cache.take(cls, a_id)) is not None
        }
        if warm:
            by_id = {aggregate.id: aggregate for aggregate in warm.values()}
            to_domain_event = self._store.mapper.to_domain_event
            with _translated:
                for stored in self._store.recorder.select_newer([(a.id, a.version) for a in by_id.values()]):
                    event = cast("Event", to_domain_event(stored))
                    by_id[event.originator_id].mutate(event)
            for aggregate in warm.values():
                self._cache.put(aggregate)
        return [warm[i] if i in warm else self._load(*each) for i, each in enumerate(wanted)]

    def remembered(self, *wanted: tuple[type[Aggregate], UUID]) -> list[Aggregate | None]:
        """As `load_each`, but those in memory as they are there: other processes may have gone on since.

        For decisions that `save` holds against the log: by appending to it, or as `unchanged`.
        """
        warm = [self._cache.take(cls, aggregate_id) for cls, aggregate_id in wanted]
        return [found or self._load(*each) for found, each in zip(warm, wanted, strict=True)]

    def save(self, *aggregates: Aggregate, unchanged: Sequence[Aggregate] = ()) -> list[int]:
        """Record what is pending in all of them, in one transaction. Returns the positions, in order.

        `unchanged` are others on which it was decided: nothing is recorded when they have newer events.
        Raises Conflict when another event came first, Unavailable when it is not known whether they were recorded,
        StaleAggregateError when one of them has failed before. After any of these, load again.
        """
        for aggregate in aggregates:
            if aggregate.torn:
                raise StaleAggregateError(
                    f"load {type(aggregate).__name__} {aggregate.id} again before saving it"
                )
        events = [event for aggregate in aggregates for event in aggregate.collect_events()]
        # Straight to the recorder: the library's own way there costs four times as much as all that is done here.
        first = 0
        if events:
            try:
                with _translated:
                    first = self._store.recorder.append(
                        new_rows(events), [(aggregate.id, aggregate.version) for aggregate in unchanged]
                    )
            except BaseException:
                for aggregate in aggregates:
                    aggregate.take_back()
                raise
        for aggregate in aggregates:
            aggregate.settle()
            self._cache.put(aggregate)
        return list(range(first, first + len(events)))

    def read(self, start: int, limit: int) -> list[Recorded]:
        """Events from position `start` on, ascending and dense, at most `limit`; empty at the end of the log.

        Raises UnknownEventError when the next event is of a type this program does not know (the events before it
        are returned first), LogGapError, Unavailable.
        """
        out: list[Recorded] = []
        for row in self.read_rows(start, limit):
            try:
                out.append(Recorded(row.position, decode(row.state, row.topic), row.state))
            except UnknownEventError as e:
                if out:
                    return out
                raise UnknownEventError(f"position {row.position}: {e}") from e
        return out

    def read_rows(self, start: int, limit: int) -> list[Row]:
        """As `read`, with the exact bytes only: nothing is decoded. Raises LogGapError, Unavailable."""
        _check_page(start, limit)
        with _translated:
            rows = self._store.recorder.select_rows(start, limit)
        # Ascending they are, and no two the same: so only the last can tell that one is missing.
        if rows and rows[-1].position != start + len(rows) - 1:
            expected, row = next(pair for pair in enumerate(rows, start) if pair[1].position != pair[0])
            raise LogGapError(f"position {expected} is missing from the log; the next is {row.position}")
        return rows

    def check_rows(self, start: int, limit: int) -> int:
        """Hold every column of rows against the event in their bytes; returns how many rows there were.

        Raises CorruptRowError, LogGapError, UnknownEventError, all with the position; Unavailable.
        """
        _check_page(start, limit)
        with _translated:
            rows = self._store.recorder.select_notifications(start + 1, limit)
        for position, row in enumerate(rows, start):
            if row.id != position + 1:
                raise LogGapError(f"position {position} is missing from the log; the next is {row.id - 1}")
            try:
                self._store.mapper.to_domain_event(row)
            except (CorruptRowError, UnknownEventError) as e:
                raise type(e)(f"position {position}: {e}") from e
        return len(rows)

    @contextmanager
    def scan(self, start: int, limit: int, skip: Collection[type[Event]]) -> Iterator[Scan]:
        """The next `limit` events as they arrive, without those of the types to skip: these are not even fetched.

        Raises LogGapError, Unavailable, also while the events are taken.
        """
        _check_page(start, limit)
        with _translated:
            end = self._store.recorder.extent(start, limit)
            if end is None:
                raise LogGapError(f"a position from {start} on is missing from the log; there are later ones")
            topics = [str(kind.__struct_config__.tag) for kind in skip]
            with self._store.recorder.stream_others(start, end, topics) as rows:
                yield Scan(start, end, rows)

    @contextmanager
    def parts(self, start: int, limit: int, skip: Collection[type[Event]]) -> Iterator[Parts]:
        """As `scan`, with the exact bytes only, of some hundreds of events at a time: nothing is decoded.

        Raises LogGapError, Unavailable, also while the parts are taken.
        """
        _check_page(start, limit)
        topics = sorted(str(kind.__struct_config__.tag) for kind in skip)
        try:
            with _translated:
                yield self._store.recorder.parts(start, limit, topics)
        except PartGap:
            if (size := self.size()) < start:
                raise LogGapError(
                    f"the log ends at {size}; there were at least {start} events once"
                ) from None
            raise LogGapError(
                f"a position from {start} on is missing from the log; there are later ones"
            ) from None

    def happened_us(self, position: int) -> int:
        """When the event at a position happened, also of one that this program does not know.

        Raises NotFound, LogGapError, Unavailable, UnknownEventError for bytes that are no event of any program.
        """
        for row in self.read_rows(position, 1):
            return happened_us(row.state)
        raise NotFound(f"the log has no position {position}")

    def last_event(self, aggregate_id: UUID) -> Event | None:
        """The newest event of an aggregate. Raises Unavailable, UnknownEventError."""
        with _translated:
            newest = list(self._store.events.get(aggregate_id, desc=True, limit=1))
        return cast("Event", newest[0]) if newest else None

    def find(self, wanted: Sequence[tuple[UUID, int]]) -> list[Recorded]:
        """Events by originator and version, in the order asked for; those that are not there are left out.

        Raises Unavailable, UnknownEventError.
        """
        with _translated:
            rows = self._store.recorder.find(wanted)
        return [Recorded(row.position, decode(row.state, row.topic), row.state) for row in rows]

    def recall(self, name: str, cls: type[F]) -> F | None:
        """A fold of the log that was kept by `keep`, by this very program; None when there is none that fits.

        Raises Unavailable.
        """
        with _translated:
            found = self._folds.recall(name, self._leaf_before)
        if found is None or not isinstance(found[1], cls):
            return None
        self._kept[name] = found[0]
        return found[1]

    def keep(self, name: str, position: int, fold: object, *, every: int) -> None:
        """Keep `fold`, which has taken in the events before `position`, when that is `every` more than last time."""
        if position - self._kept.get(name, 0) < every:
            return
        with _translated:
            last = self._leaf_before(position)
        if last is not None:
            self._folds.keep(name, position, last, fold)
            self._kept[name] = position

    def size(self) -> int:
        """The number of events, which is the next position. Raises Unavailable."""
        with _translated:
            return self._store.recorder.size()

    def position_of(self, originator_id: UUID, originator_version: int) -> int:
        """Where in the log one event of an aggregate stands. Raises NotFound, Unavailable."""
        with _translated:
            position = self._store.recorder.position_of(originator_id, originator_version)
        if position is None:
            raise NotFound(f"no event {originator_version} of {originator_id}")
        return position

    def history(self, aggregate_id: UUID, *, up_to: int) -> Iterator[Event]:
        """The events of one aggregate in order, up to and with version `up_to`. Raises Unavailable."""
        version = 0
        while version < up_to:
            with _translated:
                page = list(
                    self._store.events.get(aggregate_id, gt=version, lte=up_to, limit=_FOLD_PAGE),
                )
            if not page:
                return
            yield from cast("list[Event]", page)
            version = page[-1].originator_version

    def wait(self, size: int, timeout_s: float) -> int:
        """Block until the log is longer than `size`, or the time is over. Returns its size. Raises Unavailable."""
        deadline = monotonic() + timeout_s
        self._start_listening()
        while True:
            with self._news:
                seen = self._generation
            now_size = self.size()
            remaining_s = deadline - monotonic()
            if now_size > size or remaining_s <= 0:
                return now_size
            with self._news:
                # The poll covers the moments in which the listener is connecting.
                if self._generation == seen:
                    self._news.wait(min(remaining_s, _FALLBACK_POLL_S))

    def close(self) -> None:
        with self._news:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._store.close()

    def _load(self, cls: type[A], aggregate_id: UUID) -> A | None:
        aggregate = self._cache.take(cls, aggregate_id) or self._recall(cls, aggregate_id)
        project = cls.projector()
        with _translated:
            while True:
                version = aggregate.version if aggregate is not None else 0
                page = list(self._store.events.get(aggregate_id, gt=version, limit=_FOLD_PAGE))
                aggregate = project(aggregate, cast("list[Event]", page))
                if len(page) < _FOLD_PAGE:
                    break
        if aggregate is not None:
            self._cache.put(aggregate)
            self._keep(aggregate)
        return aggregate

    def _recall(self, cls: type[A], aggregate_id: UUID) -> A | None:
        """The aggregate as it was kept, when it is one that is worth it and what was kept holds."""
        holds = KEPT.get(cls)
        if holds is None:
            return None
        with _translated:
            found = self._folds.recall(
                _fold_name(cls, aggregate_id), lambda version: self._state_of(aggregate_id, version)
            )
        if found is None:
            return None
        version, aggregate = found
        if not isinstance(aggregate, cls) or (aggregate.id, aggregate.version) != (aggregate_id, version):
            return None
        if aggregate.torn or not holds(aggregate):
            return None
        self._kept[_fold_name(cls, aggregate_id)] = version
        return aggregate

    def _keep(self, aggregate: Aggregate) -> None:
        name = _fold_name(type(aggregate), aggregate.id)
        if type(aggregate) not in KEPT or aggregate.version - self._kept.get(name, 0) < KEPT_EVERY:
            return
        with _translated:
            last = self._state_of(aggregate.id, aggregate.version)
        if last is not None:
            self._folds.keep(name, aggregate.version, last, aggregate)
            self._kept[name] = aggregate.version

    def _state_of(self, aggregate_id: UUID, version: int) -> bytes | None:
        stored = self._store.recorder.select_events(aggregate_id, gt=version - 1, lte=version)
        return stored[0].state if stored else None

    def _leaf_before(self, position: int) -> bytes | None:
        rows = self._store.recorder.select_rows(position - 1, 1) if position > 0 else []
        return rows[0].state if rows and rows[0].position == position - 1 else None

    def _start_listening(self) -> None:
        with self._news:
            if self._listener is None and not self._datastore.closed:
                channel = self._store.recorder.channel_name
                self._listener = Listener(self._datastore.listen_connection, channel, self._announce)

    def _announce(self) -> None:
        with self._news:
            self._generation += 1
            self._news.notify_all()


def _check_page(start: int, limit: int) -> None:
    if start < 0 or not 1 <= limit <= READ_LIMIT_MAX:
        raise ValueError(f"start must not be negative and limit must be 1 to {READ_LIMIT_MAX}")


def _fold_name(cls: type[Aggregate], aggregate_id: UUID) -> str:
    return f"{cls.__name__}:{aggregate_id}"


class _Translation:
    """The errors of the driver and the library as the ledger's own."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case persistence.IntegrityError() if isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                raise Conflict("somebody else's events came first") from error
            case persistence.OperationalError() | persistence.InterfaceError():
                raise Unavailable(f"the database is not available: {error}") from error
            case persistence.InternalError() if isinstance(
                error.__cause__, psycopg.errors.ReadOnlySqlTransaction
            ):  # a standby, during a fail-over
                raise Unavailable(f"the database is read-only for now: {error}") from error
            case _:
                pass


_translated: Final = _Translation()
