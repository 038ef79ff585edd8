"""H.264 as FLV carries it: avcC headers (ISO/IEC 14496-15, 5.3.3) and length-prefixed NAL units.

Invariant: `annexb` returns a stream of whole NAL units or raises BadMedia; lengths in the input are never trusted.
"""

import struct
from dataclasses import dataclass
from typing import Final

from relay.media.bits import BitReader
from relay.media.errors import BadMedia

START_CODE: Final = b"\0\0\0\1"
_AUD: Final = START_CODE + b"\x09\xf0"
_BEFORE: Final = _AUD + START_CODE
_IDR, _SPS, _PPS, _DELIMITER = 5, 7, 8, 9
_THERE, _THERE_ON_KEYS = (_DELIMITER,), (_DELIMITER, _SPS, _PPS)  # put before each frame by `annexb`
_HIGH_PROFILES: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
MAX_SIDE: Final = 16384
_length: Final = struct.Struct(">I").unpack_from


@dataclass(frozen=True, slots=True)
class H264Config:
    codec: str  # RFC 6381, for example "avc1.64001f"
    width: int
    height: int
    length_bytes: int  # of the prefix of each NAL unit: 1, 2 or 4
    parameter_sets: bytes  # SPS and PPS with start codes, to stand before each key frame
    record: bytes  # the AVCDecoderConfigurationRecord itself

    @property
    def before_keys(self) -> bytes:
        """What stands before the picture of a key frame."""
        return _AUD + self.parameter_sets + START_CODE


def _parameter_sets(data: bytes, at: int, count: int, kind: int) -> tuple[list[bytes], int]:
    units = []
    for _ in range(count):
        size = int.from_bytes(data[at : at + 2], "big")
        unit = data[at + 2 : at + 2 + size]
        if not size or len(unit) != size or unit[0] & 0x1F != kind:
            raise BadMedia("the H.264 sequence header is malformed")
        units.append(unit)
        at += 2 + size
    return units, at


def parse_config(data: bytes) -> H264Config:
    """Read an AVCDecoderConfigurationRecord. Raises BadMedia."""
    if len(data) < 7 or data[0] != 1:
        raise BadMedia("the H.264 sequence header is malformed")
    length_bytes = (data[4] & 3) + 1
    if length_bytes == 3:
        raise BadMedia("the H.264 sequence header is malformed")
    sps, at = _parameter_sets(data, 6, data[5] & 0x1F, _SPS)
    if at >= len(data):
        raise BadMedia("the H.264 sequence header is malformed")
    pps, _ = _parameter_sets(data, at + 1, data[at], _PPS)
    if not sps or not pps or len(sps[0]) < 4:
        raise BadMedia("the H.264 sequence header has no parameter sets")
    width, height = picture_size(sps[0])
    return H264Config(
        codec=f"avc1.{sps[0][1:4].hex()}",
        width=width,
        height=height,
        length_bytes=length_bytes,
        parameter_sets=b"".join(START_CODE + unit for unit in (*sps, *pps)),
        record=data,
    )


def _skip_scaling_list(bits: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


def picture_size(sps: bytes) -> tuple[int, int]:
    """Width and height in pixels from a sequence parameter set (H.264, 7.3.2.1.1). Raises BadMedia."""
    bits = BitReader(sps[4:].replace(b"\0\0\3", b"\0\0"))
    bits.golomb()  # seq_parameter_set_id
    chroma = 1
    if sps[1] in _HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.take(1)
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    bits.golomb()  # log2_max_frame_num
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.signed_golomb()
        bits.signed_golomb()
        cycle = bits.golomb()
        if cycle > 255:
            raise BadMedia("the H.264 sequence header is malformed")
        for _ in range(cycle):
            bits.signed_golomb()
    bits.golomb()  # max_num_ref_frames
    bits.take(1)
    width = (bits.golomb() + 1) * 16
    map_units = bits.golomb() + 1
    frame_only = bits.take(1)
    if not frame_only:
        bits.take(1)
    bits.take(1)
    height = map_units * 16 * (2 - frame_only)
    if bits.take(1):
        left, right, top, bottom = (bits.golomb() for _ in range(4))
        unit_x = 2 if chroma in (1, 2) else 1
        unit_y = (2 if chroma == 1 else 1) * (2 - frame_only)
        width -= unit_x * (left + right)
        height -= unit_y * (top + bottom)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise BadMedia("the H.264 sequence header has an impossible picture size")
    return width, height


def annexb(config: H264Config, data: bytes, *, key: bool) -> bytes:
    """One access unit with start codes: delimiter, on key frames the parameter sets, then the units of `data`.

    Raises BadMedia when a length points outside the data, when there is no unit at all, or when a frame that says
    it is a key frame has no IDR or intra picture to begin with.
    """
    return b"".join(annexb_pieces(config, data, 0, key=key))


def annexb_pieces(config: H264Config, body: bytes, at: int, *, key: bool) -> tuple[bytes, memoryview]:
    """`annexb` of what begins at `at`, in two pieces: the second is the last unit as it lies in `body`. That is mostly
    the picture, and only a few bytes of other units before it are copied."""
    units = _units(config, body, at, _THERE_ON_KEYS if key else _THERE)
    before = config.before_keys if key else _BEFORE
    start, end = units[-1]
    if len(units) == 2:  # what many encoders say of each picture, and the picture
        first, behind = units[0]
        before = b"".join((before, body[first:behind], START_CODE))
    elif len(units) > 2:
        before += b"".join([body[a:b] + START_CODE for a, b in units[:-1]])
    return before, memoryview(body)[start:end]


def _units(config: H264Config, data: bytes, at: int, left_out: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where the units of a frame begin and end, at least one. Raises BadMedia."""
    size_bytes, end = config.length_bytes, len(data)
    found, last = [], end - size_bytes
    while at < end:
        if at > last:
            raise BadMedia("an H.264 frame is malformed")
        start = at + size_bytes
        size = _length(data, at)[0] if size_bytes == 4 else int.from_bytes(data[at:start], "big")
        at = start + size
        if at > end or not size:
            raise BadMedia("an H.264 frame is malformed")
        if data[start] & 0x1F not in left_out:
            found.append((start, at))
    if not found:
        raise BadMedia("an H.264 frame is empty")
    return found


def behind_lengths(config: H264Config, data: bytes, at: int) -> bytes | memoryview:
    """The units of the frame that begins at `at`, each behind four bytes of length, without delimiters and parameter
    sets (ISO/IEC 14496-15, 5.3.2). Raises BadMedia."""
    units = _units(config, data, at, _THERE_ON_KEYS)
    if config.length_bytes == 4 and sum(b - a + 4 for a, b in units) == len(data) - at:
        return memoryview(data)[at:]
    return b"".join(part for a, b in units for part in ((b - a).to_bytes(4, "big"), data[a:b]))
