-- Retention of the audit log. A month leaves the database only if checkpoints cover it, it is
-- archived, and no organization in it has a hold. The owner drops it with `aid audit trim`.
-- docs/evidence.md describes it.
--
-- +goose Up

-- How many months the audit log is kept. The newest row counts.
CREATE TABLE audit_retention (
    set_at timestamptz PRIMARY KEY DEFAULT clock_timestamp(),
    months int NOT NULL CHECK (months BETWEEN 1 AND 1200),
    actor  text NOT NULL
);

-- While an organization has a hold that is not released, none of its entries leaves.
CREATE TABLE audit_holds (
    org_id         text NOT NULL REFERENCES orgs,
    id             text NOT NULL,
    reason         text NOT NULL CHECK (reason <> ''),
    actor          text NOT NULL,
    placed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at    timestamptz,
    released_by    text,
    release_reason text,
    PRIMARY KEY (org_id, id),
    CHECK ((released_at IS NULL) = (released_by IS NULL) AND (released_at IS NULL) = (coalesce(release_reason, '') = ''))
);

-- Exports outside of the database. Those of an incarnation follow each other from leaf 0 on.
CREATE TABLE audit_archives (
    org_id      text NOT NULL,
    incarnation bigint NOT NULL,
    first       bigint NOT NULL CHECK (first >= 0), -- index of its first leaf
    size        bigint NOT NULL CHECK (size > first), -- of its last checkpoint
    export_id   text NOT NULL,
    note        bytea NOT NULL,             -- that checkpoint, signed
    sha256      bytea NOT NULL CHECK (octet_length(sha256) = 32), -- of the file
    bytes       bigint NOT NULL,
    actor       text NOT NULL,
    archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, incarnation, first)
);

-- Entries up to up_to may be absent. The entry with the number entry_seq says so, too.
CREATE TABLE audit_trims (
    org_id      text NOT NULL,
    up_to       bigint NOT NULL,            -- number of the last entry that left
    from_seq    bigint NOT NULL,
    entries     bigint NOT NULL CHECK (entries > 0), -- that were in the month
    month       date NOT NULL,
    incarnation bigint NOT NULL,            -- of the last entry, and so on
    mac         bytea NOT NULL,
    mac_version smallint NOT NULL,
    epoch       int NOT NULL,
    appended_at timestamptz NOT NULL,
    size        bigint NOT NULL,            -- of the first checkpoint that has it
    checkpoint  bytea NOT NULL,             -- signed
    archive     bytea NOT NULL CHECK (octet_length(archive) = 32), -- SHA-256 of the archive's file that has it
    entry_seq   bigint NOT NULL,            -- number of the entry chain.trimmed
    actor       text NOT NULL,
    reason      text NOT NULL,
    trimmed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, up_to)
);

-- A sidecar that was idle sends its last record again, whose entry may have left.
ALTER TABLE audit_writers ADD COLUMN leaf bytea; -- hash of the last record's entry; NULL: not known yet

-- +goose StatementBegin
CREATE FUNCTION aid_holds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' OR OLD.released_at IS NOT NULL OR NEW.released_at IS NULL
        OR (OLD.org_id, OLD.id, OLD.reason, OLD.actor, OLD.placed_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.reason, NEW.actor, NEW.placed_at) THEN
        RAISE EXCEPTION 'a hold is only released, once' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_holds FOR EACH ROW EXECUTE FUNCTION aid_holds();

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_holds', 'audit_archives', 'audit_trims'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['audit_retention', 'audit_holds', 'audit_archives', 'audit_trims'] LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('GRANT SELECT ON %I TO aid_app, aid_auditor', t);
        EXECUTE format('CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION aid_evidence_append_only()', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['audit_retention', 'audit_archives', 'audit_trims'] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION aid_evidence_append_only()', t);
    END LOOP;
END $$;
-- +goose StatementEnd

-- The owner's commands work on all organizations, one after the other.
SET LOCAL ROLE aid_directory;
GRANT EXECUTE ON FUNCTION aid_directory() TO aid_owner;
SET LOCAL ROLE aid_owner;

-- +goose Down
ALTER TABLE audit_writers DROP COLUMN leaf;
DROP TABLE audit_trims, audit_archives, audit_holds, audit_retention;
DROP FUNCTION aid_holds();
