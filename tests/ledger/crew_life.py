"""A crew's life on a real ledger, told through the real services: streams, nodes, receipts, money out."""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid5

from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger
from ledger.batch import Batch
from ledger.events import Segment
from ledger.ids import NAMESPACE
from ledger.keys import KeyPair
from ledger.rails.csv_file import CsvRail
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, budgets, crew, nodes, payouts, settle, streams
from ledger.services.credit_index import CreditIndex
from ledger.services.delivery import DeliveryDesk
from ledger.services.destinations import Destination
from ledger.ticket import SignedTicket, ViewerClass

T0 = 1_800_000_000_000_000
HOUR_US = 3_600_000_000
HUB = KeyPair(b"hub ticket key..................")
LOG = KeyPair(b"hub log key.....................")


def make_key(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())


def make_id(name: str) -> UUID:
    return uuid5(NAMESPACE, "test:" + name)


def probe(
    ledger: Ledger, node_id: UUID, dice: random.Random, tickets: Iterable[SignedTicket] = (), *, at_us: int
) -> None:
    """A probe of a slow line, as media is small here; mostly as one of the plain players that have these tickets."""
    size, latency_us = dice.randrange(3_000), dice.randrange(1, 10**8)
    plain = [t.ticket.session_id for t in tickets if t.ticket.viewer_class is ViewerClass.PLAIN]
    session_id = dice.choice([None, *plain])
    nodes.change_node(
        ledger,
        node_id,
        lambda n: n.probed(
            outcome="ok",
            sequence=0,
            latency_us=latency_us,
            segment_bytes=size,
            session_id=session_id,
            at_us=at_us,
        ),
    )


@dataclass
class Life:
    """Deterministic: the same calls give the same events, byte for byte."""

    ledger: Ledger
    now_us: int = T0
    batches: int = 0
    media: dict[int, bytes] = field(default_factory=dict)
    serial: int = 0
    index: CreditIndex = field(default_factory=CreditIndex)

    def __post_init__(self) -> None:
        self.desk = DeliveryDesk(self.ledger, digest_of=self._digest)
        self.nodes: dict[str, tuple[KeyPair, Node]] = {}

    def _digest(self, rendition: UUID, nonce: bytes, sequence: int) -> bytes | None:
        return segment_digest(nonce, self.media[sequence]) if sequence in self.media else None

    def tick(self, seconds: int = 1) -> int:
        self.now_us += seconds * 1_000_000
        return self.now_us

    def found(self) -> None:
        crew.found_crew(self.ledger, name="crew", unit="EUR", epoch_length_s=3600, at_us=self.tick())
        crew.add_key(self.ledger, "ticket", HUB.public_key, at_us=self.tick())
        crew.add_key(self.ledger, "log", LOG.public_key, at_us=self.tick())
        self.stream_id = streams.register_stream(
            self.ledger,
            slug="main",
            owner_id=make_id("owner"),
            stream_key="main_" + "a" * 32,
            at_us=self.tick(),
        )
        budgets.set_tariff(self.ledger, self.stream_id, rate_micro_per_gb=10**12, at_us=self.tick())
        budgets.deposit(
            self.ledger, self.stream_id, amount_micro=500_000_000, reference="first", at_us=self.tick()
        )

    def join(self, name: str) -> None:
        key, at = make_key(name), self.tick()
        nodes.create_invite(
            self.ledger, friend_id=make_id(f"friend {name}"), code=name, expires_us=at + HOUR_US, at_us=at
        )
        node, _ = nodes.join_node(
            self.ledger,
            code=name,
            public_key=key.public_key,
            prefix_commitment=hashlib.sha256(name.encode()).digest()[:16],
            at_us=self.tick(),
        )
        self.nodes[name] = (key, node)

    def go_live(self, segments: int = 12) -> None:
        self.serial += 1
        self.broadcast, _ = broadcasts.start_or_resume(
            self.ledger,
            self.stream_id,
            new_broadcast_id=make_id(f"broadcast {self.serial}"),
            new_rendition_id=make_id(f"rendition {self.serial}"),
            video_codec="h264",
            audio_codec="aac",
            grace_s=30,
            at_us=self.tick(),
        )
        self.publish(segments)

    def publish(self, segments: int) -> None:
        first = self.ledger.load(Broadcast, self.broadcast.id).next_sequence
        cut = []
        for sequence in range(first, first + segments):
            data = hashlib.sha256(b"%d" % sequence).digest() * (30 + sequence % 5)
            self.media[sequence] = data
            sha256 = hashlib.sha256(data).digest()
            cut.append(Segment(sequence, 2_000_000, len(data), sha256, self.tick(2)))
        broadcasts.publish_segments(self.ledger, self.broadcast.id, cut, at_us=self.now_us)
        self.broadcast = self.ledger.load(Broadcast, self.broadcast.id)

    def ticket(self, node: str, viewer: str | None = None, *, session: str | None = None) -> SignedTicket:
        """A ticket for a signing viewer of that name, or for a plain player."""
        self.serial += 1
        session_id = make_id(session or f"session {self.serial}")
        if session is None:
            self.desk.open_session(
                session_id=session_id,
                stream_id=self.stream_id,
                viewer_class=ViewerClass.SIGNING if viewer else ViewerClass.PLAIN,
                viewer_key=make_key(viewer).public_key if viewer else b"",
                prefix_commitment=hashlib.sha256(f"network {self.serial}".encode()).digest()[:16],
                account_id=None,
                at_us=self.tick(),
            )
        return self.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=make_id(f"ticket {self.serial}"),
            session_id=session_id,
            node=self.nodes[node][1],
            broadcast=self.broadcast,
            first_sequence=self.broadcast.first_sequence,
            nonce=hashlib.sha256(b"nonce %d" % self.serial).digest()[:16],
            tariff_version=1,
            at_us=self.tick(),
        )

    def receipt(
        self, ticket: SignedTicket, signer: str, sequences: list[int], *, wrong_digest: bool = False
    ) -> bytes:
        """`sequences` count from the first of the ticket."""
        self.serial += 1
        base = ticket.ticket.first_sequence
        absolute = [base + s for s in sequences]
        digest = fold_digests(
            segment_digest(ticket.ticket.nonce, self.media[s]) for s in absolute if s in self.media
        )
        receipt = Receipt(
            ticket_hash=ticket.ticket.hash,
            counter=self.serial,
            base_sequence=base,
            bitmap=to_bitmap(base, absolute),
            digest=bytes(32) if wrong_digest else digest,
        )
        return receipt.sign(make_key(signer)).encode()

    def batch(self, node: str, *receipts: bytes) -> list[str]:
        key = self.nodes[node][0]
        at_s = self.tick() // 1_000_000
        self.batches += 1  # by turns of nodes that know only the first version, and of others
        data = Batch.sign(key, at_s - 10, at_s, receipts, version=1 + self.batches % 2).encode()
        return [a.verdict for a in self.desk.judge_batch(data, at_us=self.now_us)]

    def settle(self) -> list[int]:
        return settle.settle_due_epochs(self.ledger, at_us=self.now_us, index=self.index)

    def pay(self, folder: Path) -> None:
        hold_s = crew.settings(self.ledger).hold_s
        settle.release_due_holds(self.ledger, hold_s=hold_s, at_us=self.now_us)
        where = {n.friend_id: Destination("someone", b"s" * 16) for _, n in self.nodes.values()}
        plan = payouts.plan(
            self.ledger,
            rail="csv",
            threshold_micro=1,
            destinations={f: d.commitment for f, d in where.items()},
            at_us=self.tick(),
        )
        assert plan.batch_id is not None
        payouts.approve(self.ledger, plan.batch_id, operator="op", at_us=self.tick())
        results = payouts.run(
            self.ledger,
            CsvRail(folder / "out.csv"),
            plan.batch_id,
            destinations=where,
            at_us=self.tick(),
        )
        assert [r.state for r in results] == ["confirmed"] * len(plan.lines)


