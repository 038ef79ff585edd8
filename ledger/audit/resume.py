"""The state file: what an audit replayed, so that the next one goes on from there.

Invariant: it is taken up only when it was made by exactly this program, for a log of this name, has not one wrong byte
(ledger.audit.store), and nobody but the auditor can have written it: its sums find damage, not malice. It proves
nothing by itself: the tree that it stands for must lead to the signed root.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

import ledger
from ledger.audit.replay import Replay
from ledger.audit.store import Store
from ledger.audit.stream import Edge
from ledger.tlog.files import make_folder


class Begun(msgspec.Struct):
    """Bound to the log by the edge: its hashes are those of every event so far."""

    program: str
    origin: str
    edge: Edge
    replay: bytes
    finished: bool = False  # that audit came to its end


@cache
def program() -> str:
    """SHA-256 over the sources of the ledger: other rules may have led to another state."""
    digest = hashlib.sha256()
    folder = Path(ledger.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


class Resume:
    def __init__(self, path: Path, origin: str, size: int, *, only_new: bool) -> None:
        """`only_new`: to go on also from an audit that came to its end; otherwise from one that was interrupted."""
        self.begun: Begun | None = None  # where to go on from
        self._path, self._origin, self._size = path, origin, size
        self._only_new = only_new
        self._store: Store | None = None
        self._last: Begun | None = None  # what was saved last

    def open(self, *, fresh: bool) -> Store:
        """The store to go on with, empty when `fresh`. Raises StoreBusy."""
        make_folder(self._path.parent)
        self.begun = None
        store, note = Store.opened(self._path, fresh=fresh or not _mine(self._path))
        if note is not None:
            self.begun = self._fitting(note)
            if self.begun is None:
                store.close()
                store, _ = Store.opened(self._path, fresh=True)
        self._store, self._last = store, self.begun
        return store

    def save(self, edge: Edge, replay: Replay) -> None:
        """Raises AuditFailure for a signature that does not hold."""
        assert self._store is not None
        with suppress(OverflowError):  # a balance of more than 64 bits: such a log is audited in one go
            begun = Begun(program(), self._origin, edge, replay.saved())
            self._store.save(msgspec.msgpack.encode(begun))
            self._last = begun

    def finish(self) -> None:
        """The audit came to its end: nothing is left of it to go on with, but for one that wants only what is new."""
        if self._store is not None and self._last is not None:
            self._last.finished = True
            self._store.amend(msgspec.msgpack.encode(self._last))

    def _fitting(self, note: bytes) -> Begun | None:
        try:
            begun = msgspec.msgpack.decode(note, type=Begun)
        except msgspec.MsgspecError:
            return None
        mine = begun.program == program() and begun.origin == self._origin
        wanted = self._only_new or not begun.finished
        return begun if mine and wanted and begun.edge.size <= self._size else None


def _mine(path: Path) -> bool:
    """Whether the file, if there is one, belongs to this account, which alone may write to it."""
    account: Callable[[], int] | None = getattr(os, "geteuid", None)  # Windows has no such thing
    for name in (path, Path(f"{path}-wal")):
        with suppress(OSError):  # what is there and cannot be reached cannot be opened either
            status = name.stat()
            if account is not None and (status.st_uid != account() or status.st_mode & 0o022):
                return False
    return True
