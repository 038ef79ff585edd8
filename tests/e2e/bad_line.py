"""A broadcast over bad lines: publisher, hub, node and viewer are hosts of their own, and every packet between them may
be lost, late or out of order. Run as root: `unshare --net python tests/e2e/bad_line.py --loss 0.02 --delay-ms 40`.
Prints what the viewer saw and what the node earned, as JSON.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from house import House
from lines import Lines, Weather

from hub.demo.cast import STREAMRP2P
from relay.viewers import SigningViewer

NODE_PORT = 8100
HUB, NODE, VIEWER, CREATOR = 0, 1, 2, 3


def watch(url: str, seconds: float) -> None:
    """The viewer's process: watch, then print."""

    async def scenario() -> dict[str, Any]:
        async with SigningViewer(url, "main") as viewer:
            await asyncio.sleep(seconds)
            stats = asdict(viewer.stats)
        stats["receipts"] = viewer.stats.receipts
        del stats["hashes"]
        return stats

    print(json.dumps(asyncio.run(scenario())))


def broadcast(weather: Weather, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    lines = Lines()
    here = f"10.99.{HUB}.1"
    node, viewer, creator = lines.host(NODE), lines.host(VIEWER), lines.host(CREATOR)
    lines.open(weather, seed)
    house = House(folder, extra={"STREAMRP2P_HTTP_HOST": "0.0.0.0", "STREAMRP2P_RTMP_HOST": "0.0.0.0"})
    house.environment["STREAMRP2P_PUBLIC_URL"] = f"http://{here}:{house.http_port}"

    def logs() -> str:
        return "\n".join(
            f"--- {p.stem}\n{p.read_text(errors='replace')[-2000:]}" for p in folder.glob("*.log")
        )

    try:
        house.open()
        url = f"http://{here}:{house.http_port}"
        code = house.call("POST", "/api/invites", {"friend_name": "far"})["code"]
        run = ("node", "run", url, str(code), "--send-interval", "1", "--no-page", "--no-map-port")
        house.start("node", (*node, *STREAMRP2P, *run), {"STREAMRP2P_DATA_DIR": str(folder / "far")})
        push = f"rtmp://{here}:{house.rtmp_port}/live/{house.keys['main']}"
        publisher = (*creator, sys.executable, "-m", "hub.demo.publisher", "600")
        house.start("publisher", publisher, {"DEMO_PUSH_URL": push})
        _until(lambda: house.state() == "LIVE" and house.nodes_online() == 1, logs)
        time.sleep(4)  # a few segments
        command = (*viewer, sys.executable, __file__, "--watch", url, "--seconds", str(seconds))
        seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
        _until(lambda: house.call("GET", "/api/nodes")["nodes"][0]["credited_units"] > 0, logs)
        told = house.call("GET", "/api/nodes")["nodes"][0]
        return {
            "viewer": json.loads(seen.stdout),
            "node": {k: told[k] for k in ("credited_units", "verdicts", "state")},
            "live": house.state(),
        }
    finally:
        house.close()
        lines.close()


def _until(check: Any, logs: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"it never came to that\n{logs()}")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--watch")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--reorder", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.watch:
        watch(asked.watch, asked.seconds)
        return
    weather = Weather(asked.loss, asked.delay_ms, asked.jitter_ms, asked.reorder)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(broadcast(weather, asked.seconds, asked.seed, Path(folder))))


if __name__ == "__main__":
    main()
