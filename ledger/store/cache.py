"""Keeps folded aggregates between calls, so that a load reads only what is new.

Invariant: an aggregate that is given out is held by nobody else, and its state is the fold of the first
`aggregate.version` events of its stream: so two threads never share one, and a command that failed leaves no trace.
"""

import sys
from collections import OrderedDict
from threading import Lock
from typing import Final, TypeVar
from uuid import UUID

from ledger.aggregates.base import Aggregate

A = TypeVar("A", bound=Aggregate)

CACHED_AGGREGATES_MAX: Final = 1024
COPIES: Final = 3  # of one aggregate, when so many threads wanted it at once


class _Entry:
    __slots__ = ("aggregate", "version")

    def __init__(self, aggregate: Aggregate) -> None:
        self.aggregate = aggregate
        self.version = aggregate.version


def _version(entry: _Entry) -> int:
    return entry.version


class AggregateCache:
    """The last used aggregates. Copying one (a delivery holds every credit of a broadcast) would cost more than the
    command, so the cached object itself is lent: only when its reference count says that no caller still holds it, and
    only when it is as it was recorded. Otherwise there is nothing to lend, and the caller folds its own, which is kept
    beside the first: threads that want the same node or crew again find one each."""

    def __init__(self, maxsize: int = CACHED_AGGREGATES_MAX) -> None:
        self._maxsize = maxsize
        self._lock = Lock()
        self._entries: OrderedDict[tuple[type[Aggregate], UUID], list[_Entry]] = OrderedDict()

    def take(self, cls: type[A], aggregate_id: UUID) -> A | None:
        key = (cls, aggregate_id)
        with self._lock:
            entries = self._entries.get(key, [])
            # First the one that has least to catch up with.
            for entry in sorted(entries, key=_version, reverse=True):
                # Two references: the entry's own and getrefcount's argument.
                if sys.getrefcount(entry.aggregate) > 2:
                    continue
                aggregate = entry.aggregate
                if aggregate.torn or aggregate.version != entry.version:
                    entries.remove(entry)
                    del aggregate
                    continue
                self._entries.move_to_end(key)
                assert isinstance(aggregate, cls)
                return aggregate
            return None

    def put(self, aggregate: Aggregate) -> None:
        """Remember an aggregate all of whose events are recorded."""
        key = (type(aggregate), aggregate.id)
        with self._lock:
            entries = self._entries.setdefault(key, [])
            for entry in entries:
                if entry.aggregate is aggregate:
                    entry.version = aggregate.version
                    break
            else:
                entries.append(_Entry(aggregate))
                del entries[:-COPIES]
            self._entries.move_to_end(key)
            if len(self._entries) > self._maxsize:
                self._entries.popitem(last=False)
