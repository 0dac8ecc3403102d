-- Changes of signing keys. Both keys have signed each one. The first row of a key in the
-- directory's log is from_size of signing_keys; each tree of an organization has its own size.
--
-- +goose Up
CREATE TABLE directory_key_changes (
    role          text NOT NULL CHECK (role IN ('p256', 'ed25519')),
    size          bigint NOT NULL CHECK (size > 0), -- checkpoints from this size on need the new key
    old_kid       text NOT NULL REFERENCES signing_keys,
    new_kid       text NOT NULL REFERENCES signing_keys,
    old_signature bytea NOT NULL,
    new_signature bytea NOT NULL,
    PRIMARY KEY (role, size)
);
CREATE TABLE audit_key_changes (
    org_id        text NOT NULL REFERENCES orgs,
    incarnation   bigint NOT NULL,
    role          text NOT NULL CHECK (role IN ('p256', 'ed25519')),
    size          bigint NOT NULL CHECK (size > 0),
    old_kid       text NOT NULL,
    new_kid       text NOT NULL,
    old_signature bytea NOT NULL,
    new_signature bytea NOT NULL,
    PRIMARY KEY (org_id, incarnation, role, size)
);
ALTER TABLE audit_key_changes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON audit_key_changes USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['directory_key_changes', 'audit_key_changes'] LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO aid_app', t);
        EXECUTE format('GRANT SELECT ON %I TO aid_auditor', t);
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION aid_evidence_append_only()', t);
        EXECUTE format('CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION aid_evidence_append_only()', t);
    END LOOP;
END $$;
-- +goose StatementEnd

-- The owner rotates keys, so it lists the organizations.
SET LOCAL ROLE aid_directory;
GRANT EXECUTE ON FUNCTION aid_directory() TO aid_owner;
RESET ROLE;

-- +goose Down
SET LOCAL ROLE aid_directory;
REVOKE EXECUTE ON FUNCTION aid_directory() FROM aid_owner;
RESET ROLE;
DROP TABLE audit_key_changes;
DROP TABLE directory_key_changes;
