"""Signatures, verified on all cores while the replay goes on.

Invariant: after `finish` every signature that was handed in has been verified, and the failure reported is the one
with the lowest position.
"""

from collections import deque
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple

from ledger.audit.report import AuditFailure
from ledger.verifiers import Verifiers, first_failure

CHUNK: Final = 128
BACKLOG: Final = 64  # chunks under way; bounds memory
HERE: Final = 16  # chunks that are verified in threads of this process: starting others takes longer


class Check(NamedTuple):
    position: int
    what: str
    public_key: bytes
    domain: bytes
    body: bytes
    signature: bytes
    holds: bool = (
        True  # what the log says: a verdict `bad_signature` must rest on a signature that does not verify
    )


class Signatures:
    def __init__(self, pool: Executor, *, verify: bool = True) -> None:
        """`verify` is False only to measure what the rest of an audit costs. Close it after use."""
        self.count = 0
        self._verify = verify
        self._pool = pool
        self._verifiers = Verifiers()
        self._submitted = 0
        self._chunk: list[Check] = []
        self._running: deque[tuple[list[Check], Future[int]]] = deque()

    def add(self, check: Check) -> None:
        """Raises AuditFailure when an earlier signature is found not to hold."""
        if not self._verify:
            return
        self.count += 1
        self._chunk.append(check)
        if len(self._chunk) >= CHUNK:
            self._submit()
            while len(self._running) > BACKLOG:
                self._settle()

    def finish(self) -> None:
        """Wait for all. Raises AuditFailure for the first that does not hold."""
        self._submit()
        while self._running:
            self._settle()

    def close(self) -> None:
        for _, future in self._running:
            future.cancel()
        self._verifiers.close()

    def _submit(self) -> None:
        if self._chunk:
            chunk, self._chunk = self._chunk, []
            bare = [c[2:] for c in chunk]
            work = first_failure if self._submitted < HERE else self._verifiers.first_failure
            self._submitted += 1
            self._running.append((chunk, self._pool.submit(work, bare)))

    def _settle(self) -> None:
        # Chunks are taken in order of position, so the first failure met is the first there is.
        chunk, future = self._running.popleft()
        index = future.result()
        if index < 0:
            return
        bad = chunk[index]
        reason = (
            f"the signature of {bad.what} does not verify"
            if bad.holds
            else f"{bad.what} was refused for its signature, but the signature verifies"
        )
        raise AuditFailure(reason, position=bad.position)
