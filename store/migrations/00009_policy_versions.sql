-- The versions of policies: each document that a policy had, who wrote it, and when. They
-- stay when the policy is deleted, so that a decision of the past can be explained.
--
-- +goose Up

CREATE TABLE policy_versions (
    org_id     text NOT NULL REFERENCES orgs,
    policy_id  text NOT NULL,
    version    bigint NOT NULL,
    change     text NOT NULL CHECK (change IN ('created', 'updated', 'deleted', 'imported')),
    name       text NOT NULL,
    document   text NOT NULL,       -- as it was written; of a deleted policy, the last one
    actor_kind text NOT NULL,       -- '' for what was there before this table
    actor_id   text NOT NULL,
    actor_role text NOT NULL,
    at         timestamptz NOT NULL,
    place      bigint NOT NULL DEFAULT 0, -- in the order of the commits: a set of policies is what holds at a place
    PRIMARY KEY (org_id, policy_id, version)
);
CREATE INDEX policy_versions_place ON policy_versions (org_id, place);

-- What is there already has one version: the one that it has now.
INSERT INTO policy_versions (org_id, policy_id, version, change, name, document, actor_kind, actor_id, actor_role, at)
    SELECT org_id, id, version, 'imported', name, document, '', '', '', updated_at FROM policies;

CREATE TRIGGER placed BEFORE INSERT ON policy_versions FOR EACH ROW EXECUTE FUNCTION aid_place();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON policy_versions FOR EACH ROW EXECUTE FUNCTION aid_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON policy_versions FOR EACH STATEMENT EXECUTE FUNCTION aid_append_only();

ALTER TABLE policy_versions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON policy_versions USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON policy_versions FROM PUBLIC;
GRANT SELECT, INSERT ON policy_versions TO aid_app;
GRANT SELECT ON policy_versions TO aid_auditor;

-- +goose Down
DROP TABLE policy_versions;
