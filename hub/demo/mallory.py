"""Mallory: a friend whose node serves honestly and whose receipts are not. Every trick must be refused.

Invariant: `Mallory.cheat` returns the hub's own verdicts; nothing here decides what counts as a success.
"""

import re
import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urljoin
from uuid import uuid4

import httpx2

from ledger.keys import KeyPair
from ledger.receipt import SignedReceipt
from ledger.ticket import SignedTicket, Ticket, ViewerClass
from relay.node.identity import load_or_create_key
from relay.viewers.cheat import CheatingNode, claim, flipped, forged, out_of_range

SESSIONS: Final = 12  # how many playlists she opens to collect tickets
_TICKET: Final = re.compile(r"(\S+/segments/\S+/(\d+)\.(?:ts|m4s))\?t=([A-Za-z0-9_-]+)")


@dataclass
class Mallory:
    hub_url: str
    slug: str
    key: KeyPair
    verdicts: Counter[str] = field(default_factory=Counter)  # trick and verdict -> receipts

    @classmethod
    def of(cls, hub_url: str, slug: str, data_dir: Path) -> "Mallory":
        return cls(hub_url, slug, load_or_create_key(data_dir / "node"))

    async def cheat(self) -> None:
        """Collect tickets as a viewer, then send what was never delivered."""
        viewer = KeyPair(secrets.token_bytes(32))
        async with httpx2.AsyncClient(timeout=5.0, trust_env=False) as http:
            tickets = await self._collect(http, viewer)
        mine = [t for t, _ in tickets.values() if t.ticket.node_key == self.key.public_key]
        others = [t for t, _ in tickets.values() if t.ticket.node_key != self.key.public_key]
        listed = {t.ticket.hash: sequence for t, sequence in tickets.values()}
        async with CheatingNode(self.hub_url, self.key) as node:
            for t in mine:
                guess = {listed[t.ticket.hash]: b"not the segment"}
                await self._send(node, "made-up viewer", forged(t, guess, KeyPair(secrets.token_bytes(32))))
                await self._send(node, "bytes she never had", claim(t, guess, viewer))
                await self._send(node, "segments beyond the ticket", out_of_range(t, b"x", viewer))
            for t in others:
                stolen = claim(t, {listed[t.ticket.hash]: b"not the segment"}, viewer)
                await self._send(node, "another node's ticket", stolen)
            await self._send(node, "a ticket she wrote herself", self._invented(viewer))

    async def replay(self, receipts: list[SignedReceipt]) -> None:
        """Send receipts that were sent already, ten times, in another order each time."""
        async with CheatingNode(self.hub_url, self.key) as node:
            known = {answer.position for answer in await node.send(receipts)}
            for answers in await node.send_shuffled(receipts, times=10):
                for answer in answers:
                    # The very same batch is answered with the verdict that stands in the log: no new credit.
                    verdict = "answered as before" if answer.position in known else answer.verdict
                    self.verdicts[f"receipts sent again: {verdict}"] += 1

    async def inflate(self, receipt: SignedReceipt, ticket: SignedTicket, viewer: KeyPair) -> None:
        """One more segment in a receipt than was delivered, with the viewer's help."""
        async with CheatingNode(self.hub_url, self.key) as node:
            await self._send(node, "one segment more", flipped(receipt, ticket, viewer))

    async def _send(self, node: CheatingNode, trick: str, receipt: SignedReceipt) -> None:
        for answer in await node.send([receipt]):
            self.verdicts[f"{trick}: {answer.verdict}"] += 1

    async def _collect(
        self, http: httpx2.AsyncClient, viewer: KeyPair
    ) -> dict[bytes, tuple[SignedTicket, int]]:
        found: dict[bytes, tuple[SignedTicket, int]] = {}
        for _ in range(SESSIONS):
            body = {"stream": self.slug, "viewer_key": viewer.public_key.hex()}
            answer = await http.post(f"{self.hub_url}/api/sessions", json=body)
            if answer.status_code != 201:
                continue
            playlist = await http.get(urljoin(self.hub_url, answer.json()["playlist_url"]))
            for match in _TICKET.finditer(playlist.text):
                signed = SignedTicket.decode_url(match[3])
                found[signed.ticket.hash] = (signed, int(match[2]))
        return found

    def _invented(self, viewer: KeyPair) -> SignedReceipt:
        ticket = Ticket(
            viewer_class=ViewerClass.SIGNING,
            hub_key_id=self.key.key_id,
            ticket_id=uuid4(),
            session_id=uuid4(),
            stream_id=uuid4(),
            rendition_id=uuid4(),
            viewer_key=viewer.public_key,
            node_key=self.key.public_key,
            first_sequence=0,
            last_sequence=9,
            settle_by_s=2**40,
            tariff_version=1,
            byte_budget=10**12,
            nonce=secrets.token_bytes(16),
        ).sign(self.key)
        return claim(ticket, {0: b"nothing"}, viewer)
