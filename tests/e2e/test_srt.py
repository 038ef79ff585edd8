"""SRT on a real hub: what listens is confined, and lives and dies with the origin."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from house import House

from hub.demo.cast import free_ports

HAS_SRT = shutil.which("ffmpeg") is not None and "srt" in (
    subprocess.run(["ffmpeg", "-v", "quiet", "-protocols"], capture_output=True, text=True).stdout.split()
)
pytestmark = [
    pytest.mark.ffmpeg,
    pytest.mark.skipif(not HAS_SRT, reason="this ffmpeg was built without SRT"),
]


def until(ready: Callable[[], object], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def listeners(port: int) -> set[Path]:
    found = subprocess.run(["pgrep", "-f", f"127.0.0.1:{port}.mode=listener"], capture_output=True, text=True)
    return {Path("/proc", pid) for pid in found.stdout.split()}


def test_an_encoder_over_srt_is_carried_by_a_confined_program_of_the_origin(
    folder: Path, source_flv: Path
) -> None:
    (port,) = free_ports(1)
    house = House(folder, extra={"STREAMRP2P_SRT_PORTS": str(port)})

    def listed() -> bool:
        with httpx2.Client(base_url=house.base, trust_env=False, timeout=10) as http:
            answer = http.get("/live/main.m3u8")
            return answer.status_code == 200 and "#EXTINF" in http.get(answer.text.splitlines()[-1]).text

    try:
        house.open()
        until(lambda: listeners(port))
        (old,) = listeners(port)
        assert "\nUid:\t0" not in (old / "status").read_text()
        assert re.search(rf"address space +{2 << 30} ", (old / "limits").read_text())
        address = f"srt://127.0.0.1:{port}?streamid={house.keys['main']}"
        command = ["ffmpeg", "-v", "error", "-nostdin", "-re", "-i", source_flv, "-c", "copy", "-f", "mpegts"]
        with subprocess.Popen([*command, address]) as pushing:
            until(listed)
            pushing.kill()
        assert house.kill("origin")
        until(lambda: not old.exists())
    finally:
        house.close()
    until(lambda: not listeners(port))
