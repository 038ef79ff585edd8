"""What autovacuum does to the log at one time does not grow with the log.

A table that only grows is vacuumed to note that its new pages are visible to all. By default that happens after a
fifth of all rows were added: at ten million events two million at once, whose pages, long written out, each go into the
WAL again.
"""

from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

VACUUM = """
ALTER TABLE {schema}.events SET (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    toast.autovacuum_vacuum_insert_scale_factor = 0,
    toast.autovacuum_vacuum_insert_threshold = 100000
);
"""


def upgrade() -> None:
    sql = VACUUM.format(schema=context.config.attributes["schema"])
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
