"""The delivery desk: sessions, tickets, and the judging of receipts.

Invariant: an answer is given only after the verdict is durable, and the same bytes sent again get the same verdicts
and change nothing. One desk may be used from many threads; broadcasts are judged one at a time each.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.delivery import Answer, Claim, Delivery
from ledger.aggregates.node import Node
from ledger.aggregates.session import Session, TicketRecord
from ledger.application import Ledger, NotFound
from ledger.batch import HEADER_BYTES, Batch
from ledger.events import Judged, ReceiptsRefused
from ledger.ids import delivery_id, node_id, ticket_record_id
from ledger.judge import SessionFacts, parse_receipt
from ledger.keys import KeyPair
from ledger.services import crew
from ledger.services.retry import until_saved
from ledger.settings import Settings
from ledger.ticket import SignedTicket, Ticket, ViewerClass, WireError
from ledger.verdict import Verdict

SegmentDigestOf = Callable[[UUID, bytes, int], bytes | None]
"""(rendition, nonce, sequence) -> SHA-256(nonce + segment), or None when the hub no longer knows it."""

CACHED_TICKETS: Final = 50_000
LOCKS: Final = 64


class UnknownNodeError(DomainError):
    """The batch is signed by a key that never joined."""


@dataclass(frozen=True, slots=True)
class ReceiptAnswer:
    index: int  # of the receipt in its batch
    verdict: str
    units: int
    credited_bytes: int
    cap: str
    position: int  # where the verdict stands in the log


@dataclass(frozen=True, slots=True)
class _Known:
    """What a receipt's ticket hash leads to; never changes once issued."""

    ticket: Ticket
    broadcast_id: UUID
    session: SessionFacts


