"""Which folder of payment files this database was last paid with.

One row at most, and no truth of its own: what was paid stands in the log and in those files, and this tells whether
they are the same files (`ledger.services.payment_files`).
"""

from alembic import context, op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE {schema}.payment_files (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    last_use uuid NOT NULL
);
"""

GRANTS = "GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.payment_files TO {app};"


def upgrade() -> None:
    names = context.config.attributes
    bind = op.get_bind()
    for block in (TABLE,) if names["app_role"] is None else (TABLE, GRANTS):
        sql = block.format(schema=names["schema"], app=names["app_role"])
        bind.exec_driver_sql(sql, execution_options={"no_parameters": True})
