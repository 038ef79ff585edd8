"""The verdicts on the receipts of a batch, together: what `ledger.judge` says of each in turn, in arrays.

Invariant: `judge` gives what `ledger.judge.judge_signed` gives for the receipts one after the other, each crediting
what it is paid for before the next is judged, byte for byte. Rules that look at one receipt and the log before it are
decided in arrays; so are credits that only one receipt of the batch can touch (`CreditColumns.plan`), bitmap by bitmap
where they are no run. The rest goes through `judge_signed` itself, in order.

Pure, like `ledger.judge`: an audit may use it, as it uses that, with columns it made itself.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ledger import runs
from ledger.credit import Units, count
from ledger.credit_columns import Claims, CreditColumns, Flags, Guesses, Ints, Plan, every
from ledger.judge import Manifest, NodeFacts, SessionFacts, judge_signed
from ledger.judged import CAP_CODES, SIZE_BYTES, UNITS_BYTES, VERDICT_CODES
from ledger.receipt import BODY_BYTES as RECEIPT_BODY_BYTES
from ledger.receipt import MAX_BASE_SEQUENCE, SIGNED_BYTES, VERSION, Receipt, fold_digests
from ledger.settings import Settings
from ledger.ticket import BODY_BYTES, Ticket, ViewerClass
from ledger.verdict import CAPS, VERDICTS, Cap, Verdict

RECEIPT: Final = np.dtype(  # a signed receipt as ledger.receipt writes it
    [
        ("version", "u1"),
        ("ticket_hash", "V32"),
        ("counter", ">u4"),
        ("base_sequence", ">u8"),
        ("bitmap", "<u8", 8),
        ("digest", "V32"),
        ("signature", "V64"),
    ]
)
TICKET: Final = np.dtype(  # a ticket's body as ledger.ticket writes it
    [
        ("version", "u1"),
        ("viewer_class", "u1"),
        ("hub_key_id", "V8"),
        ("ticket_id", "V16"),
        ("session_id", "V16"),
        ("stream_id", "V16"),
        ("rendition_id", "V16"),
        ("viewer_key", "V32"),
        ("node_key", "V32"),
        ("first_sequence", ">u8"),
        ("last_sequence", ">u8"),
        ("settle_by_s", ">u8"),
        ("tariff_version", ">u4"),
        ("byte_budget", ">u8"),
        ("nonce", "V16"),
    ]
)
KNOWN: Final = np.dtype(  # what the log says of a ticket: its body, its broadcast, and who watches from where
    [
        ("ticket", TICKET),
        ("broadcast", "V16"),
        ("account", "V16"),  # if there is one
        ("network", "V16"),  # the commitment to it, if there is one
        ("has_account", "?"),
        ("has_network", "?"),
    ]
)
assert (RECEIPT.itemsize, TICKET.itemsize) == (SIGNED_BYTES, BODY_BYTES)

_SAID: Final = np.dtype(  # of a receipt: base sequence, bitmap and digest
    {"names": ["said"], "formats": ["V104"], "offsets": [37], "itemsize": SIGNED_BYTES}
)
_CLAIMED: Final = struct.Struct(">37xQ64s")  # base sequence and bitmap of a receipt
_UNDECIDED: Final = 255
_CODE: Final = {verdict: VERDICT_CODES[verdict.value] for verdict in VERDICTS}
_CAP: Final = {cap: CAP_CODES[cap.value] for cap in CAPS}
ACCEPTED: Final = _CODE[Verdict.ACCEPTED]
_NOTHING: Final = fold_digests(())  # the digest of a receipt that claims nothing

Words = NDArray[np.uint64]
Known = NDArray[Any]  # KNOWN
ReceiptDigestOf = Callable[[bytes, Sequence[int]], bytes | None]
"""(nonce, sequences) -> the digest of a receipt that claims these, or None when it is not known."""
DigestsHold = Callable[[NDArray[np.intp]], Flags]
"""Which receipts, none of them empty -> whether their digests hold."""


class Receipts(NamedTuple):
    """Receipts of known version, and where their claims begin and end."""

    rows: NDArray[Any]  # RECEIPT
    empty: Flags  # claims nothing; then the others are 0
    lowest: Words  # sequence
    highest: Words
    run: Flags  # claims all between them

    @classmethod
    def of(cls, data: bytes) -> "Receipts":
        rows = np.frombuffer(data, RECEIPT)
        low, end, run = runs.ends(np.ascontiguousarray(rows["bitmap"].T))
        base, empty = rows["base_sequence"].astype(np.uint64), end == 0
        lowest, highest = base + low.view(np.uint64), base + (end - 1).view(np.uint64)
        if np.count_nonzero(empty):
            lowest[empty] = highest[empty] = 0
            run &= ~empty
        return cls(rows, empty, lowest, highest, run)


def units_at(receipts: bytes, index: int, first: int) -> Units:
    """What one of the receipts claims, relative to `first`; no bit of it may stand for a sequence before."""
    claimed: tuple[int, bytes] = _CLAIMED.unpack_from(receipts, index * SIGNED_BYTES)
    base, bits = claimed[0], int.from_bytes(claimed[1], "little")
    return bits << (base - first) if base >= first else bits >> (first - base)


def well_formed(rows: NDArray[Any]) -> Flags:
    """Which of the RECEIPT rows `SignedReceipt.decode` would read."""
    good: Flags = (rows["version"] == VERSION) & (rows["base_sequence"] <= MAX_BASE_SEQUENCE)
    return good


class Viewers(NamedTuple):
    """The sessions and networks that a batch's tickets lead to, once each, in the order in which they are first met."""

    known: Known  # by receipt
    sessions: Sequence[bytes]  # 16 bytes
    session_of: NDArray[np.uint8]  # by receipt
    networks: Sequence[bytes]  # 16 bytes or none
    network_of: NDArray[np.uint8]  # by receipt

    @classmethod
    def of(cls, known: Known) -> "Viewers":
        networks = split(known["network"])
        if np.count_nonzero(known["has_network"]) < len(known):
            has = known["has_network"].tolist()
            networks = [network if there else b"" for network, there in zip(networks, has, strict=True)]
        return cls(known, *_numbered(split(known["ticket"]["session_id"])), *_numbered(networks))

    def facts(self, index: int) -> SessionFacts:
        """Of the session of a receipt."""
        row = self.known[index]
        account = UUID(bytes=row["account"].tobytes()) if row["has_account"] else None
        return SessionFacts(self.networks[self.network_of[index]], account)


