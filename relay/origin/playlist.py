"""HLS playlists (RFC 8216, and 8216bis for low latency). Pure: what is listed and where it points are arguments."""

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from relay.media.packager import Chunk
from relay.origin.store import RenditionStore, init_name, seconds

CONTENT_TYPE = b"application/vnd.apple.mpegurl"
_DISCONTINUITY: Final = "#EXT-X-DISCONTINUITY\n"
_HOLD_BACK: Final = 3  # parts behind the edge: less than two is forbidden, less than three not advised
_PARTS_WITHIN: Final = 3  # target durations from the edge: further back parts are of no use


def master(store: RenditionStore, slug: str, session_id: UUID, query: str = "") -> bytes:
    """One variant, its address with `query` behind it. BANDWIDTH is the peak of any segment so far, as RFC 8216,
    4.3.4.2 wants it."""
    video = store.format.video
    size = f",RESOLUTION={video.width}x{video.height}" if video is not None else ""
    return (
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-INDEPENDENT-SEGMENTS\n"
        f"#EXT-X-STREAM-INF:BANDWIDTH={max(store.peak_bits_per_s, 1)},"
        f'CODECS="{store.format.codecs}"{size}\n'
        f"/live/{slug}/{session_id}/index.m3u8{query}\n"
    ).encode()


def media(store: RenditionStore, uri: Callable[[int], str], *, parts: bool = False) -> bytes:
    """The listed segments, each at `uri(sequence)`; with the parts of the last ones and of the one that grows, beside
    the playlist. Who does not know parts reads the same playlist as without them."""
    lines = [_head(store), _control(store) if parts else ""]
    init = b""
    first_with_parts = _first_with_parts(store) if parts else store.next_sequence
    for stored in store.listed:
        segment = stored.segment
        if segment.discontinuity:
            lines.append(_DISCONTINUITY)
        if stored.init != init:
            lines.append(_map(init := stored.init))
        lines.append(stored.program)
        if segment.sequence >= first_with_parts:
            lines.append(_parts(segment.sequence, stored.chunks))
        lines.append(f"{stored.extinf}{uri(segment.sequence)}\n")
    if store.ended:
        lines.append("#EXT-X-ENDLIST\n")
    elif parts:
        lines.append(_growing(store, init))
    return "".join(lines).encode()


def at_hub(store: RenditionStore, base: str) -> bytes:
    """The same without parts and with each segment at `base`: but for that, put together once for all viewers."""
    state = (store.next_sequence, store.ended)
    if store.page is None or store.page[0] != state:
        text = media(store, lambda sequence: f"\0{sequence}.{store.extension}")
        store.page = (state, text.split(b"\0"))
    return base.encode().join(store.page[1])


def _growing(store: RenditionStore, init: bytes) -> str:
    """The parts of the segment that is not whole yet, and where the next one will be. `init`: in force so far."""
    growing, sequence, index, lines = store.growing, store.next_sequence, 0, []
    if growing is not None and growing.chunks:
        if growing.discontinuity:
            lines.append(_DISCONTINUITY)
        if growing.init != init:
            lines.append(_map(growing.init))
        lines.append(_parts(sequence, growing.chunks))
        sequence, index = (sequence + 1, 0) if growing.whole else (sequence, len(growing.chunks))
    lines.append(f'#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{sequence}.{index}.m4s"\n')
    return "".join(lines)


def _control(store: RenditionStore) -> str:
    target_us = store.chunk_target_us
    return (
        f"#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK={seconds(_HOLD_BACK * target_us)}\n"
        f"#EXT-X-PART-INF:PART-TARGET={seconds(target_us)}\n"
    )


def _head(store: RenditionStore) -> str:
    listed = store.listed
    return (
        f"#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:{store.target_duration_s}\n"
        f"#EXT-X-MEDIA-SEQUENCE:{listed[0].segment.sequence if listed else store.next_sequence}\n"
        f"#EXT-X-DISCONTINUITY-SEQUENCE:{store.discontinuity_sequence}\n#EXT-X-INDEPENDENT-SEGMENTS\n"
    )


def _map(init: bytes) -> str:
    return f'#EXT-X-MAP:URI="init-{init_name(init)}.mp4"\n'


def _parts(sequence: int, chunks: Sequence[Chunk]) -> str:
    return "".join(
        f'#EXT-X-PART:DURATION={seconds(chunk.duration_us)},URI="{sequence}.{index}.m4s"'
        f"{',INDEPENDENT=YES' if chunk.independent else ''}\n"
        for index, chunk in enumerate(chunks)
    )


def _first_with_parts(store: RenditionStore) -> int:
    """The sequence from which on parts are listed."""
    growing = store.growing
    from_edge_us = sum(c.duration_us for c in growing.chunks) if growing is not None else 0
    sequence = store.next_sequence
    for stored in reversed(store.listed):
        from_edge_us += stored.segment.duration_us
        if from_edge_us > _PARTS_WITHIN * store.target_duration_s * 1_000_000:
            break
        sequence = stored.segment.sequence
    return sequence
