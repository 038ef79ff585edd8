"""Verdicts: how many receipts were accepted or refused, by stream, node, verdict and cap.

Invariant: the counts over all rows are the number of receipts that were ever judged; the credited bytes over all rows
are what settlement has to work with.
"""

from uuid import UUID

from sqlalchemy import Connection, Table

from ledger import events as e
from ledger.ids import delivery_id
from projections import base
from projections import excerpts as x
from projections.fold import Rows, StreamLookup, Tally
from projections.judgements import Judgements
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
        self._served: Judgements[tuple[bytes, bytes]] = Judgements()  # by delivery and node
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
        totals = list(self._served.totals())
        streams = self._stream_of.find(connection, {total.group[0] for total in totals})
        for total in totals:
            delivery, node_id = total.group
            self._counts.change(
                streams[delivery],
                node_id,
                total.verdict,
                total.cap,
                receipts=total.receipts,
                units=total.units,
                credited_bytes=total.credited_bytes,
                last_position=total.last_position,
            )
        self._served.clear()
        super().flush(connection)

    def discard(self) -> None:
        self._served.clear()
        super().discard()

    def _broadcast_started(self, event: x.BroadcastStarted, _position: int) -> None:
        delivery = delivery_id(UUID(bytes=event.originator_id)).bytes
        self._stream_of.learn(delivery, event.stream_id)
        self._deliveries.make(delivery, stream_id=event.stream_id)

    def _segments_served(self, event: x.SegmentsServed, position: int) -> None:
        self._served.add((event.originator_id, event.node_id), event, position)

    def _receipts_refused(self, event: x.ReceiptsRefused, position: int) -> None:
        for j in event.judged:
            self._counts.change(
                NO_STREAM.bytes,
                event.originator_id,
                j.verdict,
                j.cap,
                receipts=1,
                units=j.units,
                credited_bytes=j.credited_bytes,
                last_position=position,
            )
