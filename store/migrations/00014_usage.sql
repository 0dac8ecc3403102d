-- Usage by team and by policy, beside that by agent, day, provider and model.
--
-- +goose Up
ALTER TABLE usage_daily ADD COLUMN team text NOT NULL DEFAULT '', -- of the agent, at the time of the request
    DROP CONSTRAINT usage_daily_pkey, ADD PRIMARY KEY (org_id, agent_id, day, provider, model, team);
ALTER TABLE audit_unknown ADD COLUMN team text NOT NULL DEFAULT '', ADD COLUMN policies text NOT NULL DEFAULT '';

-- A request counts for each policy that decided about it.
CREATE TABLE usage_policies (
    org_id             text NOT NULL REFERENCES orgs,
    policy_id          text NOT NULL,       -- '': no policy decided
    agent_id           text NOT NULL,
    day                date NOT NULL,       -- UTC
    provider           text NOT NULL,
    model              text NOT NULL,
    team               text NOT NULL,
    requests           bigint NOT NULL DEFAULT 0,
    refused            bigint NOT NULL DEFAULT 0,
    input_tokens       bigint NOT NULL DEFAULT 0,
    output_tokens      bigint NOT NULL DEFAULT 0,
    cached_tokens      bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens   bigint NOT NULL DEFAULT 0,
    cost_nano_usd      bigint NOT NULL DEFAULT 0,
    charged_nano_usd   bigint NOT NULL DEFAULT 0,
    unpriced           bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (org_id, policy_id, agent_id, day, provider, model, team)
);
ALTER TABLE usage_policies ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON usage_policies USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON usage_policies FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON usage_policies TO aid_app;
GRANT SELECT ON usage_policies TO aid_auditor;

-- +goose Down
DROP TABLE usage_policies;
ALTER TABLE audit_unknown DROP COLUMN team, DROP COLUMN policies;
-- Sums that differ in the team only become one row again.
ALTER TABLE usage_daily DROP CONSTRAINT usage_daily_pkey, NO FORCE ROW LEVEL SECURITY;
CREATE TEMPORARY TABLE usage_summed AS SELECT org_id, agent_id, day, provider, model, sum(requests) AS requests, sum(refused) AS refused,
    sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, sum(cached_tokens) AS cached_tokens,
    sum(cache_write_tokens) AS cache_write_tokens, sum(reasoning_tokens) AS reasoning_tokens, sum(cost_nano_usd) AS cost_nano_usd,
    sum(unpriced) AS unpriced, sum(charged_nano_usd) AS charged_nano_usd
    FROM usage_daily GROUP BY org_id, agent_id, day, provider, model;
DELETE FROM usage_daily;
ALTER TABLE usage_daily DROP COLUMN team, ADD PRIMARY KEY (org_id, agent_id, day, provider, model);
INSERT INTO usage_daily (org_id, agent_id, day, provider, model, requests, refused, input_tokens, output_tokens, cached_tokens, cache_write_tokens,
    reasoning_tokens, cost_nano_usd, unpriced, charged_nano_usd) SELECT * FROM usage_summed;
DROP TABLE usage_summed;
ALTER TABLE usage_daily FORCE ROW LEVEL SECURITY;
