"""The published log as static files, and the pages."""

import re

import pytest
from api_world import World
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.log.endpoints import _TILE
from ledger.tlog.tiles import Tile


@pytest.mark.parametrize("tile", [Tile(0, 0), Tile(-1, 0), Tile(3, 1_234_067), Tile(63, 999)])
def test_a_full_tile_is_cached_forever_and_a_partial_one_is_not(
    still_client: TestClient, still_world: World, tile: Tile
) -> None:
    partial = Tile(tile.level, tile.index, 200)
    for path, cache in ((tile.path, "public, max-age=31536000, immutable"), (partial.path, "no-cache")):
        file = still_world.log_folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"tile")
        response = still_client.get(f"/log/{path}")
        assert response.content == b"tile"
        assert response.headers["cache-control"] == cache
        again = still_client.get(f"/log/{path}", headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        file.unlink()


def test_the_checkpoint_is_asked_for_anew(still_client: TestClient, still_world: World) -> None:
    assert still_client.get("/log/checkpoint").status_code == 404
    (still_world.log_folder / "checkpoint").write_text("crew\n3\nroot\n")
    response = still_client.get("/log/checkpoint")
    assert response.text.startswith("crew")
    assert response.headers["cache-control"] == "no-cache"
    assert still_client.get("/audit").text.count("3 entries") == 1


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "%2e%2e/secret",
        "tile/../../secret",
        "tile/0/..%2f..%2fsecret",
        "tile/0/000/../../../secret",
        "//secret",
        "tile/0/000%00",
        "checkpoint/",
        "keys",
        "tile/0",
    ],
)
def test_nothing_outside_the_log_can_be_read(still_client: TestClient, still_world: World, path: str) -> None:
    (still_world.log_folder.parent / "secret").write_text("secret")
    (still_world.log_folder / "keys").write_text("secret")
    (still_world.log_folder / "tile" / "0").mkdir(parents=True, exist_ok=True)
    response = still_client.get(f"/log/{path}")
    assert response.status_code == 404
    assert "secret" not in response.text


@given(level=st.integers(-1, 63), index=st.integers(0, 10**20), width=st.integers(1, 256))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_every_tile_path_of_the_log_is_served_and_none_leaves_it(level: int, index: int, width: int) -> None:
    assert _TILE.fullmatch(Tile(level, index, width).path)


def test_pages_allow_no_foreign_script(still_client: TestClient) -> None:
    for path in ("/", "/audit", "/friend", "/watch/none"):
        response = still_client.get(path)
        assert response.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in response.headers["content-security-policy"]
        assert not re.search(r"(src|href)=\"https?:", response.text)
        assert "<script>" not in response.text


def test_scripts_may_be_used_by_other_sites(still_client: TestClient) -> None:
    response = still_client.get("/static/viewer.js", headers={"Accept-Encoding": "identity"})
    assert response.status_code == 200
    assert "javascript" in response.headers["content-type"]
    assert response.headers["access-control-allow-origin"] == "*"
    for path in ("/static/../app.py", "/static/%2e%2e/endpoints.py", "/static/viewer.js.gz"):
        assert still_client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/audit", "/friend", "/log/checkpoint"])
def test_pages_and_the_log_answer_to_head_as_to_get(
    still_client: TestClient, still_world: World, path: str
) -> None:
    (still_world.log_folder / "checkpoint").write_text("crew\n3\nroot\n")
    asked, told = still_client.get(path), still_client.head(path)
    assert told.status_code == asked.status_code == 200
    assert told.headers["content-length"] == asked.headers["content-length"]


def test_a_mistyped_address_is_a_page_for_people_and_a_problem_for_programs(still_client: TestClient) -> None:
    page = still_client.get("/mian", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert still_client.get("/mian").json()["status"] == 404
