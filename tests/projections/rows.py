"""The rows of a projection as plain values, and how to start over."""

from collections.abc import Sequence

from sqlalchemy import Engine, select

from projections import schema, tracking
from projections.base import Projection
from projections.schema import Tables

SCHEMA = "crew_main"
LIVE = Tables(SCHEMA)


def forget(engine: Engine, projection: type[Projection]) -> None:
    """As on the first day: nothing is applied yet."""
    with engine.begin() as connection:
        schema.create(connection, [LIVE.positions, *projection.tables(LIVE)])
        for table in projection.tables(LIVE):
            connection.execute(table.delete())
        tracking.put(connection, LIVE, projection.name, projection.version, 0)


def rows_of(engine: Engine, projections: Sequence[type[Projection]]) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            t.name: sorted((tuple(r) for r in connection.execute(select(t))), key=str)
            for p in projections
            for t in p.tables(LIVE)
        }


def position_of(engine: Engine, name: str) -> int:
    with engine.connect() as connection:
        return tracking.read(connection, LIVE)[name].position
