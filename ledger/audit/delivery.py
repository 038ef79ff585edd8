"""Deliveries, judged again: every ticket, every batch, every receipt, by the rules and facts of the log alone.

Invariant: a verdict that passes is the one `ledger.judge` gives on the log's own facts. Two things are taken as
recorded: whether the digest matched (only the hub had the bytes) and the time at which the hub judged.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple
from uuid import UUID

from ledger import merkle
from ledger.audit.crew import RACE_US, Crew, present, require
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.signatures import Check, Signatures
from ledger.batch import BODY_BYTES as BATCH_BODY_BYTES
from ledger.batch import DOMAIN as BATCH_DOMAIN
from ledger.batch import HEADER_BYTES
from ledger.credit import CreditSet
from ledger.events import (
    BroadcastStarted,
    Judged,
    ReceiptsRefused,
    SegmentsPublished,
    SegmentsServed,
    SessionObserved,
    SessionOpened,
    TicketIssued,
)
from ledger.ids import delivery_id, node_id, ticket_record_id
from ledger.judge import (
    Manifest,
    NodeFacts,
    SessionFacts,
    judge_signed,
    parse_receipt,
    refused,
)
from ledger.receipt import BODY_BYTES as RECEIPT_BODY_BYTES
from ledger.receipt import DOMAIN as RECEIPT_DOMAIN
from ledger.receipt import MAX_BASE_SEQUENCE, SIGNED_BYTES
from ledger.receipt import VERSION as RECEIPT_VERSION
from ledger.settings import Settings
from ledger.ticket import BODY_BYTES as TICKET_BODY_BYTES
from ledger.ticket import DOMAIN as TICKET_DOMAIN
from ledger.ticket import SignedTicket, Ticket, ViewerClass
from ledger.verdict import Verdict

_HEADER: Final = struct.Struct(">B32sQQH32s")  # ledger.batch: version, node key, window, count, Merkle root
_RECEIPT: Final = struct.Struct(
    ">B32sIQ64s32s"
)  # ledger.receipt: version, ticket, counter, base, bitmap, digest
_ACCEPTED, _WRONG_NODE = Verdict.ACCEPTED.value, Verdict.WRONG_NODE.value
_BAD_SIGNATURE, _DIGEST_MISMATCH = Verdict.BAD_SIGNATURE.value, Verdict.DIGEST_MISMATCH.value


@dataclass(slots=True)
class _Broadcast:
    stream_id: UUID
    rendition_id: UUID
    manifest: Manifest
    marks: list[tuple[int, int]] = field(default_factory=list)  # (time of publication, next sequence)
    credits: CreditSet = field(default_factory=CreditSet)

    def manifests(self, at_us: int) -> Iterator[Manifest]:
        """The present manifest, then the shortest that the hub may still have seen at `at_us`."""
        yield self.manifest
        i = bisect_right(self.marks, at_us - RACE_US, key=lambda m: m[0])
        end = self.marks[i - 1][1] if i else self.manifest.first
        if end < self.manifest.next:
            yield self.manifest.before(end)


@dataclass(frozen=True, slots=True)
class _Session:
    stream_id: UUID
    viewer_class: int
    viewer_key: bytes
    facts: SessionFacts


@dataclass(frozen=True, slots=True)
class _Ticket:
    body: bytes
    broadcast: _Broadcast
    session: SessionFacts


@dataclass(slots=True)
class _Batch:
    """The receipts of a batch as they are met in the log, until all are there."""

    position: int
    receipts: dict[int, bytes] = field(default_factory=dict)


class _Receipt(NamedTuple):
    """The fields of ledger.receipt.Receipt, as they are met in great numbers; `data` is the signed receipt."""

    ticket_hash: bytes
    base_sequence: int
    bitmap: bytes
    digest: bytes
    data: bytes


class _Claim(NamedTuple):
    receipt: _Receipt
    ticket: Ticket
    session: SessionFacts
    judged: Judged


class Deliveries:
    def __init__(self, crew: Crew, signatures: Signatures, counts: Counts) -> None:
        self._crew = crew
        self._signatures = signatures
        self._counts = counts
        self._broadcasts: dict[UUID, _Broadcast] = {}
        self._broadcast_of: dict[UUID, UUID] = {}  # delivery -> broadcast
        self._sessions: dict[UUID, _Session] = {}
        self._tickets: dict[bytes, _Ticket] = {}
        self._batches: dict[bytes, _Batch] = {}
        self._complete: set[bytes] = set()

    def finish(self) -> None:
        """Every receipt that a node signed for in a batch has its verdict."""
        for batch in self._batches.values():
            raise AuditFailure("receipts of this batch have no verdict", position=batch.position)

    # --- broadcasts, sessions, tickets

    def broadcast_started(self, event: BroadcastStarted) -> None:
        require(event.originator_id not in self._broadcasts, "the broadcast started before")
        self._broadcasts[event.originator_id] = _Broadcast(
            event.stream_id, event.rendition_id, Manifest(event.first_sequence)
        )
        self._broadcast_of[delivery_id(event.originator_id)] = event.originator_id

    def segments_published(self, event: SegmentsPublished) -> None:
        broadcast = self._broadcast(event.originator_id)
        require(event.rendition_id == broadcast.rendition_id, "segments of another rendition")
        for segment in event.segments:
            expected = broadcast.manifest.next
            require(segment.sequence == expected, f"segment {expected} should be next")
            require(segment.segment_bytes >= 0, "a segment has a negative size")
            broadcast.manifest.append(segment.segment_bytes)
        broadcast.marks.append((event.at_us, broadcast.manifest.next))

    def session_opened(self, event: SessionOpened) -> None:
        require(event.session_id == event.originator_id, "the session's id is not its own")
        require(event.session_id not in self._sessions, "the session was opened before")
        facts = SessionFacts(network=event.prefix_commitment, account_id=event.account_id)
        self._sessions[event.session_id] = _Session(
            event.stream_id, event.viewer_class, event.viewer_key, facts
        )

    def session_observed(self, event: SessionObserved) -> None:
        require(event.session_id == event.originator_id, "the session's id is not its own")
        require(event.session_id in self._sessions, "an observation of a session that was never opened")

    def ticket_issued(self, position: int, event: TicketIssued) -> None:
        signed = SignedTicket.decode(event.ticket)
        ticket = signed.ticket
        require(event.originator_id == ticket_record_id(ticket.hash), "the record's id is not its ticket's")
        require(ticket.hash not in self._tickets, "the ticket was issued before")
        broadcast = self._broadcast(event.broadcast_id)
        session = present(
            self._sessions.get(ticket.session_id), "a ticket for a session that was never opened"
        )
        require(ticket.session_id == event.session_id, "the ticket is for another session")
        require(
            ticket.stream_id == session.stream_id == broadcast.stream_id, "the ticket is for another stream"
        )
        require(ticket.rendition_id == broadcast.rendition_id, "the ticket is for another rendition")
        require(ticket.viewer_class == session.viewer_class, "the ticket is for another class of viewer")
        node = self._crew.node(event.node_id)
        require(ticket.node_key == node.now.public_key, "the ticket is for another node")
        plain = ticket.viewer_class is ViewerClass.PLAIN
        viewer_key = ticket.node_key if plain else session.viewer_key
        require(ticket.viewer_key == viewer_key, "the ticket is for another viewer")
        within = any(_within(ticket, s, event.at_us) for s in self._crew.settings.in_force(event.at_us))
        require(within, "the ticket promises more than the settings in force allow")
        body = ticket.body()
        self._signatures.add(
            Check(
                position,
                "the ticket",
                self._crew.ticket_key(ticket.hub_key_id, event.at_us),
                TICKET_DOMAIN,
                body,
                signed.signature,
            )
        )
        self._counts.tickets += 1
        self._tickets[ticket.hash] = _Ticket(event.ticket[:TICKET_BODY_BYTES], broadcast, session.facts)

    def _broadcast(self, broadcast_id: UUID) -> _Broadcast:
        return present(self._broadcasts.get(broadcast_id), f"broadcast {broadcast_id} never started")

    # --- receipts

    def receipts_refused(self, position: int, event: ReceiptsRefused) -> None:
        """Only what leads to no broadcast may be refused here."""
        receipts = self._receipts(position, event, event.originator_id)
        for data, judged in zip(receipts, event.judged, strict=True):
            signed = parse_receipt(data)
            known = signed is not None and signed.receipt.ticket_hash in self._tickets
            require(not known, "a receipt was refused whose ticket was issued")
            verdict = Verdict.MALFORMED if signed is None else Verdict.UNKNOWN_TICKET
            _same(judged, Judged(verdict.value))

    def segments_served(self, position: int, event: SegmentsServed) -> None:
        broadcast_id = present(
            self._broadcast_of.get(event.originator_id), "a delivery of a broadcast that never started"
        )
        broadcast = self._broadcasts[broadcast_id]
        claims = [
            self._claim(data, judged, broadcast)
            for data, judged in zip(self._receipts(position, event, event.node_id), event.judged, strict=True)
        ]
        sessions = [c.ticket.session_id.int for c in claims]  # comparing UUIDs is slow
        require([s.int for s in event.session_ids] == sessions, "sessions are not the tickets'")
        networks = tuple([c.session.network for c in claims])
        require(event.viewer_networks == networks, "networks are not the sessions'")
        first = broadcast.manifest.first
        require(event.first_sequence == first, "the first sequence is not the broadcast's")
        self._judge_again(event, broadcast, claims)
        for claim in claims:
            self._count(position, claim)

    def _claim(self, data: bytes, judged: Judged, broadcast: _Broadcast) -> _Claim:
        receipt = _parsed(data)
        known = self._tickets.get(receipt.ticket_hash)
        if known is None:
            raise AuditFailure("a receipt for a ticket that was never issued")
        if known.broadcast is not broadcast:
            raise AuditFailure("a receipt for a ticket of another broadcast")
        return _Claim(receipt, _decoded(known.body), known.session, judged)

    def _judge_again(self, event: SegmentsServed, broadcast: _Broadcast, claims: list[_Claim]) -> None:
        """Credit what was recorded, when some state that the hub may have seen leads to the recorded verdicts."""
        settings = [
            s
            for s in self._crew.settings.in_force(event.at_us)
            if s.prefix_sessions_max == event.network_limit
        ]
        require(bool(settings), "the network limit is not the one in force")
        failure: AuditFailure | None = None
        nodes = self._crew.node(event.node_id)
        touched = set(event.session_ids), set(event.networks)
        before = broadcast.credits.copy_of(*touched)
        for manifest in broadcast.manifests(event.at_us):
            for node, rules in product(nodes.in_force(event.at_us), settings):
                try:
                    self._judge_all(event, broadcast.credits, claims, node, rules, manifest)
                except AuditFailure as e:
                    broadcast.credits.restore(before, *touched)
                    failure = failure or e
                else:
                    return
        raise present(failure, "nothing was judged")

    def _judge_all(
        self,
        event: SegmentsServed,
        credits: CreditSet,
        claims: list[_Claim],
        node: NodeFacts,
        settings: Settings,
        manifest: Manifest,
    ) -> None:
        now_s = event.at_us // 1_000_000
        for index, (receipt, ticket, session, judged) in zip(event.indices, claims, strict=True):
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
                    now_s=now_s,
                )
            if judged != judgement.judged:
                _same(judged, judgement.judged, f"receipt {index} of the batch: ")
            if judgement.units:
                credits.credit(ticket.session_id, session.network, judgement.units)

    def _count(self, position: int, claim: _Claim) -> None:
        receipt, ticket, _, judged = claim
        self._counts.accepted += judged.verdict == _ACCEPTED
        self._counts.credited_bytes += judged.credited_bytes
        if judged.verdict != _WRONG_NODE:
            data = receipt.data
            self._signatures.add(
                Check(
                    position,
                    "a receipt",
                    ticket.viewer_key,
                    RECEIPT_DOMAIN,
                    data[:RECEIPT_BODY_BYTES],
                    data[RECEIPT_BODY_BYTES:],
                    judged.verdict != _BAD_SIGNATURE,
                )
            )

    def _receipts(self, position: int, event: SegmentsServed | ReceiptsRefused, nid: UUID) -> list[bytes]:
        """The event's receipts, held against the header of the batch they came in."""
        count = len(event.judged)
        require(
            len(event.receipts) == count * SIGNED_BYTES and len(event.indices) == count,
            "receipts and verdicts differ in number",
        )
        receipts = [event.receipts[i * SIGNED_BYTES : (i + 1) * SIGNED_BYTES] for i in range(count)]
        self._counts.receipts += count
        self._crew.node(nid)
        if not event.batch_header:
            require(tuple(event.indices) == (0,), "a receipt outside a batch comes alone")
            return receipts
        require(len(event.batch_header) == HEADER_BYTES, f"a batch header is {HEADER_BYTES} bytes")
        require(list(event.indices) == sorted(set(event.indices)), "the batch's indices are not ascending")
        self._collect(position, event.batch_header, dict(zip(event.indices, receipts, strict=True)), nid)
        return receipts

    def _collect(self, position: int, header: bytes, receipts: dict[int, bytes], nid: UUID) -> None:
        """A batch may stand in several events, one for each broadcast; together they are what the node signed."""
        body, signature = header[:BATCH_BODY_BYTES], header[BATCH_BODY_BYTES:]
        _, node_key, _, _, count, root = _HEADER.unpack(body)
        require(node_id(node_key) == nid, "the batch is another node's")
        name = hashlib.sha256(body).digest()
        if name in self._complete:
            return  # sent again after the hub had forgotten it: judged again, receipt by receipt
        batch = self._batches.get(name)
        if batch is None:
            batch = self._batches[name] = _Batch(position)
            self._counts.batches += 1
            self._signatures.add(Check(position, "the batch", node_key, BATCH_DOMAIN, body, signature))
        for index, data in receipts.items():
            require(index < count and index not in batch.receipts, "the batch has no such receipt to judge")
            batch.receipts[index] = data
        if len(batch.receipts) == count:
            del self._batches[name]
            self._complete.add(name)
            leaves = [data for _, data in sorted(batch.receipts.items())]
            require(merkle.root(leaves) == root, "the receipts are not those the node signed for")


@lru_cache(65_536)
def _decoded(body: bytes) -> Ticket:
    """Receipts of a ticket come many times, and close together."""
    return Ticket.decode_body(body)


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


def _within(ticket: Ticket, settings: Settings, at_us: int) -> bool:
    return (
        ticket.last_sequence - ticket.first_sequence < settings.ticket_segments
        and ticket.settle_by_s <= at_us // 1_000_000 + settings.settle_by_s
        and ticket.byte_budget <= settings.ticket_bytes_max
    )


def _same(recorded: Judged, expected: Judged, what: str = "") -> None:
    if recorded != expected:
        raise AuditFailure(f"{what}the verdict is {_text(recorded)}, but the rules give {_text(expected)}")


def _text(judged: Judged) -> str:
    cap = f" ({judged.cap})" if judged.cap else ""
    return f"{judged.verdict}{cap} with {judged.units} segments and {judged.credited_bytes} bytes"