def _numbered(values: Sequence[bytes]) -> tuple[Sequence[bytes], NDArray[np.uint8]]:
    """The different ones as they are first met, and for each which of them it is."""
    if len(set(values)) == len(values):
        return values, np.arange(len(values), dtype=np.uint8)
    numbers: dict[bytes, int] = {}
    of = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), np.array(of, np.uint8)


class Verdicts(NamedTuple):
    """By receipt, as `events.SegmentsServed` has them."""

    verdicts: NDArray[np.uint8]
    caps: NDArray[np.uint8]
    units: Ints
    credited_bytes: Ints
    claims: Claims  # right where it came to credits
    plan: Plan

    def columns(self) -> dict[str, bytes]:
        return {
            "verdicts": self.verdicts.tobytes(),
            "caps": self.caps.tobytes(),
            "units": self.units.astype(f">u{UNITS_BYTES}").tobytes(),
            "credited_bytes": self.credited_bytes.astype(f">u{SIZE_BYTES}").tobytes(),
        }


def digests_by(receipts: Receipts, tickets: NDArray[Any], digest_of: ReceiptDigestOf) -> DigestsHold:
    """What the hub lost must not cost a friend: a digest that is not known holds."""
    nonces = split(tickets["nonce"])
    said = list(zip(nonces, split(receipts.rows.view(_SAID)["said"]), strict=True))

    def of(i: int) -> bool:
        if receipts.run[i]:
            sequences: Sequence[int] = range(int(receipts.lowest[i]), int(receipts.highest[i]) + 1)
        else:
            body = receipts.rows[i].tobytes()[:RECEIPT_BODY_BYTES]
            sequences = Receipt.decode_body(body).sequences()
        expected = digest_of(nonces[i], sequences)
        return expected is None or expected == receipts.rows["digest"][i].tobytes()

    def holds(which: NDArray[np.intp]) -> Flags:
        at = which.tolist()
        # Viewers claim alike.
        right = {claim: of(i) for claim, i in {said[i]: i for i in at}.items()}
        if all(right.values()):
            return np.ones(len(at), np.bool_)
        return np.array([right[said[i]] for i in at], np.bool_)

    return holds


def split(column: NDArray[Any]) -> list[bytes]:
    """The bytes of each item of a column of V<size>."""
    items: list[bytes] = column.tolist()
    return items


