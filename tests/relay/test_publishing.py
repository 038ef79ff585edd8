"""From an encoder's connection to recorded segments: keys, takeovers, interruptions, clocks, damage."""

import asyncio
import hashlib
import io
import itertools
import os
import socket
import ssl
import subprocess
from dataclasses import replace

import av
import m3u8
import pytest
import rtmp_client as rtmp
from relay_rig import FAST, KEY, Encoder, Tag, is_header, is_key, publishing, read_flv, rig

from relay.media.packager import PackagerSettings
from relay.rtmp import amf


def upto(source: list[Tag], ms: int, start: int = 0) -> list[Tag]:
    """The configuration tags and what lies in [start, ms)."""
    return [t for t in source if is_header(t) or t[0] == 18 or start <= t[1] < ms]


def packets(data: bytes) -> list[tuple[int, int, bool]]:
    """(pid, continuity counter, has payload) of each TS packet."""
    assert len(data) % 188 == 0
    found = []
    for at in range(0, len(data), 188):
        assert data[at] == 0x47
        found.append(
            (
                int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF,
                data[at + 3] & 15,
                bool(data[at + 3] & 16),
            )
        )
    return found


def test_segments_are_recorded_in_order_and_are_one_transport_stream(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(source)
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            segments = r.authority.segments
            assert [s.sequence for s in segments] == list(range(12))
            assert all(990_000 <= s.duration_us <= 1_010_000 for s in segments)
            assert not any(s.discontinuity for s in segments)
            assert all(b.program_us - a.program_us == a.duration_us for a, b in itertools.pairwise(segments))
            counters: dict[int, int] = {}
            for segment, data in r.authority.published.values():
                assert segment.sha256 == hashlib.sha256(data).digest()
                assert segment.segment_bytes == len(data)
                found = packets(data)
                assert [pid for pid, _, _ in found[:3]] == [0, 0x1010, 0x102]
                assert data[2 * 188 + 5] & 0x40, "random access indicator"
                for pid, counter, payload in found:
                    assert counter == (counters.get(pid, -1) + payload) % 16
                    counters[pid] = counter
            assert r.authority.ended == ["stopped by the encoder"]
            assert r.authority.calls[1].startswith("start avc1.4d40")
            assert r.authority.calls[1].endswith(" mp4a.40.2")

    asyncio.run(scenario())


def test_a_wrong_key_is_refused_before_any_media(source):
    async def scenario():
        async with rig() as r:
            encoder = await Encoder.connect(r.rtmp_port, "main_wrong")
            await encoder.send(upto(source, 3000))  # does not wait for the answer
            await encoder.closed()
            assert b"NetStream.Publish.BadName" in encoder.answers
            assert b"the stream key is wrong" in encoder.answers
            assert r.authority.calls == ["check_key"]
            await encoder.kill()

    asyncio.run(scenario())


def test_many_streams_publish_at_once(source):
    async def scenario():
        async with rig(replace(FAST, max_connections=3)) as r:
            others = [await publishing(r, f"s{i}_other") for i in range(3)]
            assert {live.slug for live in r.origin.stats().live} == {"s0", "s1", "s2"}
            with pytest.raises((ConnectionError, AssertionError)):
                await publishing(r, "s3_other")  # over the cap
            for encoder in others:
                await encoder.kill()

    asyncio.run(scenario())


def test_a_second_publisher_is_refused_while_the_first_sends_and_wins_when_it_is_silent(source):
    async def scenario():
        async with rig(replace(FAST, takeover_silence_s=0.3)) as r:
            first = await publishing(r)
            await first.send(upto(source, 2500))
            second = await Encoder.connect(r.rtmp_port)
            assert not await second.answered(b"NetStream.Publish.Start")
            assert b"already being published" in second.answers
            await asyncio.sleep(0.4)
            third = await publishing(r)
            assert await first.answered(b"taken over")
            await third.send(source)
            await third.stop()
            await r.until(lambda: r.authority.ended)
            assert len({g.broadcast_id for g in r.authority.grants}) == 1
            assert [s.sequence for s in r.authority.segments if s.discontinuity] == [3]
            for encoder in (first, second):
                await encoder.kill()

    asyncio.run(scenario())


@pytest.mark.parametrize("container", ["ts", "fmp4"])
def test_sound_alone_is_carried_once_no_picture_has_come_for_a_while(source, container):
    async def scenario():
        async with rig(replace(FAST, container=container)) as r:
            encoder = await publishing(r)
            await encoder.send([t for t in source if t[0] == 8])
            await r.until(lambda: len(r.authority.published) >= 5)
            assert "start  mp4a.40.2" in r.authority.calls
            master = (await r.http.get(r.url("/live/main.m3u8"))).text
            assert 'CODECS="mp4a.40.2"' in master
            assert "RESOLUTION" not in master
            path = master.splitlines()[-1]
            async with r.http.stream("GET", r.url("/live/main.flv")) as flv:
                start = await anext(flv.aiter_bytes())
            assert start[4] == 4
            assert {tag[0] for tag in read_flv(start)} == {8}
            init = b""
            if container == "fmp4":
                listed = m3u8.loads((await r.http.get(r.url(path))).text)
                address = path.replace("index.m3u8", listed.segments[0].init_section.uri)
                init = (await r.http.get(r.url(address))).content
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert all(1_000_000 <= s.duration_us < 1_030_000 for s in r.authority.segments[:-1])
            whole = init + b"".join(data for _, data in r.authority.published.values())
            with av.open(io.BytesIO(whole)) as file:
                assert not file.streams.video
                heard = sum(frame.samples for frame in file.decode(audio=0))
            assert abs(heard / 48 - sum(s.duration_us for s in r.authority.segments) / 1000) < 50

    asyncio.run(scenario())


def test_who_says_to_have_no_picture_is_not_waited_for(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            said = amf.encode(
                ["@setDataFrame", "onMetaData", {"audiocodecid": 10.0, "audiosamplerate": 48000.0}]
            )
            await encoder.send([(18, 0, said), *(t for t in source if t[0] == 8 and t[1] < 2200)])
            await r.until(lambda: len(r.authority.published) == 2)
            assert not any(s.discontinuity for s in r.authority.segments)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ((9, 0, b"\x90hvc1" + bytes(20)), b"the video is HEVC; set the encoder to H.264"),
        ((9, 0, b"\x90av01" + bytes(20)), b"the video is AV1; set the encoder to H.264"),
        ((8, 0, b"\x90Opus" + bytes(20)), b"the audio is Opus; set the encoder to AAC"),
        ((9, 0, b"\x14" + bytes(20)), b"the video is VP6"),
        ((8, 0, b"\x2f" + bytes(20)), b"the audio is MP3; set the encoder to AAC"),
        ((9, 0, b"\x17\x01\0\0\0" + bytes(20)), b"no H.264 sequence header"),
        ((8, 0, b"\xaf\x01" + bytes(20)), b"no AAC sequence header"),
        ((9, 0, b"\x17\x00\0\0\0" + bytes(20)), b"sequence header is malformed"),
    ],
)
def test_what_cannot_be_carried_is_refused_in_words(tag, words):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send([tag])
            assert await encoder.answered(words), encoder.answers
            assert not r.authority.published
            await encoder.kill()

    asyncio.run(scenario())


