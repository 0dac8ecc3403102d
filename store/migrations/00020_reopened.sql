-- Signed checkpoints outside of the database that a restored database lacks, and that its owner
-- has accepted as lost. They belong to trees, whose names are their origins.
--
-- +goose Up
CREATE TABLE audit_reopened (
    origin      text NOT NULL,
    restored    bigint NOT NULL CHECK (restored >= 0), -- leaves of the tree that the database has
    size        bigint NOT NULL,             -- of the newest checkpoint outside
    note        bytea NOT NULL,              -- that checkpoint, signed
    actor       text NOT NULL,
    reason      text NOT NULL CHECK (reason <> ''),
    reopened_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (origin, size)
);
REVOKE ALL ON audit_reopened FROM PUBLIC;
GRANT SELECT ON audit_reopened TO aid_app, aid_auditor;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_reopened FOR EACH ROW EXECUTE FUNCTION aid_evidence_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_reopened FOR EACH STATEMENT EXECUTE FUNCTION aid_evidence_append_only();

-- +goose Down
DROP TABLE audit_reopened;
