"""A friend's doctor asks the hub: real HTTP to a real listener on this machine."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from api_world import World, new_key
from fastapi.testclient import TestClient
from test_nodes import invite, join

from api.nodes.checks import UPLOAD_BYTES_MAX
from ledger.keys import KeyPair
from ledger.request import sign_request

CHECK, UPLOAD = "/api/nodes/me/check", "/api/nodes/me/upload"


class _Node(http.server.BaseHTTPRequestHandler):
    said = b"{}"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def near(world: World) -> Iterator[TestClient]:
    with TestClient(world.app, client=("127.0.0.1", 50_000)) as client:
        yield client


@pytest.fixture
def listening() -> Iterator[tuple[int, type[_Node]]]:
    handler = type("Handler", (_Node,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1], handler
        server.shutdown()
        thread.join()


def joined(client: TestClient, world: World) -> tuple[KeyPair, str]:
    key = new_key()
    answer = join(client, world, key, invite(client, world)["code"])
    return key, answer.json()["node_id"]


def check(client: TestClient, world: World, key: KeyPair, **body: Any) -> Any:
    return client.post(CHECK, **world.signed(key, "POST", CHECK, {"url": None, "port": 9} | body))


def test_the_hub_says_whether_it_is_this_node_that_answers(
    near: TestClient, world: World, listening: tuple[int, type[_Node]]
) -> None:
    key, nid = joined(near, world)
    port, handler = listening
    handler.said = f'{{"node_id": "{nid}", "status": "ok"}}'.encode()
    told = check(near, world, key, port=port).json()
    assert told["reachable"] is True
    assert (told["url"], told["why"]) == (f"http://127.0.0.1:{port}", "")
    assert handler.asked == ["/health"]
    for other in (b"{}", b"not json", b'{"node_id": 1}', b"x" * 100_000):
        handler.said = other
        told = check(near, world, key, port=port).json()
        assert (told["reachable"], told["why"]) == (False, "something else answers there, not this node")


def test_a_closed_port_is_told_in_words(near: TestClient, world: World) -> None:
    key, _ = joined(near, world)
    told = check(near, world, key, port=1).json()
    assert told["reachable"] is False
    assert "is the port forwarded" in told["why"]


def test_a_name_that_leads_into_the_hubs_own_network_is_not_followed(
    world: World, listening: tuple[int, type[_Node]]
) -> None:
    port, handler = listening
    with TestClient(world.app, client=("8.8.4.4", 50_000)) as far:
        key, _ = joined(far, world)
        told = check(far, world, key, url=f"http://localhost.localdomain.example:{port}").json()
        assert told["why"] == "its name does not lead to an address of the internet"
        refused = check(far, world, key, url=f"http://127.0.0.1:{port}")
        assert refused.status_code == 422
    assert handler.asked == []


def test_a_key_that_never_joined_gets_nothing(near: TestClient, world: World) -> None:
    assert check(near, world, new_key()).json()["type"] == "/problems/unknown-node"


def test_an_upload_is_counted_and_bounded(near: TestClient, world: World) -> None:
    key, _ = joined(near, world)

    def upload(size: int) -> Any:
        header = sign_request(key, "POST", UPLOAD, bytes(size), now_s=world.now_us // 1_000_000)
        return near.post(UPLOAD, content=bytes(size), headers={"Authorization": header})

    assert upload(UPLOAD_BYTES_MAX).json() == {"received_bytes": UPLOAD_BYTES_MAX}
    assert upload(UPLOAD_BYTES_MAX + 1).status_code == 413


def test_checks_are_rationed(near: TestClient, world: World) -> None:
    key, _ = joined(near, world)
    codes = [check(near, world, key, port=1).status_code for _ in range(13)]
    assert codes == [200] * 12 + [429]
