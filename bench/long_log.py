"""A log as long as one likes, written without a ledger: many viewers, each for a while, and what they are credited.

Invariant: the same arguments give the same log, and it stands up to a full audit. Nothing is kept while it is written.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from bench.evening import HUB, LOG, T0_US, evening, make_bytes, make_id
from ledger.batch import HEADER_BYTES, Batch
from ledger.checkpoint import Checkpoint
from ledger.event_codec import encode
from ledger.events import (
    BroadcastEnded,
    BroadcastStarted,
    Event,
    Segment,
    SegmentsPublished,
    SegmentsServed,
    SessionOpened,
    StreamWentLive,
    StreamWentOffline,
    TicketIssued,
)
from ledger.ids import delivery_id, node_id, stream_id, ticket_record_id
from ledger.judged import Judged, pack
from ledger.keys import KeyPair
from ledger.note import VerifierKey
from ledger.receipt import Receipt, to_bitmap
from ledger.settings import Settings
from ledger.ticket import Ticket, ViewerClass
from ledger.tlog.tiles import Tile, TileBuilder

ORIGIN: Final = "bench.example/log"
VIEWERS: Final = 5_000  # of a broadcast; the next begins when all were served
IN_BATCH: Final = 100
SEGMENTS: Final = 60
SEGMENT_BYTES: Final = 1_000_000
VIEWER: Final = KeyPair(make_bytes("viewer"))


def write(folder: Path, events: int) -> None:
    """At least so many events: a session and a ticket for each viewer, and one receipt of a few segments."""

    def put(tile: Tile, data: bytes) -> None:
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    tiles = TileBuilder(put)
    for data in _entries():
        tiles.append(data)
        if tiles.size >= events and tiles.size % 256 == 0:
            break
    for tile, data in tiles.partials():
        put(tile, data)
    (folder / "vkey").write_text(f"{VerifierKey(ORIGIN, LOG.public_key)}\n")
    (folder / "checkpoint").write_bytes(Checkpoint(ORIGIN, tiles.size, tiles.root()).sign(LOG))


def _entries() -> Iterator[bytes]:
    founding = [r.data for r in evening(0).log]
    yield from founding
    at_us = T0_US + 7_300_000_000
    for number in range(1_000_000_000):
        for event in _broadcast(number, at_us):
            at_us = event.at_us
            yield encode(event)


def _broadcast(number: int, at_us: int) -> Iterator[Event]:
    stream, node = stream_id("main"), KeyPair(make_bytes("node 0"))
    broadcast, rendition = make_id(f"long broadcast {number}"), make_id(f"long rendition {number}")
    first, serving = number * SEGMENTS, node_id(node.public_key)
    common: dict[str, Any] = {"originator_id": broadcast, "at_us": at_us}
    live, offline = 2 * number + 2, 2 * number + 3  # versions of the stream, which was registered
    yield StreamWentLive(originator_id=stream, originator_version=live, at_us=at_us, broadcast_id=broadcast)
    yield BroadcastStarted(
        **common,
        originator_version=1,
        stream_id=stream,
        rendition_id=rendition,
        first_sequence=first,
        video_codec="h264",
        audio_codec="aac",
    )
    cut = [Segment(first + i, 2_000_000, SEGMENT_BYTES, bytes(32), at_us) for i in range(SEGMENTS)]
    yield SegmentsPublished(**common, originator_version=2, rendition_id=rendition, segments=tuple(cut))
    tickets: list[Ticket] = []
    for viewer in range(VIEWERS):
        at_us += 100_000
        session = make_id(f"long session {number} {viewer}")
        yield SessionOpened(
            originator_id=session,
            originator_version=1,
            at_us=at_us,
            session_id=session,
            stream_id=stream,
            viewer_class=ViewerClass.SIGNING,
            viewer_key=VIEWER.public_key,
            prefix_commitment=session.bytes,
            account_id=None,
        )
        tickets.append(_ticket(session, stream, rendition, node, first, at_us))
        yield TicketIssued(
            originator_id=ticket_record_id(tickets[-1].hash),
            originator_version=1,
            at_us=at_us,
            session_id=session,
            broadcast_id=broadcast,
            node_id=serving,
            ticket=tickets[-1].sign(HUB).encode(),
        )
        if len(tickets) == IN_BATCH:
            version = viewer // IN_BATCH + 1
            yield _served(node, broadcast, first, tickets, version, at_us)
            tickets = []
    over: dict[str, Any] = {"at_us": at_us, "reason": "over", "next_sequence": first + SEGMENTS}
    yield StreamWentOffline(originator_id=stream, originator_version=offline, broadcast_id=broadcast, **over)
    yield BroadcastEnded(originator_id=broadcast, originator_version=3, **over)


def _ticket(session: UUID, stream: UUID, rendition: UUID, node: KeyPair, first: int, at_us: int) -> Ticket:
    return Ticket(
        viewer_class=ViewerClass.SIGNING,
        hub_key_id=HUB.key_id,
        ticket_id=session,
        session_id=session,
        stream_id=stream,
        rendition_id=rendition,
        viewer_key=VIEWER.public_key,
        node_key=node.public_key,
        first_sequence=first,
        last_sequence=first + SEGMENTS - 1,
        settle_by_s=at_us // 1_000_000 + Settings().settle_by_s,
        tariff_version=1,
        byte_budget=Settings().ticket_bytes_max,
        nonce=bytes(16),
    )


def _served(
    node: KeyPair, broadcast: UUID, first: int, tickets: list[Ticket], version: int, at_us: int
) -> SegmentsServed:
    bitmap, count = to_bitmap(first, range(first, first + 5)), len(tickets)
    receipts = [
        Receipt(ticket_hash=t.hash, counter=1, base_sequence=first, bitmap=bitmap, digest=bytes(32))
        .sign(VIEWER)
        .encode()
        for t in tickets
    ]
    sessions = [t.session_id for t in tickets]
    judged = [Judged("accepted", 5, 5 * SEGMENT_BYTES)] * count
    return SegmentsServed(
        originator_id=delivery_id(broadcast),
        originator_version=version,
        at_us=at_us,
        node_id=node_id(node.public_key),
        batch_header=Batch.sign(node, 0, at_us // 1_000_000, receipts).encode()[:HEADER_BYTES],
        first_sequence=first,
        network_limit=2,
        receipts=b"".join(receipts),
        **pack(range(count), sessions, [s.bytes for s in sessions], judged),
    )
