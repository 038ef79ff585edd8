"""One API on a real ledger, real read models, a real Valkey, and a clock that the test moves."""

import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from fastapi.testclient import TestClient

from ledger.application import Ledger

sys.path.insert(0, str(Path(__file__).parent))

from api_world import World

CLIENT = ("203.0.113.7", 50_000)


@pytest.fixture
def world(ledger: Ledger, database_url: str, valkey_url: str, tmp_path: Path) -> Iterator[World]:
    world = World(ledger, database_url, valkey_url, tmp_path / "log")
    yield world
    world.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(world.app, base_url="http://hub.test", client=CLIENT) as client:
        yield client


@pytest.fixture(scope="module")
def still_world(
    postgres_url: str, migrated_template: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """One for all tests of a module that leave nothing behind they would stumble over: a fresh one costs a second."""
    name = "still_world"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    ledger = Ledger(url)
    world = World(ledger, url, valkey_url, tmp_path_factory.mktemp("still") / "log")
    world.project()
    yield world
    world.close()
    ledger.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def still_client(still_world: World) -> Iterator[TestClient]:
    with TestClient(still_world.app, base_url="http://hub.test", client=CLIENT) as client:
        yield client
