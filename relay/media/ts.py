"""Frames of one segment to the bytes of one MPEG-TS segment.

Invariant: each segment starts with PAT, PMT and the key frame, and continuity counters go on from segment to segment
(RFC 8216bis, 6.2.1), so that segments joined end to end are one transport stream.

A muxer lives for one call: nothing of a broadcast stays inside libavformat, so a damaged frame costs one segment at
most, and the closed container is not held in a reference cycle by a stream or a packet that outlives it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
from av.packet import Packet

from relay.media.aac import AacConfig
from relay.media.errors import BadMedia
from relay.media.h264 import H264Config

CLOCK: Final = 90_000
_TIME_BASE: Final = Fraction(1, CLOCK)
_PACKET: Final = 188
_SDT_PID: Final = 0x11
# Low bytes of the PIDs in use differ (PAT 0x0000, PMT 0x1010, video 0x0102, audio 0x0103): one byte names a stream.
_OPTIONS: Final = {
    "mpegts_copyts": "1",
    "avoid_negative_ts": "disabled",
    "pat_period": "3600",
    "sdt_period": "3600",
    "mpegts_start_pid": str(0x102),
    "mpegts_pmt_start_pid": str(0x1010),
}
_PIDS: Final = (0x00, 0x10, 0x02, 0x03)
# A packet's fourth byte (two zero bits, adaptation flags, counter) fits under two bits for its stream: one table lookup
# in C then moves the counters of a whole segment.
_STREAM_BITS: Final = bytes(_PIDS.index(pid) << 6 if pid in _PIDS else 0 for pid in range(256))
_NEXT: Final = tuple(bytes((c & 0xF0) | ((c + by) & 0x0F) for c in range(64)) for by in range(16))


@dataclass(frozen=True, slots=True)
class Frame:
    """One access unit, ready for TS: Annex B or ADTS."""

    video: bool
    key: bool
    dts: int  # 90 kHz
    pts: int  # 90 kHz
    data: bytes


class _Sink:
    """Where libavformat writes to."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(data)
        return len(data)


class TsMuxer:
    def __init__(self) -> None:
        self._counters = dict.fromkeys(_PIDS, 0)

    def mux(self, frames: Sequence[Frame], video: H264Config, audio: AacConfig | None) -> bytes:
        """The segment's bytes. `frames` in order of arrival, each stream's dts strictly rising. Raises BadMedia."""
        sink = _Sink()
        try:
            container = av.open(sink, "w", format="mpegts", options=_OPTIONS, buffer_size=1 << 17)
            try:
                streams = [container.add_mux_stream("h264", width=video.width, height=video.height)]
                if audio is not None:
                    streams.append(container.add_mux_stream("aac", rate=audio.sample_rate))
                for frame in frames:
                    packet = Packet(frame.data)
                    packet.stream = streams[0 if frame.video else 1]
                    packet.time_base = _TIME_BASE
                    packet.dts, packet.pts = frame.dts, frame.pts
                    packet.is_keyframe = frame.key
                    container.mux_one(packet)
            finally:
                container.close()
        except (av.FFmpegError, ValueError, IndexError) as e:
            raise BadMedia(f"the frames of a segment cannot be put together: {e}") from e
        return self._continue_counters(bytearray().join(sink.parts))

    def _continue_counters(self, data: bytearray) -> bytes:
        if len(data) >= _PACKET and int.from_bytes(data[1:3], "big") & 0x1FFF == _SDT_PID:
            del data[:_PACKET]  # a service name, of no use to anyone, and the PAT must come first
        pids, counters = data[2::_PACKET], data[3::_PACKET]
        streams = int.from_bytes(pids.translate(_STREAM_BITS), "big")
        keys = (streams | int.from_bytes(counters, "big")).to_bytes(len(pids), "big")
        data[3::_PACKET] = keys.translate(b"".join(_NEXT[self._counters[pid]] for pid in _PIDS))
        for pid in _PIDS:
            last = pids.rfind(pid)
            if last >= 0:
                self._counters[pid] = (data[3 + last * _PACKET] + 1) & 0x0F
        return bytes(data)
