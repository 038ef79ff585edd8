"""Every event the ledger can hold. The bytes of an event are frozen from the day it is written.

Invariant: golden files in tests/golden/events pin the bytes. The tag (`type`) ends in a version; a new shape is a new
class with a new tag, and the old class stays, with an upcaster in `ledger.event_codec`.

Units: `_us` Unix microseconds, `_s` seconds, `_micro` millionths of the unit of account, `_bp` hundredths of a percent.
Nothing here may identify a person: opaque ids, public keys and salted commitments only.
"""

from uuid import UUID

import msgspec

from ledger import judged as columns
from ledger.judged import Judged
from ledger.receipt import SIGNED_BYTES


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Fields every event has. `at_us` is when the hub says it happened; order is the position's, not the clock's."""

    originator_id: UUID
    originator_version: int
    at_us: int


# --- money ------------------------------------------------------------------------------------------------------


class Posting(msgspec.Struct, frozen=True, array_like=True):
    account: str
    amount_micro: int  # signed


class Transfer(msgspec.Struct, frozen=True, array_like=True):
    """A double-entry movement: postings sum to zero."""

    reason: str
    postings: tuple[Posting, ...]
    rests_on: tuple[int, ...] = ()  # log positions this transfer follows from


def transfers_of(event: Event) -> tuple[Transfer, ...]:
    """The movements of any event of the book; none for other events."""
    many: tuple[Transfer, ...] | None = getattr(event, "transfers", None)
    if many is not None:
        return many
    one: Transfer | None = getattr(event, "transfer", None)
    return () if one is None else (one,)


# --- crew -------------------------------------------------------------------------------------------------------


class CrewFounded(Event, frozen=True, tag="crew.founded.v1"):
    name: str
    unit: str  # unit of account, for example "EUR"
    genesis_us: int  # start of epoch 0, a whole multiple of the epoch length
    epoch_length_s: int


class SettingsChanged(Event, frozen=True, tag="crew.settings_changed.v1"):
    """The full set of numbers in force from this position on, so that a replay uses the same ones."""

    settings: dict[str, int]


class KeyAdded(Event, frozen=True, tag="crew.key_added.v1"):
    purpose: str  # "ticket" | "log"
    key_id: bytes
    public_key: bytes


class KeyRetired(Event, frozen=True, tag="crew.key_retired.v1"):
    purpose: str
    key_id: bytes


# --- streams and broadcasts ---------------------------------------------------------------------------------------


class StreamRegistered(Event, frozen=True, tag="stream.registered.v1"):
    name: str  # the public slug in URLs
    key_sha256: bytes
    owner_id: UUID  # the creator, an opaque id


class StreamKeyRotated(Event, frozen=True, tag="stream.key_rotated.v1"):
    key_sha256: bytes


class StreamWentLive(Event, frozen=True, tag="stream.went_live.v1"):
    broadcast_id: UUID


class StreamWentOffline(Event, frozen=True, tag="stream.went_offline.v1"):
    broadcast_id: UUID
    reason: str
    next_sequence: int  # the media sequence of a stream never goes back, not even in its next broadcast


class StreamArchived(Event, frozen=True, tag="stream.archived.v1"):
    reason: str


class StreamMarkedStale(Event, frozen=True, tag="stream.marked_stale.v1"):
    """Registered long ago and never used."""


class BroadcastStarted(Event, frozen=True, tag="broadcast.started.v1"):
    stream_id: UUID
    rendition_id: UUID
    first_sequence: int
    video_codec: str
    audio_codec: str


class Segment(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    duration_us: int
    segment_bytes: int
    sha256: bytes
    program_us: int  # PROGRAM-DATE-TIME
    discontinuity: bool = False


class SegmentsPublished(Event, frozen=True, tag="broadcast.segments_published.v1"):
    rendition_id: UUID
    segments: tuple[Segment, ...]


class BroadcastInterrupted(Event, frozen=True, tag="broadcast.interrupted.v1"):
    reason: str


class BroadcastResumed(Event, frozen=True, tag="broadcast.resumed.v1"):
    """The publisher came back within the grace period."""


class BroadcastEnded(Event, frozen=True, tag="broadcast.ended.v1"):
    reason: str
    next_sequence: int


# --- sessions, tickets, delivery ------------------------------------------------------------------------------------


class SessionOpened(Event, frozen=True, tag="session.opened.v1"):
    session_id: UUID
    stream_id: UUID
    viewer_class: int  # 1 signing, 2 plain
    viewer_key: bytes  # empty for a plain player
    prefix_commitment: bytes  # 16 bytes: salted commitment to the viewer's IPv4 /24 or IPv6 /48
    account_id: UUID | None  # the friend or creator who is watching, when known


class TicketIssued(Event, frozen=True, tag="ticket.issued.v1"):
    """The one event of its own aggregate, whose id follows from the ticket's hash: a receipt finds it by key."""

    session_id: UUID
    broadcast_id: UUID
    node_id: UUID
    ticket: bytes  # signed ticket, 254 bytes


