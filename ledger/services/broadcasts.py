"""Commands on broadcasts: start or resume, publish, interrupt, end.

Invariant: a stream's media sequence never goes back, also across crashes, because a segment is recorded before it is
listed and the next sequence is read from the log.
"""

from collections.abc import Sequence
from uuid import UUID

from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.stream import Stream
from ledger.application import Ledger, NotFound
from ledger.events import Segment
from ledger.services.retry import until_saved


def start_or_resume(
    ledger: Ledger,
    stream_id: UUID,
    *,
    new_broadcast_id: UUID,
    new_rendition_id: UUID,
    video_codec: str,
    audio_codec: str,
    grace_s: int,
    at_us: int,
) -> tuple[Broadcast, bool]:
    """The live broadcast (True: resumed within `grace_s` of its interruption), else a new one (False).

    A broadcast that was live when the hub died was never marked interrupted: it counts from its last event.
    """

    def attempt() -> tuple[Broadcast, bool]:
        stream = ledger.load(Stream, stream_id)
        if stream.broadcast_id is not None:
            live = ledger.load(Broadcast, stream.broadcast_id)
            since_us = live.interrupted_us if live.interrupted_us is not None else live.last_event_us
            if at_us - since_us <= grace_s * 1_000_000:
                live.resume(at_us=at_us)
                ledger.save(live)
                return live, True
            _end(stream, live, reason="grace period over", at_us=at_us)
            ledger.save(stream, live)
            stream = ledger.load(Stream, stream_id)
        broadcast = Broadcast(new_broadcast_id)
        broadcast.start(
            stream_id=stream_id,
            rendition_id=new_rendition_id,
            first_sequence=stream.next_sequence,
            video_codec=video_codec,
            audio_codec=audio_codec,
            at_us=at_us,
        )
        stream.go_live(broadcast.id, at_us=at_us)
        ledger.save(stream, broadcast)
        return broadcast, False

    return until_saved(attempt)


def publish_segments(ledger: Ledger, broadcast_id: UUID, segments: Sequence[Segment], *, at_us: int) -> None:
    """Durable when it returns; the same segments again change nothing."""

    def attempt() -> None:
        broadcast = ledger.load(Broadcast, broadcast_id)
        broadcast.publish(segments, at_us=at_us)
        ledger.save(broadcast)

    until_saved(attempt)


def interrupt_broadcast(ledger: Ledger, broadcast_id: UUID, *, reason: str, at_us: int) -> None:
    def attempt() -> None:
        broadcast = ledger.load(Broadcast, broadcast_id)
        broadcast.interrupt(reason=reason, at_us=at_us)
        ledger.save(broadcast)

    until_saved(attempt)


def end_broadcast(ledger: Ledger, broadcast_id: UUID, *, reason: str, at_us: int) -> None:
    """Ending an ended broadcast changes nothing."""

    def attempt() -> None:
        try:
            broadcast = ledger.load(Broadcast, broadcast_id)
        except NotFound:
            return
        if broadcast.ended or broadcast.stream_id is None:
            return
        stream = ledger.load(Stream, broadcast.stream_id)
        _end(stream, broadcast, reason=reason, at_us=at_us)
        ledger.save(stream, broadcast)

    until_saved(attempt)


def _end(stream: Stream, broadcast: Broadcast, *, reason: str, at_us: int) -> None:
    broadcast.end(reason=reason, at_us=at_us)
    if stream.broadcast_id == broadcast.id:
        stream.go_offline(reason=reason, next_sequence=broadcast.next_sequence, at_us=at_us)
