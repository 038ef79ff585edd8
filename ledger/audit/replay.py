"""Replay: every event of the log in order, each held against what came before it.

Invariant: an event that passes is of a known type, has exactly the bytes its type gives, follows its aggregate's last
event, and says only what the events before it allow. Whatever a log holds, the replay ends with a result or with an
AuditFailure that names the position.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import msgspec

from ledger.audit.admissions import FEWEST, Admissions
from ledger.audit.books import Books
from ledger.audit.books import State as BooksState
from ledger.audit.crew import Crew, failing_at, require
from ledger.audit.crew import State as CrewState
from ledger.audit.delivery import IN_COLUMNS, Deliveries
from ledger.audit.dues import Dues
from ledger.audit.dues import State as DuesState
from ledger.audit.facts import Facts
from ledger.audit.helpers import Helpers
from ledger.audit.lifecycles import Lifecycles
from ledger.audit.lifecycles import State as LifecyclesState
from ledger.audit.payouts import Payouts
from ledger.audit.payouts import State as PayoutsState
from ledger.audit.report import AuditFailure, Counts, Open
from ledger.audit.signatures import Signatures
from ledger.audit.store import Store
from ledger.audit.stream import Entries
from ledger.claims import Told
from ledger.event_codec import EVENT_TYPES, decode_stored, encode, upcast
from ledger.events import (
    AdjustmentBooked,
    BroadcastEnded,
    BroadcastInterrupted,
    BroadcastResumed,
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
    NodeProbed,
    NodeReinstated,
    NodeRetired,
    NodeSeenAt,
    NodeSuspended,
    NodeWentOffline,
    NodeWentOnline,
    PayoutApproved,
    PayoutAttempted,
    PayoutCancelled,
    PayoutLineConfirmed,
    PayoutLineFailed,
    PayoutLineReserved,
    PayoutLineReturned,
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
    StreamArchived,
    StreamKeyRotated,
    StreamMarkedStale,
    StreamRegistered,
    StreamWentLive,
    StreamWentOffline,
    TariffSet,
    TicketIssued,
)
from ledger.ids import BOOK_ID, CREW_ID, TREE_ID
from ledger.served import Delivery


class _State(msgspec.Struct):
    counts: Counts = msgspec.field(default_factory=Counts)
    crew: CrewState | None = None
    books: BooksState | None = None
    payouts: PayoutsState | None = None
    dues: DuesState | None = None
    lifecycles: LifecyclesState | None = None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_State)
_FIXED: Final = {"crew": CREW_ID, "book": BOOK_ID, "tree": TREE_ID}
_ONLY: Final[dict[type, UUID | None]] = {
    Delivery: None,
    **{cls: _FIXED.get(tag.partition(".")[0]) for tag, cls in EVENT_TYPES.items()},
}
# The first event of an aggregate, and only that one, is of the type that founds it; those not named have no such type.
_FOUNDING: Final = {
    "crew": CrewFounded,
    "stream": StreamRegistered,
    "broadcast": BroadcastStarted,
    "session": SessionOpened,
    "ticket": TicketIssued,
    "invite": InviteCreated,
    "node": NodeJoined,
    "payout": PayoutPlanned,
}
_FOUNDS: Final[dict[type, bool | None]] = {
    Delivery: None,
    **{
        cls: cls is founding if (founding := _FOUNDING.get(tag.partition(".")[0])) is not None else None
        for tag, cls in EVENT_TYPES.items()
    },
}
# These come by the bundle, or one by one.
_ADMITTED: Final = frozenset((SessionOpened, TicketIssued))
# Deliveries may wait for others while these are met: what a verdict rests on does not change, it only grows.
_TOGETHER: Final = frozenset((Delivery, SegmentsPublished, SegmentsServed, SessionOpened, TicketIssued))
# These neither change what a session or a ticket rests on, nor look at those that come after them.
_BETWEEN: Final = frozenset(
    (
        BroadcastEnded,
        BroadcastInterrupted,
        BroadcastResumed,
        Delivery,
        NodeProbed,
        ReceiptsRefused,
        SegmentsPublished,
        SegmentsServed,
        SessionObserved,
        StateRecorded,
        StreamWentLive,
        StreamWentOffline,
    )
)


class Replay:
    def __init__(
        self,
        store: Store,
        helpers: Helpers,
        *,
        saved: bytes | None = None,
        verify_signatures: bool = True,
        in_columns: int = IN_COLUMNS,
    ) -> None:
        """From the beginning, or from what `saved` gave; then `store` is as it was at that moment.

        `in_columns` is the number of receipts, waiting together, from which on they are judged in columns.
        """
        state = _decoder.decode(saved) if saved is not None else _State()
        self.counts = state.counts
        self.crew = Crew(state.crew)
        self.signatures = Signatures(helpers, verify=verify_signatures)
        self.signatures.count = self.counts.signatures
        self._store = store
        self._dues = Dues(store, state.dues)
        self.books = Books(self.crew, self._dues, store, self.counts, state.books)
        facts = self._facts = Facts(store)
        self._deliveries = Deliveries(
            self.crew, self.signatures, self._dues, facts, store, self.counts, in_columns
        )
        self._payouts = Payouts(self.books, self.crew, store, self.counts, state.payouts)
        self._lifecycles = Lifecycles(store, state.lifecycles)
        self._versions = store.table(b"v", lambda n: n.to_bytes(8), int.from_bytes, 131_072)
        self._admissions = Admissions(
            self.crew, facts, self._dues, self._versions, self.counts, self.signatures
        )
        self._claims: dict[int, Told] = {}  # by the bundle's deliveries; by position
        self._rules = self._rules_by_type()

    def apply(self, position: int, data: bytes | memoryview, *, one_encoding: bool = False) -> None:
        """Take the event at `position`. Raises AuditFailure.

        `one_encoding` says that the bytes were found to be the one encoding of a known event.
        """
        try:
            with failing_at(position):
                event = upcast(_stored(data, one_encoding=one_encoding))
        except AuditFailure:
            self._deliveries.settle()  # what fails there comes before
            raise
        self._apply(position, event)

    def apply_all(self, bundle: Entries) -> None:
        """Take the events of a bundle. Raises AuditFailure."""
        start, entries, admitted = bundle.start, bundle.entries, bundle.admitted
        events = self._read_others(bundle)
        spans, first = [], 0
        for i, event in events.items():
            if type(event) not in _BETWEEN:
                spans += [(first, i), (i, i + 1)]
                first = i + 1
        for low, end in [*spans, (first, len(entries))]:
            some = admitted.between(low, end)
            between = [(start + i, event) for i in range(low, end) if (event := events.get(i)) is not None]
            even = not self._payouts.state.uneven
            if some.count >= FEWEST and even and self._admissions.take(start, entries, some, between):
                for position, event in between:
                    self._apply(position, event)
                self._due(start + end)
                self.counts.events += some.count
                continue
            for i in range(low, end):
                known = events.get(i)
                if known is not None:
                    self._apply(start + i, known)
                else:
                    self.apply(start + i, entries[i], one_encoding=i < bundle.strange)
        self._claims.clear()

    def _read_others(self, bundle: Entries) -> dict[int, Event | Delivery | None]:
        """What is neither an ordinary session nor an ordinary ticket, by index; None what will fail in its turn."""
        named = {*bundle.admitted.sessions, *bundle.admitted.tickets}
        served = {}
        for delivery, claims in zip(bundle.deliveries, bundle.claims, strict=True):
            delivery.entry = bundle.entries[delivery.index]
            served[delivery.index] = delivery
            self._claims[bundle.start + delivery.index] = claims
        events: dict[int, Event | Delivery | None] = {}
        for i, data in enumerate(bundle.entries):
            if i in named:
                continue
            events[i] = served.get(i)
            if i not in served:
                with suppress(ValueError, AuditFailure):
                    events[i] = upcast(_stored(data, one_encoding=i < bundle.strange))
        return events

    def _apply(self, position: int, event: Event | Delivery) -> None:
        self._due(position)
        try:
            with failing_at(position):
                if self._payouts.state.uneven:
                    self._payouts.before(event)
                self._follow(event)
                if type(event) not in _ADMITTED:
                    self.crew.passed(position, event.at_us)
                if type(event) not in _TOGETHER:
                    self._deliveries.settle()
                rule = self._rules.get(type(event))
                if rule is not None:
                    rule(position, event)
                self._dues.passed(position, event.at_us)
        except AuditFailure:
            self._deliveries.settle()  # what fails there comes before
            raise
        self.counts.events += 1

    def _due(self, position: int) -> None:
        for at, check in self._admissions.due(position):
            self._deliveries.sign(at, "the ticket", check)

    def trim(self) -> None:
        """Bound the memory. Raises AuditFailure for deliveries that were waiting."""
        self._deliveries.settle()
        self._store.trim()

    def saved(self) -> bytes:
        """All that is not in the store. Raises AuditFailure, also for a signature that does not hold."""
        self._deliveries.settle()
        self.signatures.finish()
        self.counts.signatures = self.signatures.count
        state = _State(
            self.counts,
            self.crew.state,
            self.books.state,
            self._payouts.state,
            self._dues.saved(),
            self._lifecycles.state,
        )
        return _encoder.encode(state)

    def finish(self) -> None:
        """Raises AuditFailure for what is incomplete, or a signature that does not hold."""
        self._deliveries.settle()
        self.signatures.finish()
        self._deliveries.finish()
        self._payouts.finish()
        self.books.finish()

    def open_ends(self) -> Open:
        """What is left open at the end, or looks odd."""
        state, balances = self.crew.state, self.books.balances.items()
        back_us, back_at = state.dated_back
        return Open(
            unsettled_bytes=self._dues.unsettled_bytes(),
            overdue_micro=self.books.overdue_micro(state.came[-1][1] if state.came else 0),
            in_flight_micro=sum(amount for account, amount in balances if account.endswith(":in_flight")),
            disputes=len(self.books.state.disputes),
            dated_back_s=back_us // 1_000_000,
            dated_back_at=back_at if back_us else None,
        )

    def _follow(self, event: Event | Delivery) -> None:
        """An aggregate's events are numbered 1, 2, 3, ... and the books are one aggregate."""
        key = event.originator_id.bytes
        kind = type(event)
        expected = (self._versions.get(key) or self._facts.opened(key)) + 1
        if event.originator_version != expected:
            raise AuditFailure(
                f"version {event.originator_version} of {event.originator_id} does not follow {expected - 1}"
            )
        if expected > 1 or (
            kind is not SessionOpened and kind is not TicketIssued
        ):  # those are known by their rows
            self._versions.put(key, expected)
        founds = _FOUNDS[kind]
        if founds is not None and founds != (expected == 1):
            raise AuditFailure("the aggregate does not begin with the event that founds it, or begins twice")
        only = _ONLY[kind]
        require(only is None or only == event.originator_id, "the event is not in the aggregate of its kind")

    def _founded(self, _position: int, event: CrewFounded) -> None:
        self.crew.founded(event)
        self._dues.founded(event)

    def _served(self, position: int, event: SegmentsServed | Delivery) -> None:
        self._deliveries.segments_served(position, event, self._claims.get(position))

    def _settings_changed(self, position: int, event: SettingsChanged) -> None:
        self.crew.settings_changed(event)
        self._dues.settings_changed(position, event)

    def _broadcast_started(self, _position: int, event: BroadcastStarted) -> None:
        self._lifecycles.started(event)
        self._deliveries.broadcast_started(event)

    def _published(self, _position: int, event: SegmentsPublished) -> None:
        self._lifecycles.published(event)
        self._deliveries.segments_published(event)

    def _broadcast_changed(
        self, _position: int, event: BroadcastInterrupted | BroadcastResumed | BroadcastEnded
    ) -> None:
        broadcast = self._facts.broadcast(event.originator_id.bytes)
        self._lifecycles.broadcast_changed(event, broadcast.manifest.next if broadcast is not None else 0)

    def _node_joined(self, _position: int, event: NodeJoined) -> None:
        self.crew.node_joined(event)
        self._lifecycles.node_changed(event)

    def _node_stopped(self, _position: int, event: NodeSuspended | NodeRetired) -> None:
        self._lifecycles.node_changed(event)
        self.crew.node_stopped(event)

    def _node_reinstated(self, _position: int, event: NodeReinstated) -> None:
        self._lifecycles.node_changed(event)
        self.crew.node_reinstated(event)

    def _rules_by_type(self) -> dict[type, Callable[[int, Any], None]]:
        crew, deliveries, books, payouts = self.crew, self._deliveries, self.books, self._payouts
        lives = self._lifecycles
        return {
            CrewFounded: self._founded,
            SettingsChanged: self._settings_changed,
            KeyAdded: _without_position(crew.key_added),
            KeyRetired: _without_position(crew.key_retired),
            StreamRegistered: _without_position(lives.registered),
            StreamKeyRotated: _without_position(lives.stream_changed),
            StreamWentLive: _without_position(lives.stream_changed),
            StreamWentOffline: _without_position(lives.stream_changed),
            StreamArchived: _without_position(lives.stream_changed),
            StreamMarkedStale: _without_position(lives.stream_changed),
            InviteCreated: _without_position(crew.invite_created),
            InviteUsed: _without_position(crew.invite_used),
            NodeJoined: self._node_joined,
            NodeMoved: _without_position(crew.node_moved),
            NodeSeenAt: _without_position(crew.node_moved),
            NodeProbed: deliveries.node_probed,
            NodeWentOnline: _without_position(lives.node_changed),
            NodeWentOffline: _without_position(lives.node_changed),
            NodeSuspended: self._node_stopped,
            NodeRetired: self._node_stopped,
            NodeReinstated: self._node_reinstated,
            BroadcastStarted: self._broadcast_started,
            BroadcastInterrupted: self._broadcast_changed,
            BroadcastResumed: self._broadcast_changed,
            BroadcastEnded: self._broadcast_changed,
            SegmentsPublished: self._published,
            SessionOpened: deliveries.session_opened,
            SessionObserved: deliveries.session_observed,
            TicketIssued: deliveries.ticket_issued,
            Delivery: self._served,
            SegmentsServed: self._served,
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
            PayoutApproved: payouts.approved,
            PayoutCancelled: _without_position(payouts.cancelled),
            PayoutAttempted: payouts.attempted,
            PayoutResolved: payouts.resolved,
            PayoutLineReserved: payouts.reserved,
            PayoutLineConfirmed: payouts.confirmed,
            PayoutLineFailed: payouts.failed,
            PayoutLineReturned: payouts.returned,
        }


def _stored(data: bytes | memoryview, *, one_encoding: bool) -> Event:
    stored = decode_stored(data)
    require(
        one_encoding or encode(stored) == bytes(data), "the bytes are not the one encoding of their event"
    )
    return stored


def _without_position(rule: Callable[[Any], None]) -> Callable[[int, Any], None]:
    """A rule that does not ask for the position."""
    return lambda _position, event: rule(event)
