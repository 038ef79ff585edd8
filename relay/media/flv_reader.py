"""An FLV file read as it arrives: bytes in, tags out (Adobe FLV 10.1, annex E).

Invariant: the tags depend on the bytes alone, not on how they were cut; of what is not whole yet at most
`MAX_TAG_BYTES` and a header are held. Bytes that are no FLV raise BadMedia; nothing may be fed after that.
"""

from typing import Final, NamedTuple

from relay.media.errors import BadMedia
from relay.media.flv import AUDIO, SCRIPT, VIDEO

MAX_TAG_BYTES: Final = (
    8 << 20
)  # as for an RTMP message: a key frame of 4K at a very high quality is about 2 MiB
_FILE_HEADER: Final = 9 + 4  # and the zero size before the first tag
_TAG_HEADER: Final = 11
_SIZE_AFTER: Final = 4


class Tag(NamedTuple):
    kind: int
    timestamp: int  # ms, modulo 2**32
    body: bytes  # never empty


class FlvReader:
    def __init__(self) -> None:
        self._held = bytearray()
        self._begun = False
        self.has_audio = self.has_video = False  # what the file says of itself, once its header is there

    def feed(self, data: bytes) -> list[Tag]:
        """The tags that `data` completes. Raises BadMedia."""
        held, at, tags = self._held, 0, []
        held += data
        if not self._begun:
            if len(held) < _FILE_HEADER:
                return []
            if held[:4] != b"FLV\x01" or held[5:9] != b"\0\0\0\x09":
                raise BadMedia("this is no FLV file")
            self.has_audio, self.has_video = bool(held[4] & 4), bool(held[4] & 1)
            self._begun, at = True, _FILE_HEADER
        while len(held) - at >= _TAG_HEADER:
            size = int.from_bytes(held[at + 1 : at + 4], "big")
            if held[at] not in (AUDIO, VIDEO, SCRIPT) or size > MAX_TAG_BYTES:
                raise BadMedia(f"an FLV tag of kind {held[at]} and {size} bytes")
            body = at + _TAG_HEADER
            if len(held) < body + size + _SIZE_AFTER:
                break
            if size:
                stamp = int.from_bytes(held[at + 4 : at + 7], "big") | held[at + 7] << 24
                tags.append(Tag(held[at], stamp, bytes(held[body : body + size])))
            at = body + size + _SIZE_AFTER
        del held[:at]
        return tags
