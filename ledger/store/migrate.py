"""Brings a database to the newest schema.

Invariant: a migration happens whole or not at all, once, however many processes ask at the same time: everything,
roles included, is one transaction under one advisory lock.
"""

import hashlib
from pathlib import Path
from typing import Final

import psycopg
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from ledger.store.database import conninfo

logger = structlog.get_logger()

MIGRATION_LOCK_TIMEOUT_MS: Final = 60_000
MIGRATION_STATEMENT_TIMEOUT_MS: Final = 600_000
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def migrate(database_url: str, schema: str = "crew_main") -> None:
    """Create or upgrade `schema`. Safe to run again and from several processes.

    Raises DatabaseUrlError, psycopg.OperationalError when the database cannot be reached.
    """
    info = conninfo(
        database_url,
        schema,
        lock_timeout_ms=MIGRATION_LOCK_TIMEOUT_MS,
        statement_timeout_ms=MIGRATION_STATEMENT_TIMEOUT_MS,
    )
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(info), poolclass=NullPool)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 1))"), {"name": schema})
        app_role = _prepare(connection, schema)
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes.update(connection=connection, schema=schema, app_role=app_role)
        command.upgrade(config, "head")
    logger.info("database schema is up to date", schema=schema, app_role=app_role)


def role_names(database: str, schema: str) -> tuple[str, str]:
    """(owner, application) role of one schema in one database. Roles belong to the whole server, hence the database."""
    stem = f"{database}_{schema}".lower()
    if len(stem) > 50:  # Postgres cuts names at 63 bytes, in silence
        stem = stem[:37] + "_" + hashlib.sha256(stem.encode()).hexdigest()[:12]
    return f"{stem}_owner", f"{stem}_app"


def _prepare(connection: Connection, schema: str) -> str | None:
    """Make the schema and, where this user may, its roles; go on as the owner. Returns the application role, quoted."""
    roles = _roles(connection, schema)
    if roles is None:
        logger.warning(
            "no roles for this schema: the application runs with the rights of the connecting user",
            user=connection.scalar(text("SELECT current_user")),
            still_refused="UPDATE, DELETE and TRUNCATE on events, by triggers",
        )
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        return None
    quote = connection.dialect.identifier_preparer.quote
    owner, app = roles
    for role in roles:
        if not connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
            connection.exec_driver_sql(f"CREATE ROLE {quote(role)} NOLOGIN")
        if not connection.scalar(text("SELECT pg_has_role(current_user, :role, 'MEMBER')"), {"role": role}):
            connection.exec_driver_sql(f"GRANT {quote(role)} TO CURRENT_USER")
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {quote(owner)}")
    connection.exec_driver_sql(f"SET LOCAL ROLE {quote(owner)}")
    return quote(app)


def _roles(connection: Connection, schema: str) -> tuple[str, str] | None:
    """(owner, application) role to use, or None when there are none and this user may not make them."""
    current = connection.scalar(
        text("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = :schema"), {"schema": schema}
    )
    if current is not None:  # a schema keeps the roles it was made with, even in a copy with another name
        return (current, current.removesuffix("_owner") + "_app") if current.endswith("_owner") else None
    may_create = connection.scalar(
        text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    )
    database = connection.scalar(text("SELECT current_database()"))
    return role_names(str(database), schema) if may_create else None
