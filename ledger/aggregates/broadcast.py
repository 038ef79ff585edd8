"""Broadcast: one live run of a stream, with the manifest of every segment it published.

Invariant: sequences are published once each, ascending without a gap; an ended broadcast publishes nothing more.
"""

from collections.abc import Sequence
from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.events import (
    BroadcastEnded,
    BroadcastInterrupted,
    BroadcastResumed,
    BroadcastStarted,
    Event,
    Segment,
    SegmentsPublished,
)
from ledger.judge import Manifest


class Broadcast(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.stream_id: UUID | None = None
        self.rendition_id: UUID | None = None
        self.first_sequence = 0
        self.next_sequence = 0
        self.segments: dict[int, Segment] = {}
        self.manifest = Manifest(0)
        self.interrupted_us: int | None = None
        self.last_event_us = 0
        self.ended = False

    def start(
        self,
        *,
        stream_id: UUID,
        rendition_id: UUID,
        first_sequence: int,
        video_codec: str,
        audio_codec: str,
        at_us: int,
    ) -> None:
        self.trigger(
            BroadcastStarted,
            at_us=at_us,
            stream_id=stream_id,
            rendition_id=rendition_id,
            first_sequence=first_sequence,
            video_codec=video_codec,
            audio_codec=audio_codec,
        )

    def publish(self, segments: Sequence[Segment], *, at_us: int) -> None:
        """Idempotent: segments that stand in the manifest already are passed over if they are the same."""
        fresh = []
        for segment in segments:
            known = self.segments.get(segment.sequence)
            if known is None:
                fresh.append(segment)
            elif known.sha256 != segment.sha256:
                raise DomainError(f"segment {segment.sequence} was published with other bytes")
        if not fresh:
            return
        if self.ended:
            raise DomainError("the broadcast has ended")
        if [s.sequence for s in fresh] != list(range(self.next_sequence, self.next_sequence + len(fresh))):
            raise DomainError(f"the next segment is {self.next_sequence}, not {fresh[0].sequence}")
        self.trigger(SegmentsPublished, at_us=at_us, rendition_id=self.rendition_id, segments=tuple(fresh))

    def interrupt(self, *, reason: str, at_us: int) -> None:
        if not self.ended and self.interrupted_us is None:
            self.trigger(BroadcastInterrupted, at_us=at_us, reason=reason)

    def resume(self, *, at_us: int) -> None:
        if self.ended:
            raise DomainError("the broadcast has ended")
        if self.interrupted_us is not None:
            self.trigger(BroadcastResumed, at_us=at_us)

    def end(self, *, reason: str, at_us: int) -> None:
        if not self.ended:
            self.trigger(BroadcastEnded, at_us=at_us, reason=reason, next_sequence=self.next_sequence)

    def apply(self, event: Event) -> None:
        self.last_event_us = event.at_us
        match event:
            case BroadcastStarted():
                self.stream_id, self.rendition_id = event.stream_id, event.rendition_id
                self.first_sequence = self.next_sequence = event.first_sequence
                self.manifest = Manifest(event.first_sequence)
            case SegmentsPublished():
                for segment in event.segments:
                    self.segments[segment.sequence] = segment
                    self.manifest.append(segment.segment_bytes)
                    self.next_sequence = segment.sequence + 1
            case BroadcastInterrupted():
                self.interrupted_us = event.at_us
            case BroadcastResumed():
                self.interrupted_us = None
            case BroadcastEnded():
                self.ended = True
            case _:
                raise TypeError(type(event).__name__)
