"""The delivery desk: sessions, tickets, and the judging of receipts.

Invariant: an answer is given only after the verdict is durable, and the same bytes sent again get the same verdicts
and change nothing. One desk may be used from many threads; broadcasts are judged one at a time each.
"""

import struct
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar
from uuid import UUID

import numpy as np

from ledger.aggregates.base import DomainError
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.delivery import Presented
from ledger.aggregates.node import Node
from ledger.aggregates.session import Session, TicketRecord
from ledger.application import Ledger
from ledger.batch import HEADER_BYTES, Batch, batch_hash
from ledger.events import SessionOpened, TicketIssued
from ledger.ids import node_id, ticket_record_id
from ledger.judge import SessionFacts
from ledger.judge_columns import RECEIPT, well_formed
from ledger.keys import KeyPair
from ledger.receipt import SIGNED_BYTES
from ledger.receipt_digests import ReceiptDigests, SegmentDigestOf
from ledger.services import crew
from ledger.services.judging import Judging, Place, ReceiptAnswer, Refused, Sent
from ledger.services.retry import until_saved
from ledger.ticket import BODY_BYTES as TICKET_BODY_BYTES
from ledger.ticket import SignedTicket, Ticket, ViewerClass, WireError
from ledger.verdict import Verdict
from ledger.verifiers import Verifiers

CACHED_TICKETS: Final = 50_000  # of about 600 bytes
CACHED_ANSWERS: Final = 4_096

# What a receipt's ticket hash leads to, in one object for each ticket; it never changes. The ticket's body, its
# broadcast, whether it is known who watches, and who; behind them the commitment to the viewer's network.
_KNOWN: Final = struct.Struct(f">{TICKET_BODY_BYTES}s16s?16s")
_VIEWER_KEY: Final = slice(74, 106)  # docs/protocol.md
_NODE_KEY: Final = slice(106, 138)
_BROADCAST: Final = slice(TICKET_BODY_BYTES, TICKET_BODY_BYTES + 16)
_HAS_ACCOUNT: Final = _BROADCAST.stop
_ACCOUNT: Final = slice(_HAS_ACCOUNT + 1, _HAS_ACCOUNT + 17)
_TICKET_HASH: Final = slice(1, 33)  # of a receipt

_Claim = tuple[int, bytes, bytes, bool]  # index in the batch, receipt, _KNOWN, whether the signature holds


