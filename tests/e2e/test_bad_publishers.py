"""What arrives on the RTMP port of a real hub and should not: each ends in a clear refusal or a clean recovery."""

import asyncio
import socket
import subprocess
import time
from pathlib import Path

import pytest
from fold import fold
from house import House, until
from relay_rig import Encoder, Tag, is_header, is_key

pytestmark = pytest.mark.ffmpeg


def push(*arguments: str, url: str, timeout_s: float = 40) -> tuple[int, str]:
    """ffmpeg to its end: exit code and what it said."""
    command = ["ffmpeg", "-v", "verbose", "-nostats", *arguments, "-f", "flv", url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, done.stderr


def playlist(hub: House, slug: str) -> str:
    """A new session's media playlist; empty when there is none."""
    master = hub.ask("GET", f"/live/{slug}.m3u8")
    return hub.ask("GET", master.text.splitlines()[-1]).text if master.status_code == 200 else ""


def sequences(text: str) -> list[int]:
    first = next((int(line.split(":")[1]) for line in text.splitlines() if "MEDIA-SEQUENCE:" in line), 0)
    return list(range(first, first + text.count("#EXTINF")))


def broadcasts(hub: House) -> int:
    with hub.connect() as connection:
        return len(fold(connection).broadcasts)


async def publishing(hub: House, slug: str) -> Encoder:
    encoder = await Encoder.connect(hub.rtmp_port, hub.keys[slug])
    assert await encoder.answered(b"NetStream.Publish.Start"), encoder.answers
    return encoder


def between(source: list[Tag], start_ms: int, end_ms: int) -> list[Tag]:
    """The configuration, and the media of [start, end)."""
    return [tag for tag in source if is_header(tag) or tag[0] == 18 or start_ms <= tag[1] < end_ms]


def test_ffmpeg_sees_that_its_key_is_wrong_and_no_media_is_taken(hub: House, source_flv: Path) -> None:
    before = broadcasts(hub)
    wrong = f"rtmp://127.0.0.1:{hub.rtmp_port}/live/main_{'a' * 32}"
    code, said = push("-re", "-i", str(source_flv), "-c", "copy", url=wrong)
    assert code != 0
    assert "key is wrong" in said
    assert broadcasts(hub) == before
    assert hub.state() == "READY"


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + bytes(600), bytes(range(256)) * 64, b""],
)
def test_what_is_not_rtmp_is_let_go_and_others_are_not_disturbed(hub: House, garbage: bytes) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", hub.rtmp_port), timeout=10) as client:
        client.sendall(garbage)
        try:
            while client.recv(65536):
                pass
        except ConnectionError:
            pass
    assert time.monotonic() - began < 9
    assert hub.ask("GET", "/api/ready").status_code == 200


def test_sound_alone_is_carried(hub: House) -> None:
    hub.add_stream("soundonly")
    sine = ("-re", "-f", "lavfi", "-i", "sine=frequency=440", "-t", "5", "-c:a", "aac")
    code, complaints = push(*sine, url=hub.push_url("soundonly"))
    assert code == 0, complaints
    assert hub.state("soundonly") in ("LIVE", "OFFLINE")


def test_a_stream_without_key_frames_is_refused_in_words(hub: House, source: list[Tag]) -> None:
    hub.add_stream("nokeys")

    async def scenario() -> None:
        encoder = await publishing(hub, "nokeys")
        first = next(tag for tag in source if is_key(tag))
        rest = [
            tag
            for tag in source
            if is_header(tag) or (tag[1] >= first[1] and (tag is first or not is_key(tag)))
        ]
        await encoder.send(rest)
        await encoder.send([t for t in rest if not is_header(t) and t is not first], shift=12_000)
        assert await encoder.answered(b"no key frame"), encoder.answers
        await encoder.kill()

    asyncio.run(scenario())


def test_a_publisher_killed_in_the_middle_comes_back_into_the_same_broadcast(
    hub: House, source: list[Tag]
) -> None:
    hub.add_stream("returns")

    async def scenario() -> None:
        before = broadcasts(hub)
        encoder = await publishing(hub, "returns")
        await encoder.send(between(source, 0, 6_500))
        await until(lambda: len(sequences(playlist(hub, "returns"))) >= 3, 8, "segments are listed")
        await encoder.kill()
        encoder = await publishing(hub, "returns")
        await encoder.send(between(source, 0, 6_500))
        await until(
            lambda: "#EXT-X-DISCONTINUITY\n" in playlist(hub, "returns"), 8, "a discontinuity is listed"
        )
        seen = sequences(playlist(hub, "returns"))
        assert seen[-1] >= 4
        assert broadcasts(hub) == before + 1
        await encoder.kill()
        await until(lambda: hub.state("returns") == "OFFLINE", 15, "the grace period is over")
        encoder = await publishing(hub, "returns")
        await encoder.send(between(source, 0, 6_500))
        await until(lambda: hub.state("returns") == "LIVE", 8, "live again")
        await until(lambda: sequences(playlist(hub, "returns"))[-1:] > seen[-1:], 8, "the sequence goes on")
        assert broadcasts(hub) == before + 2
        await encoder.stop()
        await until(lambda: hub.state("returns") == "OFFLINE", 8, "a clean end")

    asyncio.run(scenario())
    with hub.connect() as connection:
        assert fold(connection).problems == []


def test_timestamps_that_jump_back_are_a_discontinuity_and_nothing_worse(
    hub: House, source: list[Tag]
) -> None:
    hub.add_stream("jumps")

    async def scenario() -> None:
        encoder = await publishing(hub, "jumps")
        await encoder.send(between(source, 0, 5_500), shift=3_600_000)
        media = [tag for tag in between(source, 0, 5_500) if not is_header(tag)]
        await encoder.send(media)
        await until(
            lambda: len(sequences(playlist(hub, "jumps"))) >= 4, 8, "segments before and after the jump"
        )
        text = playlist(hub, "jumps")
        durations = [float(line[8:].rstrip(",")) for line in text.splitlines() if line.startswith("#EXTINF:")]
        assert max(durations) < 4
        await encoder.stop()

    asyncio.run(scenario())
