"""Rails: the ways on which money leaves. A rail gets ready, and is asked two questions about a key.

Invariant a rail must keep: it pays one key at most once, however often it is submitted. An answer is a promise:
CONFIRMED (it is or will be paid), FAILED (this key is not and never will be paid), ABSENT (the rail has never seen
this key). Whatever it cannot promise is UNKNOWN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol
from uuid import UUID

MAX_DESTINATION_CHARS: Final = 256
MAX_REFERENCE_CHARS: Final = 200


class Outcome(StrEnum):
    CONFIRMED = "confirmed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    ABSENT = "absent"  # only in answer to a look-up


@dataclass(frozen=True, slots=True)
class Answer:
    """`reference` is the rail's own and enters the log, which cannot forget: no names, no account numbers."""

    outcome: Outcome
    reference: str = ""


class OtherPayment(Exception):
    """The rail knows this key, and paid somebody else or something else under it: the ledger has lost what it paid."""

    exit_code = 5

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the payment {key} was given to the rail before, with another amount or recipient: the database is older "
            f"than what was paid. Restore a newer backup"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    key: str  # deterministic: the same payout line has the same key forever
    friend_id: UUID
    amount_micro: int
    unit: str
    destination: str  # where to, as the rail understands it; never in a log line


class Rail(Protocol):
    @property
    def name(self) -> str:
        """As recorded in the payout: a batch planned for one rail is not run on another."""

    def prepare(self, amounts_micro: Sequence[int]) -> None:
        """At each run, before anything new is reserved: go on with what was submitted. Raises when these amounts
        cannot be paid now; the run ends there."""

    def submit(self, payment: Payment) -> Answer:
        """Pay, unless this key was paid before. Never answers ABSENT. What it raises leaves the attempt open.

        Raises OtherPayment for a key that it knows with another amount or recipient.
        """

    def look_up(self, key: str) -> Answer:
        """What became of a key. Pays nothing."""


def destination_fault(destination: str) -> str:
    """Why no rail may be given this text; empty when it may.

    One line of printable characters, and nothing that a spreadsheet would run as a formula (OWASP, CSV injection).
    """
    if not 1 <= len(destination) <= MAX_DESTINATION_CHARS or not destination.isprintable():
        return f"a destination is one line of 1 to {MAX_DESTINATION_CHARS} printable characters"
    phone_number = destination[0] == "+" and destination[1:].replace(" ", "").isdecimal()
    if destination[0] in "=+-@" and not phone_number:
        return "a destination must not begin with = + - or @"
    return ""
