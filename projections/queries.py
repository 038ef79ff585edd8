"""The questions people ask, answered from the read models.

Invariant: a query only reads, and sees the rows of whole batches: what it returns is the state at one log position
(see `positions`). Amounts are integer micro-units, times Unix microseconds, sizes bytes; there is no float here.

Every method is one short statement, or two on one snapshot, and may be called from any thread. Each raises
`ReadModelUnavailable` when the database does not answer or the tables are not there yet: transient, ask again.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Engine, Row, Select, case, cast, func, select, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ledger.aggregates.payout import payout_id
from ledger.event_codec import UnknownEventError
from ledger.ids import stream_id
from projections.base import Projection
from projections.catalog import PROJECTIONS
from projections.health import health
from projections.log import Log
from projections.schema import Tables
from projections.views import (
    Balance,
    Carried,
    Lag,
    NodeView,
    PayoutLineView,
    PayoutView,
    StatementLine,
    StreamView,
)

PAGE_MAX: Final = 1000
_POLL_S_MIN: Final = 0.005
_POLL_S_MAX: Final = 0.1


class ReadModelUnavailable(Exception):
    """The database does not answer or the read models are not built yet. Transient: ask again."""


class Queries:
    """The read API over one crew's schema."""

    def __init__(
        self,
        engine: Engine,
        schema: str = "crew_main",
        projections: Sequence[type[Projection]] = PROJECTIONS,
    ) -> None:
        """`projections` are those whose positions count. A row of one that this program does not know (it was removed,
        or a newer program's) is nobody's to wait for."""
        self._engine = engine
        self._tables = Tables(schema)
        self._names = [p.name for p in projections]

    # --- money ---------------------------------------------------------------------------------------------------

    def balances(self) -> list[Balance]:
        """Every account that was ever touched, by name."""
        t = self._tables.balances
        return [_balance(r) for r in self._all(select(t).order_by(t.c.account))]

    def balance(self, account: str) -> Balance | None:
        """None when no transfer ever touched the account."""
        t = self._tables.balances
        rows = self._all(select(t).where(t.c.account == account))
        return _balance(rows[0]) if rows else None

    def statement(
        self, friend_id: UUID, limit: int = 100, before: tuple[int, int] | None = None
    ) -> list[StatementLine]:
        """Newest first. `before` = (position, line) of the last line of the page before. At most 1000 lines."""
        t = self._tables.statements
        query = select(t).where(t.c.friend_id == friend_id)
        if before is not None:
            query = query.where(tuple_(t.c.position, t.c.line) < tuple_(*before))
        query = query.order_by(t.c.position.desc(), t.c.line.desc())
        return [StatementLine(**r._mapping) for r in self._all(query.limit(_page(limit)))]

    def carried(self, stream_id: UUID) -> list[Carried]:
        """What each friend was credited with for a stream, over all settlements; the most bytes first."""
        t = self._tables.statements
        credited = cast(func.sum(t.c.credited_bytes), BigInteger).label("credited_bytes")
        earned = cast(func.sum(t.c.amount_micro), BigInteger).label("earned_micro")
        query = (
            select(t.c.friend_id, credited, earned)
            .where(t.c.stream_id == stream_id, t.c.kind == "earned")
            .group_by(t.c.friend_id)
            .order_by(credited.desc(), t.c.friend_id)
        )
        return [Carried(r.friend_id, r.credited_bytes, r.earned_micro) for r in self._all(query)]

    # --- nodes and streams -----------------------------------------------------------------------------------------

    def nodes(self) -> list[NodeView]:
        """Every node that ever joined, the oldest first."""
        return self._nodes(None)

    def node(self, node_id: UUID) -> NodeView | None:
        found = self._nodes(node_id)
        return found[0] if found else None

    def streams(self) -> list[StreamView]:
        """Every stream, by slug."""
        return self._streams(None)

    def stream(self, slug: str) -> StreamView | None:
        found = self._streams(stream_id(slug))
        return found[0] if found else None

    # --- payouts -----------------------------------------------------------------------------------------------------

    def payouts(self, limit: int = 100) -> list[PayoutView]:
        """The latest batches, newest first, without their lines."""
        return _payouts(self._all(self._select_payouts(None, limit)))

    def payout(self, batch_id: UUID) -> PayoutView | None:
        """One batch with its lines."""
        t = self._tables.payout_lines
        lines = select(t).where(t.c.batch_id == batch_id).order_by(t.c.line)
        found, rows = self._each(self._select_payouts(batch_id, 1), lines)
        return replace(_payouts(found)[0], lines=tuple(_payout_line(r) for r in rows)) if found else None

    # --- positions ---------------------------------------------------------------------------------------------------

    def positions(self) -> dict[str, int]:
        """For each projection the next position it will apply: all events before it are in the rows."""
        return {r.name: r.position for r in self._tracked()}

    def lag(self, log: Log, *, now_us: int) -> list[Lag]:
        """How far each projection is behind `log`. May raise the log's own Unavailable."""
        rows = self._tracked()
        size = log.size()
        oldest: dict[int, int] = {}
        for position in {r.position for r in rows if r.position < size}:
            try:
                oldest[position] = max(0, now_us - log.happened_us(position))
            except UnknownEventError:  # nobody can say: for ever
                oldest[position] = now_us
        return [
            Lag(
                name=r.name,
                version=r.version,
                position=r.position,
                events=max(0, size - r.position),
                behind_us=oldest.get(r.position, 0),
                stopped=r.stopped or "",
            )
            for r in rows
        ]

    def wait(self, position: int, timeout_s: float, names: Sequence[str] | None = None) -> bool:
        """Read your own writes: True as soon as the event at `position` is in the rows of all projections
        (or of those named), False when `timeout_s` passes first."""
        give_up = time.monotonic() + timeout_s
        waited_for = self._names if names is None else names
        pause_s = _POLL_S_MIN
        while True:
            reached = self.positions()
            if all(reached.get(name, 0) > position for name in waited_for):
                return True
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _POLL_S_MAX)

    def _tracked(self) -> Sequence[Row[Any]]:
        t = self._tables.positions
        return self._all(select(t).where(t.c.name.in_(self._names)).order_by(t.c.name))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _all(self, query: Select[Any]) -> Sequence[Row[Any]]:
        return self._rows(self._engine, query)[0]

    def _each(self, *queries: Select[Any]) -> list[Sequence[Row[Any]]]:
        """Their rows at one position, although a batch may be written meanwhile."""
        return self._rows(self._engine.execution_options(isolation_level="REPEATABLE READ"), *queries)

    def _rows(self, engine: Engine, *queries: Select[Any]) -> list[Sequence[Row[Any]]]:
        try:
            with engine.connect() as connection:
                return [connection.execute(query).all() for query in queries]
        except DBAPIError as e:
            raise ReadModelUnavailable(f"the read models can not be read now: {e.orig}") from e
        except PoolTimeout as e:
            raise ReadModelUnavailable("too many queries at once") from e

    def _nodes(self, node_id: UUID | None) -> list[NodeView]:
        t, v = self._tables.nodes, self._tables.node_verdicts
        # One statement, so that both tables are read at the same position.
        counts = (
            select(
                v.c.node_id,
                func.jsonb_agg(func.jsonb_build_array(v.c.verdict, v.c.cap, v.c.receipts)).label("answers"),
            )
            .group_by(v.c.node_id)
            .subquery()
        )
        query = select(t, counts.c.answers).outerjoin(counts, counts.c.node_id == t.c.node_id)
        if node_id is not None:
            query = query.where(t.c.node_id == node_id)
        return [_node(r) for r in self._all(query.order_by(t.c.joined_us, t.c.node_id))]

    def _streams(self, wanted: UUID | None) -> list[StreamView]:
        t, b = self._tables.streams, self._tables.broadcasts
        query = select(t, b.c.rendition_id, b.c.interrupted).outerjoin(
            b, b.c.broadcast_id == t.c.broadcast_id
        )
        if wanted is not None:
            query = query.where(t.c.stream_id == wanted)
        return [_stream(r) for r in self._all(query.order_by(t.c.slug))]

    def _select_payouts(self, batch_id: UUID | None, limit: int) -> Select[Any]:
        t, lines = self._tables.payouts, self._tables.payout_lines
        query = (
            select(
                t,
                _sum_micro(lines.c.amount_micro, lines.c.state == "confirmed").label("confirmed_micro"),
                _sum_micro(lines.c.amount_micro, lines.c.state == "failed").label("failed_micro"),
                _sum_micro(lines.c.returned_micro).label("returned_micro"),
                func.count().filter(lines.c.state.in_(("confirmed", "failed"))).label("finished_lines"),
                func.count().filter(lines.c.state == "planned").label("waiting_lines"),
                select(func.count()).select_from(t.alias()).scalar_subquery().label("batches"),
            )
            .outerjoin(lines, lines.c.batch_id == t.c.batch_id)
            .group_by(t.c.batch_id)
            .order_by(t.c.planned_us.desc(), t.c.batch_id)
        )
        if batch_id is not None:
            query = query.where(t.c.batch_id == batch_id)
        return query.limit(_page(limit))