def test_why_an_encoder_was_refused_is_remembered_until_one_is_taken(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send([(8, 0, b"\x90Opus" + bytes(20))])
            await encoder.closed()
            refusal = r.origin.refusal("main")
            assert refusal is not None
            assert refusal.reason == "the audio is Opus; set the encoder to AAC"
            encoder = await publishing(r)
            assert r.origin.refusal("main") == refusal, "it has sent nothing yet"
            await encoder.send(source)
            await r.until(lambda: r.authority.published and r.origin.refusal("main") is None)
            await encoder.stop()
            assert r.origin.refusal("main") is None, "a stop is no refusal"

    asyncio.run(scenario())


def test_a_picture_without_sound_is_carried(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send([t for t in source if t[0] == 9])
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert r.authority.calls[1].endswith(" ")  # no audio codec
            assert len(r.authority.published) >= 10

    asyncio.run(scenario())


def test_a_stream_without_key_frames_is_ended_with_a_reason(source):
    async def scenario():
        async with rig(
            replace(FAST, packager=PackagerSettings(segment_target_ms=1000, segment_max_ms=4000))
        ) as r:
            encoder = await publishing(r)
            first = next(t for t in source if is_key(t))
            await encoder.send([t for t in source if t is first or not is_key(t)])
            assert await encoder.answered(b"set the key frame interval to 2 s")
            await r.until(lambda: r.authority.ended)
            assert "no key frame for 4 s" in r.authority.ended[0]
            await encoder.kill()

    asyncio.run(scenario())


def test_a_publisher_that_is_killed_and_returns_in_time_continues_the_same_broadcast(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3500))
            await r.until(lambda: len(r.authority.published) == 3)
            path = await r.media_playlist()
            await encoder.kill()
            await r.until(lambda: r.authority.interrupted)
            assert "#EXT-X-ENDLIST" not in (await r.http.get(r.url(path))).text
            encoder = await publishing(r)
            await encoder.send(upto(source, 3500))
            await r.until(lambda: len(r.authority.published) >= 7)
            text = (await r.http.get(r.url(path))).text
            assert text.count("#EXT-X-DISCONTINUITY\n") == 1
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert len({g.broadcast_id for g in r.authority.grants}) == 1
            assert [s.sequence for s in r.authority.segments] == list(range(8))
            assert [s.sequence for s in r.authority.segments if s.discontinuity] == [4]

    asyncio.run(scenario())


def test_a_publisher_that_does_not_return_ends_the_broadcast_and_the_next_one_goes_on_counting(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 2500))
            await r.until(lambda: len(r.authority.published) == 2)
            path = await r.media_playlist()
            await encoder.kill()
            await r.until(lambda: r.authority.ended)
            assert r.authority.ended == ["the publisher did not come back"]
            assert (await r.http.get(r.url(path))).text.endswith("#EXT-X-ENDLIST\n")
            assert (await r.http.get(r.url("/live/main.m3u8"))).status_code == 404
            encoder = await publishing(r)
            await encoder.send(upto(source, 2500))
            await r.until(lambda: len(r.authority.published) >= 5)
            text = (await r.http.get(r.url(await r.media_playlist()))).text
            assert "#EXT-X-MEDIA-SEQUENCE:3\n" in text
            assert len({g.rendition_id for g in r.authority.grants}) == 2
            await encoder.kill()

    asyncio.run(scenario())


