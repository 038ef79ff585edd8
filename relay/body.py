"""The bytes of a segment that many may ask for: on Linux the kernel sends them from where they lie.

Invariant: the bytes are in memory once, as an object or as a file, and go with the last reference.

A file costs about as much as sending its bytes three times from the object, and saves half of each time after that: so
it is made when somebody asks for the third time. One without a name in a folder is sent cheaper than a memfd (ADR
0042): it is never read from the disk, and never written to it if `settle` is called within Linux' half minute.
"""

import mmap
import os
from pathlib import Path
from typing import Final

FILE_FROM: Final = 3  # times that it is asked for


class File:
    """Open as long as this object: who is sending it keeps it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Body:
    __slots__ = ("_asked", "_data", "_file", "_folder", "length")

    def __init__(self, data: bytes | memoryview, folder: Path | None = None) -> None:
        """`folder`: where its file lies; None: in memory alone."""
        self._data: bytes | memoryview | None = data
        self.length = len(data)
        self._asked = 0
        self._file: File | None = None
        self._folder = folder

    def __len__(self) -> int:
        return self.length

    @property
    def data(self) -> bytes | memoryview:
        """Read only."""
        if self._data is None:
            assert self._file is not None
            # The mapping has the file open itself, and lives as long as a view of it does.
            self._data = memoryview(mmap.mmap(self._file.fd, self.length, access=mmap.ACCESS_READ))
        return self._data

    def file(self) -> File | None:
        """To send from. None: send `data`."""
        if self._file is None and self.length:
            self._asked += 1
            if self._asked >= FILE_FROM:
                self._asked = 0
                self._make_file()
        return self._file

    def settle(self) -> None:
        """Out of its folder, if it is there, and not into it any more: few will ask yet."""
        folder, self._folder = self._folder, None
        file = self._file
        if folder is None or file is None:
            return
        try:
            data = os.pread(file.fd, self.length, 0)
        except OSError:
            return
        if len(data) == self.length:
            self._file, self._data = None, data

    def _make_file(self) -> None:
        try:
            file = File(_nameless(self._folder))
            left = memoryview(self.data)
            while left:
                left = left[os.write(file.fd, left) :]
        except (AttributeError, OSError):  # another system, no more descriptors, a full disk
            self._folder = None
            return
        self._file, self._data = file, None


def _nameless(folder: Path | None) -> int:
    """Raises OSError, and AttributeError on other systems."""
    if folder is not None:
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system that cannot
            pass
    return os.memfd_create("segment")
