"""The real ffmpeg pushes; the real ffprobe and ffmpeg read HLS and HTTP-FLV."""

import asyncio
import json
from pathlib import Path

import pytest
from relay_rig import Rig, rig

pytestmark = pytest.mark.ffmpeg


async def run(*command: str, timeout_s: float = 30) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


async def push(r: Rig, source: Path, seconds: int, url: str | None = None) -> tuple[int, str]:
    code, _, err = await run(
        "ffmpeg", "-v", "info", "-nostats", "-re", "-i", str(source), "-t", str(seconds), "-c", "copy",
        "-f", "flv", url or r.rtmp_url,
    )  # fmt: skip
    return code, err


async def probe(url: str) -> dict:
    code, out, err = await run(
        "ffprobe",
        "-v",
        "error",
        "-show_entries",
        "stream=codec_name,width,height,sample_rate",
        "-of",
        "json",
        url,
    )
    assert code == 0, err
    return {stream["codec_name"]: stream for stream in json.loads(out)["streams"]}


def test_ffmpeg_pushes_and_ffmpeg_plays_hls_and_flv_without_a_complaint(source_flv):
    async def scenario():
        async with rig() as r:
            pushing = asyncio.create_task(push(r, source_flv, 9))
            await r.until(lambda: len(r.authority.published) >= 2)
            hls, flv = r.url("/live/main.m3u8"), r.url("/live/main.flv")
            for url in (hls, flv):
                streams = await probe(url)
                assert (streams["h264"]["width"], streams["h264"]["height"]) == (192, 108)
                assert streams["aac"]["sample_rate"] == "48000"
            played = await asyncio.gather(
                *(
                    run("ffmpeg", "-v", "warning", "-i", url, "-t", "3", "-f", "null", "-")
                    for url in (hls, flv)
                )
            )
            for code, _, complaints in played:
                assert (code, complaints) == (0, "")
            code, log = await pushing
            assert code == 0, log
            await r.until(lambda: r.authority.ended == ["stopped by the encoder"])

    asyncio.run(scenario())


def test_the_recorded_segments_decode_as_one_stream_to_the_last_frame(source_flv, tmp_path):
    async def scenario():
        async with rig() as r:
            code, log = await push(r, source_flv, 4)
            assert code == 0, log
            await r.until(lambda: r.authority.ended)
            joined = tmp_path / "joined.ts"
            joined.write_bytes(b"".join(data for _, data in r.authority.published.values()))
            code, out, complaints = await run(
                "ffprobe", "-v", "warning", "-count_frames", "-show_entries", "stream=nb_read_frames,codec_name",
                "-of", "json", str(joined),
            )  # fmt: skip
            assert (code, complaints) == (0, "")
            frames = {s["codec_name"]: int(s["nb_read_frames"]) for s in json.loads(out)["streams"]}
            assert 60 <= frames["h264"] <= 62  # where -t cuts depends on the B-frames
            assert frames["aac"] >= 186

    asyncio.run(scenario())


def test_ffmpeg_with_a_wrong_key_or_app_fails_and_nothing_is_recorded(source_flv):
    async def scenario():
        async with rig() as r:
            base = f"rtmp://127.0.0.1:{r.rtmp_port}"
            code, log = await push(r, source_flv, 3, f"{base}/live/main_nonsense")
            assert code != 0
            assert "the stream key is wrong" in log
            code, log = await push(r, source_flv, 3, f"{base}/other/main_nonsense")
            assert code != 0
            assert not r.authority.published

    asyncio.run(scenario())
