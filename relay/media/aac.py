"""AAC as FLV carries it: AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1) and raw frames, and the ADTS header for TS."""

from dataclasses import dataclass, field
from typing import Final

from relay.media.bits import BitReader
from relay.media.errors import BadMedia, UnsupportedMedia

RATES: Final = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
MAX_FRAME_BYTES: Final = 8191 - 7  # the length field of ADTS has 13 bits
SAMPLES_PER_FRAME: Final = 1024


@dataclass(frozen=True, slots=True)
class AacConfig:
    codec: str  # RFC 6381, for example "mp4a.40.2"
    sample_rate: int
    channels: int
    profile: int  # ADTS profile: object type - 1
    rate_index: int
    channel_config: int
    record: bytes  # the AudioSpecificConfig itself
    adts_header: int = field(
        init=False
    )  # the 56 bits before a frame (ISO/IEC 13818-7, 6.2), its length left out

    def __post_init__(self) -> None:
        head = 0xFFF1 << 40 | self.profile << 38 | self.rate_index << 34 | self.channel_config << 30 | 0x1FFC
        object.__setattr__(self, "adts_header", head)


def _object_type(bits: BitReader) -> int:
    kind = bits.take(5)
    return 32 + bits.take(6) if kind == 31 else kind


def parse_config(data: bytes) -> AacConfig:
    """Read an AudioSpecificConfig. Raises BadMedia, or UnsupportedMedia for what ADTS cannot carry."""
    bits = BitReader(data)
    kind = announced = _object_type(bits)
    index = bits.take(4)
    channels = 0
    if index == 15:
        raise UnsupportedMedia("this AAC sample rate is not supported; choose 44.1 or 48 kHz")
    channels = bits.take(4)
    if kind in (5, 29):  # HE-AAC, signalled explicitly: the core underneath is what frames are framed as
        if bits.take(4) == 15:
            bits.take(24)
        kind = _object_type(bits)
    if index >= len(RATES):
        raise BadMedia("the AAC sequence header is malformed")
    if not 1 <= kind <= 4 or not 1 <= channels <= 7:
        raise UnsupportedMedia("this kind of AAC is not supported; choose AAC-LC in stereo")
    return AacConfig(
        codec=f"mp4a.40.{announced}",
        sample_rate=RATES[index],
        channels=8 if channels == 7 else channels,
        profile=kind - 1,
        rate_index=index,
        channel_config=channels,
        record=data,
    )


def adts(config: AacConfig, frame: bytes) -> bytes:
    """The frame with its ADTS header. Raises BadMedia for an impossible length."""
    size = len(frame)
    if not 0 < size <= MAX_FRAME_BYTES:
        raise BadMedia("an AAC frame is malformed")
    return (config.adts_header | (size + 7) << 13).to_bytes(7, "big") + frame
