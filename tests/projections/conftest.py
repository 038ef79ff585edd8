"""Makes the helpers beside the tests importable (import mode `importlib`), and one database for many examples."""

import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from sqlalchemy import Engine

from ledger.store.database import create_sql_engine

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def engine(postgres_url: str, migrated_template: str) -> Iterator[Engine]:
    """On a migrated database of the module's own; each example begins with `forget`."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS test_projections")
        connection.execute(f"CREATE DATABASE test_projections TEMPLATE {migrated_template}")
        engine = create_sql_engine(urlunsplit(urlsplit(postgres_url)._replace(path="/test_projections")))
        try:
            yield engine
        finally:
            engine.dispose()
            connection.execute("DROP DATABASE test_projections WITH (FORCE)")


@pytest.fixture
def own_engine(database_url: str) -> Iterator[Engine]:
    """On a database of the test's own."""
    engine = create_sql_engine(database_url)
    yield engine
    engine.dispose()
