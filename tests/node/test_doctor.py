"""`streamrp2p doctor` for a friend, against a real node process and a hub that can be made to fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stand_in_hub import CODE, StandInHub


def doctor(data_dir: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    command = [sys.executable, "-m", "hub.cli", "doctor", "--json", "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0)
    return done.returncode, {f["check"]: f for f in told["findings"]}


def test_a_node_that_works_has_nothing_wrong(hub: StandInHub, node_process, tmp_path: Path) -> None:
    node_process(tmp_path, hub.url, CODE)
    code, found = doctor(tmp_path)
    assert code == 0, found
    assert found.keys() >= {"folder", "identity", "hub", "clock", "node", "reached", "upload", "receipts"}
    assert {f["state"] for f in found.values()} == {"ok"}
    assert hub.uploads == [2 * 1024 * 1024]
    hub.unreachable = "no answer within 4 s: is the port forwarded?"
    code, found = doctor(tmp_path)
    assert (code, found["reached"]["state"]) == (1, "fail")
    assert "is the port forwarded?" in found["reached"]["said"]
    assert "--public-url" in found["reached"]["advice"]


def test_a_clock_that_is_off_is_named_with_its_size(hub: StandInHub, node_process, tmp_path: Path) -> None:
    node_process(tmp_path, hub.url, CODE)
    hub.clock_offset_s = 1_200
    code, found = doctor(tmp_path)
    assert (code, found["clock"]["state"]) == (0, "warn"), found
    assert "clock is 20 minutes behind the hub's: one of the two is wrong" in found["clock"]["said"]


def test_a_hub_that_is_away_and_a_node_that_does_not_run(
    hub: StandInHub, node_process, tmp_path: Path
) -> None:
    node = node_process(tmp_path, hub.url, CODE)
    node.end(9)
    hub.stop()
    try:
        code, found = doctor(tmp_path)
    finally:
        hub.restart()
    assert code == 1
    assert found["hub"]["state"] == "fail"
    assert found["node"]["advice"] == "streamrp2p node run"
    assert found["reached"]["state"] == "skip"


def test_nothing_here_yet(tmp_path: Path) -> None:
    code, found = doctor(tmp_path)
    assert code == 0
    assert found["installation"]["state"] == "warn"


def test_a_damaged_profile_is_told(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "node.json").write_text("{")
    code, found = doctor(tmp_path)
    assert (code, found["identity"]["state"]) == (1, "fail")
    assert "join" in found["identity"]["advice"]
