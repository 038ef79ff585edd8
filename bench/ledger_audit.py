"""The audit, against the library's own read-and-fold and against the verifier library alone; in turns, in one run."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from eventsourcing.persistence import StoredEvent
from nacl.bindings import crypto_sign_open

from bench import Row
from bench.evening import evening, publish
from bench.library import Book, LibraryLedger, books, library, postgres, side_by_side, timed
from ledger.audit import audit
from ledger.keys import KeyPair

RECEIPTS: Final = 48_000
LIBRARY_EVENTS: Final = 20_000
PAGE: Final = 5_000
CORES: Final = min(2, os.cpu_count() or 1)
ROUNDS: Final = 3
SIGNATURES: Final = 8_000


def rows() -> Iterator[Row]:
    folder = Path(tempfile.mkdtemp(prefix="streamrp2p-bench-"))
    try:
        log = evening(RECEIPTS)
        publish(log, folder)
        counts = audit(folder, jobs=CORES).counts
        verifier = Verifier()
        with postgres() as url:
            shipped = library(url)
            try:
                fill(shipped)
                fold, plain, full, verified = side_by_side(
                    ROUNDS,
                    lambda: fold_rate(shipped),
                    lambda: audit_rate(folder, signatures=False),
                    lambda: audit_rate(folder, signatures=True),
                    verifier.rate,
                )
            finally:
                shipped.close()
                verifier.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield Row(
        "audit, signatures left out, against the library's read and fold", plain, fold, "receipts/s", 20.0
    )
    every = full * counts.signatures / counts.receipts
    yield Row("audit with every signature against the verifier alone", every, verified, "signatures/s", 0.85)


def audit_rate(folder: Path, *, signatures: bool) -> float:
    report = None

    def work() -> None:
        nonlocal report
        report = audit(folder, jobs=CORES, verify_signatures=signatures)

    took = timed(work)
    assert report is not None
    assert report.ok, report.problem
    return report.counts.receipts / took


def fill(shipped: LibraryLedger) -> None:
    for _ in range(LIBRARY_EVENTS // 1_000):
        shipped.save(*books(1, 1_000))


def fold_rate(shipped: LibraryLedger) -> float:
    """Events a second: notifications read in pages, mapped to domain events, folded into balances."""
    amounts: dict[str, int] = {}

    def work() -> None:
        start = 1
        while page := shipped.recorder.select_notifications(start=start, limit=PAGE):
            for n in page:
                stored = StoredEvent(n.originator_id, n.originator_version, n.topic, n.state)
                event = shipped.mapper.to_domain_event(stored)
                if isinstance(event, Book.Transferred):
                    amounts[event.source] = amounts.get(event.source, 0) - event.amount_micro
                    amounts[event.target] = amounts.get(event.target, 0) + event.amount_micro
            start = page[-1].id + 1

    return LIBRARY_EVENTS / timed(work)


class Verifier:
    """PyNaCl and nothing else: signatures of the size of a receipt's, on the same cores, in a process each."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(CORES, mp_context=get_context("spawn"))
        self.rate()  # the processes are started and have what they verify

    def rate(self) -> float:
        each = SIGNATURES // CORES
        return CORES * each / timed(lambda: list(self._pool.map(verify_many, [each] * CORES)))

    def close(self) -> None:
        self._pool.shutdown()


def verify_many(count: int) -> None:
    public_key, signed = material()
    for message in signed[:count]:
        crypto_sign_open(message, public_key)


@cache
def material() -> tuple[bytes, list[bytes]]:
    key = KeyPair(bytes(32))
    bodies = [n.to_bytes(8) + bytes(153) for n in range(SIGNATURES)]
    return key.public_key, [key.sign(b"", body) + body for body in bodies]
