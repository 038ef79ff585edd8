"""Live updates: what a client follows is made anew when the log has grown, once for all who follow the same.

Invariants: a client is sent the latest state, and no more than a few wait for a slow one; the number of clients is
bounded, in all and for each of them; who is connected when the log stops growing gets the last state.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import structlog

from api.deps import Services
from api.problems import Problem, ProblemType
from ledger.application import Unavailable
from projections.queries import ReadModelUnavailable

T = TypeVar("T")

logger = structlog.get_logger()

CLIENTS_MAX: Final = 200
CLIENTS_OF_ONE_MAX: Final = 6  # tabs of a friend, people behind one address
LIFE_S: Final = 600.0  # then the client comes again, and its token is looked at again
EVERY_S: Final = 1.0  # at most so often
REFRESH_S: Final = 1.0  # viewers come and go without an event
_LEVEL_S: Final = 1.0  # wait so long for the read models to take in what is new
_RETRY_AFTER_S: Final = "30"


class Live:
    """For one event loop."""

    def __init__(self, services: Services) -> None:
        self._at = services
        self._clients: Counter[str] = Counter()
        self._made: dict[Hashable, asyncio.Future[Any]] = {}  # since the last tick
        self._tick = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """The process ends: so do all the streams, at once."""
        self._closed = True
        self._tick.set()

    @contextmanager
    def place(self, who: str) -> Iterator[None]:
        """Counts a client while it is there. Raises a 429 Problem when there are too many."""
        if self._clients.total() >= CLIENTS_MAX or self._clients[who] >= CLIENTS_OF_ONE_MAX:
            raise Problem(
                ProblemType.RATE_LIMITED,
                "too many live connections: poll instead",
                headers={"Retry-After": _RETRY_AFTER_S},
            )
        self._clients[who] += 1
        try:
            yield
        finally:
            self._clients[who] -= 1
            self._clients += Counter()  # forgets who is not there any more

    async def follow(
        self, topic: Hashable, make: Callable[[], T | None], *, life_s: float = LIFE_S
    ) -> AsyncIterator[T]:
        """The state of a topic now, and whenever it is another. `make` runs in a thread; what it
        makes is compared; None is no state."""
        ends_s = time.monotonic() + life_s
        last: T | None = None
        while not self._closed and (left_s := ends_s - time.monotonic()) > 0:
            if self._ticking is None or self._ticking.done():
                self._ticking = asyncio.create_task(self._run())
            tick = self._tick
            try:
                state = await self._shared(topic, make, fresh=last is None)
            except (Unavailable, ReadModelUnavailable):
                state = last
            if state is not None and state != last:
                last = state
                yield state
            try:
                await asyncio.wait_for(tick.wait(), left_s)
            except TimeoutError:
                return

    async def _shared(self, topic: Hashable, make: Callable[[], T | None], *, fresh: bool) -> T | None:
        made = self._made.get(topic)
        if made is None or (fresh and made.done()):
            made = self._made[topic] = asyncio.ensure_future(asyncio.to_thread(make))
        return cast("T | None", await asyncio.shield(made))  # one that leaves takes it from nobody

    async def _run(self) -> None:
        """Ticks while anybody is there."""
        size = 0
        while self._clients.total() and not self._closed:
            try:
                size = await asyncio.to_thread(self._news, size)
            except (Unavailable, ReadModelUnavailable):
                await asyncio.sleep(REFRESH_S)
            except Exception:  # whoever follows goes on looking, and the next try may be luckier
                logger.exception("live updates: cannot see what is new")
                await asyncio.sleep(REFRESH_S)
            self._made.clear()
            self._tick.set()
            self._tick = asyncio.Event()
            await asyncio.sleep(EVERY_S)

    def _news(self, size: int) -> int:
        grown = self._at.ledger.wait(size, REFRESH_S)
        if grown > size:
            self._at.reads.wait(grown - 1, _LEVEL_S)
        return grown
