-- The values of a provider's headers are encrypted from here on: headers holds
-- {"name": {"sealed": "…"}}. Rows from before hold values, and are encrypted when they
-- are next written, or by `aid keys reseal`: the key is not in the database. The auditor
-- reads neither headers nor settings, whose query parameters may be secrets.
--
-- +goose Up
REVOKE SELECT ON providers FROM aid_auditor;
GRANT SELECT (org_id, id, name, kind, base_url, models, hosts, version, created_at, updated_at) ON providers TO aid_auditor;

-- +goose Down
REVOKE SELECT (org_id, id, name, kind, base_url, models, hosts, version, created_at, updated_at) ON providers FROM aid_auditor;
GRANT SELECT ON providers TO aid_auditor;
