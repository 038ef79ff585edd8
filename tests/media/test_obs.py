"""The real OBS Studio: what was typed into its two fields works, or it says what is wrong."""

import time
from pathlib import Path

import httpx2
import pytest
from house import House
from programs import obs

pytestmark = [pytest.mark.obs, pytest.mark.slow]
INVALID_STREAM = (
    "failed: -3"  # OBS_OUTPUT_INVALID_STREAM: "could not access the specified channel or stream key"
)


def wait(condition, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def said(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text(errors="replace")


def segments(hub: House, slug: str) -> int:
    """The media sequence after the last listed segment."""
    try:
        master = hub.ask("GET", f"/live/{slug}.m3u8")
        if master.status_code != 200:
            return 0
        text = hub.ask("GET", master.text.splitlines()[-1]).text
    except httpx2.HTTPError:
        return 0
    first = next((line for line in text.splitlines() if line.startswith("#EXT-X-MEDIA-SEQUENCE:")), ":0")
    return int(first.rpartition(":")[2]) + text.count("#EXTINF")


def test_obs_tells_its_user_that_the_key_is_wrong(hub: House, folder: Path) -> None:
    server, key = f"rtmp://127.0.0.1:{hub.rtmp_port}/live", "from-obs_" + "a" * 32
    with obs(server, key, folder / "obs-wrong") as log:
        wait(lambda: said(log, INVALID_STREAM), 30, "OBS says so")


def test_obs_goes_live_and_comes_back_by_itself_after_the_hub_was_killed(hub: House, folder: Path) -> None:
    server, key = f"rtmp://127.0.0.1:{hub.rtmp_port}/live", hub.add_stream("from-obs")
    with obs(server, key, folder / "obs") as log:
        wait(lambda: segments(hub, "from-obs") >= 3, 40, "OBS is live")
        began = hub.call("GET", "/api/streams/from-obs")["started_us"]
        before = segments(hub, "from-obs")
        assert hub.kill("origin")
        wait(lambda: segments(hub, "from-obs") > before, 40, "OBS is back")
        assert hub.call("GET", "/api/streams/from-obs")["started_us"] == began, "the same broadcast goes on"
        assert said(log, "==== Streaming Start")
