"""Money, against the limits it was given: settlement, payout plans; and receipts against the verifier library alone.

Settlement runs in a process of its own, so that its peak of memory is its own: 1,000,000 accepted receipts of 10,000
nodes, each in 10 of 1,000 streams, folded from their events; then draft, book and one durable save to Postgres.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final
from uuid import UUID, uuid5

from bench import Row
from bench.library import postgres
from hub.digests import SegmentDigests
from hub.keystore import KeyStore
from ledger import events as e
from ledger.aggregates.book import Book
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.delivery import Delivery
from ledger.application import Ledger
from ledger.batch import Batch
from ledger.ids import BOOK_ID, NAMESPACE
from ledger.judged import Judged, pack
from ledger.keys import KeyPair, verify
from ledger.money import budget_account, friend_account
from ledger.receipt import DOMAIN, Receipt, fold_digests, segment_digest, to_bitmap
from ledger.services import broadcasts, crew, nodes, payouts, streams
from ledger.services.credit_index import CreditIndex
from ledger.services.delivery import DeliveryDesk
from ledger.services.judging import ReceiptAnswer
from ledger.services.settle import collector_paused, draft
from ledger.settlement import Page
from ledger.store.database import connect_pool
from ledger.store.migrate import migrate
from ledger.ticket import Ticket, ViewerClass
from ledger.verifiers import Verifiers

NODES: Final = 10_000
STREAMS: Final = 1_000
STREAMS_A_NODE: Final = 10
RECEIPTS_A_TICKET: Final = 10
FRIENDS: Final = 100_000
HOUR_US: Final = 3_600_000_000
START: Final = 500_000 * HOUR_US
SEGMENTS: Final = 300
VIEWERS: Final = 400
RECEIPTS_A_BATCH: Final = 100
SEGMENTS_A_ROUND: Final = 5  # every 10 seconds
ROUNDS: Final = 40
# At a turn's end ours waits for its last verdicts to be durable, with nothing more to verify meanwhile. In a hub that
# is as busy the next batch is there, so a turn is long against that.
BATCHES_A_TURN: Final = 20
SESSIONS: Final = 20_000
THREADS: Final = 4
CORES: Final = os.cpu_count() or 1


def named(kind: str, number: int) -> UUID:
    return uuid5(NAMESPACE, f"bench {kind} {number}")


def rows() -> Iterator[Row]:
    with postgres() as url:
        migrate(url)
        out = subprocess.run(
            [sys.executable, "-m", "bench.money", url], check=True, capture_output=True, text=True
        ).stdout
        made = json.loads(out)
        less = {"less_is_better": True}
        yield Row("credit index: receipts folded a second", made["folded"], 20_000, "receipts/s", 1.0)
        yield Row("settle 1 M credits, 10,000 nodes, 1,000 streams", made["settle_s"], 10, "s", 1.0, **less)
        yield Row("  its process, at most", made["peak_mib"], 512, "MiB", 1.0, **less)
    with postgres() as url:
        migrate(url)
        yield Row("payout plan for 100,000 friends", plan_s(url), 30, "s", 1.0, **less)
    with postgres() as url:
        migrate(url)
        with TemporaryDirectory() as folder:
            ours, other = receipts_a_second(url, Path(folder))
        yield Row("receipts, body to durable verdict / verifier alone", ours, other, "receipts/s", 0.7)
    yield Row(
        "what a session and its ticket add to what is remembered", session_bytes(), 64, "B", 1.0, **less
    )


# --- settlement


def served() -> Iterator[e.Event]:
    """The log of one epoch: nodes, a ticket for each of their streams, and its receipts."""
    common = {"originator_version": 1, "at_us": START}
    yield e.CrewFounded(
        originator_id=BOOK_ID, name="c", unit="EUR", genesis_us=START, epoch_length_s=3_600, **common
    )
    stream_ids = [named("stream", n) for n in range(STREAMS)]
    accepted = Judged("accepted", 30, 30_000_000)
    bitmap, digest = to_bitmap(0, range(30)), bytes(32)
    for n in range(NODES):
        node_id = named("node", n)
        yield e.NodeJoined(
            originator_id=node_id,
            public_key=bytes(32),
            friend_id=named("friend", n),
            invite_id=node_id,
            prefix_commitment=b"",
            **common,
        )
        for k in range(STREAMS_A_NODE):
            stream_id = stream_ids[(n * 7 + k * 101) % STREAMS]
            ticket = Ticket(
                viewer_class=ViewerClass.SIGNING,
                hub_key_id=bytes(8),
                ticket_id=UUID(int=n * STREAMS_A_NODE + k),
                session_id=node_id,
                stream_id=stream_id,
                rendition_id=stream_id,
                viewer_key=bytes(32),
                node_key=bytes(32),
                first_sequence=0,
                last_sequence=300,
                settle_by_s=START // 1_000_000 + 172_800,
                tariff_version=1,
                byte_budget=1,
                nonce=bytes(16),
            )
            yield e.TicketIssued(
                originator_id=node_id,
                session_id=node_id,
                broadcast_id=stream_id,
                node_id=node_id,
                ticket=ticket.body() + bytes(64),
                **common,
            )
            receipt = Receipt(
                ticket_hash=ticket.hash, counter=1, base_sequence=0, bitmap=bitmap, digest=digest
            )
            data = receipt.body() + bytes(64)
            yield e.SegmentsServed(
                originator_id=stream_id,
                node_id=node_id,
                batch_header=b"",
                first_sequence=0,
                network_limit=2,
                receipts=data * RECEIPTS_A_TICKET,
                **pack(
                    range(RECEIPTS_A_TICKET),
                    [node_id] * RECEIPTS_A_TICKET,
                    [b""] * RECEIPTS_A_TICKET,
                    [accepted] * RECEIPTS_A_TICKET,
                ),
                **common,
            )


def settlement(url: str) -> dict[str, float]:
    ledger, index, book = Ledger(url), CreditIndex(), Book(BOOK_ID)
    spent = 0.0
    for position, event in enumerate(served()):
        began = time.perf_counter()
        index.apply(position, event)
        if isinstance(event, e.SegmentsServed):
            spent += time.perf_counter() - began
    for n in range(STREAMS):
        book.set_tariff(
            named("stream", n),
            effective_epoch=0,
            rate_micro_per_gb=10_000,
            fee_bp=500,
            floor_bp=1_000,
            plain_bp=5_000,
            plain_income_cap_bp=3_000,
            at_us=START,
        )
        book.deposit(named("stream", n), amount_micro=10**9, reference=f"d{n}", at_us=START)
    ledger.save(book)
    began = time.perf_counter()
    with collector_paused():
        pages = draft(index, book, epoch=0, log_to=index.position)
        book.settle_epoch(0, log_to=index.position, pages=pages, at_us=START + HOUR_US)
        ledger.save(book)
    settle_s = time.perf_counter() - began
    ledger.close()
    return {
        "folded": NODES * STREAMS_A_NODE * RECEIPTS_A_TICKET / spent,
        "settle_s": settle_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# --- payouts


def plan_s(url: str) -> float:
    """Every friend has something available and a destination; all payouts that are needed are planned and saved."""
    ledger, stream_id = Ledger(url), named("stream", 0)
    crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=3_600, at_us=START)
    book = Book(BOOK_ID)
    book.deposit(stream_id, amount_micro=FRIENDS * 2_000_000, reference="d", at_us=START)
    friends = [named("friend", n) for n in range(FRIENDS)]
    lines = [e.SettlementLine(stream_id, f, f, "delivery", 1, 1, 1, 1, 2_000_000) for f in friends]
    moves = [
        e.Transfer(
            "settlement",
            (
                e.Posting(budget_account(stream_id), -2_000_000),
                e.Posting(friend_account(f, "pending"), 2_000_000),
            ),
        )
        for f in friends
    ]
    pages = [Page(tuple(lines[i : i + 200]), tuple(moves[i : i + 200])) for i in range(0, FRIENDS, 200)]
    book.settle_epoch(0, log_to=0, pages=pages, at_us=START)
    book.release_hold(0, at_us=START)
    ledger.save(book)
    del book
    began = time.perf_counter()
    plan = payouts.plan(
        ledger,
        rail="csv",
        threshold_micro=1_000_000,
        destinations=dict.fromkeys(friends, bytes(32)),
        operator="bench",
        at_us=START,
    )
    spent = time.perf_counter() - began
    planned = len(plan.lines) + sum(len(p.lines) for p in plan.further)
    ledger.close()
    if planned != FRIENDS:
        raise RuntimeError(f"{planned} of {FRIENDS} friends were planned")
    return spent


# --- receipts


def receipts_a_second(url: str, folder: Path) -> tuple[float, float]:
    """(from the bytes of a batch to its durable verdicts, the signatures of the same receipts alone), same threads.

    They take turns, so that what else the machine does is shared by both. The median turn of each.
    """
    ledger, keys = Ledger(url), KeyStore.open(folder)
    with (
        connect_pool(url) as tables,
        ThreadPoolExecutor(THREADS) as pool,
        closing(Verifiers(CORES)) as verifiers,
    ):
        desk, receipts, bodies = _sent(ledger, keys, SegmentDigests(tables, keys), verifiers)
        verifiers.hold(b"".join(b"".join(check) for check in receipts[:RECEIPTS_A_BATCH]))  # they are started
        gc.collect()  # else what the making of the receipts left is looked through in somebody's turn: 70 ms
        answers: list[list[ReceiptAnswer]] = []
        ours, others, held = [], [], 0
        for at in range(0, len(bodies), BATCHES_A_TURN):
            began = time.perf_counter()
            turn = bodies[at : at + BATCHES_A_TURN]
            answers += pool.map(lambda body: desk.judge_batch(body, at_us=START + 1), turn)
            between = time.perf_counter()
            checks = [receipts[n * RECEIPTS_A_BATCH :][:RECEIPTS_A_BATCH] for n in range(at, at + len(turn))]
            prepared = time.perf_counter()
            held += sum(pool.map(_held, checks))
            ours.append(RECEIPTS_A_BATCH * len(turn) / (between - began))
            others.append(RECEIPTS_A_BATCH * len(turn) / (time.perf_counter() - prepared))
    ledger.close()
    wrong = [a.verdict for answer in answers for a in answer if a.verdict not in ("accepted", "duplicate")]
    if wrong or held != len(receipts):
        raise RuntimeError(f"{len(wrong)} receipts refused, {held} signatures hold")
    return median(ours), median(others)


def session_bytes() -> float:
    """Memory of what keeps receipts from being paid twice, for each of many sessions with a network of its own."""
    delivery, events = Delivery(named("delivery", 0)), SESSIONS // RECEIPTS_A_BATCH
    bitmap, accepted = to_bitmap(0, range(30)), Judged("accepted", 30, 30_000_000)
    gc.collect()
    tracemalloc.start()
    for at in range(events):
        numbers = range(at * RECEIPTS_A_BATCH, (at + 1) * RECEIPTS_A_BATCH)
        receipt = Receipt(ticket_hash=bytes(32), counter=1, base_sequence=0, bitmap=bitmap, digest=bytes(32))
        delivery.trigger(
            e.SegmentsServed,
            at_us=START,
            node_id=delivery.id,
            batch_header=at.to_bytes(147, "big"),
            first_sequence=0,
            network_limit=2,
            receipts=(receipt.body() + bytes(64)) * RECEIPTS_A_BATCH,
            **pack(
                range(RECEIPTS_A_BATCH),
                [named("session", n) for n in numbers],
                [named("network", n).bytes for n in numbers],
                [accepted] * RECEIPTS_A_BATCH,
            ),
        )
        delivery.collect_events()
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / SESSIONS


_Check = tuple[bytes, bytes, bytes]  # public key, body, signature


def _held(checks: list[_Check]) -> int:
    return sum(verify(key, DOMAIN, body, signature) for key, body, signature in checks)


def _sent(
    ledger: Ledger, keys: KeyStore, digests: SegmentDigests, verifiers: Verifiers
) -> tuple[DeliveryDesk, list[_Check], list[bytes]]:
    """A broadcast with its tickets; the receipts of all rounds, and the batches in which its node sends them."""
    node_key = KeyPair(b"n" * 32)
    crew.found_crew(ledger, name="c", unit="EUR", epoch_length_s=3_600, at_us=START)
    stream_id = streams.register_stream(
        ledger, slug="main", owner_id=named("owner", 0), stream_key="main_x", at_us=START
    )
    expires = START + HOUR_US
    nodes.create_invite(ledger, friend_id=named("friend", 0), code="c" * 20, expires_us=expires, at_us=START)
    node, _ = nodes.join_node(
        ledger, code="c" * 20, public_key=node_key.public_key, prefix_commitment=bytes(16), at_us=START
    )
    broadcast, _ = broadcasts.start_or_resume(
        ledger,
        stream_id,
        new_broadcast_id=named("broadcast", 0),
        new_rendition_id=named("rendition", 0),
        video_codec="h264",
        audio_codec="aac",
        grace_s=15,
        at_us=START,
    )
    cut = [e.Segment(n, 2_000_000, 1_000_000, bytes(32), START) for n in range(SEGMENTS)]
    broadcasts.publish_segments(ledger, broadcast.id, cut, at_us=START)
    broadcast = ledger.load(Broadcast, broadcast.id)
    rendition_id, media = named("rendition", 0), [b"segment %d" % n for n in range(SEGMENTS)]
    for n in range(ROUNDS * SEGMENTS_A_ROUND):
        digests.put(rendition_id, n, media[n])
    nonces = keys.nonces(rendition_id)
    desk = DeliveryDesk(ledger, digest_of=digests.get, verifiers=verifiers)
    tickets = []
    for n in range(VIEWERS):
        viewer, session = KeyPair(n.to_bytes(32, "big")), named("session", n)
        desk.open_session(
            session_id=session,
            stream_id=stream_id,
            viewer_class=ViewerClass.SIGNING,
            viewer_key=viewer.public_key,
            prefix_commitment=(n + 1).to_bytes(16, "big"),
            account_id=None,
            at_us=START,
        )
        signed = desk.issue_ticket(
            hub_key=keys.ticket,
            ticket_id=named("ticket", n),
            session_id=session,
            node=node,
            broadcast=broadcast,
            first_sequence=0,
            nonce=nonces[n % len(nonces)],
            tariff_version=1,
            at_us=START,
        )
        tickets.append((signed.ticket, viewer))
    receipts: list[bytes] = []
    checks: list[_Check] = []
    for counter in range(1, ROUNDS + 1):
        claimed = range(SEGMENTS_A_ROUND * counter)
        digest_of = {n: fold_digests(segment_digest(n, media[s]) for s in claimed) for n in nonces}
        for ticket, viewer in tickets:
            receipt = Receipt(
                ticket_hash=ticket.hash,
                counter=counter,
                base_sequence=0,
                bitmap=to_bitmap(0, claimed),
                digest=digest_of[ticket.nonce],
            ).sign(viewer)
            receipts.append(receipt.encode())
            checks.append((viewer.public_key, receipt.receipt.body(), receipt.signature))
    bodies = [
        Batch.sign(node_key, n, n + 1, receipts[n : n + RECEIPTS_A_BATCH]).encode()
        for n in range(0, len(receipts), RECEIPTS_A_BATCH)
    ]
    return desk, checks, bodies


if __name__ == "__main__":
    print(json.dumps(settlement(sys.argv[1])))
