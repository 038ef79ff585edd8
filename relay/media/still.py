"""One key frame to a JPEG, in a process of its own: `python -m relay.media.still < frame > picture`.

Reads the length of an FLV video tag body with the codec's header (4 bytes, big-endian), that body, then the body of the
tag with the key frame. Invariant: what an encoder sent meets a decoder only here, in a process that may use so much
memory and time, can write no file and is gone afterwards; anything it cannot read ends it with a code that is not 0.
"""

import resource
import sys
from fractions import Fraction
from typing import Any, Final

import av
from av.packet import Packet

from relay.media import flv, h264

MAX_WIDTH: Final = 640
CPU_S: Final = 4
MEMORY_BYTES: Final = 1 << 31
QUALITY: Final = 5  # 2 is best, 31 worst


def picture(header: bytes, frame: bytes) -> bytes:
    """Raises BadMedia, UnsupportedMedia, or an error of libavcodec."""
    config = h264.parse_config(flv.parse_video(header).data)
    decoder: Any = av.CodecContext.create("h264", "r")
    packet = Packet(h264.annexb(config, flv.parse_video(frame).data, key=True))
    decoded: Any = [*decoder.decode(packet), *decoder.decode(None)][0]
    width = min(MAX_WIDTH, decoded.width) & ~1
    height = max(2, decoded.height * width // decoded.width & ~1)
    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1)
    encoder.qmin = encoder.qmax = QUALITY
    still = decoded.reformat(width, height, "yuvj420p")
    still.pts = 0
    return b"".join(bytes(p) for p in [*encoder.encode(still), *encoder.encode(None)])


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    given = sys.stdin.buffer.read()
    size = int.from_bytes(given[:4], "big")
    sys.stdout.buffer.write(picture(given[4 : 4 + size], given[4 + size :]))


if __name__ == "__main__":
    main()
