"""HLS playlists as text (RFC 8216). Pure: what is listed and where it points are arguments."""

from collections.abc import Callable
from uuid import UUID

from relay.origin.store import RenditionStore

CONTENT_TYPE = b"application/vnd.apple.mpegurl"


def master(store: RenditionStore, slug: str, session_id: UUID) -> bytes:
    """One variant. BANDWIDTH is the peak of any segment so far, as RFC 8216, 4.3.4.2 wants it."""
    video = store.format.video
    return (
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-INDEPENDENT-SEGMENTS\n"
        f"#EXT-X-STREAM-INF:BANDWIDTH={max(store.peak_bits_per_s, 1)},"
        f'CODECS="{store.format.codecs}",RESOLUTION={video.width}x{video.height}\n'
        f"/live/{slug}/{session_id}/index.m3u8\n"
    ).encode()


def media(store: RenditionStore, uri: Callable[[int], str]) -> bytes:
    """The listed segments, each at `uri(sequence)`."""
    listed = store.listed
    lines = [
        f"#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:{store.target_duration_s}\n"
        f"#EXT-X-MEDIA-SEQUENCE:{listed[0].segment.sequence if listed else store.next_sequence}\n"
        f"#EXT-X-DISCONTINUITY-SEQUENCE:{store.discontinuity_sequence}\n#EXT-X-INDEPENDENT-SEGMENTS\n"
    ]
    for stored in listed:
        lines.append(f"{stored.tags}{uri(stored.segment.sequence)}\n")  # noqa: PERF401
    if store.ended:
        lines.append("#EXT-X-ENDLIST\n")
    return "".join(lines).encode()
