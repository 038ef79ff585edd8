"""One node as the hub hears it: a kept connection, on which `/health` is asked for again and again.

Invariant: one question at a time; whoever asks meanwhile shares its answer. What comes back is looked at only for
whether it is an answer, and whether it is 503: so a node says that it is leaving.
"""

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

ANSWER_S: Final = 1.5
FRESH_S: Final = 0.15  # an answer is as good as a new one for so long
# How long an answer may take before the node counts as silent for whoever wants to know now: as TCP waits for an
# acknowledgement (RFC 6298), within these bounds.
LATE_S_MIN: Final = 0.25
LATE_S_MAX: Final = 0.75
MAX_HEAD_BYTES: Final = 16 * 1024
_CONTEXT: Final = ssl._create_unverified_context()  # noqa: S323  # is anybody there? nothing is told or believed


class Line:
    """For one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host, self.port = "", 0
        self.refused = False  # nobody listens there, it closes without a word, or says that it is leaving
        self.timeouts = 0  # questions in a row that were not answered
        self._asking: asyncio.Task[bool] | None = None
        self._asked_s = self._answered_s = float("-inf")
        self._round_trip_s: float | None = None
        self._variation_s = 0.0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def is_fresh(self) -> bool:
        return asyncio.get_running_loop().time() - self._answered_s < FRESH_S

    def ask(self) -> asyncio.Task[bool]:
        """Whether it answered, after `ANSWER_S` at most; the question that is under way, if there is one."""
        if self._asking is None or self._asking.done():
            self._asked_s = asyncio.get_running_loop().time()
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def answers_in_time(self) -> bool:
        asking = self.ask()
        left_s = self._asked_s + self._late_s() - asyncio.get_running_loop().time()
        await asyncio.wait({asking}, timeout=max(left_s, 0.0))
        return asking.done() and not asking.cancelled() and asking.result()

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    # --- one question

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._question()
        except TimeoutError:
            self.timeouts += 1
            return self._failed()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.refused = True  # ValueError: a name that no resolver takes, a node may say anything
            return self._failed()
        self.refused, self.timeouts = False, 0
        self._answered_s = asyncio.get_running_loop().time()
        return True

    def _failed(self) -> bool:
        self._answered_s = float("-inf")
        self._hang_up()
        return False

    async def _question(self) -> None:
        """Raises OSError and what comes of it when nobody is there."""
        parts = urlsplit(self.url)
        self.host, self.port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        request = f"HEAD {parts.path}/health HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode("ascii")
        if self._writer is not None:
            try:
                await self._exchange(request, kept=True)
                return
            except (OSError, asyncio.IncompleteReadError):  # closed in between, as it may
                self._hang_up()
        context = _CONTEXT if parts.scheme == "https" else None
        self._reader, self._writer = await asyncio.open_connection(
            self.host, self.port, ssl=context, limit=MAX_HEAD_BYTES
        )
        await self._exchange(request, kept=False)

    async def _exchange(self, request: bytes, *, kept: bool) -> None:
        assert self._reader is not None
        assert self._writer is not None
        began_s = asyncio.get_running_loop().time()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if kept:
            self._note(asyncio.get_running_loop().time() - began_s)
        status = head.split(b" ", 2)[1:2]
        if b"connection: close" in head.lower() or not head.startswith(b"HTTP/1.1"):
            self._hang_up()
        if status == [b"503"]:
            raise ConnectionAbortedError("it says that it is leaving")

    def _note(self, took_s: float) -> None:
        """As RFC 6298, 2.2 and 2.3."""
        if self._round_trip_s is None:
            self._round_trip_s, self._variation_s = took_s, took_s / 2
            return
        self._variation_s += (abs(self._round_trip_s - took_s) - self._variation_s) / 4
        self._round_trip_s += (took_s - self._round_trip_s) / 8

    def _late_s(self) -> float:
        if self._round_trip_s is None:
            return LATE_S_MAX
        return min(max(self._round_trip_s + 4 * self._variation_s, LATE_S_MIN), LATE_S_MAX)
