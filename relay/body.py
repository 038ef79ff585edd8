"""The bytes of a segment that many may ask for: on Linux the kernel sends them from where they lie.

Invariant: the bytes are in memory once, as an object or as a file in memory (memfd), and go with the last reference.

A file costs about as much as sending its bytes three times from the object, and saves half of each time after that: so
it is made when somebody asks for the third time.
"""

import mmap
import os
from typing import Final

FILE_FROM: Final = 3  # times that it is asked for


class Body:
    __slots__ = ("_asked", "_data", "_fd", "_length")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data: bytes | memoryview | None = data
        self._length = len(data)
        self._asked = 0
        self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def __len__(self) -> int:
        return self._length

    @property
    def data(self) -> bytes | memoryview:
        """Read only."""
        if self._data is None:
            # The mapping has the file open itself, and lives as long as a view of it does.
            self._data = memoryview(mmap.mmap(self._fd, self._length, access=mmap.ACCESS_READ))
        return self._data

    def file(self) -> int | None:
        """A descriptor to send from, which is open as long as this object. None: send `data`."""
        if self._fd < 0 and self._length:
            self._asked += 1
            if self._asked >= FILE_FROM:
                self._asked = 0
                self._make_file()
        return self._fd if self._fd >= 0 else None

    def _make_file(self) -> None:
        try:
            fd = os.memfd_create("segment")
        except (AttributeError, OSError):  # another system, or no more descriptors
            return
        try:
            left = memoryview(self.data)
            while left:
                left = left[os.write(fd, left) :]
        except OSError:
            os.close(fd)
            return
        self._fd, self._data = fd, None
