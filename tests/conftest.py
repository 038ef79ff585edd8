"""Real servers for every test: one Postgres and one Valkey a session, one fresh migrated database a test."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from hub.embedded.postgres import EmbeddedPostgres
from hub.embedded.valkey import EmbeddedValkey
from ledger.application import Ledger
from ledger.store.migrate import migrate

TEMPLATE = "template_migrated"
_numbers = itertools.count(1)


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    # Not tmp_path: its parents are closed to the account that the servers run under when the tests are root's.
    path = Path(tempfile.mkdtemp(prefix="streamrp2p-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(server_dir: Path) -> Iterator[str]:
    """The superuser's URL of a real Postgres that lives as long as the test session."""
    server = EmbeddedPostgres(server_dir / "postgres", throwaway=True)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def in_database() -> Callable[[str, str], str]:
    """(url, name) -> the URL of the database of that name on the same server."""
    return with_database


@pytest.fixture(scope="session")
def valkey_url(server_dir: Path) -> Iterator[str]:
    server = EmbeddedValkey(server_dir / "valkey")
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(with_database(postgres_url, TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
def fresh_databases(postgres_url: str, migrated_template: str) -> Iterator[Callable[[], str]]:
    """() -> the name of a new migrated database. One is always made ahead, while a test runs."""

    def create() -> str:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
        return name

    with ThreadPoolExecutor(1) as executor:
        ahead = [executor.submit(create)]

        def take() -> str:
            ahead.append(executor.submit(create))
            return ahead.pop(0).result()

        yield take


@pytest.fixture
def database_url(postgres_url: str, fresh_databases: Callable[[], str]) -> Iterator[str]:
    """A fresh database with the schema crew_main, the superuser's URL."""
    name = fresh_databases()
    yield with_database(postgres_url, name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    yield ledger
    ledger.close()