class SessionObserved(Event, frozen=True, tag="session.observed.v1"):
    """What the hub itself saw a plain player do. Bitmaps as in a receipt."""

    session_id: UUID
    base_sequence: int
    polled: bytes  # listed to the player in its playlist polls
    fetched_at_hub: bytes  # fetched from the hub, among those pointed at it


class SegmentsServedV1(Event, frozen=True, tag="delivery.segments_served.v1"):
    """What SegmentsServed was. Its fields have one value for each receipt."""

    node_id: UUID
    batch_header: bytes
    indices: tuple[int, ...]
    receipts: bytes
    sessions: tuple[UUID, ...]
    networks: tuple[bytes, ...]
    judged: tuple[Judged, ...]
    first_sequence: int
    network_limit: int


class SegmentsServed(Event, frozen=True, tag="delivery.segments_served.v2"):
    """A node's batch with the verdict of each of its receipts, as judged against one broadcast.

    What is said of each receipt stands in columns, one value a receipt (docs/protocol.md has their bytes).
    """

    node_id: UUID
    batch_header: (
        bytes  # body and signature of the batch, 147 bytes; empty when the viewer sent the receipt itself
    )
    first_sequence: int  # of the broadcast: the origin of its credit bitmaps
    network_limit: int  # the setting prefix_sessions_max in force
    sessions: bytes  # the different sessions of the tickets, 16 bytes each: the fold needs no look-up
    networks: tuple[bytes, ...]  # the different commitments of the viewers' networks
    receipts: bytes  # 205 bytes each
    indices: bytes  # u8: which receipts of the batch these are, ascending
    session_of: bytes  # u8: which of `sessions`
    network_of: bytes  # u8: which of `networks`
    verdicts: bytes  # u8: ledger.verdict.VERDICTS
    caps: bytes  # u8: ledger.verdict.CAPS
    units: bytes  # u16: newly credited segments
    credited_bytes: bytes  # u64: the published sizes of those

    def __post_init__(self) -> None:
        if len(self.receipts) != len(self.indices) * SIGNED_BYTES or not columns.fit(
            indices=self.indices,
            sessions=self.sessions,
            session_of=self.session_of,
            networks=self.networks,
            network_of=self.network_of,
            verdicts=self.verdicts,
            caps=self.caps,
            units=self.units,
            credited_bytes=self.credited_bytes,
        ):
            raise ValueError("receipts and verdicts do not fit together")

    @property
    def judged(self) -> tuple[Judged, ...]:
        """The verdict of each receipt. Made anew each time: for readers that are not in a hurry."""
        return columns.unpack(self.verdicts, self.caps, self.units, self.credited_bytes)

    @property
    def session_ids(self) -> tuple[UUID, ...]:
        """The session of each receipt."""
        size = columns.SESSION_BYTES
        known = [UUID(bytes=self.sessions[i : i + size]) for i in range(0, len(self.sessions), size)]
        return tuple([known[i] for i in self.session_of])

    @property
    def viewer_networks(self) -> tuple[bytes, ...]:
        """The network of each receipt's viewer."""
        return tuple([self.networks[i] for i in self.network_of])


