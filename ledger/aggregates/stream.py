"""Stream: a creator's channel, READY -> LIVE -> OFFLINE -> ARCHIVED; STALE when it is never used, until it is LIVE.

Invariant: at most one broadcast is live, and `next_sequence` never goes back.
"""

import re
from enum import StrEnum
from typing import Final
from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.events import (
    Event,
    StreamArchived,
    StreamKeyRotated,
    StreamMarkedStale,
    StreamRegistered,
    StreamWentLive,
    StreamWentOffline,
)
from ledger.ids import SLUG

_SLUG: Final = re.compile(SLUG)


class StreamState(StrEnum):
    READY = "READY"
    LIVE = "LIVE"
    OFFLINE = "OFFLINE"
    ARCHIVED = "ARCHIVED"
    STALE = "STALE"


class Stream(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.slug = ""
        self.owner_id: UUID | None = None
        self.key_sha256 = b""
        self.state = StreamState.READY
        self.broadcast_id: UUID | None = None  # of the live broadcast
        self.next_sequence = 0
        self.unused_since_us = 0  # of one that was never live: when its key was made

    def register(self, *, slug: str, key_sha256: bytes, owner_id: UUID, at_us: int) -> None:
        if self.version:
            raise DomainError(f"the stream {slug!r} exists already")
        if not _SLUG.fullmatch(slug):
            raise DomainError(
                "a stream's name is 2 to 39 of a-z, 0-9 and -, and begins with a letter or digit"
            )
        self.trigger(StreamRegistered, at_us=at_us, name=slug, key_sha256=key_sha256, owner_id=owner_id)

    def rotate_key(self, key_sha256: bytes, *, at_us: int) -> None:
        self._must_not_be_archived()
        self.trigger(StreamKeyRotated, at_us=at_us, key_sha256=key_sha256)

    def go_live(self, broadcast_id: UUID, *, at_us: int) -> None:
        self._must_not_be_archived()
        if self.state is StreamState.LIVE:
            raise DomainError("the stream is live already")
        self.trigger(StreamWentLive, at_us=at_us, broadcast_id=broadcast_id)

    def go_offline(self, *, reason: str, next_sequence: int, at_us: int) -> None:
        if self.state is not StreamState.LIVE:
            return
        self.trigger(
            StreamWentOffline,
            at_us=at_us,
            broadcast_id=self.broadcast_id,
            reason=reason,
            next_sequence=max(next_sequence, self.next_sequence),
        )

    def archive(self, *, reason: str, at_us: int) -> None:
        if self.state is StreamState.LIVE:
            raise DomainError("a live stream cannot be archived: stop the broadcast first")
        if self.state is not StreamState.ARCHIVED:
            self.trigger(StreamArchived, at_us=at_us, reason=reason)

    def mark_stale(self, *, unused_us: int, at_us: int) -> None:
        """When it was never live, and nobody made a key for it within `unused_us`."""
        if self.state is StreamState.READY and at_us - self.unused_since_us >= unused_us:
            self.trigger(StreamMarkedStale, at_us=at_us)

    def _must_not_be_archived(self) -> None:
        if self.state is StreamState.ARCHIVED:
            raise DomainError("the stream is archived")

    def apply(self, event: Event) -> None:
        match event:
            case StreamRegistered():
                self.slug, self.key_sha256, self.owner_id = event.name, event.key_sha256, event.owner_id
                self.unused_since_us = event.at_us
            case StreamKeyRotated():
                self.key_sha256, self.unused_since_us = event.key_sha256, event.at_us
            case StreamWentLive():
                self.state, self.broadcast_id = StreamState.LIVE, event.broadcast_id
            case StreamWentOffline():
                self.state, self.broadcast_id = StreamState.OFFLINE, None
                self.next_sequence = event.next_sequence
            case StreamArchived():
                self.state = StreamState.ARCHIVED
            case StreamMarkedStale():
                self.state = StreamState.STALE
            case _:
                raise TypeError(type(event).__name__)