def judge(
    receipts: Receipts,
    tickets: NDArray[Any],  # TICKET, by receipt
    viewers: Viewers,
    *,
    signed: Flags,  # whether the signature holds; not looked at where the ticket is another node's
    digests: DigestsHold,
    node: NodeFacts,
    manifest: Manifest,
    credits: CreditColumns,
    settings: Settings,
    now_s: int,
    credits_at: Guesses | None = None,  # where the credits of each receipt's session may be; corrected
) -> Verdicts:
    """The verdicts on receipts whose tickets the hub issued for one broadcast. Changes nothing else."""
    size = len(receipts.rows)
    out = _Out(size)
    out.refuse_others(tickets["node_key"] == np.void(node.public_key), Verdict.WRONG_NODE)
    out.refuse_others(signed, Verdict.BAD_SIGNATURE)
    out.refuse_others(tickets["settle_by_s"] >= max(now_s, 0), Verdict.LATE)
    out.refuse_others(_within(receipts, tickets, manifest), Verdict.OUT_OF_RANGE)
    out.refuse(receipts.empty & (receipts.rows["digest"] != np.void(_NOTHING)), Verdict.DIGEST_MISMATCH)
    open_ = (out.open & ~receipts.empty).nonzero()[0]
    if len(open_) and not every(holds := digests(open_)):
        out.refuse(_spread(open_, ~holds, size), Verdict.DIGEST_MISMATCH)
    out.refuse(receipts.empty, Verdict.DUPLICATE)

    lowest, highest = receipts.lowest, receipts.highest
    if out.refused:
        first = np.uint64(manifest.first)
        lowest, highest = np.where(out.open, lowest, first), np.where(out.open, highest, first)
    claims = Claims.of(
        viewers.sessions,
        viewers.session_of,
        viewers.networks,
        viewers.network_of,
        lowest,
        highest,
        manifest.first,
    )
    plan, budgeted = credits.plan(claims, credits_at), _budgeted(tickets, manifest)
    sole = plan.sole if budgeted is None else plan.sole & ~budgeted
    alone = sole & plan.alone & receipts.run
    caps, sums = _caps(tickets, viewers, node, settings), manifest.sums()
    if not out.refused and not caps and every(alone & (plan.start < plan.end)):  # so it nearly always is
        out.verdicts.fill(ACCEPTED)
        new, paid_bytes = plan.end - plan.start, sums[plan.end] - sums[plan.start]
        plan = plan._replace(sole=sole, alone=alone)
        return Verdicts(out.verdicts, out.caps, new, paid_bytes, claims, plan)
    left = np.flatnonzero(out.open & ~sole)
    gaps = {  # what is new of a claim, where it or what is credited is no run
        i: units_at(receipts.rows[i].tobytes(), 0, manifest.first)
        & ~credits.credited(UUID(bytes=viewers.sessions[viewers.session_of[i]]))
        for i in np.flatnonzero(out.open & sole & ~alone).tolist()
    }
    new = np.where(alone, np.maximum(plan.end - plan.start, 0), 0)
    for i, units in gaps.items():
        new[i] = count(units)
    out.refuse(sole & (new == 0), Verdict.DUPLICATE)
    for cap, applies in caps:
        out.refuse(sole & applies, Verdict.CAPPED, cap)
    paid = out.open & sole
    in_runs = paid & alone
    out.verdicts[paid], out.units[paid] = ACCEPTED, new[paid]
    out.credited_bytes[in_runs] = sums[plan.end[in_runs]] - sums[plan.start[in_runs]]
    for i in np.flatnonzero(paid & ~alone).tolist():
        out.credited_bytes[i] = manifest.total_bytes(gaps[i])
    if len(left):
        _one_by_one(
            left.tolist(),
            receipts,
            tickets,
            viewers,
            out,
            node=node,
            manifest=manifest,
            credits=credits,
            settings=settings,
            now_s=now_s,
        )
    return Verdicts(
        out.verdicts, out.caps, out.units, out.credited_bytes, claims, plan._replace(sole=sole, alone=alone)
    )


class _Out:
    """Verdicts as they are found: the first that applies stands."""

    def __init__(self, count: int) -> None:
        self.verdicts: NDArray[np.uint8] = np.full(count, _UNDECIDED, np.uint8)
        self.caps: NDArray[np.uint8] = np.zeros(count, np.uint8)
        self.units: Ints = np.zeros(count, np.int64)
        self.credited_bytes: Ints = np.zeros(count, np.int64)
        self.refused = False

    @property
    def open(self) -> Flags:
        undecided: Flags = self.verdicts == _UNDECIDED
        return undecided

    def refuse(self, which: Flags, verdict: Verdict, cap: Cap = Cap.NONE) -> None:
        if np.count_nonzero(which):
            found = which & self.open
            self.verdicts[found] = _CODE[verdict]
            self.caps[found] = _CAP[cap]
            self.refused = True

    def refuse_others(self, good: Flags, verdict: Verdict) -> None:
        if not every(good):
            self.refuse(~good, verdict)


