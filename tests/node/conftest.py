"""A stand-in hub, and a node that runs inside the test or as a process of its own."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_in_hub import CODE, StandInHub

from relay.node.service import Options, join, serve


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    hub.publish(6)
    yield hub
    hub.stop()


@contextlib.asynccontextmanager
async def _running(hub: StandInHub, folder: Path, options: Options) -> AsyncIterator[httpx2.AsyncClient]:
    await join(folder, hub.url, CODE, name="test node", port=8100, public_url=None)
    stop, ports = asyncio.Event(), asyncio.Queue[int]()
    task = asyncio.create_task(
        serve(folder, options, stop, ready=lambda started: ports.put_nowait(started.port))
    )
    port = asyncio.create_task(ports.get())
    await asyncio.wait({task, port}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        port.cancel()
        await task
    url = f"http://127.0.0.1:{await port}"
    try:
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            yield client
    finally:
        stop.set()
        await task


@pytest.fixture
def running() -> Callable[..., contextlib.AbstractAsyncContextManager[httpx2.AsyncClient]]:
    """`async with running(hub, folder, options) as client`: a node in this process."""

    def start(
        hub: StandInHub, folder: Path, options: Options | None = None
    ) -> contextlib.AbstractAsyncContextManager[httpx2.AsyncClient]:
        chosen = options or Options(host="127.0.0.1", port=0, send_interval_s=0.2)
        return _running(hub, folder, chosen)

    return start


class NodeProcess:
    """`streamrp2p node run` as a friend runs it."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "hub.cli",
            "node",
            "run",
            "--json",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ]
        with (data_dir / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(data_dir), *arguments], stdout=subprocess.PIPE, stderr=stderr
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (data_dir / "stderr").read_text()
        self.url = f"http://127.0.0.1:{json.loads(line)['port']}"

    def end(self, number: int) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(15)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def node_process() -> Iterator[Callable[..., NodeProcess]]:
    started: list[NodeProcess] = []

    def start(data_dir: Path, *arguments: str) -> NodeProcess:
        started.append(NodeProcess(data_dir, *arguments))
        return started[-1]

    yield start
    for node in started:
        node.end(signal.SIGKILL)
