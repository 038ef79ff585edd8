"""The embedded Valkey: quickly up, quickly up again, bounded, private."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from hub.embedded.errors import AlreadyRunning
from hub.embedded.home import processes_in
from hub.embedded.valkey import EmbeddedValkey


def test_it_starts_again_after_kill_9_under_the_same_url(open_dir: Path) -> None:
    with EmbeddedValkey(open_dir / "valkey") as server:
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.set("a", "1")
            assert client.get("a") == b"1"
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert server.start() == url
        with redis.Redis.from_url(url) as client:
            assert client.get("a") is None, "it never keeps anything"


def test_its_memory_is_bounded_and_no_other_account_can_connect(open_dir: Path) -> None:
    with EmbeddedValkey(open_dir / "valkey") as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}
        assert client.config_get("port") == {"port": "0"}
        assert server.sockets.stat().st_mode & 0o077 == 0


def test_a_second_server_on_the_same_folder_is_refused(open_dir: Path) -> None:
    with EmbeddedValkey(open_dir / "valkey"), pytest.raises(AlreadyRunning):
        EmbeddedValkey(open_dir / "valkey").start()


def test_a_long_path_gets_a_short_socket(open_dir: Path) -> None:
    with EmbeddedValkey(open_dir / ("x" * 110)) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_stop_is_clean_and_may_be_called_twice(open_dir: Path, eventually: Callable[..., None]) -> None:
    server = EmbeddedValkey(open_dir / "valkey")
    server.start()
    server.stop()
    server.stop()
    assert processes_in(open_dir / "valkey" / "run", "valkey-server") == []
