"""A real Chromium, and a hub and a node made of the real API, real media and as little else as possible."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

from api_world import World
from stand_in import SEGMENT_S, Hub, Node

from ledger.application import Ledger

CHROMIUM = "/usr/bin/chromium"
SEGMENTS = 40


@pytest.fixture(scope="session")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One-second MPEG-TS segments (H.264, AAC) of a moving picture."""
    folder = tmp_path_factory.mktemp("media")
    video = f"testsrc2=size=426x240:rate=24:duration={SEGMENTS}"
    sound = f"sine=frequency=440:duration={SEGMENTS}"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", video, "-f", "lavfi", "-i", sound]
    command += [
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-pix_fmt",
        "yuv420p",
        "-g",
        "24",
        "-sc_threshold",
        "0",
    ]
    command += ["-c:a", "aac", "-f", "segment", "-segment_time", str(SEGMENT_S), "-segment_format", "mpegts"]
    subprocess.run([*command, str(folder / "%04d.ts")], check=True, timeout=120)
    return [path.read_bytes() for path in sorted(folder.glob("*.ts"))]


@pytest.fixture(scope="module")  # while it is open, Playwright's event loop runs and asyncio.run() cannot
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--mute-audio"]
        )
        yield browser
        browser.close()


@pytest.fixture
def world(ledger: Ledger, database_url: str, valkey_url: str, tmp_path: Path) -> Iterator[World]:
    world = World(ledger, database_url, valkey_url, tmp_path / "log")
    yield world
    world.close()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.stop()


@pytest.fixture
def hub(world: World, node: Node, segments: list[bytes]) -> Iterator[Hub]:
    hub = Hub(world, node, segments)
    yield hub
    hub.stop()
