"""Reading HLS playlists (RFC 8216) as far as a player of this hub needs it. No IO.

Invariant: any text gives a list of segments in ascending sequence or PlaylistError, in time linear in its length.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urljoin, urlsplit

MAX_SEGMENTS: Final = 10_000


class PlaylistError(ValueError):
    """Not a playlist this player understands."""


@dataclass(frozen=True, slots=True)
class Listed:
    sequence: int
    duration_s: float
    url: str  # absolute


@dataclass(frozen=True, slots=True)
class MediaPlaylist:
    segments: tuple[Listed, ...]
    target_s: float
    ended: bool


def ticket_of(url: str) -> str:
    """The ticket a segment URL carries: a node's. "" when the URL is the hub's own."""
    return parse_qs(urlsplit(url).query).get("t", [""])[0]


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    if not lines or lines[0] != "#EXTM3U":
        raise PlaylistError("a playlist starts with #EXTM3U")
    return [line for line in lines[1:] if line]


def parse_master(text: str, base_url: str) -> str:
    """The URL of the first variant (RFC 8216 section 4.3.4.2); `base_url` when this is a media playlist itself."""
    lines = _lines(text)
    for i, line in enumerate(lines):
        if line.startswith("#EXT-X-STREAM-INF:"):
            uri = next((u for u in lines[i + 1 :] if not u.startswith("#")), None)
            if uri is None:
                raise PlaylistError("a variant without a URI")
            return urljoin(base_url, uri)
    return base_url


def parse_media(text: str, base_url: str) -> MediaPlaylist:
    """Raises PlaylistError."""
    segments: list[Listed] = []
    first, duration_s, target_s, ended = 0, None, 1.0, False
    try:
        for line in _lines(text):
            if line.startswith("#EXT-X-MEDIA-SEQUENCE:"):
                first = int(line.partition(":")[2])
            elif line.startswith("#EXT-X-TARGETDURATION:"):
                target_s = float(line.partition(":")[2])
            elif line.startswith("#EXTINF:"):
                duration_s = float(line.partition(":")[2].split(",")[0])
            elif line == "#EXT-X-ENDLIST":
                ended = True
            elif not line.startswith("#") and duration_s is not None:
                segments.append(Listed(first + len(segments), duration_s, urljoin(base_url, line)))
                duration_s = None
                if len(segments) > MAX_SEGMENTS:
                    raise PlaylistError("too many segments")
    except ValueError as e:
        raise PlaylistError(str(e)) from e
    return MediaPlaylist(tuple(segments), target_s, ended)
