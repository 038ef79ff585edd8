"""Going away for a while and coming back: this computer is about to sleep, or has slept.

Invariant: before `leave` returns, the hub was told to send nobody here any more, what was being sent has ended and the
receipts were offered to it, as far as the seconds that there were sufficed. What did not fit is lost to nobody:
viewers go elsewhere, receipts are on disk.
"""

import asyncio
from typing import Final

import structlog

from relay.node.heartbeat import Heartbeat
from relay.node.hub_client import HubClient
from relay.node.sender import Sender
from relay.node.traffic import Traffic

log = structlog.get_logger()

# Players ask for a segment within moments of seeing it listed, and nothing is listed here after the goodbye. The rest
# is for those that read ahead of what they show.
QUIET_S: Final = 1.0
LOOK_S: Final = 0.05
FLUSH_PART: Final = 0.3  # of the time there is


class Absence:
    def __init__(self, heartbeat: Heartbeat, traffic: Traffic, sender: Sender, hub: HubClient) -> None:
        self._heartbeat = heartbeat
        self._traffic = traffic
        self._sender = sender
        self._hub = hub

    async def leave(self, within_s: float) -> None:
        """Hand over to others. Takes no longer than `within_s`, most often about a second."""
        deadline = asyncio.get_running_loop().time() + within_s
        viewers = self._traffic.viewers()
        try:
            async with asyncio.timeout_at(deadline):
                await self._heartbeat.goodbye()
                await self.quieten(QUIET_S, within_s * (1 - FLUSH_PART))
                await self._sender.send_all()
        except TimeoutError:
            log.debug("not everything was done before this computer sleeps")
        log.info("this computer goes to sleep; the hub sends nobody here meanwhile", viewers=viewers)

    async def come_back(self) -> None:
        await self._hub.connect_anew()
        self._heartbeat.here_again()
        self._sender.hub_is_back()
        log.info("this computer is awake again")

    async def quieten(self, quiet_s: float, within_s: float) -> None:
        """Until nobody has asked for anything for `quiet_s`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        while self._traffic.quiet_s() < quiet_s and loop.time() < end:  # noqa: ASYNC110  # nothing tells of quiet
            await asyncio.sleep(LOOK_S)
