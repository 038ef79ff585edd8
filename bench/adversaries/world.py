"""One evening of one crew: a stream, honest friends with their viewers, and room for one kind of attacker.

Invariant: what honest people do depends on the size and the seed alone, never on the attacker, so that two evenings
can be held against each other to the micro-unit.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid5

from ledger.aggregates.base import DomainError
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger
from ledger.batch import MAX_RECEIPTS, Batch
from ledger.events import EpochSettled, Segment
from ledger.ids import NAMESPACE
from ledger.keys import KeyPair
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, budgets, crew, nodes, streams
from ledger.services.delivery import DeliveryDesk
from ledger.services.settle import settle_due_epochs
from ledger.ticket import SignedTicket, ViewerClass

HOUR_US: Final = 3_600_000_000
T0: Final = 500_000 * HOUR_US
SEGMENT_US: Final = 59_000_000  # few and long, so that an evening is an hour: 4 Mbit/s
SEGMENT_BYTES: Final = 30_000_000
ROUND: Final = 10  # segments between two receipts of a viewer
HOME_LINE: Final = 5_000_000  # bytes a second: 40 Mbit/s up
RATE: Final = 1_000_000  # micro-units a GB
BUDGET: Final = 10**12  # of each stream: more than anybody can earn, so that nothing is scaled down
HUB: Final = KeyPair(hashlib.sha256(b"lab hub").digest())
# The settings that an evening without caps has: as far off as they can be turned.
UNCAPPED: Final = {
    "prefix_sessions_max": 1_000,
    "same_network_forbidden": 0,
    "ticket_bytes_max": 10**12,
    "plain_sample_factor": 1_000,
    "plain_bp": 10_000,
    "plain_income_cap_bp": 9_999,
    "node_rate_factor": 0,
    "floor_most_bp": 0,
}


@dataclass(frozen=True, slots=True)
class Size:
    """How many of what. `fakes`: sessions that an attacker opens."""

    segments: int = 60
    honest: int = 3
    signing: int = 4  # viewers of each honest node
    plain: int = 2
    fakes: int = 50


def named(what: str) -> UUID:
    return uuid5(NAMESPACE, f"lab {what}")


def key(what: str) -> KeyPair:
    return KeyPair(hashlib.sha256(f"lab key {what}".encode()).digest())


def network(what: str) -> bytes:
    return hashlib.sha256(f"lab network {what}".encode()).digest()[:16]


@dataclass(slots=True)
class Friend:
    """Somebody with a node."""

    name: str
    key: KeyPair
    friend_id: UUID
    node_id: UUID


@dataclass(slots=True)
class Viewing:
    """One session that is served by one node. `signer` is the node's own key for a plain player."""

    session_id: UUID
    ticket: SignedTicket
    signer: KeyPair
    plain: bool
    got: set[int] = field(default_factory=set)
    counter: int = 0


@dataclass(frozen=True, slots=True)
class Income:
    """Of one friend, from one settlement."""

    delivery_micro: int
    floor_micro: int
    credited_bytes: int

    @property
    def micro(self) -> int:
        return self.delivery_micro + self.floor_micro


