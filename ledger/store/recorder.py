"""The append-only log in Postgres, as a recorder of the event sourcing library.

Invariants: positions are dense, 0..n-1, in commit order, whatever fails and whoever dies; an append is all or nothing;
an append that was reported as failed but did persist is recognised on the next attempt by its exact bytes, so that it
is neither lost nor written twice. The library counts notifications from 1: notification id = position + 1.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import starmap
from time import monotonic, sleep
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import msgspec
from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    InterfaceError,
    ListenNotifySubscription,
    Notification,
    NotSupportedError,
    OperationalError,
    StoredEvent,
    Subscription,
)
from eventsourcing.postgres import PostgresApplicationRecorder
from psycopg.rows import TupleRow, tuple_row
from psycopg.sql import SQL, Composed, Identifier, Literal

from ledger.store.binary import columns, copied, names
from ledger.store.calls import Calls
from ledger.store.database import Datastore
from ledger.store.group import GroupCommit, Rows, Versions
from ledger.store.listener import Listener
from ledger.store.mapper import columns_of
from ledger.store.parts import Parts

PATIENCE_S: Final = 5.0  # how long a call tries to reach the database before it gives up
# From so many events or bytes on, a COPY's three round trips cost less than arrays through one call.
COPY_FROM: Final = 100
COPY_FROM_BYTES: Final = 128 * 1024
_PAUSE_S: Final = 0.1
_APPEND, _APPEND_IF = b"append", b"append_if_unchanged"
_APPEND_SQL: Final = "SELECT {}.append_events($1::uuid[], $2::bigint[], $3::text[], $4::bytea[])"
_APPEND_IF_SQL: Final = (
    "SELECT {}.append_events_if_unchanged("
    "$1::uuid[], $2::bigint[], $3::text[], $4::bytea[], $5::uuid[], $6::bigint[])"
)
_STREAMED_ROWS: Final = 100  # at once from the driver

T = TypeVar("T")


class Row(msgspec.Struct, frozen=True, gc=False):  # seven times cheaper to make than a named tuple
    """One row of the log: the dense position, the event's tag and its exact bytes."""

    position: int
    topic: str
    state: bytes


