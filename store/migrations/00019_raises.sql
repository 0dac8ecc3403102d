-- Raises of USD caps. A raise adds to one count of a policy's cap until a time in its period.
--
-- +goose Up
CREATE TABLE limit_raises (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,
    policy_id  text NOT NULL,
    limit_name text NOT NULL,       -- daily_usd_cap or monthly_usd_cap
    per        text NOT NULL,       -- as request.decided names it
    subject    text NOT NULL,
    counter    text NOT NULL,       -- the count's name, without the period
    period     text NOT NULL,       -- such as 2026-11 or 2026-11-27
    nano_usd   bigint NOT NULL,
    capped     bigint NOT NULL,     -- the cap with all raises in force, when this one was made
    reason     text NOT NULL,
    actor_id   text NOT NULL,       -- the organization key
    created_at timestamptz NOT NULL,
    ends_at    timestamptz NOT NULL,
    place      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (org_id, id)
);
CREATE INDEX limit_raises_place ON limit_raises (org_id, place, id);
CREATE INDEX limit_raises_ends ON limit_raises (org_id, ends_at);
ALTER TABLE limit_raises ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON limit_raises USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON limit_raises FROM PUBLIC;
GRANT SELECT, INSERT ON limit_raises TO aid_app;
GRANT SELECT ON limit_raises TO aid_auditor;
CREATE TRIGGER placed BEFORE INSERT ON limit_raises FOR EACH ROW EXECUTE FUNCTION aid_place();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON limit_raises FOR EACH ROW EXECUTE FUNCTION aid_changed();

-- +goose Down
DROP TABLE limit_raises;
