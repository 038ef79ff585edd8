"""The changes of a batch, gathered in memory and written to a table with one or two statements.

Invariant: gathering changes one by one and merging them into the stored rows gives the same rows however the changes
are cut into batches. Each column's `Merge` says how it takes a change, in memory and in SQL alike.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledger.store.binary import Array
from projections.arrays import array, copy
from projections.schema import HISTORY_LENGTH, Merge

Key = Any  # the value of the key column; a tuple where there are several
Row = list[Any]  # the other columns, in the order of the table

# `t` is the stored row, `c` the change; a change that is NULL is none.
_MERGED_IN_SQL: Final = {
    Merge.ADD: "{t} + {c}",
    Merge.SET: "coalesce({c}, {t})",
    Merge.LATEST: "greatest({c}, {t})",
    Merge.HISTORY: f"right({{t}} || {{c}}, {HISTORY_LENGTH})",
}
# The same as statements: `t` is what was gathered so far, `c` the next change.
_MERGED_IN_MEMORY: Final = {
    Merge.ADD: "{t} += {c}",
    Merge.SET: "if {c} is not None: {t} = {c}",
    Merge.LATEST: "if {t} is None or {c} > {t}: {t} = {c}",
    Merge.HISTORY: f"{{t}} = ({{t}} + {{c}})[-{HISTORY_LENGTH}:]",
}
_NO_CHANGE: Final[dict[Merge, Any]] = {Merge.ADD: 0, Merge.SET: None, Merge.LATEST: None, Merge.HISTORY: ""}

COPY_FROM: Final = 100  # rows: from here on a COPY's round trips cost less than arrays through one statement
_LOOKUP_MAX: Final = 10_000
_DIALECT: Final[Dialect] = PGDialect()  # type: ignore[no-untyped-call]


class ProjectionError(Exception):
    """A log that this projection can not read as a history of its rows. Not transient: somebody has to look."""


class _Changes:
    """Rows by key, and the SQL that writes them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._merges: dict[str, Merge] = {c.name: c.info["merge"] for c in table.columns}
        self._keys = [n for n, m in self._merges.items() if m is Merge.KEY]
        self._values = [n for n, m in self._merges.items() if m is not Merge.KEY]
        self._mutable = [n for n in self._values if self._merges[n] in _NO_CHANGE]
        self._empty: Row = [_NO_CHANGE.get(self._merges[n]) for n in self._values]
        self._made: dict[Key, Row] = {}
        self._changed: dict[Key, Row] = {}
        self._changers: dict[tuple[str, ...], Callable[..., None]] = {}

    def change(self, *key: Any, **values: Any) -> None:
        """Take a change of some columns of a row."""
        names = tuple(values)
        changer = self._changers.get(names)
        if changer is None:
            changer = self._changers[names] = self.changer(*names)
        changer(self._key(key), *values.values())

    def changer(self, *names: str) -> Callable[..., None]:
        """`change` for these columns, to be called with the key (a tuple where there are several) and the values.

        It is compiled: a loop over the merges would cost more than all the rest of a small event.
        """
        lines = [
            "def change(key, " + ", ".join(names) + "):",
            "    row = made.get(key) or changed.get(key)",
            "    if row is None:",
            "        row = changed[key] = empty.copy()",
        ]
        for name in names:
            merged = _MERGED_IN_MEMORY[self._merges[name]]
            lines.append("    " + merged.format(t=f"row[{self._values.index(name)}]", c=name))
        return self._compiled("change", lines)

    def _compiled(self, name: str, lines: Iterable[str]) -> Callable[..., None]:
        scope: dict[str, Any] = {
            "made": self._made,
            "changed": self._changed,
            "empty": self._empty,
            "twice": self._twice,
        }
        exec("\n".join(lines), scope)  # noqa: S102  # of column names and the templates above
        function: Callable[..., None] = scope[name]
        return function

    def _twice(self, key: Key) -> None:
        raise ProjectionError(f"a row of {self._table.name} is made that was there before: {key!r}")

    def _key(self, key: tuple[Any, ...]) -> Key:
        return key[0] if len(self._keys) == 1 else key

    def discard(self) -> None:
        self._made.clear()
        self._changed.clear()

    def _columns(self, rows: dict[Key, Row], names: Sequence[str]) -> list[tuple[Any, Sequence[Any]]]:
        """Columns of the table with their values, in the order of `names`."""
        keys = [list(rows)] if len(self._keys) == 1 else zip(*rows, strict=True)
        columns = dict(zip(self._keys, keys, strict=True))
        columns |= zip(self._values, zip(*rows.values(), strict=True), strict=True)
        return [(self._table.c[n], columns[n]) for n in names]

    def _arrays(self, rows: dict[Key, Row], names: Sequence[str]) -> tuple[Array, ...]:
        """Raises ProjectionError."""
        try:
            return tuple(array(column, values) for column, values in self._columns(rows, names))
        except (OverflowError, struct.error) as error:
            raise ProjectionError(f"{self._table.name} has no room for a number: {error}") from error

    def _copied(self, rows: dict[Key, Row]) -> bytes:
        """Raises ProjectionError."""
        try:
            return copy(self._columns(rows, list(self._merges)))
        except (OverflowError, struct.error) as error:
            raise ProjectionError(f"{self._table.name} has no room for a number: {error}") from error

    def _sql_name(self) -> str:
        return _DIALECT.identifier_preparer.format_table(self._table)

    def _sql_rows(self, names: Iterable[str]) -> str:
        types = (self._table.c[n].type.compile(_DIALECT) for n in names)
        return f"unnest({', '.join(f'%s::{t}[]' for t in types)})"

    def _sql_insert(self) -> str:
        names = list(self._merges)
        return (
            f"INSERT INTO {self._sql_name()} AS t ({', '.join(names)}) SELECT * FROM {self._sql_rows(names)}"  # noqa: S608
        )

    def _sql_merges(self, change: str) -> str:
        return ", ".join(
            f"{n} = " + _MERGED_IN_SQL[self._merges[n]].format(t=f"t.{n}", c=f"{change}.{n}")
            for n in self._mutable
        )


