from typing import Any
from uuid import UUID, uuid4

import pytest
from api_world import World, new_key
from fastapi.testclient import TestClient

from api.directory import Role
from api.liveness import TTL_S, Pulse
from ledger.aggregates.node import Node
from ledger.ids import node_id
from ledger.keys import KeyPair
from ledger.services.nodes import suspend


def invite(client: TestClient, world: World, name: str = "Berta") -> dict[str, Any]:
    response = client.post("/api/invites", json={"friend_name": name}, headers=world.operator)
    assert response.status_code == 201, response.text
    return response.json()


def join(client: TestClient, world: World, key: KeyPair, code: str, **fields: Any) -> Any:
    body = {"invite_code": code, "name": "attic", "url": None, "port": 9000} | fields
    return client.post("/api/nodes", **world.signed(key, "POST", "/api/nodes", body))


def beat(client: TestClient, world: World, key: KeyPair, **fields: Any) -> Any:
    body = {"url": None, "port": 9000, "viewers": 2, "uploaded_bytes": 10} | fields
    return client.post(
        "/api/nodes/me/heartbeat", **world.signed(key, "POST", "/api/nodes/me/heartbeat", body)
    )


@pytest.fixture
def key() -> KeyPair:
    return new_key()


def test_an_invite_lets_one_node_join_and_joining_again_gives_the_same_answer(
    client: TestClient, world: World, key: KeyPair
) -> None:
    made = invite(client, world)
    assert made["code"] in made["command"]
    first = join(client, world, key, made["code"])
    assert first.status_code == 201
    assert first.json()["friend_id"] == made["friend_id"]
    assert len(first.json()["ticket_keys"][0]) == 64
    again = join(client, world, key, made["code"])
    assert (again.status_code, again.json()) == (200, first.json())
    other = join(client, world, new_key(), made["code"])
    assert other.status_code == 409
    assert other.json()["type"] == "/problems/invite-refused"


def test_an_invite_expires(client: TestClient, world: World, key: KeyPair) -> None:
    code = invite(client, world)["code"]
    world.now_us += 8 * 86_400 * 1_000_000
    assert join(client, world, key, code).json()["type"] == "/problems/invite-refused"


def test_a_heartbeat_makes_the_node_alive_at_the_address_it_came_from(
    client: TestClient, world: World, key: KeyPair
) -> None:
    join(client, world, key, invite(client, world)["code"])
    answer = beat(client, world, key)
    assert answer.status_code == 200
    assert answer.json()["status"] == "active"
    assert answer.json()["earned"] == {
        "unit": "EUR",
        "pending_micro": 0,
        "available_micro": 0,
        "in_flight_micro": 0,
        "paid_micro": 0,
        "estimate_micro": None,
    }
    nid = node_id(key.public_key)
    pulse = world.liveness.alive(now_us=world.now_us)[nid]
    assert (pulse.url, pulse.viewers) == ("http://203.0.113.7:9000", 2)
    world.now_us += (TTL_S + 1) * 1_000_000
    assert world.liveness.alive(now_us=world.now_us) == {}


def test_a_node_that_said_goodbye_is_gone_until_its_next_heartbeat(
    client: TestClient, world: World, key: KeyPair
) -> None:
    join(client, world, key, invite(client, world)["code"])
    beat(client, world, key)
    told: list[UUID] = []
    object.__setattr__(world.services, "node_left", told.append)
    path = "/api/nodes/me/heartbeat"
    assert client.request("DELETE", path, **world.signed(key, "DELETE", path)).status_code == 204
    assert (world.liveness.alive(now_us=world.now_us), told) == ({}, [node_id(key.public_key)])
    assert client.request("DELETE", path).status_code == 401
    beat(client, world, key)
    assert set(world.liveness.alive(now_us=world.now_us)) == {node_id(key.public_key)}


def test_a_node_says_its_own_url(client: TestClient, world: World, key: KeyPair) -> None:
    join(client, world, key, invite(client, world)["code"])
    beat(client, world, key, url="https://attic.example.org/")
    assert world.liveness.last(node_id(key.public_key)).url == "https://attic.example.org"
    for bad in (
        "ftp://x",
        "http://u:p@x",
        "http://x/?a=1",
        "http://",
        "javascript:alert(1)",
        "http://x\n#",
        "http://[x",
    ):
        assert beat(client, world, key, url=bad).status_code == 422, bad


