"""Aggregate: a consistency boundary whose state is the fold of its events.

Invariant: `state == fold(events)` and nothing else; a command either triggers events or raises and changes nothing.
Works with the eventsourcing library's repository (`collect_events`, `version`, a projector function).
"""

from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar
from uuid import UUID

from ledger.events import Event

E = TypeVar("E", bound=Event)


class DomainError(Exception):
    """A command that the state does not allow. The message is for people."""


class Aggregate:
    """Subclasses keep state in attributes set up in `__init__` and change it only in `apply`."""

    def __init__(self, aggregate_id: UUID) -> None:
        self._id = aggregate_id
        self.version = 0
        self.torn = (
            False  # true once `apply` or a save failed: the state may be no fold of any events; load again
        )
        self._pending: list[Event] = []

    @property
    def id(self) -> UUID:
        return self._id

    def apply(self, event: Event) -> None:
        """Fold one event into the state. Must accept every event the aggregate ever recorded."""
        raise NotImplementedError

    def trigger(self, event_class: type[E], *, at_us: int, **fields: Any) -> E:
        """Make the next event, apply it and keep it for saving."""
        if not self._pending:
            self.begin()
        event = event_class(
            originator_id=self._id, originator_version=self.version + 1, at_us=at_us, **fields
        )
        self.mutate(event)
        self._pending.append(event)
        return event

    def begin(self) -> None:
        """What is triggered from here on may have to be taken back."""

    def take_back(self) -> None:
        """What was triggered since could not be saved: the state is that of before, or it is torn."""
        self.torn = True

    def settle(self) -> None:
        """What was triggered since is saved."""

    def mutate(self, event: Event) -> None:
        if event.originator_id != self._id or event.originator_version != self.version + 1:
            raise ValueError(
                f"{type(event).__name__} {event.originator_id}/{event.originator_version} does not follow "
                f"{type(self).__name__} {self._id}/{self.version}"
            )
        self.torn, torn = True, self.torn
        self.apply(event)
        self.torn = torn
        self.version = event.originator_version

    def collect_events(self) -> list[Event]:
        """The events triggered since the last call, for the event store."""
        pending, self._pending = self._pending, []
        return pending

    @classmethod
    def projector(cls) -> Callable[[Self | None, Iterable[Event]], Self | None]:
        """The function with which the repository folds stored events into this class."""

        def project(aggregate: Self | None, events: Iterable[Event]) -> Self | None:
            for event in events:
                if aggregate is None:
                    aggregate = cls(event.originator_id)
                aggregate.mutate(event)
            return aggregate

        return project