# --- nodes and invites ----------------------------------------------------------------------------------------------


class InviteCreated(Event, frozen=True, tag="invite.created.v1"):
    friend_id: UUID
    code_sha256: bytes
    expires_us: int


class InviteUsed(Event, frozen=True, tag="invite.used.v1"):
    node_id: UUID


class NodeJoined(Event, frozen=True, tag="node.joined.v1"):
    public_key: bytes
    friend_id: UUID
    invite_id: UUID
    prefix_commitment: bytes


class NodeMoved(Event, frozen=True, tag="node.moved.v1"):
    """The node's network changed. Its address is kept in an erasable table, never here."""

    prefix_commitment: bytes


class NodeSeenAt(Event, frozen=True, tag="node.seen_at.v1"):
    """The node is at this network too, or still (ledger.networks). Before, a move was taken for its only network."""

    prefix_commitment: bytes


class NodeWentOnline(Event, frozen=True, tag="node.went_online.v1"):
    pass


class NodeWentOffline(Event, frozen=True, tag="node.went_offline.v1"):
    reason: str


class NodeProbedV1(Event, frozen=True, tag="node.probed.v1"):
    """What NodeProbed was: it did not say whose session the probe's was."""

    outcome: str
    sequence: int
    latency_us: int
    segment_bytes: int


class NodeProbed(Event, frozen=True, tag="node.probed.v2"):
    """A spot check that is over. What its session was served is not paid, once this is known (docs/protocol.md)."""

    outcome: str  # "ok" | "wrong_bytes" | "unreachable" | "refused" | "slow"
    sequence: int
    latency_us: int
    segment_bytes: int
    session_id: UUID | None  # as a plain player's; None in events of before


class NodeSuspended(Event, frozen=True, tag="node.suspended.v1"):
    reason: str


class NodeReinstated(Event, frozen=True, tag="node.reinstated.v1"):
    reason: str


class NodeRetired(Event, frozen=True, tag="node.retired.v1"):
    reason: str


class ReceiptsRefused(Event, frozen=True, tag="node.receipts_refused.v1"):
    """Receipts of a batch that belong to no broadcast (malformed, or naming a ticket never issued)."""

    batch_header: bytes
    indices: tuple[int, ...]
    receipts: bytes
    judged: tuple[Judged, ...]


# --- book: everything that moves money --------------------------------------------------------------------------------


class TariffSet(Event, frozen=True, tag="book.tariff_set.v1"):
    stream_id: UUID
    tariff_version: int  # 1, 2, ... per stream
    effective_epoch: int
    rate_micro_per_gb: int  # per 10^9 bytes of signed delivery
    fee_bp: int
    floor_bp: int  # part of the pool that is shared equally among nodes that served
    plain_bp: int  # plain (class 2) bytes count this much of a signed byte
    plain_income_cap_bp: int  # at most this part of a node's income may come from plain bytes


class BudgetDeposited(Event, frozen=True, tag="book.budget_deposited.v1"):
    stream_id: UUID
    reference: str
    transfer: Transfer


class BudgetWithdrawn(Event, frozen=True, tag="book.budget_withdrawn.v1"):
    stream_id: UUID
    reference: str
    transfer: Transfer


class SettlementLine(msgspec.Struct, frozen=True, array_like=True):
    """What one node earned from one stream in one epoch, for one reason."""

    stream_id: UUID
    node_id: UUID
    friend_id: UUID
    reason: str  # "delivery" | "delivery_late" | "plain_delivery" | "plain_delivery_late" | "over_rate" | "floor_share"
    units: int
    credited_bytes: int
    rate_micro_per_gb: int
    tariff_version: int
    amount_micro: int


class EpochSettled(Event, frozen=True, tag="book.epoch_settled.v1"):
    """One page of an epoch's settlement; all pages are appended in one transaction, the last has `page == pages`."""

    epoch: int
    page: int  # 1-based
    pages: int
    log_from: int  # the credits in positions [log_from, log_to) are settled here
    log_to: int
    lines: tuple[SettlementLine, ...]
    transfers: tuple[Transfer, ...]


