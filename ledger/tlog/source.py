"""Where a published log is read from: a folder, or the URL it is served at.

Invariant: nothing larger than the caller's bound is ever held, and a file that does not exist is told apart from one
that could not be fetched this time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

TIMEOUT_S: Final = 30.0


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


class FolderSource:
    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    def read(self, path: str, max_bytes: int) -> bytes | None:
        try:
            with open(self._folder / path, "rb") as f:
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
            with open(self._folder / path, "rb", buffering=0) as f:
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
        return sorted(int(f.name) for f in folder.iterdir() if f.name.isascii() and f.name.isdigit())

    def close(self) -> None:
        pass


class HttpSource:
    def __init__(self, url: str) -> None:
        """`url` is the prefix that `checkpoint` and `tile/` follow; a trailing /checkpoint is taken off."""
        import httpx2  # takes long, and an audit of a folder starts several processes that have no use for it

        self.name = url.rstrip("/").removesuffix("/checkpoint")
        self._client = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=True)
        self._error = httpx2.HTTPError

    def read(self, path: str, max_bytes: int) -> bytes | None:
        try:
            with self._client.stream("GET", f"{self.name}/{path}") as response:
                if response.status_code in (404, 410):
                    return None
                if response.status_code != 200:
                    raise SourceUnavailable(f"{self.name}/{path}: the server answered {response.status_code}")
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > max_bytes:
                        break
                return bytes(data[: max_bytes + 1])
        except self._error as e:
            raise SourceUnavailable(f"{self.name}/{path}: {str(e) or type(e).__name__}") from e

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
