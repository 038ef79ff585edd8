"""Group commit: appends that arrive while one is being committed share the next transaction.

Invariants: every append has an outcome of its own, the same that it would have had alone; only the flush to disk is
shared. An append that cannot stand (a conflict, say) never fails its neighbours: they are then committed one by one.
Whoever waits is woken, also when the thread that commits, or the one that should wake it, is interrupted.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sized
from itertools import chain
from threading import Lock
from typing import Final, Protocol

from eventsourcing.persistence import InterfaceError, OperationalError, PersistenceError

from ledger.store.binary import NewRow

GROUP_EVENTS_MAX: Final = 2_000


class Rows(Sized, Iterable[NewRow], Protocol):
    """Can be iterated again and again, with the same result."""


class _Waiting:
    __slots__ = ("error", "gone", "leads", "position", "rows", "taken", "to_wake", "woken")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.leads = False
        self.taken = False  # into a group, out of the queue
        self.woken = Lock()  # held until it is done, or leads; a bare lock is the cheapest thing to wait for
        self.woken.acquire()
        self.position: int | None = None
        self.error: PersistenceError | None = None
        self.to_wake: deque[_Waiting] = deque()  # those of its group that still sleep
        self.gone = False

    @property
    def done(self) -> bool:
        return self.position is not None or self.error is not None


class GroupCommit:
    """One thread at a time leads: it commits its own append and all that wait behind it, then the next one leads.

    The next leader is woken before all others, so that the database is never idle. The others are woken one by the
    other: woken all at once, dozens of threads would go to sleep again at the interpreter's lock.
    """

    def __init__(self, commit: Callable[[Rows], int]) -> None:
        """`commit` appends rows in one transaction and returns the position of the first."""
        self._commit = commit
        self._lock = Lock()
        self._queue: deque[_Waiting] = deque()  # a leader stands at its head until it takes its group
        self._led = False

    def append(self, rows: Rows) -> int:
        """Position of the first row. Raises what `commit` raises for these rows."""
        mine = _Waiting(rows)
        with self._lock:
            mine.leads, self._led = not self._led, True
            self._queue.append(mine)
        try:
            if not mine.leads:
                mine.woken.acquire()
            if not mine.done:
                self._commit_group(self._next_group())
        finally:
            mine.gone = True
            if mine.leads or not mine.taken:
                with self._lock:
                    if not mine.taken:  # interrupted
                        self._queue.remove(mine)
                    if mine.leads:
                        self._hand_over()
            _wake_one(mine.to_wake)
        if mine.error is not None:
            raise mine.error
        assert mine.position is not None
        return mine.position

    def _hand_over(self) -> None:
        if self._queue:
            self._queue[0].leads = True
            self._queue[0].woken.release()
        else:
            self._led = False

    def _next_group(self) -> list[_Waiting]:
        with self._lock:
            group = [self._queue.popleft()]
            size = len(group[0].rows)
            while self._queue and size + len(self._queue[0].rows) <= GROUP_EVENTS_MAX:
                group.append(self._queue.popleft())
                size += len(group[-1].rows)
            for waiting in group:
                waiting.taken = True
        return group

    def _commit_group(self, group: list[_Waiting]) -> None:
        try:
            if len(group) > 1 and self._commit_together(group):
                return
            for waiting in group:
                try:
                    waiting.position = self._commit(waiting.rows)
                except PersistenceError as e:
                    waiting.error = e
        finally:
            sleeping = deque(group[1:])
            for waiting in group:
                # Only when this thread was interrupted: the others must treat their appends as in doubt.
                if not waiting.done:
                    waiting.error = OperationalError("the thread that was committing was interrupted")
                waiting.to_wake = sleeping

    def _commit_together(self, group: list[_Waiting]) -> bool:
        """False when one of them cannot stand: then nothing was committed."""
        try:
            position = self._commit(list(chain.from_iterable(waiting.rows for waiting in group)))
        except (OperationalError, InterfaceError) as e:
            for waiting in group:
                waiting.error = type(e)(*e.args)
                waiting.error.__cause__ = e.__cause__
            return True
        except PersistenceError:
            return False
        for waiting in group:
            waiting.position = position
            position += len(waiting.rows)
        return True


def _wake_one(sleeping: deque[_Waiting]) -> None:
    """Wake the next of a group, who will wake the one after. Of two threads that race here, each takes another."""
    while True:
        try:
            waiting = sleeping.popleft()
        except IndexError:
            return
        waiting.woken.release()
        if (
            not waiting.gone
        ):  # else it was interrupted, and may have passed here before there was anybody to wake
            return
