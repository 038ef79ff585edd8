"""FLV tag bodies, as RTMP carries them, and FLV files, as HTTP-FLV serves them (Adobe FLV 10.1, annex E).

Invariant: only H.264 and AAC get through; everything else is refused with words that tell the creator what to set.
"""

from enum import Enum, auto
from typing import Final, NamedTuple

from relay.media.errors import BadMedia, UnsupportedMedia

AUDIO, VIDEO, SCRIPT = 8, 9, 18
_VIDEO_CODECS: Final = {2: "Sorenson H.263", 3: "Screen video", 4: "VP6", 5: "VP6", 12: "HEVC", 13: "AV1"}
_FOURCC: Final = {
    b"hvc1": "HEVC",
    b"av01": "AV1",
    b"vp08": "VP8",
    b"vp09": "VP9",
    b"avc1": "multitrack H.264",
}
_AUDIO_FOURCC: Final = {
    b"Opus": "Opus",
    b"fLaC": "FLAC",
    b"ac-3": "AC-3",
    b"ec-3": "E-AC-3",
    b".mp3": "MP3",
    b"mp4a": "multitrack AAC",
}
_AUDIO_CODECS: Final = {
    0: "PCM",
    1: "ADPCM",
    2: "MP3",
    3: "PCM",
    7: "G.711",
    8: "G.711",
    11: "Speex",
}
_AVC, _AAC = 7, 10
# How the bodies of tags with frames begin; three bytes of the time until it is shown follow, then the NAL units.
KEY_FRAME, INTER_FRAME = bytes((1 << 4 | _AVC, 1)), bytes((2 << 4 | _AVC, 1))
VIDEO_HEAD_BYTES: Final = 5
SOUND_FRAME: Final = b"\xaf\x01"  # AAC, said to be 44.1 kHz in stereo whatever it is
_ENHANCED: Final = 9  # Enhanced RTMP: the codec's name follows


class Part(Enum):
    HEADER = auto()  # the codec's configuration
    FRAME = auto()
    NOTHING = auto()  # end of sequence, or an informational tag


# Looked up for every frame; a member of an Enum costs three times as much.
HEADER, FRAME, NOTHING = Part.HEADER, Part.FRAME, Part.NOTHING
_AVC_PARTS: Final = (HEADER, FRAME, NOTHING)


class VideoTag(NamedTuple):
    part: Part
    key: bool
    composition_ms: int  # pts - dts, may be negative
    data: bytes


class AudioTag(NamedTuple):
    part: Part
    data: bytes


def parse_video(body: bytes) -> VideoTag:
    """Raises UnsupportedMedia for anything but H.264, BadMedia for a tag that is cut short."""
    first = body[0]
    if first & 0x80:  # Enhanced RTMP
        name = _FOURCC.get(body[1:5], "an unknown codec")
        raise UnsupportedMedia(f"the video is {name}; set the encoder to H.264 (x264)")
    codec, frame_type = first & 0x0F, first >> 4
    if codec != _AVC:
        raise UnsupportedMedia(
            f"the video is {_VIDEO_CODECS.get(codec, f'codec {codec}')}; set the encoder to H.264"
        )
    if frame_type == 5:
        return VideoTag(NOTHING, key=False, composition_ms=0, data=b"")
    if len(body) < VIDEO_HEAD_BYTES:
        raise BadMedia("a video tag is cut short")
    kind = body[1]
    if kind > 2:
        raise BadMedia(f"unknown kind {kind} of H.264 tag")
    offset = int.from_bytes(body[2:VIDEO_HEAD_BYTES], "big", signed=True)
    return VideoTag(_AVC_PARTS[kind], frame_type == 1, offset, body[VIDEO_HEAD_BYTES:])


def parse_audio(body: bytes) -> AudioTag:
    """Raises UnsupportedMedia for anything but AAC, BadMedia for a tag that is cut short."""
    codec = body[0] >> 4
    if codec != _AAC:
        enhanced = _AUDIO_FOURCC.get(body[1:5], "an unknown codec") if codec == _ENHANCED else None
        name = enhanced or _AUDIO_CODECS.get(codec, f"codec {codec}")
        raise UnsupportedMedia(f"the audio is {name}; set the encoder to AAC")
    if len(body) < 2 or body[1] > 1:
        raise BadMedia("an audio tag is malformed")
    if body[1] == 0:
        return AudioTag(HEADER, body[2:])
    return AudioTag(FRAME if len(body) > 2 else NOTHING, body[2:])


def file_header(*, video: bool, audio: bool) -> bytes:
    """The 9-byte FLV header and the zero size before the first tag."""
    return b"FLV\x01" + bytes((video | audio << 2,)) + b"\0\0\0\x09" + bytes(4)


def tag(kind: int, timestamp_ms: int, body: bytes) -> bytes:
    """One FLV tag with its size after it. The timestamp wraps at 2**32 ms (49.7 days)."""
    size, stamp = len(body), timestamp_ms & 0xFFFFFFFF
    head = (
        bytes((kind,))
        + size.to_bytes(3, "big")
        + (stamp & 0xFFFFFF).to_bytes(3, "big")
        + bytes((stamp >> 24,))
    )
    return b"".join((head, b"\0\0\0", body, (size + 11).to_bytes(4, "big")))
