"""An append that stands only while what it was decided on is unchanged.

The unique index refuses a second event at the same version of the aggregate that is written. What is decided also
depends on aggregates that are only read (a node's suspension, the settings): their versions are held against the log
in the transaction that appends, under its lock, after its own events and those that share it.
"""

from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FUNCTIONS = """
CREATE FUNCTION {schema}.require_unchanged(ids uuid[], versions bigint[])
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(ids, versions) AS k(id, version)
        JOIN {schema}.events e ON e.originator_id = k.id AND e.originator_version > k.version) THEN
        RAISE EXCEPTION 'what this was decided on has changed' USING ERRCODE = 'unique_violation';
    END IF;
END $$;

CREATE FUNCTION {schema}.append_events_if_unchanged(
    ids uuid[], versions bigint[], topics text[], states bytea[], read_ids uuid[], read_versions bigint[])
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    first bigint;
BEGIN
    first := {schema}.append_events(ids, versions, topics, states);
    PERFORM {schema}.require_unchanged(read_ids, read_versions);
    RETURN first;
END $$;
"""

_SIGNATURES = (
    "require_unchanged(uuid[], bigint[])",
    "append_events_if_unchanged(uuid[], bigint[], text[], bytea[], uuid[], bigint[])",
)
GRANTS = "".join(
    f"REVOKE ALL ON FUNCTION {{schema}}.{s} FROM PUBLIC; GRANT EXECUTE ON FUNCTION {{schema}}.{s} TO {{app}};"
    for s in _SIGNATURES
)


def upgrade() -> None:
    names = context.config.attributes
    bind = op.get_bind()
    for block in (FUNCTIONS,) if names["app_role"] is None else (FUNCTIONS, GRANTS):
        sql = block.format(schema=names["schema"], app=names["app_role"])
        bind.exec_driver_sql(sql, execution_options={"no_parameters": True})
