"""What somebody with bad intentions, or with one bad node, tries on the API."""

from api_world import World
from fastapi.testclient import TestClient


def test_the_hub_is_not_ready_while_a_duty_of_its_worker_fails(client: TestClient, world: World) -> None:
    world.project()
    assert client.get("/api/ready").status_code == 200
    object.__setattr__(world.services, "troubles", lambda: ["settlement"])
    answer = client.get("/api/ready")
    assert answer.status_code == 503
    assert "settlement" in answer.json()["checks"]["duties"]
