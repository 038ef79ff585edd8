"""Asking somebody who mostly knows the answer at once.

Invariant: the coroutine runs exactly as if it were awaited, within the same task; only a wait that really begins costs
a timer, and only that can end in TimeoutError.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class _Rest:
    """The part of a coroutine from its first wait on."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        thrown: BaseException | None
        waits_for, thrown, sent = self._waits_for, None, None
        while True:
            try:
                sent, thrown = (yield waits_for), None
            except BaseException as e:
                thrown = e
            try:
                waits_for = self._coroutine.send(sent) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration as e:
                return e.value


async def within(timeout_s: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.timeout`: raises TimeoutError when the answer takes longer."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration as e:
        answer: T = e.value
        return answer
    async with asyncio.timeout(timeout_s):
        rest: T = await _Rest(coroutine, waits_for)
        return rest
