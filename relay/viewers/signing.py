"""A viewer that signs: what the watch page does with WebCrypto, without a page.

Invariant: it plays as long as the hub or any node has the segment (a node that fails costs one request, then the hub
serves), and every segment a node delivered is in a receipt that somebody acknowledged, or is tried again.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Final
from urllib.parse import urljoin, urlsplit
from uuid import UUID

import httpx2
import msgspec

from ledger.keys import KeyPair
from ledger.ticket import WireError
from relay.viewers.player import MAX_SEGMENT_BYTES, FetchError, Player, ViewerError
from relay.viewers.playlist import Listed, MediaPlaylist, ticket_of
from relay.viewers.tally import Tallies, Tally

NODE_REST_S: Final = 10.0  # a node that failed is not asked again for so long
MAX_ANSWER_BYTES: Final = 65_536
GOODBYE_S: Final = 5.0


class _Session(msgspec.Struct, frozen=True):
    session_id: UUID
    playlist_url: str


class SigningViewer(Player):
    """`node_patience_s`: how long a node may take for one segment before the hub is asked for it."""

    def __init__(
        self,
        hub_url: str,
        slug: str,
        *,
        key: KeyPair | None = None,
        receipt_interval_s: float = 10.0,
        hub_copy_interval_s: float = 60.0,
        node_patience_s: float = 2.0,
        from_start: bool = False,
    ) -> None:
        super().__init__(hub_url, slug, from_start=from_start)
        self.key = key or KeyPair(secrets.token_bytes(32))
        self.session_id: UUID | None = None
        self.tallies = Tallies()
        self._playlist_url = ""
        self._receipt_interval_s = receipt_interval_s
        self._hub_copy_interval_s = hub_copy_interval_s
        self._node_patience_s = node_patience_s
        self._resting: dict[str, float] = {}  # node URL -> monotonic time from which it is asked again

    async def _open(self) -> None:
        body = msgspec.json.encode({"stream": self.slug, "viewer_key": self.key.public_key.hex()})
        try:
            answer = await self._http.post(
                f"{self.hub_url}/api/sessions", content=body, headers={"content-type": "application/json"}
            )
            if answer.status_code != 201:
                raise ViewerError(f"the hub opened no session for {self.slug}: {answer.status_code}")
            session = msgspec.json.decode(answer.content[:MAX_ANSWER_BYTES], type=_Session)
        except (httpx2.HTTPError, msgspec.MsgspecError) as e:
            raise ViewerError(f"the hub opened no session for {self.slug}: {e or type(e).__name__}") from e
        self.session_id = session.session_id
        self._playlist_url = urljoin(self.hub_url + "/", session.playlist_url)

    async def _playlist(self) -> MediaPlaylist:
        try:
            return await self._get_playlist(self._playlist_url)
        except FetchError as e:
            if e.status in (403, 404, 410):  # the hub no longer knows the session
                with contextlib.suppress(ViewerError):
                    await self._open()
            raise

    async def _segment(self, listed: Listed) -> bytes | None:
        node_url, ticket = _node_of(listed.url), ticket_of(listed.url)
        if ticket and self._resting.get(node_url, 0.0) <= time.monotonic():
            try:
                data = await self._get(listed.url, MAX_SEGMENT_BYTES, patience_s=self._node_patience_s)
                self.tallies.add(ticket, node_url, listed.sequence, data)
            except (FetchError, WireError):
                self.stats.fallbacks += 1
                self._rest(node_url)
            else:
                self.stats.from_node += 1
                return data
        name = urlsplit(listed.url).path.rpartition("/")[2]
        url = f"{self.hub_url}/live/{self.slug}/{self.session_id}/{name}"
        try:
            data = await self._get(url if ticket else listed.url, MAX_SEGMENT_BYTES)
        except FetchError:
            return None
        self.stats.from_hub += 1
        return data

    def _rest(self, node_url: str) -> None:
        if len(self._resting) > 256:
            self._resting.clear()
        self._resting[node_url] = time.monotonic() + NODE_REST_S

    # --- receipts

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [self._receipt_loop()]

    async def send_receipts(self) -> None:
        """Sign what is new and have it acknowledged by the node, or else by the hub."""
        for tally in self.tallies.unsaid():
            receipt = tally.receipt(self.key).encode()
            tally.unsaid = acknowledged = False  # what arrives from here on is for the next receipt
            try:
                url = f"{tally.node_url}/receipts"
                acknowledged = await self._post(url, receipt, self._node_patience_s) or await self._to_hub(
                    receipt
                )
            finally:
                tally.unsaid |= not acknowledged

    async def _receipt_loop(self) -> None:
        copied_at = time.monotonic()
        while True:
            await asyncio.sleep(self._receipt_interval_s)
            await self.send_receipts()
            if time.monotonic() - copied_at >= self._hub_copy_interval_s:
                copied_at = time.monotonic()
                await self._copy_to_hub(self.tallies.all())

    async def _copy_to_hub(self, tallies: list[Tally]) -> None:
        for tally in tallies:
            if await self._to_hub(tally.receipt(self.key).encode()):
                tally.unsaid = False

    async def _goodbye(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self.send_receipts()
                await self._copy_to_hub(self.tallies.all()[-2:])

    async def _to_hub(self, receipt: bytes) -> bool:
        return await self._post(f"{self.hub_url}/api/receipts", receipt, 5.0)

    async def _post(self, url: str, receipt: bytes, patience_s: float) -> bool:
        try:
            async with asyncio.timeout(patience_s):
                answer = await self._http.post(
                    url, content=receipt, headers={"content-type": "application/octet-stream"}
                )
        except (httpx2.HTTPError, TimeoutError):
            self.stats.receipt_errors += 1
            return False
        if answer.status_code not in (200, 204):
            self.stats.receipt_errors += 1
            return False
        self.stats.receipts += 1
        return True


def _node_of(url: str) -> str:
    """The node's URL, from a segment URL of it."""
    parts = urlsplit(url)
    root, _, _ = parts.path.partition("/segments/")
    return f"{parts.scheme}://{parts.netloc}{root}"
