-- Gateways of several organizations, roles of nodes, SPIFFE ids that an
-- organization may use, and changes that only their readers can read.
--
-- +goose Up

-- A node that serves several organizations has one row in each, with the same id
-- and the same token or SPIFFE id. Only the operator makes such rows. An
-- organization can revoke its own row: the node then serves the others.
--
-- Nodes that exist keep both roles. To separate them, make one node for Envoy and
-- one for the sidecar, and revoke the old one.
ALTER TABLE nodes
    ADD COLUMN roles text[] NOT NULL DEFAULT '{envoy,extproc}' CHECK (roles <@ ARRAY['envoy', 'extproc']),
    ADD COLUMN by_operator boolean NOT NULL DEFAULT true; -- it prevails over rows that organizations made
ALTER TABLE nodes ALTER COLUMN roles SET DEFAULT '{}', ALTER COLUMN by_operator SET DEFAULT false;
ALTER TABLE nodes DROP CONSTRAINT nodes_token_hash_key;
DROP INDEX nodes_spiffe;
-- Per organization, so that a conflict says nothing about other organizations.
CREATE UNIQUE INDEX nodes_token ON nodes (org_id, token_hash) WHERE token_hash IS NOT NULL;
CREATE UNIQUE INDEX nodes_spiffe ON nodes (org_id, spiffe_id) WHERE spiffe_id IS NOT NULL AND revoked_at IS NULL;
CREATE INDEX nodes_by_token ON nodes (token_hash) WHERE token_hash IS NOT NULL;
CREATE INDEX nodes_by_spiffe ON nodes (spiffe_id) WHERE spiffe_id IS NOT NULL;

-- The trust domains ("spiffe://corp.example") and path prefixes ("spiffe://corp.example/ns/ai")
-- below which an organization may make nodes. The operator grants them. Two of
-- them never overlap, whichever organizations they belong to: '0' follows '/' in
-- ASCII, so each range holds exactly what is below the prefix.
CREATE TYPE aid_text_range AS RANGE (subtype = text, collation = "C");
CREATE TABLE trust_prefixes (
    org_id     text NOT NULL REFERENCES orgs,
    prefix     text NOT NULL CHECK (prefix ~ '^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, prefix),
    CONSTRAINT trust_prefixes_apart EXCLUDE USING gist (aid_text_range(prefix || '/', prefix || '0') WITH &&)
);

-- What changed. A notification has only the row's number, so that listening shows
-- no organization's data. The row itself is read under row security.
CREATE TABLE changes (
    org_id text NOT NULL,
    seq    bigint GENERATED ALWAYS AS IDENTITY,
    at     timestamptz NOT NULL DEFAULT now(),
    what   text NOT NULL,   -- "TABLE ORG ID", and for a key "agent_keys ORG ID AGENT HASH"
    PRIMARY KEY (org_id, seq)
);
CREATE INDEX changes_at ON changes (org_id, at);

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['trust_prefixes', 'changes'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
    END LOOP;
END $$;
-- +goose StatementEnd
GRANT SELECT ON trust_prefixes TO aid_app; -- servers cannot grant them
GRANT SELECT, INSERT, UPDATE, DELETE ON changes TO aid_app;

-- The payload is "SEQ TAG". TAG is the start of SHA-256("SEQ ORG"): a control plane
-- finds with it which of its organizations to read. Rows are kept for an hour.
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

-- A gateway of several organizations finds the organization of a key by the key's
-- hash, as org_keys and nodes are found.
CREATE POLICY presented ON agent_keys FOR SELECT USING (hash = ANY (string_to_array(aid_presented(), ',')));
CREATE INDEX agent_keys_hash ON agent_keys (hash);

-- +goose Down
-- Nodes of several organizations cannot be expressed in the schema before: restore a backup instead.
SELECT 1 / 0;
