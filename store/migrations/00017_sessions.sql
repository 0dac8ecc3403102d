-- What the chain has of each process, sessions, and their attestations. docs/evidence.md
-- describes them.
--
-- +goose Up

-- The watermark of a process: all of its records up to seq, and all of its entries with an
-- earlier time than at, are in the chain.
CREATE TABLE audit_watermarks (
    org_id  text NOT NULL REFERENCES orgs,
    writer  text NOT NULL,
    node_id text NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL,           -- by the node's clock, at most this database's
    seen_at timestamptz NOT NULL,
    ended   boolean NOT NULL DEFAULT false, -- the process is gone, and the chain has all of its records
    PRIMARY KEY (org_id, writer)
);

-- Sessions, as far as the entries up to audit_session_heads.seq show them. An id that is used
-- again after its session was closed begins the next generation.
CREATE TABLE audit_sessions (
    org_id     text NOT NULL REFERENCES orgs,
    agent_id   text NOT NULL,
    session_id text NOT NULL,
    generation int NOT NULL,
    opened_at  timestamptz NOT NULL,        -- time of its first decision
    last_at    timestamptz NOT NULL,        -- time of its last entry
    opened_seq bigint NOT NULL,             -- its first entry
    last_seq   bigint NOT NULL,             -- its last entry
    entries    bigint NOT NULL,
    closed_at  timestamptz,                 -- decisions up to this time belong to it
    closed_by  text NOT NULL DEFAULT '',    -- an id of a key, or "idle"
    stale      boolean NOT NULL DEFAULT true, -- it has entries that its newest attestation lacks
    PRIMARY KEY (org_id, agent_id, session_id, generation)
);
CREATE INDEX audit_sessions_place ON audit_sessions (org_id, opened_seq);
CREATE INDEX audit_sessions_id ON audit_sessions (org_id, session_id);
CREATE INDEX audit_sessions_open ON audit_sessions (org_id, last_at) WHERE closed_at IS NULL;
CREATE INDEX audit_sessions_stale ON audit_sessions (org_id, closed_at) WHERE closed_at IS NOT NULL AND stale;

-- The entries of sessions by their numbers, in parts.
CREATE TABLE audit_session_parts (
    org_id     text NOT NULL,
    agent_id   text NOT NULL,
    session_id text NOT NULL,
    first_seq  bigint NOT NULL,
    seqs       bigint[] NOT NULL,           -- ascending; the first is first_seq
    PRIMARY KEY (org_id, agent_id, session_id, first_seq)
);
CREATE TABLE audit_session_heads (
    org_id text PRIMARY KEY REFERENCES orgs,
    seq    bigint NOT NULL
);

-- Attestations of closed sessions. A revision never changes; later entries make the next.
CREATE TABLE audit_attestations (
    org_id     text NOT NULL,
    agent_id   text NOT NULL,
    session_id text NOT NULL,
    generation int NOT NULL,
    revision   int NOT NULL,
    root       bytea NOT NULL CHECK (octet_length(root) = 32),
    complete   boolean NOT NULL,
    made_at    timestamptz NOT NULL,
    statement  bytea NOT NULL,              -- the bytes that are signed
    envelope   bytea,                       -- NULL: not signed yet
    signed_at  timestamptz,
    PRIMARY KEY (org_id, agent_id, session_id, generation, revision)
);
CREATE INDEX audit_attestations_unsigned ON audit_attestations (org_id, made_at) WHERE envelope IS NULL;

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_watermarks', 'audit_sessions', 'audit_session_parts', 'audit_session_heads', 'audit_attestations'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO aid_app', t);
        EXECUTE format('GRANT SELECT ON %I TO aid_auditor', t);
    END LOOP;
END $$;
-- +goose StatementEnd
GRANT UPDATE ON audit_watermarks, audit_sessions, audit_session_heads TO aid_app;
GRANT UPDATE (envelope, signed_at) ON audit_attestations TO aid_app;

-- +goose Down
DROP TABLE audit_attestations;
DROP TABLE audit_session_heads;
DROP TABLE audit_session_parts;
DROP TABLE audit_sessions;
DROP TABLE audit_watermarks;