class Rows(_Changes):
    """A table whose rows are made by one event and changed by others."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._makers: dict[tuple[str, ...], Callable[..., None]] = {}
        self._insert = self._sql_insert()
        self._copy = f"COPY {self._sql_name()} ({', '.join(self._merges)}) FROM STDIN (FORMAT binary)"
        self._changing = [*self._keys, *self._mutable]
        if self._mutable:
            where = " AND ".join(f"t.{k} = c.{k}" for k in self._keys)
            self._update = (
                f"UPDATE {self._sql_name()} AS t SET {self._sql_merges('c')} "  # noqa: S608
                f"FROM {self._sql_rows(self._changing)} AS c ({', '.join(self._changing)}) WHERE {where}"
            )

    def make(self, *key: Any, **values: Any) -> None:
        """A new row. Columns that are not given start empty: 0, "" or NULL. Raises ProjectionError when it is there."""
        names = tuple(values)
        maker = self._makers.get(names)
        if maker is None:
            maker = self._makers[names] = self.maker(*names)
        maker(self._key(key), *values.values())

    def maker(self, *names: str) -> Callable[..., None]:
        """`make` for these columns, to be called as what `changer` gives."""
        values = [
            n if n in names else repr(empty) for n, empty in zip(self._values, self._empty, strict=True)
        ]
        lines = [
            "def make(key, " + ", ".join(names) + "):",
            "    if key in made or key in changed: twice(key)",
            "    made[key] = [" + ", ".join(values) + "]",
        ]
        return self._compiled("make", lines)

    def flush(self, connection: Connection) -> None:
        """Raises ProjectionError when a row is made twice, or a change is to a row that was never made."""
        if self._made:
            try:
                self._write_made(connection)
            except IntegrityError as error:
                raise ProjectionError(f"a row of {self._table.name} is made twice: {error.orig}") from error
        if self._changed:
            result = connection.exec_driver_sql(self._update, self._arrays(self._changed, self._changing))
            if result.rowcount != len(self._changed):
                raise ProjectionError(
                    f"{len(self._changed) - result.rowcount} of {len(self._changed)} changes to "
                    f"{self._table.name} are to rows that no event made"
                )
        self.discard()

    def _write_made(self, connection: Connection) -> None:
        if len(self._made) < COPY_FROM:
            connection.exec_driver_sql(self._insert, self._arrays(self._made, list(self._merges)))
            return
        stream = self._copied(self._made)
        driver = connection.connection.driver_connection
        try:
            with driver.cursor() as cursor, cursor.copy(self._copy) as copying:  # type: ignore[union-attr]
                copying.write(stream)
        except psycopg.Error as error:  # as SQLAlchemy does, who has no word for COPY
            raise DBAPIError.instance(
                self._copy, None, error, psycopg.Error, dialect=connection.dialect
            ) from error


class Tally(_Changes):
    """A table of counters: a row begins at the first change of its key."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._upsert = (
            f"{self._sql_insert()} ON CONFLICT ({', '.join(self._keys)}) "
            f"DO UPDATE SET {self._sql_merges('excluded')}"
        )

    def flush(self, connection: Connection) -> None:
        """Raises ProjectionError."""
        if self._changed:
            connection.exec_driver_sql(self._upsert, self._arrays(self._changed, list(self._merges)))
        self.discard()


class StreamLookup:
    """Which stream a broadcast (or its delivery) belongs to: written once, so what was learned stays true."""

    def __init__(self, table: Table) -> None:
        (self._key,) = table.primary_key.columns
        self._table = table
        self._known: dict[bytes, bytes] = {}

    def learn(self, key: bytes, stream_id: bytes) -> None:
        self._known[key] = stream_id

    def find(self, connection: Connection, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The stream of each key. Raises ProjectionError for a broadcast that was never started."""
        wanted = set(keys)
        missing = wanted - self._known.keys()
        if missing:
            t = self._table
            stored = connection.execute(t.select().where(self._key.in_([UUID(bytes=k) for k in missing])))
            self._known.update({getattr(r, self._key.name).bytes: r.stream_id.bytes for r in stored})
        found = {k: self._known[k] for k in wanted if k in self._known}
        if len(found) != len(wanted):
            unknown = next(iter(wanted - found.keys()))
            raise ProjectionError(
                f"{self._key.name} {UUID(bytes=unknown)} belongs to no broadcast that was started"
            )
        for oldest in list(self._known)[: max(0, len(self._known) - _LOOKUP_MAX)]:
            del self._known[oldest]
        return found
