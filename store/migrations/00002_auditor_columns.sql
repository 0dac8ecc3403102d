-- The auditor reads of agent keys what people are shown, and not the hash by
-- which a key is found: whoever has both that and a dump of keys could tell whose
-- they are. A column that is added later is not granted by itself.
--
-- +goose Up
REVOKE SELECT ON agent_keys FROM aid_auditor;
GRANT SELECT (org_id, id, agent_id, name, hint, scopes, allowed_models, rate_limit, rotated_from, created_at, expires_at, revoked_at) ON agent_keys TO aid_auditor;

-- +goose Down
REVOKE SELECT (org_id, id, agent_id, name, hint, scopes, allowed_models, rate_limit, rotated_from, created_at, expires_at, revoked_at) ON agent_keys FROM aid_auditor;
GRANT SELECT ON agent_keys TO aid_auditor;