def live_fully(ledger: Ledger, folder: Path, publish: Callable[[int], object]) -> Life:
    """Every kind of event that an audit has a rule for, published now and then."""
    life = Life(ledger)
    life.found()
    publish(life.tick())
    life.join("anna")
    life.join("ben")
    life.go_live()
    publish(life.tick())
    first, second = life.ticket("anna", "vera"), life.ticket("ben", "walt")
    plain = life.ticket("ben")
    life.desk.observe(
        plain.ticket.session_id,
        base_sequence=0,
        polled=to_bitmap(0, range(10)),
        fetched_at_hub=to_bitmap(0, [3]),
        at_us=life.tick(),
    )
    unknown = life.receipt(first, "vera", [1])
    unknown = (
        Receipt(ticket_hash=bytes(32), counter=1, base_sequence=0, bitmap=bytes(64), digest=bytes(32))
        .sign(make_key("vera"))
        .encode()
    )
    verdicts = life.batch(
        "anna",
        life.receipt(first, "vera", [0, 1, 2]),
        unknown,
        life.receipt(first, "vera", [0, 1, 2]),
        life.receipt(first, "vera", [0, 1, 2, 3]),
        life.receipt(second, "walt", [0]),
        life.receipt(first, "walt", [5]),
        life.receipt(first, "vera", [200]),
        life.receipt(first, "vera", [4, 5], wrong_digest=True),
        b"\xff" * 205,
    )
    assert verdicts == [
        "accepted",
        "unknown_ticket",
        "duplicate",
        "accepted",
        "wrong_node",
        "bad_signature",
        "out_of_range",
        "digest_mismatch",
        "malformed",
    ]
    publish(life.tick())
    assert (
        life.desk.judge_receipt(life.receipt(second, "walt", [1, 2, 6]), at_us=life.tick()).verdict
        == "accepted"
    )
    assert life.batch("ben", life.receipt(plain, "ben", [3, 4, 5])) == ["accepted"]
    nodes.suspend(ledger, life.nodes["ben"][1].id, reason="wrong bytes", at_us=life.tick())
    assert life.batch("ben", life.receipt(plain, "ben", [8])) == ["capped"]
    nodes.reinstate(ledger, life.nodes["ben"][1].id, reason="talked", at_us=life.tick())
    broadcasts.end_broadcast(ledger, life.broadcast.id, reason="stopped", at_us=life.tick())
    life.tick(3600)
    assert life.settle()
    publish(life.tick())
    life.go_live(6)
    third = life.ticket("anna", "vera")
    assert life.batch("anna", life.receipt(third, "vera", [0, 1])) == ["accepted"]
    crew.change_settings(ledger, {"hold_s": 7200}, at_us=life.tick())
    budgets.set_tariff(ledger, life.stream_id, rate_micro_per_gb=10**11, at_us=life.tick())
    life.tick(3 * 3600)
    assert life.settle()
    life.pay(folder)
    budgets.withdraw(ledger, life.stream_id, amount_micro=1_000, reference="back", at_us=life.tick())
    publish(life.tick())
    return life
