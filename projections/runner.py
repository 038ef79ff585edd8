"""The runner keeps the read models level with the log.

Invariant: for each projection, rows and position are written in one transaction, and only if the position is still
where the batch begins. A runner that is killed anywhere, or told that a commit failed that did not, neither skips nor
repeats. A projection that cannot read an event stays where it is, with its error, while the others go on.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ledger.application import Unavailable
from ledger.store.outage import outage
from projections import schema, tracking
from projections.base import Projection, Unreadable
from projections.catalog import PROJECTIONS
from projections.fold import ProjectionError
from projections.following import Followers
from projections.log import Log
from projections.queries import ReadModelUnavailable
from projections.rebuild import RebuildRunning, rebuild
from projections.schema import Tables
from projections.tracking import Tracked

logger = structlog.get_logger()

BATCH_EVENTS: Final = 5_000
TRANSIENT: Final = (
    Unavailable,
    ReadModelUnavailable,
    RebuildRunning,
    OperationalError,
    InterfaceError,
    InternalError,
    PoolTimeout,
)
_IDLE_S: Final = 1.0
# A batch of few events costs as much as one of a hundred: after one, the next waits for company, so long that small
# batches take a twenty-fifth of a core. The first after a while never waits.
_SMALL_EVENTS: Final = 500
_REST: Final = 25  # times as long as the batch took
_REST_S_MAX: Final = 0.25
_BACKOFF_S_MIN: Final = 0.1
_BACKOFF_S_MAX: Final = 5.0


class ShapeChangedError(Exception):
    """Another version of this program rebuilt a projection while this one ran: start the newer one."""


class _OvertakenError(Exception):
    """A projection is not where the batch begins."""


class Runner:
    """One per process; several processes are safe (they take turns). `step` and `run` are for one thread."""

    def __init__(
        self,
        log: Log,
        engine: Engine,
        *,
        schema_name: str = "crew_main",
        projections: Sequence[type[Projection]] = PROJECTIONS,
        batch_events: int = BATCH_EVENTS,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`alive` is called before each batch, also in a rebuild: what does not come back to it hangs."""
        self._log = log
        self._engine = engine
        self._schema_name = schema_name
        self._classes = {p.name: p for p in projections}
        self._tables = Tables(schema_name)
        self._active: dict[str, Projection] = {}
        self._followers_of: dict[tuple[str, ...], Followers] = {}  # by those at the same position
        self._positions: dict[str, int] = {}  # empty: to be read from the database
        self._batch_events = batch_events
        self._alive = alive
        self._running = False
        self._kept: Connection | None = None
        self.stopped: dict[str, Exception] = {}  # projections that could not go on, and why
        self._stopped_at: dict[str, int] = {}

    def prepare(self) -> None:
        """Create the tables that are missing; rebuild the projections whose shape changed. Idempotent."""
        with self._engine.begin() as connection:
            # No projection has this name: making the tracking table needs a lock as well.
            tracking.lock(connection, self._tables, ["*"])
            schema.create_positions(connection, self._tables.positions)
            schema.drop_former(connection, self._tables.positions)
            tracked = tracking.read(connection, self._tables)
            for name, projection in self._classes.items():
                if name not in tracked:
                    tables = projection.tables(self._tables)
                    schema.drop(connection, tables)
                    schema.create(connection, tables)
                    tracking.put(connection, self._tables, name, projection.version, 0)
                    tracked[name] = Tracked(projection.version, 0)
            reshaped = [
                p
                for p in self._classes.values()
                if p.version != tracked[p.name].version
                or not schema.all_exist(connection, p.tables(self._tables))
            ]
        if reshaped:
            logger.info("projections have another shape: rebuilding", names=[p.name for p in reshaped])
            rebuild(
                self._log,
                self._engine,
                reshaped,
                schema_name=self._schema_name,
                progress=lambda _done, _size: self._alive(),
            )
        self._active = {name: p(self._tables) for name, p in self._classes.items()}
        self._followers_of = {}
        self._positions = {}

    def step(self) -> int:
        """Apply one batch. Returns how many events it moved some projections on by; 0: all are level with the log.

        Raises UnknownEventError or ProjectionError when no projection can go on, ShapeChangedError, and whatever the
        log and the database raise (see TRANSIENT): then nothing of the batch was applied, or all of it.
        """
        self._alive()
        if not self._active:
            self.prepare()
        try:
            return self._step()
        except BaseException:
            self._forget()
            raise

    def run(self, stop: threading.Event) -> None:
        """Steps until `stop` is set. Sits out whatever is transient; raises what `step` raises otherwise."""
        pause_s = _BACKOFF_S_MIN
        self._running = True
        try:
            while not stop.is_set():
                try:
                    began = time.monotonic()
                    if not (moved := self.step()):
                        self._log.wait(max(self._positions.values(), default=0), _IDLE_S)
                    elif moved < _SMALL_EVENTS:
                        stop.wait(min(_REST * (time.monotonic() - began), _REST_S_MAX))
                    pause_s = _BACKOFF_S_MIN
                except TRANSIENT as error:
                    why = str(getattr(error, "orig", error))  # without the SQL that SQLAlchemy quotes
                    outage.symptom(logger, "projections wait for the database", error=why, pause_s=pause_s)
                    stop.wait(pause_s)
                    pause_s = min(2 * pause_s, _BACKOFF_S_MAX)
        finally:
            self._running = False
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def catch_up(self) -> int:
        """Step until level with the log. Returns the position reached by all that are not stopped."""
        while self.step():
            pass
        return min((self._positions[name] for name in self._going()), default=0)

    # --- inside

    def _going(self) -> list[str]:
        return [name for name in self._active if name not in self.stopped]

    def _step(self) -> int:
        if self.stopped:
            self._resume()
        if not self._positions:
            self._positions = self._read_positions()
        going = self._going()
        if not going:
            raise next(iter(self.stopped.values()))
        start = min(self._positions[name] for name in going)
        group = [name for name in going if self._positions[name] == start]
        others = [self._positions[name] for name in going if self._positions[name] > start]
        limit = min([self._batch_events, *(position - start for position in others)])
        try:
            end = self._followers(tuple(group)).follow(self._log, start, limit)
            if end > start:
                self._write(group, start, end)
        except Unreadable as unreadable:
            # It stays where it is; the next step takes the batch again without it.
            self._stop(unreadable.name, start, unreadable.error)
            self._forget()
            return 1
        return end - start

    def _followers(self, group: tuple[str, ...]) -> Followers:
        if group not in self._followers_of:
            self._followers_of[group] = Followers([self._active[name] for name in group])
        return self._followers_of[group]

    def _flush(self, name: str, connection: Connection) -> None:
        try:
            self._active[name].flush(connection)
        except ProjectionError as error:
            raise Unreadable(self._active[name], error) from error

    def _resume(self) -> None:
        """Go on with those that stopped and are elsewhere since: somebody rebuilt them."""
        positions = self._read_positions()
        for name in [n for n, at in self._stopped_at.items() if positions[n] != at]:
            logger.info("projection goes on", name=name, position=positions[name])
            del self.stopped[name], self._stopped_at[name]
            self._positions = {}

    def _stop(self, name: str, position: int, error: Exception) -> None:
        """Raises what the database raises: then the batch is taken again, and fails again."""
        with self._engine.begin() as connection:
            tracking.stop(connection, self._tables, name, self._classes[name].version, position, str(error))
        self.stopped[name] = error
        self._stopped_at[name] = position
        logger.error("projection stopped", name=name, error=str(error))

    def _forget(self) -> None:
        """Nothing of the batch counts; how far it got is for the database to say."""
        self._positions = {}
        for projection in self._active.values():
            projection.discard()

    def _write(self, group: Sequence[str], start: int, end: int) -> None:
        versions = {name: self._classes[name].version for name in group}
        try:
            with self._transaction() as connection:
                if not tracking.move(connection, self._tables, versions, start, end):
                    raise _OvertakenError
                for name in group:
                    self._flush(name, connection)
        except _OvertakenError:
            # Somebody else moved one while this batch was folded: theirs stands. Or built it in another version.
            self._read_positions()
            self._forget()
            return
        self._positions |= dict.fromkeys(group, end)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """On the connection that `run` keeps: to take one from the pool would cost more than a small batch."""
        if not self._running:
            with self._engine.begin() as connection:
                yield connection
            return
        connection = self._kept or self._engine.connect()
        self._kept = None
        try:
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        self._kept = connection

    def _read_positions(self) -> dict[str, int]:
        with self._engine.connect() as connection:
            tracked = tracking.read(connection, self._tables)
        self._check_versions(tracked)
        return {name: tracked[name].position for name in self._classes}

    def _check_versions(self, tracked: dict[str, Tracked]) -> None:
        for name, projection in self._classes.items():
            if name not in tracked or tracked[name].version != projection.version:
                raise ShapeChangedError(
                    f"projection {name} is not of version {projection.version} any more: another program rebuilt it"
                )
