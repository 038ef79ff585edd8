"""What an append was decided on is looked up one by one, by the index.

As one join, how it was looked up was the planner's guess: on a young log without statistics it read the whole table for
each append.
"""

from alembic import context, op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

FUNCTION = """
CREATE OR REPLACE FUNCTION {schema}.require_unchanged(ids uuid[], versions bigint[])
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    FOR i IN 1 .. cardinality(ids) LOOP
        IF EXISTS (SELECT FROM {schema}.events
            WHERE originator_id = ids[i] AND originator_version > versions[i]) THEN
            RAISE EXCEPTION 'what this was decided on has changed' USING ERRCODE = 'unique_violation';
        END IF;
    END LOOP;
END $$;
"""


def upgrade() -> None:
    sql = FUNCTION.format(schema=context.config.attributes["schema"])
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
