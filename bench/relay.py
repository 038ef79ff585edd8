"""The relay against other people's servers, each fed the same bytes at the same time (`make bench ONLY=relay`).
`python -m bench.relay PART...` measures only these: ingest, listed, http, flv, pulls, republishes.

A peer that this machine does not have costs its rows only: the reason goes to stderr. CPU is what the system charged
to the processes of each side; the publishers and viewers that drive them are processes of their own and not counted.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench import Row
from bench.relay_feed import Encoder, Tag, read, record
from bench.relay_rig import FIXED_BYTES, FIXED_COUNT, SESSION

STREAMS = 20
FFMPEGS = 3
INGEST_S = 40.0
SETTLE_S = 8.0
KEYS = 8  # segment ends whose delay is looked at
HTTP_S = 5.0
FLV_VIEWERS = 400
FLV_S = 8.0
PULLS = 200
REPUBLISHES = 100
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


def skipped(name: str, why: str) -> None:
    print(f"skipped: {name}: {why}", file=sys.stderr)


# --- processes --------------------------------------------------------------------------------------------------------


class Child:
    """A process and what it has cost so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pids = [process.pid]

    @classmethod
    async def start(cls, *command: str) -> "Child":
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        return json.loads(await self.line())

    def cpu_s(self) -> float:
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICK

    def resident_bytes(self) -> int:
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE for pid in self.pids)

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()

    async def finish(self) -> str:
        """Wait for its end; what it still said."""
        out, _ = await self._process.communicate()
        return out.decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def workers(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Ours(Child):
    rtmp: int
    http: int

    @classmethod
    async def up(cls, *how: str) -> "Ours":
        child = await cls.start(sys.executable, "-m", "bench.relay_rig", "origin", *how)
        assert isinstance(child, cls)
        where = json.loads(await child.line())
        child.rtmp, child.http = where["rtmp"], where["http"]
        return child


class Nginx(Child):
    rtmp: int
    http: int
    folder: Path

    @classmethod
    async def up(cls, folder: Path) -> "Nginx":
        """One worker, RTMP with HLS and plain files. Raises OSError when it does not start."""
        rtmp, http = free_port(), free_port()
        (folder / "www" / "hls").mkdir(parents=True)
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"""load_module {_MODULE}; {user} daemon off; worker_processes 1; pid {folder}/pid;
error_log {folder}/error.log; worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}
rtmp {{ access_log off; server {{ listen 127.0.0.1:{rtmp}; chunk_size 4096; application live {{ live on;
  hls on; hls_path {folder}/www/hls; hls_fragment 2s; hls_playlist_length 12s; }} }} }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  types {{ application/vnd.apple.mpegurl m3u8; video/mp2t ts; }}
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{http}; root {folder}/www; }} }}
"""
        )
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        child = await cls.start(program, "-c", str(folder / "nginx.conf"), "-p", str(folder))
        assert isinstance(child, cls)
        child.rtmp, child.http, child.folder = rtmp, http, folder
        for _ in range(100):
            await asyncio.sleep(0.05)
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", http), 1).close()
                break
        else:
            raise OSError("nginx did not start: " + (folder / "error.log").read_text()[-500:])
        child.pids += workers(child.pids[0])
        return child


class Ffmpegs(Child):
    """One `ffmpeg -listen` a stream, copying to HLS."""

    urls: list[str]
    _all: list[Child]

    @classmethod
    async def up(cls, folder: Path, count: int) -> "Ffmpegs":
        several: list[Child] = []
        urls = []
        for i in range(count):
            target = folder / f"ffmpeg{i}"
            target.mkdir()
            urls.append(f"rtmp://127.0.0.1:{free_port()}/live/s{i}")
            command = (
                f"ffmpeg -v error -listen 1 -i {urls[-1]} -c copy -f hls -hls_time 2 -hls_list_size 6"
                f" -hls_flags delete_segments {target}/index.m3u8"
            )
            several.append(await Child.start(*command.split()))
        self = cls(several[0]._process)
        self._all, self.urls = several, urls
        self.pids = [pid for child in several for pid in child.pids]
        await asyncio.sleep(1.0)
        return self

    async def stop(self) -> None:
        for child in self._all:
            await child.stop()


# --- ingest -----------------------------------------------------------------------------------------------------------


