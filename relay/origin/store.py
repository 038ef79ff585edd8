"""The segments of one rendition, in memory.

Invariant: only segments that the ledger has recorded are ever kept here, sequences rise without a gap, and what is
kept is bounded by `retain_s` and `retain_bytes` (but never less than what the playlist lists). The segment that grows
is at the edge (`edge.py`).
"""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from ledger.events import Segment
from relay.body import Body
from relay.media.packager import Chunk, Format, Packed
from relay.origin.edge import Edge, Growing
from relay.origin.settings import OriginSettings


@dataclass(frozen=True, slots=True)
class Stored:
    segment: Segment
    body: Body
    program: (
        str  # PROGRAM-DATE-TIME and EXTINF: the lines of the playlist that stand before the segment's URI
    )
    extinf: str
    etag: bytes
    at_s: float  # loop time when it was listed
    init: bytes  # what a player reads before it; none in a transport stream
    chunks: tuple[Chunk, ...]

    def chunk(self, index: int) -> bytes | None:
        if index >= len(self.chunks):
            return None
        start = sum(c.size_bytes for c in self.chunks[:index])
        return bytes(self.body.data[start : start + self.chunks[index].size_bytes])


def seconds(duration_us: int) -> str:
    """As playlists write it."""
    whole, micro = divmod(duration_us, 1_000_000)
    return f"{whole}.{micro:06d}"


def program_tag(segment: Segment) -> str:
    """PROGRAM-DATE-TIME (RFC 8216, 4.3.2.6)."""
    at = datetime.fromtimestamp(segment.program_us // 1_000_000, UTC)
    stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{segment.program_us // 1000 % 1000:03d}Z"
    return f"#EXT-X-PROGRAM-DATE-TIME:{stamp}\n"


def init_name(init: bytes) -> str:
    """Its name in URLs: other bytes have another."""
    return hashlib.sha256(init).hexdigest()[:16]


class RenditionStore:
    """`clock`: monotonic seconds."""

    def __init__(
        self,
        rendition_id: UUID,
        format_: Format,
        first_sequence: int,
        settings: OriginSettings,
        clock: Callable[[], float],
        edge: Edge | None = None,
    ) -> None:
        self.rendition_id = rendition_id
        self.format = format_
        self.ended = False
        self.page: tuple[tuple[int, bool], list[bytes]] | None = (
            None  # the playlist as `playlist.at_hub` keeps it
        )
        self.next_sequence = first_sequence
        # Discontinuities never outnumber segments, so this start is beyond whatever an earlier process counted.
        self.discontinuity_sequence = first_sequence
        self.target_duration_s = max(1, round(settings.packager.segment_target_ms / 1000))
        self.listed: deque[Stored] = deque()
        self.sequences: list[int] = []  # of what is listed; another object after each change
        self.peak_bits_per_s = 0
        self.held_bytes = 0
        self.chunk_target_us = (
            settings.chunk_ms * 1_100
        )  # frames do not end where chunks should: a tenth more
        self._settings = settings
        self._edge = edge
        self._clock = clock
        self._kept: OrderedDict[int, Stored] = OrderedDict()
        self._changed: asyncio.Future[None] | None = None

    def get(self, sequence: int) -> Stored | None:
        return self._kept.get(sequence)

    @property
    def extension(self) -> str:
        """Of its segments' names."""
        return "ts" if self._edge is None else "m4s"

    @property
    def growing(self) -> Growing | None:
        """The segment `next_sequence`, as far as it is there."""
        return self._edge.first if self._edge is not None and not self.ended else None

    def chunk(self, sequence: int, index: int) -> bytes | None:
        stored, growing = self._kept.get(sequence), self.growing
        if stored is not None:
            return stored.chunk(index)
        if sequence == self.next_sequence and growing is not None and index < len(growing.data):
            return growing.data[index]
        return None

    def init(self, name: str) -> bytes | None:
        """By its name, while anything that needs it is there."""
        growing = self.growing
        if growing is not None and init_name(growing.init) == name:
            return growing.init
        return next((s.init for s in reversed(self._kept.values()) if init_name(s.init) == name), None)

    def reaches(self, sequence: int, index: int | None) -> bool:
        """Whether the segment, or its chunk `index`, is listed. A chunk after a segment's last is the next one's
        first (RFC 8216bis, 6.2.5.2)."""
        stored = self._kept.get(sequence)
        if index is not None and stored is not None and index >= len(stored.chunks):
            sequence, index = sequence + 1, 0
        if sequence < self.next_sequence or self.ended:
            return True
        growing = self.growing
        shown = len(growing.chunks) if growing is not None and sequence == self.next_sequence else 0
        return index is not None and index < shown

    def add(self, segment: Segment, packed: Packed) -> None:
        """List a recorded segment."""
        data = packed.data
        stored = Stored(
            segment,
            Body(data, self._settings.files),
            program_tag(segment),
            f"#EXTINF:{seconds(segment.duration_us)},\n",
            b'"' + segment.sha256[:16].hex().encode() + b'"',
            self._clock(),
            packed.init,
            packed.chunks,
        )
        self._kept[segment.sequence] = stored
        self.held_bytes += len(data)
        self.listed.append(stored)
        if len(self.listed) > self._settings.listed_segments:
            self.discontinuity_sequence += self.listed.popleft().segment.discontinuity
        self.sequences = [s.segment.sequence for s in self.listed]
        self.next_sequence = segment.sequence + 1
        # Constant as long as the encoder keeps its key frame interval. A longer one than ever seen must raise it:
        # the alternatives are a segment that breaks the promise of the playlist, or cutting the creator off.
        rounded = (segment.duration_us + 500_000) // 1_000_000
        self.target_duration_s = max(self.target_duration_s, rounded)
        self.chunk_target_us = max(self.chunk_target_us, *(c.duration_us for c in packed.chunks), 0)
        self.peak_bits_per_s = max(
            self.peak_bits_per_s, len(data) * 8_000_000 // max(segment.duration_us, 1_000_000)
        )
        self._settle()
        self._evict()
        self.notify()

    def end(self) -> None:
        """No segment will follow: ENDLIST."""
        self.ended = True
        self.notify()

    def _settle(self) -> None:
        horizon = self._clock() - self._settings.files_s
        for stored in self._kept.values():
            if stored.at_s > horizon:
                return
            stored.body.settle()

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
            self.held_bytes -= len(stored.body)

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
