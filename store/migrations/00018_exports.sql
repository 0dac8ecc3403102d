-- Exports of the audit log. A row has what determines the bytes of a file, and what cannot be
-- computed again: its signature. The file itself is made from audit_entries.
--
-- +goose Up
CREATE TABLE audit_exports (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,           -- derived from the header
    what       bytea NOT NULL,          -- SHA-256 of filter, range and format: equal orders are one export
    header     bytea NOT NULL,          -- JSON: the file's first line
    created_at timestamptz NOT NULL,
    worked_at  timestamptz,             -- when a control plane last worked on it
    problem    text NOT NULL DEFAULT '',
    entries    bigint NOT NULL DEFAULT 0, -- that the filter selects
    size       bigint NOT NULL DEFAULT 0, -- of the file, in bytes
    sha256     bytea,                   -- of the file
    last_line  bytea,                   -- with the signature; NULL: the file is not complete
    marks      bigint[] NOT NULL DEFAULT '{}', -- offset of each 5,000th row, to continue a download
    PRIMARY KEY (org_id, id),
    UNIQUE (org_id, what)
);
ALTER TABLE audit_exports ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON audit_exports USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON audit_exports FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON audit_exports TO aid_app;
GRANT SELECT ON audit_exports TO aid_auditor;

-- +goose Down
DROP TABLE audit_exports;
