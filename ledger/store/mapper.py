"""Between domain events and stored rows.

Invariant: the stored state is exactly `ledger.event_codec.encode(event)`, nothing around it: those bytes are the leaf.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast
from uuid import UUID

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent

from ledger.event_codec import EVENT_TYPES, decode, encode, encode_each
from ledger.events import Event
from ledger.store.binary import PART_ROWS, Columns, NewRow, in_columns
from ledger.store.group import GROUP_EVENTS_MAX, Rows

_TAGS: Final = {cls: tag for tag, cls in EVENT_TYPES.items()}


class CorruptRowError(ValueError):
    """A row's columns and its bytes name different events."""

    exit_code = 5


def new_rows(events: Sequence[Event]) -> Rows:
    """The rows of events that are to be appended. Raises ValueError for an event that is too large.

    A batch that shares its transaction with nobody is encoded while the database takes in what came before: then it is
    the append that raises.
    """
    rows = _RowsOf(events)
    return rows if len(events) > GROUP_EVENTS_MAX else list(rows)


def columns_of(rows: Rows) -> Iterator[Columns]:
    """Part by part. Raises ValueError for an event that is too large."""
    return rows.columns() if isinstance(rows, _RowsOf) else in_columns(list(rows))


class _RowsOf:
    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[NewRow]:
        for event in self._events:
            yield event.originator_id, event.originator_version, _TAGS[type(event)], encode(event)

    def columns(self) -> Iterator[Columns]:
        for start in range(0, len(self._events), PART_ROWS):
            part = self._events[start : start + PART_ROWS]
            yield Columns(
                [event.originator_id for event in part],
                [event.originator_version for event in part],
                [_TAGS[type(event)] for event in part],
                encode_each(part),
            )


class EventMapper(Mapper[UUID]):
    """The library's mapper with the ledger's frozen encoding: no transcoder, no compression, no cipher."""

    def __init__(self) -> None:
        super().__init__(transcoder=JSONTranscoder())

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        event = cast("Event", domain_event)
        return StoredEvent(event.originator_id, event.originator_version, _TAGS[type(event)], encode(event))

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Raises UnknownEventError, or CorruptRowError when the row is not about the event in its bytes."""
        event = decode(stored_event.state, stored_event.topic)
        if (event.originator_id, event.originator_version) != (
            stored_event.originator_id,
            stored_event.originator_version,
        ):
            raise CorruptRowError(
                f"row {stored_event.originator_id}/{stored_event.originator_version} holds the bytes of "
                f"{event.originator_id}/{event.originator_version}"
            )
        return event
