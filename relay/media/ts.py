"""Frames of one segment to the bytes of one MPEG-TS segment.

Invariant: each segment starts with PAT, PMT and the key frame, and continuity counters go on from segment to segment
(RFC 8216bis, 6.2.1), so that segments joined end to end are one transport stream.

A muxer lives for one segment: nothing of a broadcast stays inside libavformat, so a damaged frame costs one segment at
most, and the closed container is not held in a reference cycle by a stream or a packet that outlives it. Frames are
packed and hashed as they come: when the last one is there, what is left to do is small however long the segment was.
"""

import hashlib
from fractions import Fraction
from typing import Final

import av
from av.packet import Packet

from relay.media.aac import SAMPLES_PER_FRAME, AacConfig, adts
from relay.media.errors import BadMedia
from relay.media.h264 import H264Config, annexb
from relay.media.packager import CLOCK, Packed

_TIME_BASE: Final = Fraction(1, CLOCK)
_PACKET: Final = 188
_WRITE_BYTES: Final = 350 * _PACKET  # packed, renumbered and hashed at a time
# AAC frames that share one PES packet: fewer, fuller packets. A player gets the first when the last is there.
_MAX_JOINED: Final = 6
_MAX_JOINED_BYTES: Final = 2_500  # libavformat starts a new PES packet beyond 2,930
_SDT_PID: Final = 0x11
# Low bytes of the PIDs in use differ (PAT 0x0000, PMT 0x1010, video 0x0102, audio 0x0103): one byte names a stream.
_OPTIONS: Final = {
    "mpegts_copyts": "1",
    "avoid_negative_ts": "disabled",
    "pat_period": "3600",
    "sdt_period": "3600",
    "flush_packets": "0",  # write when the buffer is full, not for each packet
    "mpegts_start_pid": str(0x102),
    "mpegts_pmt_start_pid": str(0x1010),
}
_PIDS: Final = (0x00, 0x10, 0x02, 0x03)
# A packet's fourth byte (two zero bits, adaptation flags, counter) fits under two bits for its stream: one table lookup
# in C then moves the counters of a whole segment.
_STREAM_BITS: Final = bytes(_PIDS.index(pid) << 6 if pid in _PIDS else 0 for pid in range(256))
_NEXT: Final = tuple(bytes((c & 0xF0) | ((c + by) & 0x0F) for c in range(64)) for by in range(16))


class _Sink:
    """Where libavformat writes to: whole packets with their counters moved, and the hash of them."""

    __slots__ = ("_begun", "_moves", "_rest", "counters", "parts", "sha256", "size")

    def __init__(self, counters: dict[int, int]) -> None:
        self.parts: list[bytes] = []
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.counters = counters  # of the packet to come, by low byte of the PID
        self._moves = b"".join(_NEXT[counters[pid]] for pid in _PIDS)
        self._begun = False
        self._rest = b""

    def write(self, data: bytes) -> int:
        piece = bytearray(self._rest + data if self._rest else data)
        over = len(piece) % _PACKET
        self._rest = bytes(piece[len(piece) - over :]) if over else b""
        if over:
            del piece[-over:]
        if not self._begun and piece:
            self._begun = True
            if int.from_bytes(piece[1:3], "big") & 0x1FFF == _SDT_PID:
                del piece[:_PACKET]  # a service name, of no use to anyone, and the PAT must come first
        if piece:
            self._take(piece)
        return len(data)

    def _take(self, piece: bytearray) -> None:
        pids = piece[2::_PACKET]
        streams = int.from_bytes(pids.translate(_STREAM_BITS), "big")
        keys = (streams | int.from_bytes(piece[3::_PACKET], "big")).to_bytes(len(pids), "big")
        piece[3::_PACKET] = keys.translate(self._moves)
        for pid in _PIDS:
            last = pids.rfind(pid)
            if last >= 0:
                self.counters[pid] = (piece[3 + last * _PACKET] + 1) & 0x0F
        done = bytes(piece)
        self.parts.append(done)
        self.sha256.update(done)
        self.size += len(done)


