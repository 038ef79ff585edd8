"""Which tickets this node honours.

Invariant: `admit` returns only for a ticket that a known hub key signed, that names this node, this rendition and
this sequence. No clock decides: a ticket is valid by its range, so a wrong clock costs nobody a segment.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from ledger.keys import key_id
from ledger.ticket import SignedTicket, Ticket, WireError
from relay.node.hub_client import MAX_KEYS, HubError

log = structlog.get_logger()

MAX_VERIFIED: Final = 8_192
MAX_SERVED: Final = 20_000
REFRESH_S: Final = 30.0


class TicketRefused(Exception):
    """`status` 400 or 403; `reason` names the problem type, `detail` is for people."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Admitted:
    """A verified ticket and its hash, kept so that each is checked and hashed once."""

    signed: SignedTicket
    hash: bytes

    @property
    def ticket(self) -> Ticket:
        return self.signed.ticket


class TicketGate:
    """`fetch_keys` asks the hub for its ticket keys; called at most once in `REFRESH_S` for unknown key ids."""

    def __init__(
        self,
        node_key: bytes,
        hub_keys: Iterable[bytes],
        fetch_keys: Callable[[], Awaitable[list[bytes]]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node_key = node_key
        self._keys: dict[bytes, bytes] = {}
        self._fetch_keys = fetch_keys
        self._clock = clock
        self._refreshed_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._verified: OrderedDict[str, Admitted] = OrderedDict()
        self._served: OrderedDict[bytes, Admitted] = OrderedDict()
        self.learn(hub_keys)

    def learn(self, hub_keys: Iterable[bytes]) -> None:
        """Trust these keys too; old ones stay, their tickets may still be in use."""
        for key in hub_keys:
            self._keys.pop(key_id(key), None)
            self._keys[key_id(key)] = key
        while len(self._keys) > MAX_KEYS:
            del self._keys[next(iter(self._keys))]

    async def admit(self, text: str, rendition: UUID, sequence: int) -> Admitted:
        """The ticket in a segment URL. Raises TicketRefused."""
        admitted = self._verified.get(text)
        if admitted is None:
            admitted = await self._verify(text)
            self._verified[text] = admitted
            if len(self._verified) > MAX_VERIFIED:
                self._verified.popitem(last=False)
        return self._allows(admitted, rendition, sequence)

    def known(self, text: str, rendition: UUID, sequence: int) -> Admitted | None:
        """As `admit`, of a ticket that was verified before; None for any other. Raises TicketRefused."""
        admitted = self._verified.get(text)
        return None if admitted is None else self._allows(admitted, rendition, sequence)

    @staticmethod
    def _allows(admitted: Admitted, rendition: UUID, sequence: int) -> Admitted:
        ticket = admitted.ticket
        if ticket.rendition_id != rendition:
            raise TicketRefused(403, "wrong-rendition", "the ticket is for another rendition")
        if not ticket.covers(sequence):
            raise TicketRefused(
                403,
                "out-of-range",
                f"the ticket covers segments {ticket.first_sequence} to {ticket.last_sequence}",
            )
        return admitted

    def served(self, admitted: Admitted) -> bool:
        """Remember that a segment was served with this ticket: its receipts are welcome. True the first time."""
        if admitted.hash in self._served:
            self._served.move_to_end(admitted.hash)
            return False
        self._served[admitted.hash] = admitted
        if len(self._served) > MAX_SERVED:
            self._served.popitem(last=False)
        return True

    def find_served(self, ticket_hash: bytes) -> Admitted | None:
        return self._served.get(ticket_hash)

    async def _verify(self, text: str) -> Admitted:
        try:
            signed = SignedTicket.decode_url(text)
        except WireError as e:
            raise TicketRefused(400, "malformed-ticket", str(e)) from e
        if signed.ticket.node_key != self._node_key:
            raise TicketRefused(403, "wrong-node", "the ticket is for another node")
        if signed.ticket.hub_key_id not in self._keys:
            await self._refresh()
        hub_key = self._keys.get(signed.ticket.hub_key_id)
        if hub_key is None:
            raise TicketRefused(
                403, "unknown-hub-key", "the ticket is signed with a key the hub does not name"
            )
        if not signed.verified_by(hub_key):
            raise TicketRefused(403, "bad-signature", "the ticket is not signed by the hub")
        return Admitted(signed, signed.ticket.hash)

    async def _refresh(self) -> None:
        if self._refreshing is None:
            if self._clock() - self._refreshed_at < REFRESH_S:
                return
            self._refreshed_at = self._clock()
            self._refreshing = asyncio.create_task(self._fetch())
        await asyncio.shield(self._refreshing)

    async def _fetch(self) -> None:
        try:
            self.learn(await self._fetch_keys())
        except HubError as e:
            log.warning("cannot ask the hub for its ticket keys", error=str(e))
        finally:
            self._refreshing = None
