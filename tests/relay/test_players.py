"""Fragmented MP4 and parts in players as people have them."""

import asyncio
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from relay_rig import FAST, Rig, rig
from test_real_programs import probe, run

sys.path.insert(0, str(Path(__file__).parents[1] / "media"))

from programs import vlc

pytestmark = pytest.mark.ffmpeg
LOW = replace(FAST, container="fmp4", low_latency_viewers=5)
STATIC = Path(__file__).parents[2] / "api" / "web" / "static"
PAGE = """<!doctype html><video muted autoplay playsinline></video><script type="module">
import { Viewer } from "/static/viewer.js";
await new Viewer(document.querySelector("video"), { slug: "main" }).start();
</script>"""


@contextlib.asynccontextmanager
async def on_air(source: Path) -> AsyncIterator[Rig]:
    """The source over and over, in real time."""
    async with rig(LOW) as r:
        command = ["ffmpeg", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(source), "-c", "copy"]
        process = await asyncio.create_subprocess_exec(
            *command, "-f", "flv", r.rtmp_url, stdin=asyncio.subprocess.DEVNULL
        )
        try:
            await r.until(lambda: len(r.authority.published) >= 3, 15)
            yield r
        finally:
            process.kill()
            await process.wait()


def test_ffmpeg_reads_fragmented_mp4_without_a_complaint(source_flv):
    async def scenario():
        async with on_air(source_flv) as r:
            url = r.url("/live/main.m3u8")
            streams = await probe(url)
            assert (streams["h264"]["width"], streams["h264"]["height"]) == (192, 108)
            assert streams["aac"]["sample_rate"] == "48000"
            play = ("ffmpeg", "-v", "warning", "-i", url, "-t", "3", "-f", "null", "-")
            code, _, complaints = await run(*play)
            # It reads the init segment again with each playlist, whoever serves it, and says so.
            rest = [line for line in complaints.splitlines() if "duplicated MOOV" not in line]
            assert (code, rest) == (0, [])

    asyncio.run(scenario())


@pytest.mark.vlc
def test_vlc_shows_fragmented_mp4_though_parts_are_offered(source_flv):
    async def scenario():
        async with on_air(source_flv) as r:
            with tempfile.TemporaryDirectory(prefix="sp2p-vlc-") as folder:
                Path(folder).chmod(0o711)
                with vlc(r.url("/live/main.m3u8"), Path(folder) / "vlc") as player:
                    await r.until(lambda: player.displayed() > 30, 25)

    asyncio.run(scenario())


@pytest.mark.browser
def test_the_watch_page_plays_parts_that_are_not_a_segment_yet(source_flv):
    async def scenario():
        from playwright.async_api import async_playwright

        async with on_air(source_flv) as r, async_playwright() as playwright:
            asked: list[str] = []
            session = (await r.media_playlist()).split("/")[3]

            async def answer(route: Any) -> None:
                path = urlsplit(route.request.url).path
                if path == "/page":
                    await route.fulfill(body=PAGE, content_type="text/html")
                elif path == "/api/sessions":
                    playlist_url = r.url(f"/live/main/{session}/index.m3u8")
                    opened = json.dumps({"session_id": session, "playlist_url": playlist_url})
                    await route.fulfill(status=201, body=opened, content_type="application/json")
                else:
                    file = STATIC / path.removeprefix("/static/")
                    await route.fulfill(path=file, content_type="text/javascript")

            browser = await playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            page = await browser.new_page()
            await page.route(re.compile("/(page|api/|static/)"), answer)
            page.on("request", lambda request: asked.append(request.url))
            await page.goto(r.url("/page"))
            await page.wait_for_function("document.querySelector('video').currentTime > 0", timeout=20_000)
            began = await page.evaluate("document.querySelector('video').currentTime")
            await page.wait_for_function(
                f"document.querySelector('video').currentTime > {began} + 3", timeout=20_000
            )
            parts = [url for url in asked if re.search(r"/\d+\.\d+\.m4s$", url)]
            assert len(parts) >= 10
            assert sum("_HLS_part=" in url for url in asked) >= 10
            await browser.close()

    asyncio.run(scenario())
