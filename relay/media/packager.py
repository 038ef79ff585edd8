"""One publisher's tags to segments (for HLS) and rebased tags (for HTTP-FLV).

Invariant: a segment starts with a key frame, holds whole frames only and never exceeds the caps of `PackagerSettings`;
after anything that breaks the flow of time the next one is marked as a discontinuity. A stream that cannot be carried
raises UnsupportedMedia or BadMedia once, with words for the creator, and nothing of it is published after that.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from relay.media import aac, flv, h264
from relay.media.aac import AacConfig
from relay.media.errors import BadMedia, UnsupportedMedia
from relay.media.flv import Part
from relay.media.h264 import H264Config
from relay.media.timeline import Timeline
from relay.media.ts import CLOCK, Frame, TsMuxer

_TICKS_PER_MS: Final = CLOCK // 1000
AUDIO_ONLY_MS: Final = 5_000  # sound for this long without any picture: audio only
AUDIO_WAIT_MS: Final = 1_000  # a picture for this long without sound: video only
AUDIO_DRIFT: Final = CLOCK * 45 // 1000  # sample count and timestamps may differ by this before the latter win
MAX_DAMAGED: Final = 50  # frames between two good segments


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagerSettings:
    segment_target_ms: int = 2_000
    segment_max_ms: int = 12_000  # x264's default of 250 frames between key frames is 10.4 s at 24 fps
    segment_max_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Format:
    """What a player must know before it starts."""

    video: H264Config
    audio: AacConfig | None

    @property
    def codecs(self) -> str:
        return self.video.codec if self.audio is None else f"{self.video.codec},{self.audio.codec}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A finished segment that has no sequence yet."""

    data: bytes
    sha256: bytes
    duration_us: int
    program_us: int  # Unix microseconds at its first frame
    discontinuity: bool


class TagSink(Protocol):
    """Where rebased FLV tags go."""

    def header(self, kind: int, body: bytes) -> None:
        """A codec configuration, in force from here on."""
        ...

    def frame(self, tag: bytes, *, key: bool) -> None: ...


class Packager:
    """`on_start` is called once, at the first key frame; `on_cut` for each segment; both before `push` returns."""

    def __init__(
        self,
        settings: PackagerSettings,
        now_us: Callable[[], int],
        timeline: Timeline,
        muxer: TsMuxer,
        tags: TagSink,
        on_start: Callable[[Format], None],
        on_cut: Callable[[Cut, Format], None],
    ) -> None:
        self._settings = settings
        self._now_us = now_us
        self._timeline = timeline
        self._muxer = muxer
        self._tags = tags
        self._on_start = on_start
        self._on_cut = on_cut
        self._video: H264Config | None = None
        self._audio: AacConfig | None = None
        self._video_header = self._audio_header = b""
        self._format: Format | None = None  # in force since the first key frame
        self._expects_audio: bool | None = None
        self._frames: list[Frame] = []
        self._bytes = 0
        self._start = 0  # dts of the segment's first frame
        self._last_video = 0
        self._interval = STEP = CLOCK // 30  # noqa: N806, F841
        self._waiting_since: int | None = None  # out time, ms, of the first frame dropped for want of a key frame
        self._sound_since: int | None = None
        self._discontinuity = False
        self._program = (0, 0)  # (Unix microseconds, dts) of the last anchor
        self._audio_anchor = self._audio_count = 0
        self._audio_last = -1
        self._damaged = 0
        timeline.restart()
