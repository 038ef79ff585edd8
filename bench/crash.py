"""`python -m bench.crash --runs N --seed S`: kill -9 of the appending process, and of Postgres, over and over.

A run is a process that appends and publishes (`bench.crash_writer`). It is killed at a seeded count of its own function
calls, so before or after anything it does; every so many runs Postgres is killed under it first. After each run, from
what stands in Postgres, in the published files and in a file of what was acknowledged:

* positions have no gap, and what stood there before stands there still;
* every append that was acknowledged stands at its position, byte for byte, and no fact stands there twice;
* the tree of the last checkpoint, and that of the next publication, is the one of RFC 6962's own words over the rows.

A killed process leaves what it gave to the kernel: the loss of power is not tried here.
"""

import argparse
import hashlib
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from bench.crash_writer import ACK, KEY, ORIGIN, live, publisher_of
from hub.embedded.postgres import EmbeddedPostgres
from hub.logs import configure_logging
from ledger.application import Ledger
from ledger.checkpoint import Checkpoint
from ledger.event_codec import decode
from ledger.events import NodeWentOffline
from ledger.note import VerifierKey
from ledger.store.migrate import migrate
from ledger.tlog.reader import LogReader
from ledger.tlog.source import FolderSource

CALLS: Final = (
    1_000,
    200_000,
)  # of functions, before the process dies: between these, the small ones more often
LIFE: Final = 50  # runs on one database
POSTGRES_DIES_S: Final = 0.6  # at most so long after the start
RUN_S: Final = 120.0


# --- what must hold afterwards ----------------------------------------------------------------------------------------


class Broken(Exception):
    """Something does not hold."""


def must(held: bool, what: str) -> None:
    if not held:
        raise Broken(what)


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, over leaf hashes, as it is written there."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


class Witness:
    """What stood in the log of one database after the runs before."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.leaves: list[bytes] = []
        self.states: list[bytes] = []  # SHA-256 of each row's bytes
        self.keys: list[tuple[UUID, int]] = []
        self.facts: set[str] = set()

    def look(self, acknowledged: Path, *, everything: bool) -> int:
        """Raises Broken. Returns how many events were acknowledged in that file."""
        ledger = Ledger(self.url)
        try:
            before = self._checkpoint()
            self._rows(ledger, 0 if everything else max(len(self.leaves) - 100, 0))
            number = self._acknowledged(acknowledged)
            if before is not None:
                must(before.size <= len(self.leaves), "the checkpoint has more than the log")
                must(tree_hash(self.leaves[: before.size]) == before.root, "the published root is another")
            after = publisher_of(ledger, self.folder).publish(at_us=1)
            self._rows(ledger, len(self.leaves))
            must(after == self._checkpoint(), "the checkpoint is not the one that was returned")
            must((after.size, after.root) == (len(self.leaves), tree_hash(self.leaves)), "another tree")
            if everything:
                entries = LogReader(FolderSource(self.folder), after.size).entries(0, after.size)
                published = [hashlib.sha256(data).digest() for _, data in entries]
                must(published == self.states, "the published entries are others")
        finally:
            ledger.close()
        return number

    def _checkpoint(self) -> Checkpoint | None:
        try:
            note = (self.folder / "checkpoint").read_bytes()
        except FileNotFoundError:
            return None
        return Checkpoint.open(note, VerifierKey(ORIGIN, KEY.public_key))

    def _rows(self, ledger: Ledger, start: int) -> None:
        position = start
        while page := ledger.read_rows(position, 5_000):  # raises when there is a gap
            for row in page:
                digest = hashlib.sha256(row.state).digest()
                if row.position < len(self.states):
                    must(self.states[row.position] == digest, f"position {row.position} was changed")
                    continue
                event = decode(row.state, row.topic)
                self.leaves.append(hashlib.sha256(b"\x00" + row.state).digest())
                self.states.append(digest)
                self.keys.append((event.originator_id, event.originator_version))
                if isinstance(event, NodeWentOffline):
                    must(event.reason not in self.facts, f"{event.reason} stands there twice")
                    self.facts.add(event.reason)
            position += len(page)
        must(position >= len(self.states), f"the log ends at {position}: it had {len(self.states)} events")
        must(ledger.size() == len(self.states), "the size is another than the number of rows")

    def _acknowledged(self, file: Path) -> int:
        data = file.read_bytes() if file.exists() else b""
        whole = len(data) // ACK.size * ACK.size  # the last write may be cut
        for position, version, originator, digest in ACK.iter_unpack(data[:whole]):
            must(position < len(self.states), f"position {position} was acknowledged and is lost")
            must(self.keys[position] == (UUID(bytes=originator), version), f"another event at {position}")
            must(self.states[position] == digest, f"other bytes at {position}")
        return whole // ACK.size


# --- the loop ---------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.crash", description="kill -9, over and over.")
    parser.add_argument("--runs", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="run i has the seed S + i")
    parser.add_argument("--postgres-every", type=int, default=5, metavar="K", help="0: never")
    given = parser.parse_args()
    configure_logging(json=False, level="critical")
    context = get_context("forkserver")
    context.set_forkserver_preload(["bench.crash_writer"])
    total = Totals()
    for first in range(0, given.runs, LIFE):
        seeds = range(given.seed + first, given.seed + min(first + LIFE, given.runs))
        folder = Path(tempfile.mkdtemp(prefix="streamrp2p-crash-"))
        folder.chmod(0o755)
        server = EmbeddedPostgres(folder / "postgres")
        try:
            server.start()
            one_life(server, folder, seeds, given.postgres_every, context, total)
        except Broken as e:
            print(f"{e}\n  kept: {folder}", file=sys.stderr)
            return 1
        finally:
            server.stop()
        shutil.rmtree(folder)
        print(total, flush=True)
    return 0


class Totals:
    def __init__(self) -> None:
        self.began = time.monotonic()
        self.appender = self.postgres = self.events = self.acknowledged = 0

    def __str__(self) -> str:
        return (
            f"kills: {self.appender:,} of the appender, {self.postgres:,} of Postgres; events: {self.events:,}, "
            f"{self.acknowledged:,} of them acknowledged; nothing lost, nothing twice, no gap, every tree the same; "
            f"{time.monotonic() - self.began:.0f} s"
        )


def one_life(
    server: EmbeddedPostgres, folder: Path, seeds: range, postgres_every: int, context: Any, total: Totals
) -> None:
    migrate(server.url)
    witness = Witness(server.url, folder / "log")
    for seed in seeds:
        rng = random.Random(seed)
        postgres_dies = bool(postgres_every) and seed % postgres_every == 0
        low, high = CALLS
        calls = high if postgres_dies else int(low * (high / low) ** rng.random())
        acknowledged = folder / f"acknowledged-{seed}"
        arguments = (server.url, witness.folder, acknowledged, seed, calls)
        process = context.Process(target=live, args=arguments)
        process.start()
        if postgres_dies:
            while process.is_alive() and not acknowledged.exists():
                time.sleep(0.005)
            time.sleep(rng.random() * POSTGRES_DIES_S)
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            total.postgres += 1
            server.start()
        process.join(RUN_S)
        try:
            must(process.exitcode == -signal.SIGKILL, f"seed {seed}: the process ended by {process.exitcode}")
            total.appender += 1
            before = len(witness.states)
            total.acknowledged += witness.look(acknowledged, everything=seed == seeds[-1])
            total.events += len(witness.states) - before
        except Broken as e:
            raise Broken(f"seed {seed}: {e}") from e
        finally:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
