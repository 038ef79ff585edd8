"""The log in few rows: some hundreds of events are one value, so that neither side has work with each of them.

Invariant: parts follow each other without a hole, also where events are left out; one that lacks a position is not
given out. No more than one part is in memory, at most PART_EVENTS events of 64 KiB.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any, Final, NamedTuple

from eventsourcing.postgres import PostgresDatastore
from psycopg.rows import TupleRow, tuple_row
from psycopg.sql import SQL, Composed, Identifier, Literal

PART_EVENTS: Final = 256

# The end of the part, how many rows stand before it, and those of them that are wanted. Topics are literals: Postgres
# makes a hash table of constants, and so a plan for every start.
_PART: Final = (
    "SELECT {stop}, count(*), array_agg(position ORDER BY position) FILTER (WHERE wanted),"
    " string_agg(state, '' ORDER BY position) FILTER (WHERE wanted)"
    " FROM (SELECT position, state, topic <> ALL({topics}::text[]) AS wanted FROM {events}"
    " WHERE position >= {start} AND position < {stop} ORDER BY position) e"
)
_STOP: Final = "least(%s::bigint, (SELECT coalesce(max(position) + 1, 0) FROM {events}))"
# As the nested loop finds them, with no sort, which would have all parts in memory. Out of order they would not pass
# `_taken`.
_PARTS: Final = (
    "SELECT c.* FROM (SELECT {limit} AS stop) s, generate_series(%s::bigint, s.stop - 1, {size}) g"
    " CROSS JOIN LATERAL ({part}) c"
)


class Part(NamedTuple):
    """Some events of the log: their positions, ascending, and their exact bytes, one behind the other."""

    positions: Sequence[int]
    states: bytes


class PartGap(Exception):
    """A position is missing although there are later ones."""


Fetch = Callable[[Composed, Sequence[Any]], list[TupleRow]]


class Parts:
    """Positions start..limit-1 as far as there are events, without those of some topics. To be taken once."""

    def __init__(
        self, datastore: PostgresDatastore, fetch: Fetch, start: int, limit: int, topics: Sequence[str]
    ) -> None:
        self.end = start  # the next position after those that were taken
        self._datastore = datastore
        self._fetch = fetch
        self._limit = limit
        self._first_sql, self._more_sql = _statements(datastore.schema, tuple(topics))

    def __iter__(self) -> Iterator[Part]:
        """Raises PartGap, and what the datastore raises."""
        # Most often there is one part, and no plan to be made for it.
        stop = min(self.end + PART_EVENTS, self._limit)
        for row in self._fetch(self._first_sql, (stop, self.end, stop)):
            yield from self._taken(row)
        if self.end == stop < self._limit:
            yield from self._more()

    def _more(self) -> Iterator[Part]:
        with (
            self._datastore.get_connection() as connection,
            connection.cursor(binary=True, row_factory=tuple_row) as cursor,
            # Left early it cancels the rest, for the sake of the connection's next user.
            closing(cursor.stream(self._more_sql, (self._limit, self.end), size=1)) as rows,  # type: ignore[type-var]
        ):
            for row in rows:
                yield from self._taken(row)

    def _taken(self, row: TupleRow) -> Iterator[Part]:
        stop, count, positions, states = row
        if stop <= self.end:
            return
        if count != stop - self.end:
            raise PartGap
        if positions:
            yield Part(positions, states)
        self.end = stop


@lru_cache(64)
def _statements(schema: str, topics: tuple[str, ...]) -> tuple[Composed, Composed]:
    names = {"events": Identifier(schema, "events"), "topics": Literal(list(topics))}
    limit = SQL(_STOP).format(events=names["events"])
    first = SQL(_PART).format(stop=limit, start=SQL("%s"), **names)
    part = SQL(_PART).format(stop=SQL("least(g + {}, s.stop)").format(PART_EVENTS), start=SQL("g"), **names)
    more = SQL(_PARTS).format(limit=limit, size=PART_EVENTS, part=part)
    return first, more
