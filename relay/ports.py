"""What the relay asks of the rest of the hub. The relay knows media; who may publish, who serves whom and what is
written down is decided behind these two protocols (the hub implements them on the ledger).

Every method may raise `Unavailable` when the ledger cannot be reached just now: the relay keeps the media and asks
again, it never drops a segment for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from ledger.events import Segment
from ledger.ticket import SignedTicket


class Unavailable(Exception):
    """The ledger or the database behind it does not answer at the moment. Transient: try again."""


class Unknown(Exception):
    """The answer is not at hand: ask."""


@dataclass(frozen=True, slots=True)
class StreamGrant:
    """A stream key was right."""

    stream_id: UUID
    slug: str  # the stream's public name in URLs


@dataclass(frozen=True, slots=True)
class BroadcastGrant:
    stream_id: UUID
    slug: str
    broadcast_id: UUID
    rendition_id: UUID
    next_sequence: (
        int  # the media sequence of the first segment to come; never goes back in the life of a stream
    )
    resumed: bool  # the publisher came back within the grace period: the next segment is a DISCONTINUITY


class PublishAuthority(Protocol):
    """Ingest: keys, broadcasts and the durable record of what was published."""

    async def check_key(self, stream_key: str) -> StreamGrant | None:
        """None when no stream has this key. Called before any media is accepted."""
        ...

    async def start_broadcast(self, stream_id: UUID, video_codec: str, audio_codec: str) -> BroadcastGrant:
        """Start a broadcast, or resume the one that was interrupted within the grace period."""
        ...

    async def publish_segments(
        self, grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]
    ) -> None:
        """Durable when it returns; only then may the segments be listed. Idempotent for the same segments."""
        ...

    async def interrupt_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        """The publisher's connection is gone; the grace period begins."""
        ...

    async def end_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        """A clean stop by the publisher, or the grace period ran out."""
        ...


@dataclass(frozen=True, slots=True)
class Assignment:
    """A node serves this session for now: `{node_url}/segments/{rendition}/{sequence}.{ts or m4s}?t={ticket}`."""

    node_url: str  # absolute, without a trailing slash
    ticket: SignedTicket


class Steering(Protocol):
    """Viewers: sessions, and which node carries them. Nothing here may delay a playlist by more than a moment."""

    async def open_session(self, slug: str, peer_ip: str) -> UUID | None:
        """A new session for a plain player (class 2). None when the stream does not exist."""
        ...

    async def assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        """The node for the segments from `next_sequence` on, or None: the hub serves them itself.

        Called at every playlist refresh; the answer changes when the node has gone or the ticket runs out.
        """
        ...

    def known_assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        """What `assignment` would answer without waiting for anybody. Raises Unknown."""
        ...

    async def session_slug(self, session_id: UUID) -> str | None:
        """The stream a live session belongs to; None for a session nobody opened or that has expired."""
        ...

    def known_slug(self, session_id: UUID) -> str | None:
        """The same of a session that is in memory; None for any other."""
        ...

    def observe_poll(self, session_id: UUID, sequences: Sequence[int], peer_ip: str) -> None:
        """The hub listed these segments to the session. Memory only; recorded from time to time."""
        ...

    def observe_fetch(self, session_id: UUID, sequence: int, peer_ip: str) -> None:
        """The hub itself sent the bytes of this segment to the session."""
        ...

    def pointed_at_hub(self, session_id: UUID, sequence: int) -> bool:
        """Whether this segment is the unpredictable one in ten that a plain player gets from the hub."""
        ...

    async def node_may_fetch(self, public_key: bytes) -> bool:
        """Whether this key is a joined, not suspended, not retired node."""
        ...
