from api_world import World
from fastapi.testclient import TestClient

from api.deps import Audience
from api.directory import NodeProfile, Role
from ledger.services.streams import check_stream_key


def register(client: TestClient, world: World, slug: str = "main", **fields: str) -> dict:
    response = client.post("/api/streams", json={"slug": slug, **fields}, headers=world.operator)
    assert response.status_code == 201, response.text
    return response.json()


def test_a_registered_stream_comes_with_a_key_that_opens_it(client: TestClient, world: World) -> None:
    made = register(client, world, owner_name="Ada")
    assert made["rtmp_server"] == "rtmp://hub.test:1935/live"
    assert made["watch_url"] == "http://hub.test/watch/main"
    assert made["creator_url"] == f"http://hub.test/creator#{made['creator_token']}"
    stream = check_stream_key(world.ledger, made["stream_key"])
    assert stream is not None
    assert str(stream.id) == made["stream_id"]
    assert world.directory.person_name(stream.owner_id) == "Ada"


def test_registering_again_changes_nothing_and_shows_no_secret(client: TestClient, world: World) -> None:
    made = register(client, world, owner_name="Ada")
    size = world.ledger.size()
    again = client.post("/api/streams", json={"slug": "main", "owner_name": "Ada"}, headers=world.operator)
    assert again.status_code == 200
    assert again.json() == made | {"stream_key": None, "creator_token": None, "creator_url": None}
    assert world.ledger.size() == size


def test_another_owner_cannot_have_the_same_name(client: TestClient, world: World) -> None:
    register(client, world, owner_name="Ada")
    other = client.post("/api/streams", json={"slug": "main", "owner_name": "Bob"}, headers=world.operator)
    assert other.status_code == 409
    assert other.json()["type"] == "/problems/stream-exists"


def test_a_stream_shows_its_state_and_who_carries_it(client: TestClient, world: World) -> None:
    from uuid import UUID, uuid4

    made = register(client, world)
    world.go_live(UUID(made["stream_id"]))
    world.project()
    nid = uuid4()
    world.directory.save_profile(NodeProfile(nid, "Berta's attic", "http://10.0.0.1:9000"), at_us=1)
    world.watching["main"] = Audience(viewers=3, by_node={nid: 2})
    shown = client.get("/api/streams/main").json()
    assert shown["state"] == "LIVE"
    assert shown["viewers"] == 3
    assert shown["crew"] == [{"node_id": str(nid), "name": "Berta's attic", "viewers": 2}]
    assert "10.0.0.1" not in str(shown)
    assert [s["slug"] for s in client.get("/api/streams").json()["streams"]] == ["main"]


def test_a_creator_sees_the_money_and_the_crew_of_their_own_streams(client: TestClient, world: World) -> None:
    from uuid import UUID, uuid4

    made, other = register(client, world), register(client, world, "other")
    world.stream_id = UUID(made["stream_id"])
    friend_id = uuid4()
    for epoch in range(2):
        world.earn(friend_id, uuid4(), 1_000_000, epoch=epoch)

    def own(made: dict) -> list:
        headers = {"Authorization": f"Bearer {made['creator_token']}"}
        return client.get("/api/creators/me/streams", headers=headers).json()["streams"]

    (mine,) = own(made)
    assert mine["stream"]["slug"] == "main"
    assert (mine["budget_micro"], mine["earned_micro"], mine["unit"]) == (98_000_000, 2_000_000, "EUR")
    assert mine["crew"] == [{"name": "a friend", "credited_bytes": 246_913_578, "earned_micro": 2_000_000}]
    assert (mine["refused"], mine["refused_us"]) == (None, None)
    refused = {"main": ("the audio is Opus; set the encoder to AAC", 7)}
    object.__setattr__(world.services, "refusal", refused.get)
    assert [(s["refused"], s["refused_us"]) for s in own(made)] == [refused["main"]]
    (theirs,) = own(other)
    assert theirs["refused"] is None
    assert (theirs["stream"]["slug"], theirs["earned_micro"], theirs["crew"]) == ("other", 0, [])
    assert client.get("/api/creators/me/streams", headers=world.operator).status_code == 403