class DeliveryDesk:
    def __init__(self, ledger: Ledger, *, digest_of: SegmentDigestOf) -> None:
        self._ledger = ledger
        self._digest_of = digest_of
        self._tickets: _Lru[bytes, _Known] = _Lru(CACHED_TICKETS)
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))  # by broadcast; some share one

    # --- sessions and tickets

    def open_session(
        self,
        *,
        session_id: UUID,
        stream_id: UUID,
        viewer_class: ViewerClass,
        viewer_key: bytes,
        prefix_commitment: bytes,
        account_id: UUID | None,
        at_us: int,
    ) -> None:
        session = Session(session_id)
        session.open(
            stream_id=stream_id,
            viewer_class=viewer_class,
            viewer_key=viewer_key,
            prefix_commitment=prefix_commitment,
            account_id=account_id,
            at_us=at_us,
        )
        self._ledger.save(session)

    def issue_ticket(
        self,
        *,
        hub_key: KeyPair,
        ticket_id: UUID,
        session_id: UUID,
        node: Node,
        broadcast: Broadcast,
        first_sequence: int,
        nonce: bytes,
        tariff_version: int,
        at_us: int,
    ) -> SignedTicket:
        """A ticket for `node` to serve the session from `first_sequence` on, durable in the log when returned."""
        session = self._ledger.load(Session, session_id)
        if (
            session.stream_id is None
            or session.stream_id != broadcast.stream_id
            or broadcast.rendition_id is None
        ):
            raise DomainError("the session is for another stream")
        settings = crew.settings(self._ledger)
        signed = Ticket(
            viewer_class=session.viewer_class,
            hub_key_id=hub_key.key_id,
            ticket_id=ticket_id,
            session_id=session_id,
            stream_id=session.stream_id,
            rendition_id=broadcast.rendition_id,
            viewer_key=session.viewer_key or node.public_key,
            node_key=node.public_key,
            first_sequence=first_sequence,
            last_sequence=first_sequence + settings.ticket_segments - 1,
            settle_by_s=at_us // 1_000_000 + settings.settle_by_s,
            tariff_version=tariff_version,
            byte_budget=settings.ticket_bytes_max,
            nonce=nonce,
        ).sign(hub_key)
        record = TicketRecord(ticket_record_id(signed.ticket.hash))
        record.issue(signed, broadcast_id=broadcast.id, node_id=node.id, at_us=at_us)
        self._ledger.save(record)
        self._tickets.put(signed.ticket.hash, _Known(signed.ticket, broadcast.id, session.facts))
        return signed

    def observe(
        self, session_id: UUID, *, base_sequence: int, polled: bytes, fetched_at_hub: bytes, at_us: int
    ) -> None:
        """Record what the hub saw a plain player do (bitmaps as in a receipt)."""

        def attempt() -> None:
            session = self._ledger.load(Session, session_id)
            session.observe(
                base_sequence=base_sequence, polled=polled, fetched_at_hub=fetched_at_hub, at_us=at_us
            )
            self._ledger.save(session)

        until_saved(attempt)

    # --- receipts

    def judge_batch(
        self, data: bytes, *, at_us: int, admit: Callable[[bytes], None] = lambda _: None
    ) -> list[ReceiptAnswer]:
        """The verdict on every receipt of a node's batch, in order.

        `admit` is called with the key of the node once its signature holds, and may raise to refuse the batch.
        Raises WireError when the bytes are no batch signed by its node, UnknownNodeError when that node never joined.
        """
        batch = Batch.decode(data)
        admit(batch.node_key)
        nid = node_id(batch.node_key)
        return self._judge(
            list(batch.receipts), nid, batch_header=data[:HEADER_BYTES], batch_hash=batch.hash, at_us=at_us
        )

    def judge_receipt(self, data: bytes, *, at_us: int) -> ReceiptAnswer:
        """The verdict on one receipt that the viewer sent itself, for the node its ticket names.

        Raises WireError when the bytes are no receipt or its ticket was never issued: with no batch around it there is
        no node in whose name to record the refusal.
        """
        signed = parse_receipt(data)
        if signed is None:
            raise WireError("this is not a receipt")
        known = self._known(signed.receipt.ticket_hash)
        if known is None:
            raise WireError("the ticket of this receipt was never issued")
        if not signed.verified_by(known.ticket.viewer_key):
            raise WireError("the receipt is not signed by the viewer its ticket names")
        nid = node_id(known.ticket.node_key)
        return self._judge([data], nid, batch_header=b"", batch_hash=b"", at_us=at_us)[0]

    def _judge(
        self, receipts: list[bytes], nid: UUID, *, batch_header: bytes, batch_hash: bytes, at_us: int
    ) -> list[ReceiptAnswer]:
        claims: dict[UUID, list[Claim]] = defaultdict(list)  # broadcast -> its claims
        refused: dict[int, Judged] = {}
        for i, data in enumerate(receipts):
            signed = parse_receipt(data)
            known = self._known(signed.receipt.ticket_hash) if signed else None
            if signed is None or known is None:
                verdict = Verdict.MALFORMED if signed is None else Verdict.UNKNOWN_TICKET
                refused[i] = Judged(verdict.value)
            else:
                claims[known.broadcast_id].append(Claim(i, signed, known.ticket, known.session))
        # One order for all, so that nobody waits in a ring.
        locks = [self._locks[n] for n in sorted({b.int % LOCKS for b in claims})]
        for lock in locks:
            lock.acquire()
        try:
            return until_saved(
                lambda: self._attempt(claims, refused, receipts, nid, batch_header, batch_hash, at_us)
            )
        finally:
            for lock in reversed(locks):
                lock.release()

    def _attempt(
        self,
        claims: dict[UUID, list[Claim]],
        refused: dict[int, Judged],
        receipts: list[bytes],
        nid: UUID,
        batch_header: bytes,
        batch_hash: bytes,
        at_us: int,
    ) -> list[ReceiptAnswer]:
        try:
            node = self._ledger.load(Node, nid)
        except NotFound as e:
            raise UnknownNodeError("the node that signed this batch never joined") from e
        settings = crew.settings(self._ledger)
        recorded: list[Answer | ReceiptsRefused] = []  # already in the log, or about to be
        fresh: list[Aggregate] = []
        for broadcast_id in sorted(claims):
            delivery = self._ledger.load_or_new(Delivery, delivery_id(broadcast_id))
            before = delivery.judged_before(batch_hash) if batch_hash else None
            if before is None:
                before = self._judge_broadcast(
                    delivery, broadcast_id, claims[broadcast_id], node, settings, batch_header, at_us
                )
                fresh.append(delivery)
            recorded.append(before)
        if refused:
            known = node.refused_before(batch_hash)
            if known is None:
                known = node.refuse_receipts(
                    batch_header=batch_header,
                    indices=tuple(refused),
                    receipts=b"".join(receipts[i] for i in refused),
                    judged=tuple(refused.values()),
                    at_us=at_us,
                )
                fresh.append(node)
            recorded.append(known)
        if fresh:
            self._ledger.save(*fresh)
        return sorted(self._answers(recorded), key=lambda a: a.index)

    def _judge_broadcast(
        self,
        delivery: Delivery,
        broadcast_id: UUID,
        claims: list[Claim],
        node: Node,
        settings: Settings,
        batch_header: bytes,
        at_us: int,
    ) -> Answer:
        broadcast = self._ledger.load(Broadcast, broadcast_id)
        rendition_id = broadcast.rendition_id
        if rendition_id is None:
            raise DomainError("the broadcast never started")
        return delivery.judge(
            claims,
            batch_header=batch_header,
            node_id=node.id,
            node=node.facts,
            manifest=broadcast.manifest,
            settings=settings,
            digest_of=lambda nonce, sequence: self._digest_of(rendition_id, nonce, sequence),
            at_us=at_us,
        )

    def _answers(self, recorded: list[Answer | ReceiptsRefused]) -> list[ReceiptAnswer]:
        answers = []
        for event in recorded:
            # Asked once for all receipts of the event: it is a query.
            position = self._ledger.position_of(event.originator_id, event.originator_version)
            answers += [
                ReceiptAnswer(i, j.verdict, j.units, j.credited_bytes, j.cap, position)
                for i, j in zip(event.indices, event.judged, strict=True)
            ]
        return answers

    def _known(self, ticket_hash: bytes) -> _Known | None:
        known = self._tickets.get(ticket_hash)
        if known is not None:
            return known
        try:
            record = self._ledger.load(TicketRecord, ticket_record_id(ticket_hash))
            session = self._ledger.load(Session, record.signed.ticket.session_id)
        except NotFound:
            return None
        known = _Known(record.signed.ticket, record.broadcast_id, session.facts)
        self._tickets.put(ticket_hash, known)
        return known


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Lru(Generic[K, V]):
    """A bounded, thread-safe cache: the least recently used goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            if len(self._items) > self._size:
                self._items.popitem(last=False)
