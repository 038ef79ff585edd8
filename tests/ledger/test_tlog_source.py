"""A log's server, or whoever made its folder, means harm: reading ends, in bounded memory, and with an answer."""

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ledger.tlog import source as module
from ledger.tlog.source import FolderSource, HttpSource, SourceUnavailable, open_source

Answer = Callable[[socket.socket, str], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server that answers each connection's request for a path as it likes."""
    stop = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4_096) or b"\r\n\r\n"
            answer(connection, head.split(b" ")[1].decode())

    def loop(listener: socket.socket) -> None:
        while not stop.is_set():
            with suppress(OSError):
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=loop, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def said(connection: socket.socket, status: str, body: bytes = b"", **headers: str) -> None:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def drip(connection: socket.socket, data: bytes) -> None:
    for i in range(len(data)):
        connection.sendall(data[i : i + 1])
        time.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)


# --- servers


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_is_given_up(begin: bytes) -> None:
    """Each byte is in time, and there would be a month of them."""
    with serving(lambda c, _: drip(c, begin + b"a" * 10_000)) as url, open_source(url) as source:
        with pytest.raises(SourceUnavailable, match="too slow"):
            source.read("checkpoint", 10**6)
        with pytest.raises(SourceUnavailable):  # and so is whoever asks it again
            source.read("checkpoint", 10**6)


def test_of_an_endless_answer_no_more_is_read_than_was_asked_for() -> None:
    def endless(connection: socket.socket, _: str) -> None:
        said(connection, "200 OK")
        while True:
            connection.sendall(bytes(65_536))

    with serving(endless) as url, open_source(url) as source:
        data = source.read("checkpoint", 100_000)
        assert data is not None
        assert len(data) == 100_001
        memory = memoryview(bytearray(5_000))
        assert source.read_into("checkpoint", memory) == 5_000


def test_a_compressed_answer_is_not_unpacked() -> None:
    """A few kilobytes would be gigabytes, before anybody could look at their size."""
    bomb = gzip.compress(bytes(10**7))
    with (
        serving(lambda c, _: said(c, "200 OK", bomb, Content_Encoding="gzip")) as url,
        open_source(url) as source,
        pytest.raises(SourceUnavailable, match="compressed"),
    ):
        source.read("checkpoint", 10**9)


def test_redirects_are_followed_at_the_same_server_only() -> None:
    def elsewhere(connection: socket.socket, path: str) -> None:
        match path:
            case "/old/checkpoint":
                said(connection, "301 Moved Permanently", Location="/new/checkpoint")
            case "/new/checkpoint":
                said(connection, "200 OK", b"here")
            case "/round/checkpoint":
                said(connection, "302 Found", Location="/round/checkpoint")
            case "/file/checkpoint":
                said(connection, "302 Found", Location="file:///etc/passwd")
            case _:
                said(connection, "302 Found", Location="http://localhost:9/admin")

    with serving(elsewhere) as url:
        with open_source(f"{url}/old") as source:
            assert source.read("checkpoint", 100) == b"here"
        for place, why in (
            ("round", "too often"),
            ("file", "another server|protocol"),
            ("away", "another server"),
        ):
            with (
                open_source(f"{url}/{place}") as source,
                pytest.raises(SourceUnavailable, match=why) as caught,
            ):
                source.read("checkpoint", 100)
            assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [b"", b"\x1b[2Jnonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]
)
def test_what_is_no_answer_is_unavailable(answer: bytes) -> None:
    with serving(lambda c, _: c.sendall(answer)) as url, open_source(url) as source:
        with pytest.raises(SourceUnavailable) as caught:
            source.read("checkpoint", 100)
        assert "\x1b" not in str(caught.value)


def test_a_file_that_is_not_there_is_none() -> None:
    with serving(lambda c, _: said(c, "404 Not Found")) as url:
        source = HttpSource(url)
        assert source.read("checkpoint", 100) is None
        source.close()


# --- folders


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint")  # to open it would be to wait for ever
    (tmp_path / "vkey").mkdir()
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    source = FolderSource(tmp_path)
    for name in ("checkpoint", "vkey", "endless", "loop"):
        with pytest.raises(SourceUnavailable):
            source.read(name, 100)
        with pytest.raises(SourceUnavailable):
            source.read_into(name, memoryview(bytearray(100)))


def test_only_names_of_partial_tiles_are_widths(tmp_path: Path) -> None:
    folder = tmp_path / "tile/0/000.p"
    folder.mkdir(parents=True)
    for name in ("0", "1", "007", "9", "255", "256", "9" * 200, "x", "-1", "٣"):
        (folder / name).touch()
    assert FolderSource(tmp_path).widths("tile/0/000") == [1, 9, 255]
