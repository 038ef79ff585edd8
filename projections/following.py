"""A stretch of the log, given to several projections: each event read once, and met only by those that want it.

Invariant: the projections are given every event of the stretch that they handle, in order and once, or an error is
raised and what they gathered is worth nothing. What a projection neither handles nor ignores stops it, before that.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ledger.event_codec import UnknownEventError
from ledger.events import Event
from projections import excerpts
from projections.base import Handler, Kinds, Projection, Unreadable
from projections.excerpts import EXCERPTS, Excerpt, NoExcerptError
from projections.fold import ProjectionError
from projections.log import Log


class Followers:
    """Projections that stand at the same position."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        known = frozenset[type[Event]]().union(*(p.reads for p in projections))
        handled = {
            kind: [(p, p.handlers[kind]) for p in projections if kind in p.handlers]
            for kind in known
            if all(kind in p.reads for p in projections)
        }
        self._ignored: Kinds = frozenset(kind for kind, handlers in handled.items() if not handlers)
        self._known = handled.keys()
        self._of: dict[type[Excerpt], list[tuple[Projection, Handler]]] = {
            EXCERPTS[kind]: handlers for kind, handlers in handled.items() if handlers
        }
        self._reader = excerpts.Reader(kind for kind, handlers in handled.items() if handlers)

    def follow(self, log: Log, start: int, limit: int) -> int:
        """Gather the changes of at most `limit` events from `start` on. Returns the next position.

        Raises Unreadable; UnknownEventError, when nobody can read the first of them; what the log raises.
        """
        try:
            return self._in_parts(log, start, limit)
        except NoExcerptError:
            for projection in self._projections:
                projection.discard()
        return self._one_by_one(log, start, limit)

    def _in_parts(self, log: Log, start: int, limit: int) -> int:
        with log.parts(start, limit, self._ignored) as parts:
            for positions, states in parts:
                read = self._reader.read(len(positions), states)
                self._give(zip(positions, read, strict=True))
            return parts.end

    def _one_by_one(self, log: Log, start: int, limit: int) -> int:
        """Slower, for what is there seldom: old versions of events, and those that cannot be read."""
        with log.scan(start, limit, self._ignored) as scan:
            self._give((position, self._excerpt(event, position)) for position, event in scan)
            return scan.end

    def _excerpt(self, event: Event, position: int) -> Excerpt:
        if type(event) in self._known:
            return excerpts.of(event)
        projection = next(p for p in self._projections if type(event) not in p.reads)
        what = f"projection {projection.name} does not know {type(event).__name__} (position {position})"
        raise Unreadable(projection, UnknownEventError(what))

    def _give(self, events: Iterable[tuple[int, Any]]) -> None:
        of, asked = self._of, self._projections[0]
        try:
            for position, excerpt in events:
                for asked, handler in of[type(excerpt)]:  # noqa: B007  # who it was, should it raise
                    handler(excerpt, position)
        except ProjectionError as error:
            raise Unreadable(asked, error) from error
