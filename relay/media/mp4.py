"""ISO base media boxes (ISO/IEC 14496-12, -14, -15): what a player reads before a fragmented MP4, and its fragments.

Invariant: every box says its own length exactly, so that pieces can be joined end to end; samples lie in `mdat` in the
order of their `trun`, and each `trun` points at the first of them (tested with a reader of boxes of its own).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from relay.media.aac import AacConfig
from relay.media.h264 import H264Config

VIDEO_TRACK, AUDIO_TRACK = 1, 2
VIDEO_CLOCK: Final = 90_000
SYNC: Final = 0x0200_0000  # depends on no other sample
NOT_SYNC: Final = 0x0101_0000
_MATRIX: Final = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x4000_0000)
_UNDETERMINED: Final = 0x55C4  # the language "und"
_EMPTY_TABLES: Final = b"".join(
    struct.pack(">I4s", 8 + len(body), name) + body
    for name, body in ((b"stts", bytes(8)), (b"stsc", bytes(8)), (b"stsz", bytes(12)), (b"stco", bytes(8)))
)
_TFHD: Final = struct.Struct(">I4sII")
_TFDT: Final = struct.Struct(">I4sIQ")
_TRUN: Final = struct.Struct(">I4sIIi")
_TRAF_BYTES: Final = 8 + _TFHD.size + _TFDT.size + _TRUN.size
_MOOF: Final = struct.Struct(">I4sI4sII")  # with its mfhd
_BASE_IS_MOOF: Final = 0x02_0000
# trun: data offset, then of each sample duration, size, flags, composition offset
_TRUN_VIDEO: Final = 0x0F01
_TRUN_AUDIO: Final = 0x0301


def box(name: bytes, *parts: bytes | bytearray) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def _full(name: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


# --- before the media -------------------------------------------------------------------------------------------------


def init_segment(video: H264Config | None, audio: AacConfig | None) -> bytes:
    """`ftyp` and `moov` without samples. At least one of the two is there."""
    tracks, extends = [], []
    if video is not None:
        entry = _avc1(video)
        tracks.append(
            _track(VIDEO_TRACK, VIDEO_CLOCK, b"vide", _full(b"vmhd", bytes(8), flags=1), entry, video)
        )
        extends.append(_trex(VIDEO_TRACK))
    if audio is not None:
        header = _full(b"smhd", bytes(4))
        tracks.append(_track(AUDIO_TRACK, audio.sample_rate, b"soun", header, _mp4a(audio), None))
        extends.append(_trex(AUDIO_TRACK))
    mvhd = _full(
        b"mvhd",
        struct.pack(">4IIH10x", 0, 0, 1000, 0, 0x10000, 0x100),
        _MATRIX,
        bytes(24),
        struct.pack(">I", AUDIO_TRACK + 1),
    )
    brands = box(b"ftyp", b"iso6", struct.pack(">I", 1), b"iso6", b"mp41")
    return brands + box(b"moov", mvhd, *tracks, box(b"mvex", *extends))


def _track(
    number: int, clock: int, kind: bytes, header: bytes, entry: bytes, picture: H264Config | None
) -> bytes:
    width, height = (picture.width, picture.height) if picture is not None else (0, 0)
    volume = 0 if picture is not None else 0x100
    tkhd = _full(
        b"tkhd",
        struct.pack(">5I8xHHHxx", 0, 0, number, 0, 0, 0, 0, volume),
        _MATRIX,
        struct.pack(">II", width << 16, height << 16),
        flags=3,
    )
    mdhd = _full(b"mdhd", struct.pack(">4IHH", 0, 0, clock, 0, _UNDETERMINED, 0))
    hdlr = _full(b"hdlr", bytes(4), kind, bytes(12), b"\0")
    here = _full(b"dref", struct.pack(">I", 1), _full(b"url ", flags=1))
    stbl = box(b"stbl", _full(b"stsd", struct.pack(">I", 1), entry), _EMPTY_TABLES)
    minf = box(b"minf", header, box(b"dinf", here), stbl)
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, minf))


def _trex(track: int) -> bytes:
    return _full(b"trex", struct.pack(">5I", track, 1, 0, 0, 0))


def _avc1(config: H264Config) -> bytes:
    size = struct.pack(">HH", config.width, config.height)
    resolution = struct.pack(">II4xH", 72 << 16, 72 << 16, 1)
    head = (bytes(6), b"\0\1", bytes(16), size, resolution, bytes(32), b"\0\x18\xff\xff")
    record = bytearray(config.record)
    record[4] |= 3  # lengths have four bytes, whatever the encoder's had
    return box(b"avc1", *head, box(b"avcC", record))


def _mp4a(config: AacConfig) -> bytes:
    rate = config.sample_rate << 16 if config.sample_rate < 1 << 16 else 0
    decoder = struct.pack(">BB3xII", 0x40, 0x15, 0, 0) + _descriptor(5, config.record)
    stream = bytes(3) + _descriptor(4, decoder) + _descriptor(6, b"\2")
    esds = _full(b"esds", _descriptor(3, stream))
    head = struct.pack(">6xH8xHH4xI", 1, config.channels, 16, rate)
    return box(b"mp4a", head, esds)


def _descriptor(tag: int, body: bytes) -> bytes:
    """ISO/IEC 14496-1, 8.3.3: the length in four groups of seven bits."""
    size = len(body)
    return (
        bytes((tag, 0x80 | size >> 21, 0x80 | size >> 14 & 0x7F, 0x80 | size >> 7 & 0x7F, size & 0x7F)) + body
    )


# --- the media --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Samples:
    """One track's samples of a fragment. `rows` has duration, size, flags and composition offset of each in turn
    (a picture), or duration and size (sound)."""

    track: int
    decode_time: int  # of the first, in the track's clock
    rows: list[int] = field(default_factory=list)
    data: list[bytes | memoryview] = field(default_factory=list)


def fragment(number: int, tracks: Sequence[Samples]) -> bytes:
    """One `moof` and its `mdat`. `number` rises from fragment to fragment."""
    sizes = [_TRAF_BYTES + 4 * len(t.rows) for t in tracks]
    moof_bytes = _MOOF.size + sum(sizes)
    parts = [_MOOF.pack(moof_bytes, b"moof", 16, b"mfhd", 0, number)]
    media: list[bytes | memoryview] = []
    at = moof_bytes + 8
    for t, size in zip(tracks, sizes, strict=True):
        flags, columns = (_TRUN_VIDEO, 4) if t.track == VIDEO_TRACK else (_TRUN_AUDIO, 2)
        count = len(t.rows)
        parts += (
            struct.pack(">I4s", size, b"traf"),
            _TFHD.pack(_TFHD.size, b"tfhd", _BASE_IS_MOOF, t.track),
            _TFDT.pack(_TFDT.size, b"tfdt", 0x0100_0000, t.decode_time),
            _TRUN.pack(_TRUN.size + 4 * count, b"trun", flags, count // columns, at),
            struct.pack(f">{count}I", *t.rows),
        )
        media += t.data
        at += sum(t.rows[1::columns])
    parts.append(struct.pack(">I4s", at - moof_bytes, b"mdat"))
    return b"".join((*parts, *media))
