"""Spool -> hub: batches until every receipt has its verdict.

Invariant: a receipt leaves the spool only with a verdict of the hub; whatever fails in between (network, hub, this
process) leads to the same receipts being sent again, which the ledger answers as duplicates.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from ledger.batch import MAX_RECEIPTS, VERSION, Batch
from ledger.keys import KeyPair
from ledger.receipt import SignedReceipt
from relay.node.claims import PlainClaims
from relay.node.hub_client import HubClient, HubError, VerdictLine
from relay.node.spool import Conflicting, Spool, SpoolFull

log = structlog.get_logger()

MAX_BACKOFF_S: Final = 60.0
HISTORY: Final = 50


class Sender:
    def __init__(
        self,
        key: KeyPair,
        hub: HubClient,
        spool: Spool,
        claims: PlainClaims,
        *,
        interval_s: float,
        now_s: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._key = key
        self._hub = hub
        self._spool = spool
        self._claims = claims
        self._interval_s = interval_s
        self._now_s = now_s
        self._jitter = jitter
        self._window_start_s = int(now_s())
        self._failures = 0
        self._wake = asyncio.Event()
        self.error = ""
        self.batches = 0
        self.verdicts: Counter[str] = Counter()
        self.units = 0
        self.credited_bytes = 0
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)

    async def run(self, stop: asyncio.Event) -> None:
        """Send every interval until `stop`; after failures less and less often, until the hub is back."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                waking = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait(
                        {stopping, waking}, timeout=self._wait_s(), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    waking.cancel()
                self._wake.clear()
                if not stop.is_set():
                    await self.send_all()
        finally:
            stopping.cancel()

    def hub_is_back(self) -> None:
        """The hub answers again: what waits is sent now, not when the longest pause is over."""
        if self._failures:
            self._wake.set()

    async def send_all(self) -> bool:
        """Sign new claims and send all that is unanswered; False when something is left."""
        await self._spool_claims()
        try:
            while receipts := self._spool.latest(MAX_RECEIPTS):
                await self._send(receipts)
        except HubError as e:
            self._failures += 1
            self.error = str(e)
            log.warning("receipts not sent, kept on disk", error=self.error, receipts=self._spool.pending)
            return False
        self._failures = 0
        self.error = ""
        return True

    async def _send(self, receipts: list[SignedReceipt]) -> None:
        now = int(self._now_s())
        encoded = [r.encode() for r in receipts]
        batch = Batch.sign(
            self._key,
            min(self._window_start_s, now),
            max(now, 0),
            encoded,
            version=VERSION if self._hub.batch_version >= VERSION else 1,
        )
        verdicts = await self._hub.send_batch(batch)
        self._window_start_s = now
        self.batches += 1
        for verdict in verdicts:
            self._note(verdict, now)
        self._spool.answered(receipts)

    def _note(self, line: VerdictLine, now: int) -> None:
        self.verdicts[line.verdict.value] += 1
        self.units += line.units
        self.credited_bytes += line.bytes
        self.history.append(
            {
                "at_s": now,
                "verdict": line.verdict.value,
                "units": line.units,
                "bytes": line.bytes,
                "cap": line.cap,
                "position": line.position,
            }
        )

    async def _spool_claims(self) -> None:
        for claim in self._claims.sign_new():
            try:
                await self._spool.add(claim)
            except SpoolFull:
                self._claims.sign_again(claim.receipt.ticket_hash)
            except Conflicting:
                ticket = claim.receipt.ticket_hash.hex()
                log.warning("claims of one ticket contradict each other", ticket=ticket)

    def _wait_s(self) -> float:
        if not self._failures:
            return self._interval_s
        backoff = min(self._interval_s * 2.0 ** min(self._failures, 16), MAX_BACKOFF_S)
        return backoff * (0.5 + self._jitter() / 2)
