"""The transport stream muxer against libavformat's, which is fed the same frames."""

import hashlib
import io
from fractions import Fraction

import av
import pytest
from av.packet import Packet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.media.aac import AacConfig, adts
from relay.media.h264 import H264Config
from relay.media.packager import CLOCK
from relay.media.ts import TsMuxer

VIDEO = H264Config("avc1.64001f", 64, 64, 4, b"", b"")
AUDIO = AacConfig("mp4a.40.2", 48_000, 2, 1, 3, 2, b"")
FRAME_TICKS = 3_003
Frame = tuple[bool, int, int, bytes]  # picture or sound, dts, pts, data


def ours(segments: list[list[Frame]], split: int = 10) -> list[bytes]:
    """`split`: how much of a picture is in its first piece."""
    muxer, made = TsMuxer(), []
    for frames in segments:
        segment = muxer.begin(VIDEO, AUDIO, start=0, discontinuity=False)
        for i, (picture, dts, pts, data) in enumerate(frames):
            if picture:
                segment.video((data[:split], data[split:]), dts, pts, key=i == 0)
            else:
                segment.audio(data, dts)
        packed = segment.finish(0)
        assert packed.sha256 == hashlib.sha256(packed.data).digest()
        made.append(packed.data)
    return made


def libavformat(frames: list[Frame]) -> bytes:
    """One segment; each sound frame is a PES packet of its own, so it is asked for one at a time."""
    file = io.BytesIO()
    options = {"mpegts_copyts": "1", "avoid_negative_ts": "disabled", "pat_period": "3600"}
    options |= {"sdt_period": "3600", "mpegts_start_pid": str(0x102), "mpegts_pmt_start_pid": str(0x1010)}
    with av.open(file, "w", format="mpegts", options=options) as output:
        streams = [
            output.add_mux_stream("h264", width=64, height=64),
            output.add_mux_stream("aac", rate=48_000),
        ]
        for i, (picture, dts, pts, data) in enumerate(frames):
            packet = Packet(data)
            packet.stream, packet.time_base = streams[not picture], Fraction(1, CLOCK)
            packet.dts, packet.pts, packet.is_keyframe = dts, pts, picture and i == 0
            output.mux_one(packet)
    return file.getvalue()[188:]  # without the name of a service


def by_pid(data: bytes) -> dict[int, list[bytes]]:
    assert len(data) % 188 == 0
    found: dict[int, list[bytes]] = {}
    for at in range(0, len(data), 188):
        packet = data[at : at + 188]
        assert packet[0] == 0x47
        found.setdefault(int.from_bytes(packet[1:3], "big") & 0x1FFF, []).append(packet)
    return found


def picture(size: int, at: int, later: int) -> Frame:
    return True, at, at + later, b"\0\0\0\1\x09\xf0\0\0\0\1\x65" + bytes(i % 251 + 1 for i in range(size))


sizes = st.one_of(st.integers(0, 800), st.integers(0, 70_000))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(sizes, st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(0, 1 << 31),
    st.integers(0, 2_000),
)
@example(
    [(size, 0) for size in range(140, 180)], 0, 10
)  # each number of bytes that may be left in a last packet
@example([(size, 1) for size in range(130, 360)], 0, 10)
@example([(size, 1) for size in range(130, 360)], 0, 400)  # whose first piece is all there is
@example([(size, 1) for size in range(130, 560)], 0, 184)
@example([(400_000, 0)], 0, 10)
@example([(348 * 184 - 33, 0)], 0, 10)  # nothing is left to lay out at the end
def test_pictures_become_the_very_bytes_that_libavformat_makes_of_them(pictures, start, split):
    frames = [
        picture(size, start + i * FRAME_TICKS, later * FRAME_TICKS)
        for i, (size, later) in enumerate(pictures)
    ]
    (made,) = ours([frames], split)
    assert by_pid(made) == by_pid(libavformat(frames))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2_000), st.integers(0, 1 << 31))
@example(141, 0)
@example(163, 0)
@example(164, 0)
def test_sound_becomes_the_very_bytes_that_libavformat_makes_of_it(size, start):
    frames = [picture(9, start, 0), (False, start, start, adts(AUDIO, bytes(size)))]
    (made,) = ours([frames])
    assert by_pid(made) == by_pid(libavformat(frames))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.booleans(), st.integers(1, 40_000), st.integers(0, 6_000)), min_size=1, max_size=12
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0, (1 << 33) - 20_000]),
    st.data(),
)
def test_segments_joined_are_one_stream_from_which_every_frame_comes_back(plan, start, data):
    """Counters go on, also past a segment that was abandoned; timestamps wrap at 33 bits; no byte is lost."""
    muxer, at, whole, sent = TsMuxer(), start, b"", {0x102: b"", 0x103: b""}
    for frames in plan:
        segment = muxer.begin(VIDEO, AUDIO, start=at, discontinuity=False)
        given_up = data.draw(st.booleans())
        said = {0x102: b"", 0x103: b""}
        for i, (is_picture, size, step) in enumerate(((True, 100, 1), *frames)):
            at += step
            if is_picture:
                body = picture(size, at, 0)[3]
                segment.video((b"", body), at, at, key=i == 0)
                said[0x102] += body
            else:
                body = adts(AUDIO, bytes(size % 1500 + 1))
                segment.audio(body, at)
                said[0x103] += body
        if given_up:
            segment.abandon()
            continue
        whole += segment.finish(at).data
        for pid, body in said.items():
            sent[pid] += body
    counters: dict[int, int] = {}
    got = {0x102: b"", 0x103: b""}
    for pid, packets in by_pid(whole).items():
        for packet in packets:
            assert packet[3] & 0x0F == (counters.get(pid, -1) + 1) % 16
            counters[pid] = packet[3] & 0x0F
            if pid in got:
                payload = packet[4 + (1 + packet[4] if packet[3] & 0x20 else 0) :]
                if packet[1] & 0x40:
                    assert payload[:3] == b"\0\0\1"
                    payload = payload[9 + payload[8] :]
                got[pid] += payload
    assert got == sent


@pytest.mark.parametrize("dts", [(1 << 33) - 1, 1 << 33, (1 << 40) + 5])
def test_a_timestamp_beyond_33_bits_wraps(dts):
    (made,) = ours([[picture(50, dts, 0)]])
    packet = by_pid(made)[0x102][0]
    clock = int.from_bytes(packet[6:12], "big") >> 15
    stamp = int.from_bytes(packet[4 + 1 + packet[4] + 9 :][:5], "big")
    pts = (stamp >> 33 & 7) << 30 | (stamp >> 17 & 0x7FFF) << 15 | (stamp >> 1 & 0x7FFF)
    assert clock == pts == dts & ((1 << 33) - 1)
