"""Frames of one segment to fragmented MP4, chunk by chunk (ISO/IEC 23000-19 calls them so: one `moof`, one `mdat`).

Invariant: a segment's bytes are its chunks joined; each chunk begins with a frame, holds whole frames and is told to
the sink the moment the next one begins; sound counts on without a step while its frames follow each other.
Picture and sound share a file: a segment is one unit of credit.
"""

import hashlib
from typing import Final, Protocol

from relay.media.aac import MAX_FRAME_BYTES, SAMPLES_PER_FRAME, AacConfig
from relay.media.errors import BadMedia
from relay.media.h264 import H264Config, behind_lengths
from relay.media.mp4 import AUDIO_TRACK, NOT_SYNC, SYNC, VIDEO_TRACK, Samples, fragment, init_segment
from relay.media.packager import CLOCK, Chunk, Packed, Picture

_TICKS_PER_MS: Final = CLOCK // 1000


class ChunkSink(Protocol):
    """Who wants chunks before their segment is whole."""

    def begin(self, init: bytes, *, discontinuity: bool) -> None:
        """The next segment begins; `init` is what a player reads before it."""
        ...

    def chunk(self, data: bytes, chunk: Chunk) -> None: ...
    def finish(self) -> None:
        """The segment has no more chunks."""
        ...

    def abandon(self) -> None:
        """The segment will never be whole."""
        ...


class CmafSegment:
    """One segment while it grows. Times are 90 kHz."""

    def __init__(
        self,
        muxer: "CmafMuxer",
        *,
        start: int,
        video: bool,
        rate_hz: int,  # of the sound; 0 without
    ) -> None:
        self._muxer = muxer
        self._video, self._rate_hz = video, rate_hz
        self._chunk_start = start
        self._interval = CLOCK // 30
        self._pictures = Samples(VIDEO_TRACK, 0)
        self._sounds = Samples(AUDIO_TRACK, 0)
        self._last_dts = start  # of the newest picture
        self._last_sound = 0  # in samples
        self._independent = True
        self._pieces: list[bytes] = []
        self._chunks: list[Chunk] = []
        self._sha256 = hashlib.sha256()
        self.frame_bytes = 0

    def video(self, picture: Picture, dts: int, pts: int, *, key: bool) -> None:
        data = picture[1]
        rows = self._pictures.rows
        if rows:
            self._interval = dts - self._last_dts
            rows[-4] = self._interval
        self._close_chunk_before(dts, key=key)
        if not self._pictures.rows:
            self._pictures.decode_time = dts
        self._pictures.rows += (self._interval, len(data), SYNC if key else NOT_SYNC, pts - dts)
        self._pictures.data.append(data)
        self._last_dts = dts
        self.frame_bytes += len(data)

    def audio(self, data: bytes, dts: int) -> None:
        if not self._video:
            self._interval = SAMPLES_PER_FRAME * CLOCK // self._rate_hz
            self._close_chunk_before(dts, key=True)
        at = self._muxer.sound_time(dts, self._rate_hz)
        sounds = self._sounds
        if not sounds.rows:
            sounds.decode_time = at
        else:
            sounds.rows[-2] = max(at - self._last_sound, 1)  # 1,024 samples, or to the end of a gap
        self._last_sound = at
        sounds.rows += (SAMPLES_PER_FRAME, len(data))
        sounds.data.append(data)
        self.frame_bytes += len(data)

    def finish(self, end: int) -> Packed:
        if self._pictures.rows:
            self._pictures.rows[-4] = max(end - self._last_dts, 1)
        self._close_chunk(end)
        self._muxer.sink.finish()
        return Packed(b"".join(self._pieces), self._sha256.digest(), self._muxer.init, tuple(self._chunks))

    def abandon(self) -> None:
        self._pieces.clear()
        self._muxer.sink.abandon()

    def _close_chunk_before(self, dts: int, *, key: bool) -> None:
        """A chunk ends at the frame that is nearest to its target, whatever the frame rate."""
        started = bool(self._pictures.rows if self._video else self._sounds.rows)
        if started and dts - self._chunk_start + self._interval // 2 >= self._muxer.chunk_ticks:
            self._close_chunk(dts)
            self._chunk_start, self._independent = dts, key

    def _close_chunk(self, end: int) -> None:
        tracks = [t for t in (self._pictures, self._sounds) if t.rows]
        data = fragment(self._muxer.next_number(), tracks)
        self._pictures, self._sounds = Samples(VIDEO_TRACK, 0), Samples(AUDIO_TRACK, 0)
        chunk = Chunk(len(data), (end - self._chunk_start) * 1000 // _TICKS_PER_MS, self._independent)
        self._pieces.append(data)
        self._chunks.append(chunk)
        self._sha256.update(data)
        self._muxer.sink.chunk(data, chunk)


class CmafMuxer:
    """A stream's fragments: their numbers and the sample count of its sound go on from segment to segment."""

    def __init__(self, sink: ChunkSink, chunk_ms: int) -> None:
        self.sink = sink
        self.chunk_ticks = chunk_ms * _TICKS_PER_MS
        self.init = b""
        self._formats: tuple[H264Config | None, AacConfig | None] = (None, None)
        self._number = 0
        self._next_sound = 0

    def picture(self, config: H264Config, body: bytes, at: int, *, key: bool) -> Picture:  # noqa: ARG002
        return b"", behind_lengths(config, body, at)

    def sound(self, config: AacConfig, frame: bytes) -> bytes:  # noqa: ARG002
        if not 0 < len(frame) <= MAX_FRAME_BYTES:
            raise BadMedia("an AAC frame is malformed")
        return frame

    def begin(
        self, video: H264Config | None, audio: AacConfig | None, *, start: int, discontinuity: bool
    ) -> CmafSegment:
        if not self.init or self._formats != (video, audio):
            self.init, self._formats = init_segment(video, audio), (video, audio)
            self._next_sound = -1
        self.sink.begin(self.init, discontinuity=discontinuity)
        return CmafSegment(
            self, start=start, video=video is not None, rate_hz=audio.sample_rate if audio is not None else 0
        )

    def next_number(self) -> int:
        self._number = self._number % 0xFFFF_FFFF + 1
        return self._number

    def sound_time(self, dts: int, rate_hz: int) -> int:
        """When a frame of sound begins, in samples: right after the one before, unless it is really elsewhere."""
        at = (dts * rate_hz + CLOCK // 2) // CLOCK
        if abs(at - self._next_sound) <= 2:
            at = self._next_sound
        self._next_sound = at + SAMPLES_PER_FRAME
        return at
