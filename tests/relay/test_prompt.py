"""Asking somebody who mostly knows at once: the same as awaiting, but for the timer."""

import asyncio

import pytest

from relay.origin.prompt import within


async def steps(seen: list[str], waits: int, end: Exception | None = None) -> str:
    try:
        for i in range(waits):
            await asyncio.sleep(0)
            seen.append(f"{i} {asyncio.current_task().get_name()}")
        if end is not None:
            raise end
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    return "answer"


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_an_answer_comes_whether_or_not_it_had_to_be_waited_for(waits):
    async def scenario():
        asyncio.current_task().set_name("asker")
        seen = []
        assert await within(5.0, steps(seen, waits)) == "answer"
        assert seen == [f"{i} asker" for i in range(waits)]
        with pytest.raises(LookupError):
            await within(5.0, steps([], waits, LookupError()))

    asyncio.run(scenario())


def test_who_takes_too_long_is_cancelled_and_so_is_who_is_asked_for_nobody():
    async def slow(seen):
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def scenario():
        seen = []
        with pytest.raises(TimeoutError):
            await within(0.01, slow(seen))
        asking = asyncio.create_task(within(60.0, slow(seen)))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert seen == ["cancelled"] * 2

    asyncio.run(scenario())


def test_what_is_asked_may_swallow_an_interruption_and_answer_all_the_same():
    async def stubborn():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "after all"

    async def scenario():
        asking = asyncio.create_task(within(60.0, stubborn()))
        await asyncio.sleep(0)
        asking.cancel()
        assert await asking == "after all"

    asyncio.run(scenario())
