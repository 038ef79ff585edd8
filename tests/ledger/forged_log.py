"""A dishonest hub: it alters events and then signs and publishes the result flawlessly."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from crew_life import LOG

from ledger.checkpoint import Checkpoint
from ledger.event_codec import encode
from ledger.events import Event
from ledger.note import VerifierKey
from ledger.tlog.files import write_atomic
from ledger.tlog.tiles import Tile, TileBuilder

ORIGIN = "hub.example/log"
VKEY = VerifierKey(ORIGIN, LOG.public_key)


def publish_entries(folder: Path, entries: Sequence[bytes]) -> Checkpoint:
    """Exactly these entries, as a log that is in perfect order."""

    def put(tile: Tile, data: bytes) -> None:
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    tiles = TileBuilder(put)
    for entry in entries:
        tiles.append(entry)
    for tile, data in tiles.partials():
        put(tile, data)
    checkpoint = Checkpoint(ORIGIN, tiles.size, tiles.root())
    write_atomic(folder / "vkey", f"{VKEY}\n".encode())
    write_atomic(folder / "checkpoint", checkpoint.sign(LOG))
    return checkpoint


def altered(event: Event, **changes: Any) -> bytes:
    """The event with other values, encoded as the hub would."""
    return encode(msgspec.structs.replace(event, **changes))


def find(
    events: Sequence[Event], kind: type[Event], nth: int = 0, where: Callable[[Any], bool] = bool
) -> int:
    """Position of the nth event of a kind."""
    return [i for i, e in enumerate(events) if isinstance(e, kind) and where(e)][nth]
