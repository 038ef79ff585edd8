"""Delivery: the judged receipts of one broadcast and the credits that follow from them.

Invariant: `credits` is the union of the units of all accepted receipts, each counted once. The aggregate's version is
what makes it exactly-once: whoever judged on an older state loses the append and judges again. Of a batch only the
version of its event is kept, to answer it again: what the event says stands in the log.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import numpy as np

from ledger.aggregates.base import Aggregate
from ledger.batch import batch_hash
from ledger.credit_columns import Claims, CreditColumns, Flags, Guesses, Plan, every
from ledger.events import Event, SegmentsServed
from ledger.ids import delivery_id
from ledger.judge import Manifest, NodeFacts
from ledger.judge_columns import (
    ACCEPTED,
    Known,
    ReceiptDigestOf,
    Receipts,
    Verdicts,
    Viewers,
    digests_by,
    judge,
    units_at,
)
from ledger.judged import SESSION_BYTES
from ledger.receipt import BODY_BYTES
from ledger.settings import Settings

REMEMBERED_BATCHES: Final = 4096  # a batch sent again after so many others is judged again: all duplicates


@dataclass(frozen=True, slots=True)
class Presented:
    """Well-formed receipts of one broadcast, and what the log says of the ticket of each."""

    indices: bytes  # u8: in the batch, ascending
    receipts: bytes  # 205 bytes each
    tickets: Known
    signed: Flags  # whether the signature holds; of no account where the ticket is another node's
    # By receipt, where the credits of its session may be; corrected when it is judged. Empty: not known.
    credits_at: Guesses = field(default_factory=lambda: np.zeros(0, np.int32))


class Delivery(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.credits = CreditColumns()
        self._judged: tuple[bytes, Verdicts] | None = None  # receipts whose event is about to be applied
        self._batches: dict[bytes, int] = {}  # batch hash -> version of its event, oldest first
        self._alone: dict[bytes, int] = {}  # the same of receipts that came without a batch
        self._begun: int | None = None  # the version to which it can be taken back
        self._remembered: list[tuple[dict[bytes, int], bytes, int | None, tuple[bytes, int] | None]] = []

    @classmethod
    def of(cls, broadcast_id: UUID) -> "Delivery":
        return cls(delivery_id(broadcast_id))

    def begin(self) -> None:
        self._begun, self._remembered = self.version, []
        self.credits.begin()

    def settle(self) -> None:
        self._begun, self._remembered = None, []
        self.credits.settle()

    def take_back(self) -> None:
        """A delivery may have been folded from thousands of events: that a save failed must not cost that again."""
        if self.torn or self._begun is None:
            self.torn = True
            return
        self.torn = True
        for known, key, before, oldest in reversed(self._remembered):
            _forget(known, key, before, oldest)
        self.credits.take_back()
        self.version, self._begun, self._remembered, self._judged = self._begun, None, [], None
        self.torn = False

    def judged_before(self, known_hash: bytes) -> int | None:
        """The version of the event about a batch that was sent before: sending it again must change nothing."""
        return self._batches.get(known_hash)

    def judge(
        self,
        presented: Presented,
        *,
        batch_header: bytes,
        node_id: UUID,
        node: NodeFacts,
        manifest: Manifest,
        settings: Settings,
        digest_of: ReceiptDigestOf,
        at_us: int,
    ) -> SegmentsServed | int:
        """Judge the receipts in order, each seeing the credits of those before it, and record all verdicts.

        A receipt that a viewer sent itself (no batch header) is answered with the event of before, by its version,
        when it is the same one again, or is refused as another of its ticket was: anybody can sign as many as they
        like, and the log forgets nothing.
        """
        if not batch_header and (known := self._alone.get(_name(presented.receipts))):
            return known
        receipts, tickets = Receipts.of(presented.receipts), presented.tickets["ticket"]
        viewers = Viewers.of(presented.tickets)
        verdicts = judge(
            receipts,
            tickets,
            viewers,
            signed=presented.signed,
            digests=digests_by(receipts, tickets, digest_of),
            node=node,
            manifest=manifest,
            credits=self.credits,
            credits_at=presented.credits_at,
            settings=settings,
            now_s=at_us // 1_000_000,
        )
        columns = verdicts.columns()
        if not batch_header:
            refusal = _refusal(presented.receipts, columns["verdicts"], columns["caps"])
            if known := self._alone.get(refusal):
                return known
        self._judged = presented.receipts, verdicts
        return self.trigger(
            SegmentsServed,
            at_us=at_us,
            node_id=node_id,
            batch_header=batch_header,
            first_sequence=manifest.first,
            network_limit=settings.prefix_sessions_max,
            sessions=b"".join(viewers.sessions),
            networks=tuple(viewers.networks),
            receipts=presented.receipts,
            indices=presented.indices,
            session_of=viewers.session_of.tobytes(),
            network_of=viewers.network_of.tobytes(),
            **columns,
        )

    def apply(self, event: Event) -> None:
        if not isinstance(event, SegmentsServed):
            raise TypeError(type(event).__name__)
        judged, self._judged = self._judged, None
        accepted = np.frombuffer(event.verdicts, np.uint8) == ACCEPTED
        if judged is not None and judged[0] is event.receipts:  # what it would find out again
            self._credit(event, accepted, judged[1].claims, judged[1].plan)
        elif accepted.any():
            self._credit(event, accepted, *self._planned(event, accepted))
        version = event.originator_version
        if event.batch_header:
            self._remember(self._batches, batch_hash(event.batch_header), version)
        else:
            self._remember(self._alone, _name(event.receipts), version)
            if not accepted[0]:
                self._remember(self._alone, _refusal(event.receipts, event.verdicts, event.caps), version)

    def _remember(self, known: dict[bytes, int], key: bytes, version: int) -> None:
        before, oldest = known.get(key), None
        known[key] = version
        if len(known) > REMEMBERED_BATCHES:
            first = next(iter(known))
            oldest = first, known.pop(first)
        if self._begun is not None:
            self._remembered.append((known, key, before, oldest))

    def _planned(self, event: SegmentsServed, accepted: Flags) -> tuple[Claims, Plan]:
        receipts, size = Receipts.of(event.receipts), SESSION_BYTES
        claims = Claims.of(
            [event.sessions[i : i + size] for i in range(0, len(event.sessions), size)],
            np.frombuffer(event.session_of, np.uint8),
            event.networks,
            np.frombuffer(event.network_of, np.uint8),
            np.where(accepted, receipts.lowest, np.uint64(event.first_sequence)),
            np.where(accepted, receipts.highest, np.uint64(event.first_sequence)),
            event.first_sequence,
        )
        plan = self.credits.plan(claims)
        return claims, plan._replace(alone=plan.alone & receipts.run)

    def _credit(self, event: SegmentsServed, accepted: Flags, claims: Claims, plan: Plan) -> None:
        alone = accepted & plan.alone
        if every(alone):
            self.credits.credit_alone(claims, plan)
            return
        self.credits.credit_alone(claims.where(alone), plan.where(alone))
        for i in np.flatnonzero(accepted & ~plan.alone).tolist():
            self._credit_one(event, i, sole=bool(plan.sole[i]))

    def _credit_one(self, event: SegmentsServed, i: int, *, sole: bool) -> None:
        at = SESSION_BYTES * event.session_of[i]
        session_id = UUID(bytes=event.sessions[at : at + SESSION_BYTES])
        network = event.networks[event.network_of[i]]
        fresh = units_at(event.receipts, i, event.first_sequence) & ~self.credits.credited(session_id)
        if not sole:
            levels = self.credits.copy_of((), [network])
            fresh = levels.within_network_limit(network, fresh, event.network_limit)
        self.credits.credit(session_id, network, fresh)


def _name(receipt: bytes) -> bytes:
    """A receipt is known by its body; signatures may be randomised."""
    return hashlib.sha256(receipt[:BODY_BYTES]).digest()


def _refusal(receipt: bytes, verdict: bytes, cap: bytes) -> bytes:
    return receipt[1:33] + verdict + cap  # its ticket's hash


def _forget(
    known: dict[bytes, int], key: bytes, before: int | None, oldest: tuple[bytes, int] | None
) -> None:
    """As it was before `key` was remembered."""
    if before is None:
        known.pop(key)
    else:
        known[key] = before
    if oldest is not None:
        others = dict(known)
        known.clear()
        known.update([oldest])
        known.update(others)
