"""What is known of tickets that were issued, in one table, so that a batch finds its own with one look.

Invariant: a row is what the log says of the ticket of that hash; a ticket that is not there is looked for in the log.
The table has a fixed number of rows: the ticket that came first makes room for the next. Beside each stands where its
session's credits were found last, a guess that may be wrong at any time.
"""

from collections.abc import Sequence
from itertools import repeat
from threading import Lock
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ledger.credit_columns import Flags, Guesses
from ledger.judge import SessionFacts
from ledger.judge_columns import KNOWN, Known

_ROW: Final = np.dtype(f"V{KNOWN.itemsize}")  # without its fields, since those are copied one by one


def known_row(ticket_body: bytes, broadcast_id: UUID, session: SessionFacts) -> bytes:
    """A row of KNOWN."""
    account = session.account_id.bytes if session.account_id is not None else b""
    return b"".join(
        (
            ticket_body,
            broadcast_id.bytes,
            account or bytes(16),
            session.network or bytes(16),
            bytes((bool(account), bool(session.network))),
        )
    )


class Found(NamedTuple):
    tickets: Known
    known: Flags  # which of them are known
    places: NDArray[np.intp]  # of their rows, until another ticket takes one; -1 of one that is not known
    credits_at: Guesses


class TicketTable:
    """Thread-safe."""

    def __init__(self, rows: int) -> None:
        self._rows = np.zeros(rows, _ROW)
        self._credits_at: Guesses = np.zeros(rows, np.int32)
        self._at: dict[bytes, int] = {}  # by the ticket's hash
        self._hashes: list[bytes] = []  # by row
        self._next = 0
        self._lock = Lock()

    def find(self, ticket_hashes: Sequence[bytes]) -> "Found":
        """Copies of their rows."""
        with self._lock:
            at = np.fromiter(map(self._at.get, ticket_hashes, repeat(-1)), np.intp, len(ticket_hashes))
            return Found(self._rows[at].view(KNOWN), at >= 0, at, self._credits_at[at])

    def credits_at(self, places: NDArray[np.intp], guesses: Guesses) -> None:
        """Where the credits of the sessions of tickets, whose rows these were, are to be looked for first."""
        with self._lock:
            self._credits_at[places] = guesses

    def put(self, ticket_hash: bytes, row: bytes) -> None:
        with self._lock:
            at = self._at.get(ticket_hash)
            if at is None:
                at = self._next
                self._next = (at + 1) % len(self._rows)
                if at < len(self._hashes):
                    del self._at[self._hashes[at]]
                    self._hashes[at] = ticket_hash
                else:
                    self._hashes.append(ticket_hash)
                self._at[ticket_hash] = at
            self._rows[at] = np.void(row)
