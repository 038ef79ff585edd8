"""How the hub knows who is there, against doors of every kind."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import uvloop

from hub.lines import LATE_S_MAX
from hub.live_nodes import LiveNode
from hub.pings import TIMEOUTS, Pings

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n"


class Door:
    """A node's port. `says` None: it takes connections, and says nothing."""

    def __init__(self) -> None:
        self.says: bytes | None = OK
        self.connections = self.questions = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> LiveNode:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return LiveNode(uuid4(), f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        while head := await reader.readline():
            assert head == b"HEAD /health HTTP/1.1\r\n"
            await reader.readuntil(b"\r\n\r\n")
            self.questions += 1
            if self.says is not None:
                writer.write(self.says)
        writer.close()

    def hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()


@asynccontextmanager
async def asking(door: Door) -> AsyncIterator[tuple[Pings, LiveNode]]:
    pings, node = Pings(), await door.open()
    try:
        yield pings, node
    finally:
        pings.close()
        door.shut()
        await asyncio.sleep(0.05)  # both ends of all connections are closed


def scenario(play: Callable[[Door, Pings, LiveNode], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        door = Door()
        async with asking(door) as (pings, node):
            await play(door, pings, node)

    asyncio.run(main())


def test_a_node_is_asked_over_one_connection_and_a_new_one_when_that_was_closed() -> None:
    async def play(door: Door, pings: Pings, node: LiveNode) -> None:
        for _ in range(3):
            await pings.ping([node])
        assert (door.connections, door.questions) == (1, 3)
        door.hang_up()
        await pings.ping([node])
        assert door.connections == 2
        assert pings.reachable([node]) == [node]

    scenario(play)


def test_a_computer_that_takes_connections_and_answers_nothing_is_left_out_until_it_answers() -> None:
    async def play(door: Door, pings: Pings, node: LiveNode) -> None:
        door.says = None  # a stopped process: its kernel goes on
        for _ in range(TIMEOUTS):
            assert pings.reachable([node]) == [node]
            await pings.ping([node])
        assert pings.reachable([node]) == []
        door.says = OK
        await pings.ping([node])
        assert pings.reachable([node]) == [node]

    scenario(play)


def test_whoever_is_about_to_be_sent_to_a_silent_node_hears_of_it_long_before_it_counts_as_gone() -> None:
    async def play(door: Door, pings: Pings, node: LiveNode) -> None:
        assert await pings.answers(node.node_id), "nothing is said against a node that was never asked"
        await pings.ping([node])
        assert pings.answered(node.node_id)
        assert await pings.answers(node.node_id)
        assert door.questions == 1, "an answer of a moment ago will do"
        door.says = None
        while pings.answered(node.node_id):
            await asyncio.sleep(0.01)
        async with asyncio.timeout(LATE_S_MAX + 1):
            assert not any(await asyncio.gather(*(pings.answers(node.node_id) for _ in range(20))))
        assert door.questions == 2, "all who wait share one question"
        assert pings.reachable([node]) == [node], "it may only be slow"

    scenario(play)


def test_a_hub_that_is_late_itself_blames_no_node() -> None:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(4_096):
                connection.sendall(OK)

    async def main(url: str) -> None:
        pings, node = Pings(), LiveNode(uuid4(), url, 0)
        await pings.ping([node])
        while pings.answered(node.node_id):
            await asyncio.sleep(0.01)
        asking = asyncio.create_task(pings.answers(node.node_id))
        await asyncio.sleep(0)  # it waits for the question,
        await asyncio.sleep(0)  # which is on its way
        time.sleep(LATE_S_MAX + 0.3)
        assert await asking
        pings.close()
        await asyncio.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = threading.Thread(target=serve, args=[listener])
        node.start()
        uvloop.run(main(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        node.join()


def test_a_node_that_says_that_it_leaves_is_gone_at_once() -> None:
    async def play(door: Door, pings: Pings, node: LiveNode) -> None:
        await pings.ping([node])
        door.says = OK.replace(b"200 OK", b"503 Service Unavailable")
        await pings.ping([node])
        assert pings.reachable([node]) == []
        assert not await pings.answers(node.node_id)
        door.says = OK
        assert await pings.answers(node.node_id)
        assert pings.reachable([node]) == [node]

    scenario(play)


def test_a_shut_door_is_gone_at_once() -> None:
    async def play(door: Door, pings: Pings, node: LiveNode) -> None:
        await pings.ping([node])
        door.shut()
        await asyncio.sleep(0.2)
        assert not await pings.answers(node.node_id)
        assert pings.reachable([node]) == []

    scenario(play)


def test_one_answer_byte_by_byte_and_one_without_an_end_hold_nobody() -> None:
    async def play(door: Door, pings: Pings, node: LiveNode) -> None:
        for says in (b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000):
            door.says = says
            async with asyncio.timeout(5):
                await pings.ping([node])
                assert not await pings.answers(node.node_id)

    scenario(play)
