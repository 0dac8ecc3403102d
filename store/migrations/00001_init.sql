-- The schema. Rules that hold for every table here, and that a test checks in
-- the catalogue:
--
--   * A table that holds an org's rows has org_id first in its primary key (the
--     distribution key, should one Postgres be outgrown) and row-level security
--     ENABLEd and FORCEd, so that the owner is bound by it too.
--   * The org is set with SET LOCAL aid.org inside each transaction. Unset or
--     empty means no rows.
--   * Nothing is granted to PUBLIC.
--
-- Who runs this is the owner. aid_app serves; aid_auditor reads. Both exist
-- before this runs (package store makes them).
--
-- +goose Up

-- +goose StatementBegin
CREATE FUNCTION aid_org() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('aid.org', true), '');
-- +goose StatementEnd

-- What a caller presented before its org is known: the hex SHA-256 of a secret,
-- or a SPIFFE id. It opens exactly the rows that carry it, for reading.
-- +goose StatementBegin
CREATE FUNCTION aid_presented() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('aid.presented', true), '');
-- +goose StatementEnd

CREATE TABLE orgs (
    org_id     text PRIMARY KEY CHECK (org_id ~ '^org_[A-Za-z0-9_-]{1,60}$'),
    name       text NOT NULL,
    tier       text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Keys of people and programs that manage: aid_org_….
CREATE TABLE org_keys (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,
    name       text NOT NULL,
    role       text NOT NULL CHECK (role IN ('admin', 'auditor', 'reviewer')),
    hash       text NOT NULL,              -- hex SHA-256 of the whole key
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (org_id, id),
    UNIQUE (hash)                          -- looked up before the org is known
);

-- Envoys and sidecars that may fetch an org's configuration: aid_node_…, or the
-- SPIFFE id of their certificate.
CREATE TABLE nodes (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,
    name       text NOT NULL,
    token_hash text UNIQUE,                -- hex SHA-256 of the whole token
    spiffe_id  text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (org_id, id),
    CHECK (token_hash IS NOT NULL OR spiffe_id IS NOT NULL)
);
CREATE UNIQUE INDEX nodes_spiffe ON nodes (spiffe_id) WHERE spiffe_id IS NOT NULL AND revoked_at IS NULL;

CREATE TABLE agents (
    org_id         text NOT NULL REFERENCES orgs,
    id             text NOT NULL,
    name           text NOT NULL,
    description    text NOT NULL DEFAULT '',
    team           text NOT NULL DEFAULT '',
    environment    text NOT NULL DEFAULT '',
    tier           text NOT NULL DEFAULT '',
    status         text NOT NULL CHECK (status IN ('active', 'suspended')),
    allowed_models text[] NOT NULL DEFAULT '{}',
    metadata       jsonb NOT NULL DEFAULT '{}',
    fingerprint    text NOT NULL,
    version        bigint NOT NULL DEFAULT 1, -- counts changes; the ETag
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    PRIMARY KEY (org_id, id)
);

CREATE TABLE agent_keys (
    org_id         text NOT NULL,
    id             text NOT NULL,
    agent_id       text NOT NULL,
    name           text NOT NULL,
    hash           text NOT NULL,             -- hex SHA-256 of the whole key
    hint           text NOT NULL DEFAULT '',  -- the last four characters, for people
    scopes         text[] NOT NULL,
    allowed_models text[] NOT NULL DEFAULT '{}',
    rate_limit     bigint NOT NULL DEFAULT 0 CHECK (rate_limit >= 0),
    rotated_from   text NOT NULL DEFAULT '',  -- id of the key that this one replaces
    created_at     timestamptz NOT NULL,
    expires_at     timestamptz,
    revoked_at     timestamptz,
    PRIMARY KEY (org_id, id),
    UNIQUE (org_id, hash),
    FOREIGN KEY (org_id, agent_id) REFERENCES agents (org_id, id) ON DELETE CASCADE
);
CREATE INDEX agent_keys_agent ON agent_keys (org_id, agent_id, id);

CREATE TABLE policies (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,
    name       text NOT NULL,
    document   text NOT NULL,               -- the body of POST /v1/policies, as text
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, id),
    UNIQUE (org_id, name)
);