def _within(receipts: Receipts, tickets: NDArray[Any], manifest: Manifest) -> Flags:
    """Whether all that is claimed is the ticket's and published."""
    low, high = receipts.lowest, receipts.highest
    covered = (low >= tickets["first_sequence"]) & (high <= tickets["last_sequence"])
    within: Flags = receipts.empty | (covered & (low >= manifest.first) & (high < manifest.next))
    return within


def _budgeted(tickets: NDArray[Any], manifest: Manifest) -> Flags | None:
    """Whether the ticket covers more bytes than it allows, so that what was claimed before matters. None: nowhere."""
    if len(tickets) and int(tickets["byte_budget"].min()) >= manifest.bytes_between(
        manifest.first, manifest.next
    ):
        return None
    first, past = np.uint64(manifest.first), np.uint64(manifest.next)
    last = tickets["last_sequence"].astype(np.uint64)
    end = np.maximum(np.where(last < past, last + np.uint64(1), past), first)
    start = np.minimum(np.maximum(tickets["first_sequence"].astype(np.uint64), first), end)
    sums = manifest.sums()
    covered = sums[(end - first).astype(np.int64)] - sums[(start - first).astype(np.int64)]
    more: Flags = covered.astype(np.uint64) > tickets["byte_budget"].astype(np.uint64)
    return more


def _caps(
    tickets: NDArray[Any], viewers: Viewers, node: NodeFacts, settings: Settings
) -> Sequence[tuple[Cap, Flags]]:
    """The caps that depend on nobody's credits, in order: those that somebody here may meet."""
    caps: list[tuple[Cap, Flags]] = []
    if node.suspended:
        plain = tickets["viewer_class"] != ViewerClass.SIGNING
        caps.append((Cap.NODE_SUSPENDED, plain | (not settings.suspended_signed_paid)))
    if np.count_nonzero(viewers.known["has_account"]):
        own = viewers.known["account"] == np.void(node.friend_id.bytes)
        caps.append((Cap.OWN_ACCOUNT, viewers.known["has_account"] & own))
    if settings.same_network_forbidden and not node.networks.isdisjoint(viewers.networks):
        homes = [bool(network and network in node.networks) for network in viewers.networks]
        caps.append((Cap.SAME_NETWORK, np.array(homes, np.bool_)[viewers.network_of]))
    return caps


def _one_by_one(
    which: Sequence[int],
    receipts: Receipts,
    tickets: NDArray[Any],
    viewers: Viewers,
    out: _Out,
    *,
    node: NodeFacts,
    manifest: Manifest,
    credits: CreditColumns,
    settings: Settings,
    now_s: int,
) -> None:
    """Signed receipts with the right digest, each judged on the credits of those before."""
    session_of, network_of = viewers.session_of.tolist(), viewers.network_of.tolist()
    scratch = credits.copy_of(
        {UUID(bytes=viewers.sessions[session_of[i]]) for i in which},
        {viewers.networks[network_of[i]] for i in which},
    )
    for i in which:
        ticket, facts = Ticket.decode_body(tickets[i].tobytes()), viewers.facts(i)
        judged, units = judge_signed(
            Receipt.decode_body(receipts.rows[i].tobytes()[:RECEIPT_BODY_BYTES]),
            ticket,
            node=node,
            session=facts,
            manifest=manifest,
            credits=scratch,
            settings=settings,
            digest_of=_known_to_hold,
            now_s=now_s,
        )
        scratch.credit(ticket.session_id, facts.network, units)
        out.verdicts[i], out.caps[i] = VERDICT_CODES[judged.verdict], CAP_CODES[judged.cap]
        out.units[i], out.credited_bytes[i] = judged.units, judged.credited_bytes


def _known_to_hold(nonce: bytes, sequence: int) -> None:  # noqa: ARG001 - checked before
    return None


def _spread(at: NDArray[np.intp], flags: Flags, count: int) -> Flags:
    """`flags` at the places `at` of `count`."""
    spread: Flags = np.zeros(count, np.bool_)
    spread[at] = flags
    return spread
