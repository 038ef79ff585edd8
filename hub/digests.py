"""Delivery digests: SHA-256(nonce + segment) of every published segment, for each nonce of its rendition.

The hub checks receipts against them long after the media has left its memory. They are no truth: without them a
receipt is taken on its signature. Invariant: a digest that is returned is that of the published bytes.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from hub.keystore import KeyStore
from ledger.application import Unavailable
from ledger.receipt import segment_digest

DIGEST_BYTES: Final = 32
CACHED_RENDITIONS: Final = 16
CACHED_SEGMENTS: Final = 20_000  # of a rendition: half a day, about 5 MB
READ_AHEAD: Final = 256  # segments that one query reads: a receipt claims neighbours


@dataclass(slots=True)
class _Rendition:
    offsets: dict[bytes, int]  # nonce -> where its digest begins
    digests: OrderedDict[int, bytes] = field(default_factory=OrderedDict)  # by sequence


class SegmentDigests:
    """Thread-safe. Every method may raise ledger.application.Unavailable.

    A batch may ask for 60,000 digests: an answer from memory costs no cryptography and no query.
    """

    def __init__(self, database: ConnectionPool[psycopg.Connection[TupleRow]], keys: KeyStore) -> None:
        self._database = database
        self._keys = keys
        self._cache: OrderedDict[UUID, _Rendition] = OrderedDict()
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
        self._remember(self._rendition(rendition_id), {sequence: digests})

    def get(self, rendition_id: UUID, nonce: bytes, sequence: int) -> bytes | None:
        """None when the segment or the nonce is not known."""
        rendition = self._rendition(rendition_id)
        start = rendition.offsets.get(nonce)
        if start is None:
            return None
        digests = rendition.digests.get(sequence)
        if digests is None:
            found = self._read(rendition_id, sequence)
            self._remember(rendition, found)
            digests = found.get(sequence)
        return None if digests is None else digests[start : start + DIGEST_BYTES]

    def _rendition(self, rendition_id: UUID) -> _Rendition:
        with self._lock:
            known = self._cache.get(rendition_id)
            if known is None:
                nonces = self._keys.nonces(rendition_id)
                known = _Rendition({nonce: i * DIGEST_BYTES for i, nonce in enumerate(nonces)})
                self._cache[rendition_id] = known
                if len(self._cache) > CACHED_RENDITIONS:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end(rendition_id)
            return known

    def _read(self, rendition_id: UUID, sequence: int) -> dict[int, bytes]:
        """The digests of the segment and of its neighbours."""
        first = sequence - sequence % READ_AHEAD
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT sequence, digests FROM segment_digests "
                "WHERE rendition_id = %s AND sequence >= %s AND sequence < %s",
                (rendition_id, first, first + READ_AHEAD),
            ).fetchall()
        return {number: bytes(digests) for number, digests in rows}

    def _remember(self, rendition: _Rendition, digests: dict[int, bytes]) -> None:
        with self._lock:
            rendition.digests.update(digests)
            while len(rendition.digests) > CACHED_SEGMENTS:
                rendition.digests.popitem(last=False)

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[TupleRow]]:
        """A database that is away is for the caller to sit out, like the ledger: never a reason to refuse media."""
        try:
            with self._database.connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as e:
            raise Unavailable(f"the digests of segments cannot be reached: {e}") from e
