"""Every event the ledger can hold. The bytes of an event are frozen from the day it is written.

Invariant: `decode_stored(encode(e)) == e`, and `encode(decode_stored(b)) == b` for every stored `b`; golden files in
tests/golden/events pin the bytes. The tag (`type`) ends in a version; a new shape is a new class with a new tag, and
the old class stays, with an upcaster in `UPCASTERS`, so that `decode` gives the newest shape of every event. An unknown
tag is an error, never skipped.

Units: `_us` Unix microseconds, `_s` seconds, `_micro` millionths of the unit of account, `_bp` hundredths of a percent.
Nothing here may identify a person: opaque ids, public keys and salted commitments only.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from ledger import judged as columns
from ledger.judged import Judged as Judged  # a part of events, like the structs here
from ledger.receipt import SIGNED_BYTES

MAX_EVENT_BYTES: Final = 65_535  # a C2SP entry bundle gives each entry a 16-bit length


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Fields every event has. `at_us` is when the hub says it happened; order is the position's, not the clock's."""

    originator_id: UUID
    originator_version: int
    at_us: int


class UnknownEventError(ValueError):
    """Stored bytes that no version of this program can read."""


# --- money ------------------------------------------------------------------------------------------------------


class Posting(msgspec.Struct, frozen=True, array_like=True):
    account: str
    amount_micro: int  # signed


class Transfer(msgspec.Struct, frozen=True, array_like=True):
    """A double-entry movement: postings sum to zero."""

    reason: str
    postings: tuple[Posting, ...]
    rests_on: tuple[int, ...] = ()  # log positions this transfer follows from


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


# --- codec ------------------------------------------------------------------------------------------------------------


def _leaves(cls: type[Event]) -> list[type[Event]]:
    subs = cls.__subclasses__()
    return [cls] if not subs else [leaf for s in subs for leaf in _leaves(s)]


EVENT_TYPES: Final[dict[str, type[Event]]] = {str(c.__struct_config__.tag): c for c in _leaves(Event)}


def _served_in_columns(old: SegmentsServedV1) -> SegmentsServed:
    return SegmentsServed(
        originator_id=old.originator_id,
        originator_version=old.originator_version,
        at_us=old.at_us,
        node_id=old.node_id,
        batch_header=old.batch_header,
        first_sequence=old.first_sequence,
        network_limit=old.network_limit,
        receipts=old.receipts,
        **columns.pack(old.indices, old.sessions, old.networks, old.judged),
    )


def _probed_by_nobody(old: NodeProbedV1) -> NodeProbed:
    return NodeProbed(
        originator_id=old.originator_id,
        originator_version=old.originator_version,
        at_us=old.at_us,
        outcome=old.outcome,
        sequence=old.sequence,
        latency_us=old.latency_us,
        segment_bytes=old.segment_bytes,
        session_id=None,
    )


# Old event class -> function to the class that replaced it. Raises ValueError for facts that never were.
UPCASTERS: Final[dict[type[Event], Callable[[Any], Event]]] = {
    NodeProbedV1: _probed_by_nobody,
    SegmentsServedV1: _served_in_columns,
}

# What a decoder raises: the last for arrays within arrays, thousands deep.
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder: Final = msgspec.msgpack.Encoder(uuid_format="bytes")
_parts: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_decoders: Final = {tag: msgspec.msgpack.Decoder(cls) for tag, cls in EVENT_TYPES.items()}


def tag_of(event: Event) -> str:
    return str(type(event).__struct_config__.tag)


def encode(event: Event) -> bytes:
    """The exact bytes that are stored, hashed into the tree and published (MessagePack map).

    Raises ValueError when the event is larger than a log entry can be.
    """
    data = _encoder.encode(event)
    if len(data) > MAX_EVENT_BYTES:
        raise ValueError(f"{tag_of(event)} is {len(data)} bytes; a log entry holds at most {MAX_EVENT_BYTES}")
    return data


def encode_each(events: Sequence[Event]) -> list[msgspec.Raw]:
    """As `encode` of each, in two calls for all of them. What it gives is bytes-like and has a length."""
    parts = _parts.decode(_encoder.encode(events))
    if max(map(len, parts), default=0) > MAX_EVENT_BYTES:
        for event in events:
            encode(event)  # raises
    return parts


def decode(data: bytes, tag: str | None = None) -> Event:
    """Read stored bytes, in whatever version, as the newest version of that event. As `decode_stored` otherwise."""
    return upcast(decode_stored(data, tag))


def decode_stored(data: bytes | memoryview, tag: str | None = None) -> Event:
    """Read stored bytes as the version of the event in which they were written.

    Raises UnknownEventError for a type this program does not know or bytes that do not fit it. `tag` (the stored
    topic) saves a pass over the bytes; when given it must be the event's own.
    """
    try:
        return _decoders[tag if tag is not None else _tag_in(data)].decode(data)
    except KeyError as e:
        raise UnknownEventError(
            f"unknown event type {e.args[0]!r}: this program is older than the log"
        ) from e
    except _UNREADABLE as e:
        raise UnknownEventError(f"stored bytes are not a {tag or 'known'} event: {e}") from e


def check_tag(data: bytes, tag: str) -> None:
    """Raises UnknownEventError unless the bytes begin as those of a known event `tag`; the rest is not looked at."""
    prefix = _PREFIXES.get(tag)
    if prefix is None:
        raise UnknownEventError(f"unknown event type {tag!r}: this program is older than the log")
    if not data.startswith(prefix):
        raise UnknownEventError(f"stored bytes are not a {tag} event: they begin with {data[:48]!r}")


def prefix_of(cls: type[Event]) -> bytes:
    """The head of the map, the name of its first field and the tag: the same for every event of the class."""
    fields = 1 + len(cls.__struct_fields__)
    head = bytes([0x80 | fields]) if fields < 16 else b"\xde" + fields.to_bytes(2)
    return head + _encoder.encode("type") + _encoder.encode(cls.__struct_config__.tag)


_PREFIXES: Final = {tag: prefix_of(cls) for tag, cls in EVENT_TYPES.items()}


def upcast(event: Event) -> Event:
    """The event in its newest version. Raises UnknownEventError when it says what no hub ever wrote."""
    newer = UPCASTERS.get(type(event))
    if newer is None:
        return event
    try:
        return newer(event)
    except ValueError as e:
        raise UnknownEventError(f"{tag_of(event)} cannot be read as what replaced it: {e}") from e


def _tag_in(data: bytes | memoryview) -> str:
    """The tag, from the head of the bytes where it stands as we write it: the rest is long."""
    head = bytes(data[:_HEAD_BYTES])
    at = 3 if head[:1] == b"\xde" else 1  # after the map's size
    short = (
        len(head) > at + 5 and head[at : at + 5] == b"\xa4type" and 0xA0 <= head[at + 5] < 0xC0
    )  # a fixstr
    end = at + 6 + (head[at + 5] & 0x1F) if short else 0
    if 0 < end <= len(head):
        return head[at + 6 : end].decode()
    return _peek.decode(data).type


_HEAD_BYTES: Final = 40


def happened_us(data: bytes) -> int:
    """`at_us` of stored bytes, also of a type that this program does not know. Raises UnknownEventError."""
    try:
        return _when.decode(data).at_us
    except _UNREADABLE as e:
        raise UnknownEventError(f"stored bytes are no event: {e}") from e


class _Peek(msgspec.Struct):
    type: str


class _When(msgspec.Struct):
    at_us: int


_peek: Final = msgspec.msgpack.Decoder(_Peek)
_when: Final = msgspec.msgpack.Decoder(_When)
