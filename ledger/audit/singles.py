"""The verdicts of receipts, one by one: what `ledger.judge` says on the log's own facts, and what follows from it.

Invariant: a verdict that passes is the one `ledger.judge` gives on some state that the hub may have seen. Two things
are taken as recorded: whether the digest matched (only the hub had the bytes) and the time at which the hub judged.
"""

import struct
from collections.abc import Sequence
from itertools import product
from typing import Final, NamedTuple

from ledger.audit.credits import Credits, Scratch
from ledger.audit.crew import RACE_US, Crew, present, require
from ledger.audit.dues import Due, Dues, Fact
from ledger.audit.facts import Broadcast, Facts, Published
from ledger.audit.facts import Ticket as KnownTicket
from ledger.audit.report import AuditFailure, Counts
from ledger.checks import Receipts
from ledger.credit import CreditSet, Units
from ledger.events import SegmentsServed
from ledger.ids import ticket_record_id
from ledger.judge import Manifest, NodeFacts, SessionFacts, judge_signed, refused
from ledger.judged import Judged
from ledger.receipt import MAX_BASE_SEQUENCE, SIGNED_BYTES
from ledger.receipt import VERSION as RECEIPT_VERSION
from ledger.settings import Settings
from ledger.ticket import Ticket, ViewerClass
from ledger.verdict import Verdict

# ledger.receipt: version, ticket, counter, base, bitmap, digest
_RECEIPT: Final = struct.Struct(">B32sIQ64s32s")
_ACCEPTED, _WRONG_NODE = Verdict.ACCEPTED.value, Verdict.WRONG_NODE.value
_BAD_SIGNATURE, _DIGEST_MISMATCH = Verdict.BAD_SIGNATURE.value, Verdict.DIGEST_MISMATCH.value


class _Receipt(NamedTuple):
    """The fields of ledger.receipt.Receipt, as they are met in great numbers; `data` is the signed receipt."""

    ticket_hash: bytes
    base_sequence: int
    bitmap: bytes
    digest: bytes
    data: bytes


class _Claim(NamedTuple):
    receipt: _Receipt
    known: KnownTicket
    ticket: Ticket
    session: SessionFacts
    judged: Judged


class Some(NamedTuple):
    """Some receipts of an event."""

    position: int
    event: SegmentsServed
    node: NodeFacts
    then: Published
    which: Sequence[int]


class Singles:
    def __init__(self, crew: Crew, facts: Facts, dues: Dues, credits: Credits, counts: Counts) -> None:
        self._crew = crew
        self._facts = facts
        self._dues = dues
        self._credits = credits
        self._counts = counts

    def ticket(self, hash_: bytes) -> KnownTicket | None:
        return self._facts.tickets.get(ticket_record_id(hash_).bytes)

    def judge(
        self, position: int, event: SegmentsServed, broadcast: Broadcast, then: Published, facts: list[Fact]
    ) -> Receipts | None:
        """All receipts of an event: credited, and what is due for them added to `facts`. Returns the signatures to
        verify. Raises AuditFailure."""
        claims = [
            self._claim(position, data, judged, broadcast)
            for data, judged in zip(split(event.receipts), event.judged, strict=True)
        ]
        sessions = [x.ticket.session_id.int for x in claims]  # comparing UUIDs is slow
        require([s.int for s in event.session_ids] == sessions, "sessions are not the tickets'")
        networks = tuple([x.session.network for x in claims])
        require(event.viewer_networks == networks, "networks are not the sessions'")
        require(event.first_sequence == broadcast.manifest.first, "the first sequence is not the broadcast's")
        self._credit(broadcast, claims, self._judge_again(position, event, broadcast, then, claims))
        dues = []
        for i, (receipt, known, ticket, _, judged) in enumerate(claims):
            self._counts.accepted += judged.verdict == _ACCEPTED
            self._counts.credited_bytes += judged.credited_bytes
            if judged.verdict == _ACCEPTED:
                dues.append(
                    Due(
                        receipt=i,
                        pool=known.pool,
                        plain=ticket.viewer_class is ViewerClass.PLAIN,
                        issued=known.position,
                        settle_by_us=ticket.settle_by_s * 1_000_000,
                        newest=receipt.base_sequence
                        + int.from_bytes(receipt.bitmap, "little").bit_length()
                        - 1,
                        units=judged.units,
                        credited_bytes=judged.credited_bytes,
                    )
                )
        facts += self._dues.served(position, event.at_us, broadcast.rendition_id.bytes, dues)
        signed = [x for x in claims if x.judged.verdict != _WRONG_NODE]
        if not signed:
            return None
        return Receipts(
            b"".join([x.ticket.viewer_key for x in signed]),
            b"".join([x.receipt.data for x in signed]),
            bytes([x.judged.verdict == _BAD_SIGNATURE for x in signed]),
        )

    def judge_some(self, some: Sequence[Some], broadcast: Broadcast) -> bool:
        """Receipts of several events in a row, by the state that is in force. Credits them when all verdicts are the
        recorded ones; else it has changed nothing."""
        settings = self._crew.settings.now
        try:
            claims = []
            for position, event, _, _, which in some:
                judged = event.judged
                claims.append(
                    [self._claim(position, _nth(event.receipts, i), judged[i], broadcast) for i in which]
                )
            scratch = self._scratch(broadcast, [claim for each in claims for claim in each])
            units = [
                _judge_all(
                    bytes([event.indices[i] for i in which]),
                    event.at_us,
                    scratch,
                    each,
                    node,
                    settings,
                    broadcast.manifest_at(then),
                )
                for (_, event, node, then, which), each in zip(some, claims, strict=True)
            ]
        except AuditFailure:
            return False
        for each, fresh in zip(claims, units, strict=True):
            self._credit(broadcast, each, fresh)
        return True

    def _claim(self, position: int, data: bytes, judged: Judged, broadcast: Broadcast) -> _Claim:
        receipt = _parsed(data)
        known = self.ticket(receipt.ticket_hash)
        if known is None or known.position >= position:
            raise AuditFailure("a receipt for a ticket that was never issued")
        if known.broadcast != broadcast.key:
            raise AuditFailure("a receipt for a ticket of another broadcast")
        ticket = Ticket.decode_body(known.body)
        session = self._facts.sessions.get(ticket.session_id.bytes)
        assert session is not None
        return _Claim(receipt, known, ticket, session.facts, judged)

    def _scratch(self, broadcast: Broadcast, claims: list[_Claim]) -> Scratch:
        return self._credits.scratch(broadcast, [(x.ticket, x.session.network) for x in claims])

    def _credit(self, broadcast: Broadcast, claims: list[_Claim], units: list[Units]) -> None:
        for claim, fresh in zip(claims, units, strict=True):
            if fresh:
                self._credits.credit(claim.ticket.session_id, claim.session.network, broadcast, fresh)

    def _judge_again(
        self,
        position: int,
        event: SegmentsServed,
        broadcast: Broadcast,
        then: Published,
        claims: list[_Claim],
    ) -> list[Units]:
        """What to credit, when some state that the hub may have seen leads to the recorded verdicts."""
        log_us = self._crew.log_us(position)
        settings = [
            s
            for s in self._crew.settings.in_force(event.at_us, log_us)
            if s.prefix_sessions_max == event.network_limit
        ]
        require(bool(settings), "the network limit is not the one in force")
        failure: AuditFailure | None = None
        nodes = self._crew.node(event.node_id)
        scratch = self._scratch(broadcast, claims)
        # A verdict that is dated back was not given before what was published a good while ago.
        for manifest in broadcast.manifests(max(event.at_us, log_us - RACE_US), then):
            for node, rules in product(nodes.in_force(event.at_us, log_us), settings):
                try:
                    return _judge_all(
                        event.indices, event.at_us, scratch.copy(), claims, node, rules, manifest
                    )
                except AuditFailure as e:
                    failure = failure or e
        raise present(failure, "nothing was judged")