class DenseRecorder(PostgresApplicationRecorder):
    def __init__(self, datastore: Datastore, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(datastore, events_table_name="events")
        self.datastore: Datastore = datastore
        self.patience_s = patience_s
        self.channel_name = f"{datastore.schema}.events"
        self._group = GroupCommit(self._append)
        self.sql_create_statements = []  # the table belongs to the migrations
        schema = Identifier(datastore.schema)
        self._calls = Calls(
            datastore.get_connection,
            {
                name: SQL(statement).format(schema).as_bytes()
                for name, statement in ((_APPEND, _APPEND_SQL), (_APPEND_IF, _APPEND_IF_SQL))
            },
        )
        datastore.before_close(self._calls.close)
        self._require_sql = SQL("SELECT {}.require_unchanged(%b::uuid[], %b::bigint[])").format(schema)
        # The lock first, in a statement of its own: the next one sees what was committed by whoever held it before.
        self._begin_sql = SQL(
            "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended({}, 0));"
            " SELECT coalesce(max(position) + 1, 0) FROM {}.events"
        ).format(Literal(f"{datastore.schema}.events"), schema)
        self._copy_sql = SQL(
            "COPY {}.events (position, originator_id, originator_version, topic, state) FROM STDIN (FORMAT binary)"
        ).format(schema)
        self._commit_sql = SQL("SELECT pg_notify({}, ''); COMMIT").format(Literal(self.channel_name))
        self._select_sql = SQL("SELECT {{}} FROM {}.events").format(schema).as_string()
        self._size_sql = SQL("SELECT coalesce(max(position) + 1, 0) FROM {}.events").format(schema)
        self._extent_sql = SQL(
            "SELECT count(*), max(position) FROM {}.events WHERE position >= %s AND position < %s"
        ).format(schema)
        self._stream_sql = SQL(
            "SELECT position, topic, state FROM {}.events"
            " WHERE position >= %s AND position < %s AND topic <> ALL(%s::text[]) ORDER BY position"
        ).format(schema)
        self._find_sql = SQL(
            "SELECT e.position, e.topic, e.state FROM unnest(%b::uuid[], %b::bigint[]) WITH ORDINALITY"
            " AS k(id, version, n) JOIN {}.events e ON e.originator_id = k.id AND e.originator_version = k.version"
            " ORDER BY k.n"
        ).format(schema)

        self._newer_sql = SQL(
            "SELECT e.originator_id, e.originator_version, e.topic, e.state"
            " FROM unnest(%b::uuid[], %b::bigint[]) AS k(id, version)"
            " JOIN {}.events e ON e.originator_id = k.id AND e.originator_version > k.version"
            " ORDER BY e.originator_id, e.originator_version"
        ).format(schema)

    # --- writing ---

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Append all or none; returns notification ids in the order given (None when there was nothing to do).

        Raises IntegrityError when another event stands at one of the (originator, version) pairs, OperationalError or
        InterfaceError when the database could not be reached in time: then it is not known whether they persisted.
        """
        if kwargs.get("tracking") is not None:
            raise NotSupportedError("read models do not write to the log")
        if not stored_events:
            return None
        first = self.append([(_uuid(e), e.originator_version, e.topic, e.state) for e in stored_events])
        return list(range(first + 1, first + 1 + len(stored_events)))

    def append(self, rows: Rows, unchanged: Versions = ()) -> int:
        """Append all or none; returns the position of the first. `rows` must not be empty.

        Raises IntegrityError when another event stands at one of the (originator, version) pairs, or behind the version
        of one that must be unchanged; OperationalError or InterfaceError when the database could not be reached in
        time: then it is not known whether they persisted.
        """
        return self._patiently(
            lambda: self._group.append(rows, unchanged), lambda: self._append_in_doubt(rows, unchanged)
        )

    def _append_in_doubt(self, rows: Rows, unchanged: Versions) -> int:
        """After an attempt that may have been persisted though it was reported as failed."""
        try:
            return self._group.append(rows, unchanged)
        except IntegrityError:
            position = self._find_recorded(rows)
            if position is None:
                raise
            return position

    def _append(self, rows: Rows, unchanged: Versions) -> int:
        if len(rows) >= COPY_FROM or sum([len(state) for _, _, _, state in rows]) >= COPY_FROM_BYTES:
            return self._append_copy(rows, unchanged)
        if unchanged:
            return self._call(_APPEND_IF, (*columns(list(rows)), *names(unchanged)))
        return self._call(_APPEND, columns(list(rows)))

    def _append_copy(self, rows: Rows, unchanged: Versions) -> int:
        """As the functions do, with a COPY: lock, number, insert, check, notify, in one transaction."""
        with (
            self.datastore.get_connection() as connection,
            connection.cursor(row_factory=tuple_row) as cursor,
        ):
            try:
                cursor.execute(self._begin_sql)
                while cursor.nextset():
                    pass
                first = int(cursor.fetchall()[0][0])
                with cursor.copy(self._copy_sql) as copy:
                    for part in copied(first, columns_of(rows)):
                        copy.write(part)
                if unchanged:
                    cursor.execute(self._require_sql, names(unchanged))
                cursor.execute(self._commit_sql)
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise
            return first

    def _find_recorded(self, rows: Rows) -> int | None:
        """The position of the first, when exactly these events stand in the log, side by side, in this order."""
        given = list(rows)
        found = self._fetch(self._find_sql, columns(given)[:2])
        first: int = found[0][0] if found else 0
        wanted = [(first + i, topic, state) for i, (_, _, topic, state) in enumerate(given)]
        return first if found == wanted else None

    # --- reading ---

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        where: list[tuple[str, Any]] = [("originator_id = %s", originator_id)]
        if gt is not None:
            where.append(("originator_version > %s", gt))
        if lte is not None:
            where.append(("originator_version <= %s", lte))
        order = f"originator_version {'DESC' if desc else 'ASC'}"
        rows = self._select("originator_id, originator_version, topic, state", where, order, limit)
        return [StoredEvent(*row) for row in rows]

    def select_newer(self, after: Sequence[tuple[UUID, int]]) -> list[StoredEvent]:
        """The events of these aggregates behind the version given for each, in order within an aggregate."""
        rows = self._patiently(lambda: self._fetch(self._newer_sql, names(after)))
        return [StoredEvent(*row) for row in rows]

    def find(self, wanted: Sequence[tuple[UUID, int]]) -> list[Row]:
        """Events by originator and version, in the order asked for; those that are not there are left out."""
        rows = self._patiently(lambda: self._fetch(self._find_sql, names(wanted)))
        return list(starmap(Row, rows))

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        where: list[tuple[str, Any]] = []
        if start is not None:
            where.append(("position >= %s", start - 1 if inclusive_of_start else start))
        if stop is not None:
            where.append(("position < %s", stop))
        if topics:
            where.append(("topic = ANY(%s)", list(topics)))
        columns = "originator_id, originator_version, topic, state, position + 1"
        return [Notification(*row) for row in self._select(columns, where, "position", limit)]

    def select_rows(self, start: int, limit: int) -> list[Row]:
        """The log from position `start` on, ascending."""
        columns = "position, topic, state"
        return list(starmap(Row, self._select(columns, [("position >= %s", start)], "position", limit)))

    def extent(self, start: int, limit: int) -> int | None:
        """The end of the events from `start` on, at most `limit` of them. None when a position is missing."""
        count, last = self._patiently(lambda: self._fetch(self._extent_sql, (start, start + limit)))[0]
        if last is None:
            return start
        return last + 1 if last == start + count - 1 else None

    @contextmanager
    def stream_others(self, start: int, end: int, topics: Sequence[str]) -> Iterator[Iterator[TupleRow]]:
        """(position, topic, state) of positions start..end-1 whose topic is none of these, ascending, as they arrive.

        The server goes on sending while the rows that came are worked on, and no more than a few are in memory.
        """
        with (
            self.datastore.get_connection() as connection,
            connection.cursor(binary=True, row_factory=tuple_row) as cursor,
        ):
            rows = cursor.stream(self._stream_sql, (start, end, list(topics)), size=_STREAMED_ROWS)
            # A generator, though it is not typed as one: closed early it cancels the rest, for the next user's sake.
            with closing(cast("Generator[TupleRow]", rows)):
                yield rows

    def parts(self, start: int, limit: int, topics: Sequence[str]) -> Parts:
        """Positions start..start+limit-1 whose topic is none of these, some hundreds in one row."""
        return Parts(
            self.datastore,
            lambda statement, params: self._patiently(lambda: self._fetch(statement, params)),
            start,
            start + limit,
            topics,
        )

    def position_of(self, originator_id: UUID, originator_version: int) -> int | None:
        where = [("originator_id = %s", originator_id), ("originator_version = %s", originator_version)]
        rows = self._select("position", where, "position", 1)
        return int(rows[0][0]) if rows else None

    def max_notification_id(self) -> int | None:
        return self.size() or None

    def size(self) -> int:
        """The number of events, which is the next position."""
        return int(self._patiently(lambda: self._fetch(self._size_sql, ()))[0][0])

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        return DenseSubscription(self, gt=gt, topics=topics)

    # --- plumbing ---

    def _select(
        self, columns: str, where: list[tuple[str, Any]], order: str, limit: int | None
    ) -> Sequence[TupleRow]:
        statement = self._select_sql.format(columns)
        if where:
            statement += " WHERE " + " AND ".join(condition for condition, _ in where)
        statement += f" ORDER BY {order}"
        params = [value for _, value in where]
        if limit is not None:
            statement += " LIMIT %s"
            params.append(limit)
        return self._patiently(lambda: self._fetch(SQL(statement).format(), params))

    def _call(self, name: bytes, params: Sequence[bytes]) -> int:
        return self._calls.call(name, params)

    def _fetch(self, statement: Composed | bytes, params: Sequence[Any]) -> list[TupleRow]:
        with (
            self.datastore.get_connection() as connection,
            connection.cursor(binary=True, row_factory=tuple_row) as cursor,
        ):
            return cursor.execute(statement, params, prepare=True).fetchall()

    def _patiently(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Try again after transient errors, for a bounded time; the last error is the caller's.

        `again` is tried in place of `operation` after the first error.
        """
        deadline = monotonic() + self.patience_s
        while True:
            try:
                return operation()
            except (OperationalError, InterfaceError):
                if self.datastore.closed or monotonic() >= deadline:
                    raise
            operation = again or operation
            sleep(_PAUSE_S)
            # After a restart of the server every idle connection is dead: replace them all at once.
            if not self.datastore.pool.closed:  # not opened yet counts as closed
                self.datastore.pool.check()


def _uuid(stored: StoredEvent) -> UUID:
    originator_id = stored.originator_id
    return originator_id if isinstance(originator_id, UUID) else UUID(originator_id)


class DenseSubscription(ListenNotifySubscription[DenseRecorder]):
    """The library's subscription, woken by a listener that outlives restarts of the database."""

    def __init__(self, recorder: DenseRecorder, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._listener = Listener(
            recorder.datastore.listen_connection, recorder.channel_name, self._has_been_notified.set
        )

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        try:
            super().__exit__(*args, **kwargs)
        finally:
            self._listener.close()
