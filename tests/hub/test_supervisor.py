"""Children are started in order, kept alive, stopped in reverse order, and never outlive their supervisor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("supervised.py")


@contextmanager
def supervised(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def up(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with supervised(folder, *arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process


def pid_of(folder: Path, name: str) -> int:
    return int((folder / f"{name}.pid").read_text())


def events(folder: Path) -> list[str]:
    return (folder / "events").read_text().splitlines()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_children_start_in_order_and_stop_in_reverse_order(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path) as process:
        process.send_signal(number)
        assert process.wait(10) == 0
    assert events(tmp_path) == ["first start", "second start", "second stop", "first stop"]


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_child_killed_with_9_is_back_in_half_a_second(
    tmp_path: Path, name: str, eventually: Callable[..., None]
) -> None:
    with up(tmp_path):
        old = pid_of(tmp_path, name)
        os.kill(old, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: events(tmp_path).count(f"{name} start") == 2)
        assert (
            time.monotonic() - began < 1.5
        )  # 0.1 s of waiting, the rest is a Python starting on a busy machine
        eventually(lambda: pid_of(tmp_path, name) != old)


def test_a_child_that_dies_again_and_again_is_started_ever_more_slowly(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with up(tmp_path) as process:
        (tmp_path / "second.fails").touch()
        os.kill(pid_of(tmp_path, "second"), signal.SIGKILL)
        eventually(lambda: events(tmp_path).count("second start") >= 4)
        (tmp_path / "second.fails").unlink()
        (tmp_path / "second.pid").unlink()
        eventually((tmp_path / "second.pid").exists)
        process.terminate()
        _, stderr = process.communicate(timeout=10)
    assert [step for step in (b"in_s=0.1", b"in_s=0.2", b"in_s=0.4") if step not in stderr] == []


def test_a_child_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    with up(tmp_path, "--stubborn") as process:
        pids = [pid_of(tmp_path, name) for name in ("first", "second")]
        process.terminate()
        assert process.wait(10) == 0
    assert [pid for pid in pids if alive(pid)] == []


def test_no_child_outlives_a_supervisor_killed_with_9(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with up(tmp_path) as process:
        pids = [pid_of(tmp_path, name) for name in ("first", "second")]
        process.kill()
        eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_child_that_takes_long_to_start_is_told_of_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "second.slow").touch()
    with supervised(tmp_path) as process:
        assert process.stderr is not None
        said = b""
        while said.count(b"still starting") < 2:
            said += process.stderr.readline()
        (tmp_path / "second.slow").unlink()
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    assert b"service=second" in said


def test_a_child_that_fails_at_the_first_start_ends_everything_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "second.fails").touch()
    with supervised(tmp_path) as process:
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"second ended while it started (exit code 7)" in stderr
    assert events(tmp_path)[-1] == "first stop"


def starting(folder: Path, name: str) -> bool:
    return f"{name} start" in events(folder) if (folder / "events").exists() else False


def test_a_child_killed_while_it_starts_is_started_again(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    (tmp_path / "second.slow").touch()
    with supervised(tmp_path) as process:
        eventually(lambda: starting(tmp_path, "second"))
        os.kill(int((tmp_path / "second.starting").read_text()), signal.SIGKILL)
        (tmp_path / "second.slow").unlink()
        eventually((tmp_path / "second.pid").exists)
        process.terminate()
        assert process.wait(10) == 0
    assert events(tmp_path) == ["first start", "second start", "second start", "second stop", "first stop"]


def test_a_child_that_fails_because_another_died_is_started_again(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    (tmp_path / "second.slow").touch()
    (tmp_path / "second.fails-once").touch()
    with supervised(tmp_path) as process:
        eventually(lambda: starting(tmp_path, "second"))
        os.kill(pid_of(tmp_path, "first"), signal.SIGKILL)
        eventually(lambda: events(tmp_path).count("first start") == 2)
        (tmp_path / "second.slow").unlink()
        eventually((tmp_path / "second.pid").exists)
        process.terminate()
        assert process.wait(10) == 0
    assert events(tmp_path).count("second start") == 2
