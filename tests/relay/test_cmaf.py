"""Fragmented MP4: boxes by a reader of the tests' own, then by libavformat."""

import hashlib
import io
import struct
from dataclasses import dataclass, field

import av
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_rig import Tag

from relay.media import aac, flv, h264
from relay.media.cmaf import CmafMuxer
from relay.media.mp4 import NOT_SYNC, SYNC, init_segment
from relay.media.packager import CLOCK, Chunk, Cut, Format, Packager, PackagerSettings
from relay.media.timeline import Timeline

PICTURE = h264.H264Config("avc1.4d400b", 192, 108, 4, b"", b"\1\x4d\x40\x0b\xff\xe1\0\1\x67\1\0\1\x68")
SOUND = aac.parse_config(b"\x11\x90")  # 48 kHz, stereo


@dataclass
class Told:
    """relay.media.cmaf.ChunkSink"""

    chunks: list[tuple[bytes, Chunk]] = field(default_factory=list)
    begun: int = 0
    finished: int = 0

    def begin(self, init: bytes, *, discontinuity: bool) -> None:
        self.begun += 1

    def chunk(self, data: bytes, chunk: Chunk) -> None:
        self.chunks.append((data, chunk))

    def finish(self) -> None:
        self.finished += 1

    def abandon(self) -> None:
        raise AssertionError


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        assert size >= 8
        assert at + size <= len(data)
        found.append((name, data[at + 8 : at + size]))
        at += size
    return found


def samples(data: bytes) -> dict[int, list[tuple[int, int, int, int, bytes]]]:
    """By track: decode time, duration, flags, composition offset and bytes of each sample of joined fragments."""
    found: dict[int, list[tuple[int, int, int, int, bytes]]] = {}
    base = 0
    while base < len(data):
        moof_size = struct.unpack_from(">I", data, base)[0]
        (moof,) = boxes(data[base : base + moof_size])
        assert moof[0] == b"moof"
        for name, body in boxes(moof[1]):
            if name != b"traf":
                continue
            inner = dict(boxes(body))
            track = struct.unpack(">II", inner[b"tfhd"])[1]
            (at,) = struct.unpack(">4xQ", inner[b"tfdt"])
            flags, count, offset = struct.unpack_from(">IIi", inner[b"trun"])
            position, start = base + offset, 12
            for _ in range(count):
                duration, size = struct.unpack_from(">II", inner[b"trun"], start)
                start += 8
                kind, later = SYNC, 0
                if flags & 0xC00:
                    kind, later = struct.unpack_from(">II", inner[b"trun"], start)
                    start += 8
                piece = data[position : position + size]
                assert len(piece) == size
                found.setdefault(track, []).append((at, duration, kind, later, piece))
                at, position = at + duration, position + size
            assert start == len(inner[b"trun"])
        mdat_size, name = struct.unpack_from(">I4s", data, base + moof_size)
        assert name == b"mdat"
        base += moof_size + mdat_size
    return found


