"""Kept folds: the state of a long fold at some position, so that a start need not read the log from the beginning.

Not truth: a row may be deleted at any time, and is made again from the events (`ledger.store.folds`).
"""

from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FOLDS = """
CREATE TABLE {schema}.folds (
    name text PRIMARY KEY,
    shape bytea NOT NULL,
    position bigint NOT NULL,
    anchor bytea NOT NULL CHECK (octet_length(anchor) = 32),
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    state bytea NOT NULL
);
"""

GRANTS = "GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.folds TO {app};"


def upgrade() -> None:
    names = context.config.attributes
    bind = op.get_bind()
    for block in (FOLDS,) if names["app_role"] is None else (FOLDS, GRANTS):
        sql = block.format(schema=names["schema"], app=names["app_role"])
        bind.exec_driver_sql(sql, execution_options={"no_parameters": True})
