"""Lost, late and reordered packets between publisher, hub, node and viewer: the stream goes on, receipts arrive."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lines import TUN

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not TUN.exists() or not shutil.which("ip"),
    reason="needs root, /dev/net/tun and iproute2",
)
def test_a_broadcast_goes_on_over_a_bad_line() -> None:
    weather = ("--loss", "0.02", "--delay-ms", "30", "--reorder", "0.02", "--seed", "7")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, str(HERE / "bad_line.py"), "--seconds", "12", *weather],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("this machine does not let root make network namespaces")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["viewer"]["segments"] >= 4
    assert told["viewer"]["missed"] == 0
    assert told["node"]["credited_units"] > 0
    assert set(told["node"]["verdicts"]) <= {"accepted", "duplicate"}
    assert told["live"] == "LIVE"
