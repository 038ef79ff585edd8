"""The tables of the read models, and how the changes of a batch merge into their rows.

Invariant: every row here can be thrown away and built again from the log, to the same values. So these tables have no
migrations: a projection whose shape version changed is rebuilt. How a column takes a change (`Merge`) is declared on
the column, once, and used both in memory (within a batch) and in SQL (between batches): the two can not differ, which
is what makes any batch size give the same rows.

Amounts are `_micro` (millionths of the unit of account), times `_us` (Unix microseconds), positions are log positions.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Column, Connection, Integer, MetaData, Table, Text, Uuid, inspect

TRACKING: Final = "read_positions"
NEXT: Final = "__next"  # suffix of tables that a rebuild fills beside the live ones
HISTORY_LENGTH: Final = 16  # outcomes kept in a HISTORY column, oldest first
_FORMER: Final = {"verdicts": ("read_verdicts", "read_verdict_deliveries")}  # projection -> its tables


class Merge(StrEnum):
    """How a column takes the change of a batch."""

    KEY = "key"  # names the row
    FIXED = "fixed"  # written when the row is made, never again
    ADD = "add"  # old + change
    SET = "set"  # the change replaces the old, when there is one
    LATEST = "latest"  # the greater of both
    HISTORY = "history"  # the change is appended; the last HISTORY_LENGTH characters stay


def _uuid(name: str, merge: Merge, **options: Any) -> Column[Any]:
    return Column(name, Uuid, primary_key=merge is Merge.KEY, info={"merge": merge}, **_opts(options))


def _int(name: str, merge: Merge, **options: Any) -> Column[Any]:
    return Column(
        name,
        BigInteger,
        primary_key=merge is Merge.KEY,
        autoincrement=False,
        info={"merge": merge},
        **_opts(options),
    )


def _text(name: str, merge: Merge, **options: Any) -> Column[Any]:
    return Column(name, Text, primary_key=merge is Merge.KEY, info={"merge": merge}, **_opts(options))


def _bool(name: str, merge: Merge, **options: Any) -> Column[Any]:
    return Column(name, Boolean, info={"merge": merge}, **_opts(options))


def _opts(options: dict[str, Any]) -> dict[str, Any]:
    return {"nullable": False} | options


class Tables:
    """All read model tables of one crew's schema; with `suffix`, the set that a rebuild fills."""

    def __init__(self, schema: str | None, suffix: str = "") -> None:
        self.schema = schema
        self.metadata = MetaData(
            schema=schema, naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s"}
        )
        metadata = self.metadata

        self.positions = Table(
            TRACKING,
            MetaData(schema=schema),
            Column("name", Text, primary_key=True),
            Column("version", Integer, nullable=False),
            Column("position", BigInteger, nullable=False),  # the next position to apply
            Column("stopped", Text),  # why it cannot apply what stands there; NULL while it goes on
        )

        self.balances = Table(
            "read_balances" + suffix,
            metadata,
            _text("account", Merge.KEY),
            _int("amount_micro", Merge.ADD),
            _int("last_position", Merge.LATEST),
        )

        self.statements = Table(
            "read_statements" + suffix,
            metadata,
            _uuid("friend_id", Merge.KEY),
            _int("position", Merge.KEY),
            _int("line", Merge.KEY),  # 0, 1, ... within the position
            _text("kind", Merge.FIXED),
            _int("at_us", Merge.FIXED),
            _int("epoch", Merge.FIXED, nullable=True),
            _uuid("stream_id", Merge.FIXED, nullable=True),
            _uuid("node_id", Merge.FIXED, nullable=True),
            _text("reason", Merge.FIXED),
            _int("units", Merge.FIXED),
            _int("credited_bytes", Merge.FIXED),
            _int("rate_micro_per_gb", Merge.FIXED),
            _int("amount_micro", Merge.FIXED),
            _uuid("batch_id", Merge.FIXED, nullable=True),
            _int("payout_line", Merge.FIXED, nullable=True),
        )

        self.nodes = Table(
            "read_nodes" + suffix,
            metadata,
            _uuid("node_id", Merge.KEY),
            _uuid("friend_id", Merge.FIXED),
            _int("joined_us", Merge.FIXED),
            _text("presence", Merge.SET),  # joined | online | offline
            _text("standing", Merge.SET),  # active | suspended | retired
            _text("standing_reason", Merge.SET),
            _int("probes_ok", Merge.ADD),
            _int("probes_bad", Merge.ADD),
            _text("recent_probes", Merge.HISTORY),  # projections.health
            _int("receipts_accepted", Merge.ADD),
            _int("receipts_refused", Merge.ADD),
            _text("recent_batches", Merge.HISTORY),  # projections.health
            _int("credited_units", Merge.ADD),
            _int("credited_bytes", Merge.ADD),
            _int("last_position", Merge.LATEST),  # the last event about it
            _int("last_seen_us", Merge.LATEST),  # the last sign of life
        )
        self.node_verdicts = Table(
            "read_node_verdicts" + suffix,
            metadata,
            _uuid("node_id", Merge.KEY),
            _text("verdict", Merge.KEY),
            _text("cap", Merge.KEY),  # "" unless capped
            _int("receipts", Merge.ADD),
        )

        self.streams = Table(
            "read_streams" + suffix,
            metadata,
            _uuid("stream_id", Merge.KEY),
            _text("slug", Merge.FIXED),
            _uuid("owner_id", Merge.FIXED),
            _int("registered_us", Merge.FIXED),
            _text("state", Merge.SET),  # READY | LIVE | OFFLINE | ARCHIVED | STALE
            _uuid("broadcast_id", Merge.SET, nullable=True),  # the latest
            _int("broadcasts", Merge.ADD),
            _int("segments", Merge.ADD),
            _int("published_bytes", Merge.ADD),
            _int("duration_us", Merge.ADD),
            _int("sessions", Merge.ADD),
            _int("started_us", Merge.SET, nullable=True),
            _int("ended_us", Merge.SET, nullable=True),
            _int("last_sequence", Merge.LATEST, nullable=True),
            _int("last_position", Merge.LATEST),
        )
        self.broadcasts = Table(
            "read_broadcasts" + suffix,
            metadata,
            _uuid("broadcast_id", Merge.KEY),
            _uuid("stream_id", Merge.FIXED),
            _uuid("rendition_id", Merge.FIXED),
            _bool("interrupted", Merge.SET),
            _int("segments", Merge.ADD),
            _int("published_bytes", Merge.ADD),
            _int("duration_us", Merge.ADD),
            _int("last_sequence", Merge.LATEST, nullable=True),
            _int("last_position", Merge.LATEST),
        )

        self.payouts = Table(
            "read_payouts" + suffix,
            metadata,
            _uuid("batch_id", Merge.KEY),
            _text("rail", Merge.FIXED),
            _int("planned_us", Merge.FIXED),
            _int("lines", Merge.FIXED),
            _int("total_micro", Merge.FIXED),
            _text("state", Merge.SET),  # planned | approved | cancelled
            _text("planned_by", Merge.SET),  # the operator; "" for payouts of before that was recorded
            _text("decided_by", Merge.SET),  # the operator who approved
            _text("reason", Merge.SET),  # of the cancellation
            _int("decided_us", Merge.SET, nullable=True),
            _int("last_position", Merge.LATEST),
        )
        self.payout_lines = Table(
            "read_payout_lines" + suffix,
            metadata,
            _uuid("batch_id", Merge.KEY),
            _int("line", Merge.KEY),
            _uuid("friend_id", Merge.FIXED),
            _int("amount_micro", Merge.FIXED),
            _text("state", Merge.SET),  # planned | reserved | attempted | unknown | confirmed | failed
            _int("attempts", Merge.SET),
            _text("attempt_key", Merge.SET),
            _text("outcome", Merge.SET),  # "" | confirmed | failed | unknown
            _text("reference", Merge.SET),
            _int("returned_micro", Merge.ADD),  # of what was confirmed
            _int("last_position", Merge.LATEST),
        )


