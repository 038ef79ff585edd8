"""The verdict on a receipt: a pure function of the log's prefix, the receipt and the time.

Invariant: the verdict is the first rule, in the order of `Verdict`, that applies; only units that were never credited
are credited; a refused receipt changes nothing. The same inputs give the same verdict in an audit, except for the
digest, which only the hub could check while it held the segment bytes.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ledger.credit import CreditSet, Units, count
from ledger.judged import Judged
from ledger.receipt import SignedReceipt, fold_digests
from ledger.settings import Settings
from ledger.ticket import Ticket, ViewerClass, WireError
from ledger.verdict import Cap, Verdict

DigestOf = Callable[[bytes, int], bytes | None]
"""(nonce, sequence) -> SHA-256(nonce + segment), or None when the hub no longer knows it."""


_ACCEPTED: Final = Verdict.ACCEPTED.value


class Claim(Protocol):
    """What a receipt says, apart from its signature (ledger.receipt.Receipt)."""

    @property
    def base_sequence(self) -> int: ...
    @property
    def bitmap(self) -> bytes: ...
    @property
    def digest(self) -> bytes: ...


class SessionFacts(NamedTuple):
    """What the log says of the session that the ticket names."""

    network: bytes  # commitment to the viewer's network prefix
    account_id: UUID | None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the log says of the node that sent the receipt, at this point."""

    public_key: bytes
    friend_id: UUID
    networks: frozenset[bytes]  # commitments to every network it was seen at lately
    suspended: bool


class Manifest:
    """Sizes of the published segments of a broadcast: sequences `first`, `first + 1`, ... It grows at its end only.

    Sums are kept, not sizes: a receipt claims a run of up to 512 segments, and its bytes are one subtraction. Together
    the segments have less than 2^63 bytes.
    """

    __slots__ = ("_sums", "first", "next")

    def __init__(self, first: int, sizes: Iterable[int] = ()) -> None:
        self.first = first
        self.next = first  # the sequence after the last
        self._sums = array("q", (0,))  # [i]: bytes of the first i segments
        for segment_bytes in sizes:
            self.append(segment_bytes)

    def append(self, segment_bytes: int) -> None:
        self._sums.append(self._sums[-1] + segment_bytes)
        self.next += 1

    def before(self, end: int) -> "Manifest":
        """As it was before the segment `end` was published. It shares the sums, which only grow."""
        earlier = Manifest(self.first)
        earlier.next, earlier._sums = min(end, self.next), self._sums
        return earlier

    def sums(self) -> NDArray[np.int64]:
        """A copy: [i] is the bytes of the first i segments."""
        return np.frombuffer(self._sums, np.int64, self.next - self.first + 1).copy()

    def bytes_between(self, start: int, end: int) -> int:
        """Bytes of the published segments with sequences in [start, end)."""
        low, high = max(start, self.first), min(end, self.next)
        return self._sums[high - self.first] - self._sums[low - self.first] if low < high else 0

    def total_bytes(self, units: Units) -> int:
        """Bytes of the segments in `units`, all of which must be published."""
        total = start = 0
        while units:
            gap = (units & -units).bit_length() - 1
            units >>= gap
            start += gap
            run = (~units & (units + 1)).bit_length() - 1
            total += self._sums[start + run] - self._sums[start]
            units >>= run
            start += run
        return total


class Judgement(NamedTuple):
    judged: Judged
    units: Units = 0  # what to credit, relative to the manifest's first sequence


def parse_receipt(data: bytes) -> SignedReceipt | None:
    """None when the bytes are not a receipt of a known version."""
    try:
        return SignedReceipt.decode(data)
    except WireError:
        return None


def refused(verdict: Verdict, cap: Cap = Cap.NONE) -> Judgement:
    return Judgement(Judged(verdict=verdict.value, cap=cap.value))


def judge(
    signed: SignedReceipt,
    ticket: Ticket,
    *,
    node: NodeFacts,
    session: SessionFacts,
    manifest: Manifest,
    credits: CreditSet,
    settings: Settings,
    digest_of: DigestOf,
    now_s: int,
) -> Judgement:
    """The verdict on one receipt whose ticket the hub issued. Changes nothing."""
    if ticket.node_key != node.public_key:
        return refused(Verdict.WRONG_NODE)
    if not signed.verified_by(ticket.viewer_key):
        return refused(Verdict.BAD_SIGNATURE)
    return judge_signed(
        signed.receipt,
        ticket,
        node=node,
        session=session,
        manifest=manifest,
        credits=credits,
        settings=settings,
        digest_of=digest_of,
        now_s=now_s,
    )


