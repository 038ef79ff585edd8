"""What every endpoint has in common: errors, bounds, limits, health."""

import re
from pathlib import Path

import pytest
import redis
from api_world import World, new_key
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from api.problems import MEDIA_TYPE, ProblemType
from api.ratelimit import RateLimiter, Rules
from ledger.application import Unavailable
from ledger.ids import stream_id
from ledger.services import budgets, crew
from projections.fold import ProjectionError
from projections.runner import Runner

DOCS = Path(__file__).parents[2] / "docs" / "api.md"


def test_every_problem_type_is_documented() -> None:
    documented = set(re.findall(r"`/problems/([a-z-]+)`", DOCS.read_text()))
    assert documented == {kind.slug for kind in ProblemType}


def test_every_path_is_documented(still_world: World) -> None:
    text = DOCS.read_text()
    for path, methods in still_world.app.openapi()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in text, (method, path)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/nothing", b"", 404),
        ("DELETE", "/api/streams", b"", 405),
        ("POST", "/api/streams", b"{", 422),
        ("POST", "/api/sessions", b'{"stream": "main"}', 422),
        ("POST", "/api/streams", b"x" * 70_000, 413),
        ("GET", "/static/none.js", b"", 404),
        ("GET", "/api/payouts", b"", 401),
    ],
)
def test_every_error_is_a_problem(
    still_client: TestClient, still_world: World, method: str, path: str, content: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"} | (still_world.operator if method == "POST" else {})
    response = still_client.request(method, path, content=content, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json().keys() >= {"type", "title", "status", "detail"}
    assert response.json()["status"] == status


def test_a_wrong_field_is_named_and_its_value_is_not_echoed(
    still_client: TestClient, still_world: World
) -> None:
    response = still_client.post("/api/streams", json={"slug": "SECRET!"}, headers=still_world.operator)
    assert response.json()["fields"][0]["field"] == "body.slug"
    assert "SECRET" not in response.text


def test_a_bug_is_a_problem_too_and_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("the secret reason")

    monkeypatch.setattr(world.reads, "streams", fail)
    with capture_logs() as logs, TestClient(world.app, raise_server_exceptions=False) as client:
        response = client.get("/api/streams")
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    assert response.status_code == 500
    assert response.json()["type"] == "/problems/internal"
    assert "secret" not in response.text


def test_an_absent_ledger_is_transient(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: object) -> None:
        raise Unavailable("no route to host")

    monkeypatch.setattr(world.ledger, "load", away)
    response = client.post("/api/streams", json={"slug": "main"}, headers=world.operator)
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/unavailable"
    assert int(response.headers["retry-after"]) > 0


def test_too_many_requests_wait(valkey_url: str) -> None:
    limiter = RateLimiter(valkey_url, Rules(sessions_per_ip=3))
    waits = [limiter.hit("sessions_per_ip", "203.0.113.7") for _ in range(5)]
    assert waits[:3] == [None] * 3
    assert all(1 <= wait <= 60 for wait in waits[3:])
    assert limiter.hit("sessions_per_ip", "203.0.113.8") is None
    other_process = RateLimiter(valkey_url, Rules(sessions_per_ip=3))
    assert other_process.hit("sessions_per_ip", "203.0.113.7") is not None
    client = redis.Redis.from_url(valkey_url)
    stored = [k.decode() for k in client.scan_iter()]
    assert not any("203.0" in k for k in stored)


def test_a_limited_request_is_told_how_long_to_wait(client: TestClient, world: World) -> None:
    object.__setattr__(world.services, "limiter", RateLimiter(None, Rules(sessions_per_ip=1)))
    body = {"stream": "main", "viewer_key": "00" * 32}
    assert client.post("/api/sessions", json=body).status_code == 404
    refused = client.post("/api/sessions", json=body)
    assert refused.status_code == 429
    assert refused.json()["type"] == "/problems/rate-limited"
    assert int(refused.headers["retry-after"]) >= 1


def test_limits_hold_without_valkey(tmp_path: Path) -> None:
    limiter = RateLimiter(f"unix://{tmp_path}/none.sock", Rules(joins_per_ip=2))
    assert [limiter.hit("joins_per_ip", "a") is None for _ in range(3)] == [True, True, False]


def test_health_and_readiness(client: TestClient, world: World) -> None:
    assert client.get("/api/health").json() == {"status": "ok"}
    world.project()
    assert client.get("/api/ready").json()["ready"]
    object.__setattr__(world.services, "ingest_ready", lambda: False)
    response = client.get("/api/ready")
    assert response.status_code == 503
    assert response.json()["checks"]["rtmp"] == "not listening"
    assert response.json()["checks"]["postgres"] == "ok"


def test_a_duty_that_is_overdue_or_fails_makes_the_hub_not_ready(client: TestClient, world: World) -> None:
    world.project()
    object.__setattr__(world.services, "overdue", lambda: {"settlement": 0, "publisher": 7, "nodes": 10**9})
    object.__setattr__(world.services, "troubles", lambda: ["settlement"])
    response = client.get("/api/ready")
    assert response.status_code == 503
    duties = response.json()["checks"]["duties"]
    assert duties == "settlement failing, publisher silent for 7 s, nodes not begun: see the hub's log"
    metrics = client.get("/metrics").text
    assert 'streamrp2p_duty_overdue_seconds{duty="publisher"} 7.0' in metrics
    assert 'streamrp2p_duty_failing{duty="settlement"} 1.0' in metrics


def test_read_models_are_not_ready_before_they_hold_what_was_there_at_the_start(
    client: TestClient, world: World
) -> None:
    """However little that is: four events are as much missing as four million."""
    response = client.get("/api/ready")
    assert response.status_code == 503
    assert response.json()["checks"]["projections"] == "balances is catching up: 4 events behind"
    world.project()
    assert client.get("/api/ready").json()["ready"]
    # What comes later may lag a little.
    crew.add_key(world.ledger, "log", new_key().public_key, at_us=world.now_us)
    assert client.get("/api/ready").json()["ready"]
    world.now_us += 31_000_000
    assert "1 events, 31 s behind" in client.get("/api/ready").json()["checks"]["projections"]


def test_a_read_model_that_stopped_is_named_with_its_reason(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.project()
    position = world.ledger.size()
    budgets.deposit(world.ledger, stream_id("main"), amount_micro=1, reference="r", at_us=world.now_us)
    with monkeypatch.context() as patched:
        patched.setattr("projections.base.check_balanced", refuse)
        world.project()
    response = client.get("/api/ready")
    assert response.status_code == 503
    assert response.json()["checks"]["projections"] == f"balances stopped at position {position}: not today"
    status = client.get("/api/status", headers=world.operator).json()
    assert {p["name"]: p["stopped"] for p in status["projections"] if p["stopped"]} == {
        "balances": "not today"
    }
    said = client.get("/metrics").text
    assert 'streamrp2p_projection_stopped{projection="balances",reason="not today"} 1.0' in said
    assert 'streamrp2p_projection_stopped{projection="nodes",reason=""} 0.0' in said
    Runner(world.ledger, world.reads._engine).catch_up()  # a program that can go on
    assert client.get("/api/ready").json()["ready"]
    assert 'reason="not today"' not in client.get("/metrics").text


def refuse(*_: object) -> None:
    raise ProjectionError("not today")


def test_metrics_count_requests_by_route_and_never_by_path(client: TestClient, world: World) -> None:
    world.project()
    for slug in ("aa", "bb"):
        client.get(f"/api/streams/{slug}")
    text = client.get("/metrics").text
    line = 'streamrp2p_http_requests_total{method="GET",route="/api/streams/{slug}",status="404"} 2.0'
    assert line in text
    assert "/aa" not in text
    assert 'streamrp2p_projection_lag_events{projection="balances"} 0.0' in text


def test_the_hub_s_keys_are_public(still_client: TestClient) -> None:
    keys = still_client.get("/api/keys").json()
    assert [len(keys[purpose][0]["public_key"]) for purpose in ("ticket", "log")] == [64, 64]


@pytest.mark.parametrize(
    ("origin", "kept_apart"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:8000", True),
        ("https://hub.test", True),
        ("http://hub.test:8000", False),
        ("http://127.0.0.1.evil.test", False),
    ],
)
def test_windows_are_kept_apart_where_browsers_heed_it(
    still_client: TestClient, origin: str, kept_apart: bool
) -> None:
    """Elsewhere they complain about the header in their console."""
    headers = still_client.get(f"{origin}/api/keys").headers
    assert headers.get("cross-origin-opener-policy") == ("same-origin" if kept_apart else None)
