"""What came back of what rails had paid, kept beside their files, for a database from an older backup that forgot it.

Invariant: a return stands here once, under its reference, and only after the ledger had it. A crash between the two
loses nothing that a database of that day does not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from ledger.rails.journal import Journal

NAME: Final = "returned.journal"


@dataclass(frozen=True, slots=True)
class Return:
    batch_id: UUID
    line: int
    amount_micro: int
    reference: str
    reason: str


class Returns:
    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / NAME)

    def remember(self, one: Return) -> None:
        """Raises OSError."""
        self._journal.add(
            one.reference,
            lambda _: {
                "payment": f"{one.batch_id}:{one.line}",
                "amount_micro": one.amount_micro,
                "reason": one.reason,
            },
        )

    def all(self) -> Sequence[Return]:
        """In the order in which they were booked. Raises OSError."""
        found = []
        for reference, record in self._journal.all().items():
            batch_id, _, line = str(record["payment"]).partition(":")
            amount_micro, reason = int(record["amount_micro"]), str(record["reason"])
            found.append(Return(UUID(batch_id), int(line), amount_micro, reference, reason))
        return found
