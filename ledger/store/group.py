"""Group commit: appends that arrive while one is being committed share the next transaction.

Invariant: every append has an outcome of its own, the same that it would have had alone; only the flush to disk is
shared. An append that cannot stand (a conflict, say) never fails its neighbours: they are then committed one by one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from eventsourcing.persistence import InterfaceError, OperationalError, PersistenceError, StoredEvent

GROUP_EVENTS_MAX: Final = 2_000


class _Waiting:
    __slots__ = ("error", "events", "leads", "position", "taken", "woken")

    def __init__(self, events: Sequence[StoredEvent], *, leads: bool) -> None:
        self.events = events
        self.leads = leads
        self.taken = False  # into a group, out of the queue
        self.woken = Lock()  # held until it is done, or leads; a bare lock is the cheapest thing to wait for
        self.woken.acquire()
        self.position: int | None = None
        self.error: PersistenceError | None = None

    @property
    def done(self) -> bool:
        return self.position is not None or self.error is not None


class GroupCommit:
    """One thread at a time leads: it commits its own append and all that wait behind it, then the next one leads."""

    def __init__(self, commit: Callable[[Sequence[StoredEvent]], int]) -> None:
        """`commit` appends events in one transaction and returns the position of the first."""
        self._commit = commit
        self._lock = Lock()
        self._queue: deque[_Waiting] = deque()  # a leader stands at its head until it takes its group
        self._led = False

    def append(self, events: Sequence[StoredEvent]) -> int:
        """Position of the first event. Raises what `commit` raises for these events."""
        with self._lock:
            mine = _Waiting(events, leads=not self._led)
            self._led = True
            self._queue.append(mine)
        try:
            if not mine.leads:
                mine.woken.acquire()
            if not mine.done:
                self._commit_group(self._next_group())
        finally:
            with self._lock:
                if not mine.taken:  # interrupted
                    self._queue.remove(mine)
                if mine.leads:
                    self._hand_over()
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
            size = len(group[0].events)
            while self._queue and size + len(self._queue[0].events) <= GROUP_EVENTS_MAX:
                group.append(self._queue.popleft())
                size += len(group[-1].events)
            for waiting in group:
                waiting.taken = True
        return group

    def _commit_group(self, group: list[_Waiting]) -> None:
        try:
            if len(group) > 1 and self._commit_together(group):
                return
            for waiting in group:
                try:
                    waiting.position = self._commit(waiting.events)
                except PersistenceError as e:
                    waiting.error = e
        finally:
            # Only when this thread was interrupted: the others must treat their appends as in doubt.
            for waiting in group:
                if not waiting.done:
                    waiting.error = OperationalError("the thread that was committing was interrupted")
                if not waiting.leads:
                    waiting.woken.release()

    def _commit_together(self, group: list[_Waiting]) -> bool:
        """False when one of them cannot stand: then nothing was committed."""
        try:
            position = self._commit([event for waiting in group for event in waiting.events])
        except (OperationalError, InterfaceError) as e:
            for waiting in group:
                waiting.error = type(e)(*e.args)
                waiting.error.__cause__ = e.__cause__
            return True
        except PersistenceError:
            return False
        for waiting in group:
            waiting.position = position
            position += len(waiting.events)
        return True
