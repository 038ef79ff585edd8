"""The verdict on a receipt: a pure function of the log's prefix, the receipt and the time.

Invariant: the verdict is the first rule, in the order of `Verdict`, that applies; only units that were never credited
are credited; a refused receipt changes nothing. The same inputs give the same verdict in an audit, except for the
digest, which only the hub could check while it held the segment bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from ledger.credit import CreditSet, Units, count
from ledger.events import Judged
from ledger.receipt import SignedReceipt, fold_digests
from ledger.settings import Settings
from ledger.ticket import Ticket, WireError
from ledger.verdict import Cap, Verdict

DigestOf = Callable[[bytes, int], bytes | None]
"""(nonce, sequence) -> SHA-256(nonce + segment), or None when the hub no longer knows it."""


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What the log says of the session that the ticket names."""

    network: bytes  # commitment to the viewer's network prefix
    account_id: UUID | None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the log says of the node that sent the receipt, at this point."""

    public_key: bytes
    friend_id: UUID
    network: bytes
    suspended: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """Sizes in bytes of the published segments of a broadcast, by sequence. `first` is its first sequence."""

    first: int
    sizes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Judgement:
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
    receipt = signed.receipt
    if ticket.node_key != node.public_key:
        return refused(Verdict.WRONG_NODE)
    if not signed.verified_by(ticket.viewer_key):
        return refused(Verdict.BAD_SIGNATURE)
    if now_s > ticket.settle_by_s:
        return refused(Verdict.LATE)
    sequences = receipt.sequences()
    if not all(ticket.covers(s) and s in manifest.sizes for s in sequences):
        return refused(Verdict.OUT_OF_RANGE)
    if not _digest_holds(receipt.digest, ticket.nonce, sequences, digest_of):
        return refused(Verdict.DIGEST_MISMATCH)
    claimed = to_units(sequences, manifest.first)
    fresh = credits.missing(ticket.session_id, claimed)
    if not fresh:
        return refused(Verdict.DUPLICATE)
    if node.suspended:
        return refused(Verdict.CAPPED, Cap.NODE_SUSPENDED)
    if session.account_id is not None and session.account_id == node.friend_id:
        return refused(Verdict.CAPPED, Cap.OWN_ACCOUNT)
    if settings.same_network_forbidden and session.network and session.network == node.network:
        return refused(Verdict.CAPPED, Cap.SAME_NETWORK)
    if sum(manifest.sizes[s] for s in sequences) > ticket.byte_budget:
        return refused(Verdict.CAPPED, Cap.BYTE_BUDGET)
    payable = credits.within_network_limit(session.network, fresh, settings.prefix_sessions_max)
    if not payable:
        return refused(Verdict.CAPPED, Cap.PREFIX_SESSIONS)
    paid_bytes = sum(manifest.sizes[s] for s in to_sequences(payable, manifest.first))
    return Judgement(Judged(Verdict.ACCEPTED.value, count(payable), paid_bytes), payable)


def _digest_holds(digest: bytes, nonce: bytes, sequences: list[int], digest_of: DigestOf) -> bool:
    """True also when the hub no longer knows a segment: what the hub lost must not cost a friend."""
    known = [digest_of(nonce, s) for s in sequences]
    return any(d is None for d in known) or fold_digests(d for d in known if d is not None) == digest


def to_units(sequences: list[int], first: int) -> Units:
    units = 0
    for s in sequences:
        units |= 1 << (s - first)
    return units


def to_sequences(units: Units, first: int) -> list[int]:
    found = []
    while units:
        low = units & -units
        found.append(first + low.bit_length() - 1)
        units ^= low
    return found
