"""Encoders for the bench: a prepared recording, sent over RTMP in real time, over and over.

`python -m bench.relay_feed RECORDING SECONDS URL...` publishes to every URL at once; each tag is one write, in chunks
of 4,096 bytes, as OBS does it.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from relay.rtmp import amf
from relay.rtmp.chunks import Message, write_message

CHUNK = 4096
SECONDS = 20
GOP_MS = 2_000
MBIT = 2.65


@dataclass(frozen=True, slots=True)
class Tag:
    kind: int
    at_ms: int
    body: bytes

    @property
    def is_header(self) -> bool:
        return self.kind == 18 or self.body[1] == 0

    @property
    def is_key(self) -> bool:
        return self.kind == 9 and self.body[0] >> 4 == 1 and self.body[1] == 1


def record(path: Path) -> None:
    """720p30 at 2.5 Mbit/s with 128 kbit/s of sound, a key frame every 2 s. Needs ffmpeg."""
    command = (
        "ffmpeg -v error -y -f lavfi -i testsrc2=size=1280x720:rate=30,noise=alls=12:allf=t"
        f" -f lavfi -i sine=frequency=440:sample_rate=48000 -t {SECONDS} -c:v libx264 -preset ultrafast"
        " -profile:v high -pix_fmt yuv420p -b:v 2500k -maxrate 2500k -bufsize 1250k -x264-params nal-hrd=cbr"
        " -g 60 -keyint_min 60 -sc_threshold 0 -c:a aac -b:a 128k -ac 2"
    )
    subprocess.run([*command.split(), str(path)], check=True)


def read(path: Path) -> list[Tag]:
    data, at, tags = path.read_bytes(), 13, []
    while at + 11 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        stamp = int.from_bytes(data[at + 4 : at + 7], "big") | data[at + 7] << 24
        tags.append(Tag(data[at], stamp, data[at + 11 : at + 11 + size]))
        at += size + 15
    while not tags[-1].is_header and tags[-1].at_ms >= SECONDS * 1000:
        tags.pop()  # the recording is a whole number of key frame intervals
    return [t for t in tags if t.kind != 9 or t.body[1] < 2]  # not the end of sequence


class Encoder:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def publish(cls, url: str) -> "Encoder":
        """Returns when the server has said yes. Raises ConnectionError."""
        parts = urlsplit(url)
        app, key = parts.path.strip("/").split("/", 1)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        encoder = cls(reader, writer)
        writer.write(b"\x03" + bytes(1536))
        answer = await reader.readexactly(1 + 2 * 1536)
        writer.write(answer[1:1537])
        connect: dict[str, amf.Amf] = {
            "app": app,
            "type": "nonprivate",
            "tcUrl": f"rtmp://{parts.netloc}/{app}",
        }
        encoder._say(20, amf.encode(["connect", 1.0, connect]), 3, 0, 128)
        await encoder._heard(b"_result")
        encoder._say(1, CHUNK.to_bytes(4, "big"), 2, 0, 128)
        encoder._say(20, amf.encode(["createStream", 2.0, None]), 3, 0)
        await encoder._heard(b"_result")
        encoder._say(20, amf.encode(["publish", 3.0, None, key, "live"]), 8, 1)
        await encoder._heard(b"NetStream.Publish.Start")
        return encoder

    async def _heard(self, text: bytes) -> None:
        said = b""
        while text not in said:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError(f"refused: {said[-200:]!r}")
            said += data

    def _say(self, kind: int, payload: bytes, channel: int, stream: int, size: int = CHUNK) -> None:
        self._writer.write(write_message(channel, Message(kind, 0, stream, payload), size))

    def send(self, tag: Tag, at_ms: int) -> None:
        channel = {8: 4, 9: 6, 18: 5}[tag.kind]
        self._writer.write(write_message(channel, Message(tag.kind, at_ms, 1, tag.body), CHUNK))

    async def run(
        self, tags: list[Tag], seconds: float, on_key: Callable[[int], None] = lambda at_ms: None
    ) -> None:
        """In real time; `on_key` is told each key frame's time just before it is sent."""
        start, base = time.perf_counter(), 0
        for tag in tags:
            if tag.is_header:
                self.send(tag, 0)
        frames = [t for t in tags if not t.is_header]
        while True:
            for tag in frames:
                at = base + tag.at_ms
                ahead = at / 1000 - (time.perf_counter() - start)
                if ahead > 0.001:
                    await asyncio.sleep(ahead)
                if at / 1000 > seconds:
                    return
                if tag.is_key:
                    on_key(at)
                self.send(tag, at)
            base += SECONDS * 1000

    def stop(self) -> None:
        """As OBS does when its button is pressed."""
        self._say(20, amf.encode(["FCUnpublish", 4.0, None, "key"]), 3, 0)

    async def drain(self) -> None:
        await self._writer.drain()

    async def finish(self) -> None:
        """Go when all that was sent has been taken, without a word."""
        self._writer.write_eof()
        while await self._reader.read(65536):  # closing over unread answers would reset the connection
            pass
        self._writer.close()

    async def close(self) -> None:
        self._writer.transport.abort()


async def feed(recording: Path, seconds: float, urls: list[str]) -> None:
    tags = read(recording)
    encoders = [await Encoder.publish(url) for url in urls]
    print("publishing", flush=True)

    async def one(encoder: Encoder, wait_s: float) -> None:
        await asyncio.sleep(wait_s)  # encoders do not start together, nor do their key frames come together
        await encoder.run(tags, seconds - wait_s)
        await encoder.close()

    spread = GOP_MS / 1000 / max(len(urls), 1)
    await asyncio.gather(*(one(e, i * spread) for i, e in enumerate(encoders)))


if __name__ == "__main__":
    uvloop.run(feed(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
