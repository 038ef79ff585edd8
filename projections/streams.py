"""Streams: their state, their broadcasts and how much was published.

Invariant: a stream's segments, bytes and duration are the sums over its broadcasts; its last sequence never goes
back.
"""

from typing import Final

from sqlalchemy import Connection, Table

from ledger import events as e
from projections import base
from projections import excerpts as x
from projections.fold import Rows, StreamLookup
from projections.schema import Tables

_PUBLISHED: Final = ("segments", "published_bytes", "duration_us", "last_sequence", "last_position")


class Streams(base.Projection):
    name = "streams"
    version = 1
    ignores = base.EVERY - base.STREAM - base.BROADCAST - base.SESSION | {
        e.StreamKeyRotated,
        e.BroadcastEnded,
        e.SessionObserved,
        e.TicketIssued,
    }

    def __init__(self, tables: Tables) -> None:
        self._streams = Rows(tables.streams)
        self._broadcasts = Rows(tables.broadcasts)
        self._publish = self._broadcasts.changer(*_PUBLISHED)
        self._publish_of_stream = self._streams.changer(*_PUBLISHED)
        self._stream_of = StreamLookup(tables.broadcasts)
        self._published: dict[bytes, list[int]] = {}  # by broadcast; its stream is found at the flush
        self.use(
            [self._streams, self._broadcasts],
            {
                e.StreamRegistered: self._registered,
                e.StreamWentLive: self._went_live,
                e.StreamWentOffline: self._went_offline,
                e.StreamArchived: self._archived,
                e.StreamMarkedStale: self._marked_stale,
                e.BroadcastStarted: self._broadcast_started,
                e.BroadcastInterrupted: self._broadcast_interrupted,
                e.BroadcastResumed: self._broadcast_resumed,
                e.SegmentsPublished: self._segments_published,
                e.SessionOpened: self._session_opened,
            },
        )

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.streams, tables.broadcasts)

    def flush(self, connection: Connection) -> None:
        streams = self._stream_of.find(connection, self._published)
        for broadcast_id, totals in self._published.items():
            self._publish(broadcast_id, *totals)
            self._publish_of_stream(streams[broadcast_id], *totals)
        self._published.clear()
        super().flush(connection)

    def discard(self) -> None:
        self._published.clear()
        super().discard()

    def _registered(self, event: x.StreamRegistered, position: int) -> None:
        self._streams.make(
            event.originator_id,
            slug=event.name,
            owner_id=event.owner_id,
            registered_us=event.at_us,
            state="READY",
            last_position=position,
        )

    def _went_live(self, event: x.StreamWentLive, position: int) -> None:
        self._streams.change(
            event.originator_id,
            state="LIVE",
            broadcast_id=event.broadcast_id,
            broadcasts=1,
            started_us=event.at_us,
            last_position=position,
        )

    def _went_offline(self, event: x.StreamWentOffline, position: int) -> None:
        self._streams.change(
            event.originator_id, state="OFFLINE", ended_us=event.at_us, last_position=position
        )

    def _archived(self, event: x.StreamArchived, position: int) -> None:
        self._streams.change(event.originator_id, state="ARCHIVED", last_position=position)

    def _marked_stale(self, event: x.StreamMarkedStale, position: int) -> None:
        self._streams.change(event.originator_id, state="STALE", last_position=position)

    def _broadcast_started(self, event: x.BroadcastStarted, position: int) -> None:
        self._stream_of.learn(event.originator_id, event.stream_id)
        self._broadcasts.make(
            event.originator_id,
            stream_id=event.stream_id,
            rendition_id=event.rendition_id,
            interrupted=False,
            last_position=position,
        )

    def _broadcast_interrupted(self, event: x.BroadcastInterrupted, position: int) -> None:
        self._broadcasts.change(event.originator_id, interrupted=True, last_position=position)

    def _broadcast_resumed(self, event: x.BroadcastResumed, position: int) -> None:
        self._broadcasts.change(event.originator_id, interrupted=False, last_position=position)

    def _segments_published(self, event: x.SegmentsPublished, position: int) -> None:
        totals = self._published.get(event.originator_id)
        if totals is None:
            totals = self._published[event.originator_id] = [0] * len(_PUBLISHED)
        for segment in event.segments:
            totals[0] += 1
            totals[1] += segment.segment_bytes
            totals[2] += segment.duration_us
            if segment.sequence > totals[3]:
                totals[3] = segment.sequence
        totals[4] = position

    def _session_opened(self, event: x.SessionOpened, position: int) -> None:
        self._streams.change(event.stream_id, sessions=1, last_position=position)
