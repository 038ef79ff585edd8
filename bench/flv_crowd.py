"""A crowd of HTTP-FLV viewers of one live stream: who waits, who is lost, what it costs.

    python -m bench.flv_crowd --viewers 2000 --seconds 20

One encoder at 2.65 Mbit/s, one origin, and viewers in a process of their own that throw away what they get inside the
kernel, so that they cost little. A viewer **stalls** when nothing comes for a second. One more viewer reads the file:
how old its tags are is what everybody waits. Exit code 1 when somebody stalled, was lost or had to skip.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import select
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop

from bench.relay import Child, Ours
from bench.relay_feed import Encoder, read, record
from relay.media import flv
from relay.media.flv_reader import FlvReader

STALL_S: Final = 1.0
SETTLE_S: Final = 4.0
TURN_S: Final = 0.03  # the crowd looks so often what has come
AT_A_TIME: Final = 50  # who connect together
_DROPPED: Final = socket.MSG_TRUNC | socket.MSG_DONTWAIT  # TCP: taken from the queue without a copy
_ROOM: Final = memoryview(bytearray(1 << 20))


# --- the crowd, a process of its own ----------------------------------------------------------------------------------


class _Viewer:
    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.socket = socket.create_connection(address)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        self.got_bytes = 0
        self.last_s = time.perf_counter()
        self.gap_s = 0.0
        self.lost = False


def watch(url: str, count: int, seconds: float) -> None:
    """Prints `ready`, then what became of everybody as one JSON line."""
    parts = urlsplit(url)
    address = (str(parts.hostname), int(parts.port or 80))
    viewers: dict[int, _Viewer] = {}
    poll = select.epoll()
    for i in range(count):
        viewer = _Viewer(address, parts.path)
        viewers[viewer.socket.fileno()] = viewer
        poll.register(viewer.socket, select.EPOLLIN)
        if i % AT_A_TIME == 0:
            _turn(poll, viewers)
    end = time.perf_counter() + SETTLE_S  # all that was cached comes first
    while time.perf_counter() < end:
        _turn(poll, viewers)
    print("ready", flush=True)
    began, before = time.perf_counter(), _cpu_s()
    for viewer in viewers.values():
        viewer.got_bytes, viewer.gap_s, viewer.last_s = 0, 0.0, began
    while time.perf_counter() < began + seconds:
        _turn(poll, viewers)
    now = time.perf_counter()
    for viewer in viewers.values():
        viewer.gap_s = max(viewer.gap_s, now - viewer.last_s)
    everybody = sorted(viewers.values(), key=lambda viewer: viewer.got_bytes)
    found = {
        "lost": sum(viewer.lost for viewer in everybody),
        "stalled": sum(viewer.gap_s >= STALL_S for viewer in everybody),
        "gap_s": max(viewer.gap_s for viewer in everybody),
        "least_mbit": everybody[0].got_bytes * 8 / 1e6 / (now - began),
        "mbit": sum(viewer.got_bytes for viewer in everybody) * 8 / 1e6 / (now - began) / count,
        "cpu": (_cpu_s() - before) / (now - began),
    }
    print(json.dumps(found), flush=True)


def _turn(poll: select.epoll, viewers: dict[int, _Viewer]) -> None:
    time.sleep(TURN_S)
    for number, _ in poll.poll(0, len(viewers)):
        viewer, size = viewers[number], 0
        with contextlib.suppress(OSError):
            size = viewer.socket.recv_into(_ROOM, 0, _DROPPED)
        now = time.perf_counter()
        if size:
            viewer.got_bytes += size
            viewer.gap_s = max(viewer.gap_s, now - viewer.last_s)
            viewer.last_s = now
        else:
            viewer.lost = True
            poll.unregister(number)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the one who reads ------------------------------------------------------------------------------------------------


async def ages(port: int, path: str, started_s: float, into: list[float]) -> None:
    """How long after the encoder's clock said so each tag was there, in ms."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    tags = FlvReader()
    while size := int(await reader.readline(), 16):
        data = await reader.readexactly(size + 2)
        now_ms = (time.perf_counter() - started_s) * 1000
        into += (now_ms - tag.timestamp for tag in tags.feed(data[:-2]) if tag.kind == flv.VIDEO)


# --- all together -----------------------------------------------------------------------------------------------------


async def crowd(count: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="flv-crowd-") as folder:
        recording = Path(folder) / "recording.flv"
        record(recording)
        tags = read(recording)
    ours = await Ours.up()
    late: list[float] = []
    try:
        encoder = await Encoder.publish(f"rtmp://127.0.0.1:{ours.rtmp}/live/crowd")
        pushing = asyncio.create_task(encoder.run(tags, 3600.0))
        started_s = time.perf_counter()
        await asyncio.sleep(3.0)
        path = "/live/crowd.flv"
        url = f"http://127.0.0.1:{ours.http}{path}"
        watching = await Child.start(
            sys.executable, "-m", "bench.flv_crowd", "--watch", url, "--viewers", str(count),
            "--seconds", str(seconds),
        )  # fmt: skip
        assert await watching.line() == "ready"
        reading = asyncio.create_task(ages(ours.http, path, started_s, late))
        before, memory = ours.cpu_s(), ours.resident_bytes()
        began = time.perf_counter()
        found: dict[str, Any] = json.loads(await watching.line())
        found["origin_cpu"] = (ours.cpu_s() - before) / (time.perf_counter() - began)
        found["origin_mb"] = memory / 1e6
        found["skipped"] = (await ours.ask("stats"))["skips"]
        await watching.finish()
        for task in (reading, pushing):
            task.cancel()
        await encoder.close()
    finally:
        await ours.stop()
    late = sorted(late[len(late) // 4 :])  # what was cached when it came is older
    found["age_ms"] = {"median": late[len(late) // 2], "worst": late[-1]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.flv_crowd", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--viewers", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if arguments.watch:
        watch(arguments.watch, arguments.viewers, arguments.seconds)
        return 0
    found = uvloop.run(crowd(arguments.viewers, arguments.seconds))
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in found.items()}))
    return int(bool(found["lost"] or found["stalled"] or found["skipped"]))


if __name__ == "__main__":
    sys.exit(main())
