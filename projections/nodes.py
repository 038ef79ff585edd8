"""Nodes: who they belong to, how they are, and what they delivered.

Invariant: `receipts_accepted` + `receipts_refused` is the number of receipts judged for the node, and the credited
bytes are those of its accepted receipts, whether or not they are settled yet.
"""

from sqlalchemy import Connection, Table

from ledger import events as e
from ledger.verdict import Verdict
from projections import base
from projections import excerpts as x
from projections.fold import Rows, Tally
from projections.health import BAD, GOOD, SPOILING, batch_mark, probe_mark
from projections.judgements import Judgements
from projections.schema import Tables


class Nodes(base.Projection):
    name = "nodes"
    version = 2
    ignores = base.EVERY - base.NODE - base.DELIVERY

    def __init__(self, tables: Tables) -> None:
        self._nodes = Rows(tables.nodes)
        self._verdicts = Tally(tables.node_verdicts)
        self._probed_ok = self._nodes.changer("probes_ok", "recent_probes", "last_position", "last_seen_us")
        self._probed_bad = self._nodes.changer("probes_bad", "recent_probes", "last_position")
        self._batch_sent = self._nodes.changer("recent_batches", "last_seen_us")
        self._served: Judgements[bytes] = Judgements()
        self.use(
            [self._nodes, self._verdicts],
            {
                e.NodeJoined: self._joined,
                e.NodeMoved: self._moved,
                e.NodeSeenAt: self._moved,
                e.NodeWentOnline: self._went_online,
                e.NodeWentOffline: self._went_offline,
                e.NodeProbed: self._probed,
                e.NodeSuspended: self._suspended,
                e.NodeReinstated: self._reinstated,
                e.NodeRetired: self._retired,
                e.ReceiptsRefused: self._receipts_refused,
                e.SegmentsServed: self._segments_served,
            },
        )

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        return (tables.nodes, tables.node_verdicts)

    def flush(self, connection: Connection) -> None:
        for total in self._served.totals():
            self._add(
                total.group,
                total.verdict,
                total.cap,
                total.last_position,
                receipts=total.receipts,
                units=total.units,
                credited_bytes=total.credited_bytes,
            )
        self._served.clear()
        super().flush(connection)

    def discard(self) -> None:
        self._served.clear()
        super().discard()

    def _joined(self, event: x.NodeJoined, position: int) -> None:
        self._nodes.make(
            event.originator_id,
            friend_id=event.friend_id,
            joined_us=event.at_us,
            presence="joined",
            standing="active",
            standing_reason="",
            last_position=position,
            last_seen_us=event.at_us,
        )

    def _moved(self, event: x.NodeMoved | x.NodeSeenAt, position: int) -> None:
        self._seen(event.originator_id, event, position)

    def _went_online(self, event: x.NodeWentOnline, position: int) -> None:
        self._nodes.change(event.originator_id, presence="online")
        self._seen(event.originator_id, event, position)

    def _went_offline(self, event: x.NodeWentOffline, position: int) -> None:
        self._nodes.change(event.originator_id, presence="offline", last_position=position)

    def _probed(self, event: x.NodeProbed, position: int) -> None:
        mark = probe_mark(event.outcome)
        if event.outcome == "ok":
            self._probed_ok(event.originator_id, 1, mark, position, event.at_us)
        else:
            self._probed_bad(event.originator_id, 1, mark, position)

    def _suspended(self, event: x.NodeSuspended, position: int) -> None:
        self._stands(event.originator_id, "suspended", event.reason, position)

    def _reinstated(self, event: x.NodeReinstated, position: int) -> None:
        self._stands(event.originator_id, "active", "", position)

    def _retired(self, event: x.NodeRetired, position: int) -> None:
        self._stands(event.originator_id, "retired", event.reason, position)

    def _receipts_refused(self, event: x.ReceiptsRefused, position: int) -> None:
        for j in event.judged:
            self._add(
                event.originator_id,
                j.verdict,
                j.cap,
                position,
                receipts=1,
                units=j.units,
                credited_bytes=j.credited_bytes,
            )
        if event.batch_header:
            spoiled = any(j.verdict in SPOILING for j in event.judged)
            self._nodes.change(event.originator_id, recent_batches=BAD if spoiled else GOOD)

    def _segments_served(self, event: x.SegmentsServed, position: int) -> None:
        self._served.add(event.node_id, event, position)
        # What a viewer sends to the hub itself says nothing about the node's care.
        if event.batch_header:
            self._batch_sent(event.node_id, batch_mark(event.verdicts), event.at_us)

    def _add(
        self,
        node_id: bytes,
        verdict: str,
        cap: str,
        position: int,
        *,
        receipts: int,
        units: int,
        credited_bytes: int,
    ) -> None:
        accepted = verdict == Verdict.ACCEPTED
        self._nodes.change(
            node_id,
            receipts_accepted=receipts if accepted else 0,
            receipts_refused=0 if accepted else receipts,
            credited_units=units,
            credited_bytes=credited_bytes,
            last_position=position,
        )
        self._verdicts.change(node_id, verdict, cap, receipts=receipts)

    def _stands(self, node_id: bytes, standing: str, reason: str, position: int) -> None:
        self._nodes.change(node_id, standing=standing, standing_reason=reason, last_position=position)

    def _seen(self, node_id: bytes, event: x.Excerpt, position: int) -> None:
        self._nodes.change(node_id, last_seen_us=event.at_us, last_position=position)