@pytest.mark.parametrize("shift", [-6_000, 3_600_000, 0xFFFFF000])
def test_a_jump_of_the_encoders_clock_is_one_discontinuity_and_no_giant_segment(source, shift):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 6000))
            await encoder.send([t for t in source if t[1] >= 6000], shift)
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            segments = r.authority.segments
            assert sum(s.discontinuity for s in segments) == 1
            assert max(s.duration_us for s in segments) < 1_200_000
            assert sum(s.duration_us for s in segments) > 11_000_000

    asyncio.run(scenario())


def test_timestamps_that_wrap_are_not_a_jump(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(source, 0xFFFFFFFF - 5000)
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert len(r.authority.segments) == 12
            assert not any(s.discontinuity for s in r.authority.segments)

    asyncio.run(scenario())


def test_garbage_between_messages_closes_with_a_reason_and_the_broadcast_waits_for_a_return(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3500))
            await encoder.send_raw(bytes(i * 7 % 256 for i in range(65536)))
            assert await encoder.answered(b"is not RTMP, or not supported")
            await r.until(lambda: r.authority.interrupted or r.authority.ended)
            assert len(r.authority.published) == 4
            await encoder.kill()

    asyncio.run(scenario())


def test_garbage_inside_a_frame_costs_that_frame_and_not_the_broadcast(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3500))
            await encoder.send(
                [(9, 3500, b"\x27\x01\0\0\0" + os.urandom(65000)), (8, 3500, b"\xaf\x01" + bytes(30000))]
            )
            await encoder.send([t for t in source if t[1] >= 3500 and not is_header(t)])
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert sum(s.discontinuity for s in r.authority.segments) == 1
            assert r.authority.ended == ["stopped by the encoder"]

    asyncio.run(scenario())


def test_a_silent_client_is_closed_and_blocks_nobody(source):
    async def scenario():
        limits = replace(FAST, handshake_timeout_s=0.3, publish_timeout_s=0.6, idle_timeout_s=0.5)
        async with rig(limits) as r:
            silent = Encoder(*await asyncio.open_connection("127.0.0.1", r.rtmp_port))
            half = Encoder(*await asyncio.open_connection("127.0.0.1", r.rtmp_port))
            await half.send_raw(rtmp.C0C1C2 + rtmp.connect())
            idle = await publishing(r)
            await idle.send(upto(source, 1500))
            for encoder in (silent, half, idle):
                await encoder.closed()
            assert b"no media for 0.5 s" in idle.answers
            await r.until(lambda: r.origin.stats().encoders == 0)
            for encoder in (silent, half, idle):
                await encoder.kill()

    asyncio.run(scenario())


def test_while_the_ledger_is_away_nothing_is_listed_and_nothing_is_lost(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3500))
            await r.until(lambda: len(r.authority.published) == 3)
            path = await r.media_playlist()
            r.authority.away = True
            await encoder.send([t for t in source if 3500 <= t[1] < 9500 and not is_header(t)])
            await asyncio.sleep(0.3)
            assert (await r.http.get(r.url(path))).text.count("#EXTINF") == 3
            r.authority.away = False
            await r.until(lambda: len(r.authority.published) == 9)
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert not any(s.discontinuity for s in r.authority.segments)

    asyncio.run(scenario())


