"""A node that was stopped is offered to nobody, whatever was under way at that moment."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from hub.pings import Pings
from hub.presence import Presence
from hub.steering import LiveNode

ATTIC, CELLAR = (LiveNode(uuid4(), "http://127.0.0.1:1", 0) for _ in range(2))


class Offered(list[LiveNode]):
    def now(self, nodes: Sequence[LiveNode]) -> None:
        self[:] = nodes


def alive(*nodes: LiveNode, gate: asyncio.Event | None = None) -> Callable[[], Awaitable[list[LiveNode]]]:
    async def answer() -> list[LiveNode]:
        if gate is not None:
            await gate.wait()
        return list(nodes)

    return answer


def test_a_node_stays_away_whatever_was_asked_before_it_was_stopped() -> None:
    async def scenario() -> None:
        pings, offered, seconds = Pings(), Offered(), [0.0]
        presence = Presence(pings, offered.now, lambda: seconds[0])
        await presence.refresh(alive(ATTIC, CELLAR))
        assert offered == [ATTIC, CELLAR]
        gate = asyncio.Event()
        asking = asyncio.create_task(presence.refresh(alive(ATTIC, CELLAR, gate=gate)))
        await asyncio.sleep(0)
        seconds[0] = 1.0
        presence.left(ATTIC.node_id)
        gate.set()
        await asking
        assert offered == [CELLAR]
        await presence.ping()  # nobody answers at port 1
        assert offered == []
        pings.close()
        seconds[0] = 2.0
        presence = Presence(Pings(), offered.now, lambda: seconds[0])
        presence.left(ATTIC.node_id)
        seconds[0] = 3.0
        await presence.refresh(alive(ATTIC))
        assert offered == [ATTIC], "it has a heartbeat again"

    asyncio.run(scenario())
