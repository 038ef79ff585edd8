"""A flood of viewers before a slow database: answered at once, and nobody else's trouble."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hub import authority
from hub.authority import InPool
from relay.ports import Unavailable


def test_what_would_wait_without_an_end_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "WAITING_MAX", 5)
    slow = threading.Event()

    async def flood() -> None:
        with ThreadPoolExecutor(2) as pool:
            in_pool = InPool(pool)
            waiting = [asyncio.create_task(in_pool(slow.wait, 10)) for _ in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                await in_pool(int)
            waiting.pop().cancel()  # somebody went away
            await asyncio.sleep(0.01)
            last = asyncio.create_task(in_pool(int))
            await asyncio.sleep(0)
            slow.set()
            assert await asyncio.gather(*waiting) == [True] * 4
            assert await last == 0
            assert await in_pool(int) == 0  # and the place is free again

    asyncio.run(flood())
