"""How the publisher goes on after a restart without reading the whole ledger.

Invariant: nothing here is believed by itself. A tree taken up from its tiles must lead, with the events of the ledger
that follow, to the root that was signed; remembered balances must have the digest of a state leaf in that tree. What
does not fit is thrown away, and the publisher replays everything.
"""

from pathlib import Path
from typing import Final

import msgspec

from ledger import merkle
from ledger.aggregates.tree import balances_digest
from ledger.events import Event, StateRecorded
from ledger.tlog.files import write_atomic
from ledger.tlog.reader import LogReader
from ledger.tlog.tiles import HEIGHT, WIDTH, Sink, TileBuilder

MEMORY: Final = ".state"  # beside the published files; not one of them
MAX_MEMORY_BYTES: Final = 64 * 2**20


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The balances that a state leaf covers."""

    leaf: int  # position of the state leaf
    covered: int  # the events before this position make the balances
    balances: dict[str, int]  # account -> micro-units

    def fits(self, event: Event) -> bool:
        """Whether `event`, found at `leaf`, is the state leaf over these balances."""
        return (
            isinstance(event, StateRecorded)
            and event.position == self.covered
            and (event.accounts, event.balances_sha256) == balances_digest(self.balances)
        )

    def write(self, folder: Path) -> None:
        write_atomic(folder / MEMORY, msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> "Memory | None":
        """None when there is none that can be read."""
        try:
            with open(folder / MEMORY, "rb") as f:
                return msgspec.json.decode(f.read(MAX_MEMORY_BYTES), type=cls)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None


def take_up(reader: LogReader, size: int, sink: Sink) -> TileBuilder:
    """The builder of the first `size` leaves, a whole number of tiles, from the tiles of a longer log.

    Raises NotPublished, TileError when tiles are missing or are none.
    """
    if size % WIDTH:
        raise ValueError(f"{size} leaves are not a whole number of tiles")
    levels: list[list[bytes]] = [[]]
    while nodes := size >> (HEIGHT * len(levels)):
        level, width = len(levels), nodes % WIDTH
        levels.append(reader.hashes(level, nodes // WIDTH)[:width] if width else [])
    full, start = merkle.Frontier(), 0
    for level in range(size.bit_length() - 1, HEIGHT - 1, -1):
        if size >> level & 1:
            full.append(reader.subtree(level, start >> level), level)
            start += 1 << level
    return TileBuilder(sink, levels=levels, full=full)
