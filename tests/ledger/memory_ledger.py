"""What a publisher needs of a ledger, in memory: it may die at a save, and counts what is read of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from crew_life import LOG, make_id

from ledger.aggregates.base import Aggregate
from ledger.event_codec import encode, tag_of
from ledger.events import Event, NodeWentOnline
from ledger.keys import KeyPair
from ledger.note import VerifierKey
from ledger.tlog.publisher import Publisher

ORIGIN = "hub.example/log"
VKEY = VerifierKey(ORIGIN, LOG.public_key)


@dataclass(frozen=True)
class Row:
    position: int
    event: Event
    state: bytes

    @property
    def topic(self) -> str:
        return tag_of(self.event)


@dataclass
class MemoryLedger:
    """The ledger's contract with the publisher, in a list: deterministic, and it counts what is read."""

    rows: list[Row] = field(default_factory=list)
    rows_read: int = 0
    fail_save: str = ""  # "before" or "after" it is persisted

    def read_rows(self, start: int, limit: int) -> list[Row]:
        page = self.rows[start : start + limit]
        self.rows_read += len(page)
        return page

    def size(self) -> int:
        return len(self.rows)

    def last_event(self, aggregate_id: UUID) -> Event | None:
        return next((r.event for r in reversed(self.rows) if r.event.originator_id == aggregate_id), None)

    def save(self, *aggregates: Aggregate) -> list[int]:
        fail, self.fail_save = self.fail_save, ""
        if fail == "before":
            raise Crash
        first = len(self.rows)
        for aggregate in aggregates:
            self.add(*aggregate.collect_events())
        if fail == "after":
            raise Crash
        return list(range(first, len(self.rows)))

    def add(self, *events: Event) -> None:
        for event in events:
            self.rows.append(Row(len(self.rows), event, encode(event)))

    def grow(self, count: int) -> None:
        """Facts of no consequence."""
        for i in range(len(self.rows), len(self.rows) + count):
            self.add(NodeWentOnline(originator_id=make_id(f"node {i}"), originator_version=1, at_us=1))


class Crash(BaseException):
    """The process died here."""


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def open_publisher(ledger: Any, folder: Path, key: KeyPair = LOG) -> Publisher:
    return Publisher(ledger, folder, key, ORIGIN)
