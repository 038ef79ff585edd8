"""Frames of one segment to the bytes of one MPEG-TS segment (ISO/IEC 13818-1): those that libavformat would make of
them, with the program tables at its start and a PCR that is each picture's dts.

Invariants: each segment starts with PAT, PMT and the key frame (or sound, where there is no picture); continuity
counters go on from segment to segment (RFC 8216bis, 6.2.1), so that segments joined end to end are one transport
stream, and a segment that is abandoned leaves them as they were. Frames are packed and hashed as they come: when the
last one is there, what is left to do is small however long the segment was.
"""

import hashlib
from typing import Final

import numpy as np

from relay.media.aac import SAMPLES_PER_FRAME, AacConfig, adts
from relay.media.h264 import H264Config, annexb_pieces
from relay.media.packager import CLOCK, Packed, Picture

_PACKET: Final = 188
_BODY: Final = _PACKET - 4
_PAT, _PMT, _VIDEO, _AUDIO = _PIDS = (0x0000, 0x1010, 0x0102, 0x0103)
_H264, _AAC = 0x1B, 0x0F  # stream types (table 2-34)
_ROW: Final = np.dtype([("head", "V4"), ("body", f"V{_BODY}")])
_LAID_OUT: Final = 690  # packets at a time, just under 128 KiB
_WRAP: Final = (1 << 33) - 1
_PES: Final = b"\0\0\1\xe0\0\0\x80"  # of a picture: its length is not said (2.4.3.6)
# AAC frames that share one PES packet: fewer, fuller packets. A player gets the first when the last is there.
_MAX_JOINED: Final = 6
_MAX_JOINED_ALONE: Final = (
    4  # 96 ms at 44.1 kHz: without a picture the clock is here, and due every 100 ms (2.7.2)
)
_MAX_JOINED_BYTES: Final = 2_500
_FRAME_TICKS_HZ: Final = SAMPLES_PER_FRAME * CLOCK


# --- packets (2.4.3) --------------------------------------------------------------------------------------------------

_STARTS, _ADAPTS = 0x40_00_00, 0x20  # flags of a packet's head: a unit starts, an adaptation field is there


def _heads(pid: int, flags: int) -> tuple[bytes, ...]:
    """By counter."""
    return tuple((0x47_00_00_10 | flags | pid << 8 | counter).to_bytes(4, "big") for counter in range(16))


_RUN_PACKETS: Final = 1024  # whole turns of the counter


