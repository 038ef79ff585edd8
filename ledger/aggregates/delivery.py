"""Delivery: the judged receipts of one broadcast and the credits that follow from them.

Invariant: `credits` is the union of the units of all accepted receipts, each counted once. The aggregate's version is
what makes it exactly-once: whoever judged on an older state loses the append and judges again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from ledger.aggregates.base import Aggregate
from ledger.batch import batch_hash
from ledger.credit import CreditSet
from ledger.events import Event, Judged, SegmentsServed
from ledger.ids import delivery_id
from ledger.judge import (
    DigestOf,
    Manifest,
    NodeFacts,
    SessionFacts,
    judge,
    units_of,
)
from ledger.judged import pack
from ledger.receipt import SIGNED_BYTES, SignedReceipt
from ledger.settings import Settings
from ledger.ticket import Ticket
from ledger.verdict import Verdict

REMEMBERED_BATCHES: Final = 4096  # a batch sent again after so many others is judged again: all duplicates


@dataclass(frozen=True, slots=True)
class Claim:
    """A well-formed receipt with what the log says of its ticket and session."""

    index: int  # in the batch
    signed: SignedReceipt
    ticket: Ticket
    session: SessionFacts


class Answer(NamedTuple):
    """What is kept of an event, to give the same answer again."""

    originator_id: UUID
    originator_version: int
    indices: Sequence[int]
    judged: Sequence[Judged]


class Delivery(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.credits = CreditSet()
        self._batches: dict[bytes, Answer] = {}  # batch hash -> verdicts, oldest first
        self._alone: dict[_Alone, Answer] = {}  # receipts that came without a batch, oldest first

    @classmethod
    def of(cls, broadcast_id: UUID) -> "Delivery":
        return cls(delivery_id(broadcast_id))

    def judged_before(self, known_hash: bytes) -> Answer | None:
        """The verdicts on a batch that was sent before: sending it again must change nothing."""
        return self._batches.get(known_hash)

    def judge(
        self,
        claims: Sequence[Claim],
        *,
        batch_header: bytes,
        node_id: UUID,
        node: NodeFacts,
        manifest: Manifest,
        settings: Settings,
        digest_of: DigestOf,
        at_us: int,
    ) -> Answer:
        """Judge the claims in order, each seeing the credits of those before it, and record all verdicts.

        A receipt that a viewer sent itself (no batch header) is answered with the event of before when it is the same
        one again, or is refused as another of its ticket was: anybody can sign as many as they like, and the log
        forgets nothing.
        """
        if not batch_header and (known := self._alone.get(_name(claims[0].signed))):
            return known
        scratch = self.credits.copy_of(
            {c.ticket.session_id for c in claims}, {c.session.network for c in claims}
        )
        judged: list[Judged] = []
        networks: list[bytes] = []
        for claim in claims:
            judgement = judge(
                claim.signed,
                claim.ticket,
                node=node,
                session=claim.session,
                manifest=manifest,
                credits=scratch,
                settings=settings,
                digest_of=digest_of,
                now_s=at_us // 1_000_000,
            )
            scratch.credit(claim.ticket.session_id, claim.session.network, judgement.units)
            judged.append(judgement.judged)
            networks.append(claim.session.network)
        if not batch_header and (known := self._alone.get(_refusal(claims[0].signed, judged[0]))):
            return known
        event = self.trigger(
            SegmentsServed,
            at_us=at_us,
            node_id=node_id,
            batch_header=batch_header,
            first_sequence=manifest.first,
            network_limit=settings.prefix_sessions_max,
            receipts=b"".join(c.signed.encode() for c in claims),
            **pack([c.index for c in claims], [c.ticket.session_id for c in claims], networks, judged),
        )
        return _answer(event)

    def apply(self, event: Event) -> None:
        if not isinstance(event, SegmentsServed):
            raise TypeError(type(event).__name__)
        for i, (session_id, network, judged) in enumerate(
            zip(event.session_ids, event.viewer_networks, event.judged, strict=True)
        ):
            if judged.verdict != Verdict.ACCEPTED:
                continue
            receipt = SignedReceipt.decode(event.receipts[i * SIGNED_BYTES : (i + 1) * SIGNED_BYTES]).receipt
            fresh = self.credits.missing(session_id, units_of(receipt, event.first_sequence))
            self.credits.credit(
                session_id, network, self.credits.within_network_limit(network, fresh, event.network_limit)
            )
        # Only what an answer needs is kept: a batch may have 50 kB, and there may be thousands.
        answer = _answer(event)
        if event.batch_header:
            _remember(self._batches, batch_hash(event.batch_header), answer)
        else:
            signed = SignedReceipt.decode(event.receipts)
            _remember(self._alone, _name(signed), answer)
            if answer.judged[0].verdict != Verdict.ACCEPTED:
                _remember(self._alone, _refusal(signed, answer.judged[0]), answer)


_Alone = tuple[bytes, str, str]
"""A receipt's body hash, or its ticket's hash with a verdict and a cap."""
K = TypeVar("K")


def _answer(event: SegmentsServed) -> Answer:
    return Answer(event.originator_id, event.originator_version, event.indices, event.judged)


def _name(signed: SignedReceipt) -> _Alone:
    return hashlib.sha256(signed.receipt.body()).digest(), "", ""


def _refusal(signed: SignedReceipt, judged: Judged) -> _Alone:
    return signed.receipt.ticket_hash, judged.verdict, judged.cap


def _remember(known: dict[K, Answer], key: K, answer: Answer) -> None:
    known[key] = answer
    if len(known) > REMEMBERED_BATCHES:
        del known[next(iter(known))]
