"""What the read models read of each event. The rest of its bytes is stepped over, ids stay the 16 bytes that they are.

Invariant: `of(event)` has the fields of the event under their own names, an id as its bytes; bytes that `Reader.read`
gives excerpts of are events that `ledger.event_codec.decode` reads, as far as the fields here go. An old version of an
event, an unknown one and bytes that do not fit have no excerpt: they are for `ledger.events`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Union

import msgspec

from ledger.event_codec import EVENT_TYPES, encode
from ledger.events import Event
from ledger.judged import SIZE_BYTES, UNITS_BYTES, Judged
from ledger.receipt import SIGNED_BYTES
from ledger.verdict import CAPS, VERDICTS

Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]  # of a UUID
Posting = tuple[str, int]  # account, amount_micro

_VERDICT_CODES: Final = bytes(range(len(VERDICTS)))
_CAP_CODES: Final = bytes(range(len(CAPS)))


class Excerpt(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", gc=False):
    originator_id: Id
    at_us: int


class Transfer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    reason: str
    postings: tuple[Posting, ...]


# --- streams and broadcasts -------------------------------------------------------------------------------------------


class StreamRegistered(Excerpt, frozen=True, tag="stream.registered.v1"):
    name: str
    owner_id: Id


class StreamWentLive(Excerpt, frozen=True, tag="stream.went_live.v1"):
    broadcast_id: Id


class StreamWentOffline(Excerpt, frozen=True, tag="stream.went_offline.v1"):
    pass


class StreamArchived(Excerpt, frozen=True, tag="stream.archived.v1"):
    pass


class StreamMarkedStale(Excerpt, frozen=True, tag="stream.marked_stale.v1"):
    pass


class BroadcastStarted(Excerpt, frozen=True, tag="broadcast.started.v1"):
    stream_id: Id
    rendition_id: Id


class Segment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    sequence: int
    duration_us: int
    segment_bytes: int


class SegmentsPublished(Excerpt, frozen=True, tag="broadcast.segments_published.v1"):
    segments: tuple[Segment, ...]


class BroadcastInterrupted(Excerpt, frozen=True, tag="broadcast.interrupted.v1"):
    pass


class BroadcastResumed(Excerpt, frozen=True, tag="broadcast.resumed.v1"):
    pass


# --- sessions and delivery --------------------------------------------------------------------------------------------


class SessionOpened(Excerpt, frozen=True, tag="session.opened.v1"):
    stream_id: Id


class SegmentsServed(Excerpt, frozen=True, tag="delivery.segments_served.v2"):
    node_id: Id
    batch_header: bytes
    verdicts: bytes
    caps: bytes
    units: bytes
    credited_bytes: bytes
    receipts: bytes | int  # or their length, where the log left them out


# --- nodes ------------------------------------------------------------------------------------------------------------


class NodeJoined(Excerpt, frozen=True, tag="node.joined.v1"):
    friend_id: Id


class NodeMoved(Excerpt, frozen=True, tag="node.moved.v1"):
    pass


class NodeSeenAt(Excerpt, frozen=True, tag="node.seen_at.v1"):
    pass


class NodeWentOnline(Excerpt, frozen=True, tag="node.went_online.v1"):
    pass


class NodeWentOffline(Excerpt, frozen=True, tag="node.went_offline.v1"):
    pass


class NodeProbed(Excerpt, frozen=True, tag="node.probed.v2"):
    outcome: str


class NodeSuspended(Excerpt, frozen=True, tag="node.suspended.v1"):
    reason: str


class NodeReinstated(Excerpt, frozen=True, tag="node.reinstated.v1"):
    pass


class NodeRetired(Excerpt, frozen=True, tag="node.retired.v1"):
    reason: str


class ReceiptsRefused(Excerpt, frozen=True, tag="node.receipts_refused.v1"):
    batch_header: bytes
    judged: tuple[Judged, ...]


# --- money ------------------------------------------------------------------------------------------------------------


class BudgetDeposited(Excerpt, frozen=True, tag="book.budget_deposited.v1"):
    transfer: Transfer


class BudgetWithdrawn(Excerpt, frozen=True, tag="book.budget_withdrawn.v1"):
    transfer: Transfer


class SettlementLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    stream_id: Id
    node_id: Id
    friend_id: Id
    reason: str
    units: int
    credited_bytes: int
    rate_micro_per_gb: int
    tariff_version: int
    amount_micro: int


class EpochSettled(Excerpt, frozen=True, tag="book.epoch_settled.v1"):
    epoch: int
    lines: tuple[SettlementLine, ...]
    transfers: tuple[Transfer, ...]


class HoldsReleased(Excerpt, frozen=True, tag="book.holds_released.v1"):
    epoch: int
    transfers: tuple[Transfer, ...]


class _PayoutMoved(Excerpt, frozen=True):
    batch_id: Id
    line: int
    transfer: Transfer


class PayoutLineReserved(_PayoutMoved, frozen=True, tag="book.payout_line_reserved.v1"):
    pass


class PayoutLineConfirmed(_PayoutMoved, frozen=True, tag="book.payout_line_confirmed.v1"):
    pass


class PayoutLineFailed(_PayoutMoved, frozen=True, tag="book.payout_line_failed.v1"):
    pass


class PayoutLineReturned(_PayoutMoved, frozen=True, tag="book.payout_line_returned.v1"):
    reason: str


class DisputeOpened(Excerpt, frozen=True, tag="book.dispute_opened.v1"):
    friend_id: Id
    amount_micro: int
    reason: str


class DisputeUpheld(Excerpt, frozen=True, tag="book.dispute_upheld.v1"):
    friend_id: Id
    amount_micro: int
    reason: str
    transfers: tuple[Transfer, ...]


class DisputeRejected(Excerpt, frozen=True, tag="book.dispute_rejected.v1"):
    friend_id: Id
    amount_micro: int
    reason: str
    transfers: tuple[Transfer, ...]


class AdjustmentBooked(Excerpt, frozen=True, tag="book.adjustment_booked.v1"):
    reason: str
    transfer: Transfer


# --- payouts ----------------------------------------------------------------------------------------------------------


class PayoutLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    line: int
    friend_id: Id
    amount_micro: int


class PayoutPlanned(Excerpt, frozen=True, tag="payout.planned.v1"):
    rail: str
    lines: tuple[PayoutLine, ...]


class PayoutProposed(Excerpt, frozen=True, tag="payout.proposed.v1"):
    operator: str


class PayoutApproved(Excerpt, frozen=True, tag="payout.approved.v1"):
    operator: str


class PayoutCancelled(Excerpt, frozen=True, tag="payout.cancelled.v1"):
    reason: str


class PayoutAttempted(Excerpt, frozen=True, tag="payout.attempted.v1"):
    line: int
    attempt: int
    key: str


class PayoutResolved(Excerpt, frozen=True, tag="payout.resolved.v1"):
    line: int
    outcome: str
    reference: str


# --- reading ----------------------------------------------------------------------------------------------------------


def _leaves(cls: type[Excerpt]) -> Iterable[type[Excerpt]]:
    subs = cls.__subclasses__()
    return [cls] if not subs else [leaf for s in subs for leaf in _leaves(s)]


_BY_TAG: Final = {str(c.__struct_config__.tag): c for c in _leaves(Excerpt)}
EXCERPTS: Final[dict[type[Event], type[Excerpt]]] = {EVENT_TYPES[tag]: c for tag, c in _BY_TAG.items()}
_decoders: Final = {kind: msgspec.msgpack.Decoder(excerpt) for kind, excerpt in EXCERPTS.items()}


class NoExcerptError(Exception):
    """Among the bytes is an event that `ledger.events` has to look at."""


def of(event: Event) -> Excerpt:
    """Raises KeyError for an event of which no read model reads anything."""
    return _decoders[type(event)].decode(encode(event))


class Reader:
    """Excerpts of many events at once, all of them of some kinds: one call of the decoder."""

    def __init__(self, kinds: Iterable[type[Event]]) -> None:
        wanted: Any = Union[tuple(EXCERPTS[kind] for kind in kinds)]  # noqa: UP007  # they are known now only
        self._decoder: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[wanted])

    def read(self, count: int, states: bytes) -> list[Any]:
        """`states` are the exact bytes of `count` events, one behind the other. Raises NoExcerptError."""
        try:
            read = self._decoder.decode(b"\xdd" + count.to_bytes(4) + states)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NoExcerptError(str(error)) from error
        served = [excerpt for excerpt in read if type(excerpt) is SegmentsServed]
        if served and not _fit(served):
            raise NoExcerptError("receipts and verdicts do not fit together")
        return read


def _fit(served: list[SegmentsServed]) -> bool:
    """As `ledger.judged.fit` for each, as far as the fields here go; all at once, because one by one it is felt."""
    verdicts, caps = [s.verdicts for s in served], [s.caps for s in served]
    counts = list(map(len, verdicts))
    lengths = [s.receipts if isinstance(s.receipts, int) else len(s.receipts) for s in served]
    return (
        counts == list(map(len, caps))
        and [UNITS_BYTES * n for n in counts] == [len(s.units) for s in served]
        and [SIZE_BYTES * n for n in counts] == [len(s.credited_bytes) for s in served]
        and [SIGNED_BYTES * n for n in counts] == lengths
        and not b"".join(verdicts).translate(None, _VERDICT_CODES)
        and not b"".join(caps).translate(None, _CAP_CODES)
    )
