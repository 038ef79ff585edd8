"""Decide again when somebody else was faster.

Invariant: a command's decision is saved against the state it was made on, or not at all.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from ledger.application import Conflict

T = TypeVar("T")
_ATTEMPTS: Final = 20


def until_saved(attempt: Callable[[], T]) -> T:
    """Run `attempt` (load, decide, save) until its save meets no conflict. Raises the last Conflict."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except Conflict:
            continue
    return attempt()