CREATE TABLE providers (
    org_id     text NOT NULL REFERENCES orgs,
    id         text NOT NULL,
    name       text NOT NULL,
    kind       text NOT NULL,
    base_url   text NOT NULL,
    models     text[] NOT NULL DEFAULT '{}',
    hosts      text[] NOT NULL DEFAULT '{}',
    headers    jsonb NOT NULL DEFAULT '{}',
    settings   jsonb NOT NULL DEFAULT '{}', -- of the kind (custom REST, drop_unsupported, …)
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, id),
    UNIQUE (org_id, name)
);

-- A credential is bound to the base URL that it was given for.
CREATE TABLE provider_credentials (
    org_id      text NOT NULL,
    provider_id text NOT NULL,
    cluster     text NOT NULL,
    sealed      text NOT NULL,              -- a Fernet token
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (org_id, provider_id),
    FOREIGN KEY (org_id, provider_id) REFERENCES providers (org_id, id) ON DELETE CASCADE
);

-- Answers of POSTs that carried an Idempotency-Key, sealed: one may hold a key
-- that is shown once.
CREATE TABLE idempotency_keys (
    org_id     text NOT NULL REFERENCES orgs,
    actor      text NOT NULL,               -- id of the org key
    key        text NOT NULL,
    digest     text NOT NULL,               -- of method, path and body
    status     int NOT NULL,
    sealed     text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, actor, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (org_id, created_at);

-- The end of each org's chain. Its row is locked while entries are appended:
-- that is what keeps sequence numbers without gaps.
CREATE TABLE audit_heads (
    org_id text PRIMARY KEY REFERENCES orgs,
    seq    bigint NOT NULL DEFAULT 0,
    epoch  int NOT NULL DEFAULT 0,
    mac    bytea NOT NULL DEFAULT ''
);

-- How far each writer's records are in the org's chain: a resend changes nothing.
CREATE TABLE audit_writers (
    org_id     text NOT NULL REFERENCES orgs,
    writer     text NOT NULL,
    writer_seq bigint NOT NULL,
    PRIMARY KEY (org_id, writer)
);

CREATE TABLE audit_entries (
    org_id      text NOT NULL,
    seq         bigint NOT NULL,
    appended_at timestamptz NOT NULL DEFAULT now(),
    time        timestamptz NOT NULL,
    kind        text NOT NULL,
    agent_id    text NOT NULL DEFAULT '',
    request_id  text NOT NULL DEFAULT '',
    writer      text NOT NULL,
    writer_seq  bigint NOT NULL,
    entry       bytea NOT NULL,             -- hashed as stored, never jsonb
    epoch       int NOT NULL,               -- which HMAC key
    prev_mac    bytea NOT NULL,
    mac         bytea NOT NULL,
    PRIMARY KEY (org_id, seq, appended_at)
) PARTITION BY RANGE (appended_at);
CREATE INDEX audit_entries_agent ON audit_entries (org_id, agent_id, seq);
CREATE INDEX audit_entries_request ON audit_entries (org_id, request_id) WHERE request_id <> '';
CREATE INDEX audit_entries_writer ON audit_entries (org_id, writer, writer_seq);
-- Whatever the clock says, an entry has a place.
CREATE TABLE audit_entries_default PARTITION OF audit_entries DEFAULT;

-- Sums of settled entries, kept in the transaction that appends them.
CREATE TABLE usage_daily (
    org_id             text NOT NULL REFERENCES orgs,
    agent_id           text NOT NULL,
    day                date NOT NULL,       -- UTC
    provider           text NOT NULL,
    model              text NOT NULL,       -- as asked for
    requests           bigint NOT NULL DEFAULT 0,
    refused            bigint NOT NULL DEFAULT 0,
    input_tokens       bigint NOT NULL DEFAULT 0,
    output_tokens      bigint NOT NULL DEFAULT 0,
    cached_tokens      bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens   bigint NOT NULL DEFAULT 0,
    cost_nano_usd      bigint NOT NULL DEFAULT 0,
    unpriced           bigint NOT NULL DEFAULT 0, -- requests whose cost is not known
    PRIMARY KEY (org_id, agent_id, day, provider, model)
);

-- ---- append-only ----

-- +goose StatementBegin
CREATE FUNCTION aid_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit entries are append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION aid_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION aid_append_only();
-- A partition can be truncated by its own name, and that trigger is not inherited.
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_entries_default
    FOR EACH STATEMENT EXECUTE FUNCTION aid_append_only();

-- aid_audit_partitions makes the partitions of this month and of the months
-- after it, each with the same row security as the whole.
-- +goose StatementBegin
CREATE FUNCTION aid_audit_partitions(months int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    first date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    month date;
    name  text;
BEGIN
    IF months NOT BETWEEN 0 AND 60 THEN
        RAISE EXCEPTION 'months must be from 0 to 60';
    END IF;
    FOR i IN 0..months LOOP
        month := (first + make_interval(months => i))::date;
        name := 'audit_entries_' || to_char(month, 'YYYY_MM');
        IF to_regclass('public.' || name) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE TABLE public.%I PARTITION OF public.audit_entries FOR VALUES FROM (%L) TO (%L)',
                    name, month::text || ' 00:00:00+00', (month + interval '1 month')::date::text || ' 00:00:00+00');
                EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
                EXECUTE format('CREATE POLICY org ON public.%I USING (org_id = public.aid_org()) WITH CHECK (org_id = public.aid_org())', name);
                EXECUTE format('CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON public.%I FOR EACH STATEMENT EXECUTE FUNCTION public.aid_append_only()', name);
            EXCEPTION WHEN duplicate_table OR check_violation THEN
                NULL; -- another replica made it, or the default partition has rows of it: they stay there
            END;
        END IF;
    END LOOP;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION aid_audit_partitions(int) FROM PUBLIC;

-- ---- who may see what ----

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['orgs', 'org_keys', 'nodes', 'agents', 'agent_keys', 'policies', 'providers', 'provider_credentials',
        'idempotency_keys', 'audit_heads', 'audit_writers', 'audit_entries', 'audit_entries_default', 'usage_daily'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
    END LOOP;
END $$;
-- +goose StatementEnd
-- Who presents a secret may find the one row that it opens, and with it the org.
CREATE POLICY presented ON org_keys FOR SELECT USING (hash = aid_presented());
CREATE POLICY presented ON nodes FOR SELECT USING (token_hash = aid_presented() OR spiffe_id = aid_presented());

GRANT SELECT, INSERT, UPDATE, DELETE ON org_keys, nodes, agents, agent_keys, policies, providers, provider_credentials, idempotency_keys TO aid_app;
GRANT SELECT ON orgs TO aid_app;
GRANT SELECT, INSERT, UPDATE ON audit_heads, audit_writers, usage_daily TO aid_app;
GRANT SELECT, INSERT ON audit_entries TO aid_app;
GRANT EXECUTE ON FUNCTION aid_audit_partitions(int) TO aid_app;
GRANT SELECT ON orgs, agents, agent_keys, policies, providers, audit_heads, audit_writers, audit_entries, usage_daily TO aid_auditor;

-- ---- who hears of changes ----

-- Control planes LISTEN on aid_changed. The payload is "TABLE ORG ID", and for a
-- key "agent_keys ORG ID AGENT HASH". It says what changed, never to what.
-- +goose StatementBegin
CREATE FUNCTION aid_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r jsonb := to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END);
BEGIN
    PERFORM pg_notify('aid_changed', concat_ws(' ', TG_TABLE_NAME, r->>'org_id',
        coalesce(r->>'id', r->>'provider_id', r->>'org_id'), r->>'agent_id', CASE WHEN TG_TABLE_NAME = 'agent_keys' THEN r->>'hash' END));
    RETURN NULL;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['orgs', 'nodes', 'agents', 'agent_keys', 'policies', 'providers', 'provider_credentials'] LOOP
        EXECUTE format('CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION aid_changed()', t);
    END LOOP;
END $$;
-- +goose StatementEnd

SELECT aid_audit_partitions(3);

-- +goose Down
-- There is no way back that keeps the record: restore a backup instead.
SELECT 1 / 0;