class _Pid:
    """Heads of packets with one PID, each by the counter or from it on."""

    __slots__ = ("first", "first_adapts", "last", "pid", "run")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.run = b"".join(_heads(pid, 0)) * (_RUN_PACKETS // 16)
        self.first, self.first_adapts = _heads(pid, _STARTS), _heads(pid, _STARTS | _ADAPTS)
        self.last = _heads(pid, _ADAPTS)  # of several, with stuffing


_PATS, _PMTS, _PICTURES, _SOUNDS = map(_Pid, _PIDS)
# An adaptation field of so many bytes that says nothing.
_STUFFING: Final = (b"", b"\0", *(bytes((size - 1, 0)) + b"\xff" * (size - 2) for size in range(2, _BODY)))


class _Packets:
    """Packets of all PIDs in their order: heads and bodies are gathered, then laid out and hashed many at a time."""

    __slots__ = ("_bodies", "_count", "_heads", "counters", "parts", "sha256")

    def __init__(self, counters: dict[int, int]) -> None:
        self.counters = counters  # of the packet to come, by PID
        self.parts: list[memoryview] = []
        self.sha256 = hashlib.sha256()
        self._heads: list[bytes] = []
        self._bodies: list[bytes | memoryview] = []
        self._count = 0

    def put(self, pid: _Pid, adaptation: bytes, header: bytes, data: bytes | memoryview) -> None:
        """One unit, `header` and `data`: `adaptation` is in its first packet, stuffing in its last."""
        first = self.counters[pid.pid]
        data_bytes = len(data)
        size = len(adaptation) + len(header) + data_bytes
        count = (size + _BODY - 1) // _BODY
        room = count * _BODY - size
        if count == 1 and room:
            if adaptation:
                adaptation = bytes((adaptation[0] + room,)) + adaptation[1:] + b"\xff" * room
            else:
                adaptation = _STUFFING[room]
            room = 0
        last = first + count - 1
        run = pid.run if last < _RUN_PACKETS else pid.run * (last // _RUN_PACKETS + 1)
        head = pid.first_adapts[first] if adaptation else pid.first[first]
        if room:
            cut = data_bytes + room - _BODY
            if cut < 0:  # so long a header that the last packet begins within it
                cut, header, data = cut + len(header), b"", header + data
            self._heads += (head, run[4 * first + 4 : 4 * last], pid.last[last & 0x0F])
            self._bodies += (adaptation + header, data[:cut], _STUFFING[room], data[cut:])
        else:
            self._heads += (head, run[4 * first + 4 : 4 * last + 4])
            self._bodies += (adaptation + header, data)
        self.counters[pid.pid] = (last + 1) & 0x0F
        self._count = count = self._count + count
        if count >= _LAID_OUT:
            self._lay_out()

    def finish(self) -> bytes:
        if self._count:
            self._lay_out()
        return b"".join(self.parts)

    def _lay_out(self) -> None:
        packets = np.empty(self._count * _PACKET, np.uint8).data
        rows = np.ndarray(self._count, _ROW, packets)  # `view` would have Python look whether it may
        rows["head"] = np.frombuffer(b"".join(self._heads), _ROW["head"])
        rows["body"] = np.frombuffer(b"".join(self._bodies), _ROW["body"])
        self._heads.clear()
        self._bodies.clear()
        self._count = 0
        self.sha256.update(packets)
        self.parts.append(packets)


def _stamp(mark: int, clock: int) -> int:
    """A PTS or DTS (2.4.3.6): 33 bits in five bytes."""
    return (
        mark << 36
        | (clock & 0x1C0000000) << 3
        | (clock & 0x3FFF8000) << 2
        | (clock & 0x7FFF) << 1
        | 0x100010001
    )


def _clock(dts: int, *, random_access: bool) -> bytes:
    """An adaptation field of 7 bytes with a PCR: the base in 33 bits, 6 reserved ones, no extension (2.4.3.5)."""
    return ((0x0750 if random_access else 0x0710) << 48 | dts << 15 | 0x7E00).to_bytes(8, "big")


# --- program tables (2.4.4) -------------------------------------------------------------------------------------------


def _crc(section: bytes) -> int:
    """CRC-32/MPEG-2 (annex A)."""
    crc = 0xFFFFFFFF
    for byte in section:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def _table(table_id: int, fields: bytes) -> bytes:
    """A packet's body: the section of program or stream 1, version 0, and padding."""
    size = len(fields) + 9
    section = bytes((table_id, 0xB0, size)) + b"\0\1\xc1\0\0" + fields
    section += _crc(section).to_bytes(4, "big")
    return (b"\0" + section).ljust(_BODY, b"\xff")


def _pid(flags: int, pid: int) -> bytes:
    return (flags << 13 | pid).to_bytes(2, "big")


_PAT_BODY: Final = _table(0, b"\0\1" + _pid(7, _PMT))


def _pmt_body(*, picture: bool, sound: bool) -> bytes:
    """The clock (PCR) is in the packets of the picture, or else of the sound."""
    fields = _pid(7, _VIDEO if picture else _AUDIO) + b"\xf0\0"
    if picture:
        fields += bytes((_H264,)) + _pid(7, _VIDEO) + b"\xf0\0"
    if sound:
        fields += bytes((_AAC,)) + _pid(7, _AUDIO) + b"\xf0\0"
    return _table(2, fields)


_PMT_BODIES: Final = {
    (picture, sound): _pmt_body(picture=picture, sound=sound)
    for picture, sound in ((True, False), (True, True), (False, True))
}


# --- segments ---------------------------------------------------------------------------------------------------------


class TsSegment:
    """relay.media.packager.SegmentWriter. `counters`: of the packet to come, by PID."""

    def __init__(self, counters: dict[int, int], *, picture: bool, sample_rate: int) -> None:
        """`sample_rate` 0: there is no sound."""
        self._last = counters
        self._packets = _Packets(dict(counters))
        self._rate = sample_rate
        self._sound: list[bytes] = []  # frames that share the next PES packet
        self._sound_dts = self._sound_bytes = 0
        self.frame_bytes = 0
        self._packets.put(_PATS, b"", b"", _PAT_BODY)
        self._packets.put(_PMTS, b"", b"", _PMT_BODIES[picture, sample_rate > 0])
        self._picture = picture
        self._max_joined = _MAX_JOINED if picture else _MAX_JOINED_ALONE

    def video(self, picture: Picture, dts: int, pts: int, *, key: bool) -> None:
        before, data = picture
        self.frame_bytes += len(before) + len(data)
        dts, pts = dts & _WRAP, pts & _WRAP
        if pts == dts:
            stamps = b"\x80\x05" + _stamp(2, pts).to_bytes(5, "big")
        else:
            stamps = b"\xc0\x0a" + (_stamp(3, pts) << 40 | _stamp(1, dts)).to_bytes(10, "big")
        self._packets.put(_PICTURES, _clock(dts, random_access=key), _PES + stamps + before, data)

    def audio(self, data: bytes, dts: int) -> None:
        size, sound = len(data), self._sound
        self.frame_bytes += size
        count = len(sound)
        if count:
            off = dts - self._sound_dts - count * _FRAME_TICKS_HZ // self._rate
            total = self._sound_bytes + size
            if count >= self._max_joined or total > _MAX_JOINED_BYTES or not -1 <= off <= 1:
                self._flush_sound()
                count = 0
        if count:
            self._sound_bytes = total
        else:
            self._sound_dts, self._sound_bytes = dts, size
        sound.append(data)

    def finish(self, end: int) -> Packed:  # noqa: ARG002  # a transport stream has no durations
        if self._sound:
            self._flush_sound()
        data = self._packets.finish()
        self._last.update(self._packets.counters)
        return Packed(data, self._packets.sha256.digest())

    def abandon(self) -> None:
        self._packets.parts.clear()

    def _flush_sound(self) -> None:
        size = (self._sound_bytes + 8).to_bytes(2, "big")
        dts = self._sound_dts & _WRAP
        head = b"\0\0\1\xc0" + size + b"\x80\x80\x05" + _stamp(2, dts).to_bytes(5, "big")
        adaptation = b"" if self._picture else _clock(dts, random_access=True)
        self._packets.put(_SOUNDS, adaptation, head, b"".join(self._sound))
        self._sound.clear()


class TsMuxer:
    """A broadcast's transport stream: the counters that go on from one segment to the next."""

    picture = staticmethod(annexb_pieces)
    sound = staticmethod(adts)

    def __init__(self) -> None:
        self._counters = dict.fromkeys(_PIDS, 0)

    def begin(
        self,
        video: H264Config | None,
        audio: AacConfig | None,
        *,
        start: int,  # noqa: ARG002
        discontinuity: bool,  # noqa: ARG002  # the counters go on through anything
    ) -> TsSegment:
        """The next segment; the one before is finished or abandoned."""
        rate = audio.sample_rate if audio is not None else 0
        return TsSegment(self._counters, picture=video is not None, sample_rate=rate)
