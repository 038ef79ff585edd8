"""Sessions as the hub sees them at this moment, in memory alone.

Invariant: there are at most MAX_SESSIONS; who asked for something longest ago goes first. Times are seconds of the
monotonic clock.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from ledger.ticket import ViewerClass
from relay.ports import Assignment

MAX_SESSIONS: Final = 20_000
SEEN_S: Final = 15.0  # a session that asked for something within this time is watching


@dataclass(slots=True)
class Viewing:
    """One session."""

    slug: str
    stream_id: UUID
    viewer_class: ViewerClass
    network: bytes  # commitment
    seen_s: float
    rendition_id: UUID | None = None
    node_id: UUID | None = None
    assignment: Assignment | None = None
    avoid: dict[UUID, float] = field(default_factory=dict)  # node -> until when
    polled: set[int] = field(default_factory=set)  # not yet recorded
    excused_to: int = -1  # up to here segments were listed at the hub because the node was silent
    polled_to: int = -1  # the highest sequence ever listed to the session
    fetched: set[int] = field(default_factory=set)  # not yet recorded
    observed_s: float = 0.0  # when the oldest of both was observed
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def unrecorded(self) -> bool:
        return bool(self.polled or self.fetched)

    def note_time(self, now: float) -> None:
        """Something is about to be observed."""
        if not self.unrecorded:
            self.observed_s = now

    def was_assigned(self, sequence: int) -> bool:
        """Whether its node should have served this segment."""
        covered = self.assignment is not None and self.assignment.ticket.ticket.covers(sequence)
        return covered and sequence > self.excused_to


class Viewings:
    def __init__(self) -> None:
        self._by_session: dict[UUID, Viewing] = {}

    def __len__(self) -> int:
        return len(self._by_session)

    def get(self, session_id: UUID) -> Viewing | None:
        return self._by_session.get(session_id)

    def all(self) -> list[tuple[UUID, Viewing]]:
        return list(self._by_session.items())

    def remember(self, session_id: UUID, viewing: Viewing) -> None:
        """Unless another request was first: then what that one remembered stays."""
        if session_id in self._by_session:
            return
        if len(self._by_session) >= MAX_SESSIONS:
            del self._by_session[min(self._by_session, key=lambda s: self._by_session[s].seen_s)]
        self._by_session[session_id] = viewing

    def forget(self, session_id: UUID) -> None:
        self._by_session.pop(session_id, None)

    def watching(self, slug: str | None = None) -> Iterator[Viewing]:
        """Those that asked for something a moment ago; with `slug`, of that stream."""
        since = time.monotonic() - SEEN_S
        return (v for v in self._by_session.values() if v.seen_s > since and slug in (None, v.slug))

    def load(self) -> Counter[UUID | None]:
        """By node, how many watch through it."""
        return Counter(v.node_id for v in self.watching())
