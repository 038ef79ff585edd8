"""Deliveries, judged again: every ticket, every batch, every receipt, by the rules and facts of the log alone.

Invariant: a verdict that passes is the one `ledger.judge` gives on the log's own facts. Two things are taken as
recorded: whether the digest matched (only the hub had the bytes) and the time at which the hub judged.
"""

import hashlib
import struct
from itertools import product
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import numpy as np

from ledger import claims as told
from ledger.audit import columns
from ledger.audit import credits as c
from ledger.audit.credits import Credits
from ledger.audit.crew import Crew, failing_at, present, require
from ledger.audit.dues import Due, Dues
from ledger.audit.facts import Broadcast, Facts, Ints, TicketFields, struct_table, ticket_fields
from ledger.audit.facts import Session as KnownSession
from ledger.audit.facts import Ticket as KnownTicket
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.signatures import Signatures
from ledger.audit.store import Store
from ledger.batch import BODY_BYTES as BATCH_BODY_BYTES
from ledger.batch import DOMAINS as BATCH_DOMAINS
from ledger.batch import HEADER_BYTES
from ledger.checks import Check, Contents, Receipts, Signed
from ledger.credit import CreditSet, Units
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
from ledger.judge import Manifest, NodeFacts, SessionFacts, judge_signed, parse_receipt, refused
from ledger.judged import VERDICT_CODES, Judged
from ledger.receipt import MAX_BASE_SEQUENCE, SIGNED_BYTES
from ledger.receipt import VERSION as RECEIPT_VERSION
from ledger.settings import Settings
from ledger.ticket import BODY_BYTES as TICKET_BODY_BYTES
from ledger.ticket import DOMAIN as TICKET_DOMAIN
from ledger.ticket import Ticket, ViewerClass
from ledger.verdict import Verdict

IN_COLUMNS: Final = 12  # receipts from which on columns are faster
# ledger.batch: version, node key, window, count, digest of the receipts
_HEADER: Final = struct.Struct(">B32sQQH32s")
_RECEIPT: Final = struct.Struct(
    ">B32sIQ64s32s"
)  # ledger.receipt: version, ticket, counter, base, bitmap, digest
_ACCEPTED, _WRONG_NODE = Verdict.ACCEPTED.value, Verdict.WRONG_NODE.value
_BAD_SIGNATURE, _DIGEST_MISMATCH = Verdict.BAD_SIGNATURE.value, Verdict.DIGEST_MISMATCH.value
_ASCENDING: Final = bytes(range(256))


class _Batch(msgspec.Struct, array_like=True):
    """The receipts of a batch as they are met in the log, until all are there."""

    position: int
    signed: bytes  # SHA-256 of the signature that was verified
    receipts: dict[int, bytes] = {}


class _Receipt(NamedTuple):
    """The fields of ledger.receipt.Receipt, as they are met in great numbers; `data` is the signed receipt."""

    ticket_hash: bytes
    base_sequence: int
    bitmap: bytes
    digest: bytes
    data: bytes


