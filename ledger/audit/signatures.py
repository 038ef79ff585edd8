"""Signatures, verified on all cores while the replay goes on.

Invariant: after `finish` every signature that was handed in has been verified, and the failure reported is the one
with the lowest position. Verification releases the interpreter lock, so threads are enough.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple

from ledger.audit.report import AuditFailure
from ledger.keys import verify

CHUNK: Final = 128
BACKLOG: Final = 64  # chunks under way; bounds memory


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


def first_failure(checks: list[Check]) -> Check | None:
    for c in checks:
        if verify(c.public_key, c.domain, c.body, c.signature) is not c.holds:
            return c
    return None


class Signatures:
    def __init__(self, pool: Executor, *, verify: bool = True) -> None:
        """`verify` is False only to measure what the rest of an audit costs."""
        self.count = 0
        self._verify = verify
        self._pool = pool
        self._chunk: list[Check] = []
        self._running: deque[Future[Check | None]] = deque()

    def add(self, check: Check) -> None:
        """Raises AuditFailure when an earlier signature is found not to hold."""
        if not self._verify:
            return
        self.count += 1
        self._chunk.append(check)
        if len(self._chunk) >= CHUNK:
            self._submit()
            while len(self._running) > BACKLOG:
                self._settle(self._running.popleft())

    def finish(self) -> None:
        """Wait for all. Raises AuditFailure for the first that does not hold."""
        self._submit()
        while self._running:
            self._settle(self._running.popleft())

    def _submit(self) -> None:
        if self._chunk:
            chunk, self._chunk = self._chunk, []
            self._running.append(self._pool.submit(first_failure, chunk))

    def _settle(self, future: "Future[Check | None]") -> None:
        # Chunks are taken in order of position, so the first failure met is the first there is.
        bad = future.result()
        if bad is not None:
            reason = (
                f"the signature of {bad.what} does not verify"
                if bad.holds
                else f"{bad.what} was refused for its signature, but the signature verifies"
            )
            raise AuditFailure(reason, position=bad.position)


Progress = Callable[[int, int], None]
"""(events done, events in all)"""
