"""Glass to glass: from a frame's drawing to its showing in a real Chromium, by the player of the watch page.

Each frame carries the time it was drawn as black and white blocks; a page reads them back from the picture it shows.
Both clocks are this machine's. The encoder is x264 without look-ahead, over RTMP; both hubs get the same bytes.
"""

import asyncio
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import uvloop

from bench import Row
from bench.relay import Ours, skipped
from bench.relay_feed import Encoder, Tag
from bench.relay_rig import SESSION

CHROMIUM = Path("/usr/bin/chromium")
STATIC = Path(__file__).parents[1] / "api/web/static"
GOAL_S = 1.2
SECONDS = 30
SETTLE_S = 10
ON_AIR_S = 14  # before somebody watches: the playlists are full
FPS, WIDTH, HEIGHT = 30, 640, 360
BITS, BLOCK = 32, 20  # as in the page
KEY_FRAMES = 2 * FPS
RATE, SAMPLES = 48_000, 1024

PAGE = """<!doctype html><video muted autoplay playsinline></video><script type="module">
import { Viewer } from "/static/viewer.js";
const video = document.querySelector("video"), canvas = document.createElement("canvas");
const BITS = 32, BLOCK = 20;
canvas.width = BITS * BLOCK; canvas.height = BLOCK;
const context = canvas.getContext("2d", { willReadFrequently: true });
window.seen = []; window.stalls = 0;
video.addEventListener("waiting", () => window.stalls++);
function look() {
  context.drawImage(video, 0, 0, canvas.width, BLOCK, 0, 0, canvas.width, BLOCK);
  const row = context.getImageData(0, BLOCK / 2, canvas.width, 1).data;
  let at = 0;
  for (let bit = 0; bit < BITS; bit++) at = 2 * at + (row[4 * (bit * BLOCK + BLOCK / 2)] > 127 ? 1 : 0);
  window.seen.push((Date.now() % 2 ** BITS) - at);
  video.requestVideoFrameCallback(look);
}
video.requestVideoFrameCallback(look);
await new Viewer(video, { slug: "clock" }).start();
</script>"""


