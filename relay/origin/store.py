"""The segments of one rendition, in memory.

Invariant: only segments that the ledger has recorded are ever here, sequences rise without a gap, and what is kept is
bounded by `retain_s` and `retain_bytes` (but never less than what the playlist lists).
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from ledger.events import Segment
from relay.media.packager import Format
from relay.origin.settings import OriginSettings


@dataclass(frozen=True, slots=True)
class Stored:
    segment: Segment
    data: bytes
    tags: str  # the lines of the playlist that stand before the segment's URI
    etag: bytes
    at_s: float  # loop time when it was listed


def playlist_tags(segment: Segment) -> str:
    """DISCONTINUITY, PROGRAM-DATE-TIME and EXTINF (RFC 8216, 4.3.2)."""
    at = datetime.fromtimestamp(segment.program_us // 1_000_000, UTC)
    stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{segment.program_us // 1000 % 1000:03d}Z"
    broken = "#EXT-X-DISCONTINUITY\n" if segment.discontinuity else ""
    seconds, micro = divmod(segment.duration_us, 1_000_000)
    return f"{broken}#EXT-X-PROGRAM-DATE-TIME:{stamp}\n#EXTINF:{seconds}.{micro:06d},\n"


class RenditionStore:
    """`clock`: monotonic seconds."""

    def __init__(
        self,
        rendition_id: UUID,
        format_: Format,
        first_sequence: int,
        settings: OriginSettings,
        clock: Callable[[], float],
    ) -> None:
        self.rendition_id = rendition_id
        self.format = format_
        self.ended = False
        self.next_sequence = first_sequence
        # Discontinuities never outnumber segments, so this start is beyond whatever an earlier process counted.
        self.discontinuity_sequence = first_sequence
        self.target_duration_s = max(1, round(settings.packager.segment_target_ms / 1000))
        self.listed: deque[Stored] = deque()
        self.peak_bits_per_s = 0
        self.held_bytes = 0
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[int, Stored] = OrderedDict()
        self._changed: asyncio.Future[None] | None = None

    def get(self, sequence: int) -> Stored | None:
        return self._kept.get(sequence)

    def add(self, segment: Segment, data: bytes) -> None:
        """List a recorded segment."""
        stored = Stored(
            segment,
            data,
            playlist_tags(segment),
            b'"' + segment.sha256[:16].hex().encode() + b'"',
            self._clock(),
        )
        self._kept[segment.sequence] = stored
        self.held_bytes += len(data)
        self.listed.append(stored)
        if len(self.listed) > self._settings.listed_segments:
            self.discontinuity_sequence += self.listed.popleft().segment.discontinuity
        self.next_sequence = segment.sequence + 1
        # Constant as long as the encoder keeps its key frame interval. A longer one than ever seen must raise it:
        # the alternatives are a segment that breaks the promise of the playlist, or cutting the creator off.
        rounded = (segment.duration_us + 500_000) // 1_000_000
        self.target_duration_s = max(self.target_duration_s, rounded)
        self.peak_bits_per_s = max(
            self.peak_bits_per_s, len(data) * 8_000_000 // max(segment.duration_us, 1_000_000)
        )
        self._evict()
        self.notify()

    def end(self) -> None:
        """No segment will follow: ENDLIST."""
        self.ended = True
        self.notify()

    def _evict(self) -> None:
        oldest_listed = self.listed[0].segment.sequence
        horizon = self._clock() - self._settings.retain_s
        while self._kept:
            sequence, stored = next(iter(self._kept.items()))
            if sequence >= oldest_listed:
                return
            if stored.at_s > horizon and self.held_bytes <= self._settings.retain_bytes:
                return
            del self._kept[sequence]
            self.held_bytes -= len(stored.data)

    def notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    async def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Until `ready()` holds; False when it does not within `timeout_s`."""
        deadline = self._clock() + timeout_s
        while not ready():
            left = deadline - self._clock()
            if left <= 0:
                return False
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._changed], timeout=left)
        return True

    async def wait_for_segment(self, sequence: int, timeout_s: float) -> Stored | None:
        """The segment, waiting for it when it is one of the next two to appear."""
        if self.next_sequence <= sequence < self.next_sequence + 2:
            await self.wait(lambda: self.next_sequence > sequence or self.ended, timeout_s)
        return self._kept.get(sequence)
