"""What the hub sees plain players do, into the log: it bounds what their nodes may claim for them.

Invariant: what could not be written is kept for the next time, and what was written all the same counts once: a
sequence is observed or it is not. What is not written yet dies with this process: of each session at most the last
`after_s`. An event every few seconds would be most of the log.
"""

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

import structlog

from hub.authority import InPool
from hub.viewings import Viewing, Viewings
from ledger.application import Conflict
from ledger.receipt import BITMAP_BITS, to_bitmap
from ledger.services.delivery import DeliveryDesk

log = structlog.get_logger()

OBSERVE_AFTER_S: Final = 60.0
SESSION_IDLE_S: Final = 90.0


class Observations:
    def __init__(
        self,
        viewings: Viewings,
        desk: DeliveryDesk,
        in_pool: InPool,
        *,
        now_us: Callable[[], int],
        after_s: float = OBSERVE_AFTER_S,
    ) -> None:
        self._viewings = viewings
        self._desk = desk
        self._in_pool = in_pool
        self._now_us = now_us
        self._after_s = after_s

    async def record(self, *, all_now: bool = False) -> None:
        """Write what has waited long enough, one event a session, and forget sessions that have gone.

        Raises Unavailable: then nothing more is tried now.
        """
        now = time.monotonic()
        for session_id, viewing in self._viewings.all():
            due = all_now or now - min(viewing.observed_s, viewing.seen_s) >= self._after_s
            while due and viewing.unrecorded:
                if not await self._record(session_id, viewing):
                    break
            if now - viewing.seen_s > SESSION_IDLE_S and not viewing.unrecorded:
                self._viewings.forget(session_id)

    async def _record(self, session_id: UUID, viewing: Viewing) -> bool:
        """Whether it was written. Raises Unavailable."""
        polled, fetched = viewing.polled, viewing.fetched
        base = min(polled | fetched)
        now_polled = {s for s in polled if s < base + BITMAP_BITS}
        now_fetched = {s for s in fetched if s < base + BITMAP_BITS}
        viewing.polled, viewing.fetched = polled - now_polled, fetched - now_fetched
        try:
            await self._in_pool(
                self._desk.observe,
                session_id,
                base_sequence=base,
                polled=to_bitmap(base, now_polled),
                fetched_at_hub=to_bitmap(base, now_fetched),
                at_us=self._now_us(),
            )
        except BaseException as e:
            viewing.polled |= now_polled
            viewing.fetched |= now_fetched
            if not isinstance(e, Conflict):
                raise
            log.warning("observations not recorded yet", reason=str(e))
            return False
        return True
