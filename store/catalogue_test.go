package store_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func column(t testing.TB, conn *pgx.Conn, query string, args ...any) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return list
}

// The catalogue has the properties that the schema promises, for all tables that exist
// now and for tables that are added later.
func TestCatalogue(t *testing.T) {
	db := storetest.Open(t)
	// Partitions that are made later count too.
	if _, err := db.Pool().Exec(t.Context(), `SELECT aid_audit_partitions(12)`); err != nil {
		t.Fatal(err)
	}
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	none := func(what, query string, args ...any) {
		t.Helper()
		if found := column(t, admin, query, args...); len(found) > 0 {
			t.Errorf("%s: %s", what, strings.Join(found, ", "))
		}
	}
	const tables = `SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') `
	const hasOrg = ` EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped) `

	if n := len(column(t, admin, tables+`AND`+hasOrg)); n < 14+1+12 {
		t.Errorf("only %d tables have an org: the questions below miss some", n)
	}
	none("tables of an org without enabled and forced row security", tables+`AND`+hasOrg+`AND NOT (c.relrowsecurity AND c.relforcerowsecurity)`)
	none("tables of an org without a policy for all commands", tables+`AND`+hasOrg+`AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd = '*'
		AND pg_get_expr(p.polqual, c.oid) = '(org_id = aid_org())' AND pg_get_expr(p.polwithcheck, c.oid) = '(org_id = aid_org())')`)
	none("policies beside the org's, except those that only read: presented, and the directory's", `SELECT p.polname || ' on ' || p.polrelid::regclass FROM pg_policy p
		WHERE p.polname <> 'org' AND NOT (p.polname = 'presented' AND p.polcmd = 'r' AND p.polrelid::regclass::text IN ('org_keys', 'nodes', 'agent_keys', 'agent_identities'))
		AND NOT (p.polname = 'directory' AND p.polcmd = 'r' AND p.polroles = ARRAY['aid_directory'::regrole::oid] AND p.polrelid::regclass::text IN ('audit_heads', 'audit_slots'))`)
	none("tables of an org whose primary key does not begin with it", tables+`AND`+hasOrg+`AND NOT EXISTS (
		SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'org_id' WHERE i.indrelid = c.oid AND i.indisprimary AND i.indkey[0] = a.attnum)`)
	none("tables without an org", tables+`AND NOT`+hasOrg+`AND c.relname NOT IN ('goose_db_version', 'installation_keys', 'egress_cas', 'signing_keys', 'directory_cosignatures', 'directory_key_changes', 'audit_reopened', 'audit_retention', 'installation',
		'directory_tree', 'directory_tiles', 'directory_leaves', 'directory_checkpoints')`)
	none("views: each must be security_invoker, and be considered here", `SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm', 'f')`)
	none("functions that run as their owner", `SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
		AND NOT (p.proname = 'aid_audit_partitions' AND p.proconfig = ARRAY['search_path=pg_catalog, public, pg_temp'])
		AND NOT (p.proname = 'aid_directory' AND p.proowner = 'aid_directory'::regrole AND p.provolatile = 's' AND p.proconfig = ARRAY['search_path=pg_catalog, public, pg_temp'])`)

	// The one exception: aid_directory reads the slot, size and root of every organization,
	// and nothing else. No connection has this role.
	if got := column(t, admin, `SELECT c.relname || '.' || a.attname || ': ' || p.priv FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,
		unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS p(priv)
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND has_column_privilege('aid_directory', c.oid, a.attnum, p.priv) ORDER BY 1`); !slices.Equal(got, []string{
		"audit_heads.org_id: SELECT", "audit_heads.seq: SELECT", "audit_slots.incarnation: SELECT", "audit_slots.leaf: SELECT", "audit_slots.org_id: SELECT",
		"audit_slots.seq: SELECT", "audit_slots.size: SELECT", "audit_slots.slot: SELECT",
	}) {
		t.Errorf("aid_directory has the privileges %v", got)
	}
	none("attributes of aid_directory", `SELECT rolname FROM pg_roles WHERE rolname = 'aid_directory' AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication OR rolcanlogin)`)
	none("roles that have the rights of aid_directory", `SELECT rolname FROM pg_roles WHERE NOT rolsuper AND rolname <> 'aid_directory' AND pg_has_role(oid, 'aid_directory', 'USAGE')`)
	none("what aid_directory owns beside its function", `SELECT d.classid::regclass || ' ' || d.objid FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o'
		AND d.refobjid = 'aid_directory'::regrole AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND NOT (d.classid = 'pg_proc'::regclass AND d.objid = 'aid_directory()'::regprocedure)`)

	roles := []string{store.OwnerRole, store.AppRole, store.AuditorRole}
	none("roles that may do more than log in", `SELECT rolname FROM pg_roles WHERE rolname = ANY($1) AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication OR NOT rolcanlogin)`, roles)
	none("roles that are members of others; the owner may only give things to aid_directory", `SELECT m.roleid::regrole || ' has ' || m.member::regrole FROM pg_auth_members m
		WHERE m.member::regrole::text = ANY($1) AND NOT (m.member::regrole::text = 'aid_owner' AND m.roleid::regrole::text = 'aid_directory' AND NOT m.inherit_option AND NOT m.admin_option)`, roles)
	serving := []string{store.AppRole, store.AuditorRole}
	none("things that a serving role owns", `SELECT d.classid::regclass || ' ' || d.objid FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
		WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o' AND r.rolname = ANY($1)`, serving)
	none("tables that are not the owner's", tables+`AND c.relowner::regrole::text <> $1`, store.OwnerRole)

	// Every role is a member of "PUBLIC".
	const acl = `SELECT c.oid::regclass || ': ' || a.privilege_type FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'public'::regnamespace `
	none("tables granted to PUBLIC", acl+`AND a.grantee = 0`)
	none("privileges of the app that are more than rows", acl+`AND a.grantee = 'aid_app'::regrole AND a.privilege_type NOT IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')`)
	none("privileges of the auditor that are more than reading", acl+`AND a.grantee = 'aid_auditor'::regrole AND a.privilege_type <> 'SELECT'`)
	none("columns that open doors, or name who may, which the auditor reads", `SELECT c.oid::regclass || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND a.attname ~ '(hash|sealed|secret|token$|^headers$|^settings$)' AND has_column_privilege('aid_auditor', c.oid, a.attnum, 'SELECT')`)
	none("privileges with which a serving role could grant them on", acl+`AND a.is_grantable AND a.grantee::regrole::text = ANY($1)`, serving)
	none("privileges on single partitions", acl+`AND c.relispartition AND a.grantee::regrole::text = ANY($1)`, serving)
	none("the schema or the database, to PUBLIC", `SELECT a.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'public' AND a.grantee = 0
		UNION ALL SELECT a.privilege_type FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE d.datname = current_database() AND a.grantee = 0`)
	if got := column(t, admin, acl+`AND a.grantee = 'aid_app'::regrole AND c.relname LIKE 'audit\_entries%' ORDER BY 1`); !slices.Equal(got, []string{"audit_entries: INSERT", "audit_entries: SELECT"}) {
		t.Errorf("the app's privileges on the record: %v", got)
	}
	none("partitions that can be truncated", `SELECT c.oid::regclass::text FROM pg_class c WHERE c.relname LIKE 'audit\_entries%' AND c.relkind IN ('r', 'p')
		AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = 'append_only_whole' AND g.tgtype & 32 <> 0 AND g.tgenabled = 'O')`)
}

