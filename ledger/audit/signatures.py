"""Signatures and the contents of batches, verified on all cores while the replay goes on.

Invariant: after `finish` every check that was handed in has been made, and the failure reported is the one with the
lowest position.
"""

from collections import deque
from concurrent.futures import Future
from typing import Final, NamedTuple

from ledger.audit.helpers import Helpers
from ledger.audit.report import AuditFailure
from ledger.checks import Check, Contents, Receipts, Verify, first_failure

CHUNK: Final = 128  # signatures that go to a helper together
BACKLOG: Final = 64 * CHUNK  # signatures under way; bounds memory
HERE: Final = 512  # so few are verified in this process: starting others takes longer


class _Chunk(NamedTuple):
    about: list[tuple[int, str]]  # position and what is signed
    checks: list[Check]
    weight: int
    future: "Future[tuple[int, int]] | None"


class Signatures:
    def __init__(self, helpers: Helpers, *, verify: bool = True) -> None:
        """`verify` is False only to measure what the rest of an audit costs."""
        self.count = 0  # Ed25519 signatures
        self.verify = verify
        self._helpers = helpers
        self._seen = 0
        self._waiting = 0
        self._about: list[tuple[int, str]] = []
        self._checks: list[Check] = []
        self._weight = 0
        self._running: deque[_Chunk] = deque()

    def add(self, position: int, what: str, check: Check) -> None:
        """Raises AuditFailure when an earlier one is found not to hold."""
        if not self.verify:
            return
        weight = len(check.refused) if isinstance(check, Receipts) else 1
        self.count += 0 if isinstance(check, Contents) else weight
        self._about.append((position, what))
        self._checks.append(check)
        self._weight += weight
        if self._weight >= CHUNK:
            self._submit()
            while self._waiting > BACKLOG:
                self._settle()

    def finish(self) -> None:
        """Wait for all. Raises AuditFailure for the first that does not hold."""
        self._submit()
        while self._running:
            self._settle()

    def _submit(self) -> None:
        if not self._checks:
            return
        self._seen += self._weight
        future = self._helpers.verify(Verify(self._checks)) if self._seen > HERE else None
        self._running.append(_Chunk(self._about, self._checks, self._weight, future))
        self._waiting += self._weight
        self._about, self._checks, self._weight = [], [], 0

    def _settle(self) -> None:
        # Chunks are taken in order of position, so the first failure met is the first there is.
        chunk = self._running.popleft()
        self._waiting -= chunk.weight
        index, which = first_failure(chunk.checks) if chunk.future is None else chunk.future.result()
        if index < 0:
            return
        (position, what), check = chunk.about[index], chunk.checks[index]
        if isinstance(check, Contents):
            reason = "the receipts are not those the node signed for"
            raise AuditFailure(reason, position=position, before_rules=True)
        if isinstance(check, Receipts) and check.refused[which]:
            reason = f"{what} was refused for its signature, but the signature verifies"
            raise AuditFailure(reason, position=position)
        raise AuditFailure(f"the signature of {what} does not verify", position=position)
