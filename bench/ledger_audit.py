"""The audit, against the library's own read-and-fold and against the verifier library alone, in turns, in one run; and
the memory of the audit with all its helpers, on a log of many viewers."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from eventsourcing.persistence import StoredEvent
from nacl.bindings import crypto_sign_open

from bench import Row, long_log
from bench.evening import evening, publish
from bench.library import Book, LibraryLedger, books, library, postgres, side_by_side, timed
from ledger.audit import audit
from ledger.keys import KeyPair

SIGNED_RECEIPTS: Final = 96_000
RECEIPTS: Final = 1_000_000  # of 2,400 viewers at a time
CROWD: Final = 12
MEMORY_EVENTS: Final = 60_000
LIBRARY_EVENTS: Final = 20_000
PAGE: Final = 5_000
CORES: Final = min(2, os.cpu_count() or 1)
ROUNDS: Final = 3
SIGNATURES: Final = 8_000


def rows() -> Iterator[Row]:
    folder = Path(tempfile.mkdtemp(prefix="streamrp2p-bench-"))
    try:
        signed, unsigned = folder / "signed", folder / "unsigned"
        publish(evening(SIGNED_RECEIPTS), signed)
        publish(evening(RECEIPTS, crowd=CROWD, signed=False), unsigned)
        counts = audit(signed, jobs=CORES).counts
        verifier = Verifier()
        with postgres() as url:
            shipped = library(url)
            try:
                fill(shipped)
                fold, plain, full, verified = side_by_side(
                    ROUNDS,
                    lambda: fold_rate(shipped),
                    lambda: audit_rate(unsigned, signatures=False),
                    lambda: audit_rate(signed, signatures=True),
                    verifier.rate,
                )
            finally:
                shipped.close()
                verifier.close()
        full_mib = peak_mib(unsigned, signatures=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield Row(
        "audit, signatures and the roots of batches left out, against the library's read and fold",
        plain,
        fold,
        "receipts/s",
        20.0,
    )
    every = full * counts.signatures / counts.receipts
    yield Row("audit with every signature against the verifier alone", every, verified, "signatures/s", 0.85)
    with tempfile.TemporaryDirectory(prefix="streamrp2p-bench-") as place:
        long_log.write(Path(place), MEMORY_EVENTS)
        many_mib = peak_mib(Path(place), signatures=True)
    for what, mib in ((f"{MEMORY_EVENTS:,} events", many_mib), (f"{RECEIPTS:,} receipts", full_mib)):
        if mib:
            yield Row(
                f"peak memory of an audit of {what}, with its helpers",
                mib,
                256,
                "MiB",
                1.0,
                less_is_better=True,
            )


def peak_mib(folder: Path, *, signatures: bool) -> float:
    """Proportional set size of the audit and its helpers at most, looked at every 50 ms; 0 where nobody tells it."""
    if not Path("/proc/self/smaps_rollup").exists():
        return 0
    script = (
        "from pathlib import Path; from ledger.audit import audit;"
        f"assert audit({str(folder)!r}, jobs={CORES}, state=Path({str(folder)!r}, 'state'),"
        f" verify_signatures={signatures}).ok"
    )
    most = 0
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while process.poll() is None:
            most = max(most, sum(_pss_kib(pid) for pid in _family(process.pid)))
            time.sleep(0.05)
    assert process.returncode == 0
    return most / 1_024


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _family(int(child))


def _pss_kib(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


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
