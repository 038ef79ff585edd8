"""One publisher's tags to segments (for HLS) and rebased tags (for HTTP-FLV).

Invariant: a segment starts with a key frame (any frame where there is only sound), holds whole frames only and never
exceeds the caps of `PackagerSettings`; after anything that breaks the flow of time the next one is marked as a
discontinuity. A stream that cannot be carried raises UnsupportedMedia or BadMedia once, with words for the creator, and
nothing of it is published after that.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from relay.media import aac, flv, h264
from relay.media.aac import AacConfig
from relay.media.errors import BadMedia, UnsupportedMedia
from relay.media.h264 import H264Config
from relay.media.timeline import Timeline

CLOCK: Final = 90_000  # Hz, of all times that go to a container
_TICKS_PER_MS: Final = CLOCK // 1000
AUDIO_ONLY_MS: Final = 5_000  # sound for this long without any picture: sound only
AUDIO_WAIT_MS: Final = 1_000  # a picture for this long without sound: video only
AUDIO_DRIFT: Final = (
    CLOCK * 45 // 1000
)  # sample count and timestamps may differ by this before the latter win
_OF_A_PICTURE: Final = frozenset({"videocodecid", "videodatarate", "width", "height", "framerate"})
MAX_COMPOSITION_MS: Final = 5_000
MAX_DAMAGED: Final = 50  # frames between two good segments
_FRAME_TICKS_HZ: Final = aac.SAMPLES_PER_FRAME * CLOCK
_FRAMES: Final = (flv.KEY_FRAME, flv.INTER_FRAME)
_KEY: Final = flv.KEY_FRAME[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagerSettings:
    segment_target_ms: int = 2_000  # a key frame from three quarters of this on ends the segment, see _is_due
    segment_max_ms: int = 12_000  # x264's default of 250 frames between key frames is 10.4 s at 24 fps
    segment_max_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Format:
    """What a player must know before it starts. One of the two is there."""

    video: H264Config | None
    audio: AacConfig | None

    @property
    def codecs(self) -> str:
        return ",".join(track.codec for track in (self.video, self.audio) if track is not None)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a segment that can be sent before the segment is whole (a CMAF chunk, an HLS partial segment)."""

    size_bytes: int
    duration_us: int
    independent: bool  # begins with a key frame


@dataclass(frozen=True, slots=True)
class Packed:
    """A segment as its container made it."""

    data: bytes
    sha256: bytes
    init: bytes = b""  # what a player reads before it (EXT-X-MAP); none in a transport stream
    chunks: tuple[Chunk, ...] = ()  # in order, without gaps, together `data`; or none


@dataclass(frozen=True, slots=True)
class Cut:
    """A finished segment that has no sequence yet."""

    packed: Packed
    duration_us: int
    program_us: int  # Unix microseconds at its first frame
    discontinuity: bool


# A frame as a container carries it, in two pieces: so the second may be a part of what the encoder sent.
Picture: TypeAlias = tuple[bytes, bytes | memoryview]


class SegmentWriter(Protocol):
    """One segment while it grows. Times count at `CLOCK`, each track's dts rises strictly. After BadMedia it is of no
    more use, and `abandon` is all that may follow."""

    frame_bytes: int  # put in so far

    def video(self, picture: Picture, dts: int, pts: int, *, key: bool) -> None:
        """A frame as `Muxer.picture` made it. Raises BadMedia."""
        ...

    def audio(self, data: bytes, dts: int) -> None:
        """A frame as `Muxer.sound` made it. Raises BadMedia."""
        ...

    def finish(self, end: int) -> Packed:
        """Nothing follows; `end` is when its last frame is over. Raises BadMedia."""
        ...

    def abandon(self) -> None:
        """Let go of what is there. Raises BadMedia."""
        ...


