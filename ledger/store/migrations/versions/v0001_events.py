"""The event log, which only grows, and the tables that can forget.

The log keeps its own rules, so that no program, role or person at a prompt can break them unseen: positions are dense
(an insert that would leave a gap is refused), and UPDATE, DELETE and TRUNCATE are refused for everyone. The triggers
are ENABLE ALWAYS, which holds in replication sessions too; only the owner, by dropping them, could go around.
"""

from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

EVENTS = """
CREATE TABLE {schema}.events (
    position bigint PRIMARY KEY CHECK (position >= 0),
    originator_id uuid NOT NULL,
    originator_version bigint NOT NULL,
    topic text NOT NULL,
    state bytea NOT NULL CHECK (octet_length(state) <= 65535),
    UNIQUE (originator_id, originator_version)
);
-- Receipts, keys and hashes do not compress; do not spend time trying.
ALTER TABLE {schema}.events ALTER COLUMN state SET STORAGE EXTERNAL;

CREATE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the event log only grows: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER events_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.events
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.events ENABLE ALWAYS TRIGGER events_only_grow;

CREATE FUNCTION {schema}.refuse_gap() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    low bigint; high bigint; number bigint;
BEGIN
    SELECT min(position), max(position), count(*) INTO low, high, number FROM fresh;
    IF number > 0 AND (high - low + 1 <> number
        OR (low > 0 AND NOT EXISTS (SELECT FROM {schema}.events WHERE position = low - 1))) THEN
        RAISE EXCEPTION 'positions % to % would leave a gap in the event log', low, high
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER events_have_no_gap AFTER INSERT ON {schema}.events
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_gap();
ALTER TABLE {schema}.events ENABLE ALWAYS TRIGGER events_have_no_gap;

-- One call is one round trip and one transaction: lock, number, insert, notify. Under READ COMMITTED each statement
-- of a volatile function sees what was committed before it began, so max() after the lock is the true head. The lock
-- is released when the commit is visible. Returns the position of the first event; the others follow it.
CREATE FUNCTION {schema}.append_events(ids uuid[], versions bigint[], topics text[], states bytea[])
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    first bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.events', 0));
    SELECT coalesce(max(position) + 1, 0) INTO first FROM {schema}.events;
    INSERT INTO {schema}.events (position, originator_id, originator_version, topic, state)
        SELECT first + e.n - 1, e.id, e.version, e.topic, e.state
        FROM unnest(ids, versions, topics, states) WITH ORDINALITY AS e(id, version, topic, state, n);
    PERFORM pg_notify('{schema}.events', '');
    RETURN first;
END $$;
"""

ERASABLE = """
CREATE TABLE {schema}.people (
    person_id uuid PRIMARY KEY,
    display_name text,
    contact text,
    payout_destination text,
    destination_salt bytea
);
CREATE TABLE {schema}.node_profiles (
    node_id uuid PRIMARY KEY,
    name text,
    url text,
    updated_us bigint NOT NULL
);
CREATE TABLE {schema}.api_tokens (
    token_sha256 bytea PRIMARY KEY CHECK (octet_length(token_sha256) = 32),
    role text NOT NULL,
    subject_id uuid,
    label text NOT NULL,
    created_us bigint NOT NULL,
    revoked_us bigint
);
CREATE TABLE {schema}.segment_digests (
    rendition_id uuid NOT NULL,
    sequence bigint NOT NULL,
    digests bytea NOT NULL,
    PRIMARY KEY (rendition_id, sequence)
);
"""

GRANTS = """
REVOKE ALL ON FUNCTION {schema}.append_events(uuid[], bigint[], text[], bytea[]) FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA {schema} TO {app};
GRANT EXECUTE ON FUNCTION {schema}.append_events(uuid[], bigint[], text[], bytea[]) TO {app};
GRANT SELECT, INSERT ON {schema}.events TO {app};
GRANT SELECT ON {schema}.alembic_version TO {app};
GRANT SELECT, INSERT, UPDATE, DELETE
    ON {schema}.people, {schema}.node_profiles, {schema}.api_tokens, {schema}.segment_digests TO {app};
"""


def upgrade() -> None:
    names = context.config.attributes
    bind = op.get_bind()
    for block in (EVENTS, ERASABLE) if names["app_role"] is None else (EVENTS, ERASABLE, GRANTS):
        sql = block.format(schema=names["schema"], app=names["app_role"])
        bind.exec_driver_sql(sql, execution_options={"no_parameters": True})