pictures = st.lists(
    st.tuples(
        st.integers(90, 20_000), st.integers(0, 9_000), st.binary(min_size=1, max_size=40), st.booleans()
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=80)
@given(pictures, st.lists(st.binary(min_size=1, max_size=20), max_size=80), st.integers(50, 1000))
def test_a_segment_is_its_chunks_and_its_samples_are_the_frames_in_their_time(frames, sounds, chunk_ms):
    told = Told()
    muxer = CmafMuxer(told, chunk_ms)
    start = dts = 90_000
    put: list[tuple[int, bool, int, bytes]] = []
    heard: list[tuple[int, bytes]] = []
    segment = muxer.begin(PICTURE, SOUND, start=start, discontinuity=False)
    for step, later, data, key in frames:
        segment.video((b"", data), dts, dts + later, key=key)
        put.append((dts, key, later, data))
        while sounds and start + len(heard) * 1920 <= dts:
            heard.append((start + len(heard) * 1920, sounds.pop()))
            segment.audio(heard[-1][1], heard[-1][0])
        dts += step
    packed = segment.finish(dts)
    assert packed.data == b"".join(data for data, _ in told.chunks)
    assert packed.chunks == tuple(chunk for _, chunk in told.chunks)
    assert [len(data) for data, _ in told.chunks] == [c.size_bytes for c in packed.chunks]
    assert packed.sha256 == hashlib.sha256(packed.data).digest()
    assert (told.begun, told.finished) == (1, 1)
    # Rounded down each, so a microsecond may be missing for each.
    total_us = (dts - start) * 1_000_000 // CLOCK
    assert 0 <= total_us - sum(c.duration_us for c in packed.chunks) <= len(packed.chunks)
    longest_us = max(step for step, *_ in frames) * 1_000_000 // CLOCK
    assert all(c.duration_us <= chunk_ms * 1000 + 1.5 * longest_us + 1 for c in packed.chunks)
    found = samples(packed.data)
    assert [(at, kind == SYNC, later, data) for at, _, kind, later, data in found[1]] == put
    assert {kind for _, _, kind, _, _ in found[1]} <= {SYNC, NOT_SYNC}
    assert all(a[0] + a[1] == b[0] for a, b in zip(found[1], found[1][1:], strict=False))
    assert found[1][-1][0] + found[1][-1][1] == dts
    assert [(at, data) for at, _, _, _, data in found.get(2, [])] == [
        (at * 48 // 90, data) for at, data in heard
    ]


def cuts_of(source: list[Tag], told: Told, chunk_ms: int = 200) -> tuple[list[Cut], list[Format]]:
    cuts: list[Cut] = []
    formats: list[Format] = []

    class Ignored:
        def header(self, kind: int, body: bytes, at_ms: int) -> None: ...
        def frame(self, kind: int, at_ms: int, body: bytes, *, key: bool) -> None: ...

    packager = Packager(
        PackagerSettings(segment_target_ms=1000),
        lambda: 0,
        Timeline(),
        CmafMuxer(told, chunk_ms),
        Ignored(),
        formats.append,
        lambda cut, format_: cuts.append(cut),
    )
    for kind, stamp, body in source:
        if kind == flv.VIDEO:
            packager.video(stamp, body)
        elif kind == flv.AUDIO:
            packager.audio(stamp, body)
    packager.finish()
    return cuts, formats


def test_libavformat_reads_every_frame_of_an_encoder_back_with_its_times(source):
    told = Told()
    cuts, (format_,) = cuts_of(source, told)
    assert len(cuts) == 12
    assert all(cut.packed.init == init_segment(format_.video, format_.audio) for cut in cuts)
    whole = cuts[0].packed.init + b"".join(cut.packed.data for cut in cuts)
    with av.open(io.BytesIO(whole), format="mp4") as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, video.width, video.height) == ("h264", 192, 108)
        assert (audio.codec_context.name, audio.rate, audio.layout.nb_channels) == ("aac", 48_000, 2)
        packets = [p for p in file.demux(video, audio) if p.size]
    sent = [(stamp, flv.parse_video(body)) for kind, stamp, body in source if kind == flv.VIDEO]
    sent = [(stamp, tag) for stamp, tag in sent if tag.part is flv.Part.FRAME]
    seen = [p for p in packets if p.stream is video]
    assert [p.is_keyframe for p in seen] == [tag.key for _, tag in sent]
    zero = sent[0][0]
    assert [p.dts for p in seen] == [(stamp - zero) * 90 for stamp, _ in sent]
    assert [p.pts - p.dts for p in seen] == [tag.composition_ms * 90 for _, tag in sent]
    frames = [body[2:] for kind, _, body in source if kind == flv.AUDIO and body[1] == 1]
    heard = [bytes(p) for p in packets if p.stream is audio]
    assert heard == frames[-len(heard) :]  # what came before the first picture is not in it
    assert len(frames) - len(heard) < 5
    with av.open(io.BytesIO(whole), format="mp4") as file:
        assert sum(1 for _ in file.decode(video=0)) == len(sent)


def test_each_segment_begins_with_a_key_frame_and_plays_alone(source):
    cuts, _ = cuts_of(source, Told())
    for cut in cuts:
        assert cut.packed.chunks[0].independent
        assert not any(c.independent for c in cut.packed.chunks[1:])
        assert all(abs(c.duration_us - 200_000) <= 1000 for c in cut.packed.chunks)
        with av.open(io.BytesIO(cut.packed.init + cut.packed.data), format="mp4") as file:
            assert sum(1 for _ in file.decode(video=0)) == 15


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.sampled_from([1, 2, 4]), st.booleans())
def test_nal_units_come_out_behind_four_bytes_without_what_the_record_has(units, length_bytes, key):
    config = h264.H264Config("avc1.4d400b", 192, 108, length_bytes, b"", b"")
    frame = b"".join(len(unit).to_bytes(length_bytes, "big") + unit for unit in units)
    wanted = [unit for unit in units if unit[0] & 0x1F not in (7, 8, 9)]
    if wanted:
        expected = b"".join(len(unit).to_bytes(4, "big") + unit for unit in wanted)
        assert CmafMuxer(Told(), 200).picture(config, b"head" + frame, 4, key=key) == (b"", expected)
