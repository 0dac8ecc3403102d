-- Identities of agents that are not keys: Kubernetes service accounts and SPIFFE ids. The
-- operator grants an organization the names below which it may bind them.
--
-- +goose Up

-- The namespaces of clusters whose service accounts an organization may bind. SPIFFE ids
-- have trust_prefixes. A namespace belongs to one organization.
CREATE TABLE trust_namespaces (
    org_id     text NOT NULL REFERENCES orgs,
    issuer     text NOT NULL,       -- of the cluster's tokens
    namespace  text NOT NULL CHECK (namespace ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, issuer, namespace)
);
CREATE UNIQUE INDEX trust_namespaces_apart ON trust_namespaces (issuer, namespace);

-- An identity refers to its grant. If the operator withdraws the grant, the row is deleted.
CREATE TABLE agent_identities (
    org_id          text NOT NULL,
    id              text NOT NULL,
    agent_id        text NOT NULL,
    name            text NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('kubernetes', 'spiffe')),
    spiffe_id       text,
    trust_prefix    text,
    issuer          text,
    namespace       text,
    service_account text,
    hash            text NOT NULL,       -- of kind and name, as it is looked up
    scopes          text[] NOT NULL DEFAULT '{}',
    allowed_models  text[] NOT NULL DEFAULT '{}',
    rate_limit      bigint NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz,
    revoked_at      timestamptz,
    place           bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (org_id, id),
    FOREIGN KEY (org_id, agent_id) REFERENCES agents (org_id, id) ON DELETE CASCADE,
    FOREIGN KEY (org_id, trust_prefix) REFERENCES trust_prefixes (org_id, prefix) ON DELETE CASCADE,
    FOREIGN KEY (org_id, issuer, namespace) REFERENCES trust_namespaces (org_id, issuer, namespace) ON DELETE CASCADE,
    CHECK (CASE kind
        WHEN 'spiffe' THEN num_nonnulls(spiffe_id, trust_prefix) = 2 AND num_nonnulls(issuer, namespace, service_account) = 0
        ELSE num_nonnulls(issuer, namespace, service_account) = 3 AND num_nonnulls(spiffe_id, trust_prefix) = 0 END)
);
-- Grants of two organizations never overlap, so this holds for the whole installation.
CREATE UNIQUE INDEX agent_identities_live ON agent_identities (org_id, hash) WHERE revoked_at IS NULL;
CREATE INDEX agent_identities_hash ON agent_identities (hash);
CREATE INDEX agent_identities_place ON agent_identities (org_id, agent_id, place, id);
CREATE INDEX agent_identities_prefix ON agent_identities (org_id, trust_prefix) WHERE trust_prefix IS NOT NULL;
CREATE INDEX agent_identities_namespace ON agent_identities (org_id, issuer, namespace) WHERE issuer IS NOT NULL;

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['trust_namespaces', 'agent_identities'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
    END LOOP;
END $$;
-- +goose StatementEnd
-- A gateway of several organizations finds the organization of an identity as that of a key.
CREATE POLICY presented ON agent_identities FOR SELECT USING (hash = ANY (string_to_array(aid_presented(), ',')));
GRANT SELECT ON trust_namespaces TO aid_app; -- servers cannot grant them
GRANT SELECT, INSERT, UPDATE, DELETE ON agent_identities TO aid_app;
GRANT SELECT (org_id, id, agent_id, name, kind, spiffe_id, trust_prefix, issuer, namespace, service_account, scopes, allowed_models, rate_limit,
    created_at, expires_at, revoked_at, place) ON agent_identities TO aid_auditor;
CREATE TRIGGER placed BEFORE INSERT ON agent_identities FOR EACH ROW EXECUTE FUNCTION aid_place();

-- As before, also with the hash of an identity.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION aid_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r jsonb := to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END);
    n bigint;
BEGIN
    INSERT INTO changes (org_id, what) VALUES (r->>'org_id', concat_ws(' ', TG_TABLE_NAME, r->>'org_id',
        coalesce(r->>'id', r->>'provider_id', r->>'org_id'), r->>'agent_id', CASE WHEN TG_TABLE_NAME IN ('agent_keys', 'agent_identities') THEN r->>'hash' END))
        RETURNING seq INTO n;
    DELETE FROM changes WHERE org_id = r->>'org_id' AND seq IN (
        SELECT seq FROM changes WHERE org_id = r->>'org_id' AND at < now() - interval '1 hour' ORDER BY at LIMIT 20 FOR UPDATE SKIP LOCKED);
    PERFORM pg_notify('aid_changed', n || ' ' || left(encode(sha256(convert_to(n || ' ' || (r->>'org_id'), 'UTF8')), 'hex'), 16));
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON agent_identities FOR EACH ROW EXECUTE FUNCTION aid_changed();

-- +goose Down
DROP TABLE agent_identities, trust_namespaces;
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION aid_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r jsonb := to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END);
    n bigint;
BEGIN
    INSERT INTO changes (org_id, what) VALUES (r->>'org_id', concat_ws(' ', TG_TABLE_NAME, r->>'org_id',
        coalesce(r->>'id', r->>'provider_id', r->>'org_id'), r->>'agent_id', CASE WHEN TG_TABLE_NAME = 'agent_keys' THEN r->>'hash' END))
        RETURNING seq INTO n;
    DELETE FROM changes WHERE org_id = r->>'org_id' AND seq IN (
        SELECT seq FROM changes WHERE org_id = r->>'org_id' AND at < now() - interval '1 hour' ORDER BY at LIMIT 20 FOR UPDATE SKIP LOCKED);
    PERFORM pg_notify('aid_changed', n || ' ' || left(encode(sha256(convert_to(n || ' ' || (r->>'org_id'), 'UTF8')), 'hex'), 16));
    RETURN NULL;
END $$;
-- +goose StatementEnd
