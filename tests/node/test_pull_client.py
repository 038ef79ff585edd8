"""Segments over kept connections: whole answers or an error, however the bytes come and whenever the hub goes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.node import pull_client
from relay.node.pull_client import MAX_HEAD_BYTES, PullClient, PullError, Unfit

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def hub(serve: Serve) -> AsyncIterator[PullClient]:
    serving = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    client = PullClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield client
    finally:
        client.close()
        server.close()
        await server.wait_closed()
        if serving:
            await asyncio.wait(serving)
        await asyncio.sleep(0)


def head(length: int, extra: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nRepr-Digest: x\r\n{extra}\r\n".encode()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.lists(st.integers(1, 400), max_size=30))
def test_answers_are_whole_and_in_order_however_the_bytes_are_cut(bodies, sizes):
    connections = []

    async def serve(reader, writer):
        connections.append(1)
        for body in bodies:
            await reader.readuntil(b"\r\n\r\n")
            data, at = head(len(body)) + body, 0
            for size in sizes:
                writer.write(data[at : at + size])
                await asyncio.sleep(0)
                at += size
            writer.write(data[at:])
        await reader.read()

    async def scenario():
        async with hub(serve) as client:
            for body in bodies:
                answer = await client.get("/x", {}, 5000)
                assert (answer.status, answer.headers["repr-digest"], answer.body) == (200, "x", body)
            assert len(connections) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (head(5001), PullError),
        (head(3) + b"four", PullError),
        (b"nonsense\r\n\r\n", PullError),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * MAX_HEAD_BYTES, PullError),
        (head(10) + b"half", PullError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Unfit),
        (b"HTTP/1.1 200 OK\r\n\r\n", Unfit),
        (b"", PullError),
    ],
)
def test_what_is_not_a_whole_answer_is_an_error(said, error):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()

    async def scenario():
        async with hub(serve) as client:
            with pytest.raises(error):
                await client.get("/x", {}, 5000)

    asyncio.run(scenario())


def test_a_connection_the_hub_closed_meanwhile_is_replaced():
    asked = []

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.append(1)
        writer.write(head(2) + b"ok")
        await writer.drain()

    async def scenario():
        async with hub(serve) as client:
            for _ in range(3):
                assert (await client.get("/x", {}, 10)).body == b"ok"
        assert len(asked) == 3

    asyncio.run(scenario())


def test_a_hub_that_falls_silent_is_given_up_but_a_slow_one_is_not(monkeypatch):
    monkeypatch.setattr(pull_client, "STALL_S", 0.2)

    async def serve(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(head(4))
        for byte in b"slow":
            await asyncio.sleep(0.1)
            writer.write(bytes((byte,)))
            if b"/silent" in request:
                await reader.read()

    async def scenario():
        async with hub(serve) as client:
            assert (await client.get("/slow", {}, 10)).body == b"slow"
            with pytest.raises(PullError, match="not a byte"):
                await client.get("/silent", {}, 10)

    asyncio.run(scenario())


def test_who_gives_up_waiting_leaves_no_connection_with_a_stray_answer():
    async def serve(reader, writer):
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.1)
            writer.write(head(6) + request[4:10])

    async def scenario():
        async with hub(serve) as client:
            for path in ("/one..", "/two.."):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05 if path == "/one.." else 5):
                        assert (await client.get(path, {}, 10)).body == path.encode()

    asyncio.run(scenario())
