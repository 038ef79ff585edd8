"""Where a published log is read from: a folder, or the URL it is served at.

Invariant: nothing larger than the caller's bound is ever held, whoever wrote the files or answers; reading a file ends;
and a file that does not exist is told apart from one that could not be fetched this time.
"""

import errno
import io
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ledger.tlog.tiles import WIDTH

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S: Final = 30.0  # between two bytes
PATIENCE_S = 60.0  # until an answer begins; after that it must come
SLOWEST: Final = 8_000  # bytes a second, on average
REDIRECTS_MAX: Final = 5
_WIDTHS: Final = frozenset(map(str, range(1, WIDTH)))


class SourceUnavailable(Exception):
    """The log could not be read this time (network, permissions, a file that is too large). Try again later."""

    exit_code = 10


class Source(Protocol):
    """Read access to the files of a published log. Safe to use from several threads."""

    name: str

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """The file's bytes, None when there is no such file. Raises SourceUnavailable."""
        ...

    def read_into(self, path: str, memory: memoryview) -> int | None:
        """As `read`, of at most as many bytes as there is room for: how many there were."""
        ...

    def widths(self, tile: str) -> list[int]:
        """Widths of the partial tiles that stand beside `tile`; empty where folders cannot be listed."""
        ...

    def close(self) -> None: ...


def printable(text: str, most: int = 500) -> str:
    """Text of strangers, fit for a terminal: what would move a cursor, or hide or turn what is read, is spelled out."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return shown if len(text) <= most else f"{shown} ..."


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class FolderSource:
    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    def read(self, path: str, max_bytes: int) -> bytes | None:
        try:
            with io.BufferedReader(self._open(path)) as f:
                data = f.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise SourceUnavailable(f"{path}: {e.strerror}") from e
        # A longer file is damaged, not unavailable: what is returned has the wrong length and is found so.
        return data

    def read_into(self, path: str, memory: memoryview) -> int | None:
        length = 0
        try:
            with self._open(path) as f:
                while count := f.readinto(memory[length:]):
                    length += count
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise SourceUnavailable(f"{path}: {e.strerror}") from e
        return length

    def widths(self, tile: str) -> list[int]:
        folder = self._folder / f"{tile}.p"
        if not folder.is_dir():
            return []
        try:
            return sorted(int(f.name) for f in folder.iterdir() if f.name in _WIDTHS)
        except OSError as e:
            raise SourceUnavailable(f"{tile}.p: {e.strerror}") from e

    def _open(self, path: str) -> io.FileIO:
        """Only a file is one: what a pipe or a device gives may be without end, or never come."""
        f = io.FileIO(self._folder / path, opener=_without_waiting)
        if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
            f.close()
            raise OSError(errno.EINVAL, "this is not a file")
        return f

    def close(self) -> None:
        pass


class HttpSource:
    def __init__(self, url: str) -> None:
        """`url` is the prefix that `checkpoint` and `tile/` follow; a trailing /checkpoint is taken off."""
        import httpx2  # takes long, and an audit of a folder starts several processes that have no use for it

        self.name = url.rstrip("/").removesuffix("/checkpoint")
        # Unpacked by us, a compressed answer of kilobytes could be gigabytes before we saw its size.
        as_is = {"Accept-Encoding": "identity"}
        self._client = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=False, headers=as_is)
        # The last is what httpx says of an address that it cannot parse; RuntimeError, that it was closed meanwhile.
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError)
        self._too_slow = False

    def read(self, path: str, max_bytes: int) -> bytes | None:
        url = f"{self.name}/{path}"
        try:
            with self._answer(url) as response:
                if response.status_code in (404, 410):
                    return None
                if response.status_code != 200:
                    raise SourceUnavailable(f"{url}: the server answered {response.status_code}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise SourceUnavailable(f"{url}: the server sends it compressed, which nobody asked for")
                return self._body(response, max_bytes)
        except self._errors as e:
            why = "the server is too slow" if self._too_slow else printable(str(e)) or type(e).__name__
            raise SourceUnavailable(f"{url}: {why}") from e

    @contextmanager
    def _answer(self, url: str) -> "Iterator[httpx2.Response]":
        """Redirects lead to nowhere else: a log must not make its reader ask other machines for something."""
        request = self._client.build_request("GET", url)
        for _ in range(REDIRECTS_MAX + 1):
            with self._in_time():
                response = self._client.send(request, stream=True)
            try:
                following = response.next_request
                if following is None:
                    yield response
                    return
                before, after = request.url, following.url
                if after.host != before.host or after.scheme not in (before.scheme, "https"):
                    moved = printable(str(after))
                    raise SourceUnavailable(
                        f"{url} is at another server: {moved}. If you trust it, ask there"
                    )
                request = following
            finally:
                response.close()
        raise SourceUnavailable(f"{url}: the server redirects too often")

    def _body(self, response: "httpx2.Response", max_bytes: int) -> bytes:
        data, began_s = bytearray(), time.monotonic()
        for chunk in response.iter_raw():
            data += chunk
            if len(data) > max_bytes:
                break
            if time.monotonic() - began_s > PATIENCE_S + len(data) / SLOWEST:
                raise SourceUnavailable(f"{response.url}: the server is too slow")
        return bytes(data[: max_bytes + 1])

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Bytes that come one by one are each in time: the whole is timed here."""
        timer = threading.Timer(PATIENCE_S, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._too_slow = True
        with suppress(Exception):  # whoever reads is told so, by an error of theirs
            self._client.close()

    def read_into(self, path: str, memory: memoryview) -> int | None:
        data = self.read(path, len(memory) - 1)
        if data is not None:
            memory[: len(data)] = data
        return len(data) if data is not None else None

    def widths(self, tile: str) -> list[int]:  # noqa: ARG002 - a web server lists nothing
        return []

    def close(self) -> None:
        self._client.close()


@contextmanager
def open_source(place: str | Path) -> Iterator[Source]:
    """The source that `place` names, by its form a URL or a folder."""
    text = str(place)
    is_url = text.startswith(("http://", "https://"))
    source: Source = HttpSource(text) if is_url else FolderSource(Path(text))
    try:
        yield source
    finally:
        source.close()
