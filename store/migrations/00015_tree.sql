-- An RFC 6962 tree behind each organization's chain, its checkpoints, and the directory of
-- all trees. docs/evidence.md describes them.
--
-- +goose Up

-- The name of this installation's logs. It is in every checkpoint, so it never changes.
CREATE TABLE installation (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    log_name text NOT NULL CHECK (log_name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$')
);

-- The state of a tree. A signer locks the row while it signs. Leaf i is the entry with the
-- number first_seq + i.
CREATE TABLE audit_trees (
    org_id      text NOT NULL REFERENCES orgs,
    incarnation bigint NOT NULL,
    first_seq   bigint NOT NULL,
    size        bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
    root        bytea NOT NULL CHECK (octet_length(root) = 32),
    edge        bytea NOT NULL,             -- the hashes of the tiles that are not full, level 0 first
    PRIMARY KEY (org_id, incarnation)
);

-- Full tiles: 256 hashes each. Level 0 has the leaves, and a hash of level L + 1 is the root
-- of a tile of level L.
CREATE TABLE audit_tiles (
    org_id      text NOT NULL,
    incarnation bigint NOT NULL,
    level       smallint NOT NULL,
    n           bigint NOT NULL,
    nodes       bytea NOT NULL CHECK (octet_length(nodes) = 8192),
    PRIMARY KEY (org_id, incarnation, level, n)
);
ALTER TABLE audit_tiles ALTER nodes SET STORAGE EXTERNAL; -- hashes cannot be compressed

CREATE TABLE audit_checkpoints (
    org_id      text NOT NULL,
    incarnation bigint NOT NULL,
    size        bigint NOT NULL,
    root        bytea NOT NULL CHECK (octet_length(root) = 32),
    time        timestamptz NOT NULL,
    note        bytea NOT NULL,             -- signed; published only after its transaction is committed
    PRIMARY KEY (org_id, incarnation, size)
);

-- An organization's place in the directory, for ever. It stays when the organization is
-- deleted. Numbers may be missing: nothing is in those slots.
CREATE TABLE audit_slots (
    org_id      text PRIMARY KEY,
    slot        bigint GENERATED ALWAYS AS IDENTITY (MINVALUE 0 START WITH 0) UNIQUE,
    nonce       bytea NOT NULL CHECK (octet_length(nonce) = 32), -- without it a leaf says nothing about the organization
    incarnation bigint NOT NULL DEFAULT 0,
    size        bigint NOT NULL DEFAULT 0,  -- of the newest checkpoint
    seq         bigint NOT NULL DEFAULT 0,  -- number of the last entry under it
    leaf        bytea NOT NULL CHECK (octet_length(leaf) = 32)
);

-- Where a checkpoint is in the first tick that has it.
CREATE TABLE audit_paths (
    org_id      text NOT NULL,
    incarnation bigint NOT NULL,
    size        bigint NOT NULL,
    tick        bigint NOT NULL,            -- its leaf in the directory's log
    path        bytea NOT NULL,             -- hashes, from the leaf to the root
    PRIMARY KEY (org_id, incarnation, size)
);

-- The directory's log has a leaf for each tick. It belongs to no organization, and no leaf
-- names one.
CREATE TABLE directory_tree (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    size bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    edge bytea NOT NULL
);
CREATE TABLE directory_tiles (
    level  smallint NOT NULL,
    n      bigint NOT NULL,
    nodes bytea NOT NULL CHECK (octet_length(nodes) = 8192),
    PRIMARY KEY (level, n)
);
ALTER TABLE directory_tiles ALTER nodes SET STORAGE EXTERNAL;
CREATE TABLE directory_leaves (
    n    bigint PRIMARY KEY,
    data bytea NOT NULL
);
CREATE TABLE directory_checkpoints (
    size bigint PRIMARY KEY,
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    time timestamptz NOT NULL,
    note bytea NOT NULL
);
INSERT INTO directory_tree (root, edge) VALUES (sha256(''), '');

-- +goose StatementBegin
CREATE FUNCTION aid_evidence_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_trees', 'audit_tiles', 'audit_checkpoints', 'audit_slots', 'audit_paths'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['installation', 'audit_trees', 'audit_tiles', 'audit_checkpoints', 'audit_slots', 'audit_paths',
        'directory_tree', 'directory_tiles', 'directory_leaves', 'directory_checkpoints'] LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO aid_app', t);
        EXECUTE format('CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION aid_evidence_append_only()', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['installation', 'audit_tiles', 'audit_checkpoints', 'audit_paths', 'directory_tiles', 'directory_leaves', 'directory_checkpoints'] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION aid_evidence_append_only()', t);
    END LOOP;
END $$;
-- +goose StatementEnd
REVOKE INSERT ON directory_tree FROM aid_app;
GRANT UPDATE (size, root, edge) ON audit_trees, directory_tree TO aid_app;
GRANT UPDATE (incarnation, size, seq, leaf) ON audit_slots TO aid_app;
-- The nonce of its slot is the organization's, and an auditor checks the directory with it.
GRANT SELECT ON installation, audit_trees, audit_tiles, audit_checkpoints, audit_slots, audit_paths,
    directory_tree, directory_tiles, directory_leaves, directory_checkpoints TO aid_auditor;

-- The directory covers all organizations, so one role reads beyond one organization: the
-- slot, the size and the root (in the leaf) of each, and nothing else. No connection has this
-- role. It owns one function, which the app may call.
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'aid_directory') THEN
        RAISE EXCEPTION 'the role aid_directory does not exist: run `aid migrate --provision` first';
    END IF;