class _Claim(NamedTuple):
    receipt: _Receipt
    known: KnownTicket
    ticket: Ticket
    session: SessionFacts
    judged: Judged


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
        self._batches = struct_table(store, b"B", _Batch, 256)
        # Of batches that are all there: their bodies' hashes, and those of their signatures.
        self._complete = store.table(b"k", bytes, bytes, 65_536)
        self._in_columns = in_columns
        self._waiting: list[columns.Served] = []  # deliveries of one broadcast that are judged together
        self._waiting_count = 0  # receipts
        self._of: Broadcast | None = None  # that broadcast
        self._held: list[tuple[int, str, Check]] = []  # signatures that were met meanwhile

    def finish(self) -> None:
        """Every receipt that a node signed for in a batch has its verdict."""
        first = min((batch.position for _, batch in self._batches.items()), default=None)
        if first is not None:
            raise AuditFailure("receipts of this batch have no verdict", position=first)

    # --- broadcasts, sessions, tickets

    def broadcast_started(self, event: BroadcastStarted) -> None:
        key = event.originator_id.bytes
        require(self._facts.broadcast(key) is None, "the broadcast started before")
        self._facts.start_broadcast(key, event.stream_id, event.rendition_id, event.first_sequence)
        self._facts.broadcast_of.put(delivery_id(event.originator_id).bytes, key)

    def segments_published(self, event: SegmentsPublished) -> None:
        broadcast = self._broadcast(event.originator_id)
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
        within = any(_within(fields, s, event.at_us) for s in self._crew.settings.in_force(event.at_us))
        require(within, "the ticket promises more than the settings in force allow")
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

    def _ticket(self, hash_: bytes) -> KnownTicket | None:
        return self._facts.tickets.get(ticket_record_id(hash_).bytes)

    # --- receipts

    def receipts_refused(self, position: int, event: ReceiptsRefused) -> None:
        """Only what leads to no broadcast may be refused here."""
        require(
            len(event.receipts) == len(event.judged) * SIGNED_BYTES
            and len(event.indices) == len(event.judged),
            "receipts and verdicts differ in number",
        )
        self._collect(position, event, event.originator_id)
        for data, judged in zip(_split(event.receipts), event.judged, strict=True):
            signed = parse_receipt(data)
            known = self._ticket(signed.receipt.ticket_hash) if signed is not None else None
            issued = known is not None and known.position < position
            require(not issued, "a receipt was refused whose ticket was issued")
            verdict = Verdict.MALFORMED if signed is None else Verdict.UNKNOWN_TICKET
            _same(judged, Judged(verdict.value))

    def segments_served(self, position: int, event: SegmentsServed, found: Ints | None = None) -> None:
        """`found` is what ledger.claims gives, where that is known."""
        key = present(
            self._facts.broadcast_of.get(event.originator_id.bytes),
            "a delivery of a broadcast that never started",
        )
        broadcast = present(self._facts.broadcast(key), "a delivery of a broadcast that never started")
        node, settings = self._crew.node(event.node_id).now, self._crew.settings.now
        count, limit = len(event.indices), event.network_limit
        together = settings.prefix_sessions_max == limit
        if not together or self._waiting_count >= columns.TOGETHER or broadcast is not self._of:
            self.settle()
        if together:
            self._of, self._waiting_count = broadcast, self._waiting_count + count
        self._collect(position, event, event.node_id)
        if together:
            if found is None:
                found = told.claims([event])[0]
            self._waiting.append(columns.Served(position, event, node, found))
        if not together:
            self._judged_one_by_one(position, event, broadcast)

    # --- in columns

    def settle(self) -> None:
        """Judge the deliveries that wait. Raises AuditFailure with the position of the first that fails."""
        waiting, broadcast, held = self._waiting, self._of, self._held
        if broadcast is None:
            return
        few = self._waiting_count < self._in_columns
        self._waiting, self._of, self._held, self._waiting_count = [], None, [], 0
        checks: list[tuple[int, str, Check]] = []
        failure = None
        try:
            if waiting and (few or not self._judged_in_columns(waiting, broadcast, checks)):
                for one in waiting:
                    with failing_at(one.position):
                        few = len(one.event.indices) < self._in_columns
                        if few or not self._judged_in_columns([one], broadcast, checks):
                            self._judged_one_by_one(one.position, one.event, broadcast, checks)
        except AuditFailure as e:
            failure = e
        for check in sorted(held + checks, key=lambda check: check[0]):
            try:
                self._signatures.add(*check)
            except AuditFailure as e:
                if failure is None or e.comes_before(failure):
                    raise
        if failure is not None:
            raise failure

    def _judged_in_columns(
        self, served: list[columns.Served], broadcast: Broadcast, checks: list[tuple[int, str, Check]]
    ) -> bool:
        settings = self._crew.settings.now

        def judge_rest(which: list[list[int]]) -> bool:
            try:
                claims = [
                    [
                        self._claim(s.position, _nth(s.event.receipts, i), s.event.judged[i], broadcast)
                        for i in some
                    ]
                    for s, some in zip(served, which, strict=True)
                ]
                scratch = self._scratch(broadcast, [x for some in claims for x in some])
                units = [
                    _judge_all(
                        bytes([s.event.indices[i] for i in at]),
                        s.event.at_us,
                        scratch,
                        some,
                        s.node,
                        settings,
                        broadcast.manifest,
                    )
                    for s, at, some in zip(served, which, claims, strict=True)
                ]
            except AuditFailure:
                return False
            for some, fresh in zip(claims, units, strict=True):
                self._credit(broadcast, some, fresh)
            return True

        found = columns.judge(self._credits, broadcast, served, settings, judge_rest)
        if found is None:
            return False
        self._take(served, broadcast, found, checks)
        return True

    def _take(
        self,
        served: list[columns.Served],
        broadcast: Broadcast,
        found: columns.Columns,
        checks: list[tuple[int, str, Check]],
    ) -> None:
        """What follows from events whose verdicts hold."""
        verdicts, sizes = found.claims[told.VERDICT], found.claims[told.SIZE]
        accepted = verdicts == VERDICT_CODES[_ACCEPTED]
        self._counts.accepted += int(np.count_nonzero(accepted))
        self._counts.credited_bytes += sum(sizes.tolist())
        self._dues.served_columns(served, broadcast, found, accepted)
        if not self._signatures.verify:
            return
        refused_ = (verdicts == VERDICT_CODES[_BAD_SIGNATURE]).astype(np.uint8)
        mine = verdicts != VERDICT_CODES[_WRONG_NODE]
        for n, (position, event, _, _) in enumerate(served):
            which = np.flatnonzero(mine & (found.of == n))
            receipts = event.receipts
            if len(which) < len(event.indices):
                first = int(np.searchsorted(found.of, n))
                receipts = np.frombuffer(receipts, told.RECEIPT)[which - first].tobytes()
            if len(which):
                keys = self._credits.tickets.viewer_keys[found.places[which]].tobytes()
                check = Receipts(keys, receipts, refused_[which].tobytes())
                checks.append((position, "a receipt", check))

    # --- one by one

    def _judged_one_by_one(
        self,
        position: int,
        event: SegmentsServed,
        broadcast: Broadcast,
        checks: list[tuple[int, str, Check]] | None = None,
    ) -> None:
        claims = [
            self._claim(position, data, judged, broadcast)
            for data, judged in zip(_split(event.receipts), event.judged, strict=True)
        ]
        sessions = [x.ticket.session_id.int for x in claims]  # comparing UUIDs is slow
        require([s.int for s in event.session_ids] == sessions, "sessions are not the tickets'")
        networks = tuple([x.session.network for x in claims])
        require(event.viewer_networks == networks, "networks are not the sessions'")
        require(event.first_sequence == broadcast.manifest.first, "the first sequence is not the broadcast's")
        self._credit(broadcast, claims, self._judge_again(event, broadcast, claims))
        dues = []
        for i, (receipt, known, ticket, _, judged) in enumerate(claims):
            self._counts.accepted += judged.verdict == _ACCEPTED
            self._counts.credited_bytes += judged.credited_bytes
            if judged.verdict == _ACCEPTED:
                dues.append(
                    Due(
                        receipt=i,
                        pool=known.pool,
                        plain=ticket.viewer_class is ViewerClass.PLAIN,
                        issued=known.position,
                        settle_by_us=ticket.settle_by_s * 1_000_000,
                        newest=receipt.base_sequence
                        + int.from_bytes(receipt.bitmap, "little").bit_length()
                        - 1,
                        units=judged.units,
                        credited_bytes=judged.credited_bytes,
                    )
                )
        self._dues.served(position, event.at_us, broadcast.rendition_id.bytes, dues)
        signed = [x for x in claims if x.judged.verdict != _WRONG_NODE]
        if not signed:
            return
        check = Receipts(
            b"".join([x.ticket.viewer_key for x in signed]),
            b"".join([x.receipt.data for x in signed]),
            bytes([x.judged.verdict == _BAD_SIGNATURE for x in signed]),
        )
        if checks is None:
            self._signatures.add(position, "a receipt", check)
        else:
            checks.append((position, "a receipt", check))

    def _claim(self, position: int, data: bytes, judged: Judged, broadcast: Broadcast) -> _Claim:
        receipt = _parsed(data)
        known = self._ticket(receipt.ticket_hash)
        if known is None or known.position >= position:
            raise AuditFailure("a receipt for a ticket that was never issued")
        if known.broadcast != broadcast.key:
            raise AuditFailure("a receipt for a ticket of another broadcast")
        ticket = Ticket.decode_body(known.body)
        session = self._facts.sessions.get(ticket.session_id.bytes)
        assert session is not None
        return _Claim(receipt, known, ticket, session.facts, judged)

    def _scratch(self, broadcast: Broadcast, claims: list[_Claim]) -> c.Scratch:
        return self._credits.scratch(broadcast, [(x.ticket, x.session.network) for x in claims])

    def _credit(self, broadcast: Broadcast, claims: list[_Claim], units: list[Units]) -> None:
        for claim, fresh in zip(claims, units, strict=True):
            if fresh:
                self._credits.credit(claim.ticket.session_id, claim.session.network, broadcast, fresh)

    def _judge_again(self, event: SegmentsServed, broadcast: Broadcast, claims: list[_Claim]) -> list[Units]:
        """What to credit, when some state that the hub may have seen leads to the recorded verdicts."""
        settings = [
            s
            for s in self._crew.settings.in_force(event.at_us)
            if s.prefix_sessions_max == event.network_limit
        ]
        require(bool(settings), "the network limit is not the one in force")
        failure: AuditFailure | None = None
        nodes = self._crew.node(event.node_id)
        scratch = self._scratch(broadcast, claims)
        for manifest in broadcast.manifests(event.at_us):
            for node, rules in product(nodes.in_force(event.at_us), settings):
                try:
                    return _judge_all(
                        event.indices, event.at_us, scratch.copy(), claims, node, rules, manifest
                    )
                except AuditFailure as e:
                    failure = failure or e
        raise present(failure, "nothing was judged")

    # --- batches

    def sign(self, position: int, what: str, check: Check) -> None:
        """Checks are made in the order of positions: while deliveries wait, so do these."""
        if not self._signatures.verify:
            return
        if self._of is not None:
            self._held.append((position, what, check))
        else:
            self._signatures.add(position, what, check)

    def _collect(self, position: int, event: SegmentsServed | ReceiptsRefused, nid: UUID) -> None:
        """Hold the event's receipts against the header of the batch they came in.

        A batch may stand in several events, one for each broadcast; together they are what the node signed.
        """
        header, indices = event.batch_header, event.indices
        self._counts.receipts += len(indices)
        node = self._crew.node(nid)
        if not header:
            require(tuple(indices) == (0,), "a receipt outside a batch comes alone")
            return
        require(len(header) == HEADER_BYTES, "a batch header has another length")
        whole = indices == _ASCENDING[: len(indices)]
        if not whole:
            require(list(indices) == sorted(set(indices)), "the batch's indices are not ascending")
        body, signature = header[:BATCH_BODY_BYTES], header[BATCH_BODY_BYTES:]
        version, node_key, _, _, count, digest = _HEADER.unpack(body)
        require(version in BATCH_DOMAINS, f"a batch of version {version}")
        require(node_key == node.now.public_key, "the batch is another node's")
        name, signed = hashlib.sha256(body).digest(), hashlib.sha256(signature).digest()
        complete, batch = self._complete.get(name), self._batches.get(name)
        if signed != (batch.signed if batch is not None else complete):
            self.sign(position, "the batch", Signed(node_key, BATCH_DOMAINS[version], body, signature))
        if complete is not None:
            return  # sent again after the hub had forgotten it: judged again, receipt by receipt
        known = batch.receipts if batch is not None else {}
        if not whole or known or len(indices) > count:
            for index in indices:
                require(index < count and index not in known, "the batch has no such receipt to judge")
        receipts: bytes | None = event.receipts if whole and len(indices) == count else None
        if receipts is None:
            known |= dict(zip(indices, _split(event.receipts), strict=True))
            if len(known) == count:
                receipts = b"".join([data for _, data in sorted(known.items())])
        if receipts is not None:
            self.sign(position, "the batch", Contents(version, digest, receipts))
        if batch is None:
            self._counts.batches += 1
        if receipts is not None:
            self._complete.put(name, signed)
            if batch is not None:
                self._batches.remove(name)
        else:
            self._batches.put(name, batch or _Batch(position, signed, known))


