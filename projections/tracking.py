"""How far each projection is, and who may move it.

Invariant: a projection's rows and its position change in one transaction, under the projection's advisory lock, by
whoever found the position where its changes begin. So two runners, a runner and a rebuild, or a runner killed
anywhere neither skip nor repeat an event. A reason to have stopped is of the position beside it: who moves the position
strikes it out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sqlalchemy import ColumnElement, Connection, Dialect, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.base import PGDialect

from projections.schema import Tables

_WRITE: Final = "write"
_REBUILD: Final = "rebuild"
_REASON_MAX: Final = 300  # characters: people read it in a line
_DIALECT: Final[Dialect] = PGDialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Tracked:
    version: int
    position: int  # the next position to apply


def read(connection: Connection, tables: Tables) -> dict[str, Tracked]:
    """Every projection that was ever built."""
    return {r.name: Tracked(r.version, r.position) for r in connection.execute(select(tables.positions))}


def lock(connection: Connection, tables: Tables, names: Iterable[str]) -> None:
    """Wait for, and hold to the end of the transaction, the right to write these projections.

    Always in the order of their names, so that two writers never wait for each other.
    """
    locks, parameters = _locks(tables.schema, tuple(sorted(names)))
    connection.exec_driver_sql(f"SELECT {locks}", parameters)


def try_lock_rebuild(connection: Connection, tables: Tables, names: Iterable[str]) -> bool:
    """False when one of them is being rebuilt elsewhere."""
    return all(
        connection.scalar(select(func.pg_try_advisory_xact_lock(_key(tables, _REBUILD, name))))
        for name in sorted(names)
    )


def move(connection: Connection, tables: Tables, versions: Mapping[str, int], start: int, end: int) -> bool:
    """Lock these projections and move them from `start` to `end`, in one statement.

    False when one of them is elsewhere, or of another version: then the caller has to roll back.
    """
    statement, locks = _move_sql(tables.schema, tuple(sorted(versions)))
    parameters = (*locks, end, list(versions), list(versions.values()), start)
    return connection.exec_driver_sql(statement, parameters).rowcount == len(versions)


def stop(connection: Connection, tables: Tables, name: str, version: int, position: int, reason: str) -> None:
    """Say why `name` cannot go on, for every process to see; nothing when somebody moved it meanwhile."""
    t = tables.positions
    here = (t.c.name == name, t.c.version == version, t.c.position == position)
    shown = " ".join(reason.split())[:_REASON_MAX]
    connection.execute(update(t).where(*here).values(stopped=shown))


def put(connection: Connection, tables: Tables, name: str, version: int, position: int) -> None:
    """Say that `name` was built in this version up to `position`."""
    row = insert(tables.positions).values(name=name, version=version, position=position)
    changed = {"version": version, "position": position, "stopped": None}
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=changed))


@lru_cache(64)
def _locks(schema: str | None, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Calls that are evaluated from left to right, and their parameters."""
    locks = ", ".join(["pg_advisory_xact_lock(hashtextextended(%s, 0))"] * len(names))
    return locks, tuple(_lock_name(schema, _WRITE, name) for name in names)


@lru_cache(64)
def _move_sql(schema: str | None, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What it waits for at the locks may have been committed after it began: Postgres then looks at the row again."""
    locks, parameters = _locks(schema, names)
    table = _DIALECT.identifier_preparer.format_table(Tables(schema).positions)
    statement = (
        f"WITH locks AS MATERIALIZED (SELECT {locks}) UPDATE {table} AS t SET position = %s, stopped = NULL"  # noqa: S608
        " FROM locks CROSS JOIN unnest(%s::text[], %s::integer[]) AS c (name, version)"
        " WHERE t.name = c.name AND t.version = c.version AND t.position = %s"
    )
    return statement, parameters


def _lock_name(schema: str | None, purpose: str, name: str) -> str:
    return f"{schema}/projections/{purpose}/{name}"


def _key(tables: Tables, purpose: str, name: str) -> ColumnElement[int]:
    return func.hashtextextended(_lock_name(tables.schema, purpose, name), 0)
