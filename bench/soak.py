"""Days of one stream in a minute or two: timestamps that wrap, encoders that come back, keys that change.

    python -m bench.soak --hours 30

An encoder sends as fast as it is read, a picture and a sound frame for each half second of its clock; so 30 hours pass
the end of RTMP's 32 bits of milliseconds several times and that of MPEG-TS's 33 bits (26.5 h) once. Every two hours
it is gone and comes back with another clock, every six with another key; the old one must be refused. The origin is a
process of its own, with the ledger's ports in memory, and looks at each segment that it is given to record. Exit code
1 when anything is not as it must be.
"""

import asyncio
import json
import resource
import socket
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import NAMESPACE_DNS, UUID, uuid4, uuid5

import structlog
import typer
import uvloop

from bench import Row
from bench.__main__ import line
from bench.relay import Child
from bench.relay_feed import Encoder, Tag
from bench.relay_rig import Steering
from hub.clock import now_us
from ledger.events import Segment
from relay.origin.settings import OriginSettings
from relay.ports import BroadcastGrant, StreamGrant
from relay.service import Origin

BLOCK_S: Final = 7_200  # of media, from one connection
ROTATE_BLOCKS: Final = 3
GOP_MS, STEP_MS = 2_000, 500
RESUMED_MS: Final = 40  # relay.media.timeline: between the last frame of an encoder and the first of the next
PTS_WRAP: Final = 1 << 33
HEADERS: Final = (
    (
        9,
        "17000000000142c01fffe100236742c01fda014016ec0440000003004000000f1800000989600009896e2a20078c19500100"
        "0468ce3c80",
    ),
    (8, "af00119056e500"),
)


# --- the origin -------------------------------------------------------------------------------------------------------


class Looker:
    """relay.ports.PublishAuthority: one key is right at a time; each segment is looked at."""

    def __init__(self) -> None:
        self.key = ""
        self.good = self.discontinuities = self.broadcasts = 0
        self._open: BroadcastGrant | None = None
        self._next = 0
        self._pts: int | None = None
        self._counters: dict[int, int] = {}

    async def check_key(self, stream_key: str) -> StreamGrant | None:
        return StreamGrant(uuid5(NAMESPACE_DNS, "soak"), "soak") if stream_key == self.key else None

    async def start_broadcast(self, stream_id: UUID, video_codec: str, audio_codec: str) -> BroadcastGrant:
        ids = (self._open.broadcast_id, self._open.rendition_id) if self._open else (uuid4(), uuid4())
        self.broadcasts += self._open is None
        self._open = BroadcastGrant(stream_id, "soak", *ids, self._next, self._open is not None)
        return self._open

    async def publish_segments(
        self, grant: BroadcastGrant, segments: Sequence[Segment], media: Sequence[bytes]
    ) -> None:
        for segment, data in zip(segments, media, strict=True):
            self.discontinuities += segment.discontinuity
            in_step = self._in_step(data, segment.discontinuity)
            in_order = segment.sequence == self._next
            self.good += in_step and in_order and abs(segment.duration_us - GOP_MS * 1000) <= STEP_MS * 1000
            self._next = segment.sequence + 1

    async def interrupt_broadcast(self, grant: BroadcastGrant, reason: str) -> None: ...

    async def end_broadcast(self, grant: BroadcastGrant, reason: str) -> None:
        self._open = None

    def _in_step(self, data: bytes, broken: bool) -> bool:
        """Counters go on, and each picture is shown when its turn is."""
        good = len(data) % 188 == 0
        for at in range(0, len(data), 188):
            pid, counter = int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF, data[at + 3] & 0x0F
            good = good and counter == (self._counters.get(pid, counter - 1) + 1) % 16
            self._counters[pid] = counter
            if pid != 0x102 or not data[at + 1] & 0x40:
                continue
            stamp = int.from_bytes(data[at + 4 + 1 + data[at + 4] + 9 :][:5], "big")
            pts = (stamp >> 33 & 7) << 30 | (stamp >> 17 & 0x7FFF) << 15 | (stamp >> 1 & 0x7FFF)
            if self._pts is not None:
                ahead_ms = (pts - self._pts) % PTS_WRAP // 90
                good = good and ahead_ms == (RESUMED_MS if broken else STEP_MS)
            self._pts, broken = pts, False
        return good


