"""The process that `bench.crash` kills: threads that append (one event, or a batch by COPY), and one that publishes.

Invariant: what stands in the file of acknowledgements was returned by `Ledger.save` before; no fact is decided twice.
"""

import hashlib
import os
import random
import signal
import struct
import threading
from pathlib import Path
from typing import Final
from uuid import UUID

from hub.logs import configure_logging
from ledger.aggregates.base import Aggregate
from ledger.application import Conflict, Ledger, Unavailable
from ledger.event_codec import encode
from ledger.events import Event, NodeWentOffline
from ledger.keys import KeyPair
from ledger.store.group import GROUP_EVENTS_MAX
from ledger.store.recorder import COPY_FROM
from ledger.tlog.publisher import Publisher

ORIGIN: Final = "crash.example/log"
KEY: Final = KeyPair(bytes(32))
ACK: Final = struct.Struct(">QQ16s32s")  # position, version, originator, SHA-256 of the bytes
WRITERS: Final = 6
SHARED: Final = UUID(int=1)  # all writers also append to this aggregate, and conflict
SIZES: Final = {1: 60, COPY_FROM: 4, GROUP_EVENTS_MAX + 1: 1}  # events of a save -> how often


class Counter(Aggregate):
    def apply(self, event: Event) -> None:
        assert isinstance(event, NodeWentOffline)

    def add(self, fact: str) -> Event:
        return self.trigger(NodeWentOffline, at_us=1, reason=fact)


def live(url: str, folder: Path, acknowledged: Path, seed: int, calls: int) -> None:
    """Append and publish until the `calls`-th call of a function."""
    left = [calls]

    def count(frame: object, event: str, argument: object) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    configure_logging(json=False, level="error")
    ledger = Ledger(url)
    threads = [
        threading.Thread(
            target=write, args=(ledger, acknowledged, f"{seed}/{n}", random.Random(f"{seed}/{n}"))
        )
        for n in range(WRITERS)
    ]
    threads.append(threading.Thread(target=publish, args=(publisher_of(ledger, folder),)))
    threading.setprofile(count)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write(ledger: Ledger, acknowledged: Path, name: str, rng: random.Random) -> None:
    own = UUID(int=rng.getrandbits(128))
    number = 0
    while True:
        number += 1
        (size,) = rng.choices(list(SIZES), list(SIZES.values()))
        try:
            mine = ledger.load_or_new(Counter, own)
            events = [mine.add(f"{name}/{number}/{n}") for n in range(size)]
            saved: list[Aggregate] = [mine]
            if rng.random() < 0.2:
                shared = ledger.load_or_new(Counter, SHARED)
                events.append(shared.add(f"{name}/{number}/shared"))
                saved.append(shared)
            positions = ledger.save(*saved)
        except (Conflict, Unavailable):
            continue
        out = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(out, b"".join(map(_ack, positions, events)))
        os.close(out)


def _ack(position: int, event: Event) -> bytes:
    digest = hashlib.sha256(encode(event)).digest()
    return ACK.pack(position, event.originator_version, event.originator_id.bytes, digest)


def publisher_of(ledger: Ledger, folder: Path) -> Publisher:
    return Publisher(ledger, folder, KEY, ORIGIN)


def publish(publisher: Publisher) -> None:
    while True:
        try:
            publisher.publish(at_us=1)
        except (Conflict, Unavailable):
            continue
