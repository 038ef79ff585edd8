from uuid import UUID, uuid4

from api_world import World
from fastapi.testclient import TestClient
from test_receipts import KeyPair, new_key, node, open_session

from api.directory import Role
from ledger.aggregates.node import Node
from ledger.events import EpochSettled
from ledger.ids import node_id
from ledger.services import budgets, settle

__all__ = ["node"]  # a fixture
LATE = [10, 11]  # segments, published in an earlier epoch than that of their receipts


def test_a_friend_asks_why_and_gets_the_derivation_of_their_own_lines_only(
    client: TestClient, world: World, node: KeyPair
) -> None:
    budgets.set_tariff(world.ledger, world.stream_id, rate_micro_per_gb=10**12, at_us=world.now_us)
    budgets.deposit(world.ledger, world.stream_id, amount_micro=10**7, reference="r", at_us=world.now_us)
    world.now_us += 3_600_000_000  # the price holds from the next epoch on
    world.publish({n: bytes(1_000) for n in LATE})
    world.now_us += 3_600_000_000
    viewer = new_key()
    ticket = world.issue(UUID(open_session(client, viewer).json()["session_id"]), node, LATE[0])
    receipt = client.post("/api/receipts", content=world.receipt(ticket, viewer, LATE)).json()
    world.now_us += 3_600_000_000
    assert settle.settle_due_epochs(world.ledger, at_us=world.now_us)
    settled = next(r for r in world.ledger.read(0, 10_000) if isinstance(r.event, EpochSettled))
    friend_id = world.ledger.load(Node, node_id(node.public_key)).friend_id
    friend = world.token(Role.FRIEND, friend_id)
    path = f"/api/friends/me/explain/{settled.position}/0"
    made = client.get(path, headers=friend)
    assert made.status_code == 200, made.text
    answer = made.json()
    assert answer["kind"] == "earned"
    assert answer["receipts"] == [
        {"position": receipt["position"], "receipt": 0, "late": True, "units": 2, "credited_bytes": 2_000}
    ]
    steps = answer["steps"]
    assert steps["priced_micro"] == steps["gross_micro"] == 2_000_000
    assert answer["amount_micro"] == steps["quota_micro"] + steps["remainder_micro"] == 1_710_000
    assert client.get(path, headers=world.token(Role.FRIEND, uuid4())).status_code == 404
    assert client.get(f"/api/friends/me/explain/{settled.position}/9", headers=friend).status_code == 404
    assert client.get("/api/friends/me/explain/0/0", headers=friend).status_code == 404
    assert client.get(path, headers=world.operator).status_code == 403


def test_nothing_is_derived_for_who_may_not_see_it(client: TestClient, world: World, node: KeyPair) -> None:
    """Of a line that the log does not lead to, a stranger learns as much as of any other: nothing."""
    world.earn(uuid4(), node_id(node.public_key), 5)
    path = f"/api/friends/me/explain/{world.ledger.size() - 1}/0"
    assert client.get(path, headers=world.token(Role.FRIEND, uuid4())).status_code == 404
    assert client.get(path, headers=world.token(Role.FRIEND)).status_code == 403  # of no friend


def test_a_line_that_the_log_does_not_lead_to_says_so_to_its_friend(
    client: TestClient, world: World, node: KeyPair
) -> None:
    friend_id = uuid4()
    world.earn(friend_id, node_id(node.public_key), 5)
    path = f"/api/friends/me/explain/{world.ledger.size() - 1}/0"
    answer = client.get(path, headers=world.token(Role.FRIEND, friend_id))
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "gives 5 micro-units; the log before it gives" in answer.json()["detail"]


def test_a_friend_disputes_their_own_line_and_a_creator_one_of_their_stream(
    client: TestClient, world: World, node: KeyPair
) -> None:
    budgets.set_tariff(world.ledger, world.stream_id, rate_micro_per_gb=10**12, at_us=world.now_us)
    budgets.deposit(world.ledger, world.stream_id, amount_micro=10**7, reference="r", at_us=world.now_us)
    world.now_us += 3_600_000_000  # the price holds from the next epoch on
    world.publish({n: bytes(1_000) for n in LATE})
    world.now_us += 3_600_000_000
    viewer = new_key()
    ticket = world.issue(UUID(open_session(client, viewer).json()["session_id"]), node, LATE[0])
    client.post("/api/receipts", content=world.receipt(ticket, viewer, LATE))
    world.now_us += 3_600_000_000
    assert settle.settle_due_epochs(world.ledger, at_us=world.now_us)
    settled = next(r for r in world.ledger.read(0, 10_000) if isinstance(r.event, EpochSettled))
    friend = world.token(Role.FRIEND, world.ledger.load(Node, node_id(node.public_key)).friend_id)
    body = {"position": settled.position, "line": 0, "reason": "counted more"}
    path = "/api/friends/me/disputes"
    assert client.post(path, json=body, headers=world.token(Role.FRIEND, uuid4())).status_code == 404
    opened = client.post(path, json=body, headers=friend)
    assert (opened.status_code, opened.json()["state"]) == (201, "open"), opened.text
    assert client.post(path, json=body, headers=friend).status_code == 409
    stranger = world.token(Role.CREATOR, uuid4())
    body["line"] = 1
    assert client.post("/api/streams/main/disputes", json=body, headers=stranger).status_code == 403
    assert client.post("/api/streams/main/disputes", json=body, headers=world.operator).status_code == 201
    world.project()
    statement = client.get("/api/friends/me/statement", headers=friend).json()
    assert [line["kind"] for line in statement["lines"]].count("disputed") == 2