async def ingest(
    recording: Path, ours: Ours, nginx: Nginx | None, ffmpegs: Ffmpegs | None
) -> AsyncIterator[Row]:
    """CPU a stream of everybody over the same seconds, with the same encoder bytes; and our memory."""
    urls = [f"rtmp://127.0.0.1:{ours.rtmp}/live/s{i}" for i in range(STREAMS)]
    if nginx is not None:
        urls += [f"rtmp://127.0.0.1:{nginx.rtmp}/live/s{i}" for i in range(STREAMS)]
    if ffmpegs is not None:
        urls += ffmpegs.urls
    before = ours.resident_bytes()
    feeder = await Child.start(sys.executable, "-m", "bench.relay_feed", str(recording), str(INGEST_S), *urls)
    assert await feeder.line() == "publishing"
    await asyncio.sleep(SETTLE_S)
    sides: dict[str, tuple[Child, int]] = {"ours": (ours, STREAMS)}
    if nginx is not None:
        sides["nginx"] = (nginx, STREAMS)
    if ffmpegs is not None:
        sides["ffmpeg"] = (ffmpegs, FFMPEGS)
    start = {name: side.cpu_s() for name, (side, _) in sides.items()}
    began = time.perf_counter()
    await asyncio.sleep(INGEST_S - SETTLE_S - 4)
    elapsed = time.perf_counter() - began
    cost = {
        name: (side.cpu_s() - start[name]) / elapsed / count * 100 for name, (side, count) in sides.items()
    }
    held = (await ours.ask("stats"))["held"]
    grown = ours.resident_bytes() - before
    await feeder.finish()
    if nginx is not None:
        yield Row(
            "CPU a stream, ingest and HLS, against nginx-rtmp",
            cost["ours"],
            cost["nginx"],
            "% core",
            1.3,
            True,
        )
    if ffmpegs is not None:
        yield Row(
            "CPU a stream, ingest and HLS, against ffmpeg -c copy",
            cost["ours"],
            cost["ffmpeg"],
            "% core",
            0.5,
            True,
        )
    yield Row("memory of live streams against the segments kept", grown / 1e6, held / 1e6, "MB", 1.5, True)


async def listed(recording: Path, ours: Ours, nginx: Nginx | None) -> AsyncIterator[Row]:
    """From the key frame that ends a segment to the playlist that lists it, one stream on an idle server."""
    tags = read(recording)
    await ours.ask("slug delay")
    path = f"/live/delay/{SESSION}/index.m3u8"
    mine = await _delays(tags, f"rtmp://127.0.0.1:{ours.rtmp}/live/delay", _Playlist(ours.http, path))
    if nginx is None:
        skipped("last frame of a segment to listed", f"nginx-rtmp, and ours took {mine:.1f} ms")
        return
    source = _Playlist(nginx.http, "/hls/delay.m3u8")
    theirs = await _delays(tags, f"rtmp://127.0.0.1:{nginx.rtmp}/live/delay", source)
    yield Row("last frame of a segment to listed, against nginx-rtmp", mine, theirs, "ms", 1.7, True)