def _page(limit: int) -> int:
    return max(1, min(limit, PAGE_MAX))


def _sum_micro(amounts: ColumnElement[int], where: ColumnElement[bool] | None = None) -> ColumnElement[int]:
    # The sum of bigints is a numeric in Postgres; amounts come back as the integers they are.
    some = amounts if where is None else case((where, amounts), else_=0)
    return cast(func.coalesce(func.sum(some), 0), BigInteger)


def _balance(row: Row[Any]) -> Balance:
    return Balance(row.account, row.amount_micro, row.last_position)


def _node(row: Row[Any]) -> NodeView:
    verdicts, caps = Counter[str](), Counter[str]()
    for verdict, cap, receipts in row.answers or ():
        verdicts[verdict] += receipts
        if cap:
            caps[cap] += receipts
    return NodeView(
        node_id=row.node_id,
        friend_id=row.friend_id,
        state=row.presence if row.standing == "active" else row.standing,
        state_reason=row.standing_reason,
        health=health(row.recent_probes, row.recent_batches),
        joined_us=row.joined_us,
        last_seen_us=row.last_seen_us,
        last_position=row.last_position,
        probes_ok=row.probes_ok,
        probes_bad=row.probes_bad,
        receipts_accepted=row.receipts_accepted,
        receipts_refused=row.receipts_refused,
        verdicts=verdicts,
        caps=caps,
        credited_units=row.credited_units,
        credited_bytes=row.credited_bytes,
    )


