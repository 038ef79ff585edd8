"""The real GStreamer, both generations of its player: they play through a friend's node, and on when it is killed."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from house import House
from programs import gstreamer, longest_gap_s, plain_source, pushing

pytestmark = [pytest.mark.gstreamer, pytest.mark.ffmpeg, pytest.mark.slow]


def wait(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def listed(hub: House, slug: str) -> int:
    master = hub.ask("GET", f"/live/{slug}.m3u8")
    return hub.ask("GET", master.text.split()[-1]).text.count("#EXTINF") if master.status_code == 200 else 0


@pytest.mark.parametrize("player", ["playbin3", "playbin"])
def test_gstreamer_plays_on_when_its_node_is_killed(hub: House, folder: Path, player: str) -> None:
    slug = f"for-{player}"
    url = f"rtmp://127.0.0.1:{hub.rtmp_port}/live/{hub.add_stream(slug)}"
    with pushing(plain_source(folder), url, folder / f"{player}-push.log"):
        # Given a single segment, playbin3 1.22 loses its place at the next refresh and waits for ever.
        wait(lambda: listed(hub, slug) >= 3, 25, "the stream is live")
        with gstreamer(player, f"{hub.base}/live/{slug}.m3u8", folder / f"{player}.log") as shown:
            wait(lambda: shown.displayed() > 60, 20, "it plays")
            assert shown.said("format=(string)F32LE"), "with sound"
            crew = hub.call("GET", f"/api/streams/{slug}")["crew"]
            carrier = max(crew, key=lambda node: node["viewers"])["name"]
            friend = next(f for f in hub.friends if f.name == carrier)
            assert friend.actor is not None
            friend.actor.kill()
            assert longest_gap_s(shown.displayed, 10) < 3, "a segment at most is missing when a node dies"
            assert not shown.said("ERROR")
        hub.start_node(friend)
