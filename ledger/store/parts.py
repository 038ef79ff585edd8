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

from ledger.events import SegmentsServed

PART_EVENTS: Final = 128

# The end of the part, how many rows stand before it, and those of them that are wanted. Topics are literals: Postgres
# makes a hash table of constants, and so a plan for every start.
_PART: Final = (
    "SELECT {stop}, count(*), array_agg(position ORDER BY position) FILTER (WHERE wanted),"
    " string_agg({state}, '' ORDER BY position) FILTER (WHERE wanted) FROM {rows} e"
)
_ROWS: Final = (
    "(SELECT position, topic, state, topic <> ALL({topics}::text[]) AS wanted FROM {events}"
    " WHERE position >= {start} AND position < {stop} ORDER BY position)"
)
# Nine tenths of an event with receipts are these: a MessagePack value of n bytes behind its name, which stands at `at`,
# and the three bytes of its head (0xc5, n). Of a very long event most are never read from the disk; the others are put
# together once (`head` is all of them). OFFSET 0: each step once a row. ORDER BY, as they are in already: or Postgres
# would sort rows of many kilobytes for the aggregates.
_MEASURED: Final = (
    "(SELECT *, CASE WHEN at BETWEEN 1 AND octet_length(head) - 11 AND get_byte(head, at + 8) = 197"
    " THEN get_byte(head, at + 9) * 256 + get_byte(head, at + 10) END AS n"
    " FROM (SELECT *, position({name} IN head) AS at"
    " FROM (SELECT *, CASE WHEN wanted AND topic = {topic} AND octet_length(state) > {long}"
    " THEN substr(state, 1, CASE WHEN octet_length(state) > {whole} THEN {before} ELSE {whole} END) END AS head"
    " FROM {rows} r ORDER BY position OFFSET 0) h ORDER BY position OFFSET 0) a ORDER BY position OFFSET 0)"
)
_SHORTENED: Final = (
    "CASE WHEN n IS NULL THEN state ELSE substr(head, 1, at + 8) || '\\xce'::bytea || int4send(n) ||"
    " substr(CASE WHEN octet_length(state) > {whole} THEN state ELSE head END, at + 12 + n) END"
)
_SERVED: Final = str(SegmentsServed.__struct_config__.tag)
_RECEIPTS: Final = b"\xa8receipts"
_LONG_BYTES: Final = 1_900  # what Postgres does not keep with its row
_WHOLE_BYTES: Final = 16_000
_BEFORE_BYTES: Final = 10_000  # more than stands before any receipts: 255 sessions and networks
_STOP: Final = "least(%s::bigint, (SELECT coalesce(max(position) + 1, 0) FROM {events}))"
# As the nested loop finds them, with no sort, which would have all parts in memory. Out of order they would not pass
# `_taken`.
_PARTS: Final = (
    "SELECT c.* FROM (SELECT {limit} AS stop) s, generate_series(%s::bigint, s.stop - 1, {size}) g"
    " CROSS JOIN LATERAL ({part}) c"
)


class Part(NamedTuple):
    """Some events of the log: their positions, ascending, and their bytes, one behind the other.

    They are the exact bytes, but that the receipts of a long SegmentsServed may be replaced by their length.
    """

    positions: Sequence[int]
    states: bytes


class PartGap(Exception):
    """A position is missing although there are later ones, or it is the one before the first that is asked for."""


Fetch = Callable[[bytes, Sequence[Any]], list[TupleRow]]


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
        if count != stop - self.end:
            raise PartGap
        if positions:
            yield Part(positions, states)
        self.end = stop


@lru_cache(64)
def _statements(schema: str, topics: tuple[str, ...]) -> tuple[bytes, bytes]:
    events = Identifier(schema, "events")
    limit = SQL(_STOP).format(events=events)

    def part(start: SQL, stop: Composed) -> Composed:
        rows = SQL(_ROWS).format(topics=Literal(list(topics)), events=events, start=start, stop=stop)
        if _SERVED in topics:
            return SQL(_PART).format(stop=stop, state=SQL("state"), rows=rows)
        measured = SQL(_MEASURED).format(
            long=_LONG_BYTES,
            whole=_WHOLE_BYTES,
            before=_BEFORE_BYTES,
            name=Literal(_RECEIPTS),
            topic=Literal(_SERVED),
            rows=rows,
        )
        return SQL(_PART).format(stop=stop, state=SQL(_SHORTENED).format(whole=_WHOLE_BYTES), rows=measured)

    more = part(SQL("g"), SQL("least(g + {}, s.stop)").format(PART_EVENTS))
    more = SQL(_PARTS).format(limit=limit, size=PART_EVENTS, part=more)
    return part(SQL("%s"), limit).as_bytes(), more.as_bytes()
