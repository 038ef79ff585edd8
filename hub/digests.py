"""Delivery digests: SHA-256(nonce + segment) of every published segment, for each nonce of its rendition.

The hub checks receipts against them long after the media has left its memory. They are no truth: without them a
receipt is taken on its signature. Invariant: a digest that is returned is that of the published bytes.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from hub.keystore import KeyStore
from ledger.application import Unavailable
from ledger.receipt import segment_digest

DIGEST_BYTES: Final = 32
CACHED_SEGMENTS: Final = 20_000  # about 3 MB


class SegmentDigests:
    """Thread-safe. Every method may raise ledger.application.Unavailable."""

    def __init__(self, database: ConnectionPool[psycopg.Connection[TupleRow]], keys: KeyStore) -> None:
        self._database = database
        self._keys = keys
        self._cache: OrderedDict[tuple[UUID, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, rendition_id: UUID, sequence: int, media: bytes) -> None:
        """Compute and keep the digests; repeating it changes nothing."""
        digests = b"".join(segment_digest(n, media) for n in self._keys.nonces(rendition_id))
        with self._connected() as connection:
            connection.execute(
                "INSERT INTO segment_digests (rendition_id, sequence, digests) VALUES (%s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                (rendition_id, sequence, digests),
            )
        self._remember((rendition_id, sequence), digests)

    def get(self, rendition_id: UUID, nonce: bytes, sequence: int) -> bytes | None:
        """None when the segment or the nonce is not known."""
        nonces = self._keys.nonces(rendition_id)
        if nonce not in nonces:
            return None
        key = (rendition_id, sequence)
        with self._lock:
            digests = self._cache.get(key)
        if digests is None:
            digests = self._read(rendition_id, sequence)
            if digests is None:
                return None
            self._remember(key, digests)
        start = nonces.index(nonce) * DIGEST_BYTES
        return digests[start : start + DIGEST_BYTES]

    def _read(self, rendition_id: UUID, sequence: int) -> bytes | None:
        with self._connected() as connection:
            row = connection.execute(
                "SELECT digests FROM segment_digests WHERE rendition_id = %s AND sequence = %s",
                (rendition_id, sequence),
            ).fetchone()
        return None if row is None else bytes(row[0])

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[TupleRow]]:
        """A database that is away is for the caller to sit out, like the ledger: never a reason to refuse media."""
        try:
            with self._database.connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as e:
            raise Unavailable(f"the digests of segments cannot be reached: {e}") from e

    def _remember(self, key: tuple[UUID, int], digests: bytes) -> None:
        with self._lock:
            self._cache[key] = digests
            if len(self._cache) > CACHED_SEGMENTS:
                self._cache.popitem(last=False)
