"""Every connection of the program to Postgres is opened here, on one URL, one schema and one role.

Invariant: a connection handed out by this module has the schema first in its search path, holds no more rights than
the application role where that role exists, and cannot wait on a lock or run a statement without an end.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
from eventsourcing.postgres import ConnectionPool, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, dict_row, tuple_row
from psycopg_pool import PoolTimeout
from sqlalchemy import Engine, create_engine

from ledger.store.outage import outage

LOCK_TIMEOUT_MS: Final = 3_000
STATEMENT_TIMEOUT_MS: Final = 15_000
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 15_000
CONNECT_TIMEOUT_S: Final = 3
POOL_TIMEOUT_S: Final = 2.0
# The pool's own pause between attempts doubles up to this long. Short, so that a database that was away for an hour
# is used again within a second or two of coming back.
RECONNECT_TIMEOUT_S: Final = 2.0

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}")

# The application role is named after the owner of the events table, so that a restored or copied database, whatever
# it is called, keeps its roles. No row (no roles were made, or this user is not a member): the session keeps its own.
_TAKE_APP_ROLE: Final = """
SELECT set_config('role', app.rolname, false)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_roles o ON o.oid = c.relowner AND o.rolname LIKE '%%\\_owner'
JOIN pg_roles app ON app.rolname = regexp_replace(o.rolname, '_owner$', '_app')
WHERE n.nspname = %s AND c.relname = 'events' AND pg_has_role(session_user, app.oid, 'MEMBER')
"""


class DatabaseUrlError(ValueError):
    """The database URL or the schema name cannot be used. Never holds the password."""


def check_schema(schema: str) -> str:
    if not _SCHEMA.fullmatch(schema):
        raise DatabaseUrlError(
            f"{schema!r} is not a schema name: lower-case letters, digits and _, at most 40"
        )
    return schema


def conninfo(
    url: str,
    schema: str,
    *,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
) -> str:
    """The libpq connection string for `postgresql://user:password@host:port/database?options`.

    Raises DatabaseUrlError when it is not such a URL.
    """
    check_schema(schema)
    if urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise DatabaseUrlError(
            "the database URL must look like postgresql://user:password@host:5432/database"
        )
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as e:
        raise DatabaseUrlError(
            "the database URL cannot be read: is a special character not percent-encoded?"
        ) from e
    if not given.get("dbname"):
        raise DatabaseUrlError(
            "the database URL names no database: postgresql://user:password@host:5432/database"
        )
    options = (
        f"{given.get('options') or ''} -c search_path={schema} -c lock_timeout={lock_timeout_ms}"
        f" -c statement_timeout={statement_timeout_ms}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS}"
    )
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "streamrp2p",
        # A peer that vanished without a word is noticed within about 10 s.
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    return make_conninfo("", **{**defaults, **given, "options": options.strip()})


def take_app_role(connection: psycopg.Connection[Any], schema: str) -> None:
    autocommit = connection.autocommit
    connection.autocommit = True
    connection.execute(_TAKE_APP_ROLE, (schema,))
    connection.autocommit = autocommit


def connect(
    url: str,
    schema: str = "crew_main",
    *,
    autocommit: bool = False,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
) -> psycopg.Connection[TupleRow]:
    """One connection of its own. Raises DatabaseUrlError, psycopg.OperationalError."""
    info = conninfo(url, schema, statement_timeout_ms=statement_timeout_ms)
    connection = psycopg.connect(info, autocommit=autocommit)
    try:
        take_app_role(connection, schema)
    except BaseException:
        connection.close()
        raise
    return connection


class Pool(ConnectionPool[psycopg.Connection[Any]]):
    """Connects when first asked, gives up on a dead server after a few seconds, and tries anew when asked again."""

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        row_factory: Any,
        autocommit: bool,
        min_size: int,
        max_size: int,
        statement_timeout_ms: int,
        check: bool = False,
    ) -> None:
        """`check`: ask each connection whether it still lives before it is handed out (one round trip)."""

        def configure(connection: psycopg.Connection[Any]) -> None:
            take_app_role(connection, schema)

        self.last_connect_error: str | None = None
        super().__init__(
            conninfo(url, schema, statement_timeout_ms=statement_timeout_ms),
            kwargs={"row_factory": row_factory, "autocommit": autocommit},
            min_size=min_size,
            max_size=max_size,
            open=False,
            configure=configure,
            check=ConnectionPool.check_connection if check else None,
            timeout=POOL_TIMEOUT_S,
            reconnect_timeout=RECONNECT_TIMEOUT_S,
            name=f"streamrp2p-{schema}",
        )

    def getconn(self, timeout: float | None = None) -> psycopg.Connection[Any]:
        try:
            return super().getconn(timeout)
        except PoolTimeout as e:
            # The pool only tells its callers that they waited in vain; operators need to know why.
            raise PoolTimeout(
                f"{e}: {self.last_connect_error}" if self.last_connect_error else str(e)
            ) from None

    def _connect(self, timeout: float | None = None) -> psycopg.Connection[Any]:
        try:
            connection = super()._connect(timeout)
        except psycopg.Error as e:
            self.last_connect_error = str(e).strip()
            outage.failed(self.last_connect_error)
            raise
        self.last_connect_error = None
        outage.connected()
        return connection


def connect_pool(
    url: str,
    schema: str = "crew_main",
    *,
    min_size: int = 1,
    max_size: int = 8,
    autocommit: bool = False,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
) -> ConnectionPool[psycopg.Connection[TupleRow]]:
    """An open psycopg pool (rows are tuples) for the tables of the schema that are not events. Close it after use.

    After a restart of the server its first user gets a live connection, not the first of several dead ones.
    """
    pool = Pool(
        url,
        schema,
        row_factory=tuple_row,
        autocommit=autocommit,
        min_size=min_size,
        max_size=max_size,
        statement_timeout_ms=statement_timeout_ms,
        check=True,
    )
    pool.open()
    return pool


@contextmanager
def _noticed() -> Iterator[None]:
    """Around the making of a connection, of a program that has lost some and will try again."""
    try:
        yield
    except psycopg.OperationalError as e:
        outage.failed(str(e).strip())
        raise
    outage.connected()


def create_sql_engine(
    url: str,
    schema: str = "crew_main",
    *,
    pool_size: int = 2,
    max_overflow: int = 4,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
) -> Engine:
    """A SQLAlchemy engine on the same URL, schema and role. Raises DatabaseUrlError at once, connects when used."""
    conninfo(url, schema)

    def creator() -> psycopg.Connection[TupleRow]:
        with _noticed():
            return connect(url, schema, statement_timeout_ms=statement_timeout_ms)

    return create_engine(
        "postgresql+psycopg://",
        creator=creator,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
    )


class Datastore(PostgresDatastore):
    """The event sourcing library's datastore on our URL, role and limits."""

    def __init__(self, url: str, schema: str = "crew_main", *, max_size: int = 8) -> None:
        self._before_close: list[Callable[[], None]] = []
        self.conninfo = conninfo(url, schema)
        self.url = url
        super().__init__(dbname="", host="", port="", user="", password="", schema=schema)
        self.pool = Pool(
            url,
            schema,
            row_factory=dict_row,
            autocommit=True,
            min_size=1,
            max_size=max_size,
            statement_timeout_ms=STATEMENT_TIMEOUT_MS,
        )
        self.closed = False

    def before_close(self, give_back: Callable[[], None]) -> None:
        """Call this when the datastore is about to close: connections that are kept go back to the pool."""
        self._before_close.append(give_back)

    def register_type_adapters(self) -> None:
        """The library would connect here to look up a composite type that our recorder has no use for."""

    def listen_connection(self) -> psycopg.Connection[TupleRow]:
        with _noticed():
            return connect(self.url, self.schema, autocommit=True)

    def close(self) -> None:
        self.closed = True
        for give_back in self._before_close:
            give_back()
        super().close()