def test_a_record_that_was_made_but_reported_as_failed_is_not_made_twice(source):
    async def scenario():
        async with rig(amnesia=2) as r:
            encoder = await publishing(r)
            await encoder.send(source)
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert [s.sequence for s in r.authority.segments] == list(range(12))

    asyncio.run(scenario())


def test_what_waits_for_the_ledger_is_bounded_and_a_loss_is_a_discontinuity(source):
    async def scenario():
        async with rig(replace(FAST, pending_bytes=120_000)) as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 1500))
            await r.until(lambda: len(r.authority.published) == 1)
            r.authority.away = True
            await encoder.send([t for t in source if 1500 <= t[1] < 10500 and not is_header(t)])
            await asyncio.sleep(0.2)
            r.authority.away = False
            await r.until(lambda: len(r.authority.published) >= 3)
            await encoder.send([t for t in source if t[1] >= 10500])
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            segments = r.authority.segments
            assert [s.sequence for s in segments] == list(range(len(segments)))
            assert len(segments) < 12
            assert sum(s.discontinuity for s in segments) == 1

    asyncio.run(scenario())


def test_closing_the_origin_ends_the_broadcast_and_records_what_was_there(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3500))
            await r.until(lambda: len(r.authority.published) == 3)
            await r.origin.close()
            assert r.authority.ended == ["the hub is shutting down"]
            assert len(r.authority.published) == 4
            assert KEY not in repr(r.origin.stats())
            await encoder.kill()

    asyncio.run(scenario())


def test_a_stream_that_starts_and_stops_again_and_again_is_always_ended_and_then_forgotten(source):
    async def scenario():
        async with rig(replace(FAST, retain_s=0.02)) as r:
            for n in range(1, 16):
                encoder = await publishing(r)
                await encoder.send(upto(source, 1500 if n % 2 else 5000))
                await encoder.stop()
                await r.until(lambda n=n: len(r.authority.ended) == n)
            await r.until(lambda: not r.origin._catalogue.lives and not r.origin._catalogue.renditions)

    asyncio.run(scenario())


def other_size(source: list[Tag], tmp_path) -> list[Tag]:
    """The same kind of recording in another picture size."""
    path = tmp_path / "other.flv"
    command = (
        "ffmpeg -v error -y -f lavfi -i testsrc2=size=320x180:rate=15 -f lavfi -i sine=sample_rate=44100 -t 4"
        " -c:v libx264 -preset ultrafast -profile:v high -pix_fmt yuv420p -g 15 -keyint_min 15 -sc_threshold 0"
        f" -c:a aac -b:a 64k -ac 2 {path}"
    )
    subprocess.run(command.split(), check=True)
    return read_flv(path.read_bytes())


def test_another_picture_size_and_sample_rate_in_mid_stream_is_one_discontinuity(source, tmp_path):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3000))
            await encoder.send([t for t in other_size(source, tmp_path) if t[0] != 18], shift=3000)
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            segments = r.authority.segments
            assert [s.sequence for s in segments if s.discontinuity] == [3]
            assert len(segments) >= 6
            assert len(r.authority.grants) == 1
            joined = tmp_path / "after.ts"
            joined.write_bytes(
                b"".join(data for s, data in r.authority.published.values() if s.sequence >= 3)
            )
            shown = subprocess.run(
                [
                    "ffprobe",
                    "-v",
                    "warning",
                    "-show_entries",
                    "stream=width,sample_rate",
                    "-of",
                    "csv",
                    joined,
                ],
                capture_output=True,
                text=True,
                check=True,
            )
            assert shown.stderr == ""
            assert "320" in shown.stdout
            assert "44100" in shown.stdout

    asyncio.run(scenario())


def test_rtmps_is_the_same_over_tls_and_a_plain_client_there_costs_nobody_anything(source, tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
        f" -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(cert, key)
    trusted = ssl.create_default_context(cafile=cert)

    async def scenario():
        async with rig() as r:
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            await r.origin.start_rtmp_on([listener], served)
            plain = await asyncio.open_connection("127.0.0.1", port)
            plain[1].write(rtmp.hello(KEY))
            wrong = await Encoder.connect(port, "main_wrong", tls=trusted)
            assert await wrong.answered(b"the stream key is wrong")
            encoder = await Encoder.connect(port, tls=trusted)
            assert await encoder.answered(b"NetStream.Publish.Start")
            await encoder.send(upto(source, 3500))
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert len(r.authority.published) == 4
            await wrong.kill()
            plain[1].close()

    asyncio.run(scenario())
