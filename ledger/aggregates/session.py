"""Session: one viewer's playback, and Ticket record: one ticket the hub issued.

Invariant: a ticket is issued once, under the id that follows from its hash; what the hub observed of a session only
grows.
"""

from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.events import Event, SessionObserved, SessionOpened, TicketIssued
from ledger.judge import SessionFacts
from ledger.ticket import SignedTicket, ViewerClass


class Session(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.stream_id: UUID | None = None
        self.viewer_class = ViewerClass.PLAIN
        self.viewer_key = b""
        self.network = b""
        self.account_id: UUID | None = None
        self.last_event_us = 0

    @property
    def facts(self) -> SessionFacts:
        return SessionFacts(network=self.network, account_id=self.account_id)

    def open(
        self,
        *,
        stream_id: UUID,
        viewer_class: ViewerClass,
        viewer_key: bytes,
        prefix_commitment: bytes,
        account_id: UUID | None,
        at_us: int,
    ) -> None:
        if (viewer_class is ViewerClass.SIGNING) != (len(viewer_key) == 32):
            raise DomainError("a signing viewer has a key of 32 bytes, a plain one has none")
        if len(prefix_commitment) not in (0, 16):
            raise DomainError("the commitment to a viewer's network has 16 bytes")
        self.trigger(
            SessionOpened,
            at_us=at_us,
            session_id=self.id,
            stream_id=stream_id,
            viewer_class=int(viewer_class),
            viewer_key=viewer_key,
            prefix_commitment=prefix_commitment,
            account_id=account_id,
        )

    def observe(self, *, base_sequence: int, polled: bytes, fetched_at_hub: bytes, at_us: int) -> None:
        self.trigger(
            SessionObserved,
            at_us=at_us,
            session_id=self.id,
            base_sequence=base_sequence,
            polled=polled,
            fetched_at_hub=fetched_at_hub,
        )

    def apply(self, event: Event) -> None:
        self.last_event_us = event.at_us
        match event:
            case SessionOpened():
                self.stream_id = event.stream_id
                self.viewer_class = ViewerClass(event.viewer_class)
                self.viewer_key = event.viewer_key
                self.network = event.prefix_commitment
                self.account_id = event.account_id
            case SessionObserved():
                pass  # only settlement reads what was observed, straight from the log
            case _:
                raise TypeError(type(event).__name__)


class TicketRecord(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.signed: SignedTicket
        self.broadcast_id: UUID
        self.node_id: UUID

    def issue(self, signed: SignedTicket, *, broadcast_id: UUID, node_id: UUID, at_us: int) -> None:
        self.trigger(
            TicketIssued,
            at_us=at_us,
            session_id=signed.ticket.session_id,
            broadcast_id=broadcast_id,
            node_id=node_id,
            ticket=signed.encode(),
        )

    def apply(self, event: Event) -> None:
        if not isinstance(event, TicketIssued):
            raise TypeError(type(event).__name__)
        self.signed = SignedTicket.decode(event.ticket)
        self.broadcast_id, self.node_id = event.broadcast_id, event.node_id
