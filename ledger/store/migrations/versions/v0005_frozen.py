"""What is vacuumed is frozen with it.

A row of the log never changes, so that the vacuum which notes that its page is visible to all can note as well that it
is so for ever: 4 bytes of WAL an event more. By default that waits for fifty million transactions or more; then the
pages of the whole log are read, changed and written into the WAL once more, at one time.
"""

from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FREEZE = """
ALTER TABLE {schema}.events SET (autovacuum_freeze_min_age = 0, toast.autovacuum_freeze_min_age = 0);
"""


def upgrade() -> None:
    sql = FREEZE.format(schema=context.config.attributes["schema"])
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