class _Playlist:
    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def read(self) -> bytes:
        if self._open is None:
            self._open = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._open
        writer.write(f"GET {self._path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        return body if head.startswith(b"HTTP/1.1 200") else b""


async def _delays(tags: list[Tag], url: str, source: _Playlist) -> float:
    """The median, in ms. The list is asked for every half millisecond after each key frame."""
    found: list[float] = []
    watching: list[asyncio.Task[None]] = []
    last = b""

    async def watch(sent: float) -> None:
        nonlocal last
        while (now := await source.read()) == last and time.perf_counter() - sent < 1.0:  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        last = now
        found.append((time.perf_counter() - sent) * 1000)

    def on_key(at_ms: int) -> None:
        if at_ms >= 4000:  # the first segment is there: waiting for it would be another measure
            watching.append(asyncio.create_task(watch(time.perf_counter())))

    encoder = await Encoder.publish(url)
    pushing = asyncio.create_task(encoder.run(tags, 2.0 * (KEYS + 2) + 0.5, on_key))
    await asyncio.sleep(3.5)
    last = await source.read()
    await pushing
    await asyncio.gather(*watching)
    await encoder.close()
    return statistics.median(found)


# --- HTTP -------------------------------------------------------------------------------------------------------------


class _Asker(asyncio.BufferedProtocol):
    """One keep-alive connection that asks for the next path as soon as the answer is there."""

    def __init__(self, paths: Iterator[str], count: dict[str, int]) -> None:
        self._paths, self._count = paths, count
        self._buffer = bytearray(1 << 20)
        self._left = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._transport.write(f"GET {next(self._paths)} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._left:
            data = bytes(self._buffer[: min(nbytes, 2048)])
            head = data.index(b"\r\n\r\n") + 4
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            length = data[:head].lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            self._left = int(length) + head
        self._left -= nbytes
        self._count["bytes"] += nbytes
        if not self._left:
            self._count["answers"] += 1
            self._ask()

    def close(self) -> None:
        self._transport.abort()


async def load(side: Child, port: int, paths: list[str], connections: int) -> tuple[float, dict[str, int]]:
    """CPU seconds of the server, and what it answered in `HTTP_S`."""

    def endless() -> Iterator[str]:
        while True:
            yield from paths

    count = {"bytes": 0, "answers": 0}
    shared, loop = endless(), asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Asker(shared, count), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.sleep(0.5)
    before, count["bytes"], count["answers"] = side.cpu_s(), 0, 0
    await asyncio.sleep(HTTP_S)
    used, answered = side.cpu_s() - before, dict(count)
    for _, asker in made:
        asker.close()
    return used, answered


async def http(ours: Ours, nginx: Nginx | None) -> AsyncIterator[Row]:
    """The same segments and the same playlist from both, asked for one after the other over eight connections."""
    await ours.ask("fill")
    segments = [f"/live/fixed/{SESSION}/{i}.ts" for i in range(FIXED_COUNT)]
    playlist = f"/live/fixed/{SESSION}/index.m3u8"
    if nginx is None:
        skipped("segments and playlists against nginx", "nginx with its RTMP module is not installed")
        return
    folder = nginx.folder / "www" / "live" / "fixed" / str(SESSION)
    folder.mkdir(parents=True)
    for i in range(FIXED_COUNT):
        (folder / f"{i}.ts").write_bytes(os.urandom(FIXED_BYTES))
    reader, writer = await asyncio.open_connection("127.0.0.1", ours.http)
    writer.write(f"GET {playlist} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
    (folder / "index.m3u8").write_bytes((await reader.read()).split(b"\r\n\r\n", 1)[1])
    results: dict[str, list[float]] = {}
    for _ in range(2):  # in turns, so that a busy moment of the machine falls on both
        for name, side, port in (("ours", ours, ours.http), ("nginx", nginx, nginx.http)):
            used, count = await load(side, port, segments, 8)
            results.setdefault(name + " segments", []).append(used * 1000 / (count["bytes"] * 8 / 1e9))
            used, count = await load(side, port, [playlist], 8)
            results.setdefault(name + " playlists", []).append(used * 1e6 / count["answers"])
    best = {name: min(values) for name, values in results.items()}
    yield Row(
        "segments of 1.2 MB against nginx",
        best["ours segments"],
        best["nginx segments"],
        "ms CPU/Gbit",
        1.0,
        True,
    )
    yield Row("playlists against nginx", best["ours playlists"], best["nginx playlists"], "us CPU", 3.0, True)


async def flv(recording: Path, ours: Ours, nginx: Nginx | None) -> AsyncIterator[Row]:
    """Viewers of one live stream and what they get for a second of CPU: ours watch over HTTP-FLV, nginx's over RTMP,
    which is all that it has for a live stream. A side that cannot keep up leaves frames out: bits are counted."""
    if nginx is None:
        skipped("viewers of a live stream against nginx-rtmp", "nginx with its RTMP module is not installed")
        return
    theirs = f"rtmp://127.0.0.1:{nginx.rtmp}/live/flv"
    tags, rates = read(recording), []
    for name, side, push, watch in (
        (
            "ours",
            ours,
            f"rtmp://127.0.0.1:{ours.rtmp}/live/flv",
            f"http://127.0.0.1:{ours.http}/live/flv.flv",
        ),
        ("nginx", nginx, theirs, theirs),
    ):
        encoder = await Encoder.publish(push)
        pushing = asyncio.create_task(encoder.run(tags, FLV_S + 14))
        await asyncio.sleep(3.0)
        crowd = await Child.start(
            sys.executable, "-m", "bench.relay_rig", "drain", watch, str(FLV_VIEWERS), str(FLV_S)
        )
        assert await crowd.line() == "ready"
        cpu, memory = side.cpu_s(), side.resident_bytes()
        took = json.loads(await crowd.line())
        rates.append(took["bytes"] * 8 / 1e6 / (side.cpu_s() - cpu))
        grown = (side.resident_bytes() - memory) / FLV_VIEWERS / 1e3
        mbit = took["bytes"] * 8 / FLV_S / FLV_VIEWERS / 1e6
        said = f"{FLV_VIEWERS} at {mbit:.2f} Mbit/s, {took['lost']} lost, {grown:.0f} kB more for each"
        print(f"viewers, {name}: {said}", file=sys.stderr)
        await crowd.finish()
        pushing.cancel()
        await encoder.close()
    yield Row("live viewers: HTTP-FLV against nginx-rtmp's RTMP", *rates, "Mbit/CPU s", 1.0)


async def pulls(ours: Ours) -> AsyncIterator[Row]:
    """A friend's node fetching segments of 1.2 MB and checking them; the check alone is what a processor without
    instructions for SHA-256 spends most on."""
    await ours.ask("fill")
    command = (sys.executable, "-m", "bench.relay_rig", "pull", f"http://127.0.0.1:{ours.http}", str(PULLS))
    runs = [json.loads(await (await Child.start(*command)).finish()) for _ in range(2)]
    whole, check = min(r["ms"] for r in runs), min(r["check_ms"] for r in runs)
    yield Row("node: CPU to pull and check a segment, against the goal", whole, 2.0, "ms", 1.0, True)
    yield Row("node: the same, against its SHA-256 alone", whole, check, "ms", 2.0, True)


async def republishes(recording: Path, ours: Ours) -> AsyncIterator[Row]:
    """Memory after many broadcasts of one stream against memory after a few."""
    tags = [t for t in read(recording) if t.is_header or t.at_ms < 5_000]
    sizes = []
    for i in range(REPUBLISHES):
        encoder = await Encoder.publish(f"rtmp://127.0.0.1:{ours.rtmp}/live/again{i % 2}")
        for tag in tags:
            encoder.send(tag, 0 if tag.is_header else tag.at_ms)
        await asyncio.sleep(0.12)
        encoder.stop()
        await asyncio.sleep(0.28)  # segments are kept for 20 s: that many broadcasts are held at any time
        await encoder.close()
        sizes.append(ours.resident_bytes())
    early, late = statistics.median(sizes[50:60]), statistics.median(sizes[-10:])
    yield Row("memory after 100 republishes against after 55", late / 1e6, early / 1e6, "MB", 1.1, True)


# --- the area ---------------------------------------------------------------------------------------------------------


def _has_rtmp() -> bool:
    return _MODULE.exists()


PARTS = ("ingest", "listed", "http", "flv", "pulls", "republishes")


async def measure(chosen: Sequence[str] = PARTS) -> AsyncIterator[Row]:
    if shutil.which("ffmpeg") is None:
        skipped("relay", "ffmpeg, which makes the recording, is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as place:
        folder = Path(place)
        recording = folder / "recording.flv"
        record(recording)
        nginx: Nginx | None = None
        if _has_rtmp():
            nginx = await Nginx.up(folder / "nginx")
        else:
            skipped("nginx-rtmp", f"{_MODULE} is not there (Debian: libnginx-mod-rtmp)")
        ours = await Ours.up()
        ffmpegs = await Ffmpegs.up(folder, FFMPEGS)
        parts: dict[str, Callable[[], AsyncIterator[Row]]] = {
            "ingest": lambda: ingest(recording, ours, nginx, ffmpegs),
            "listed": lambda: listed(recording, ours, nginx),
            "http": lambda: http(ours, nginx),
            "flv": lambda: flv(recording, ours, nginx),
            "pulls": lambda: pulls(ours),
            "republishes": lambda: republishes(recording, ours),
        }
        try:
            for name in chosen:
                async for row in parts[name]():
                    yield row
                await ffmpegs.stop()
        finally:
            await ffmpegs.stop()
            await ours.stop()
            if nginx is not None:
                await nginx.stop()


def rows(chosen: Sequence[str] = PARTS) -> Iterator[Row]:
    """Each row as soon as it is known. Under ten minutes in all."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = measure(chosen)
        try:
            while True:
                try:
                    yield runner.run(anext(found))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            runner.run(found.aclose())  # type: ignore[arg-type]


def main() -> None:
    for row in rows(sys.argv[1:] or PARTS):
        print(json.dumps(row.as_dict()), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, subprocess.CalledProcessError):
        main()
