"""A log that is published on the web.

Invariant: what `read` returns came from the address that was asked for, and is never more than was allowed by a byte.
"""

from typing import Final

import httpx2

from ledger.tlog.source import SourceUnavailable

TIMEOUT_S: Final = 30.0


class HttpSource:
    def __init__(self, url: str) -> None:
        """`url` is the prefix that `checkpoint` and `tile/` follow; a trailing /checkpoint is taken off."""
        self.name = url.rstrip("/").removesuffix("/checkpoint")
        self._client = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=True)

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
        except httpx2.HTTPError as e:
            raise SourceUnavailable(f"{self.name}/{path}: {str(e) or type(e).__name__}") from e

    def widths(self, tile: str) -> list[int]:  # noqa: ARG002 - a web server lists nothing
        return []

    def close(self) -> None:
        self._client.close()
