"""A batch judged in arrays gets, byte for byte, the verdicts of the judge who takes one receipt after the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.credit import CreditSet, Units
from ledger.credit_columns import CreditColumns
from ledger.judge import Manifest, NodeFacts, SessionFacts, judge_signed, parse_receipt, refused
from ledger.judge_columns import (
    KNOWN,
    RECEIPT,
    TICKET,
    Known,
    Receipts,
    Viewers,
    digests_by,
    judge,
    well_formed,
)
from ledger.judged import Judged, unpack
from ledger.receipt import MAX_BASE_SEQUENCE, Receipt, fold_digests
from ledger.settings import Settings
from ledger.ticket import Ticket, ViewerClass
from ledger.tickets import known_row
from ledger.verdict import Verdict

NODE_KEY, FRIEND, NOW_S = b"n" * 32, UUID(int=77), 1_000
HOME = b"the node's home."
NETWORKS = [b"", b"A" * 16, b"B" * 16, HOME, bytes(16)]
FAR = [0, 2**20, 2**31, 2**62, MAX_BASE_SEQUENCE]


@dataclass(frozen=True)
class Case:
    ticket: Ticket
    facts: SessionFacts
    receipt: Receipt
    signed: bool
    digest_holds: bool


def session(number: int) -> UUID:
    return UUID(int=number << 64 | number)


def rarely(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 15)) == 15


def known(batch: list[Case]) -> Known:
    rows = b"".join(known_row(c.ticket.body(), UUID(int=4), c.facts) for c in batch)
    return np.frombuffer(rows, KNOWN)


def run(first: int, length: int) -> int:
    return ((1 << length) - 1) << first


@st.composite
def cases(draw: st.DrawFn, origin: int) -> Case:
    """Mostly what an honest viewer would send, so that the rules at the end are reached too."""
    number = draw(st.integers(1, 14))
    first = draw(st.sampled_from(FAR)) if rarely(draw) else origin + draw(st.integers(0, 12))
    if rarely(draw):
        first = max(first - 15, 0)
    ticket = Ticket(
        viewer_class=draw(st.sampled_from(ViewerClass)),
        hub_key_id=bytes(8),
        ticket_id=UUID(int=1),
        session_id=session(number),
        stream_id=UUID(int=2),
        rendition_id=UUID(int=3),
        viewer_key=b"v" * 32,
        node_key=b"m" * 32 if rarely(draw) else NODE_KEY,
        first_sequence=first,
        last_sequence=first + draw(st.sampled_from([60, 60, 3, 0])),
        settle_by_s=NOW_S - 1 if rarely(draw) else NOW_S + draw(st.sampled_from([0, 5, 2**63])),
        tariff_version=1,
        byte_budget=draw(st.sampled_from([2**40, 2**64 - 1, 60, 0])),
        nonce=bytes(16),
    )
    network = NETWORKS[number % 5] if number < 8 else session(number).bytes
    facts = SessionFacts(network, (None, UUID(int=5), FRIEND)[number % 3] if number > 11 else None)
    bits = draw(
        st.one_of(
            st.builds(run, st.integers(0, 6), st.integers(1, 20)),
            st.integers(0, 2**20),
            st.builds(run, st.integers(0, 6), st.integers(1, 20)),
            st.sampled_from([0, 1 << 511, (1 << 512) - 1, 1 << 64, (1 << 128) - (1 << 63)]),
        )
    )
    base = first if draw(st.booleans()) else first + draw(st.integers(-8, 8))
    receipt = Receipt(
        ticket_hash=ticket.hash,
        counter=1,
        base_sequence=min(max(base, 0), MAX_BASE_SEQUENCE),
        bitmap=bits.to_bytes(64, "little"),
        digest=fold_digests(()) if draw(st.booleans()) else b"d" * 32,
    )
    return Case(ticket, facts, receipt, signed=not rarely(draw), digest_holds=not rarely(draw))


@dataclass
class World:
    """The same credits twice: as the definition has them, and in arrays."""

    manifest: Manifest
    node: NodeFacts
    rules: Settings
    defined: CreditSet = field(default_factory=CreditSet)
    packed: CreditColumns = field(default_factory=CreditColumns)

    def scalar(self, batch: list[Case]) -> tuple[list[Judged], list[Units]]:
        out, units = [], []
        for case in batch:
            if case.ticket.node_key != self.node.public_key:
                judgement = refused(Verdict.WRONG_NODE)
            elif not case.signed:
                judgement = refused(Verdict.BAD_SIGNATURE)
            else:
                judgement = judge_signed(
                    case.receipt,
                    case.ticket,
                    node=self.node,
                    session=case.facts,
                    manifest=self.manifest,
                    credits=self.defined,
                    settings=self.rules,
                    digest_of=(lambda *_: None) if case.digest_holds else (lambda *_: b"w" * 32),
                    now_s=NOW_S,
                )
            self.defined.credit(case.ticket.session_id, case.facts.network, judgement.units)
            out.append(judgement.judged)
            units.append(judgement.units)
        return out, units

    def columns(self, batch: list[Case]) -> tuple[Judged, ...]:
        verdicts = judge(
            Receipts.of(b"".join(c.receipt.body() + bytes(64) for c in batch)),
            np.frombuffer(b"".join(c.ticket.body() for c in batch), TICKET),
            Viewers.of(known(batch)),
            signed=np.array([c.signed for c in batch]),
            digests=lambda which: np.array([c.digest_holds for c in batch])[which],
            node=self.node,
            manifest=self.manifest,
            credits=self.packed,
            settings=self.rules,
            now_s=NOW_S,
        )
        return unpack(**verdicts.columns())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_in_arrays_the_verdicts_are_those_of_one_receipt_after_the_other(data: st.DataObject) -> None:
    origin = data.draw(st.sampled_from([0, 10, 2**40]))
    world = World(
        Manifest(origin, data.draw(st.lists(st.integers(0, 9), max_size=8)) * 12),
        NodeFacts(NODE_KEY, FRIEND, frozenset({HOME}), suspended=data.draw(st.integers(0, 3)) == 0),
        Settings(
            prefix_sessions_max=data.draw(st.integers(1, 3)),
            same_network_forbidden=data.draw(st.integers(0, 1)),
            suspended_signed_paid=data.draw(st.integers(0, 1)),
        ),
    )
    for batch in data.draw(
        st.lists(st.lists(cases(origin), min_size=1, max_size=10), min_size=1, max_size=4)
    ):
        packed = world.columns(batch)
        assert packed == world.columns(batch)  # it changes nothing
        verdicts, units = world.scalar(batch)
        assert list(packed) == verdicts
        for case, credited in zip(batch, units, strict=True):
            world.packed.credit(case.ticket.session_id, case.facts.network, credited)


@given(st.binary(min_size=205, max_size=205), st.integers(0, 2), st.integers(0, 3))
def test_what_is_no_receipt_is_no_receipt_in_arrays(noise: bytes, version: int, top: int) -> None:
    data = bytes([version]) + noise[1:37] + bytes([top << 6]) + noise[38:]
    [well] = well_formed(np.frombuffer(data, RECEIPT))
    assert well == (parse_receipt(data) is not None)


@pytest.mark.parametrize("base", [MAX_BASE_SEQUENCE, MAX_BASE_SEQUENCE + 1])
def test_the_last_base_sequence_is_the_same_in_arrays(base: int) -> None:
    data = Receipt(
        ticket_hash=bytes(32), counter=1, base_sequence=base, bitmap=b"\xff" * 64, digest=bytes(32)
    )
    [well] = well_formed(np.frombuffer(data.body() + bytes(64), RECEIPT))
    assert well == (base == MAX_BASE_SEQUENCE)


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(
        st.tuples(
            st.sampled_from([b"1" * 16, b"2" * 16]),
            st.sampled_from([0b1, 0b111, 0b101, 0b111 << 300]),
            st.sampled_from(["right", "right", "right", "wrong", "another's"]),
        ),
        min_size=1,
        max_size=12,
    ),
    forgotten=st.booleans(),
)
def test_a_digest_holds_for_all_who_say_the_same_of_the_same(
    said: list[tuple[bytes, int, str]], *, forgotten: bool
) -> None:
    def digest_of(nonce: bytes, sequences: Sequence[int]) -> bytes | None:
        if forgotten and nonce.startswith(b"2"):
            return None
        return hashlib.sha256(nonce + repr(list(sequences)).encode()).digest()

    receipts, tickets, holds = [], np.zeros(len(said), TICKET), []
    for i, (nonce, bits, which) in enumerate(said):
        tickets[i]["nonce"] = np.void(nonce)
        sequences = [7 + n for n in range(512) if bits >> n & 1]
        expected = digest_of(nonce, sequences)
        others = digest_of(b"3" * 16, sequences)
        digest = {"right": expected or bytes(32), "wrong": b"w" * 32, "another's": others or b""}[which]
        receipt = Receipt(
            ticket_hash=bytes(32),
            counter=i,
            base_sequence=7,
            bitmap=bits.to_bytes(64, "little"),
            digest=digest,
        )
        receipts.append(receipt.body() + bytes(64))
        holds.append(expected is None or expected == digest)
    check = digests_by(Receipts.of(b"".join(receipts)), tickets, digest_of)
    assert check(np.arange(len(said))).tolist() == holds
    assert check(np.arange(1, len(said), 2)).tolist() == holds[1::2]
