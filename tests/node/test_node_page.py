"""The node's own page, its metrics, and TLS: a real node, real sockets."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stand_in_hub import CODE, StandInHub

from hub.commands.node import _describe
from relay.node import server as node_server
from relay.node.page import names_this_computer
from relay.node.server import Tls
from relay.node.service import Options, Started, join, serve


async def _with_page(hub: StandInHub, folder: Path, use: Callable[[str], Any]) -> None:
    await join(folder, hub.url, CODE, name="page & node", port=8100, public_url=None)
    stop, told = asyncio.Event(), asyncio.Queue[Started]()
    options = Options(host="127.0.0.1", port=0, page_port=18_180)
    task = asyncio.create_task(serve(folder, options, stop, ready=told.put_nowait))
    started = await told.get()
    try:
        await use(f"http://127.0.0.1:{started.page_port}")
    finally:
        stop.set()
        await task


def test_the_page_shows_the_owners_status_and_metrics(hub: StandInHub, tmp_path: Path) -> None:
    async def use(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
            page = await http.get("/")
            assert page.status_code == 200
            assert "script-src 'self'" in page.headers["content-security-policy"]
            for name in ("/page.css", "/page.js"):
                assert (await http.get(name)).status_code == 200
            status = (await http.get("/status.json")).json()
            assert status["name"] == "page & node"
            assert status["receipts"]["waiting"] == 0
            metrics = (await http.get("/metrics")).text
            families = {f.name: f for f in text_string_to_metric_families(metrics)}
            assert families["streamrp2p_node_viewers"].samples[0].value == 0
            assert (await http.get("/node.key")).status_code == 404
            assert (await http.post("/")).status_code == 405

    asyncio.run(_with_page(hub, tmp_path, use))


def test_a_suspended_node_tells_its_owner_why(hub: StandInHub, tmp_path: Path) -> None:
    hub.standing = {"status": "suspended", "reason": "odd bytes"}

    async def use(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as http, asyncio.timeout(10):
            while (told := (await http.get("/status.json")).json())["hub"]["node_status"] != "suspended":
                await asyncio.sleep(0.05)
            assert told["hub"]["reason"] == "odd bytes"
            assert "suspended, odd bytes" in _describe(told)

    asyncio.run(_with_page(hub, tmp_path, use))


def test_another_sites_name_for_this_address_is_refused(hub: StandInHub, tmp_path: Path) -> None:
    async def use(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
            for path in ("/", "/status.json", "/metrics"):
                assert (await http.get(path, headers={"host": "evil.example:18180"})).status_code == 403

    asyncio.run(_with_page(hub, tmp_path, use))


@pytest.mark.parametrize(
    ("hosts", "here"),
    [
        ([b"127.0.0.1:8180"], True),
        ([b"localhost"], True),
        ([b"[::1]:8180"], True),
        ([], False),
        ([b"localhost", b"localhost"], False),
        ([b"localhost.evil.example"], False),
        ([b"evil@localhost.example"], False),
        ([b"[::1"], False),
        ([b"\xff"], False),
        ([b""], False),
    ],
)
def test_only_names_of_this_computer_are_taken(hosts: list[bytes], here: bool) -> None:
    assert names_this_computer([(b"host", h) for h in hosts]) is here


def _certificate(folder: Path, name: str) -> Tls:
    key, certificate = folder / "tls.key", folder / "tls.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    subprocess.run(
        [*command.split(), "-subj", f"/CN={name}", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return Tls(certificate, key)


def _served_name(port: int) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=pem.encode(), check=True, capture_output=True
    )
    return shown.stdout.decode().strip().rpartition("=")[2].strip()


def test_viewers_come_by_https_and_a_renewed_certificate_is_taken(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_server, "RENEWAL_S", 0.05)
    folder = tmp_path / "node"
    tls = _certificate(tmp_path, "first.example")

    async def scenario() -> None:
        await join(folder, hub.url, CODE, name="n", port=8100, public_url="https://first.example:8100")
        stop, told = asyncio.Event(), asyncio.Queue[Started]()
        options = Options(host="127.0.0.1", port=0, tls=tls)
        task = asyncio.create_task(serve(folder, options, stop, ready=told.put_nowait))
        port = (await told.get()).port
        try:
            async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
                assert (await http.get(f"https://127.0.0.1:{port}/health")).status_code == 200
            assert await asyncio.to_thread(_served_name, port) == "first.example"
            tls.certificate.write_text("torn")  # in the middle of being written
            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(_served_name, port) == "first.example"
            await asyncio.to_thread(_certificate, tmp_path, "second.example")
            async with asyncio.timeout(20):
                while await asyncio.to_thread(_served_name, port) != "second.example":
                    await asyncio.sleep(0.05)
        finally:
            stop.set()
            await task

    asyncio.run(scenario())


def test_a_certificate_that_cannot_be_used_is_named_at_the_start(hub: StandInHub, tmp_path: Path) -> None:
    async def scenario() -> None:
        await join(tmp_path, hub.url, CODE, name="n", port=8100, public_url="https://me.example")
        tls = Tls(tmp_path / "absent.pem", tmp_path / "absent.key")
        options = Options(host="127.0.0.1", port=0, tls=tls)
        with pytest.raises(OSError, match=r"absent\.pem"):
            await serve(tmp_path, options, asyncio.Event(), ready=lambda _: None)

    asyncio.run(scenario())


def test_several_nodes_have_a_page_each(hub: StandInHub, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 18_180)):

        async def use(url: str) -> None:
            assert url != "http://127.0.0.1:18180"

        asyncio.run(_with_page(hub, tmp_path, use))
