"""Group commit: appends that arrive while one is being committed share the next transaction.

Invariants: every append has an outcome of its own, the same that it would have had alone; only the flush to disk is
shared. An append that cannot stand (a conflict, say) never fails its neighbours: they are then committed one by one.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import chain
from typing import Final, Protocol

from eventsourcing.persistence import InterfaceError, OperationalError, PersistenceError

from ledger.store.binary import NewRow
from ledger.together import Together, Turn

GROUP_EVENTS_MAX: Final = 2_000


class Rows(Sized, Iterable[NewRow], Protocol):
    """Can be iterated again and again, with the same result."""


class GroupCommit:
    def __init__(self, commit: Callable[[Rows], int]) -> None:
        """`commit` appends rows in one transaction and returns the position of the first."""
        self._commit = commit
        self._together: Together[Rows, int] = Together(
            self._commit_group,
            size=len,
            most=GROUP_EVENTS_MAX,
            interrupted=lambda: OperationalError("the thread that was committing was interrupted"),
        )

    def append(self, rows: Rows) -> int:
        """Position of the first row. Raises what `commit` raises for these rows."""
        return self._together.do(rows)

    def _commit_group(self, group: Sequence[Turn[Rows, int]]) -> None:
        if len(group) > 1 and self._commit_together(group):
            return
        for turn in group:
            try:
                turn.result = self._commit(turn.item)
            except PersistenceError as e:
                turn.error = e

    def _commit_together(self, group: Sequence[Turn[Rows, int]]) -> bool:
        """False when one of them cannot stand: then nothing was committed."""
        try:
            position = self._commit(list(chain.from_iterable(turn.item for turn in group)))
        except (OperationalError, InterfaceError) as e:
            for turn in group:
                turn.error = type(e)(*e.args)
                turn.error.__cause__ = e.__cause__
            return True
        except PersistenceError:
            return False
        for turn in group:
            turn.result = position
            position += len(turn.item)
        return True