class TsSegment:
    """One segment while it grows. Each track's dts must rise strictly. After `BadMedia` it is of no more use."""

    def __init__(self, counters: dict[int, int], video: H264Config, audio: AacConfig | None) -> None:
        self._counters = counters
        self._sink = _Sink(dict(counters))
        self._rate = audio.sample_rate if audio is not None else 0
        self._sound: list[bytes] = []  # frames that share the next PES packet
        self._sound_dts = self._sound_bytes = 0
        self.frame_bytes = 0  # put in so far
        try:
            self._container = av.open(
                self._sink, "w", format="mpegts", options=_OPTIONS, buffer_size=_WRITE_BYTES
            )
            self._streams = [self._container.add_mux_stream("h264", width=video.width, height=video.height)]
            if audio is not None:
                self._streams.append(self._container.add_mux_stream("aac", rate=audio.sample_rate))
        except (av.FFmpegError, ValueError) as e:
            raise BadMedia(f"a segment cannot be begun: {e}") from e

    def video(self, data: bytes, dts: int, pts: int, *, key: bool) -> None:
        """One access unit in Annex B; 90 kHz. Raises BadMedia."""
        self.frame_bytes += len(data)
        self._put(0, data, dts, pts, key)

    def audio(self, data: bytes, dts: int) -> None:
        """One ADTS frame; 90 kHz. Raises BadMedia."""
        self.frame_bytes += len(data)
        count = len(self._sound)
        if count:
            follows = self._sound_dts + count * SAMPLES_PER_FRAME * CLOCK // self._rate
            full = count >= _MAX_JOINED or self._sound_bytes + len(data) > _MAX_JOINED_BYTES
            if full or not -1 <= dts - follows <= 1:
                self._flush_sound()
        if not self._sound:
            self._sound_dts, self._sound_bytes = dts, 0
        self._sound.append(data)
        self._sound_bytes += len(data)

    def finish(self, end: int) -> Packed:  # noqa: ARG002  # a transport stream has no durations
        """The segment's bytes and their SHA-256. Raises BadMedia."""
        try:
            if self._sound:
                self._flush_sound()
        finally:
            self.abandon()
        self._counters.update(self._sink.counters)
        return Packed(b"".join(self._sink.parts), self._sink.sha256.digest())

    def abandon(self) -> None:
        """Close, and let go of what libavformat holds. Raises BadMedia."""
        try:
            self._container.close()
        except (av.FFmpegError, ValueError, IndexError) as e:
            raise BadMedia(f"a segment cannot be closed: {e}") from e
        finally:
            self._streams.clear()

    def _flush_sound(self) -> None:
        data, self._sound = b"".join(self._sound), []
        self._put(1, data, self._sound_dts, self._sound_dts, False)

    def _put(self, stream: int, data: bytes, dts: int, pts: int, key: bool) -> None:
        packet = Packet(data)
        packet.stream = self._streams[stream]
        packet.time_base = _TIME_BASE
        packet.dts, packet.pts = dts, pts
        if key:
            packet.is_keyframe = True
        try:
            self._container.mux_one(packet)
        except (av.FFmpegError, ValueError, IndexError) as e:
            raise BadMedia(f"the frames of a segment cannot be put together: {e}") from e


class TsMuxer:
    """A broadcast's transport stream: the counters that go on from one segment to the next."""

    def __init__(self) -> None:
        self._counters = dict.fromkeys(_PIDS, 0)

    def picture(self, config: H264Config, data: bytes, *, key: bool) -> bytes:
        return annexb(config, data, key=key)

    def sound(self, config: AacConfig, frame: bytes) -> bytes:
        return adts(config, frame)

    def begin(
        self,
        video: H264Config,
        audio: AacConfig | None,
        *,
        start: int,  # noqa: ARG002
        discontinuity: bool,  # noqa: ARG002  # its counters go on through anything
    ) -> TsSegment:
        """The next segment; the one before is finished or abandoned. Raises BadMedia."""
        return TsSegment(self._counters, video, audio)
