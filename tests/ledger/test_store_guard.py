"""The database itself keeps the log: nobody changes it, no position is left out; migrations are safe to repeat."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql
from sqlalchemy import text

from ledger.application import Ledger
from ledger.store.database import DatabaseUrlError, connect, connect_pool, create_sql_engine
from ledger.store.migrate import migrate, role_names

_names = itertools.count(1)

APPEND = "SELECT append_events(%s::uuid[], %s::bigint[], %s::text[], %s::bytea[])"
INSERT = "INSERT INTO crew_main.events VALUES (%s, gen_random_uuid(), 1, 'topic', 'state')"
TAMPERING: list[LiteralString] = [
    "DROP TABLE events",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "ALTER TABLE events ADD COLUMN x int",
    "CREATE RULE r AS ON INSERT TO events DO INSTEAD NOTHING",
    "CREATE TRIGGER t BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "DROP FUNCTION append_events",
    "DROP TABLE people",
    "CREATE ROLE r",
    "UPDATE alembic_version SET version_num = 'x'",
]
CHANGES: list[LiteralString] = [
    "UPDATE crew_main.events SET state = 'x'",
    "UPDATE crew_main.events SET state = 'x' WHERE false",
    "DELETE FROM crew_main.events",
    "TRUNCATE crew_main.events",
    "INSERT INTO crew_main.events VALUES (0, gen_random_uuid(), 1, 't', 's')"
    " ON CONFLICT (position) DO UPDATE SET state = 'x'",
    "MERGE INTO crew_main.events USING (SELECT 0) k(p) ON position = k.p WHEN MATCHED THEN DELETE",
]


@pytest.fixture
def empty_url(postgres_url: str, in_database: Callable[[str, str], str]) -> Any:
    """A fresh database that was never migrated; its roles are dropped with it."""
    name = f"empty_{next(_names)}"
    with psycopg.connect(postgres_url, autocommit=True) as superuser:
        superuser.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield in_database(postgres_url, name)
        superuser.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        for role in (*role_names(name, "crew_main"), *role_names(name, "crew_two")):
            superuser.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def one(connection: psycopg.Connection[Any], query: Any, params: Any = None) -> Any:
    row = connection.execute(query, params).fetchone()
    assert row is not None
    return row[0]


def append(connection: psycopg.Connection[Any]) -> int:
    return int(one(connection, APPEND, ([uuid4()], [1], ["topic"], [b"state"])))


def test_the_application_runs_as_its_own_role_even_in_a_copy_with_another_name(database_url: str) -> None:
    with connect(database_url) as connection:
        role = one(connection, "SELECT current_user")
        assert role == role_names("template_migrated", "crew_main")[1]
        assert not one(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")


@pytest.mark.parametrize("who", ["application", "owner", "superuser", "replication"])
def test_nobody_changes_the_log(database_url: str, who: str) -> None:
    with connect(database_url, autocommit=True) as app:
        assert append(app) == 0
        before = app.execute("SELECT * FROM events").fetchall()
    connection: psycopg.Connection[Any]
    with (
        connect(database_url, autocommit=True)
        if who == "application"
        else psycopg.connect(database_url, autocommit=True) as connection
    ):
        if who == "owner":
            owner = role_names("template_migrated", "crew_main")[0]
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
        if who == "replication":
            connection.execute("SET session_replication_role = replica")
        for change in CHANGES:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(change)
        assert connection.execute("SELECT * FROM crew_main.events").fetchall() == before


def test_the_application_cannot_take_the_guards_away(database_url: str) -> None:
    with connect(database_url, autocommit=True) as connection:
        for statement in TAMPERING:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


def test_the_application_may_forget_people_and_make_its_read_models(database_url: str) -> None:
    with connect(database_url, autocommit=True) as connection:
        for table in ("people", "node_profiles", "api_tokens", "segment_digests"):
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
        connection.execute("INSERT INTO people (person_id, display_name) VALUES (gen_random_uuid(), 'Ada')")
        connection.execute("UPDATE people SET display_name = NULL")
        connection.execute("CREATE TABLE read_model (n int)")
        assert (
            one(connection, "SELECT schemaname FROM pg_tables WHERE tablename = 'read_model'") == "crew_main"
        )


@pytest.mark.parametrize("position", [2, 5, -1])
def test_an_insert_that_leaves_a_gap_is_refused_for_everyone(database_url: str, position: int) -> None:
    with (
        connect(database_url, autocommit=True) as app,
        psycopg.connect(database_url, autocommit=True) as root,
    ):
        assert append(app) == 0
        for connection in (app, root):
            with pytest.raises(errors.CheckViolation):
                connection.execute(INSERT, (position,))
        assert append(app) == 1


def test_a_statement_with_a_gap_inside_is_refused(database_url: str) -> None:
    with connect(database_url, autocommit=True) as app, pytest.raises(errors.CheckViolation):
        app.execute(
            "INSERT INTO events SELECT p, gen_random_uuid(), 1, 't', 's' FROM unnest(ARRAY[0, 1, 3]) AS p"
        )


def test_an_event_larger_than_a_log_entry_is_refused(database_url: str) -> None:
    with connect(database_url, autocommit=True) as app:
        app.execute(APPEND, ([uuid4()], [1], ["topic"], [b"x" * 65_535]))
        with pytest.raises(errors.CheckViolation):
            app.execute(APPEND, ([uuid4()], [1], ["topic"], [b"x" * 65_536]))


def test_an_aborted_append_frees_its_position(database_url: str) -> None:
    with connect(database_url) as connection:
        assert append(connection) == 0
        connection.rollback()
        assert append(connection) == 0


def test_connections_cannot_wait_without_an_end(database_url: str) -> None:
    with connect(database_url) as connection:
        for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            assert one(connection, "SELECT current_setting(%s)", (setting,)) not in ("0", "")


def test_pool_and_engine_use_the_same_schema_and_role(database_url: str) -> None:
    role = role_names("template_migrated", "crew_main")[1]
    pool = connect_pool(database_url)
    with pool.connection() as connection:
        assert connection.execute("SELECT current_user, current_schema()").fetchone() == (role, "crew_main")
    pool.close()
    engine = create_sql_engine(database_url)
    with engine.begin() as sql_connection:
        row = sql_connection.execute(text("SELECT current_user, current_schema()")).one()
        assert tuple(row) == (role, "crew_main")
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mysql://u:sesame@h/d",
        "postgresql://u:sesame@h",
        "postgresql://u:ses%ame@h/d",
        "postgresql://u:sesame@h/d?nonsense=1",
        "host=h dbname=d password=sesame",
    ],
)
def test_a_wrong_url_is_a_clear_error_without_the_password(url: str) -> None:
    for use in (Ledger, migrate, connect, connect_pool, create_sql_engine):
        with pytest.raises(DatabaseUrlError, match="database URL") as caught:
            use(url)
        assert "sesame" not in str(caught.value)


def test_a_schema_name_is_checked_before_it_reaches_sql() -> None:
    for schema in ("", "Crew", "a b", 'x"; DROP', "9a", "a" * 41):
        with pytest.raises(DatabaseUrlError):
            Ledger("postgresql://h/d", schema=schema)


# --- migrations ---


def test_migrations_run_once_when_many_start_at_once_and_again(empty_url: str) -> None:
    with ThreadPoolExecutor(6) as executor:
        list(executor.map(lambda _: migrate(empty_url), range(6)))
    with connect(empty_url, autocommit=True) as connection:
        append(connection)
    migrate(empty_url)
    with connect(empty_url, autocommit=True) as connection:
        assert one(connection, "SELECT current_user") == role_names(connection.info.dbname, "crew_main")[1]
        assert one(connection, "SELECT count(*) FROM events") == 1
        assert append(connection) == 1


def test_two_crews_in_one_database_are_apart(empty_url: str) -> None:
    migrate(empty_url)
    migrate(empty_url, "crew_two")
    with connect(empty_url, autocommit=True) as one_, connect(empty_url, "crew_two", autocommit=True) as two:
        assert append(one_) == 0
        assert append(two) == 0
        with pytest.raises(errors.InsufficientPrivilege):
            two.execute("SELECT * FROM crew_main.events")


def test_a_failed_migration_leaves_nothing(empty_url: str, postgres_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as root:
        owner, app = role_names(root.info.dbname, "crew_main")
        root.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(owner)))
        root.execute(sql.SQL("CREATE SCHEMA crew_main AUTHORIZATION {}").format(sql.Identifier(owner)))
        root.execute("CREATE TABLE crew_main.segment_digests (already int)")
        with pytest.raises(Exception, match="segment_digests"):
            migrate(empty_url)
        assert one(root, "SELECT count(*) FROM pg_tables WHERE schemaname = 'crew_main'") == 1
        assert one(root, "SELECT count(*) FROM pg_roles WHERE rolname = %s", (app,)) == 0


def test_without_the_right_to_create_roles_the_triggers_still_hold(
    empty_url: str, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as root:
        database = root.info.dbname
        tenant = f"{database}_tenant"
        root.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(tenant)))
        root.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), sql.Identifier(tenant))
        )
        url = empty_url.replace("//streamrp2p@", f"//{tenant}@")
        try:
            migrate(url)
            migrate(url)
            output = capsys.readouterr()
            assert "no roles for this schema" in output.out + output.err
            with connect(url, autocommit=True) as connection:
                assert one(connection, "SELECT current_user") == tenant
                assert append(connection) == 0
                for change in CHANGES:
                    with pytest.raises(errors.InsufficientPrivilege, match="only grows"):
                        connection.execute(change)
            # Whoever migrates later, even a superuser, keeps it as it was made.
            migrate(empty_url)
        finally:
            root.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(sql.Identifier(tenant)))
            root.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(tenant)))
            root.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(tenant)))


def test_long_names_give_distinct_roles_that_postgres_does_not_cut() -> None:
    long = "d" * 63
    pairs = [role_names(long, "crew_a"), role_names(long, "crew_b")]
    assert len({name for pair in pairs for name in pair}) == 4
    assert all(len(name) <= 63 for pair in pairs for name in pair)


def test_a_log_of_the_release_before_is_vacuumed_in_even_steps_from_now_on(empty_url: str) -> None:
    migrate(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as superuser:
        names = (
            "autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_insert_threshold,"
            " toast.autovacuum_vacuum_insert_scale_factor, toast.autovacuum_vacuum_insert_threshold,"
            " autovacuum_freeze_min_age, toast.autovacuum_freeze_min_age"
        )
        superuser.execute(sql.SQL("ALTER TABLE crew_main.events RESET ({})").format(sql.SQL(names)))
        superuser.execute("DROP FUNCTION crew_main.append_events_if_unchanged, crew_main.require_unchanged")
        superuser.execute("DROP TABLE crew_main.payment_files")
        superuser.execute("UPDATE crew_main.alembic_version SET version_num = '0002'")
        superuser.execute(INSERT, [0])
        before = superuser.execute("SELECT * FROM crew_main.events").fetchall()
        migrate(empty_url)
        assert superuser.execute("SELECT * FROM crew_main.events").fetchall() == before
        options = superuser.execute(
            "SELECT unnest(t.reloptions) FROM pg_class e JOIN pg_class t ON t.oid IN (e.oid, e.reltoastrelid)"
            " WHERE e.oid = 'crew_main.events'::regclass ORDER BY 1"
        ).fetchall()
        assert [option for (option,) in options] == [
            *["autovacuum_freeze_min_age=0"] * 2,
            *["autovacuum_vacuum_insert_scale_factor=0"] * 2,
            *["autovacuum_vacuum_insert_threshold=100000"] * 2,
        ]
        with pytest.raises(errors.InsufficientPrivilege):
            superuser.execute("DELETE FROM crew_main.events")
