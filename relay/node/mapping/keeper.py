"""Keeps the port open while the node runs, and closes it behind.

Invariant: `port` is what viewers reach this node on as far as is known: the router's port while a lease holds, the
node's own otherwise. Never more than one lease; it is renewed at half its life and taken back at the end.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final

import structlog

from relay.node.mapping import natpmp, pcp, upnp
from relay.node.mapping.gateway import Gateway, ask, find_gateway
from relay.node.mapping.lease import LIFETIME_S, Lease, MappingError, SilentError

log = structlog.get_logger()

RETRY_S: Final = 600.0  # a router may be restarted, or its owner may switch the feature on
MIN_RENEW_S: Final = 30.0
CLOSE_S: Final = 3.0


async def _unknown(_port: int) -> bool:
    return False


class PortKeeper:
    """For one event loop. `find` is asked anew each time: a laptop changes networks."""

    def __init__(
        self,
        port: int,
        *,
        find: Callable[[], Gateway] = lambda: find_gateway(pcp.PORT),
        use_upnp: bool = True,
        nonce: bytes | None = None,
        reached: Callable[[int], Awaitable[bool]] = _unknown,
    ) -> None:
        """`reached`: whether the hub reaches this node on that port, router or no router. Raises nothing."""
        self._internal = port
        self._find = find
        self._use_upnp = use_upnp
        self._reached = reached
        self._nonce = nonce or secrets.token_bytes(pcp.NONCE_BYTES)
        self._told = ""
        self.lease: Lease | None = None
        self.problem = ""  # in plain words; empty while the port is open

    @property
    def port(self) -> int:
        return self.lease.external_port if self.lease else self._internal

    async def run(self, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                await self.renew()
                wait_s = max(self.lease.lifetime_s / 2, MIN_RENEW_S) if self.lease else RETRY_S
                try:
                    await asyncio.wait_for(stop.wait(), wait_s)
                except TimeoutError:
                    continue
        finally:
            await self._close()

    async def renew(self) -> None:
        """Ask for the port, or for more time. Sets `lease` and `problem`; raises nothing."""
        try:
            self.lease = await self._ask(LIFETIME_S)
        except (MappingError, OSError) as e:  # OSError: this computer is between two networks
            self.lease = None
            self.problem = f"{e}: forward TCP port {self._internal} to this computer in your router by hand"
        else:
            self.problem = "" if self.lease.reachable else _behind(self.lease)
        if self.problem and await self._reached(self.port):
            self.problem = ""  # a server, or a hub in the same network: there is nothing to do
        self._tell()

    async def _ask(self, lifetime_s: int) -> Lease:
        """The first protocol that the router knows decides; what it refuses is not asked for in another."""
        wish = self.port
        try:
            gateway = self._find()
            try:
                data = pcp.request(self._nonce, gateway.client, self._internal, wish, lifetime_s)
                return await ask(gateway, data, lambda d: pcp.answer(d, self._nonce, self._internal))
            except SilentError:
                lease = await ask(
                    gateway,
                    natpmp.request(self._internal, wish, lifetime_s),
                    lambda d: natpmp.answer(d, self._internal),
                )
                return replace(lease, external_address=await _address(gateway))
        except SilentError:
            if not self._use_upnp:
                raise
            return await asyncio.to_thread(upnp.open_port, self._internal)

    def _tell(self) -> None:
        told = self.problem or (f"port {self.port}" if self.lease else "")
        if told == self._told:
            return
        self._told = told
        if self.problem:
            log.warning("viewers from outside may not reach this node", reason=self.problem)
        elif self.lease:
            log.info("the router opened a port", protocol=self.lease.protocol, port=self.lease.external_port)

    async def _close(self) -> None:
        lease, self.lease = self.lease, None
        if lease is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._take_back(lease)
        except (MappingError, TimeoutError, OSError) as e:
            log.info("the router keeps the port open for a while", reason=str(e), seconds=lease.lifetime_s)

    async def _take_back(self, lease: Lease) -> None:
        if lease.protocol == "UPnP":
            await asyncio.to_thread(upnp.close_port, lease.external_port)
            return
        gateway = self._find()
        data = (
            pcp.request(self._nonce, gateway.client, self._internal, 0, 0)
            if lease.protocol == "PCP"
            else natpmp.request(self._internal, 0, 0)
        )
        await ask(gateway, data, lambda _: True)


async def _address(gateway: Gateway) -> IPv4Address | None:
    try:
        return await ask(gateway, natpmp.ADDRESS_REQUEST, natpmp.address)
    except SilentError:
        return None


def _behind(lease: Lease) -> str:
    return (
        f"your router has the address {lease.external_address}, which the internet does not reach: your provider "
        "puts another router before it. Ask the provider for a public IPv4 address"
    )
