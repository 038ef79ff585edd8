"""The changes of a batch, gathered in memory and written to a table with one or two statements.

Invariant: gathering changes one by one and merging them into the stored rows gives the same rows however the changes
are cut into batches. Each column's `Merge` says how it takes a change, in memory and in SQL alike.
"""

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects.postgresql.base import PGDialect

from ledger.store.binary import Array
from projections.arrays import array
from projections.schema import HISTORY_LENGTH, Merge

Key = tuple[Any, ...]
Row = dict[str, Any]

# `t` is the stored row, `c` the change; a change that is NULL is none.
_MERGED_IN_SQL: Final = {
    Merge.ADD: "{t} + {c}",
    Merge.SET: "coalesce({c}, {t})",
    Merge.LATEST: "greatest({c}, {t})",
    Merge.HISTORY: f"right({{t}} || {{c}}, {HISTORY_LENGTH})",
}
_NO_CHANGE: Final[dict[Merge, Any]] = {Merge.ADD: 0, Merge.SET: None, Merge.LATEST: None, Merge.HISTORY: ""}

_LOOKUP_MAX: Final = 10_000
_DIALECT: Final[Dialect] = PGDialect()  # type: ignore[no-untyped-call]


class ProjectionError(Exception):
    """A log that this projection can not read as a history of its rows. Not transient: somebody has to look."""


class _Changes:
    """Rows by key, and the SQL that writes them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._merges: dict[str, Merge] = {c.name: c.info["merge"] for c in table.columns}
        self._no_change = {n: _NO_CHANGE[m] for n, m in self._merges.items() if m in _NO_CHANGE}
        self._keys = [n for n, m in self._merges.items() if m is Merge.KEY]
        self._changed: dict[Key, Row] = {}

    def _merge_into(self, row: Row, values: Row) -> None:
        merges = self._merges
        for name, change in values.items():
            merge = merges[name]
            if merge is Merge.ADD:
                row[name] += change
            elif merge is Merge.LATEST:
                old = row[name]
                if old is None or change > old:
                    row[name] = change
            elif merge is Merge.SET:
                row[name] = change
            else:
                row[name] = _remembered(row[name], change)

    def _columns(self, rows: dict[Key, Row], names: Iterable[str]) -> tuple[Array, ...]:
        """The rows as one array per column, in the order of `names`; a column no row names is all NULL."""
        keys = dict(zip(self._keys, zip(*rows, strict=True), strict=True))
        return tuple(
            array(self._table.c[n], keys[n] if n in keys else [row.get(n) for row in rows.values()])
            for n in names
        )

    def _sql_name(self) -> str:
        return _DIALECT.identifier_preparer.format_table(self._table)

    def _sql_rows(self, names: Iterable[str]) -> str:
        types = (self._table.c[n].type.compile(_DIALECT) for n in names)
        return f"unnest({', '.join(f'%s::{t}[]' for t in types)})"

    def _sql_insert(self) -> str:
        names = list(self._merges)
        return f"INSERT INTO {self._sql_name()} ({', '.join(names)}) SELECT * FROM {self._sql_rows(names)}"  # noqa: S608

    def _sql_merges(self, change: str) -> str:
        return ", ".join(
            f"{n} = " + _MERGED_IN_SQL[self._merges[n]].format(t=f"t.{n}", c=f"{change}.{n}")
            for n in self._no_change
        )


class Rows(_Changes):
    """A table whose rows are made by one event and changed by others."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._made: dict[Key, Row] = {}
        changing = [*self._keys, *self._no_change]
        where = " AND ".join(f"t.{k} = c.{k}" for k in self._keys)
        self._insert = self._sql_insert()
        self._update = (
            f"UPDATE {self._sql_name()} AS t SET {self._sql_merges('c')} "  # noqa: S608
            f"FROM {self._sql_rows(changing)} AS c ({', '.join(changing)}) WHERE {where}"
        )
        self._changing = changing

    def make(self, *key: Any, **values: Any) -> None:
        """A new row. Columns that are not given start empty: 0, "" or NULL."""
        self._made[key] = self._no_change | values

    def change(self, *key: Any, **values: Any) -> None:
        row = self._made.get(key)
        if row is None:
            row = self._changed.get(key)
            if row is None:
                row = self._changed[key] = dict(self._no_change)
        self._merge_into(row, values)

    def flush(self, connection: Connection) -> None:
        """Raises ProjectionError when a change is to a row that was never made."""
        if self._made:
            connection.exec_driver_sql(self._insert, self._columns(self._made, self._merges))
        if self._changed:
            result = connection.exec_driver_sql(self._update, self._columns(self._changed, self._changing))
            if result.rowcount != len(self._changed):
                raise ProjectionError(
                    f"{len(self._changed) - result.rowcount} of {len(self._changed)} changes to "
                    f"{self._table.name} are to rows that no event made"
                )
        self.discard()

    def discard(self) -> None:
        self._made.clear()
        self._changed.clear()


class Tally(_Changes):
    """A table of counters: a row begins at the first change of its key."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._upsert = (
            self._sql_insert().replace(f"INTO {self._sql_name()}", f"INTO {self._sql_name()} AS t", 1)
            + f" ON CONFLICT ({', '.join(self._keys)}) DO UPDATE SET {self._sql_merges('excluded')}"
        )

    def change(self, *key: Any, **values: Any) -> None:
        row = self._changed.get(key)
        if row is None:
            row = self._changed[key] = dict(self._no_change)
        self._merge_into(row, values)

    def flush(self, connection: Connection) -> None:
        if self._changed:
            connection.exec_driver_sql(self._upsert, self._columns(self._changed, self._merges))
        self.discard()

    def discard(self) -> None:
        self._changed.clear()


class StreamLookup:
    """Which stream a broadcast (or its delivery) belongs to: written once, so what was learned stays true."""

    def __init__(self, table: Table) -> None:
        (self._key,) = table.primary_key.columns
        self._table = table
        self._known: dict[UUID, UUID] = {}

    def learn(self, key: UUID, stream_id: UUID) -> None:
        self._known[key] = stream_id

    def find(self, connection: Connection, keys: Iterable[UUID]) -> dict[UUID, UUID]:
        """The stream of each key. Raises ProjectionError for a broadcast that was never started."""
        wanted = set(keys)
        missing = wanted - self._known.keys()
        if missing:
            t = self._table
            stored = connection.execute(t.select().where(self._key.in_(missing)))
            self._known.update({getattr(r, self._key.name): r.stream_id for r in stored})
        found = {k: self._known[k] for k in wanted if k in self._known}
        if len(found) != len(wanted):
            unknown = next(iter(wanted - found.keys()))
            raise ProjectionError(f"{self._key.name} {unknown} belongs to no broadcast that was started")
        for oldest in list(self._known)[: max(0, len(self._known) - _LOOKUP_MAX)]:
            del self._known[oldest]
        return found


def _remembered(history: str, more: str) -> str:
    return (history + more)[-HISTORY_LENGTH:]
