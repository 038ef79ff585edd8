"""What somebody with bad intentions, or with one bad node, tries on the API."""

from pathlib import Path

import pytest
from api_world import World, new_key
from fastapi.testclient import TestClient

from api.deps import counted_as
from api.nodes.addresses import node_address
from api.problems import Problem
from api.ratelimit import Rules
from ledger.application import Ledger
from ledger.batch import Batch
from ledger.ids import node_id


def test_the_hub_is_not_ready_while_a_duty_of_its_worker_fails(client: TestClient, world: World) -> None:
    world.project()
    assert client.get("/api/ready").status_code == 200
    object.__setattr__(world.services, "troubles", lambda: ["settlement"])
    answer = client.get("/api/ready")
    assert answer.status_code == 503
    assert "settlement" in answer.json()["checks"]["duties"]


# --- addresses that nodes name

INTERNAL = [
    "http://127.0.0.1:5432",
    "http://127.0.0.2",
    "http://localhost:6379",
    "http://db.localhost",
    "http://postgres:5432",
    "http://printer.local",
    "http://2130706433",
    "http://0x7f.1",
    "http://127.1",
    "http://0177.0.0.1",
    "http://10.0.0.1",
    "http://192.168.1.1/admin",
    "http://[::1]:80",
    "http://[::ffff:127.0.0.1]",
    "http://[fd00::1]",
    "http://100.64.0.1",
    "http://0.0.0.0",
    "http://169.254.169.254/latest",
    "http://[fe80::1%25eth0]",
    "http://a..b",
    "http://" + "a" * 64 + ".example",
]


@pytest.mark.parametrize("url", INTERNAL)
def test_a_node_far_away_cannot_send_the_hub_and_its_viewers_into_a_private_network(url: str) -> None:
    with pytest.raises(Problem) as refused:
        node_address(url, "8.8.8.8", 9000)
    assert refused.value.status_code == 422


@pytest.mark.parametrize("peer", ["127.0.0.1", "192.168.1.20", "fd00::5", "::1", "100.64.0.7"])
def test_a_node_at_home_may_name_an_address_at_home(peer: str) -> None:
    assert node_address("http://192.168.1.20:9000", peer, 1) == "http://192.168.1.20:9000"
    assert node_address("http://attic.local", peer, 1) == "http://attic.local"


@pytest.mark.parametrize("peer", ["127.0.0.1", "192.168.1.20"])
@pytest.mark.parametrize("url", ["http://169.254.169.254", "http://0.0.0.0", "http://a..b", "http://0x7f.1"])
def test_some_addresses_nobody_may_name(url: str, peer: str) -> None:
    with pytest.raises(Problem):
        node_address(url, peer, 9000)


@pytest.mark.parametrize(
    ("peer", "url"),
    [
        ("8.8.8.8", "http://8.8.8.8:9000"),
        ("::ffff:8.8.8.8", "http://8.8.8.8:9000"),
        ("2001:4860::1", "http://[2001:4860::1]:9000"),
    ],
)
def test_without_a_url_a_node_is_where_its_request_came_from(peer: str, url: str) -> None:
    assert node_address(None, peer, 9000) == url


def test_public_addresses_and_names_are_taken_as_they_are() -> None:
    for url in (
        "https://attic.example.org",
        "http://8.8.4.4:9000/base",
        "http://[2001:4860::8]:1",
        "http://a_b.example.",
    ):
        assert node_address(url, "8.8.8.8", 1) == url


# --- how much anybody may send


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:198.51.100.1", "198.51.100.1", True),
        ("198.51.100.1", "198.51.100.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unreadable", "unreadable", True),
    ],
)
def test_who_has_a_whole_ipv6_network_counts_as_one(one: str, other: str, same: bool) -> None:
    assert (counted_as(one) == counted_as(other)) is same


def test_a_node_with_many_addresses_is_still_one_node(
    ledger: Ledger, database_url: str, tmp_path: Path
) -> None:
    world = World(ledger, database_url, None, tmp_path / "log", Rules(batches_per_node=3))
    key, stranger = new_key(), new_key()
    clients = [TestClient(world.app, client=(f"198.51.100.{i}", 1)) for i in range(6)]
    sent = [
        clients[i].post("/api/receipts/batches", content=Batch.sign(key, i, i, []).encode()).status_code
        for i in range(6)
    ]
    assert sent == [403] * 3 + [429] * 3  # it has not joined either
    forged = Batch.sign(stranger, 0, 0, []).encode()
    forged = forged[:1] + new_key().public_key + forged[33:]
    assert clients[0].post("/api/receipts/batches", content=forged).status_code == 400
    world.close()


def test_a_heartbeat_that_was_overheard_does_not_move_the_node_to_the_eavesdropper(
    client: TestClient, world: World
) -> None:
    key = new_key()
    invited = client.post("/api/invites", json={"friend_name": "Ada"}, headers=world.operator).json()
    body = {"invite_code": invited["code"], "name": "attic", "url": None, "port": 9000}
    client.post("/api/nodes", **world.signed(key, "POST", "/api/nodes", body))
    path, beat = "/api/nodes/me/heartbeat", {"url": None, "port": 9000, "viewers": 0, "uploaded_bytes": 0}
    overheard = world.signed(key, "POST", path, beat)
    assert client.post(path, **overheard).status_code == 200
    assert client.post(path, **overheard).status_code == 200  # the node itself, within the same second
    eavesdropper = TestClient(world.app, client=("192.0.2.66", 1))
    assert eavesdropper.post(path, **overheard).status_code == 401
    last = world.liveness.last(node_id(key.public_key))
    assert last is not None
    assert last.url == "http://203.0.113.7:9000"
    world.now_us += 1_000_000
    moved = TestClient(world.app, client=("192.0.2.77", 1))  # the node in another network
    assert moved.post(path, **world.signed(key, "POST", path, beat)).status_code == 200
