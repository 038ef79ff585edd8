"""Rebuild: build projections from the first event on, beside the live tables, then switch.

Invariant: readers and the live runner see the old rows until the switch and the new ones after it, and the new rows
are exactly those that a runner would have written. All of it is one transaction: a rebuild that is killed leaves
nothing behind. While it reads the log the live runner goes on; for the last events and the switch it waits.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from projections import schema, tracking
from projections.base import Projection, Unreadable
from projections.following import Followers
from projections.log import Log
from projections.schema import NEXT, Tables

logger = structlog.get_logger()

BATCH_EVENTS: Final = 20_000
# Longer than the statement timeout of any reader, so that a slow one does not undo the work; new readers wait.
_SWITCH_WAIT_MS: Final = 20_000


class RebuildRunning(Exception):
    """Somebody else is rebuilding this projection. Transient: wait for it."""

    exit_code = 10


def rebuild(
    log: Log,
    engine: Engine,
    projections: Sequence[type[Projection]],
    *,
    schema_name: str = "crew_main",
    batch_events: int = BATCH_EVENTS,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Rebuild these projections in one pass over the log. Returns the position they are at.

    `progress(done, size)` is called after each batch. Raises RebuildRunning, UnknownEventError, ProjectionError, and
    sqlalchemy's or the log's errors when the database goes away: then nothing has changed.
    """
    live, beside = Tables(schema_name), Tables(schema_name, NEXT)
    names = sorted(p.name for p in projections)
    building = [p(beside) for p in projections]
    followers = Followers(building)
    with engine.begin() as connection:
        _no_time_limits(connection)
        if not tracking.try_lock_rebuild(connection, live, names):
            raise RebuildRunning(f"{', '.join(names)}: another rebuild is running")
        tables = [t for p in projections for t in p.tables(beside)]
        schema.drop(
            connection, tables
        )  # no rebuild leaves any; what somebody else left is not to be built upon
        schema.create(connection, tables)

        def fold_to(end: int, position: int) -> int:
            while position < end:
                limit = min(batch_events, end - position)
                position = _fold(log, connection, building, followers, position, limit)
                if progress is not None:
                    progress(position, end)
            return position

        position = fold_to(log.size(), 0)
        position = fold_to(log.size(), position)  # what came meanwhile; the runner still goes on
        tracking.lock(connection, live, names)
        # All that any runner has applied, unless the log came from an older backup than the rows: then they go.
        position = fold_to(log.size(), position)
        for p in projections:
            schema.switch(connection, p.tables(live), p.tables(beside))
            tracking.put(connection, live, p.name, p.version, position)
    logger.info("projections rebuilt", names=names, position=position)
    return position


def _fold(
    log: Log,
    connection: Connection,
    building: Sequence[Projection],
    followers: Followers,
    position: int,
    limit: int,
) -> int:
    try:
        end = followers.follow(log, position, limit)
    except Unreadable as unreadable:
        raise unreadable.error from None
    if end == position:
        raise LookupError(f"the log ends at {position}, before its size")
    for projection in building:
        projection.flush(connection)
    return end


def _no_time_limits(connection: Connection) -> None:
    """Hours of reading are no fault here; waiting for readers at the switch has a limit of its own."""
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_SWITCH_WAIT_MS}")
