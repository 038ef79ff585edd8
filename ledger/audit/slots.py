"""Memory for bundles on their way: a helper writes them there, the replay reads them.

Invariant: what is taken has room for any bundle and its claims, and is nobody else's until it is given back. All
together they take at most `MOST_BYTES`: what is not loaded yet counts as if it were as large as can be.
"""

import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger.checks import SLOT_BYTES

MANY: Final = 16 if sys.platform == "linux" else 3  # elsewhere each takes all of its room on a disk
MOST_BYTES: Final = 5 * SLOT_BYTES


@dataclass(slots=True, eq=False)
class Slot:
    path: str  # where other processes find it
    memory: mmap.mmap
    written: int = 0  # bytes, at most, that it takes


class Slots:
    """`count` of them, in files that are in memory, or never meant for the disk. With one, of this process alone."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        """`stack` lets go of them."""
        self._stack = stack
        self._bytes = 0
        if count == 1:
            self._free = [Slot("", mmap.mmap(-1, SLOT_BYTES))]
        elif sys.platform == "linux":
            self._free = [self._in_memory() for _ in range(count)]
        else:
            self._free = self._in_files(count)

    def take(self) -> Slot | None:
        """The one that most was written to, for that memory is there already. None when there is none to have."""
        self._free.sort(key=lambda free: free.written)
        if not self._free:
            return None
        slot = self._free[-1]
        while self._bytes - slot.written + SLOT_BYTES > MOST_BYTES:
            if not self._let_go(slot):
                return None
        self._bytes += SLOT_BYTES - slot.written
        return self._free.pop()

    def loaded(self, slot: Slot, size: int) -> None:
        """So many bytes of it are all that is needed."""
        slot.written = max(slot.written, size)
        self._bytes += slot.written - SLOT_BYTES

    def give(self, slot: Slot) -> None:
        self._free.append(slot)

    def _let_go(self, keep: Slot) -> bool:
        """Of what a free one takes, other than `keep`. False when none does."""
        slot = next((free for free in self._free if free.written and free is not keep), None)
        if slot is None:
            return False
        if sys.platform == "linux":  # elsewhere all together take less
            slot.memory.madvise(mmap.MADV_REMOVE)
        self._bytes -= slot.written
        slot.written = 0
        return True

    def _in_memory(self) -> Slot:
        file = os.memfd_create("streamrp2p-audit")
        self._stack.callback(os.close, file)
        os.truncate(file, SLOT_BYTES)
        return Slot(f"/proc/{os.getpid()}/fd/{file}", mmap.mmap(file, 0))

    def _in_files(self, count: int) -> list[Slot]:
        # Windows keeps a file that is still mapped: views of it may outlive this, in the traceback of a failure.
        temporary = tempfile.TemporaryDirectory(prefix="streamrp2p-audit-", ignore_cleanup_errors=True)
        folder = Path(self._stack.enter_context(temporary))
        slots = []
        for n in range(count):
            path = folder / str(n)
            with open(path, "w+b") as f:
                # A full disk is found here, and not in the mapping.
                allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
                if allocate is not None:
                    allocate(f.fileno(), 0, SLOT_BYTES)
                else:
                    f.write(bytes(SLOT_BYTES))
                    f.flush()
                slots.append(Slot(str(path), mmap.mmap(f.fileno(), 0)))
        return slots
