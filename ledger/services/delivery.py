"""The delivery desk: sessions, tickets, and the judging of receipts.

Invariant: an answer is given only after the verdict is durable, and the same bytes sent again get the same verdicts
and change nothing. One desk may be used from many threads; broadcasts are judged one at a time each.
"""

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
from ledger.credit_columns import every
from ledger.events import SessionOpened, TicketIssued
from ledger.ids import node_id, ticket_record_id
from ledger.judge import SessionFacts
from ledger.judge_columns import KNOWN, RECEIPT, split, well_formed
from ledger.keys import KeyPair
from ledger.receipt import SIGNED_BYTES
from ledger.receipt_digests import ReceiptDigests, SegmentDigestOf
from ledger.services import crew
from ledger.services.judging import Judging, Place, ReceiptAnswer, Refused, Sent
from ledger.services.retry import until_saved
from ledger.ticket import SignedTicket, Ticket, ViewerClass, WireError
from ledger.tickets import Found, TicketTable, known_row
from ledger.verdict import Verdict
from ledger.verifiers import RECORD_BYTES, Verifiers

CACHED_TICKETS: Final = 50_000  # of about 500 bytes
CACHED_ANSWERS: Final = 4_096

_TICKET_HASH: Final = slice(1, 33)  # of a receipt
_WHOLE: Final = np.dtype(f"V{SIGNED_BYTES}")
_ASKED: Final = np.dtype([("key", "V32"), ("receipt", _WHOLE)])  # as ledger.verifiers takes them
assert _ASKED.itemsize == RECORD_BYTES


class DeliveryDesk:
    def __init__(
        self, ledger: Ledger, *, digest_of: SegmentDigestOf, verifiers: Verifiers | None = None
    ) -> None:
        """`verifiers` belong to the caller; without them signatures are verified in the threads that bring them."""
        self._ledger = ledger
        self._verifiers = verifiers or Verifiers(0)
        self._judging = Judging(ledger, ReceiptDigests(digest_of))
        self._tickets = TicketTable(CACHED_TICKETS)
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
        self._tickets.put(signed.ticket.hash, known_row(signed.ticket.body(), broadcast.id, session.facts))
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
        found, presented, refused = self._presented(batch.data, batch.node_key)
        answers, places = self._judging.judge(
            Sent(presented, refused, node_id(batch.node_key), data[:HEADER_BYTES], known_hash, at_us)
        )
        self._answered.put(known_hash, tuple(places))
        for each in presented.values():  # where judging found them
            if len(each.credits_at) == len(found.places):
                self._tickets.credits_at(found.places, each.credits_at)
        return answers

    def judge_receipt(self, data: bytes, *, at_us: int) -> ReceiptAnswer:
        """The verdict on one receipt that the viewer sent itself, for the node its ticket names.

        Raises WireError when the bytes are no receipt or its ticket was never issued: with no batch around it there is
        no node in whose name to record the refusal.
        """
        if len(data) != SIGNED_BYTES or not well_formed(np.frombuffer(data, RECEIPT))[0]:
            raise WireError("this is not a receipt")
        tickets, known, *_ = self._known([data[_TICKET_HASH]])
        if not known[0]:
            raise WireError("the ticket of this receipt was never issued")
        ticket = tickets["ticket"][0]
        if self._verifiers.hold(ticket["viewer_key"].tobytes() + data) != b"\1":
            raise WireError("the receipt is not signed by the viewer its ticket names")
        presented = Presented(bytes(1), data, tickets, known)
        node = node_id(ticket["node_key"].tobytes())
        broadcast_id = UUID(bytes=tickets["broadcast"][0].tobytes())
        sent = Sent({broadcast_id: presented}, [], node, b"", b"", at_us)
        return self._judging.judge(sent).answers[0]

    def _presented(self, data: bytes, node_key: bytes) -> tuple[Found, dict[UUID, Presented], list[Refused]]:
        """Their tickets; the receipts by broadcast, their signatures verified; and those that belong to none."""
        rows = np.frombuffer(data, RECEIPT)
        well = well_formed(rows)
        hashes = split(rows["ticket_hash"])
        if not every(well):
            hashes = [h if w else b"" for h, w in zip(hashes, well.tolist(), strict=True)]
        found = self._known(hashes)
        tickets, known, _, credits_at = found
        # What is another node's is refused whatever its signature.
        signed = known.copy()
        if tickets["ticket"]["node_key"].tobytes() != node_key * len(rows):  # nearly always it is the same
            signed = known & (tickets["ticket"]["node_key"] == np.void(node_key))
        keys, whole = tickets["ticket"]["viewer_key"], rows.view(_WHOLE)
        if not every(signed):
            keys, whole = keys[signed], whole[signed]
        asked = np.empty(len(keys), _ASKED)
        asked["key"], asked["receipt"] = keys, whole
        signed[signed] = np.frombuffer(self._verifiers.hold(asked.tobytes()), np.uint8) == 1
        ids = tickets["broadcast"].tobytes()
        if every(known) and len(rows) and ids == ids[:16] * len(rows):
            broadcast_id = UUID(bytes=ids[:16])
            whole_batch = Presented(bytes(range(len(rows))), data, tickets, signed, credits_at)
            return found, {broadcast_id: whole_batch}, []
        of: dict[bytes, list[int]] = defaultdict(list)
        broadcasts = split(tickets["broadcast"])
        for i in np.flatnonzero(known).tolist():
            of[broadcasts[i]].append(i)
        presented = {
            UUID(bytes=broadcast): Presented(bytes(at), rows[at].tobytes(), tickets[at], signed[at])
            for broadcast, at in of.items()
        }
        refused = [
            (i, rows[i].tobytes(), Verdict.UNKNOWN_TICKET if well[i] else Verdict.MALFORMED)
            for i in np.flatnonzero(~known).tolist()
        ]
        return found, presented, refused

    def _known(self, ticket_hashes: Sequence[bytes]) -> Found:
        """What the log says of each ticket, and of which it says anything; what is no hash is none."""
        looked_up = self._tickets.find(ticket_hashes)
        tickets, known, *_ = looked_up
        if every(known):
            return looked_up
        missing = {ticket_hashes[i] for i in np.flatnonzero(~known).tolist()} - {b""}
        if not missing:
            return looked_up
        found = dict(self._find_tickets(missing))
        for ticket_hash, row in found.items():
            self._tickets.put(ticket_hash, row)
        for i in np.flatnonzero(~known).tolist():
            if ticket_hashes[i] in found:
                tickets[i], known[i] = np.frombuffer(found[ticket_hashes[i]], KNOWN)[0], True
        return looked_up

    def _find_tickets(self, ticket_hashes: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """(hash, row of KNOWN) of those that were issued, from the log: two queries for all."""
        records = self._ledger.find([(ticket_record_id(h), 1) for h in ticket_hashes])
        issued = [r.event for r in records if isinstance(r.event, TicketIssued)]
        opened = {
            r.event.session_id: SessionFacts(r.event.prefix_commitment, r.event.account_id)
            for r in (self._ledger.find([(t.session_id, 1) for t in issued]) if issued else ())
            if isinstance(r.event, SessionOpened)
        }
        for event in issued:
            ticket = SignedTicket.decode(event.ticket).ticket
            yield ticket.hash, known_row(ticket.body(), event.broadcast_id, opened[event.session_id])


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
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            if len(self._items) > self._size:
                self._items.popitem(last=False)
