"""A file of keyed records that only grows, for rails that must remember what they were given.

Invariant: a key stands in it at most once, and what `add` has written or anybody has read is on disk (fsync), so that
nothing follows from a record that a power cut could take back. A line torn by a crash is cut off before anything else
is written. Several processes may use one file: each works under a lock.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]


class Journal:
    def __init__(self, path: Path) -> None:
        """`path` is created with the first record, readable by the operator's account only."""
        self._path = path
        self._records: dict[str, Record] = {}  # of the file's first `_read` bytes
        self._read = 0
        self._inode = 0

    def add(self, key: str, make: Callable[[Mapping[str, Record]], Record]) -> bool:
        """False when the key is known; its record stays as it was.

        `make` is given all records, and called under the lock: nobody adds one meanwhile. Raises OSError, and what
        `make` raises; then nothing is added.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Only the operator's account may read who is paid where.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up(file)
            new = key not in self._records
            if new:
                line = json.dumps({"key": key, **make(self._records)}, sort_keys=True).encode() + b"\n"
                file.seek(self._read)
                file.truncate()
                file.write(line)
                file.flush()
                self._sync(file)
        return new

    def get(self, key: str) -> Record | None:
        return self.all().get(key)

    def all(self) -> Mapping[str, Record]:
        """In the order in which they were added."""
        with self.locked() as records:
            return records

    @contextmanager
    def locked(self) -> Iterator[Mapping[str, Record]]:
        """All records; nobody adds one until the end of the block."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield {}
            return
        with os.fdopen(descriptor, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up(file)
            yield self._records

    def _catch_up(self, file: BinaryIO) -> None:
        """Read what is new: whole lines never change. The file is locked."""
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._read:  # another file under this name
            self._records, self._read, self._inode = {}, 0, status.st_ino
        file.seek(self._read)
        new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        if whole:
            self._sync(file)  # who wrote it may have died before that
        for line in whole.splitlines():
            record = json.loads(line)
            self._records[record.pop("key")] = record
        self._read += len(whole)

    def _sync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())
        sync_folder(self._path.parent)


def write_once(path: Path, data: bytes) -> None:
    """The whole file or nothing, durable; a file that is there already is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A new file is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
