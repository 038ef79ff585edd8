"""Delivery: the judged receipts of one broadcast and the credits that follow from them.

Invariant: `credits` is the union of the units of all accepted receipts, each counted once. The aggregate's version is
what makes it exactly-once: whoever judged on an older state loses the append and judges again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
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


class Delivery(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.credits = CreditSet()
        self._batches: dict[bytes, SegmentsServed] = {}  # batch hash -> verdicts, oldest first

    @classmethod
    def of(cls, broadcast_id: UUID) -> "Delivery":
        return cls(delivery_id(broadcast_id))

    def judged_before(self, known_hash: bytes) -> SegmentsServed | None:
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
    ) -> SegmentsServed:
        """Judge the claims in order, each seeing the credits of those before it, and record all verdicts."""
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
        return self.trigger(
            SegmentsServed,
            at_us=at_us,
            node_id=node_id,
            batch_header=batch_header,
            indices=tuple(c.index for c in claims),
            receipts=b"".join(c.signed.encode() for c in claims),
            sessions=tuple(c.ticket.session_id for c in claims),
            judged=tuple(judged),
            first_sequence=manifest.first,
            networks=tuple(networks),
            network_limit=settings.prefix_sessions_max,
        )

    def apply(self, event: Event) -> None:
        if not isinstance(event, SegmentsServed):
            raise TypeError(type(event).__name__)
        for i, (session_id, network, judged) in enumerate(
            zip(event.sessions, event.networks, event.judged, strict=True)
        ):
            if judged.verdict != Verdict.ACCEPTED:
                continue
            receipt = SignedReceipt.decode(event.receipts[i * SIGNED_BYTES : (i + 1) * SIGNED_BYTES]).receipt
            fresh = self.credits.missing(session_id, units_of(receipt, event.first_sequence))
            self.credits.credit(
                session_id, network, self.credits.within_network_limit(network, fresh, event.network_limit)
            )
        if event.batch_header:
            self._batches[batch_hash(event.batch_header)] = event
            if len(self._batches) > REMEMBERED_BATCHES:
                del self._batches[next(iter(self._batches))]
