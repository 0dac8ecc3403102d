-- Dry-runs of policies: what they found, or how far they are. They are kept for a week.
--
-- +goose Up
CREATE TABLE policy_dry_runs (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,
    updated_at timestamptz NOT NULL,
    result     text NOT NULL,       -- JSON, as the API shows it
    PRIMARY KEY (org_id, id)
);
ALTER TABLE policy_dry_runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON policy_dry_runs USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON policy_dry_runs FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON policy_dry_runs TO aid_app;

-- +goose Down
DROP TABLE policy_dry_runs;