def test_no_address_of_a_node_is_shown_or_logged(client: TestClient, world: World, key: KeyPair) -> None:
    join(client, world, key, invite(client, world)["code"])
    beat(client, world, key, url="https://attic.example.org")
    world.project()
    shown = client.get("/api/nodes")
    assert shown.json()["nodes"][0]["name"] == "attic"
    assert shown.json()["nodes"][0]["viewers"] == 2
    assert "example.org" not in shown.text
    assert "203.0.113" not in shown.text
    nid = node_id(key.public_key)
    assert client.get(f"/api/nodes/{nid}").json()["node_id"] == str(nid)
    assert client.get(f"/api/nodes/{uuid4()}").status_code == 404
    log = b"".join(r.data for r in world.ledger.read(0, 1_000))
    assert b"example.org" not in log
    assert b"203.0.113" not in log
    assert b"attic" not in log


def test_every_network_a_node_is_seen_at_is_recorded(client: TestClient, world: World, key: KeyPair) -> None:
    join(client, world, key, invite(client, world)["code"])
    nid = node_id(key.public_key)
    before = set(world.ledger.load(Node, nid).networks)
    beat(client, world, key)
    assert set(world.ledger.load(Node, nid).networks) == before
    world.now_us += 5_000_000
    with TestClient(world.app, client=("198.51.100.1", 1)) as elsewhere:
        beat(elsewhere, world, key)
    both = set(world.ledger.load(Node, nid).networks)
    assert before < both
    world.now_us += 120_000_000
    beat(client, world, key, url="http://[2001:db8:7::1]:8100")  # where viewers reach it
    assert both < set(world.ledger.load(Node, nid).networks)
    size = world.ledger.size()
    for _ in range(5):  # now here, now there: nothing more to say
        world.now_us += 60_000_000
        beat(client, world, key, url="http://[2001:db8:7::1]:8100")
    assert world.ledger.size() == size


def test_a_suspended_node_hears_so_and_gets_no_viewers(
    client: TestClient, world: World, key: KeyPair
) -> None:
    join(client, world, key, invite(client, world)["code"])
    beat(client, world, key)
    suspend(world.ledger, node_id(key.public_key), reason="wrong bytes", at_us=world.now_us)
    assert beat(client, world, key).json()["status"] == "suspended"
    assert world.liveness.alive(now_us=world.now_us) == {}


