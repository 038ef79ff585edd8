"""Deliveries, judged again: every ticket, every batch, every receipt, by the rules and facts of the log alone.

Invariant: a verdict that passes is the one `ledger.judge` gives on the log's own facts. Two things are taken as
recorded: whether the digest matched (only the hub had the bytes) and the time at which the hub judged.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np

from ledger import claims as told
from ledger.audit import columns
from ledger.audit.batches import Batches
from ledger.audit.credits import Credits
from ledger.audit.crew import Crew, failing_at, present, require
from ledger.audit.dues import Dues, Fact
from ledger.audit.facts import Broadcast, Facts, TicketFields, ticket_fields
from ledger.audit.facts import Session as KnownSession
from ledger.audit.facts import Ticket as KnownTicket
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.signatures import Signatures
from ledger.audit.singles import Singles, Some, same, split
from ledger.audit.store import Store
from ledger.checks import Check, Receipts, Signed
from ledger.events import (
    BroadcastStarted,
    NodeProbed,
    ReceiptsRefused,
    SegmentsPublished,
    SegmentsServed,
    SessionObserved,
    SessionOpened,
    TicketIssued,
)
from ledger.ids import delivery_id, ticket_record_id
from ledger.judge import parse_receipt
from ledger.judged import VERDICT_CODES, Judged, in_order
from ledger.keys import PUBLIC_KEY_BYTES
from ledger.receipt import SIGNED_BYTES
from ledger.served import NETWORK_BYTES, Delivery
from ledger.settings import Settings
from ledger.ticket import BODY_BYTES as TICKET_BODY_BYTES
from ledger.ticket import DOMAIN as TICKET_DOMAIN
from ledger.ticket import ViewerClass
from ledger.verdict import Verdict

IN_COLUMNS: Final = 12  # receipts from which on columns are faster
_FEW: Final = 1 << 48  # bytes; sums of so many receipts' are exact
_ACCEPTED = VERDICT_CODES[Verdict.ACCEPTED.value]
_WRONG_NODE, _BAD_SIGNATURE = (
    VERDICT_CODES[Verdict.WRONG_NODE.value],
    VERDICT_CODES[Verdict.BAD_SIGNATURE.value],
)

# A receipt that a viewer sends itself is judged for the node that its ticket names, once its signature holds.
_NEVER_ALONE: Final = (_WRONG_NODE, _BAD_SIGNATURE)


@dataclass(slots=True)
class _Wait:
    """Deliveries of one broadcast that are judged together."""

    broadcast: Broadcast
    served: list[columns.Served] = field(default_factory=list)


class _Done(NamedTuple):
    """What follows from those that were judged, in any order."""

    facts: list[Fact]
    checks: list[tuple[int, str, Check]]


class Deliveries:
    def __init__(
        self,
        crew: Crew,
        signatures: Signatures,
        dues: Dues,
        facts: Facts,
        store: Store,
        counts: Counts,
        in_columns: int = IN_COLUMNS,
    ) -> None:
        self._crew = crew
        self._signatures = signatures
        self._dues = dues
        self._counts = counts
        self._facts = facts
        self._credits = Credits(store, self._facts)
        self._singles = Singles(crew, facts, dues, self._credits, counts)
        self._batches = Batches(crew, store, counts, self.sign, signatures.verify)
        self._in_columns = in_columns
        self._waiting: dict[bytes, _Wait] = {}  # by broadcast: nobody has credits in two
        self._waiting_count = 0  # receipts
        self._held: list[tuple[int, str, Check]] = []  # signatures that were met meanwhile

    def finish(self) -> None:
        """Every receipt that a node signed for in a batch has its verdict."""
        self._batches.finish()

    # --- broadcasts, sessions, tickets

    def broadcast_started(self, event: BroadcastStarted) -> None:
        key = event.originator_id.bytes
        require(self._facts.broadcast(key) is None, "the broadcast started before")
        self._facts.start_broadcast(key, event.stream_id, event.rendition_id, event.first_sequence)
        self._facts.broadcast_of.put(delivery_id(event.originator_id).bytes, key)

    def segments_published(self, event: SegmentsPublished) -> None:
        broadcast = self._broadcast(event.originator_id)
        if not self._dues.goes_on(event):
            self.settle()
        require(event.rendition_id == broadcast.rendition_id, "segments of another rendition")
        for segment in event.segments:
            expected = broadcast.manifest.next
            if segment.sequence != expected:
                raise AuditFailure(f"segment {expected} should be next")
            require(segment.segment_bytes >= 0, "a segment has a negative size")
            broadcast.manifest.append(segment.segment_bytes)
        broadcast.mark(event.at_us)
        self._facts.changed(broadcast)
        self._dues.published(event)

    def session_opened(self, position: int, event: SessionOpened) -> None:
        require(event.session_id == event.originator_id, "the session's id is not its own")
        key, account = event.session_id.bytes, event.account_id
        require(key not in self._facts.sessions, "the session was opened before")
        kind, key_bytes = event.viewer_class, len(event.viewer_key)
        right = (kind, key_bytes) in ((ViewerClass.SIGNING, PUBLIC_KEY_BYTES), (ViewerClass.PLAIN, 0))
        require(right, "a viewer who signs has a key, and no other has")
        require(len(event.prefix_commitment) in (0, NETWORK_BYTES), "no commitment has that length")
        self._facts.sessions.put(
            key,
            KnownSession(
                event.stream_id.bytes,
                event.viewer_class,
                event.viewer_key,
                event.prefix_commitment,
                account.bytes if account is not None else b"",
                position,
            ),
        )

    def session_observed(self, position: int, event: SessionObserved) -> None:
        require(event.session_id == event.originator_id, "the session's id is not its own")
        known = self._facts.sessions.get(event.session_id.bytes)
        opened = known is not None and known.position < position
        require(opened, "an observation of a session that was never opened")
        self._dues.states(position, event.at_us)
        self._dues.observed(position, event)

    def node_probed(self, position: int, event: NodeProbed) -> None:
        """Whoever signs for what arrived is a viewer, whatever the hub says."""
        if event.session_id is not None:
            session = self._facts.sessions.get(event.session_id.bytes)
            opened = session if session is not None and session.position < position else None
            known = present(opened, "a spot check as a session that was never opened")
            require(known.viewer_class == ViewerClass.PLAIN, "a spot check as a viewer who signs")
        self._dues.probed(position, event)

    def ticket_issued(self, position: int, event: TicketIssued) -> None:
        data = event.ticket
        fields = ticket_fields(data)
        body, signature = data[:TICKET_BODY_BYTES], data[TICKET_BODY_BYTES:]
        hash_ = hashlib.sha256(TICKET_DOMAIN + body).digest()
        require(event.originator_id == ticket_record_id(hash_), "the record's id is not its ticket's")
        record = event.originator_id.bytes
        require(record not in self._facts.tickets, "the ticket was issued before")
        broadcast = self._broadcast(event.broadcast_id)
        session = present(
            self._facts.sessions.get(fields.session), "a ticket for a session that was never opened"
        )
        require(fields.session == event.session_id.bytes, "the ticket is for another session")
        stream = broadcast.stream_id
        require(
            fields.stream == session.stream_id and fields.stream == stream.bytes,
            "the ticket is for another stream",
        )
        require(fields.rendition == broadcast.rendition_id.bytes, "the ticket is for another rendition")
        require(fields.viewer_class == session.viewer_class, "the ticket is for another class of viewer")
        node = self._crew.node(event.node_id)
        require(fields.node_key == node.now.public_key, "the ticket is for another node")
        plain = fields.viewer_class == ViewerClass.PLAIN
        viewer_key = fields.node_key if plain else session.viewer_key
        require(fields.viewer_key == viewer_key, "the ticket is for another viewer")
        log_us = self._crew.log_us(position)
        within = any(
            _within(fields, s, event.at_us) for s in self._crew.settings.in_force(event.at_us, log_us)
        )
        require(within, "the ticket does not promise what the settings in force do")
        key = self._crew.ticket_key(fields.hub_key_id, event.at_us)
        self.sign(position, "the ticket", Signed(key, TICKET_DOMAIN, body, signature))
        self._counts.tickets += 1
        pool = self._dues.issued(
            stream_id=stream,
            node_id=event.node_id,
            friend_id=node.now.friend_id,
            at_us=event.at_us,
            settle_by_s=fields.settle_by_s,
        )
        if plain:
            self._dues.issued_plain(
                fields.session,
                first=fields.first,
                last=fields.last,
                settle_by_s=fields.settle_by_s,
                pool=pool,
                position=position,
            )
        self._facts.tickets.put(record, KnownTicket(body, broadcast.key, position, pool))

    def _broadcast(self, broadcast_id: UUID) -> Broadcast:
        known = self._facts.broadcast(broadcast_id.bytes)
        if known is None:
            raise AuditFailure(f"broadcast {broadcast_id} never started")
        return known

    # --- receipts

    def receipts_refused(self, position: int, event: ReceiptsRefused) -> None:
        """Only what leads to no broadcast may be refused here."""
        require(
            len(event.receipts) == len(event.judged) * SIGNED_BYTES
            and len(event.indices) == len(event.judged),
            "receipts and verdicts differ in number",
        )
        require(bool(event.batch_header), "the hub records no such receipt by itself")
        self._batches.collect(position, event, event.originator_id)
        for data, judged in zip(split(event.receipts), event.judged, strict=True):
            signed = parse_receipt(data)
            known = self._singles.ticket(signed.receipt.ticket_hash) if signed is not None else None
            issued = known is not None and known.position < position
            require(not issued, "a receipt was refused whose ticket was issued")
            verdict = Verdict.MALFORMED if signed is None else Verdict.UNKNOWN_TICKET
            same(judged, Judged(verdict.value))

    def segments_served(
        self, position: int, event: SegmentsServed | Delivery, found: told.Told | None = None
    ) -> None:
        """`found` is what ledger.claims gives, where that is known."""
        key = present(
            self._facts.broadcast_of.get(event.originator_id.bytes),
            "a delivery of a broadcast that never started",
        )
        broadcast = present(self._facts.broadcast(key), "a delivery of a broadcast that never started")
        node, settings = self._crew.node(event.node_id).now, self._crew.settings.now
        self._dues.states(position, event.at_us)
        count, limit = len(event.indices), event.network_limit
        together = settings.prefix_sessions_max == limit
        wait = self._waiting.get(key)
        if not together or self._waiting_count >= columns.TOGETHER:
            self.settle()
            wait = None
        if together:  # signatures are held back from here on
            wait = wait or self._waiting.setdefault(key, _Wait(broadcast))
            self._waiting_count += count
        require(_in_order(event), "sessions or networks do not stand once each, as they are first met")
        self._batches.collect(position, event, event.node_id)
        if not event.batch_header:
            require(
                _first_verdict(event, found) not in _NEVER_ALONE, "the hub records no such receipt by itself"
            )
        then = broadcast.now()
        if wait is None:
            facts: list[Fact] = []
            check = self._singles.judge(position, _whole(event), broadcast, then, facts)
            self._dues.add(facts)
            if check is not None:
                self._signatures.add(position, "a receipt", check)
            return
        if found is None:
            found = told.told_by(_whole(event))
        wait.served.append(columns.Served(position, event, node, found, then))

    # --- in columns

    def settle(self) -> None:
        """Judge the deliveries that wait. Raises AuditFailure with the position of the first that fails."""
        waiting, held = self._waiting, self._held
        if not waiting:
            return
        self._waiting, self._held, self._waiting_count = {}, [], 0
        done = _Done([], [])
        failure: AuditFailure | None = None
        for wait in waiting.values():
            try:
                self._settle(wait, done)
            except AuditFailure as e:
                if failure is None or e.comes_before(failure):
                    failure = e
        self._dues.add(sorted(done.facts, key=lambda fact: fact.position))
        for check in sorted(held + done.checks, key=lambda check: check[0]):
            try:
                self._signatures.add(*check)
            except AuditFailure as e:
                if failure is None or e.comes_before(failure):
                    raise
        if failure is not None:
            raise failure

    def _settle(self, wait: _Wait, done: _Done) -> None:
        few = sum(len(one.event.indices) for one in wait.served) < self._in_columns
        if not wait.served or (not few and self._judged_in_columns(wait.served, wait.broadcast, done)):
            return
        for some in _once(wait.served):
            tried = len(some) in (1, len(wait.served))  # or is in the next step
            if few or tried or not self._judged_in_columns(some, wait.broadcast, done):
                self._settle_each(some, wait.broadcast, done)

    def _settle_each(self, served: list[columns.Served], broadcast: Broadcast, done: _Done) -> None:
        for one in served:
            with failing_at(one.position):
                few = len(one.event.indices) < self._in_columns
                if few or not self._judged_in_columns([one], broadcast, done):
                    check = self._singles.judge(
                        one.position, _whole(one.event), broadcast, one.then, done.facts
                    )
                    if check is not None:
                        done.checks.append((one.position, "a receipt", check))

    def _judged_in_columns(self, served: list[columns.Served], broadcast: Broadcast, done: _Done) -> bool:
        def judge_rest(which: list[list[int]]) -> bool:
            some = [
                Some(s.position, _whole(s.event), s.node, s.then, at)
                for s, at in zip(served, which, strict=True)
                if at
            ]
            return self._singles.judge_some(some, broadcast)

        found = columns.judge(self._credits, broadcast, served, self._crew.settings.now, judge_rest)
        if found is None:
            return False
        self._take(served, broadcast, found, done)
        return True

    def _take(
        self,
        served: list[columns.Served],
        broadcast: Broadcast,
        found: columns.Columns,
        done: _Done,
    ) -> None:
        """What follows from events whose verdicts hold."""
        verdicts, sizes = found.claims[told.VERDICT], found.claims[told.SIZE]
        accepted = verdicts == _ACCEPTED
        self._counts.accepted += int(np.count_nonzero(accepted))
        exact = not len(sizes) or int(sizes.max()) < _FEW
        self._counts.credited_bytes += int(sizes.sum()) if exact else sum(sizes.tolist())
        done.facts.extend(self._dues.served_columns(served, broadcast, found, accepted))
        if not self._signatures.verify:
            return
        refused_ = (verdicts == _BAD_SIGNATURE).astype(np.uint8)
        mine = verdicts != _WRONG_NODE
        for n, (position, event, *_) in enumerate(served):
            which = np.flatnonzero(mine & (found.of == n))
            receipts = event.receipts
            if len(which) < len(event.indices):
                first = int(np.searchsorted(found.of, n))
                receipts = np.frombuffer(receipts, told.RECEIPT)[which - first].tobytes()
            if len(which):
                keys = self._credits.tickets.viewer_keys[found.places[which]].tobytes()
                check = Receipts(keys, receipts, refused_[which].tobytes())
                done.checks.append((position, "a receipt", check))

    # --- signatures

    def sign(self, position: int, what: str, check: Check) -> None:
        """Checks are made in the order of positions: while deliveries wait, so do these."""
        if not self._signatures.verify:
            return
        if self._waiting:
            self._held.append((position, what, check))
        else:
            self._signatures.add(position, what, check)


def _once(served: list[columns.Served]) -> list[list[columns.Served]]:
    """In parts in which no node sends twice: what is odd about one is not to cost the others much."""
    parts: list[list[columns.Served]] = []
    nodes: set[UUID] = set()
    for one in served:
        if not parts or one.event.node_id in nodes:
            parts.append([])
            nodes.clear()
        parts[-1].append(one)
        nodes.add(one.event.node_id)
    return parts


def _within(ticket: TicketFields, settings: Settings, at_us: int) -> bool:
    """Whether it promises what the settings do. Less of these would be refused to a node that has served."""
    return (
        ticket.last - ticket.first < settings.ticket_segments
        and ticket.settle_by_s == at_us // 1_000_000 + settings.settle_by_s
        and ticket.byte_budget == settings.ticket_bytes_max
    )


def _in_order(event: SegmentsServed | Delivery) -> bool:
    if isinstance(event, Delivery):
        return event.in_order
    return in_order(event.sessions, event.session_of, event.networks, event.network_of)


def _first_verdict(event: SegmentsServed | Delivery, found: told.Told | None) -> int:
    if found is not None and found.begin < found.end:
        return int(found.claims.between(found.begin, found.end)[told.VERDICT, 0])
    return _whole(event).verdicts[0]


def _whole(event: SegmentsServed | Delivery) -> SegmentsServed:
    return event.whole() if isinstance(event, Delivery) else event
