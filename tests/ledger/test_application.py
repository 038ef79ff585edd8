"""The ledger's contract: load, save, read, wait; conflicts; outages."""

import threading
import time
from uuid import UUID, uuid4

import pytest

from ledger import events as ev
from ledger.aggregates.base import Aggregate
from ledger.application import Conflict, Ledger, NotFound, StaleAggregateError, Unavailable
from ledger.events import Event, UnknownEventError, encode


class Probed(Aggregate):
    """The smallest aggregate: counts probes of a node."""

    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.count = 0
        self.sequences: list[int] = []

    def apply(self, event: Event) -> None:
        assert isinstance(event, ev.NodeProbed)
        if event.outcome == "explode":
            self.count += 1000
            raise ValueError("explode")
        self.count += 1
        self.sequences.append(event.sequence)

    def probe(self, sequence: int = 0, outcome: str = "ok") -> Event:
        return self.trigger(
            ev.NodeProbed, at_us=1, outcome=outcome, sequence=sequence, latency_us=1, segment_bytes=1
        )


def test_what_was_saved_is_loaded_and_read_with_its_exact_bytes(ledger: Ledger) -> None:
    aggregate = Probed(uuid4())
    first, second = aggregate.probe(1), aggregate.probe(2)
    assert ledger.save(aggregate) == [0, 1]
    assert ledger.load(Probed, aggregate.id).sequences == [1, 2]
    recorded = ledger.read(0, 10)
    assert [(r.position, r.event, r.data) for r in recorded] == [
        (0, first, encode(first)),
        (1, second, encode(second)),
    ]
    assert ledger.size() == 2
    assert ledger.read(2, 10) == []
    assert ledger.position_of(aggregate.id, 2) == 1