class Muxer(Protocol):
    """A container: MPEG-TS (`ts.py`). Lives as long as a stream's timeline."""

    def picture(self, config: H264Config, body: bytes, at: int, *, key: bool) -> Picture:
        """The frame of length-prefixed NAL units from `at` on as this container carries it. Raises BadMedia."""
        ...

    def sound(self, config: AacConfig, frame: bytes) -> bytes:
        """A raw AAC frame as this container carries it. Raises BadMedia."""
        ...

    def begin(
        self, video: H264Config | None, audio: AacConfig | None, *, start: int, discontinuity: bool
    ) -> SegmentWriter:
        """The next segment; the one before is finished or abandoned. Raises BadMedia."""
        ...


class TagSink(Protocol):
    """Where rebased FLV tags go."""

    def header(self, kind: int, body: bytes, at_ms: int) -> None:
        """A codec configuration, in force from `at_ms` on."""
        ...

    def frame(self, kind: int, at_ms: int, body: bytes, *, key: bool) -> None: ...


class Packager:
    """`on_start` is called once, at the first key frame; `on_cut` for each segment; both before `push` returns."""

    def __init__(
        self,
        settings: PackagerSettings,
        now_us: Callable[[], int],
        timeline: Timeline,
        muxer: Muxer,
        tags: TagSink,
        on_start: Callable[[Format], None],
        on_cut: Callable[[Cut, Format], None],
    ) -> None:
        self._settings = settings
        self._max_ticks = settings.segment_max_ms * _TICKS_PER_MS
        self._max_bytes = settings.segment_max_bytes
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
        self._expects_video: bool | None = None
        self._segment: SegmentWriter | None = None  # that grows
        self._start = 0  # dts of the segment's first frame
        self._last_video = 0
        self._interval = CLOCK // 30
        self._waiting_since: int | None = (
            None  # out time, ms, of the first frame dropped for want of a key frame
        )
        self._sound_since: int | None = None
        self._discontinuity = False
        self._program = (0, 0)  # (Unix microseconds, dts) of the last anchor
        self._audio_anchor = self._audio_count = 0
        self._audio_last = -1
        self._damaged = 0
        timeline.restart()

    # --- in ------------------------------------------------------------------------------------------------------

    def metadata(self, values: Mapping[str, object]) -> None:
        """onMetaData: whether sound, and a picture, is to be expected."""
        sound, picture = values.get("hasAudio"), values.get("hasVideo")
        self._expects_audio = sound if isinstance(sound, bool) else "audiocodecid" in values
        # Some encoders say little: only who tells of sound and of nothing that a picture has, has none.
        told = "audiocodecid" not in values or not _OF_A_PICTURE.isdisjoint(values)
        self._expects_video = picture if isinstance(picture, bool) else told

    def video(self, timestamp: int, body: bytes) -> None:
        """One FLV video tag. Raises UnsupportedMedia or BadMedia."""
        if (
            body.startswith(_FRAMES) and len(body) >= flv.VIDEO_HEAD_BYTES
        ):  # nearly all, and no need to look closer
            later_ms = int.from_bytes(body[2 : flv.VIDEO_HEAD_BYTES], "big", signed=True)
            self._video_frame(timestamp, body[0] == _KEY, later_ms, body)
            return
        part, key, later_ms, data = flv.parse_video(body)
        if part is flv.FRAME:
            self._video_frame(timestamp, key, later_ms, body)
        elif part is flv.HEADER:
            self._video_config(data, body)

    def audio(self, timestamp: int, body: bytes) -> None:
        """One FLV audio tag. Raises UnsupportedMedia or BadMedia."""
        if body.startswith(flv.SOUND_FRAME) and len(body) > 2:
            self._audio_frame(timestamp, body[2:], body)
            return
        part, data = flv.parse_audio(body)
        if part is flv.FRAME:
            self._audio_frame(timestamp, data, body)
        elif part is flv.HEADER:
            self._audio_config(data, body)

    def finish(self) -> None:
        """The publisher is gone: what is there becomes the last segment."""
        self._cut(self._end)

    @property
    def _end(self) -> int:
        """When the last frame is over."""
        if self._sound_alone and self._audio is not None:
            return self._audio_last + _FRAME_TICKS_HZ // self._audio.sample_rate
        return self._last_video + self._interval

    @property
    def _sound_alone(self) -> bool:
        return self._format is not None and self._format.video is None

    # --- configurations --------------------------------------------------------------------------------------------

    def _video_config(self, data: bytes, body: bytes) -> None:
        config = h264.parse_config(data)
        if config == self._video or self._sound_alone:
            return  # encoders repeat it; and what began as sound stays so
        self._video, self._video_header = config, body
        self._changed_config()

    def _audio_config(self, data: bytes, body: bytes) -> None:
        config = aac.parse_config(data)
        if config == self._audio or (self._format is not None and self._format.audio is None):
            return
        self._changed_config()
        self._audio, self._audio_header = config, body
        self._audio_count = 0
        self._audio_last = -1

    def _changed_config(self) -> None:
        if self._format is not None:
            self._break()

    # --- frames --------------------------------------------------------------------------------------------------

    def _break(self) -> None:
        """The flow of time ends here: what is there becomes a segment, the next key frame starts anew."""
        self._cut(self._end)
        self._discontinuity = self._format is not None
        self._audio_count = 0
        self._waiting_since = None

    def _video_frame(self, timestamp: int, key: bool, composition_ms: int, body: bytes) -> None:
        if self._video is None:
            if self._sound_alone:
                return
            raise BadMedia("the video has no H.264 sequence header; restart the encoder")
        out, jumped = self._timeline.place(timestamp, video=True)
        if jumped:
            self._break()
        dts = out * _TICKS_PER_MS
        try:
            picture = self._muxer.picture(self._video, body, flv.VIDEO_HEAD_BYTES, key=key)
        except BadMedia:
            self._damage()
            return
        if key and self._segment is not None and self._is_due(dts - self._start):
            self._cut(dts)
        segment = self._segment
        if segment is None:
            if not (key and self._begin(out, dts)):
                self._wait_for_key(out)
                return
            segment = self._segment
            assert segment is not None
        else:
            if dts - self._start > self._max_ticks or segment.frame_bytes > self._max_bytes:
                raise self._no_key_frames()
            if dts > self._last_video:
                interval = dts - self._last_video
                self._interval = interval if interval < CLOCK else CLOCK
        self._last_video = pts = dts
        if composition_ms > 0:
            pts += min(composition_ms, MAX_COMPOSITION_MS) * _TICKS_PER_MS
        try:
            segment.video(picture, dts, pts, key=key)
        except BadMedia:
            self._drop_segment()
            return
        self._tags.frame(flv.VIDEO, out, body, key=key)

    def _is_due(self, elapsed_ticks: int) -> bool:
        """Timestamps are whole milliseconds, so key frames two seconds apart are now and then 1,999 ms apart: to wait
        for the next one would double the segment, and the target duration and every player's delay with it."""
        return 4 * elapsed_ticks >= 3 * self._settings.segment_target_ms * _TICKS_PER_MS

    def _audio_frame(self, timestamp: int, data: bytes, body: bytes) -> None:
        if self._audio is None:
            if self._format is not None:
                return  # began as video only
            raise BadMedia("the audio has no AAC sequence header; restart the encoder")
        out, jumped = self._timeline.place(timestamp, video=False)
        if jumped:
            self._break()
        alone = self._video is None
        if alone and self._format is None:
            if self._sound_since is None:
                self._sound_since = out
            if self._expects_video is not False and out - self._sound_since <= AUDIO_ONLY_MS:
                return  # a picture may still come
        elif not alone and (self._segment is None or self._format is None or self._format.audio is None):
            return
        try:
            framed = self._muxer.sound(self._audio, data)
        except BadMedia:
            self._damage()
            return
        dts = self._audio_time(out * _TICKS_PER_MS, self._audio)
        begins = alone and self._sound_begins(out, dts)
        segment = self._segment
        assert segment is not None
        try:
            segment.audio(framed, dts)
        except BadMedia:
            self._drop_segment()
            return
        if dts - self._start > self._max_ticks or segment.frame_bytes > self._max_bytes:
            raise self._no_key_frames()
        self._tags.frame(flv.AUDIO, out, body, key=begins)

    def _sound_begins(self, out: int, dts: int) -> bool:
        """Where there is no picture, any frame may begin a segment: whether this one does."""
        target = self._settings.segment_target_ms * _TICKS_PER_MS
        if self._segment is not None and dts - self._start >= target:
            self._cut(dts)
        if self._segment is not None:
            return False
        self._open(out, dts)
        return True

    def _audio_time(self, stamped: int, config: AacConfig) -> int:
        """Timestamps have whole milliseconds and AAC frames do not: count samples, and follow only real changes."""
        count = self._audio_count
        expected = self._audio_anchor + count * _FRAME_TICKS_HZ // config.sample_rate
        if not count or not -AUDIO_DRIFT <= stamped - expected <= AUDIO_DRIFT:
            self._audio_anchor = expected = max(stamped, self._audio_last + 1)
            count = 0
        self._audio_count = count + 1
        self._audio_last = expected
        return expected

    def _drop_segment(self) -> None:
        """What has come of it so far cannot be put together."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with contextlib.suppress(BadMedia):
                segment.abandon()
        self._damage()

    def _damage(self) -> None:
        self._damaged += 1
        if self._damaged > MAX_DAMAGED:
            raise BadMedia("too many frames are damaged; restart the encoder")
        self._break()

    # --- segments ------------------------------------------------------------------------------------------------

    def _begin(self, out: int, dts: int) -> bool:
        """A key frame where no segment is open. False while it is not known whether there will be sound."""
        if self._format is None and self._audio is None and self._expects_audio is not False:
            waited = out - self._waiting_since if self._waiting_since is not None else 0
            if waited < AUDIO_WAIT_MS:
                return False
        self._open(out, dts)
        return True

    def _open(self, out: int, dts: int) -> None:
        first = self._format is None
        format_ = Format(self._video, self._audio)
        if format_ != self._format:
            self._format = format_
            if self._video is not None:
                self._tags.header(flv.VIDEO, self._video_header, out)
            if self._audio is not None:
                self._tags.header(flv.AUDIO, self._audio_header, out)
        if first:
            self._on_start(format_)
        if first or self._discontinuity:
            self._program = (self._now_us(), dts)
        self._start = dts
        self._waiting_since = None
        self._segment = self._muxer.begin(
            self._video, self._audio, start=dts, discontinuity=self._discontinuity
        )

    def _wait_for_key(self, out: int) -> None:
        if self._waiting_since is None:
            self._waiting_since = out
        elif out - self._waiting_since > self._settings.segment_max_ms:
            raise self._no_key_frames()

    def _no_key_frames(self) -> UnsupportedMedia:
        if self._segment is not None:
            with contextlib.suppress(BadMedia):
                self._segment.abandon()
            self._segment = None
        return UnsupportedMedia(
            f"no key frame for {self._settings.segment_max_ms // 1000} s, or far too much data between two; "
            "set the key frame interval to 2 s"
        )

    def _cut(self, end: int) -> None:
        segment, self._segment = self._segment, None
        if segment is None or self._format is None:
            return
        try:
            packed = segment.finish(end)
        except BadMedia:
            self._damage()
            return
        at_us, at = self._program
        cut = Cut(
            packed=packed,
            duration_us=(end - self._start) * 1000 // _TICKS_PER_MS,
            program_us=at_us + (self._start - at) * 1000 // _TICKS_PER_MS,
            discontinuity=self._discontinuity,
        )
        self._discontinuity = False
        self._damaged = 0
        self._on_cut(cut, self._format)