def test_a_node_that_is_suspended_while_its_heartbeat_is_taken_gets_no_viewers(
    client: TestClient, world: World, key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(client, world, key, invite(client, world)["code"])
    taken = world.liveness.beat

    def just_before(pulse: Pulse) -> None:
        suspend(world.ledger, pulse.node_id, reason="wrong bytes", at_us=world.now_us)
        taken(pulse)

    monkeypatch.setattr(world.liveness, "beat", just_before)
    assert beat(client, world, key).json()["status"] == "suspended"
    assert world.liveness.alive(now_us=world.now_us) == {}


def test_a_request_that_the_node_did_not_sign_is_refused(
    client: TestClient, world: World, key: KeyPair
) -> None:
    join(client, world, key, invite(client, world)["code"])
    body = {"url": None, "port": 9000, "viewers": 1, "uploaded_bytes": 0}
    path = "/api/nodes/me/heartbeat"
    signed = world.signed(key, "POST", path, body)
    tampered = signed | {"content": signed["content"].replace(b"9000", b"9001")}
    elsewhere = world.signed(key, "POST", "/api/nodes", body)
    assert client.post(path + "?x=1", **signed).status_code == 401
    for request in (tampered, elsewhere, {"json": body}, {"json": body, "headers": world.operator}):
        response = client.post(path, **request)
        assert response.status_code == 401
        assert response.json()["type"] == "/problems/unauthenticated"
    world.now_us += 301 * 1_000_000
    late = client.post(path, **signed)
    assert late.status_code == 401
    assert "clock" in late.json()["detail"]


def test_a_node_that_never_joined_is_unknown(client: TestClient, world: World, key: KeyPair) -> None:
    response = beat(client, world, key)
    assert response.status_code == 403
    assert response.json()["type"] == "/problems/unknown-node"


def test_a_friend_reads_their_own_statement(client: TestClient, world: World, key: KeyPair) -> None:
    made = invite(client, world)
    join(client, world, key, made["code"])
    beat(client, world, key)
    world.project()
    token = {"Authorization": f"Bearer {made['friend_token']}"}
    shown = client.get("/api/friends/me/statement", headers=token).json()
    assert shown["name"] == "Berta"
    assert shown["friend_id"] == made["friend_id"]
    assert shown["helping_now"] == 2
    assert (shown["lines"], shown["next"], shown["unit"]) == ([], None, "EUR")
    assert client.get("/api/friends/me/statement", headers=world.operator).status_code == 403
    assert client.get("/api/friends/me/statement", params={"before": "x"}, headers=token).status_code == 422


def test_a_revoked_token_opens_nothing(client: TestClient, world: World) -> None:
    friend = UUID(int=7)
    token = world.token(Role.FRIEND, friend)
    assert client.get("/api/friends/me/statement", headers=token).status_code == 200
    assert world.directory.revoke_tokens(Role.FRIEND, friend, at_us=1) == 1
    assert client.get("/api/friends/me/statement", headers=token).status_code == 401


def test_liveness_goes_on_without_valkey(client: TestClient, world: World, key: KeyPair) -> None:
    join(client, world, key, invite(client, world)["code"])
    world.valkey.close()
    world.valkey.connection_pool.reset()
    world.valkey.connection_pool.connection_kwargs["path"] = "/nowhere/valkey.sock"
    assert beat(client, world, key).status_code == 200
    assert node_id(key.public_key) in world.liveness.alive(now_us=world.now_us)


def test_an_operator_suspends_lets_in_again_and_retires_a_node(
    client: TestClient, world: World, key: KeyPair
) -> None:
    join(client, world, key, invite(client, world)["code"])
    beat(client, world, key)
    left: list[UUID] = []
    object.__setattr__(world.services, "node_left", left.append)
    nid = node_id(key.public_key)

    def change(what: str, reason: str, node: UUID = nid) -> Any:
        return client.post(f"/api/nodes/{node}/{what}", json={"reason": reason}, headers=world.operator)

    assert client.post(f"/api/nodes/{nid}/suspend", json={"reason": "x"}).status_code == 401
    assert change("suspend", "odd\nbytes").status_code == 422
    assert change("suspend", "odd bytes", uuid4()).status_code == 404
    assert change("suspend", "odd bytes").json() == {
        "node_id": str(nid),
        "status": "suspended",
        "reason": "odd bytes",
    }
    assert (world.liveness.alive(now_us=world.now_us), left) == ({}, [nid])
    told = beat(client, world, key).json()
    assert (told["status"], told["reason"]) == ("suspended", "odd bytes")
    assert world.liveness.alive(now_us=world.now_us) == {}
    assert change("reinstate", "new disk").json()["status"] == "active"
    told = beat(client, world, key).json()
    assert (told["status"], told["reason"]) == ("active", "")
    assert set(world.liveness.alive(now_us=world.now_us)) == {nid}
    assert change("retire", "sold").json()["status"] == "retired"
    refused = change("reinstate", "bought back")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/not-allowed")


def test_a_friend_gets_a_new_link_and_the_old_one_opens_nothing(client: TestClient, world: World) -> None:
    made = invite(client, world)

    def opens(token: str) -> bool:
        asked = client.get("/api/friends/me/statement", headers={"Authorization": f"Bearer {token}"})
        return asked.status_code == 200

    world.project()
    assert opens(made["friend_token"])
    path = f"/api/friends/{made['friend_id']}/token"
    assert client.post(path).status_code == 401
    assert client.post(f"/api/friends/{uuid4()}/token", headers=world.operator).status_code == 404
    new = client.post(path, headers=world.operator).json()
    assert new["friend_url"] == f"http://hub.test/friend#{new['friend_token']}"
    assert (opens(new["friend_token"]), opens(made["friend_token"])) == (True, False)
    (friend,) = client.get("/api/friends", headers=world.operator).json()["friends"]
    assert friend == {"friend_id": made["friend_id"], "name": "Berta", "node_ids": []}