class DeliveryDesk:
    def __init__(
        self, ledger: Ledger, *, digest_of: SegmentDigestOf, verifiers: Verifiers | None = None
    ) -> None:
        """`verifiers` belong to the caller; without them signatures are verified in the threads that bring them."""
        self._ledger = ledger
        self._verifiers = verifiers or Verifiers(0)
        self._judging = Judging(ledger, ReceiptDigests(digest_of))
        self._tickets: _Lru[bytes, bytes] = _Lru(CACHED_TICKETS)
        self._answered: _Lru[bytes, tuple[Place, ...]] = _Lru(CACHED_ANSWERS)  # batch hash -> its events

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
        self._tickets.put(signed.ticket.hash, _pack(signed.ticket.body(), broadcast.id, session.facts))
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
        known_hash = batch_hash(data)
        known = self._answered.get(known_hash)
        if known is not None:
            return self._judging.answers_at(known)
        presented, refused = self._presented(batch.data, batch.node_key)
        answers, places = self._judging.judge(
            Sent(presented, refused, node_id(batch.node_key), data[:HEADER_BYTES], known_hash, at_us)
        )
        self._answered.put(known_hash, tuple(places))
        return answers

    def judge_receipt(self, data: bytes, *, at_us: int) -> ReceiptAnswer:
        """The verdict on one receipt that the viewer sent itself, for the node its ticket names.

        Raises WireError when the bytes are no receipt or its ticket was never issued: with no batch around it there is
        no node in whose name to record the refusal.
        """
        if len(data) != SIGNED_BYTES or not well_formed(np.frombuffer(data, RECEIPT))[0]:
            raise WireError("this is not a receipt")
        known = self._known([data[_TICKET_HASH]])[0]
        if known is None:
            raise WireError("the ticket of this receipt was never issued")
        if not self._verifiers.hold([(known[_VIEWER_KEY], data)])[0]:
            raise WireError("the receipt is not signed by the viewer its ticket names")
        presented = {UUID(bytes=known[_BROADCAST]): _present([(0, data, known, True)])}
        return self._judging.judge(Sent(presented, [], node_id(known[_NODE_KEY]), b"", b"", at_us)).answers[0]

    def _presented(self, data: bytes, node_key: bytes) -> tuple[dict[UUID, Presented], list[Refused]]:
        """The receipts by broadcast, their signatures verified; and those that belong to none."""
        well = well_formed(np.frombuffer(data, RECEIPT)).tolist()
        receipts = [data[i : i + SIGNED_BYTES] for i in range(0, len(data), SIGNED_BYTES)]
        tickets = self._known([r[_TICKET_HASH] if w else b"" for r, w in zip(receipts, well, strict=True)])
        # What is another node's is refused whatever its signature.
        own = [known is not None and known[_NODE_KEY] == node_key for known in tickets]
        asked = [
            (known[_VIEWER_KEY], receipt)
            for receipt, known, mine in zip(receipts, tickets, own, strict=True)
            if known is not None and mine
        ]
        held = iter(self._verifiers.hold(asked))
        refused: list[Refused] = []
        of: dict[bytes, list[_Claim]] = defaultdict(list)
        for i, (receipt, known) in enumerate(zip(receipts, tickets, strict=True)):
            if known is None:
                refused.append((i, receipt, Verdict.UNKNOWN_TICKET if well[i] else Verdict.MALFORMED))
            else:
                of[known[_BROADCAST]].append((i, receipt, known, own[i] and next(held)))
        return {UUID(bytes=broadcast): _present(claims) for broadcast, claims in of.items()}, refused

    def _known(self, ticket_hashes: Sequence[bytes]) -> list[bytes | None]:
        """_KNOWN of each ticket that was issued; what is no hash is none."""
        known = self._tickets.get_all(ticket_hashes)
        missing = {h for h, k in zip(ticket_hashes, known, strict=True) if k is None and h}
        if not missing:
            return known
        found = dict(self._find_tickets(missing))
        for ticket_hash, packed in found.items():
            self._tickets.put(ticket_hash, packed)
        return [k or found.get(h) for h, k in zip(ticket_hashes, known, strict=True)]

    def _find_tickets(self, ticket_hashes: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """(hash, _KNOWN) of those that were issued, from the log: two queries for all."""
        records = self._ledger.find([(ticket_record_id(h), 1) for h in ticket_hashes])
        issued = [r.event for r in records if isinstance(r.event, TicketIssued)]
        opened = {
            r.event.session_id: SessionFacts(r.event.prefix_commitment, r.event.account_id)
            for r in (self._ledger.find([(t.session_id, 1) for t in issued]) if issued else ())
            if isinstance(r.event, SessionOpened)
        }
        for event in issued:
            ticket = SignedTicket.decode(event.ticket).ticket
            yield ticket.hash, _pack(ticket.body(), event.broadcast_id, opened[event.session_id])


def _pack(ticket_body: bytes, broadcast_id: UUID, session: SessionFacts) -> bytes:
    account = session.account_id.bytes if session.account_id is not None else b""
    return _KNOWN.pack(ticket_body, broadcast_id.bytes, bool(account), account) + session.network


def _facts(known: bytes) -> SessionFacts:
    return SessionFacts(known[_KNOWN.size :], UUID(bytes=known[_ACCOUNT]) if known[_HAS_ACCOUNT] else None)


def _present(claims: Sequence[_Claim]) -> Presented:
    indices, receipts, tickets, signed = zip(*claims, strict=True)
    return Presented(
        indices=bytes(indices),
        receipts=b"".join(receipts),
        tickets=b"".join([known[:TICKET_BODY_BYTES] for known in tickets]),
        facts=[_facts(known) for known in tickets],
        signed=signed,
    )


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Lru(Generic[K, V]):
    """A bounded, thread-safe cache: the least recently used goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[K]) -> list[V | None]:
        with self._lock:
            used = self._items.move_to_end
            for key in self._items.keys() & keys:
                used(key)
            return [*map(self._items.get, keys)]

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            if len(self._items) > self._size:
                self._items.popitem(last=False)
