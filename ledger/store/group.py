"""Group commit: appends that arrive while one is being committed share the next transaction.

Invariants: every append has an outcome of its own, the same that it would have had alone; only the flush to disk is
shared. An append that cannot stand (a conflict, say) never fails its neighbours: they are then committed one by one.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import chain
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from eventsourcing.persistence import InterfaceError, OperationalError, PersistenceError

from ledger.store.binary import NewRow
from ledger.together import Together, Turn

GROUP_EVENTS_MAX: Final = 2_000


class Rows(Sized, Iterable[NewRow], Protocol):
    """Can be iterated again and again, with the same result."""


Versions = Sequence[tuple[UUID, int]]  # originators and how many events they had


class _Append(NamedTuple):
    rows: Rows
    unchanged: Versions  # what it was decided on and does not append to


class GroupCommit:
    def __init__(self, commit: Callable[[Rows, Versions], int]) -> None:
        """`commit` appends rows in one transaction and returns the position of the first.

        It refuses them when what must be unchanged has more events than that, those of the rows themselves included.
        """
        self._commit = commit
        self._together: Together[_Append, int] = Together(
            self._commit_group,
            size=lambda append: len(append.rows),
            most=GROUP_EVENTS_MAX,
            interrupted=lambda: OperationalError("the thread that was committing was interrupted"),
        )

    def append(self, rows: Rows, unchanged: Versions = ()) -> int:
        """Position of the first row. Raises what `commit` raises for these rows."""
        return self._together.do(_Append(rows, unchanged))

    def _commit_group(self, group: Sequence[Turn[_Append, int]]) -> None:
        if len(group) > 1 and self._commit_together(group):
            return
        for turn in group:
            try:
                turn.result = self._commit(*turn.item)
            except PersistenceError as e:
                turn.error = e

    def _commit_together(self, group: Sequence[Turn[_Append, int]]) -> bool:
        """False when one of them cannot stand: then nothing was committed."""
        try:
            rows = list(chain.from_iterable(turn.item.rows for turn in group))
            position = self._commit(rows, [each for turn in group for each in turn.item.unchanged])
        except (OperationalError, InterfaceError) as e:
            for turn in group:
                turn.error = type(e)(*e.args)
                turn.error.__cause__ = e.__cause__
            return True
        except PersistenceError:
            return False
        for turn in group:
            turn.result = position
            position += len(turn.item.rows)
        return True