def _judge_all(
    indices: bytes,
    at_us: int,
    credits: CreditSet,
    claims: list[_Claim],
    node: NodeFacts,
    settings: Settings,
    manifest: Manifest,
) -> list[Units]:
    """What to credit to each, when all verdicts are as recorded. Raises AuditFailure. Uses up `credits`."""
    credited = []
    for index, (receipt, _, ticket, session, judged) in zip(indices, claims, strict=True):
        if ticket.node_key != node.public_key:
            judgement = refused(Verdict.WRONG_NODE)
        elif judged.verdict == _BAD_SIGNATURE:  # verified to be one, with all other signatures
            judgement = refused(Verdict.BAD_SIGNATURE)
        else:
            judgement = judge_signed(
                receipt,
                ticket,
                node=node,
                session=session,
                manifest=manifest,
                credits=credits,
                settings=settings,
                digest_of=_wrong_digest if judged.verdict == _DIGEST_MISMATCH else _unknown_digest,
                now_s=at_us // 1_000_000,
            )
        if judged != judgement.judged:
            _same(judged, judgement.judged, f"receipt {index} of the batch: ")
        if judgement.units:
            credits.credit(ticket.session_id, session.network, judgement.units)
        credited.append(judgement.units)
    return credited


def _split(receipts: bytes) -> list[bytes]:
    return [receipts[i : i + SIGNED_BYTES] for i in range(0, len(receipts), SIGNED_BYTES)]


