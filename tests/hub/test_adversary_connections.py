"""Connections that say nothing or take nothing, on the hub's own HTTP protocol."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest
import uvicorn
import uvloop

from hub.origin import HTTP_CONNECTIONS
from relay import http_bounds
from relay.http import media_protocol


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_a_connection_that_never_asks_is_closed_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_bounds, "HEAD_S", 0.3)

    async def scenario() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        protocol = media_protocol(lambda *_: False, max_connections=HTTP_CONNECTIONS)
        config = uvicorn.Config(
            app, http=protocol, interface="asgi3", lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in idle[:10]:
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        for reader, writer in idle:
            # A reset says the same, only harder.
            async with asyncio.timeout(3):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
        server.should_exit = True
        await serving

    uvloop.run(scenario())