async def origin() -> None:
    looker = Looker()
    settings = OriginSettings(retain_s=1.0, retain_bytes=8 << 20, publish_grace_s=30.0)
    served = Origin(looker, Steering(), settings, now_us)
    rtmp = socket.create_server(("127.0.0.1", 0))
    await served.start_rtmp_on([rtmp])
    print(json.dumps({"port": rtmp.getsockname()[1]}), flush=True)
    loop = asyncio.get_running_loop()
    while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if command.startswith("key "):
            looker.key = command[4:]
        said = {name: getattr(looker, name) for name in ("good", "discontinuities", "broadcasts")}
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        said["cpu_s"] = round(cpu.ru_utime + cpu.ru_stime, 2)
        print(json.dumps(said), flush=True)
    await served.close(5.0)


# --- the encoder ------------------------------------------------------------------------------------------------------


def frame(kind: int, *, key: bool) -> bytes:
    if kind == 8:
        return b"\xaf\x01" + bytes(range(1, 200))
    unit = (b"\x65" if key else b"\x41") + bytes(range(1, 250)) * (3 if key else 1)
    return (b"\x17" if key else b"\x27") + b"\x01\0\0\0" + len(unit).to_bytes(4, "big") + unit


KEY_FRAME, PICTURE, SOUND = frame(9, key=True), frame(9, key=False), frame(8, key=False)


async def block(port: int, key: str, first_ms: int) -> None:
    """Two hours from one connection, which then closes without a word."""
    encoder = await Encoder.publish(f"rtmp://127.0.0.1:{port}/live/{key}")
    for kind, body in HEADERS:
        encoder.send(Tag(kind, 0, bytes.fromhex(body)), first_ms & 0xFFFFFFFF)
    for at in range(0, BLOCK_S * 1000, STEP_MS):
        stamp = (first_ms + at) & 0xFFFFFFFF
        whole = at % GOP_MS == 0
        encoder.send(Tag(9, 0, KEY_FRAME if whole else PICTURE), stamp)
        encoder.send(Tag(8, 0, SOUND), stamp)
        if whole:
            await encoder.drain()
    await encoder.finish()


async def refused(port: int, key: str) -> bool:
    try:
        await (await Encoder.publish(f"rtmp://127.0.0.1:{port}/live/{key}")).close()
    except ConnectionError:
        return True
    return False


async def soak(hours: int) -> AsyncIterator[Row]:
    child = await Child.start(sys.executable, "-m", "bench.soak", "--serve")
    port = json.loads(await child.line())["port"]
    blocks, sizes, refusals, rotations = hours * 3600 // BLOCK_S, [], 0, 0
    key = "soak_0"
    await child.ask(f"key {key}")
    for i in range(blocks):
        if i and i % ROTATE_BLOCKS == 0:
            old, key = key, f"soak_{i}"
            await child.ask(f"key {key}")
            refusals += await refused(port, old)
            rotations += 1
        # Odd connections wrap in their middle, even ones begin anywhere.
        await block(port, key, -BLOCK_S * 500 if i % 2 else i * 123_456_789)
        await asyncio.sleep(0.2)  # it sees the end, and records the last segment
        said = await child.ask("look")
        sizes.append(child.resident_bytes())
        print(f"soak: {(i + 1) * BLOCK_S // 3600} h, {said}, {sizes[-1] / 1e6:.0f} MB", file=sys.stderr)
    await child.stop()
    segments = blocks * BLOCK_S * 1000 // GOP_MS
    yield Row(f"soak: segments whole and in step in {hours} h", said["good"], segments, "segments", 1.0)
    yield Row(
        "soak: discontinuities against encoders that came back",
        said["discontinuities"],
        blocks - 1,
        "",
        1.0,
        True,
    )
    yield Row("soak: broadcasts, of one creator who always came back", said["broadcasts"], 1, "", 1.0, True)
    yield Row("soak: old keys refused", refusals, rotations, "", 1.0)
    late, early = statistics.median(sizes[-3:]), statistics.median(sizes[2:5])
    yield Row("soak: memory at the end against after 10 h", late / 1e6, early / 1e6, "MB", 1.1, True)


async def show(hours: int, *, as_json: bool) -> bool:
    reached = True
    async for row in soak(hours):
        print(json.dumps(row.as_dict()) if as_json else line(row), flush=True)
        reached = reached and row.reached
    return reached


def main(
    hours: int = typer.Option(30, min=18, max=2_000, help="Of media."),
    json_: bool = typer.Option(False, "--json", help="One JSON object a line."),
    serve: bool = typer.Option(False, hidden=True),
) -> None:
    """Exit code 1 when anything is not as it must be."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # not a line of log for each key
    if serve:
        uvloop.run(origin())
    else:
        raise typer.Exit(not uvloop.run(show(hours, as_json=json_)))


if __name__ == "__main__":
    typer.run(main)
