"""How far each projection is, and who may move it.

Invariant: a projection's rows and its position change in one transaction, under the projection's advisory lock, by
whoever found the position where its changes begin. So two runners, a runner and a rebuild, or a runner killed
anywhere neither skip nor repeat an event.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from projections.schema import Tables

_WRITE: Final = "write"
_REBUILD: Final = "rebuild"


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
    for name in sorted(names):
        connection.execute(select(func.pg_advisory_xact_lock(_key(tables, _WRITE, name))))


def try_lock_rebuild(connection: Connection, tables: Tables, names: Iterable[str]) -> bool:
    """False when one of them is being rebuilt elsewhere."""
    return all(
        connection.scalar(select(func.pg_try_advisory_xact_lock(_key(tables, _REBUILD, name))))
        for name in sorted(names)
    )


def move(connection: Connection, tables: Tables, names: Sequence[str], position: int) -> None:
    t = tables.positions
    connection.execute(t.update().where(t.c.name.in_(names)).values(position=position))


def put(connection: Connection, tables: Tables, name: str, version: int, position: int) -> None:
    """Say that `name` was built in this version up to `position`."""
    row = insert(tables.positions).values(name=name, version=version, position=position)
    changed = {"version": version, "position": position}
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=changed))


def _key(tables: Tables, purpose: str, name: str) -> ColumnElement[int]:
    return func.hashtextextended(f"{tables.schema}/projections/{purpose}/{name}", 0)
