"""Tell the hub that this node is here, learn what it thinks of us.

Invariant: a failed heartbeat changes nothing but what `node status` shows; keys that the hub names are trusted from
then on and kept on disk. After a goodbye nothing is said until `here_again`.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from relay.node.hub_client import Earned, HubClient, HubError, clocks_apart, public_keys
from relay.node.identity import Profile, save_profile
from relay.node.tickets import TicketGate
from relay.node.traffic import Traffic

log = structlog.get_logger()

GOODBYE_S: Final = 1.5


class Heartbeat:
    def __init__(
        self,
        hub: HubClient,
        gate: TicketGate,
        traffic: Traffic,
        profile: Profile,
        folder: Path,
        *,
        port: Callable[
            [], int
        ],  # on which viewers reach this node, when the hub takes its address from the request
        back: Callable[[], None],  # called when the hub answers after it had not
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub = hub
        self._gate = gate
        self._traffic = traffic
        self._profile = profile
        self._folder = folder
        self._port = port
        self._back = back
        self._clock = clock
        self._answered_at: float | None = None
        self._woken = asyncio.Event()
        self._saying = asyncio.Lock()  # a heartbeat that comes after the goodbye would take it back
        self.away = False
        self.status = "unknown"
        self.reason = ""  # why it was suspended or retired
        self.earned: Earned | None = None
        self.error = ""

    @property
    def hub_ahead_s(self) -> int:
        """By how much the hub's clock is ahead of this computer's; 0 when they agree well enough."""
        return self._hub.hub_ahead_s

    def answered_ago_s(self) -> float | None:
        return None if self._answered_at is None else self._clock() - self._answered_at

    async def run(self, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                async with self._saying:
                    if not self.away:
                        await self.beat()
                waking = asyncio.create_task(self._woken.wait())
                wait_s = self._profile.heartbeat_s
                await asyncio.wait({stopping, waking}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
                self._woken.clear()
        finally:
            stopping.cancel()

    def _tell_time(self) -> None:
        if self.hub_ahead_s:
            log.warning(
                "requests are dated by the hub's clock from now on", why=clocks_apart(self.hub_ahead_s)
            )
        else:
            log.info("the hub's clock and this computer's agree again")

    async def goodbye(self) -> None:
        """Tell the hub to send nobody here any more. Takes `GOODBYE_S` at most, and is no promise."""
        self.away = True
        try:
            async with asyncio.timeout(GOODBYE_S), self._saying:
                await self._hub.goodbye()
        except (HubError, TimeoutError) as e:  # a hub that is away, or of before there were goodbyes
            log.debug("no goodbye", error=str(e))

    def here_again(self) -> None:
        """The next heartbeat is said at once."""
        self.away = False
        self._woken.set()

    async def beat(self) -> None:
        ahead_s = self.hub_ahead_s
        try:
            answer = await self._hub.heartbeat(
                url=self._profile.public_url,
                port=self._port(),
                viewers=self._traffic.viewers(),
                uploaded_bytes=self._traffic.uploaded_bytes,
            )
            self._gate.learn(public_keys(answer.ticket_keys))
        except HubError as e:
            if str(e) != self.error:  # once, not every five seconds
                log.warning("the hub does not take our heartbeat", error=str(e))
            self.error = str(e)
            return
        if self.hub_ahead_s != ahead_s:
            self._tell_time()
        if answer.status != self.status:
            log.info("the hub says this node is", status=answer.status, reason=answer.reason or None)
        if self.error:
            log.info("the hub takes our heartbeat again")
            self._back()
        self.status, self.reason = answer.status, answer.reason
        self.earned, self.error = answer.earned, ""
        self._answered_at = self._clock()
        if answer.ticket_keys != self._profile.ticket_keys:
            self._profile = msgspec.structs.replace(self._profile, ticket_keys=answer.ticket_keys)
            try:
                save_profile(self._folder, self._profile)
            except OSError as e:
                log.warning("cannot store the hub's new ticket keys", error=str(e))