END $$;
-- +goose StatementEnd
GRANT USAGE ON SCHEMA public TO aid_directory;
GRANT SELECT (org_id, seq) ON audit_heads TO aid_directory;
GRANT SELECT (org_id, slot, incarnation, size, seq, leaf) ON audit_slots TO aid_directory;
CREATE POLICY directory ON audit_heads FOR SELECT TO aid_directory USING (true);
CREATE POLICY directory ON audit_slots FOR SELECT TO aid_directory USING (true);
-- +goose StatementBegin
CREATE FUNCTION aid_directory() RETURNS TABLE (org_id text, head bigint, slot bigint, incarnation bigint, size bigint, seq bigint, leaf bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(s.org_id, h.org_id), coalesce(h.seq, 0), s.slot, s.incarnation, s.size, s.seq, s.leaf
    FROM public.audit_heads h FULL JOIN public.audit_slots s ON s.org_id = h.org_id
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION aid_directory() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION aid_directory() TO aid_app;
GRANT CREATE ON SCHEMA public TO aid_directory;
ALTER FUNCTION aid_directory() OWNER TO aid_directory;
REVOKE CREATE ON SCHEMA public FROM aid_directory;

-- A deleted organization keeps its slot with a tombstone.
-- +goose StatementBegin
CREATE FUNCTION aid_tombstone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE audit_slots SET leaf = sha256(nonce || convert_to(E'deleted\n', 'UTF8')) WHERE org_id = OLD.org_id;
    RETURN OLD;
END $$;
-- +goose StatementEnd
CREATE TRIGGER tombstone BEFORE DELETE ON orgs FOR EACH ROW EXECUTE FUNCTION aid_tombstone();

-- +goose Down
DROP TRIGGER tombstone ON orgs;
DROP FUNCTION aid_tombstone();
SET LOCAL ROLE aid_directory;
DROP FUNCTION aid_directory();
RESET ROLE;
DROP POLICY directory ON audit_heads;
REVOKE SELECT (org_id, seq) ON audit_heads FROM aid_directory;
REVOKE USAGE ON SCHEMA public FROM aid_directory;
DROP TABLE directory_checkpoints, directory_leaves, directory_tiles, directory_tree, audit_paths, audit_slots, audit_checkpoints, audit_tiles,
    audit_trees, installation;
DROP FUNCTION aid_evidence_append_only();
