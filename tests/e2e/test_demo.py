"""The demo comes true: it checks itself and says so with its exit code."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_tells_the_whole_story_and_everything_comes_true() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "hub.cli", "demo"], capture_output=True, text=True, timeout=280, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    for line in (
        "Everything came true.",
        "Audit:    holds",
        "digest_mismatch",
        "bad_signature",
        "wrong_node",
    ):
        assert line in told.stdout
