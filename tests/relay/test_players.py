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
from test_watching import ticket

sys.path.insert(0, str(Path(__file__).parents[1] / "media"))

from programs import vlc

from relay.origin.settings import OriginSettings
from relay.ports import Assignment

pytestmark = pytest.mark.ffmpeg
LOW = replace(FAST, container="fmp4", low_latency_viewers=5)
STATIC = Path(__file__).parents[2] / "api" / "web" / "static"
PAGE = """<!doctype html><video muted autoplay playsinline></video><script type="module">
import { Viewer } from "/static/viewer.js";
await new Viewer(document.querySelector("video"), { slug: "main" }).start();
</script>"""


# A page that comes from nowhere may not ask this machine for anything otherwise.
LOOPBACK = "--disable-features=LocalNetworkAccessChecks"
FOREIGN = """<!doctype html><video muted autoplay playsinline></video><script type="module">
import Hls from "/hls.mjs";
window.fatal = null;
const hls = new Hls();
hls.on(Hls.Events.ERROR, (_event, data) => { if (data.fatal) window.fatal = data.details; });
hls.loadSource(new URLSearchParams(location.search).get("playlist"));
hls.attachMedia(document.querySelector("video"));
</script>"""


@contextlib.asynccontextmanager
async def on_air(source: Path, settings: OriginSettings = LOW) -> AsyncIterator[Rig]:
    """The source over and over, in real time."""
    async with rig(settings) as r:
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


class Node:
    """A friend's computer, as far as a player sees it."""

    def __init__(self, r: Rig) -> None:
        self._rig = r
        self.served: list[int] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def die(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                match = re.search(rb"/segments/[0-9a-f-]{36}/(\d+)\.ts\?t=", request)
                assert match, request
                data = self._rig.authority.published[int(match[1])][1]
                self.served.append(int(match[1]))
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(data)}\r\naccess-control-allow-origin: *\r\n\r\n"
                writer.write(head.encode() + data)
                await writer.drain()
        writer.close()


@pytest.mark.browser
def test_hls_js_in_a_foreign_page_goes_on_when_its_node_dies_and_another_takes_over(source_flv):
    async def scenario():
        from playwright.async_api import async_playwright

        async with on_air(source_flv, FAST) as r, async_playwright() as playwright:
            nodes = Node(r), Node(r)
            places = [await node.start() for node in nodes]
            rendition = r.authority.grants[0].rendition_id
            r.steering.assigned = Assignment(places[0], ticket(0, 500, rendition))

            async def answer(route: Any) -> None:
                if urlsplit(route.request.url).path == "/page":
                    await route.fulfill(body=FOREIGN, content_type="text/html")
                else:
                    await route.fulfill(
                        path=STATIC / "vendor/hls.light.min.mjs", content_type="text/javascript"
                    )

            browser = await playwright.chromium.launch(
                executable_path="/usr/bin/chromium",
                args=["--no-sandbox", "--disable-dev-shm-usage", LOOPBACK],
            )
            page = await browser.new_page()
            await page.route(re.compile("^http://localhost:8/"), answer)
            await page.goto(f"http://localhost:8/page?playlist={r.url('/live/main.m3u8')}")

            async def plays_on() -> None:
                at = await page.evaluate("document.querySelector('video').currentTime")
                await page.wait_for_function(
                    f"document.querySelector('video').currentTime > {at} + 1", timeout=25_000
                )

            await plays_on()
            assert nodes[0].served
            fetched = len(r.steering.fetches)
            await nodes[0].die()
            await r.until(lambda: len(r.steering.fetches) > fetched + 1, 20)  # more than the one in ten
            r.steering.assigned = Assignment(places[1], ticket(0, 500, rendition))
            await plays_on()
            await r.until(lambda: nodes[1].served, 20)
            await plays_on()
            assert await page.evaluate("window.fatal") is None
            assert not set(nodes[0].served) & set(nodes[1].served)
            await browser.close()
            await nodes[1].die()

    asyncio.run(scenario())
