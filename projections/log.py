"""What a projection needs of the ledger: events in order, by position. `ledger.application.Ledger` is one.

Invariant: `read` gives the events at start, start + 1, ... without a hole, and never another event for a position.
"""

from collections.abc import Sequence
from typing import Protocol

from ledger.events import Event


class Entry(Protocol):
    @property
    def position(self) -> int: ...

    @property
    def event(self) -> Event: ...


class Log(Protocol):
    def size(self) -> int:
        """The number of events = the next position. May raise ledger.application.Unavailable, as all of these."""
        ...

    def read(self, start: int, limit: int) -> Sequence[Entry]:
        """At most `limit` events from position `start` on."""
        ...

    def wait(self, size: int, timeout_s: float) -> int:
        """The size, as soon as it exceeds `size` or after `timeout_s`."""
        ...
