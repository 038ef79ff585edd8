"""Folders as an operator has them, and a hub that steers."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger.application import Ledger

sys.path.insert(0, str(Path(__file__).parent))

from steering_rig import Clock, Hub


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """Reachable by the embedded servers' account, unlike pytest's own tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="sp2p-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def eventually() -> Callable[..., None]:
    def wait(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def hub(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    with ThreadPoolExecutor(2) as pool:
        yield Hub(ledger, tmp_path, pool, clock)
