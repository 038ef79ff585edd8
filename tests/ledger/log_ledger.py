"""A ledger that is its log and nothing else: each load folds the stored bytes, no state outlives what was saved."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from uuid import UUID

from ledger.aggregates.base import Aggregate
from ledger.application import Conflict, NotFound, StaleAggregateError
from ledger.event_codec import decode, encode
from ledger.events import Event

# Each load folds anew, but what the bytes of an event are, and an event cannot change.
_decoded = lru_cache(100_000)(decode)


class Died(BaseException):
    """The process ends here."""


class LogLedger:
    """The contract of ledger.application.Ledger as far as payouts need it. It may die before or after a save."""

    def __init__(self, log: list[bytes] | None = None) -> None:
        self.log = log if log is not None else []
        self.saved = [len(self.log)]  # its sizes after each save
        self.saves_left = -1  # to the one at which it dies; -1: never
        self.dies_after = False  # that save is recorded

    def events(self) -> Iterator[tuple[int, Event]]:
        return ((position, _decoded(data)) for position, data in enumerate(self.log))

    def load_or_new(self, cls: Any, aggregate_id: UUID) -> Any:
        found = cls(aggregate_id)
        for _, event in self.events():
            if event.originator_id == aggregate_id:
                found.mutate(event)
        return found

    def load(self, cls: Any, aggregate_id: UUID) -> Any:
        found = self.load_or_new(cls, aggregate_id)
        if not found.version:
            raise NotFound(str(aggregate_id))
        return found

    def save(self, *aggregates: Aggregate) -> list[int]:
        if any(a.torn for a in aggregates):
            raise StaleAggregateError
        self.saves_left -= 1
        if self.saves_left == 0 and not self.dies_after:
            raise Died
        events = [event for a in aggregates for event in a.collect_events()]
        known = {(e.originator_id, e.originator_version) for _, e in self.events()}
        if any((e.originator_id, e.originator_version) in known for e in events):
            raise Conflict
        first = len(self.log)
        self.log += [encode(event) for event in events]
        self.saved.append(len(self.log))
        if self.saves_left == 0:
            raise Died
        return list(range(first, len(self.log)))

    def cut(self, size: int) -> None:
        """As restored from an older backup."""
        del self.log[size:]
        self.saved = [n for n in self.saved if n <= size]

    def size(self) -> int:
        return len(self.log)
