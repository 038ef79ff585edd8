"""Work that threads bring one by one and that is done at once for all who wait: a flush to disk, a query.

Invariants: every item has an outcome of its own, the same that it would have had alone; only the work is shared.
Whoever waits is woken, also when the thread that works, or the one that should wake it, is interrupted.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Turn(Generic[T, R]):
    """One item, and what came of it: a result or an error."""

    __slots__ = ("error", "gone", "item", "leads", "result", "taken", "to_wake", "woken")

    def __init__(self, item: T) -> None:
        self.item = item
        self.result: R | None = None
        self.error: Exception | None = None
        self.leads = False
        self.taken = False  # into a group, out of the queue
        self.woken = Lock()  # held until it is done, or leads; a bare lock is the cheapest thing to wait for
        self.woken.acquire()
        self.to_wake: deque[Turn[T, R]] = deque()  # those of its group that still sleep
        self.gone = False

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class Together(Generic[T, R]):
    """One thread at a time leads: it works on its own item and on all that wait behind it, then the next one leads.

    The next leader is woken before all others, so that the work never pauses. The others are woken one by the other:
    woken all at once, dozens of threads would go to sleep again at the interpreter's lock.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Turn[T, R]]], None],
        *,
        size: Callable[[T], int],
        most: int,
        interrupted: Callable[[], Exception],
    ) -> None:
        """`work` gives each turn its result or error; a group has at most the size `most`, or is one item.

        `interrupted` makes the error of those whose outcome is not known because the thread that led was interrupted.
        """
        self._work = work
        self._size = size
        self._most = most
        self._interrupted = interrupted
        self._lock = Lock()
        self._queue: deque[Turn[T, R]] = deque()  # a leader stands at its head until it takes its group
        self._led = False

    def do(self, item: T) -> R:
        """The result of the item. Raises its error."""
        mine: Turn[T, R] = Turn(item)
        with self._lock:
            mine.leads, self._led = not self._led, True
            self._queue.append(mine)
        try:
            if not mine.leads:
                mine.woken.acquire()
            if not mine.done:
                self._work_on(self._next_group())
        finally:
            mine.gone = True
            if mine.leads or not mine.taken:
                with self._lock:
                    if not mine.taken:  # interrupted
                        self._queue.remove(mine)
                    if mine.leads:
                        self._hand_over()
            _wake_one(mine.to_wake)
        # Its traceback leads here: what it holds is free when it is handled.
        error, mine.error = mine.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
        assert mine.result is not None
        return mine.result

    def _hand_over(self) -> None:
        if self._queue:
            self._queue[0].leads = True
            self._queue[0].woken.release()
        else:
            self._led = False

    def _next_group(self) -> list[Turn[T, R]]:
        with self._lock:
            group = [self._queue.popleft()]
            size = self._size(group[0].item)
            while self._queue and size + self._size(self._queue[0].item) <= self._most:
                group.append(self._queue.popleft())
                size += self._size(group[-1].item)
            for turn in group:
                turn.taken = True
        return group

    def _work_on(self, group: list[Turn[T, R]]) -> None:
        try:
            self._work(group)
        finally:
            sleeping = deque(group[1:])
            for turn in group:
                # Only when this thread was interrupted: the others must treat their items as in doubt.
                if not turn.done:
                    turn.error = self._interrupted()
                turn.to_wake = sleeping


def _wake_one(sleeping: deque[Turn[T, R]]) -> None:
    """Wake the next of a group, who will wake the one after. Of two threads that race here, each takes another."""
    while True:
        try:
            turn = sleeping.popleft()
        except IndexError:
            return
        turn.woken.release()
        # Else it was interrupted, and may have passed here before there was anybody to wake.
        if not turn.gone:
            return
