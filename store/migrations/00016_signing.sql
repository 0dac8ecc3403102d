-- The public keys that have ever signed checkpoints and documents, and the signatures of
-- witnesses. They belong to the installation and to no organization.
--
-- +goose Up

-- A retired key stays, since old signatures need it.
CREATE TABLE signing_keys (
    kid       text PRIMARY KEY,            -- the JWK thumbprint
    role      text NOT NULL CHECK (role IN ('p256', 'ed25519')),
    spki      bytea NOT NULL,              -- the public key (X.509 SubjectPublicKeyInfo)
    from_size bigint NOT NULL DEFAULT 0 CHECK (from_size >= 0), -- sizes of the directory: from_size <= size < to_size
    to_size   bigint CHECK (to_size > from_size),               -- null: the key signs
    added_at  timestamptz NOT NULL DEFAULT now(),
    retire_at timestamptz                  -- a newer key has its role; until this time both sign
);
-- One key of each role has no successor.
CREATE UNIQUE INDEX signing_keys_current ON signing_keys (role) WHERE retire_at IS NULL;
REVOKE ALL ON signing_keys FROM PUBLIC;
GRANT SELECT, INSERT ON signing_keys TO aid_app;
GRANT UPDATE (to_size, retire_at) ON signing_keys TO aid_app;
GRANT SELECT ON signing_keys TO aid_auditor;

-- A key is never changed and never removed, and its end is set once.
-- +goose StatementBegin
CREATE FUNCTION aid_signing_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' OR (OLD.kid, OLD.role, OLD.spki, OLD.from_size, OLD.added_at) IS DISTINCT FROM (NEW.kid, NEW.role, NEW.spki, NEW.from_size, NEW.added_at)
        OR OLD.to_size IS NOT NULL AND NEW.to_size IS DISTINCT FROM OLD.to_size
        OR OLD.retire_at IS NOT NULL AND NEW.retire_at IS DISTINCT FROM OLD.retire_at THEN
        RAISE EXCEPTION 'signing keys are append-only' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON signing_keys FOR EACH ROW EXECUTE FUNCTION aid_signing_keys();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON signing_keys FOR EACH STATEMENT EXECUTE FUNCTION aid_append_only();

-- Lines that witnesses add to the directory's checkpoints.
CREATE TABLE directory_cosignatures (
    size    bigint NOT NULL REFERENCES directory_checkpoints,
    witness text NOT NULL,
    line    text NOT NULL CHECK (line !~ '\n'),
    PRIMARY KEY (size, witness)
);
REVOKE ALL ON directory_cosignatures FROM PUBLIC;
GRANT SELECT, INSERT ON directory_cosignatures TO aid_app;
GRANT SELECT ON directory_cosignatures TO aid_auditor;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON directory_cosignatures FOR EACH ROW EXECUTE FUNCTION aid_evidence_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON directory_cosignatures FOR EACH STATEMENT EXECUTE FUNCTION aid_evidence_append_only();

-- +goose Down
DROP TABLE directory_cosignatures;
DROP TABLE signing_keys;
DROP FUNCTION aid_signing_keys();