def create(connection: Connection, tables: Sequence[Table]) -> None:
    """Create those of the tables, with their indexes, that do not exist."""
    if tables:
        tables[0].metadata.create_all(connection, tables=list(tables))


def create_positions(connection: Connection, positions: Table) -> None:
    """The tracking table in its present shape. It is the one table here that no rebuild makes anew."""
    create(connection, [positions])
    there = {c["name"] for c in inspect(connection).get_columns(positions.name, schema=positions.schema)}
    if "stopped" not in there:  # from before readiness named what had stopped
        name = connection.dialect.identifier_preparer.format_table(positions)
        connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN stopped text")


def drop(connection: Connection, tables: Sequence[Table]) -> None:
    if tables:
        tables[0].metadata.drop_all(connection, tables=list(tables))


def drop_former(connection: Connection, positions: Table) -> None:
    """What earlier programs kept and nobody reads any more. An earlier program that comes back builds its own again."""
    quote = connection.dialect.identifier_preparer.quote
    prefix = f"{quote(positions.schema)}." if positions.schema else ""
    for name, tables in _FORMER.items():
        for table in tables:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {prefix}{table}")
        connection.execute(positions.delete().where(positions.c.name == name))


def all_exist(connection: Connection, tables: Sequence[Table]) -> bool:
    inspector = inspect(connection)
    return all(inspector.has_table(t.name, schema=t.schema) for t in tables)


def switch(connection: Connection, live: Sequence[Table], rebuilt: Sequence[Table]) -> None:
    """Put each rebuilt table in the place of the live one, in the caller's transaction.

    Readers see either the old rows or the new ones, never none: they wait for the commit.
    """
    quote = connection.dialect.identifier_preparer.quote
    for old, new in zip(live, rebuilt, strict=True):
        schema = f"{quote(new.schema)}." if new.schema else ""
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {schema}{quote(old.name)}")
        connection.exec_driver_sql(f"ALTER TABLE {schema}{quote(new.name)} RENAME TO {quote(old.name)}")
        indexes = connection.exec_driver_sql(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = %s::regclass",
            (f"{schema}{quote(old.name)}",),
        )
        for (index,) in indexes.all():
            renamed = index.replace(NEXT, "")
            connection.exec_driver_sql(f"ALTER INDEX {schema}{quote(index)} RENAME TO {quote(renamed)}")