class Camera:
    """Draws and encodes in a thread of its own, in real time; `tags` are FLV tags for RTMP, headers first."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.video, self.audio = _encoders()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def headers(self) -> list[Tag]:
        return [
            Tag(9, 0, b"\x17\0\0\0\0" + bytes(self.video.extradata)),
            Tag(8, 0, b"\xaf\0" + bytes(self.audio.extradata)),
        ]

    def _run(self) -> None:
        picture = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
        noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
        silence = np.zeros((2, SAMPLES), np.float32)
        began, sounds = time.monotonic(), 0
        for number in range(1 << 30):
            at_ms = number * 1000 // FPS
            self._stop.wait(max(0.0, began + at_ms / 1000 - time.monotonic()))
            if self._stop.is_set():
                return
            picture[:HEIGHT] = np.roll(noise, number, axis=1) // 8 + 100
            stamp = int(time.time() * 1000) % (1 << BITS)
            bits = np.array([stamp >> (BITS - 1 - i) & 1 for i in range(BITS)], np.uint8)
            picture[:BLOCK, : BITS * BLOCK] = np.repeat(bits * 219 + 16, BLOCK)
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = at_ms, Fraction(1, 1000)
            for packet in self.video.encode(frame):
                kind = b"\x17" if packet.is_keyframe else b"\x27"
                self._send(Tag(9, at_ms, kind + b"\1\0\0\0" + bytes(packet)))
            while sounds * SAMPLES * 1000 // RATE <= at_ms:
                sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
                sound.sample_rate, sound.pts, sound.time_base = RATE, sounds * SAMPLES, Fraction(1, RATE)
                for packet in self.audio.encode(sound):
                    self._send(Tag(8, sounds * SAMPLES * 1000 // RATE, b"\xaf\1" + bytes(packet)))
                sounds += 1


def _encoders() -> tuple[Any, Any]:
    video: Any = av.CodecContext.create("libx264", "w")
    video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    video.time_base, video.framerate = Fraction(1, 1000), Fraction(FPS, 1)
    video.bit_rate, video.gop_size = 1_500_000, KEY_FRAMES
    # One NAL unit length for all: extradata as an AVCDecoderConfigurationRecord, frames with lengths.
    video.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "annexb=0:scenecut=0"}
    video.flags |= av.codec.context.Flags.global_header
    video.open()
    audio: Any = av.CodecContext.create("aac", "w")
    audio.sample_rate, audio.layout, audio.format = RATE, "stereo", "fltp"
    audio.time_base, audio.bit_rate = Fraction(1, RATE), 128_000
    audio.flags |= av.codec.context.Flags.global_header
    audio.open()
    return video, audio


async def _watched(page: Any, base: str) -> None:
    async def answer(route: Any) -> None:
        path = urlsplit(route.request.url).path
        if path == "/page":
            await route.fulfill(body=PAGE, content_type="text/html")
        elif path == "/api/sessions":
            found = {"session_id": str(SESSION), "playlist_url": f"{base}/live/clock/{SESSION}/index.m3u8"}
            await route.fulfill(status=201, json=found)
        elif path.startswith("/static/"):
            await route.fulfill(path=STATIC / path.removeprefix("/static/"), content_type="text/javascript")
        else:
            await route.continue_()

    await page.route(re.compile("/(page|api/|static/)"), answer)
    await page.goto(f"{base}/page")
    await asyncio.sleep(SETTLE_S)
    await page.evaluate("window.seen.length = 0; window.stalls = 0")


async def _measured(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = await page.evaluate("({seen: window.seen, stalls: window.stalls})")
    if not found["seen"]:
        raise RuntimeError("nothing was shown")
    return found


async def latency() -> AsyncIterator[Row]:
    """Both players at the same time, in one browser, of one camera."""
    from playwright.async_api import async_playwright

    low, plain = await Ours.up("low-latency"), await Ours.up()
    loop = asyncio.get_running_loop()
    try:
        encoders = []
        for hub in (low, plain):
            await hub.ask("slug clock")
            encoders.append(await Encoder.publish(f"rtmp://127.0.0.1:{hub.rtmp}/live/clock"))

        def send(tag: Tag) -> None:
            for encoder in encoders:
                encoder.send(tag, tag.at_ms)

        camera = Camera(lambda tag: loop.call_soon_threadsafe(send, tag))
        for tag in camera.headers():
            send(tag)
        camera.start()
        await asyncio.sleep(ON_AIR_S)
        try:
            async with async_playwright() as playwright:
                flags = [
                    "--no-sandbox",
                    "--disable-dev-shm-usage",
                    "--autoplay-policy=no-user-gesture-required",
                ]
                browser = await playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
                pages = [await browser.new_page() for _ in range(2)]
                bases = [f"http://127.0.0.1:{hub.http}" for hub in (low, plain)]
                await asyncio.gather(*(_watched(p, b) for p, b in zip(pages, bases, strict=True)))
                await asyncio.sleep(SECONDS)
                ours, others = [await _measured(page) for page in pages]
                await browser.close()
        finally:
            camera.stop()
    finally:
        for hub in (low, plain):
            await hub.stop()
    middle, behind = (float(np.percentile(side["seen"], 50)) / 1000 for side in (ours, others))
    worst = np.percentile(ours["seen"], 99) / 1000
    frames = f"{len(ours['seen'])} frames, {ours['stalls']} stalls, worst in a hundred {worst:.2f} s"
    print(f"glass to glass: {frames}", file=sys.stderr)
    yield Row("glass to glass in Chromium, parts of 0.2 s, against the goal", middle, GOAL_S, "s", 1.0, True)
    yield Row("glass to glass in Chromium, parts against segments of 2 s", middle, behind, "s", 0.3, True)


def rows() -> Iterator[Row]:
    if not (CHROMIUM.exists() and (STATIC / "vendor").exists()):
        skipped("glass to glass", "no Chromium, or no player (make ready)")
        return
    found: list[Row] = []

    async def collect() -> None:
        async for row in latency():
            found.append(row)  # noqa: PERF401

    uvloop.run(collect())
    yield from found
