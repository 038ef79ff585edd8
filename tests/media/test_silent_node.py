"""What a plain player is listed when its node stops answering, or says goodbye: no segment there, from this moment."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import Friend, House
from programs import plain_source, pushing

from hub.lines import FRESH_S

pytestmark = [pytest.mark.ffmpeg, pytest.mark.slow]


def wait(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def live(hub: House, folder: Path) -> Iterator[str]:
    """The address of a master playlist."""
    url = f"rtmp://127.0.0.1:{hub.rtmp_port}/live/{hub.add_stream('falls-silent')}"
    with pushing(plain_source(folder), url, folder / "silent-push.log"):
        wait(lambda: hub.ask("GET", "/live/falls-silent.m3u8").status_code == 200, 25, "the stream is live")
        yield "/live/falls-silent.m3u8"


def carrier(hub: House, playlist: str) -> Friend | None:
    """Whose node is listed."""
    text = hub.ask("GET", playlist).text
    assert "#EXTINF" in text
    return next((f for f in hub.friends if f":{f.port}/segments/" in text), None)


def opened(hub: House, live: str) -> tuple[str, Friend]:
    """A session with a node."""
    playlist = hub.ask("GET", live).text.split()[-1]
    wait(lambda: carrier(hub, playlist), 15, "a node carries the session")
    friend = carrier(hub, playlist)
    assert friend is not None
    return playlist, friend


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process hangs; its kernel goes on taking connections."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_nothing_is_listed_at_a_node_that_does_not_answer(hub: House, live: str) -> None:
    playlist, friend = opened(hub, live)
    assert friend.actor is not None
    with frozen(friend.actor.process.pid):
        time.sleep(2 * FRESH_S)
        assert carrier(hub, playlist) is not friend
        others = {opened(hub, live)[1].name for _ in range(5)}
        assert friend.name not in others
    wait(lambda: hub.nodes_online() == len(hub.friends), 30, "it is back")
    wait(lambda: friend.name in {opened(hub, live)[1].name for _ in range(4)}, 30, "and carries again")


def test_nothing_is_listed_at_a_node_that_was_stopped(hub: House, live: str) -> None:
    playlist, friend = opened(hub, live)
    assert friend.actor is not None
    friend.actor.process.terminate()
    try:
        wait(lambda: carrier(hub, playlist) is not friend, 5, "it said goodbye")
        assert friend.actor.process.poll() is None, "before it let go of its viewers"
        friend.actor.process.wait(15)
        assert friend.actor.process.returncode == 0
    finally:
        friend.actor.stop()
        hub.start_node(friend)
