"""Properties of the parts that have no IO: clocks, codec headers, frames, stores."""

import asyncio
import contextlib
import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.events import Segment
from relay.media import aac, flv, h264
from relay.media.errors import BadMedia, UnsupportedMedia
from relay.media.packager import Format, Packed
from relay.media.timeline import GAP_MS, Timeline
from relay.origin import playlist
from relay.origin.settings import OriginSettings
from relay.origin.store import RenditionStore

# SPS and PPS of x264, 192x108 main profile, as in an FLV sequence header
VIDEO = h264.H264Config("avc1.4d400b", 192, 108, 4, b"\0\0\0\1\x67\0\0\0\1\x68", b"")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2**32 - 1)), max_size=60), st.sets(st.integers(0, 60))
)
def test_out_times_of_each_track_rise_strictly_and_never_leave_a_gap(frames, restarts):
    timeline = Timeline()
    last = {True: -1, False: -1}
    for i, (video, stamp) in enumerate(frames):
        if i in restarts:
            timeline.restart()
        before = max(last.values())
        out, _ = timeline.place(stamp, video=video)
        assert out > last[video]
        assert out <= before + GAP_MS + 1
        last[video] = out


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 1000), max_size=50))
def test_a_steady_clock_is_kept_to_the_millisecond_even_where_it_wraps(start, steps):
    timeline = Timeline()
    first, _ = timeline.place(start, video=True)
    at = start
    for step in steps:
        at += step
        out, jumped = timeline.place(at % 2**32, video=True)
        assert not jumped
        assert out - first == at - start


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=300))
def test_any_tag_body_is_parsed_or_refused(body):
    for parse in (flv.parse_video, flv.parse_audio):
        with contextlib.suppress(BadMedia, UnsupportedMedia):
            parse(body)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_any_codec_header_and_any_frame_is_read_or_refused(data, plausible):
    if plausible:
        data = (
            b"\x01\x64\x00\x1f\xff\xe1"
            + (len(data) + 4).to_bytes(2, "big")
            + b"\x67\x64\0\x1f"
            + data
            + b"\1\0\2\x68\1"
        )
    for call in (
        lambda: h264.parse_config(data),
        lambda: aac.parse_config(data),
        lambda: h264.annexb(VIDEO, data, key=True),
        lambda: h264.annexb(VIDEO, data, key=False),
    ):
        with contextlib.suppress(BadMedia, UnsupportedMedia):
            call()


@given(
    st.lists(
        st.binary(min_size=1, max_size=50).filter(lambda unit: unit[0] & 0x1F not in (7, 8, 9)), min_size=1
    )
)
def test_every_nal_unit_of_a_frame_comes_out_behind_a_start_code(units):
    frame = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    expected = h264.START_CODE + b"\x09\xf0" + b"".join(h264.START_CODE + unit for unit in units)
    assert h264.annexb(VIDEO, frame, key=False) == expected


@given(st.binary(min_size=1, max_size=aac.MAX_FRAME_BYTES))
def test_an_adts_header_tells_the_length_of_its_frame(frame):
    framed = aac.adts(aac.parse_config(b"\x11\x90"), frame)
    assert (framed[3] & 3) << 11 | framed[4] << 3 | framed[5] >> 5 == len(framed)


segment_sizes = st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=60)
@given(segment_sizes, st.integers(0, 10**6))
def test_a_store_is_bounded_lists_the_newest_and_counts_discontinuities(sizes, first):
    async def scenario():
        limits = OriginSettings(retain_bytes=20_000, retain_s=10)
        now = [0.0]
        store = RenditionStore(uuid.uuid4(), Format(VIDEO, None), first, limits, lambda: now[0])
        for i, (size, broken) in enumerate(sizes):
            now[0] += 2
            store.add(
                Segment(first + i, 2_000_000, size, bytes(32), 1_700_000_000_000_000 + i, broken),
                Packed(bytes(size), bytes(32)),
            )
            listed = [s.segment.sequence for s in store.listed]
            assert listed == list(range(max(first, first + i - 5), first + i + 1))
            assert all(store.get(sequence) for sequence in listed)
            unlisted = store.held_bytes - sum(len(s.body) for s in store.listed)
            assert unlisted <= limits.retain_bytes
            assert store.discontinuity_sequence == first + sum(b for _, b in sizes[: max(0, i - 5)])
            text = playlist.media(store, lambda n: f"{n}.ts").decode()
            assert f"#EXT-X-MEDIA-SEQUENCE:{listed[0]}\n" in text
            assert text.count("#EXT-X-DISCONTINUITY\n") == sum(s.segment.discontinuity for s in store.listed)
            assert ("#EXT-X-ENDLIST" in text) is False
            for base in ("/live/a/", "/live/b/"):
                assert playlist.at_hub(store, base) == playlist.media(store, lambda n: f"{base}{n}.ts")  # noqa: B023
        store.end()
        assert playlist.media(store, str).endswith(b"#EXT-X-ENDLIST\n")
        assert playlist.at_hub(store, "").endswith(b"#EXT-X-ENDLIST\n")

    asyncio.run(scenario())


def test_no_segment_is_longer_than_the_target_duration_promises():
    async def scenario():
        store = RenditionStore(uuid.uuid4(), Format(VIDEO, None), 0, OriginSettings(), lambda: 0.0)
        promised = []
        for i, duration_us in enumerate([2_000_000, 2_400_000, 8_333_000, 2_000_000]):
            store.add(a_segment(i, duration_us), Packed(b"x", bytes(32)))
            promised.append(store.target_duration_s)
        assert promised == [2, 2, 8, 8]

    asyncio.run(scenario())


def a_segment(sequence: int, duration_us: int) -> Segment:
    return Segment(sequence, duration_us, 1, bytes(32), 0)