class World:
    def __init__(self, url: str, size: Size, *, settings: Mapping[str, int], seed: int) -> None:
        self.size = size
        self.ledger = Ledger(url)
        self.rng = random.Random(seed)
        self.now_us = T0
        self.media: dict[int, bytes] = {}
        self.verdicts: Counter[str] = Counter()  # of whoever is not honest
        self.desk = DeliveryDesk(self.ledger, digest_of=self.digest_of)
        crew.found_crew(self.ledger, name="lab", unit="EUR", epoch_length_s=3_600, at_us=T0)
        crew.change_settings(self.ledger, dict(settings), at_us=T0)
        self.stream_id, self.broadcast_id = self.add_stream("main")
        self.honest = [self.join(f"honest {n}") for n in range(size.honest)]
        self.viewings = [
            self.watch(friend, f"{friend.name} viewer {n}", plain=n >= size.signing)
            for friend in self.honest
            for n in range(size.signing + size.plain)
        ]

    def close(self) -> None:
        self.ledger.close()

    def digest_of(self, _rendition: UUID, nonce: bytes, sequence: int) -> bytes | None:
        return segment_digest(nonce, self.media[sequence]) if sequence in self.media else None

    # --- the crew

    def add_stream(self, slug: str) -> tuple[UUID, UUID]:
        """A live stream with a budget: its id and its broadcast's."""
        stream_id = streams.register_stream(
            self.ledger, slug=slug, owner_id=named(f"owner {slug}"), stream_key=f"{slug}_x", at_us=self.now_us
        )
        budgets.set_tariff(self.ledger, stream_id, rate_micro_per_gb=RATE, at_us=self.now_us)
        budgets.deposit(self.ledger, stream_id, amount_micro=BUDGET, reference=slug, at_us=self.now_us)
        broadcast, _ = broadcasts.start_or_resume(
            self.ledger,
            stream_id,
            new_broadcast_id=named(f"broadcast {slug}"),
            new_rendition_id=named(f"rendition {slug}"),
            video_codec="h264",
            audio_codec="aac",
            grace_s=15,
            at_us=self.now_us,
        )
        return stream_id, broadcast.id

    def join(self, name: str, *, at: str | None = None, friend: str | None = None) -> Friend:
        """A node in its own network, or in that of `at`; of its own friend, or of `friend`."""
        node_key, friend_id = key(name), named(f"friend {friend or name}")
        expires_us = self.now_us + HOUR_US
        nodes.create_invite(
            self.ledger, friend_id=friend_id, code=name, expires_us=expires_us, at_us=self.now_us
        )
        node, _ = nodes.join_node(
            self.ledger,
            code=name,
            public_key=node_key.public_key,
            prefix_commitment=network(at or name),
            at_us=self.now_us,
        )
        return Friend(name, node_key, friend_id, node.id)

    def watch(
        self,
        friend: Friend,
        name: str,
        *,
        at: str | None = None,
        plain: bool = False,
        account_id: UUID | None = None,
        stream: tuple[UUID, UUID] | None = None,
    ) -> Viewing:
        """A session whose ticket is for this friend's node, in a network of its own or in that of `at`."""
        stream_id, broadcast_id = stream or (self.stream_id, self.broadcast_id)
        session_id, viewer = named(f"session {name}"), key(name)
        self.desk.open_session(
            session_id=session_id,
            stream_id=stream_id,
            viewer_class=ViewerClass.PLAIN if plain else ViewerClass.SIGNING,
            viewer_key=b"" if plain else viewer.public_key,
            prefix_commitment=network(at or name),
            account_id=account_id,
            at_us=self.now_us,
        )
        ticket = self.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=named(f"ticket {name}"),
            session_id=session_id,
            node=self.ledger.load(Node, friend.node_id),
            broadcast=self.ledger.load(Broadcast, broadcast_id),
            first_sequence=0,
            nonce=named(f"nonce {name}").bytes,
            tariff_version=1,
            at_us=self.now_us,
        )
        return Viewing(session_id, ticket, friend.key if plain else viewer, plain)

    # --- an evening

    def evening(self, act: Callable[[range], None] = lambda _: None) -> dict[UUID, Income]:
        """Everybody watches to the end, `act` with every round of segments; then the epoch is settled."""
        for first in range(0, self.size.segments, ROUND):
            fresh = range(first, min(first + ROUND, self.size.segments))
            self.publish(self.broadcast_id, fresh)
            for friend in self.honest:
                self.probe(friend)
            for viewing in self.viewings:
                viewing.got.update(s for s in fresh if not (viewing.plain and at_hub(s)))
                if viewing.plain:
                    self.observe(viewing, fresh)
            act(fresh)
            for friend in self.honest:
                mine = [v for v in self.viewings if v.ticket.ticket.node_key == friend.key.public_key]
                self.send(friend, [self.receipt(v) for v in mine], honest=True)
        self.now_us = T0 + HOUR_US
        self.settle()
        return self.incomes()

    def settle(self) -> None:
        settle_due_epochs(self.ledger, at_us=self.now_us)

    def publish(self, broadcast_id: UUID, sequences: Iterable[int], *, meanwhile: bool = False) -> None:
        """Time passes with it, unless it is `meanwhile`: another stream of the same evening."""
        cut = []
        for s in sequences:
            self.now_us += 0 if meanwhile else SEGMENT_US
            self.media[s] = hashlib.sha256(b"segment %d" % s).digest()
            cut.append(Segment(s, SEGMENT_US, SEGMENT_BYTES, self.media[s], self.now_us))
        broadcasts.publish_segments(self.ledger, broadcast_id, cut, at_us=self.now_us)

    def receipt(
        self,
        viewing: Viewing,
        got: Iterable[int] | None = None,
        *,
        signer: KeyPair | None = None,
        ticket: SignedTicket | None = None,
        garbage: bool = False,
    ) -> bytes:
        """Signed by the viewer, for what arrived. The rest is for those who say something else."""
        viewing.counter += 1
        claimed = sorted(viewing.got if got is None else got)
        t = (ticket or viewing.ticket).ticket
        media = {s: b"garbage" if garbage else self.media.get(s, b"never was") for s in claimed}
        base = claimed[0] if claimed and claimed[-1] - t.first_sequence > 511 else t.first_sequence
        return (
            Receipt(
                ticket_hash=t.hash,
                counter=viewing.counter,
                base_sequence=base,
                bitmap=to_bitmap(base, claimed),
                digest=fold_digests(segment_digest(t.nonce, media[s]) for s in claimed),
            )
            .sign(signer or viewing.signer)
            .encode()
        )

    def send(
        self, friend: Friend, receipts: Sequence[bytes], *, honest: bool = False, clock_s: int = 0
    ) -> None:
        """Batches of this node; `clock_s` is how far its clock is off."""
        now_s = max(0, self.now_us // 1_000_000 + clock_s)
        for i in range(0, len(receipts), MAX_RECEIPTS):
            data = Batch.sign(friend.key, now_s, now_s, receipts[i : i + MAX_RECEIPTS]).encode()
            try:
                answers = self.desk.judge_batch(data, at_us=self.now_us)
            except DomainError:  # the node has been refused too often today
                self.verdicts["refused whole"] += 1
                continue
            if not honest:
                self.verdicts.update(f"{a.verdict} ({a.cap})" if a.cap else a.verdict for a in answers)

    def observe(self, viewing: Viewing, polled: range, fetched: Iterable[int] | None = None) -> None:
        """What the hub saw a plain player do: one segment in ten comes from the hub itself."""
        base = polled[0]
        seen = [s for s in polled if at_hub(s)] if fetched is None else fetched
        self.desk.observe(
            viewing.session_id,
            base_sequence=base,
            polled=to_bitmap(base, polled),
            fetched_at_hub=to_bitmap(base, seen),
            at_us=self.now_us,
        )

    def probe(self, friend: Friend, *, wrong: bool = False, bytes_s: int = HOME_LINE) -> None:
        def record(node: Node) -> None:
            node.probed(
                outcome="wrong_bytes" if wrong else "ok",
                sequence=0,
                latency_us=SEGMENT_BYTES * 1_000_000 // bytes_s,
                segment_bytes=SEGMENT_BYTES,
                session_id=None,
                at_us=self.now_us,
            )
            if wrong:
                node.suspend(reason="wrong bytes", at_us=self.now_us)

        nodes.change_node(self.ledger, friend.node_id, record)

    def see_elsewhere(self, friend: Friend, where: str) -> None:
        nodes.change_node(self.ledger, friend.node_id, lambda n: n.see_at(network(where), at_us=self.now_us))

    # --- what came of it

    def events(self, kind: type) -> Iterator[Any]:
        position = 0
        while page := self.ledger.read(position, 5_000):
            yield from (r.event for r in page if isinstance(r.event, kind))
            position += len(page)

    def incomes(self) -> dict[UUID, Income]:
        """By friend."""
        parts: dict[UUID, list[int]] = {}
        for event in self.events(EpochSettled):
            for line in event.lines:
                of = parts.setdefault(line.friend_id, [0, 0, 0])
                of[line.reason == "floor_share"] += line.amount_micro
                of[2] += line.credited_bytes if line.amount_micro else 0
        return {friend: Income(*numbers) for friend, numbers in parts.items()}


def at_hub(sequence: int) -> bool:
    """Which segments a plain player gets from the hub itself; the real hub draws them by a secret."""
    return sequence % 10 == 3
