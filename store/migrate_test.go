package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func logTo(b *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// schema is everything that a migration can change, read from the catalogue.
func schema(t *testing.T, ownerURL string) string {
	t.Helper()
	conn := storetest.Connect(t, ownerURL)
	return strings.Join(column(t, conn, `SELECT c.relname || ' ' || c.relkind::text || ' ' || c.relowner::regrole || ' ' || coalesce(c.relacl::text, '') || ' ' || coalesce(
			(SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0), '')
		FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
		UNION ALL SELECT proname || ' ' || prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace
		UNION ALL SELECT version_id || ' ' || is_applied FROM goose_db_version ORDER BY 1`), "\n")
}

func TestMigrateTwice(t *testing.T) {
	owner := storetest.OwnerURL(t)
	before := schema(t, owner)
	for range 2 {
		var said bytes.Buffer
		if err := store.Migrate(t.Context(), owner, logTo(&said)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), "up to date") || strings.Contains(said.String(), "migration applied") {
			t.Errorf("it says:\n%s", said.String())
		}
	}
	if after := schema(t, owner); after != before {
		t.Errorf("the schema changed:\n%s\nit was:\n%s", after, before)
	}
}

// empty is a database without a schema, and its administrator's URL.
func empty(t *testing.T) store.Provisioned {
	t.Helper()
	name := "aid_empty_" + strings.ToLower(t.Name())
	p, err := store.Provision(t.Context(), storetest.AdminURL(t), storetest.Provision(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { execute(t, reconnect(t), `DROP DATABASE `+name+` WITH (FORCE)`) })
	return p
}

// Several at once, on several machines perhaps: one does it, the others wait.
func TestMigrateAtOnce(t *testing.T) {
	p := empty(t)
	var said [3]bytes.Buffer
	var wg sync.WaitGroup
	for i := range said {
		wg.Go(func() {
			if err := store.Migrate(t.Context(), p.OwnerURL, logTo(&said[i])); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	applied := 0
	for i := range said {
		applied += strings.Count(said[i].String(), "migration applied")
	}
	if files, err := filepath.Glob("migrations/*.sql"); err != nil || applied != len(files) {
		t.Errorf("%d migrations were applied of %d, %v", applied, len(files), err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: p.AppURL, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
}

// A superuser may migrate, and the owner gets the objects. The app may not migrate.
func TestMigrateAsWhom(t *testing.T) {
	p := empty(t)
	if err := store.Migrate(t.Context(), p.AppURL, quiet); err == nil || !strings.Contains(err.Error(), "connect as aid_owner") {
		t.Errorf("the app migrates: %v", err)
	}
	as := strings.Replace(p.OwnerURL, store.OwnerRole+"@", "postgres@", 1)
	if err := store.Migrate(t.Context(), as, quiet); err != nil {
		t.Fatal(err)
	}
	conn := storetest.Connect(t, p.OwnerURL)
	if got := column(t, conn, `SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace`); len(got) != 1 || got[0] != store.OwnerRole {
		t.Errorf("what was made belongs to %v", got)
	}
	if err := store.Migrate(t.Context(), "postgres://aid_owner@db.example.com/aid", quiet); err == nil || !strings.Contains(err.Error(), "verify-full") {
		t.Errorf("over the network in the clear: %v", err)
	}
}

func TestOpenRefusesOldSchemas(t *testing.T) {
	p := empty(t)
	open := func() error {
		db, err := store.Open(t.Context(), store.Config{URL: p.AppURL, Log: quiet})
		if err == nil {
			db.Close()
		}
		return err
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "aid migrate") {
		t.Errorf("no schema: %v", err)
	}
	if err := store.Migrate(t.Context(), p.OwnerURL, quiet); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Errorf("the schema of this build: %v", err)
	}
	owner := storetest.Connect(t, p.OwnerURL)
	// A newer one, as while a rollout goes on or after one was taken back.
	execute(t, owner, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`)
	if err := open(); err != nil {
		t.Errorf("a newer schema: %v", err)
	}
	var said bytes.Buffer
	if err := store.Migrate(t.Context(), p.OwnerURL, logTo(&said)); err != nil || !strings.Contains(said.String(), "newer") {
		t.Errorf("migrating a newer schema: %v\n%s", err, said.String())
	}
	execute(t, owner, `DELETE FROM goose_db_version WHERE version_id > 0`)
	if err := open(); err == nil || !strings.Contains(err.Error(), "aid migrate") {
		t.Errorf("an old schema: %v", err)
	}
}

// A second Provision changes nothing in a correct database, corrects wrong settings, and
// does not touch a database of another owner.
func TestProvision(t *testing.T) {
	admin := storetest.Connect(t, storetest.AdminURL(t))
	roles := func() string {
		return strings.Join(column(t, admin, `SELECT rolname || rolsuper || rolbypassrls || rolcreatedb || rolcanlogin || coalesce(rolpassword, '-') FROM pg_authid WHERE rolname LIKE 'aid\_%' ORDER BY 1`), "\n")
	}
	const database = "aid_provision"
	for _, role := range []string{store.OwnerRole, store.AppRole, store.AuditorRole} {
		execute(t, admin, `ALTER ROLE `+role+` PASSWORD NULL`)
	}
	c := store.ProvisionConfig{Database: database, OwnerPassword: "owner's pw", AppPassword: `app"pw'; DROP ROLE aid_app; --%`, Log: quiet}
	t.Cleanup(func() {
		admin := reconnect(t)
		execute(t, admin, `DROP DATABASE `+database+` WITH (FORCE)`)
		if _, err := store.Provision(context.Background(), storetest.AdminURL(t), storetest.Provision("aid_template")); err != nil {
			t.Error(err)
		}
	})
	p, err := store.Provision(t.Context(), storetest.AdminURL(t), c)
	if err != nil {
		t.Fatal(err)
	}
	once := roles()
	if strings.Contains(once, c.AppPassword) || strings.Count(once, "SCRAM-SHA-256$4096:") != 2 {
		t.Errorf("the passwords are kept as\n%s", once)
	}
	for url, want := range map[string]string{p.OwnerURL: c.OwnerPassword, p.AppURL: c.AppPassword, p.AuditorURL: ""} {
		if want == "" {
			if conn, err := pgx.Connect(t.Context(), url); err == nil {
				conn.Close(t.Context()) //nolint:errcheck // the test has failed
				t.Error("the auditor gets in without a password")
			}
			continue
		}
		conn := storetest.Connect(t, url)
		if conn.Config().Database != database || conn.Config().Password != want {
			t.Errorf("%s: database %s, password %q", url, conn.Config().Database, conn.Config().Password)
		}
	}
	var said bytes.Buffer
	again := c
	again.Log = logTo(&said)
	if p2, err := store.Provision(t.Context(), storetest.AdminURL(t), again); err != nil || p2 != p || said.Len() > 0 {
		t.Errorf("again: %v, %v\n%s", p2, err, said.String())
	}
	if twice := roles(); twice != once {
		t.Errorf("run again, it changed the roles:\n%s\nthey were\n%s", twice, once)
	}
	again.AppPassword = "another"
	if _, err := store.Provision(t.Context(), storetest.AdminURL(t), again); err != nil || roles() == once {
		t.Errorf("a new password is not set: %v", err)
	}
	execute(t, admin, `ALTER ROLE aid_auditor BYPASSRLS CREATEDB`)
	if _, err := store.Provision(t.Context(), storetest.AdminURL(t), c); err != nil {
		t.Error(err)
	}
	if got := column(t, admin, `SELECT rolname FROM pg_roles WHERE rolname LIKE 'aid\_%' AND (rolbypassrls OR rolcreatedb)`); len(got) > 0 {
		t.Errorf("%v may still do more", got)
	}
	for what, bad := range map[string]store.ProvisionConfig{
		"another's database": {Database: "postgres", Log: quiet}, "a password beyond ASCII": {Database: database, AppPassword: "paßwort", Log: quiet},
	} {
		if _, err := store.Provision(t.Context(), storetest.AdminURL(t), bad); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	if _, err := store.Provision(t.Context(), "host=localhost user=postgres", c); err == nil || !strings.Contains(err.Error(), "URL") {
		t.Errorf("what is no URL: %v", err)
	}
	if _, err := store.Provision(t.Context(), "postgres://postgres:hunter2@db.example.com/postgres", c); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "verify-full") {
		t.Errorf("over the network in the clear: %v", err)
	}
}

// An administrator need not be a superuser: hosted databases have none.
func TestProvisionWithoutSuperuser(t *testing.T) {
	admin := storetest.Connect(t, storetest.AdminURL(t))
	execute(t, admin, `CREATE ROLE aid_test_admin LOGIN CREATEROLE CREATEDB PASSWORD 'admin'`)
	execute(t, admin, `GRANT aid_owner TO aid_test_admin`) // which it would have, had it made the role
	t.Cleanup(func() {
		admin := reconnect(t)
		execute(t, admin, `DROP DATABASE IF EXISTS aid_plain WITH (FORCE)`)
		execute(t, admin, `DROP ROLE aid_test_admin`)
	})
	c := store.ProvisionConfig{Database: "aid_plain", Log: quiet}
	p, err := store.Provision(t.Context(), storetest.As(t, storetest.AdminURL(t), "aid_test_admin", "admin"), c)
	if err != nil {
		t.Fatal(err)
	}
	roles := storetest.Provision(c.Database)
	p.OwnerURL = storetest.As(t, p.OwnerURL, store.OwnerRole, roles.OwnerPassword)
	p.AppURL = storetest.As(t, p.AppURL, store.AppRole, roles.AppPassword)
	if err := store.Migrate(t.Context(), p.OwnerURL, quiet); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: p.AppURL, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	storetest.Org(t, db)
}

// The verifier that is made here is the one that Postgres makes and checks.
func TestPasswordsWork(t *testing.T) {
	conn := storetest.Connect(t, storetest.URL(t, "postgres"))
	execute(t, conn, `SET password_encryption = 'scram-sha-256'`)
	verifier := column(t, conn, `SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres' AND rolpassword IS NOT NULL`)
	if len(verifier) > 0 {
		t.Fatal("the superuser has a password")
	}
	const role = "aid_test_scram"
	execute(t, conn, `CREATE ROLE `+role+` PASSWORD 'correct horse'`)
	t.Cleanup(func() { execute(t, reconnect(t), `DROP ROLE `+role) })
	stored := column(t, conn, `SELECT rolpassword FROM pg_authid WHERE rolname = $1`, role)[0]
	if !store.SCRAMMatches("correct horse", stored) || store.SCRAMMatches("correct horsf", stored) {
		t.Errorf("%s is not recognised", stored)
	}
	for _, broken := range []string{"", "md5abc", "SCRAM-SHA-256$", "SCRAM-SHA-256$x:y$z", "SCRAM-SHA-256$99999999999:AAAA$a:b", "SCRAM-SHA-256$-1:AAAA$a:b"} {
		if store.SCRAMMatches("x", broken) {
			t.Errorf("%q matches", broken)
		}
	}
}

func TestNotifiesOfChanges(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	heard, ready, done := make(chan string, 10), make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- db.Listen(ctx, "aid_changed", func(p string) { heard <- p }, func() { ready <- struct{}{} })
	}()
	<-ready
	inOrg(t, db, org, func(tx pgx.Tx) error {
		if err := insertAgent(ctx, tx, org, "ag_1"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO agent_keys (org_id, id, agent_id, name, hash, scopes, created_at) VALUES ($1, 'key_1', 'ag_1', '', 'abc', '{}', now())`, org)
		return err
	})
	db.InOrg(ctx, org, func(tx pgx.Tx) error { //nolint:errcheck // it is undone
		return errors.Join(insertAgent(ctx, tx, org, "ag_2"), errBack)
	})
	inOrg(t, db, org, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, `DELETE FROM agents`); return err })
	// Nothing of an org is in a payload: any role may listen. The rows say what changed.
	payload := regexp.MustCompile(`^([0-9]+) [0-9a-f]{16}$`)
	what := func() (what string) {
		got := <-heard
		m := payload.FindStringSubmatch(got)
		if m == nil || strings.Contains(got, org) {
			t.Fatalf("heard %q", got)
		}
		inOrg(t, db, org, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `SELECT what FROM changes WHERE seq = $1::bigint`, m[1]).Scan(&what)
		})
		return what
	}
	for _, want := range []string{"agents " + org + " ag_1", "agent_keys " + org + " key_1 ag_1 abc", "agents " + org + " ag_1", "agent_keys " + org + " key_1 ag_1 abc"} {
		if got := what(); got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	// As each role: the rows are the org's and no other's, and not the auditor's at all.
	other := storetest.Org(t, db)
	for _, role := range []string{store.AppRole, store.OwnerRole, store.AuditorRole} {
		for _, as := range []string{"", other} {
			conn := storetest.Connect(t, storetest.URL(t, role))
			execute(t, conn, `SELECT set_config('aid.org', $1, false)`, as)
			var n int
			if err := conn.QueryRow(ctx, `SELECT count(*) FROM changes WHERE org_id = $1`, org).Scan(&n); n != 0 || (err != nil) != (role == store.AuditorRole) {
				t.Errorf("%s of %q reads %d changes of another org, %v", role, as, n, err)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Listen ended with %v", err)
	}
}

// A connection that is silent for long is probed and kept, and still receives afterwards. A
// connection that is gone is replaced.
func TestListenInSilence(t *testing.T) {
	db := storetest.Open(t)
	db.AskAfter(5 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	heard, ready, done := make(chan string, 1), make(chan struct{}, 10), make(chan error, 1)
	go func() {
		done <- db.Listen(ctx, "Some Channel", func(p string) { heard <- p }, func() { ready <- struct{}{} })
	}()
	<-ready
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	const asks = `SELECT pid::text FROM pg_stat_activity WHERE usename = 'aid_app' AND query = '-- ping' AND datname = current_database()`
	until(t, "it is asked", func() bool { return len(column(t, admin, asks)) == 1 })
	for _, want := range []string{"one", "two"} {
		execute(t, admin, `SELECT pg_notify('Some Channel', $1)`, want)
		if got := <-heard; got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	if len(ready) != 0 {
		t.Error("it connected again, for no reason")
	}
	execute(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aid_app' AND query = '-- ping' AND datname = current_database()`)
	<-ready
	execute(t, admin, `SELECT pg_notify('Some Channel', 'three')`)
	if got := <-heard; got != "three" {
		t.Errorf("heard %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Listen ended with %v", err)
	}
	// Stopped before there is anything to receive.
	if err := db.Listen(ctx, "x", func(string) {}, func() { t.Error("connected") }); err != nil {
		t.Error(err)
	}
}