def judge_signed(
    receipt: Claim,
    ticket: Ticket,
    *,
    node: NodeFacts,
    session: SessionFacts,
    manifest: Manifest,
    credits: CreditSet,
    settings: Settings,
    digest_of: DigestOf,
    now_s: int,
) -> Judgement:
    """The verdict on a receipt of the right node, whose signature holds."""
    if now_s > ticket.settle_by_s:
        return refused(Verdict.LATE)
    claimed = claimed_units(receipt, ticket, manifest)
    if claimed is None:
        return refused(Verdict.OUT_OF_RANGE)
    if not _digest_holds(receipt.digest, ticket.nonce, claimed, manifest.first, digest_of):
        return refused(Verdict.DIGEST_MISMATCH)
    fresh = credits.missing(ticket.session_id, claimed)
    if not fresh:
        return refused(Verdict.DUPLICATE)
    if node.suspended and not (settings.suspended_signed_paid and ticket.viewer_class is ViewerClass.SIGNING):
        return refused(Verdict.CAPPED, Cap.NODE_SUSPENDED)
    if session.account_id is not None and session.account_id == node.friend_id:
        return refused(Verdict.CAPPED, Cap.OWN_ACCOUNT)
    if settings.same_network_forbidden and session.network and session.network in node.networks:
        return refused(Verdict.CAPPED, Cap.SAME_NETWORK)
    if manifest.bytes_between(ticket.first_sequence, ticket.last_sequence + 1) > ticket.byte_budget:
        # The receipts of a ticket may claim its segments in parts: what is credited already counts against it too.
        spent = claimed | credits.credited(ticket.session_id) & _range(ticket, manifest.first)
        if manifest.total_bytes(spent) > ticket.byte_budget:
            return refused(Verdict.CAPPED, Cap.BYTE_BUDGET)
    payable = credits.within_network_limit(session.network, fresh, settings.prefix_sessions_max)
    if not payable:
        return refused(Verdict.CAPPED, Cap.PREFIX_SESSIONS)
    paid_bytes = manifest.total_bytes(payable)
    return Judgement(Judged(_ACCEPTED, count(payable), paid_bytes), payable)


def _range(ticket: Ticket, first: int) -> Units:
    """The segments that the ticket covers, relative to `first`."""
    start, end = max(ticket.first_sequence - first, 0), max(ticket.last_sequence + 1 - first, 0)
    return (1 << end) - (1 << start) if end > start else 0


def claimed_units(receipt: Claim, ticket: Ticket, manifest: Manifest) -> Units | None:
    """What the receipt claims, relative to the manifest's first sequence.

    None when it claims a segment that the ticket does not cover or that was never published.
    """
    bits = int.from_bytes(receipt.bitmap, "little")
    if not bits:
        return 0
    lowest = receipt.base_sequence + (bits & -bits).bit_length() - 1
    highest = receipt.base_sequence + bits.bit_length() - 1
    if lowest < max(ticket.first_sequence, manifest.first):
        return None
    if highest > ticket.last_sequence or highest >= manifest.next:
        return None
    return units_of(receipt, manifest.first)


def units_of(receipt: Claim, first: int) -> Units:
    """The bitmap relative to `first`; no bit of it may stand for a sequence before."""
    bits = int.from_bytes(receipt.bitmap, "little")
    shift = receipt.base_sequence - first
    return bits << shift if shift >= 0 else bits >> -shift


def _digest_holds(digest: bytes, nonce: bytes, claimed: Units, first: int, digest_of: DigestOf) -> bool:
    """True also when the hub no longer knows a segment: what the hub lost must not cost a friend."""
    known = []
    for sequence in to_sequences(claimed, first):
        segment = digest_of(nonce, sequence)
        if segment is None:
            return True
        known.append(segment)
    return fold_digests(known) == digest


def to_sequences(units: Units, first: int) -> Iterator[int]:
    """The sequences in `units`, ascending."""
    while units:
        low = units & -units
        yield first + low.bit_length() - 1
        units ^= low
