"""The real VLC: plays through a friend's node, and goes on when that node, or the hub, is killed."""

import time
from pathlib import Path

import pytest
from house import House
from programs import plain_source, pushing, vlc

pytestmark = [pytest.mark.vlc, pytest.mark.ffmpeg, pytest.mark.slow]


def wait(condition, timeout_s: float, what: str) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.1)
    return time.monotonic() - began


def test_vlc_goes_on_when_its_node_and_then_the_hub_are_killed(hub: House, folder: Path) -> None:
    key = hub.add_stream("for-vlc")
    with pushing(plain_source(folder), f"rtmp://127.0.0.1:{hub.rtmp_port}/live/{key}", folder / "push.log"):
        wait(lambda: hub.ask("GET", "/live/for-vlc.m3u8").status_code == 200, 15, "the stream is live")
        with vlc(f"{hub.base}/live/for-vlc.flv", folder / "vlc-flv") as player:
            wait(lambda: player.displayed() > 30, 15, "HTTP-FLV is shown")
        with vlc(f"{hub.base}/live/for-vlc.m3u8", folder / "vlc-hls") as player:
            wait(lambda: player.displayed() > 60, 15, "HLS is shown")
            crew = hub.call("GET", "/api/streams/for-vlc")["crew"]
            carrier = max(crew, key=lambda node: node["viewers"])["name"]
            friend = next(f for f in hub.friends if f.name == carrier)
            assert friend.actor is not None
            friend.actor.kill()
            assert player.longest_gap_s(10) < 3, "a segment at most is missing when a node dies"
            hub.start_node(friend)
            assert hub.kill("origin")
            shown = player.displayed()
            wait(lambda: player.displayed() > shown + 240, 45, "it plays on with the hub that started again")
            assert player.process.poll() is None