def _judge_all(
    indices: bytes,
    at_us: int,
    credits: CreditSet,
    claims: list[_Claim],
    node: NodeFacts,
    settings: Settings,
    manifest: Manifest,
) -> list[Units]:
    """What to credit to each, when all verdicts are as recorded. Raises AuditFailure. Uses up `credits`."""
    credited = []
    for index, (receipt, _, ticket, session, judged) in zip(indices, claims, strict=True):
        if ticket.node_key != node.public_key:
            judgement = refused(Verdict.WRONG_NODE)
        elif judged.verdict == _BAD_SIGNATURE:  # verified to be one, with all other signatures
            judgement = refused(Verdict.BAD_SIGNATURE)
        else:
            judgement = judge_signed(
                receipt,
                ticket,
                node=node,
                session=session,
                manifest=manifest,
                credits=credits,
                settings=settings,
                digest_of=_wrong_digest if judged.verdict == _DIGEST_MISMATCH else _unknown_digest,
                now_s=at_us // 1_000_000,
            )
        if judged != judgement.judged:
            same(judged, judgement.judged, f"receipt {index} of the batch: ")
        if judgement.units:
            credits.credit(ticket.session_id, session.network, judgement.units)
        credited.append(judgement.units)
    return credited


def split(receipts: bytes) -> list[bytes]:
    return [receipts[i : i + SIGNED_BYTES] for i in range(0, len(receipts), SIGNED_BYTES)]


def _nth(receipts: bytes, i: int) -> bytes:
    return receipts[i * SIGNED_BYTES : (i + 1) * SIGNED_BYTES]


def _parsed(data: bytes) -> _Receipt:
    """The receipt, when ledger.receipt would read it."""
    version, ticket_hash, _, base_sequence, bitmap, digest = _RECEIPT.unpack_from(data)
    if version != RECEIPT_VERSION or base_sequence > MAX_BASE_SEQUENCE:
        require(False, "a receipt that cannot be read was judged")
    return _Receipt(ticket_hash, base_sequence, bitmap, digest, data)


def _unknown_digest(nonce: bytes, sequence: int) -> bytes | None:  # noqa: ARG001 - taken to match
    return None


def _wrong_digest(nonce: bytes, sequence: int) -> bytes | None:  # noqa: ARG001 - taken not to match
    return bytes(32)


def same(recorded: Judged, expected: Judged, what: str = "") -> None:
    if recorded != expected:
        raise AuditFailure(f"{what}the verdict is {_text(recorded)}, but the rules give {_text(expected)}")


def _text(judged: Judged) -> str:
    cap = f" ({judged.cap})" if judged.cap else ""
    return f"{judged.verdict}{cap} with {judged.units} segments and {judged.credited_bytes} bytes"