// Statements without a grant are rejected, for the serving role and for the owner.
func TestAppendOnly(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	add := func(seq int, at string) {
		t.Helper()
		inOrg(t, db, org, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO audit_entries (org_id, seq, appended_at, time, kind, writer, writer_seq, entry, epoch, prev_mac, mac)
				VALUES ($1, $2, $3::timestamptz, now(), 'k', 'w', $2, '', 1, '', '')`, org, seq, at)
			return err
		})
	}
	add(1, "now")
	add(2, "2001-01-01") // of no month's partition
	month := column(t, storetest.Connect(t, storetest.OwnerURL(t)), `SELECT 'audit_entries_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')`)[0]
	for _, role := range []string{store.AppRole, store.OwnerRole, store.AuditorRole} {
		conn := storetest.Connect(t, storetest.URL(t, role))
		execute(t, conn, `SELECT set_config('aid.org', $1, false)`, org)
		if got := column(t, conn, `SELECT seq::text FROM audit_entries ORDER BY seq`); len(got) != 2 {
			t.Errorf("%s reads %v", role, got)
		}
		for _, statement := range []string{
			`UPDATE audit_entries SET entry = 'x'`, `UPDATE audit_entries SET seq = 3 WHERE seq = 2`, `DELETE FROM audit_entries`, `DELETE FROM audit_entries WHERE seq = 1`, `TRUNCATE audit_entries`,
			`UPDATE audit_entries_default SET entry = 'x'`, `DELETE FROM audit_entries_default`, `TRUNCATE audit_entries_default`,
			`UPDATE ` + month + ` SET entry = 'x'`, `DELETE FROM ` + month, `TRUNCATE ` + month,
			`MERGE INTO audit_entries a USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE`,
			`INSERT INTO audit_entries SELECT * FROM audit_entries ON CONFLICT (org_id, seq, appended_at) DO UPDATE SET entry = 'x'`,
		} {
			if _, err := conn.Exec(t.Context(), statement); code(err) != "42501" {
				t.Errorf("%s: %s: %v", role, statement, err)
			}
		}
	}
	conn := storetest.Connect(t, storetest.URL(t, store.AppRole))
	execute(t, conn, `SELECT set_config('aid.org', $1, false)`, org)
	if got := column(t, conn, `SELECT entry::text || seq FROM audit_entries ORDER BY seq`); !slices.Equal(got, []string{`\x1`, `\x2`}) {
		t.Errorf("the record is now %q", got)
	}
}

func TestAuditorOnlyReads(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	inOrg(t, db, org, func(tx pgx.Tx) error { return insertAgent(t.Context(), tx, org, "ag_1") })
	conn := storetest.Connect(t, storetest.URL(t, store.AuditorRole))
	if got := column(t, conn, `SELECT id FROM agents`); len(got) != 0 {
		t.Errorf("without an org it reads %v", got)
	}
	execute(t, conn, `SELECT set_config('aid.org', $1, false)`, org)
	if got := column(t, conn, `SELECT id FROM agents`); !slices.Equal(got, []string{"ag_1"}) {
		t.Errorf("it reads %v", got)
	}
	for _, table := range []string{"orgs", "org_keys", "nodes", "agents", "agent_keys", "agent_identities", "trust_namespaces", "policies", "providers", "provider_credentials", "idempotency_keys",
		"audit_heads", "audit_writers", "audit_entries", "usage_daily", "usage_policies", "places", "budget_counts", "budget_reservations", "budget_events",
		"sidecars", "limit_raises", "policy_versions", "policy_dry_runs", "installation_keys", "egress_cas", "goose_db_version", "installation", "audit_trees", "audit_tiles", "audit_checkpoints",
		"audit_slots", "audit_paths", "directory_tree", "directory_tiles", "directory_leaves", "directory_checkpoints", "directory_key_changes", "audit_key_changes", "audit_exports",
		"audit_retention", "audit_holds", "audit_archives", "audit_trims"} {
		for _, statement := range []string{`INSERT INTO ` + table + ` DEFAULT VALUES`, `DELETE FROM ` + table, `TRUNCATE ` + table} {
			if _, err := conn.Exec(t.Context(), statement); code(err) != "42501" {
				t.Errorf("%s: %v", statement, err)
			}
		}
	}
	// What opens doors is not for it.
	for _, table := range []string{"org_keys", "nodes", "provider_credentials", "idempotency_keys", "policy_dry_runs", "installation_keys", "egress_cas"} {
		if _, err := conn.Exec(t.Context(), `SELECT * FROM `+table); code(err) != "42501" {
			t.Errorf("reading %s: %v", table, err)
		}
	}
	// Of agents' keys it reads what people are shown.
	if got := column(t, conn, `SELECT id || hint || array_to_string(scopes, ' ') FROM agent_keys WHERE revoked_at IS NULL`); len(got) != 0 {
		t.Errorf("of keys that are not there it reads %v", got)
	}
	for _, statement := range []string{`SELECT hash FROM agent_keys`, `SELECT * FROM agent_keys`, `SELECT id FROM agent_keys WHERE hash = 'x'`, `SELECT count(agent_keys) FROM agent_keys`, `COPY agent_keys TO STDOUT`} {
		if _, err := conn.Exec(t.Context(), statement); code(err) != "42501" {
			t.Errorf("%s: %v", statement, err)
		}
	}
	for _, statement := range []string{`CREATE TABLE x (y int)`, `CREATE TEMP TABLE x (y int)`, `SET ROLE aid_app`, `SET ROLE aid_owner`, `SELECT aid_audit_partitions(1)`, `ALTER TABLE agents DISABLE ROW LEVEL SECURITY`} {
		if _, err := conn.Exec(t.Context(), statement); code(err) != "42501" {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

// A serving role cannot make itself more than it is.
func TestAppStaysTheApp(t *testing.T) {
	conn := storetest.Connect(t, storetest.URL(t, store.AppRole))
	for _, statement := range []string{
		`ALTER TABLE agents DISABLE ROW LEVEL SECURITY`, `ALTER TABLE agents NO FORCE ROW LEVEL SECURITY`, `DROP POLICY org ON agents`, `CREATE POLICY all_of_it ON agents USING (true)`,
		`CREATE OR REPLACE FUNCTION aid_org() RETURNS text LANGUAGE sql STABLE RETURN 'org_other'`, `CREATE FUNCTION x() RETURNS int LANGUAGE sql RETURN 1`,
		`CREATE SCHEMA x`, `CREATE TABLE x (y int)`, `CREATE TEMP TABLE agents (y int)`, `SET ROLE aid_owner`, `SET SESSION AUTHORIZATION aid_owner`, `ALTER ROLE aid_app BYPASSRLS`,
		`INSERT INTO orgs (org_id, name) VALUES ('org_x', '')`, `UPDATE goose_db_version SET version_id = 0`, `TRUNCATE agents CASCADE`, `DROP TABLE agents`,
		`ALTER TABLE audit_entries DISABLE TRIGGER ALL`, `DROP TRIGGER append_only ON audit_entries`, `SET session_replication_role = replica`,
		`DELETE FROM audit_heads`, `DELETE FROM usage_daily`, `COPY agents TO PROGRAM 'cat'`, `SELECT * FROM pg_authid`, `SELECT pg_read_file('/etc/passwd')`,
	} {
		if _, err := conn.Exec(t.Context(), statement); code(err) != "42501" {
			t.Errorf("%s: %v", statement, err)
		}
	}
	// row_security = off does not open the rows; it makes an error of them.
	execute(t, conn, `SET row_security = off`)
	if _, err := conn.Exec(t.Context(), `SELECT * FROM agents`); code(err) != "42501" {
		t.Errorf("with row_security off: %v", err)
	}
	if _, err := conn.Exec(context.Background(), `SELECT aid_audit_partitions(61)`); err == nil {
		t.Error("61 months of partitions are made")
	}
}
