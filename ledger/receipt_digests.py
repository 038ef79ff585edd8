"""What the digests of receipts must be, while the hub knows the digests of the segments.

A viewer's receipts claim the same run of segments again and again, each a little longer, and many viewers begin at the
same one. Invariant: `expected` is `receipt.fold_digests` of the segments' digests; each is hashed once for a run, and
every length of the run is remembered.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final
from uuid import UUID

from ledger.receipt import fold_digests

SegmentDigestOf = Callable[[UUID, bytes, int], bytes | None]
"""(rendition, nonce, sequence) -> SHA-256(nonce + segment), or None when the hub no longer knows it."""

RUNS: Final = 512  # remembered, of at most 512 digests each: 8 MB
_DIGEST_BYTES: Final = 32


class _Run:
    """The digests of the first, first two, first three ... segments from one on."""

    __slots__ = ("_hash", "folded", "lock")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.folded = bytearray()
        self.lock = Lock()

    def __len__(self) -> int:
        return len(self.folded) // _DIGEST_BYTES

    def append(self, digest: bytes) -> None:
        self._hash.update(digest)
        self.folded += self._hash.digest()


class ReceiptDigests:
    """Thread-safe."""

    def __init__(self, digest_of: SegmentDigestOf, *, runs: int = RUNS) -> None:
        self._digest_of = digest_of
        self._max = runs
        self._runs: OrderedDict[tuple[int, bytes, int], _Run] = OrderedDict()
        self._lock = Lock()

    def expected(self, rendition_id: UUID, nonce: bytes, sequences: Sequence[int]) -> bytes | None:
        """Of a receipt that claims these, ascending. None when one of them is not known."""
        if not isinstance(sequences, range):
            return self._folded(rendition_id, nonce, sequences)
        run = self._run(rendition_id, nonce, sequences.start)
        with run.lock:
            for sequence in sequences[len(run) :]:
                digest = self._digest_of(rendition_id, nonce, sequence)
                if digest is None:
                    return None
                run.append(digest)
            end = len(sequences) * _DIGEST_BYTES
            return bytes(run.folded[end - _DIGEST_BYTES : end])

    def _folded(self, rendition_id: UUID, nonce: bytes, sequences: Sequence[int]) -> bytes | None:
        known = []
        for sequence in sequences:
            digest = self._digest_of(rendition_id, nonce, sequence)
            if digest is None:
                return None
            known.append(digest)
        return fold_digests(known)

    def _run(self, rendition_id: UUID, nonce: bytes, first: int) -> _Run:
        key = (rendition_id.int, nonce, first)  # UUIDs are slow to hash
        with self._lock:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = _Run()
                if len(self._runs) > self._max:
                    self._runs.popitem(last=False)
            else:
                self._runs.move_to_end(key)
        return run
