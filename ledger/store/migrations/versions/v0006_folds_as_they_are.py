"""Kept folds are stored as they are.

They are written every twenty thousand events, and most of a large one is ids and hashes: to compress 5.8 MB, to less
than half, takes Postgres 170 ms of processor time each time, and a start waits for it to be undone.
"""

from alembic import context, op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PLAIN = "ALTER TABLE {schema}.folds ALTER COLUMN state SET STORAGE EXTERNAL;"


def upgrade() -> None:
    sql = PLAIN.format(schema=context.config.attributes["schema"])
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
