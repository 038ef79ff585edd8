"""Verdicts: how many receipts were accepted or refused, by stream, node, verdict and cap.

Invariant: the counts over all rows are the number of receipts that were ever judged; the credited bytes over all rows
are what settlement has to work with.
"""

from uuid import UUID

from sqlalchemy import Connection, Table

from ledger import events as e
from ledger.ids import delivery_id
from projections import base
from projections.fold import Rows, StreamLookup, Tally
from projections.schema import NO_STREAM, Tables


class Verdicts(base.Projection):
    name = "verdicts"
    version = 1
    ignores = (
        base.CREW
        | base.STREAM
        | base.SESSION
        | base.INVITE
        | base.TARIFF
        | base.MONEY
        | base.PAYOUT
        | base.TREE
        | (base.BROADCAST - {e.BroadcastStarted})
        | (base.NODE - {e.ReceiptsRefused})
    )

    def __init__(self, tables: Tables) -> None:
        self._counts = Tally(tables.verdicts)
        self._deliveries = Rows(tables.verdict_deliveries)
        self._stream_of = StreamLookup(tables.verdict_deliveries)
        self._served: list[tuple[e.SegmentsServed, int]] = []  # the stream is found at the flush
        self.use(
            [self._counts, self._deliveries],
            {
                e.BroadcastStarted: self._broadcast_started,
                e.SegmentsServed: self._segments_served,
                e.ReceiptsRefused: self._receipts_refused,
            },
        )

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.verdicts, tables.verdict_deliveries)

    def flush(self, connection: Connection) -> None:
        streams = self._stream_of.find(connection, {event.originator_id for event, _ in self._served})
        for event, position in self._served:
            self._count(streams[event.originator_id], event.node_id, event.judged, position)
        self._served.clear()
        super().flush(connection)

    def discard(self) -> None:
        self._served.clear()
        super().discard()

    def _broadcast_started(self, event: e.BroadcastStarted, _position: int) -> None:
        delivery = delivery_id(event.originator_id)
        self._stream_of.learn(delivery, event.stream_id)
        self._deliveries.make(delivery, stream_id=event.stream_id)

    def _segments_served(self, event: e.SegmentsServed, position: int) -> None:
        self._served.append((event, position))

    def _receipts_refused(self, event: e.ReceiptsRefused, position: int) -> None:
        self._count(NO_STREAM, event.originator_id, event.judged, position)

    def _count(self, stream_id: UUID, node_id: UUID, judged: tuple[e.Judged, ...], position: int) -> None:
        # A batch has up to 200 receipts and a verdict or two: added up here, the row is touched once for each.
        alike: dict[tuple[str, str], list[e.Judged]] = {}
        for j in judged:
            alike.setdefault((j.verdict, j.cap), []).append(j)
        for (verdict, cap), of_kind in alike.items():
            self._counts.change(
                stream_id,
                node_id,
                verdict,
                cap,
                receipts=len(of_kind),
                units=sum(j.units for j in of_kind),
                credited_bytes=sum(j.credited_bytes for j in of_kind),
                last_position=position,
            )
