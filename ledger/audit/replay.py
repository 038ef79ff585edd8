"""Replay: every event of the log in order, each held against what came before it.

Invariant: an event that passes is of a known type, has exactly the bytes its type gives, follows its aggregate's last
event, and says only what the events before it allow. Whatever a log holds, the replay ends with a result or with an
AuditFailure that names the position.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.audit.books import Books
from ledger.audit.crew import Crew, require
from ledger.audit.delivery import Deliveries
from ledger.audit.payouts import Payouts
from ledger.audit.report import AuditFailure, Counts
from ledger.audit.signatures import Signatures
from ledger.events import (
    AdjustmentBooked,
    BroadcastStarted,
    BudgetDeposited,
    BudgetWithdrawn,
    CrewFounded,
    DisputeOpened,
    DisputeRejected,
    DisputeUpheld,
    EpochSettled,
    Event,
    HoldsReleased,
    InviteCreated,
    InviteUsed,
    KeyAdded,
    KeyRetired,
    NodeJoined,
    NodeMoved,
    NodeReinstated,
    NodeRetired,
    NodeSeenAt,
    NodeSuspended,
    PayoutApproved,
    PayoutAttempted,
    PayoutCancelled,
    PayoutLineConfirmed,
    PayoutLineFailed,
    PayoutLineReserved,
    PayoutPlanned,
    PayoutProposed,
    PayoutResolved,
    ReceiptsRefused,
    SegmentsPublished,
    SegmentsServed,
    SessionObserved,
    SessionOpened,
    SettingsChanged,
    StateRecorded,
    StreamRegistered,
    TariffSet,
    TicketIssued,
    decode_stored,
    encode,
    tag_of,
    upcast,
)
from ledger.ids import BOOK_ID, CREW_ID, TREE_ID
from ledger.services.credit_index import CreditIndex

_FIXED: Final = {"crew": CREW_ID, "book": BOOK_ID, "tree": TREE_ID}
# What malformed facts make the rules raise. Anything else is a defect of this program and is not hidden.
_BROKEN: Final = (ValueError, KeyError, IndexError, TypeError, OverflowError, DomainError)


class Replay:
    def __init__(self, pool: Executor, *, verify_signatures: bool = True) -> None:
        self.counts = Counts()
        self.crew = Crew()
        self.signatures = Signatures(pool, verify=verify_signatures)
        self._index = CreditIndex()
        self.books = Books(self.crew, self._index, self.counts)
        self._deliveries = Deliveries(self.crew, self.signatures, self.counts)
        self._payouts = Payouts(self.books, self.crew, self.counts)
        self._versions: dict[UUID, int] = {}
        self._rules = self._rules_by_type()

    def apply(self, position: int, data: bytes) -> None:
        """Take the event at `position`. Raises AuditFailure."""
        try:
            stored = decode_stored(data)
            require(encode(stored) == data, "the bytes are not the one encoding of their event")
            event = upcast(stored)
            self._follow(event)
            rule = self._rules.get(type(event))
            if rule is not None:
                rule(position, event)
            self._index.apply(position, event)
        except AuditFailure as e:
            at = position if e.position is None else e.position
            raise AuditFailure(e.reason, position=at, file=e.file) from e
        except _BROKEN as e:
            raise AuditFailure(f"the event cannot be replayed: {e!r}", position=position) from e
        self.counts.events += 1

    def finish(self) -> None:
        """Raises AuditFailure for what is incomplete, or a signature that does not hold."""
        self.signatures.finish()
        self._deliveries.finish()
        self._payouts.finish()
        self.books.finish()

    def close(self) -> None:
        self.signatures.close()

    def _follow(self, event: Event) -> None:
        """An aggregate's events are numbered 1, 2, 3, ... and the books are one aggregate."""
        expected = self._versions.get(event.originator_id, 0) + 1
        require(
            event.originator_version == expected,
            f"version {event.originator_version} of {event.originator_id} does not follow {expected - 1}",
        )
        self._versions[event.originator_id] = expected
        only = _FIXED.get(tag_of(event).partition(".")[0])
        require(only in (None, event.originator_id), "the event is not in the aggregate of its kind")

    def _rules_by_type(self) -> dict[type[Event], Callable[[int, Any], None]]:
        crew, deliveries, books, payouts = self.crew, self._deliveries, self.books, self._payouts
        return {
            CrewFounded: _without_position(crew.founded),
            SettingsChanged: _without_position(crew.settings_changed),
            KeyAdded: _without_position(crew.key_added),
            KeyRetired: _without_position(crew.key_retired),
            StreamRegistered: _without_position(crew.stream_registered),
            InviteCreated: _without_position(crew.invite_created),
            InviteUsed: _without_position(crew.invite_used),
            NodeJoined: _without_position(crew.node_joined),
            NodeMoved: _without_position(crew.node_moved),
            NodeSeenAt: _without_position(crew.node_moved),
            NodeSuspended: _without_position(crew.node_stopped),
            NodeRetired: _without_position(crew.node_stopped),
            NodeReinstated: _without_position(crew.node_reinstated),
            BroadcastStarted: _without_position(deliveries.broadcast_started),
            SegmentsPublished: _without_position(deliveries.segments_published),
            SessionOpened: _without_position(deliveries.session_opened),
            SessionObserved: _without_position(deliveries.session_observed),
            TicketIssued: deliveries.ticket_issued,
            SegmentsServed: deliveries.segments_served,
            ReceiptsRefused: deliveries.receipts_refused,
            TariffSet: _without_position(books.tariff_set),
            BudgetDeposited: books.deposited,
            BudgetWithdrawn: books.withdrawn,
            EpochSettled: books.settled,
            HoldsReleased: books.released,
            DisputeOpened: _without_position(books.dispute_opened),
            DisputeUpheld: books.dispute_decided,
            DisputeRejected: books.dispute_decided,
            AdjustmentBooked: books.adjusted,
            StateRecorded: books.state_recorded,
            PayoutPlanned: payouts.planned,
            PayoutProposed: _without_position(payouts.proposed),
            PayoutApproved: _without_position(payouts.approved),
            PayoutCancelled: _without_position(payouts.cancelled),
            PayoutAttempted: payouts.attempted,
            PayoutResolved: payouts.resolved,
            PayoutLineReserved: payouts.reserved,
            PayoutLineConfirmed: payouts.confirmed,
            PayoutLineFailed: payouts.failed,
        }


def _without_position(rule: Callable[[Any], None]) -> Callable[[int, Any], None]:
    """A rule that does not ask for the position."""
    return lambda _position, event: rule(event)
