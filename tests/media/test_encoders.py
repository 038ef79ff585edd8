"""What people set in their encoders, pushed by the real ffmpeg and read back by it over HLS and HTTP-FLV."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from house import House
from programs import H264, SOUND, encode, picture, pushing

pytestmark = [pytest.mark.ffmpeg, pytest.mark.slow]
STEREO = ("-c:a", "aac", "-ac", "2")
MONO_44100 = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100")
ENCODERS = {  # name: seconds of media to be sent over and over, arguments, seconds between key frames
    "bframes": (4, (*picture("640x360", "30"), *SOUND, *H264, "-g", "60", "-bf", "3", *STEREO), 2),
    "fullhd60": (2, (*picture("1920x1080", "60"), *SOUND, *H264, "-g", "120", *STEREO), 2),
    "mono": (4, (*picture("320x180", "25"), *MONO_44100, *H264, "-g", "50", "-c:a", "aac", "-ac", "1"), 2),
    "silent": (4, (*picture("320x180", "30"), *H264, "-g", "60"), 2),
    "rare-keys": (10, (*picture("320x180", "25"), *SOUND, *H264, "-g", "250", "-bf", "2", *STEREO), 10),
    # Key frames that are 1,999 ms apart by their timestamps.
    "uneven": (4, (*picture("320x180", "30.01"), *SOUND, *H264, "-g", "60", *STEREO), 2),
}


@pytest.fixture(scope="module")
def on_air(hub: House, folder: Path) -> Iterator[House]:
    """All of them push at once."""
    with contextlib.ExitStack() as stack:
        for name, (seconds, arguments, _) in ENCODERS.items():
            source = encode(folder / f"{name}.flv", seconds, *arguments)
            url = f"rtmp://127.0.0.1:{hub.rtmp_port}/live/{hub.add_stream(name)}"
            stack.enter_context(pushing(source, url, folder / f"{name}.log"))
        yield hub


def playlist(hub: House, name: str, segments: int, timeout_s: float) -> str:
    """A media playlist of a new session, once it lists as many segments."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        master = hub.ask("GET", f"/live/{name}.m3u8")
        if master.status_code == 200:
            text = hub.ask("GET", master.text.splitlines()[-1]).text
            if text.count("#EXTINF") >= segments:
                return text
        time.sleep(0.3)
    raise AssertionError(f"{name} lists no {segments} segments")


def starts(url: str) -> dict[str, float]:
    """First timestamps of picture and sound, in seconds."""
    show = ["-show_entries", "stream=codec_type,start_time", "-of", "json"]
    out = subprocess.run(["ffprobe", "-v", "error", *show, url], capture_output=True, timeout=30, check=True)
    return {s["codec_type"]: float(s["start_time"]) for s in json.loads(out.stdout)["streams"]}


@pytest.mark.parametrize("name", ENCODERS)
def test_what_an_encoder_sends_comes_out_whole_and_in_step(on_air: House, name: str) -> None:
    key_s = ENCODERS[name][2]
    text = playlist(on_air, name, 2, 3 * key_s + 15)
    durations = [float(d) for d in re.findall(r"#EXTINF:([\d.]+),", text)]
    assert all(abs(d - key_s) < 0.05 for d in durations), durations
    assert f"#EXT-X-TARGETDURATION:{key_s}\n" in text
    stamp = re.findall(r"#EXT-X-PROGRAM-DATE-TIME:(.+)", text)[-1]
    behind_s = time.time() - datetime.fromisoformat(stamp).timestamp() - durations[-1]
    assert -0.5 < behind_s < key_s + 3, "PROGRAM-DATE-TIME is the wall clock"
    for ending in ("m3u8", "flv"):
        url = f"{on_air.base}/live/{name}.{ending}"
        first = starts(url)
        assert set(first) == ({"video"} if name == "silent" else {"video", "audio"})
        assert max(first.values()) - min(first.values()) < 0.1, first
        # It says as an error that nodes are other hosts than the hub.
        apart = ["-http_persistent", "0"] if ending == "m3u8" else []
        decode = ["ffmpeg", "-v", "error", "-xerror", *apart, "-i", url, "-t", "2", "-f", "null", "-"]
        done = subprocess.run(decode, capture_output=True, text=True, timeout=40, check=False)
        assert (done.returncode, done.stderr) == (0, "")
