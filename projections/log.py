"""What a projection needs of the ledger: events in order, by position. `ledger.application.Ledger` is one.

Invariant: `read` gives the events at start, start + 1, ... without a hole, and never another event for a position.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ledger.events import Event


class Entry(Protocol):
    @property
    def position(self) -> int: ...

    @property
    def event(self) -> Event: ...


class Scan(Iterable[tuple[int, Event]], Protocol):
    """Positions, ascending, and what stands there. To be taken once."""

    @property
    def end(self) -> int:
        """The next position, when all was taken."""
        ...


class Parts(Iterable[tuple[Sequence[int], bytes]], Protocol):
    """Positions, ascending, and the exact bytes of the events there, one behind the other. To be taken once."""

    @property
    def end(self) -> int:
        """The next position, when all was taken."""
        ...


class Log(Protocol):
    def size(self) -> int:
        """The number of events = the next position. May raise ledger.application.Unavailable, as all of these."""
        ...

    def read(self, start: int, limit: int) -> Sequence[Entry]:
        """At most `limit` events from position `start` on."""
        ...

    def scan(self, start: int, limit: int, skip: Collection[type[Event]]) -> AbstractContextManager[Scan]:
        """As `read`, without the events of the types to skip."""
        ...

    def parts(self, start: int, limit: int, skip: Collection[type[Event]]) -> AbstractContextManager[Parts]:
        """As `scan`, many events at a time."""
        ...

    def happened_us(self, position: int) -> int:
        """`at_us` of the event there, whatever it is. May raise UnknownEventError for bytes that are no event."""
        ...

    def wait(self, size: int, timeout_s: float) -> int:
        """The size, as soon as it exceeds `size` or after `timeout_s`."""
        ...
