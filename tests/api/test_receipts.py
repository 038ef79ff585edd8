from uuid import UUID, uuid4

import pytest
from api_world import World, new_key
from fastapi.testclient import TestClient
from test_nodes import invite, join
from test_streams import register

from api.directory import Role
from ledger import batch as wire
from ledger.aggregates.node import Node
from ledger.batch import Batch
from ledger.ids import node_id
from ledger.keys import KeyPair


@pytest.fixture
def node(client: TestClient, world: World) -> KeyPair:
    stream_id = UUID(register(client, world)["stream_id"])
    key = new_key()
    with TestClient(world.app, client=("198.51.100.1", 1)) as elsewhere:  # not in the viewers' network
        join(elsewhere, world, key, invite(client, world)["code"])
    world.go_live(stream_id)
    world.publish({n: bytes([n]) * 1_000 for n in range(10)})
    return key


def open_session(client: TestClient, viewer: KeyPair, slug: str = "main"):
    return client.post("/api/sessions", json={"stream": slug, "viewer_key": viewer.public_key.hex()})


def test_a_signing_viewer_gets_a_playlist_of_its_own(client: TestClient, world: World, node: KeyPair) -> None:
    opened = open_session(client, new_key())
    assert opened.status_code == 201
    session = opened.json()["session_id"]
    assert opened.json()["playlist_url"] == f"http://hub.test/live/main/{session}/index.m3u8"
    assert open_session(client, new_key(), "none").status_code == 404


def test_a_friend_is_not_paid_for_carrying_a_stream_to_themselves_when_their_page_says_who_watches(
    client: TestClient, world: World, node: KeyPair
) -> None:
    friend_id = world.ledger.load(Node, node_id(node.public_key)).friend_id
    for headers, verdict, cap in (
        (world.token(Role.FRIEND, friend_id), "capped", "own_account"),
        (world.token(Role.FRIEND, uuid4()), "accepted", ""),
        ({"Authorization": "Bearer sp2p_friend_never-given-out"}, "accepted", ""),  # plays all the same
    ):
        viewer = new_key()
        body = {"stream": "main", "viewer_key": viewer.public_key.hex()}
        opened = client.post("/api/sessions", json=body, headers=headers)
        assert opened.status_code == 201
        ticket = world.issue(UUID(opened.json()["session_id"]), node, 0)
        answer = client.post("/api/receipts", content=world.receipt(ticket, viewer, [0])).json()
        assert (answer["verdict"], answer["cap"]) == (verdict, cap)


def test_a_stream_that_is_not_live_opens_no_session(client: TestClient, world: World) -> None:
    register(client, world)
    refused = open_session(client, new_key())
    assert refused.json()["type"] == "/problems/stream-not-live"


def test_a_batch_gets_a_verdict_for_every_receipt_and_the_same_again(
    client: TestClient, world: World, node: KeyPair
) -> None:
    viewer, stranger = new_key(), new_key()
    session = open_session(client, viewer).json()["session_id"]
    ticket = world.issue(UUID(session), node, 0)
    good = world.receipt(ticket, viewer, [0, 1, 2])
    forged = world.receipt(ticket, stranger, [3])
    data = Batch.sign(node, 0, 10, [good, forged]).encode()
    first = client.post("/api/receipts/batches", content=data)
    assert first.status_code == 200
    good_answer, bad_answer = first.json()["verdicts"]
    assert {k: good_answer[k] for k in ("index", "verdict", "units", "bytes", "cap")} == {
        "index": 0,
        "verdict": "accepted",
        "units": 3,
        "bytes": 3_000,
        "cap": "",
    }
    assert bad_answer["verdict"] == "bad_signature"
    assert good_answer["position"] < world.ledger.size()
    size = world.ledger.size()
    assert client.post("/api/receipts/batches", content=data).json() == first.json()
    assert world.ledger.size() == size


def test_a_viewer_sends_one_receipt_itself(client: TestClient, world: World, node: KeyPair) -> None:
    viewer = new_key()
    ticket = world.issue(UUID(open_session(client, viewer).json()["session_id"]), node, 0)
    answer = client.post("/api/receipts", content=world.receipt(ticket, viewer, [4, 5]))
    assert answer.status_code == 200
    assert (answer.json()["verdict"], answer.json()["units"]) == ("accepted", 2)
    assert 'streamrp2p_receipts_total{verdict="accepted"} 1.0' in client.get("/metrics").text


def test_malformed_bodies_are_named_as_such(client: TestClient, world: World, node: KeyPair) -> None:
    for path, content in (
        ("/api/receipts/batches", b""),
        ("/api/receipts/batches", b"x" * wire.HEADER_BYTES),
        ("/api/receipts", b""),
        ("/api/receipts", b"x" * 205),
    ):
        response = client.post(path, content=content)
        assert response.status_code == 400, path
        assert response.json()["type"] == "/problems/malformed-body"


def test_a_batch_of_a_node_that_never_joined_is_refused(client: TestClient, world: World) -> None:
    response = client.post(
        "/api/receipts/batches", content=Batch.sign(new_key(), 0, 1, [b"r" * 205]).encode()
    )
    assert response.json()["type"] == "/problems/unknown-node"


def test_no_more_is_read_than_the_largest_batch(client: TestClient, world: World) -> None:
    for content in (b"x" * (wire.MAX_BYTES + 1), iter([b"x" * 30_000] * 3), b"x" * 70_000):
        response = client.post("/api/receipts/batches", content=content)
        assert response.status_code == 413
        assert response.json()["type"] == "/problems/too-large"
    assert client.post("/api/receipts", content=b"x" * 206).status_code == 413