def _nth(receipts: bytes, i: int) -> bytes:
    return receipts[i * SIGNED_BYTES : (i + 1) * SIGNED_BYTES]


def _parsed(data: bytes) -> _Receipt:
    """The receipt, when ledger.receipt would read it."""
    version, ticket_hash, _, base_sequence, bitmap, digest = _RECEIPT.unpack_from(data)
    if version != RECEIPT_VERSION or base_sequence > MAX_BASE_SEQUENCE:
        require(False, "a receipt that cannot be read was judged")
    return _Receipt(ticket_hash, base_sequence, bitmap, digest, data)


def _unknown_digest(nonce: bytes, sequence: int) -> bytes | None:  # noqa: ARG001 - taken to match
    return None


def _wrong_digest(nonce: bytes, sequence: int) -> bytes | None:  # noqa: ARG001 - taken not to match
    return bytes(32)


def _within(ticket: TicketFields, settings: Settings, at_us: int) -> bool:
    return (
        ticket.last - ticket.first < settings.ticket_segments
        and ticket.settle_by_s <= at_us // 1_000_000 + settings.settle_by_s
        and ticket.byte_budget <= settings.ticket_bytes_max
    )


def _same(recorded: Judged, expected: Judged, what: str = "") -> None:
    if recorded != expected:
        raise AuditFailure(f"{what}the verdict is {_text(recorded)}, but the rules give {_text(expected)}")


def _text(judged: Judged) -> str:
    cap = f" ({judged.cap})" if judged.cap else ""
    return f"{judged.verdict}{cap} with {judged.units} segments and {judged.credited_bytes} bytes"
