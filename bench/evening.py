"""A busy evening of a crew in memory, through the real services: what the audit and the read models are measured on.

Invariant: the same arguments give the same log, and it stands up to a full audit.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

import msgspec

from ledger.aggregates.base import Aggregate
from ledger.application import NotFound, Recorded
from ledger.batch import HEADER_BYTES, MAX_RECEIPTS, Batch
from ledger.event_codec import encode, tag_of
from ledger.events import Event, Segment, SegmentsServed
from ledger.ids import NAMESPACE, delivery_id
from ledger.judged import Judged, pack
from ledger.keys import SIGNATURE_BYTES, KeyPair
from ledger.receipt import Receipt, SignedReceipt, to_bitmap
from ledger.services import broadcasts, budgets, crew, nodes, settle, streams
from ledger.services.delivery import DeliveryDesk
from ledger.store.recorder import Row
from ledger.ticket import ViewerClass
from ledger.tlog.publisher import Publisher

T0_US: Final = 1_800_000_000_000_000
HUB: Final = KeyPair(hashlib.sha256(b"ticket key").digest())
LOG: Final = KeyPair(hashlib.sha256(b"log key").digest())
NODES: Final = 4
SEGMENTS: Final = 300
SEGMENTS_PER_ROUND: Final = 5  # of 2 s: each viewer signs every 10 s
ROUNDS: Final = SEGMENTS // SEGMENTS_PER_ROUND


class MemoryLedger:
    """What the services need of `ledger.application.Ledger`, without a database."""

    def __init__(self) -> None:
        self.log: list[Recorded] = []
        self._aggregates: dict[UUID, Aggregate] = {}
        self._positions: dict[tuple[UUID, int], int] = {}
        self._versions: dict[UUID, int] = {}  # of what is appended without an aggregate

    def load(self, cls: Any, aggregate_id: UUID) -> Any:
        try:
            return self._aggregates[aggregate_id]
        except KeyError:
            raise NotFound(str(aggregate_id)) from None

    def load_or_new(self, cls: Any, aggregate_id: UUID) -> Any:
        return self._aggregates.get(aggregate_id) or cls(aggregate_id)

    def load_each(self, *wanted: tuple[Any, UUID]) -> list[Any]:
        return [self._aggregates.get(aggregate_id) for _, aggregate_id in wanted]

    remembered = load_each

    def find(self, wanted: Sequence[tuple[UUID, int]]) -> list[Recorded]:
        return [self.log[self._positions[w]] for w in wanted if w in self._positions]

    def save(self, *aggregates: Aggregate, unchanged: Sequence[Aggregate] = ()) -> list[int]:
        first = len(self.log)
        for aggregate in aggregates:
            self._aggregates[aggregate.id] = aggregate
            for event in aggregate.collect_events():
                self._positions[event.originator_id, event.originator_version] = len(self.log)
                self.log.append(Recorded(len(self.log), event, encode(event)))
        return list(range(first, len(self.log)))

    def append(self, event: Event) -> None:
        """An event that no aggregate of ours makes, as the next of its own."""
        versions = self._versions
        versions[event.originator_id] = version = versions.get(event.originator_id, 0) + 1
        event = msgspec.structs.replace(event, originator_version=version)
        self.log.append(Recorded(len(self.log), event, encode(event)))

    def read(self, start: int, limit: int) -> list[Recorded]:
        return self.log[start : start + limit]

    def read_rows(self, start: int, limit: int) -> list[Row]:
        return [Row(r.position, tag_of(r.event), r.data) for r in self.read(start, limit)]

    def size(self) -> int:
        return len(self.log)

    def last_event(self, aggregate_id: UUID) -> Event | None:
        return next((r.event for r in reversed(self.log) if r.event.originator_id == aggregate_id), None)

    def position_of(self, originator_id: UUID, originator_version: int) -> int:
        return self._positions[originator_id, originator_version]


def make_id(name: str) -> UUID:
    return uuid5(NAMESPACE, "bench:" + name)


def make_bytes(name: str, size: int = 32) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:size]


def evening(
    receipts: int, *, crowd: int = NODES, streams_at_once: int = 1, signed: bool = True
) -> MemoryLedger:
    """At least `receipts` receipts, each of five new segments in a bitmap that grows, a settlement at the end.

    Where receipts and batches are not `signed`, the hub's verdicts are written as it would have given them, which is
    a hundred times quicker: for what leaves these signatures out. Each node of the `crowd` has as many viewers as a
    batch has room for; of `streams_at_once`, which are live one beside the other, the nodes serve one each in turn.
    """
    ledger: Any = MemoryLedger()
    clock = iter(range(T0_US, T0_US + 10**12, 1_000))
    crew.found_crew(ledger, name="bench", unit="EUR", epoch_length_s=3_600, at_us=next(clock))
    crew.add_key(ledger, "ticket", HUB.public_key, at_us=next(clock))
    crew.add_key(ledger, "log", LOG.public_key, at_us=next(clock))
    live = []
    for n in range(streams_at_once):
        slug = _numbered("main", n)
        stream = streams.register_stream(
            ledger, slug=slug, owner_id=make_id("owner"), stream_key=f"{slug}_" + "a" * 32, at_us=next(clock)
        )
        budgets.set_tariff(ledger, stream, rate_micro_per_gb=10_000, at_us=next(clock))
        budgets.deposit(
            ledger, stream, amount_micro=10**12, reference=_numbered("first", n), at_us=next(clock)
        )
        live.append(stream)
    desk = DeliveryDesk(ledger, digest_of=lambda rendition, nonce, sequence: None)
    serving = [_join(ledger, n, clock) for n in range(crowd)]
    number = 0
    while number * ROUNDS * crowd * MAX_RECEIPTS < receipts:
        _broadcasts(ledger, desk, live, serving, number, clock, signed=signed)
        number += 1
    settle.settle_due_epochs(ledger, at_us=T0_US + 7_200_000_000)
    return ledger  # type: ignore[no-any-return]


def _numbered(name: str, n: int) -> str:
    """Another name for each, the first as it is."""
    return f"{name}{n}" if n else name


def _join(ledger: Any, n: int, clock: Iterator[int]) -> tuple[KeyPair, Any]:
    key, code = KeyPair(make_bytes(f"node {n}")), f"code {n}"
    at_us = next(clock)
    nodes.create_invite(
        ledger, friend_id=make_id(f"friend {n}"), code=code, expires_us=at_us + 10**9, at_us=at_us
    )
    network = make_bytes(f"network of node {n}", 16)
    node, _ = nodes.join_node(
        ledger, code=code, public_key=key.public_key, prefix_commitment=network, at_us=next(clock)
    )
    return key, node


def _broadcasts(
    ledger: Any,
    desk: DeliveryDesk,
    live: list[UUID],
    serving: list[Any],
    number: int,
    clock: Iterator[int],
    *,
    signed: bool,
) -> None:
    started = [
        broadcasts.start_or_resume(
            ledger,
            stream,
            new_broadcast_id=make_id(_numbered(f"broadcast {number}", n)),
            new_rendition_id=make_id(_numbered(f"rendition {number}", n)),
            video_codec="h264",
            audio_codec="aac",
            grace_s=30,
            at_us=next(clock),
        )[0]
        for n, stream in enumerate(live)
    ]
    firsts = [broadcast.first_sequence for broadcast in started]
    tickets = [
        [
            (key, make_bytes(f"viewer {n} {v}")),
            _ticket(ledger, desk, live[of], started[of], node, n, v, number, clock),
        ]
        for n, (key, node) in enumerate(serving)
        for of in [n % len(live)]
        for v in range(MAX_RECEIPTS)
    ]
    for round_ in range(1, ROUNDS + 1):
        cuts = []
        for first, broadcast in zip(firsts, started, strict=True):
            known = first + round_ * SEGMENTS_PER_ROUND
            cut = [
                Segment(s, 2_000_000, 1_000_000 + s % 7, make_bytes(f"segment {s}"), next(clock))
                for s in range(known - SEGMENTS_PER_ROUND, known)
            ]
            broadcasts.publish_segments(ledger, broadcast.id, cut, at_us=next(clock))
            cuts.append(cut)
        digest = make_bytes(f"digest {round_}")
        for n, (key, node) in enumerate(serving):
            of = n % len(live)
            first, cut = firsts[of], cuts[of]
            bitmap = to_bitmap(first, range(first, first + round_ * SEGMENTS_PER_ROUND))
            mine = tickets[n * MAX_RECEIPTS : (n + 1) * MAX_RECEIPTS]
            receipts = [
                Receipt(ticket_hash=t, counter=round_, base_sequence=first, bitmap=bitmap, digest=digest)
                for _, t in mine
            ]
            if signed:
                data = [r.sign(KeyPair(v)).encode() for r, ((_, v), _) in zip(receipts, mine, strict=True)]
                desk.judge_batch(Batch.sign(key, round_, round_ + 10, data).encode(), at_us=next(clock))
            else:
                data = [SignedReceipt(r, bytes(SIGNATURE_BYTES)).encode() for r in receipts]
                header = Batch.sign(key, round_, round_ + 10, data).encode()[:HEADER_BYTES]
                name, at_us = f"{number} {n}", next(clock)
                ledger.append(_served(header, started[of], node, name, round_, cut, data, at_us))
    for broadcast in started:
        broadcasts.end_broadcast(ledger, broadcast.id, reason="over", at_us=next(clock))


def _served(
    header: bytes,
    broadcast: Any,
    node: Any,
    name: str,
    round_: int,
    cut: list[Segment],
    receipts: list[bytes],
    at_us: int,
) -> SegmentsServed:
    """What the hub says of a node's batch, all of it new and as claimed."""
    viewers = range(len(receipts))
    judged = [Judged("accepted", len(cut), sum(s.segment_bytes for s in cut))] * len(receipts)
    sessions = [make_id(f"session {name} {v}") for v in viewers]
    networks = [make_bytes(f"network {name} {v}", 16) for v in viewers]
    return SegmentsServed(
        originator_id=delivery_id(broadcast.id),
        originator_version=0,  # as it comes
        at_us=at_us,
        node_id=node.id,
        batch_header=header,
        first_sequence=broadcast.first_sequence,
        network_limit=2,
        receipts=b"".join(receipts),
        **pack(viewers, sessions, networks, judged),
    )


def _ticket(
    ledger: Any,
    desk: DeliveryDesk,
    stream: UUID,
    broadcast: Any,
    node: Any,
    n: int,
    v: int,
    number: int,
    clock: Iterator[int],
) -> bytes:
    name = f"{number} {n} {v}"
    desk.open_session(
        session_id=make_id(f"session {name}"),
        stream_id=stream,
        viewer_class=ViewerClass.SIGNING,
        viewer_key=KeyPair(make_bytes(f"viewer {n} {v}")).public_key,
        prefix_commitment=make_bytes(f"network {name}", 16),
        account_id=None,
        at_us=next(clock),
    )
    return desk.issue_ticket(
        hub_key=HUB,
        ticket_id=make_id(f"ticket {name}"),
        session_id=make_id(f"session {name}"),
        node=node,
        broadcast=broadcast,
        first_sequence=broadcast.first_sequence,
        nonce=make_bytes(f"nonce {name}", 16),
        tariff_version=1,
        at_us=next(clock),
    ).ticket.hash


def publish(ledger: MemoryLedger, folder: Path) -> None:
    Publisher(ledger, folder, LOG, "bench.example/log").publish(at_us=T0_US + 7_300_000_000)