def test_the_operator_sees_whether_the_hub_keeps_up(client: TestClient, world: World) -> None:
    world.project()
    object.__setattr__(world.services, "overdue", lambda: {"settlement": 0, "publisher": 7})
    object.__setattr__(world.services, "troubles", lambda: ["settlement"])
    status = client.get("/api/status", headers=world.operator).json()
    assert status["duties"] == [
        {"name": "settlement", "failing": True, "overdue_s": 0},
        {"name": "publisher", "failing": False, "overdue_s": 7},
    ]
    assert {lag["events"] for lag in status["projections"]} == {0}
    assert status["log_events"] == world.ledger.size()
    assert client.get("/api/status").status_code == 401


def test_the_operator_and_the_stream_s_own_creator_rotate_its_key(client: TestClient, world: World) -> None:
    made, other = register(client, world), register(client, world, "other")
    for token in (world.operator, {"Authorization": f"Bearer {made['creator_token']}"}):
        rotated = client.post("/api/streams/main/key", headers=token)
        assert rotated.status_code == 200
        assert check_stream_key(world.ledger, rotated.json()["stream_key"]) is not None
    assert check_stream_key(world.ledger, made["stream_key"]) is None
    stranger = {"Authorization": f"Bearer {other['creator_token']}"}
    assert client.post("/api/streams/main/key", headers=stranger).status_code == 403
    assert client.post("/api/streams/main/key", headers=world.token(Role.FRIEND)).status_code == 403
    assert client.post("/api/streams/main/key").status_code == 401


def test_a_deposit_is_booked_once_per_reference(client: TestClient, world: World) -> None:
    register(client, world)
    body = {"amount_micro": 5_000_000, "reference": "bank-1"}
    for _ in range(2):
        response = client.post("/api/streams/main/budget", json=body, headers=world.operator)
        assert response.json()["budget_micro"] == 5_000_000
    other = client.post("/api/streams/main/budget", json=body | {"amount_micro": 6}, headers=world.operator)
    assert other.status_code == 409
    assert other.json()["type"] == "/problems/not-allowed"
    world.project()
    balances = {b["account"]: b["amount_micro"] for b in client.get("/api/balances").json()["balances"]}
    assert sum(balances.values()) == 0
    assert balances["external"] == -5_000_000
    assert client.get("/api/balances/external").json()["amount_micro"] == -5_000_000
    assert client.get("/api/balances/nobody").status_code == 404


def test_amounts_are_whole_numbers(client: TestClient, world: World) -> None:
    register(client, world)
    for amount in (1.5, "5", True, 0, -1, 1 << 53):
        body = {"amount_micro": amount, "reference": "x"}
        response = client.post("/api/streams/main/budget", json=body, headers=world.operator)
        assert response.status_code == 422, amount
        assert response.json()["fields"][0]["field"] == "body.amount_micro"


def test_a_tariff_keeps_what_is_not_named(client: TestClient, world: World) -> None:
    register(client, world)
    changed = client.post("/api/streams/main/tariff", json={"fee_bp": 300}, headers=world.operator)
    assert changed.json()["tariff_version"] == 2
    same = client.post("/api/streams/main/tariff", json={"fee_bp": 300}, headers=world.operator)
    assert same.json()["tariff_version"] == 2
    typo = client.post("/api/streams/main/tariff", json={"fee": 300}, headers=world.operator)
    assert typo.status_code == 422


def test_what_does_not_exist_is_not_found(client: TestClient, world: World) -> None:
    for method, path in (
        ("GET", "/api/streams/none"),
        ("POST", "/api/streams/none/key"),
        ("POST", "/api/streams/none/budget"),
    ):
        body = {"amount_micro": 1, "reference": "x"} if path.endswith("budget") else None
        response = client.request(method, path, json=body, headers=world.operator)
        assert response.status_code == 404
        assert response.json()["type"] == "/problems/not-found"
