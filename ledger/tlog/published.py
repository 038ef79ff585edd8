"""The events of a published log, in order.

Invariant: as of one checkpoint. What is read here is not proven: the audit does that.
"""

from collections.abc import Iterator
from typing import Self

from ledger.event_codec import decode
from ledger.events import Event
from ledger.tlog.reader import LogReader, read_note
from ledger.tlog.source import Source


class PublishedLog:
    def __init__(self, reader: LogReader, size: int) -> None:
        self._reader, self._size = reader, size

    @classmethod
    def of(cls, source: Source) -> Self:
        """Raises NotPublished, SourceUnavailable."""
        _, checkpoint = read_note(source)
        return cls(LogReader(source, checkpoint.size), checkpoint.size)

    def events(self, start: int, end: int | None) -> Iterator[tuple[int, Event]]:
        """(position, event) from `start` up to `end` (exclusive; None: all there are)."""
        for position, data in self._reader.entries(start, self._size if end is None else end):
            yield position, decode(data)