class HoldsReleased(Event, frozen=True, tag="book.holds_released.v1"):
    """The hold on an epoch's earnings is over: pending becomes available."""

    epoch: int
    page: int
    pages: int
    transfers: tuple[Transfer, ...]


class PayoutLine(msgspec.Struct, frozen=True, array_like=True):
    line: int  # 1-based within the batch
    friend_id: UUID
    amount_micro: int
    destination_commitment: bytes  # salted; the destination itself is in an erasable table


class PayoutPlanned(Event, frozen=True, tag="payout.planned.v1"):
    rail: str
    lines: tuple[PayoutLine, ...]


class PayoutApproved(Event, frozen=True, tag="payout.approved.v1"):
    operator: str


class PayoutCancelled(Event, frozen=True, tag="payout.cancelled.v1"):
    reason: str


class PayoutLineReserved(Event, frozen=True, tag="book.payout_line_reserved.v1"):
    """available -> in flight."""

    batch_id: UUID
    line: int
    transfer: Transfer


class PayoutAttempted(Event, frozen=True, tag="payout.attempted.v1"):
    """Persisted before the rail is called. `key` is deterministic: the rail pays one key once."""

    line: int
    attempt: int
    key: str


class PayoutResolved(Event, frozen=True, tag="payout.resolved.v1"):
    line: int
    attempt: int
    outcome: str  # "confirmed" | "failed" | "unknown"
    reference: str


class PayoutLineConfirmed(Event, frozen=True, tag="book.payout_line_confirmed.v1"):
    """in flight -> paid."""

    batch_id: UUID
    line: int
    transfer: Transfer


class PayoutLineFailed(Event, frozen=True, tag="book.payout_line_failed.v1"):
    """in flight -> available."""

    batch_id: UUID
    line: int
    transfer: Transfer


# --- disputes and adjustments ---------------------------------------------------------------------------------------


class DisputeOpened(Event, frozen=True, tag="book.dispute_opened.v1"):
    """One settlement line is frozen: its amount stays pending when the rest of its epoch is released."""

    dispute: int  # 1, 2, ...
    epoch: int
    position: int  # of the settlement that has the line
    settled_version: int  # the same, as a version of the book
    line: int  # in that event, from 0
    friend_id: UUID
    stream_id: UUID
    amount_micro: int
    opened_by: str  # "operator" | "friend" | "creator"
    reason: str


class DisputeUpheld(Event, frozen=True, tag="book.dispute_upheld.v1"):
    """The line is void: pending goes back to the budget."""

    dispute: int
    friend_id: UUID
    amount_micro: int
    reason: str
    transfers: tuple[Transfer, ...]  # one


class DisputeRejected(Event, frozen=True, tag="book.dispute_rejected.v1"):
    """The line holds: it is released with the rest of its epoch, or at once when that is released already."""

    dispute: int
    friend_id: UUID
    amount_micro: int
    reason: str
    transfers: tuple[Transfer, ...]  # none, or one from pending to available


class AdjustmentBooked(Event, frozen=True, tag="book.adjustment_booked.v1"):
    """A correction by hand, between a budget, the fees and what is available to a friend."""

    reference: str
    reason: str
    transfer: Transfer


class PayoutProposed(Event, frozen=True, tag="payout.proposed.v1"):
    """Who planned the payout; recorded with the plan. Above a limit somebody else has to approve it."""

    operator: str


class PayoutLineReturned(Event, frozen=True, tag="book.payout_line_returned.v1"):
    """paid -> available: all or a part of what was paid came back, such as from a closed account."""

    batch_id: UUID
    line: int
    reference: str
    reason: str
    transfer: Transfer


# --- the tree ---------------------------------------------------------------------------------------------------------


class StateRecorded(Event, frozen=True, tag="tree.state_recorded.v1"):
    """SHA-256 over the sorted balances after all events before `position`, so that audits compare books."""

    position: int
    accounts: int
    balances_sha256: bytes
