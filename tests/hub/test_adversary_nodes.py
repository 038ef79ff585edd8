"""What a node may say and do to the hub that connects to it: nothing of it may stop the hub's own work."""

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import uuid4

import pytest

from hub.live_nodes import LiveNode
from hub.pings import TIMEOUTS, Pings
from hub.probes import fetch

# All of these pass as URLs; none can be connected to.
IMPOSSIBLE = [
    "http://a..b:80",
    f"http://{'a' * 64}.example",
    "http://[fe80::1%25nowhere]:80",
    "http://-:1",
    "http://%:80",
    "http://h:99999",
]


@asynccontextmanager
async def answering() -> AsyncIterator[int]:
    """A port where every question is answered."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A node that reads a request and then does as `answer` says, for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    answer(connection)
            except OSError:
                return  # the hub has gone: that is the point

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.close()
            thread.join()


@pytest.mark.parametrize("url", IMPOSSIBLE)
def test_an_address_that_cannot_be_one_is_a_node_that_is_not_reached(url: str) -> None:
    async def scenario() -> None:
        pings = Pings()
        node = LiveNode(uuid4(), url, 0)
        for _ in range(TIMEOUTS):
            await pings.ping([node])
        assert pings.reachable([node]) == []
        assert not await pings.answers(node.node_id)
        pings.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", IMPOSSIBLE)
def test_a_probe_of_an_address_that_cannot_be_one_is_unreachable(url: str) -> None:
    assert fetch(f"{url}/segments/x/1.ts", b"", deadline_s=3) in [("unreachable", 0), ("slow", 0)]


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"])
def test_a_node_that_answers_a_byte_at_a_time_does_not_hold_the_prober(head: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head or b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    with serving(drip) as url:
        began = time.monotonic()
        assert fetch(url, b"", deadline_s=0.5)[0] == "slow"
        assert time.monotonic() - began < 3


def test_a_probe_compares_what_came_over_the_wire_and_unpacks_nothing() -> None:
    data = b"segment" * 100

    def packed(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )

    with serving(packed) as url:
        assert fetch(url, hashlib.sha256(data).digest()) == ("ok", len(data))


def test_a_redirect_is_not_followed() -> None:
    def redirect(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
        )

    with serving(redirect) as url:
        assert fetch(url, b"") == ("refused", 0)


def test_every_address_that_a_nodes_name_resolves_to_is_told_once_in_a_while() -> None:
    async def scenario() -> None:
        async with answering() as port:
            named = LiveNode(uuid4(), f"http://localhost:{port}", 0)
            numbered = LiveNode(uuid4(), f"http://127.0.0.1:{port}", 0)
            pings = Pings()
            for _ in range(2):
                await pings.ping([named, numbered])
            told = pings.take_addresses()
            pings.close()
            await asyncio.sleep(0.05)  # both ends are closed
        assert set(told) == {named.node_id}
        assert "127.0.0.1" in told[named.node_id]
        assert pings.take_addresses() == {}

    asyncio.run(scenario())