def _stream(row: Row[Any]) -> StreamView:
    live = row.state == "LIVE"
    return StreamView(
        stream_id=row.stream_id,
        slug=row.slug,
        owner_id=row.owner_id,
        state=row.state,
        interrupted=live and row.interrupted,
        broadcast_id=row.broadcast_id if live else None,
        rendition_id=row.rendition_id if live else None,
        broadcasts=row.broadcasts,
        segments=row.segments,
        published_bytes=row.published_bytes,
        duration_us=row.duration_us,
        sessions=row.sessions,
        registered_us=row.registered_us,
        started_us=row.started_us,
        ended_us=None if live else row.ended_us,
        last_sequence=row.last_sequence,
        last_position=row.last_position,
    )


def _payouts(rows: Sequence[Row[Any]]) -> list[PayoutView]:
    numbers = {payout_id(n): n for n in range(1, 1 + (rows[0].batches if rows else 0))}
    return [_payout(row, numbers[row.batch_id]) for row in rows]


def _payout(row: Row[Any], number: int) -> PayoutView:
    finished = row.state == "approved" and row.finished_lines == row.lines
    return PayoutView(
        batch_id=row.batch_id,
        number=number,
        rail=row.rail,
        state="finished" if finished else row.state,
        planned_us=row.planned_us,
        planned_by=row.planned_by,
        decided_us=row.decided_us,
        decided_by=row.decided_by,
        reason=row.reason,
        total_micro=row.total_micro,
        confirmed_micro=row.confirmed_micro,
        failed_micro=row.failed_micro,
        returned_micro=row.returned_micro,
        line_count=row.lines,
        waiting_lines=row.waiting_lines,
        lines=(),
        last_position=row.last_position,
    )


def _payout_line(row: Row[Any]) -> PayoutLineView:
    return PayoutLineView(
        line=row.line,
        friend_id=row.friend_id,
        amount_micro=row.amount_micro,
        state=row.state,
        attempts=row.attempts,
        attempt_key=row.attempt_key,
        outcome=row.outcome,
        reference=row.reference,
        returned_micro=row.returned_micro,
        last_position=row.last_position,
    )
