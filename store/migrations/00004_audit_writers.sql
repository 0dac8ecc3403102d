-- A writer belongs to the node that used it first. Each lane of a writer has its
-- own continuity: the lane '' is its own, and a fork has the lane of the writer
-- that shipped it.
--
-- +goose Up
ALTER TABLE audit_heads
    ADD COLUMN incarnation bigint NOT NULL DEFAULT 1,
    ADD COLUMN appended_at timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE audit_writers
    ADD COLUMN lane text NOT NULL DEFAULT '',
    ADD COLUMN node_id text NOT NULL DEFAULT '';
ALTER TABLE audit_writers DROP CONSTRAINT audit_writers_pkey;
ALTER TABLE audit_writers ADD PRIMARY KEY (org_id, writer, lane);
ALTER TABLE audit_entries
    ADD COLUMN mac_version smallint NOT NULL DEFAULT 1,
    ADD COLUMN incarnation bigint NOT NULL DEFAULT 1,
    ADD COLUMN session_id text NOT NULL DEFAULT '',
    ADD COLUMN prev_writer_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN shipped_by text NOT NULL DEFAULT '',
    ADD COLUMN lane text NOT NULL DEFAULT '';
-- Which requests were counted as ended: a recovered "unknown" gives way to the
-- real settlement, once.
CREATE TABLE audit_unknown (
    org_id     text NOT NULL REFERENCES orgs,
    writer     text NOT NULL, -- of the decision
    writer_seq bigint NOT NULL,
    agent_id   text NOT NULL,
    day        date NOT NULL,
    provider   text NOT NULL,
    model      text NOT NULL,
    PRIMARY KEY (org_id, writer, writer_seq)
);
ALTER TABLE audit_unknown ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON audit_unknown USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON audit_unknown FROM PUBLIC;
GRANT SELECT, INSERT, DELETE ON audit_unknown TO aid_app;

-- +goose Down
DROP TABLE audit_unknown;
ALTER TABLE audit_entries DROP COLUMN mac_version, DROP COLUMN incarnation, DROP COLUMN session_id, DROP COLUMN prev_writer_seq,
    DROP COLUMN shipped_by, DROP COLUMN lane;
DELETE FROM audit_writers WHERE lane <> '';
ALTER TABLE audit_writers DROP CONSTRAINT audit_writers_pkey;
ALTER TABLE audit_writers ADD PRIMARY KEY (org_id, writer);
ALTER TABLE audit_writers DROP COLUMN lane, DROP COLUMN node_id;
ALTER TABLE audit_heads DROP COLUMN incarnation, DROP COLUMN appended_at;
