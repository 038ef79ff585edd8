"""What is not settled yet, as friends and creators are shown it; on a real Valkey that may forget or be away."""

from uuid import UUID, uuid4

import pytest
from api_world import World
from fastapi.testclient import TestClient

from api.directory import Role
from api.estimates import Estimated, Estimates
from api.valkey import connect
from ledger.services import streams
from ledger.services.estimate import Estimate, Portion

ENDS_US = 1_800_003_600_000_000


@pytest.fixture
def owner_id(world: World) -> UUID:
    owner_id = uuid4()
    key = streams.make_stream_key("main", b"s" * 20)
    world.stream_id = streams.register_stream(
        world.ledger, slug="main", owner_id=owner_id, stream_key=key, at_us=world.now_us
    )
    world.project()
    return owner_id


def test_the_newest_estimate_is_shown_whole(world: World) -> None:
    one, two = uuid4(), uuid4()
    assert world.estimates.of(one) is None
    world.estimates.share(Estimate(7, ENDS_US, {one: Portion(10, 3)}, {two: Portion(10, 4)}), for_s=60)
    assert world.estimates.of(one) == Estimated(7, ENDS_US, 10, 3)
    assert world.estimates.of(two) == Estimated(7, ENDS_US, 10, 4)
    assert world.estimates.of(uuid4()) == Estimated(7, ENDS_US, 0, 0)
    world.estimates.share(Estimate(9, ENDS_US, {two: Portion(5, 1)}, {}), for_s=60)
    assert world.estimates.of(one) == Estimated(9, ENDS_US, 0, 0)
    assert world.estimates.of(two) == Estimated(9, ENDS_US, 5, 1)


def test_an_estimate_ends_when_nobody_makes_another(world: World) -> None:
    world.estimates.share(Estimate(7, ENDS_US, {}, {}), for_s=60)
    assert world.valkey is not None
    assert 0 < world.valkey.ttl("estimate") <= 60
    world.valkey.flushall()
    assert world.estimates.of(uuid4()) is None


@pytest.mark.parametrize("client", [None, connect("redis://127.0.0.1:1/0")])
def test_without_valkey_there_is_none_and_nothing_fails(client: object) -> None:
    estimates = Estimates(client)  # type: ignore[arg-type]
    estimates.share(Estimate(7, ENDS_US, {}, {}), for_s=60)
    assert estimates.of(uuid4()) is None


def test_a_friend_sees_an_estimate_until_it_is_settled(
    world: World, client: TestClient, owner_id: UUID
) -> None:
    friend_id = uuid4()
    token = world.token(Role.FRIEND, friend_id)

    def statement() -> dict[str, object]:
        return client.get("/api/friends/me/statement", headers=token).json()

    assert statement()["estimate"] is None
    at = world.ledger.size()
    made = Estimate(at, ENDS_US, {friend_id: Portion(2_000_000, 15)}, {})
    world.estimates.share(made, for_s=60)
    shown = {"credited_bytes": 2_000_000, "amount_micro": 15, "ends_us": ENDS_US, "position": at}
    assert statement()["estimate"] == shown
    assert statement()["pending_micro"] == 0
    world.earn(friend_id, uuid4(), 15)  # the estimate is from before this settlement
    assert (statement()["estimate"], statement()["pending_micro"]) == (None, 15)
    world.estimates.share(Estimate(world.ledger.size(), ENDS_US, {}, {}), for_s=60)
    assert statement()["estimate"] == shown | {
        "credited_bytes": 0,
        "amount_micro": 0,
        "position": world.ledger.size(),
    }


def test_a_creator_sees_what_will_leave_the_budget(world: World, client: TestClient, owner_id: UUID) -> None:
    token = world.token(Role.CREATOR, owner_id)

    def own() -> dict[str, object]:
        return client.get("/api/creators/me/streams", headers=token).json()["streams"][0]

    assert own()["estimate"] is None
    made = Estimate(world.ledger.size(), ENDS_US, {}, {world.stream_id: Portion(2_000_000, 20)})
    world.estimates.share(made, for_s=60)
    assert own()["estimate"] == {
        "credited_bytes": 2_000_000,
        "amount_micro": 20,
        "ends_us": ENDS_US,
        "position": made.position,
    }
    assert own()["earned_micro"] == 0
    world.earn(uuid4(), uuid4(), 20)
    assert own()["estimate"] is None
