"""Where friends are paid: kept in the erasable table `people`, known to the log only by a salted commitment.

Invariant: the log never holds a destination, and a payout goes only where its plan committed to: a destination that
was changed or erased after planning is not paid.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg

from ledger.aggregates.base import DomainError
from ledger.rails import destination_fault

SALT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Destination:
    text: str
    salt: bytes

    @property
    def commitment(self) -> bytes:
        """SHA-256(salt + destination)."""
        return hashlib.sha256(self.salt + self.text.encode()).digest()

    def __repr__(self) -> str:
        return "Destination(***)"


def load_destinations(connection: psycopg.Connection[Any]) -> dict[UUID, Destination]:
    """Of everybody who has one. `connection` is on the crew's schema."""
    rows = connection.execute(
        "SELECT person_id, payout_destination, destination_salt FROM people "
        "WHERE payout_destination IS NOT NULL AND destination_salt IS NOT NULL"
    )
    return {person_id: Destination(text, bytes(salt)) for person_id, text, salt in rows.fetchall()}


def set_destination(
    connection: psycopg.Connection[Any], friend_id: UUID, destination: str, *, salt: bytes
) -> None:
    """`salt` is 16 new random bytes. Raises DomainError for a text that no rail may be given."""
    if fault := destination_fault(destination):
        raise DomainError(fault)
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    connection.execute(
        "INSERT INTO people (person_id, payout_destination, destination_salt) VALUES (%s, %s, %s) "
        "ON CONFLICT (person_id) DO UPDATE SET payout_destination = EXCLUDED.payout_destination, "
        "destination_salt = EXCLUDED.destination_salt",
        (friend_id, destination, salt),
    )
