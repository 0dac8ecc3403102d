package store_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var quiet = slog.New(slog.DiscardHandler)

func inOrg(t testing.TB, db *store.DB, org string, fn func(tx pgx.Tx) error) {
	t.Helper()
	if err := db.InOrg(t.Context(), org, fn); err != nil {
		t.Fatal(err)
	}
}

func insertAgent(ctx context.Context, tx pgx.Tx, org, id string) error {
	_, err := tx.Exec(ctx, `INSERT INTO agents (org_id, id, name, status, fingerprint, created_at, updated_at) VALUES ($1, $2, $2, 'active', '', now(), now())`, org, id)
	return err
}

func countAgents(ctx context.Context, tx pgx.Tx) (n int, err error) {
	err = tx.QueryRow(ctx, `SELECT count(*) FROM agents`).Scan(&n)
	return n, err
}

// A connection that others could read is rejected before it is tried.
func TestOpenRefusesWhatOthersCanRead(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://aid_app@db.example.com/aid":                                                     "verify-full",
		"postgres://aid_app@db.example.com/aid?sslmode=disable":                                     "verify-full",
		"postgres://aid_app@db.example.com/aid?sslmode=prefer":                                      "verify-full",
		"postgres://aid_app@db.example.com/aid?sslmode=require":                                     "verify-full",
		"postgres://aid_app@db.example.com/aid?sslmode=verify-ca":                                   "verify-full",
		"postgres://aid_app:pw@localhost,db.example.com/aid?sslmode=disable":                        "db.example.com",
		"host=10.0.0.1 user=aid_app":                                                                "10.0.0.1",
		"postgres://aid_app:hunter2@db.example.com:port/aid":                                        "",
		"postgres://aid_app@127.0.0.1:1/aid?sslmode=disable&connect_timeout=1":                      "refused",
		"postgres://aid_app@[::1]:1/aid?sslmode=disable&connect_timeout=1":                          "",
		"postgres://aid_app@localhost:1/aid?sslmode=disable&connect_timeout=1":                      "",
		"postgres://aid_app@/aid?host=/nonexistent":                                                 "nonexistent",
		"postgres://aid_app@127.0.0.1:1/aid?sslmode=verify-full&connect_timeout=1":                  "",
		"postgres://aid_app@does-not-exist.invalid:1/aid?sslmode=verify-full&connect_timeout=1":     "does-not-exist.invalid",
		"postgres://aid_app:hunter2@does-not-exist.invalid/aid?sslmode=verify-full&sslrootcert=/no": "",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		db, err := store.Open(ctx, store.Config{URL: url, Log: quiet})
		cancel()
		if err == nil {
			db.Close()
			t.Errorf("%s is opened", url)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something with %q", url, err, want)
		}
		if want != "verify-full" && strings.Contains(err.Error(), "sslmode=verify-full to the URL") && !strings.Contains(want, "db.") && want != "10.0.0.1" {
			t.Errorf("%s: refused as if it left this machine: %v", url, err)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
}

// Row security binds neither superusers nor who has BYPASSRLS.
func TestOpenRefusesRolesAboveRowSecurity(t *testing.T) {
	url := storetest.URL(t, "postgres")
	if db, err := store.Open(t.Context(), store.Config{URL: url, Log: quiet}); err == nil || !strings.Contains(err.Error(), "aid_app") {
		if err == nil {
			db.Close()
		}
		t.Errorf("a superuser: %v", err)
	}
	admin := storetest.Connect(t, storetest.AdminURL(t))
	execute(t, admin, `CREATE ROLE aid_test_bypass LOGIN BYPASSRLS PASSWORD 'bypass'`)
	t.Cleanup(func() {
		admin := reconnect(t)
		execute(t, admin, `DROP ROLE aid_test_bypass`)
	})
	database := storetest.Connect(t, url).Config().Database
	execute(t, admin, `GRANT CONNECT ON DATABASE `+database+` TO aid_test_bypass`)
	t.Cleanup(func() { execute(t, reconnect(t), `REVOKE ALL ON DATABASE `+database+` FROM aid_test_bypass`) })
	if db, err := store.Open(t.Context(), store.Config{URL: storetest.As(t, url, "aid_test_bypass", "bypass"), Log: quiet}); err == nil || !strings.Contains(err.Error(), "aid_test_bypass") {
		if err == nil {
			db.Close()
		}
		t.Errorf("a role with BYPASSRLS: %v", err)
	}
}

// reconnect is for cleaning up, when t's context is over.
func reconnect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), storetest.AdminURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func execute(t testing.TB, conn *pgx.Conn, statement string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(context.WithoutCancel(t.Context()), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestInOrg(t *testing.T) {
	db := storetest.OpenWith(t, store.Config{MaxConns: 1}) // one connection: what leaks is seen
	a, b := storetest.Org(t, db), storetest.Org(t, db)
	ctx := t.Context()

	inOrg(t, db, a, func(tx pgx.Tx) error { return insertAgent(ctx, tx, a, "ag_a") })
	inOrg(t, db, b, func(tx pgx.Tx) error {
		if n, err := countAgents(ctx, tx); err != nil || n != 0 {
			t.Errorf("B sees %d agents, %v", n, err)
		}
		return insertAgent(ctx, tx, b, "ag_b")
	})
	for _, org := range []string{a, b} {
		inOrg(t, db, org, func(tx pgx.Tx) error {
			if n, err := countAgents(ctx, tx); err != nil || n != 1 {
				t.Errorf("%s sees %d agents, %v", org, n, err)
			}
			return nil
		})
	}

	// Without an org there is nothing, also on the connection that just had one.
	var n int
	var org string
	if err := db.Pool().QueryRow(ctx, `SELECT (SELECT count(*) FROM agents), coalesce(current_setting('aid.org', true), '')`).Scan(&n, &org); err != nil || n != 0 || org != "" {
		t.Errorf("without an org: %d agents, aid.org %q, %v", n, org, err)
	}
	if err := db.InOrg(ctx, "", func(pgx.Tx) error { t.Error("ran without an org"); return nil }); err == nil {
		t.Error("an empty org is taken")
	}
	if err := db.Presenting(ctx, "", func(pgx.Tx) error { t.Error("ran with nothing presented"); return nil }); err == nil {
		t.Error("nothing presented is taken")
	}

	// fn's error is returned as it is, and its changes are undone. A panic undoes them too.
	boom := errors.New("boom")
	if err := db.InOrg(ctx, a, func(tx pgx.Tx) error {
		if err := insertAgent(ctx, tx, a, "ag_undone"); err != nil {
			return err
		}
		return boom
	}); err != boom {
		t.Errorf("fn's error came back as %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		db.InOrg(ctx, a, func(tx pgx.Tx) error { //nolint:errcheck // it panics
			if err := insertAgent(ctx, tx, a, "ag_undone"); err != nil {
				t.Error(err)
			}
			panic("boom")
		})
	}()
	// A failed statement that fn ignores must not look like a commit.
	if err := db.InOrg(ctx, a, func(tx pgx.Tx) error {
		insertAgent(ctx, tx, a, "ag_a") //nolint:errcheck // there is one
		return nil
	}); err == nil {
		t.Error("a transaction with a failed statement was reported as committed")
	}
	// A cancelled one gives its connection back.
	cancelled, cancel := context.WithCancel(ctx)
	if err := db.InOrg(cancelled, a, func(tx pgx.Tx) error {
		cancel()
		_, err := tx.Exec(cancelled, `SELECT pg_sleep(30)`)
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	inOrg(t, db, a, func(tx pgx.Tx) error {
		if n, err := countAgents(ctx, tx); err != nil || n != 1 {
			t.Errorf("%d agents are left, %v", n, err)
		}
		return nil
	})
}

// An org's name that is no name is a value, not SQL.
func TestInOrgQuotes(t *testing.T) {
	db := storetest.Open(t)
	for _, org := range []string{"'", `'; SET aid.org = 'x'; --`, `\`, "org_\x01", strings.Repeat("o", 1<<16)} {
		inOrg(t, db, org, func(tx pgx.Tx) error {
			var got string
			if err := tx.QueryRow(t.Context(), `SELECT aid_org()`).Scan(&got); err != nil || got != org {
				t.Errorf("aid_org() = %.40q, %v, want %.40q", got, err, org)
			}
			return nil
		})
	}
}

func TestPresenting(t *testing.T) {
	db := storetest.Open(t)
	a, b := storetest.Org(t, db), storetest.Org(t, db)
	ctx := t.Context()
	for org, hash := range map[string]string{a: "aa", b: "bb"} {
		inOrg(t, db, org, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO org_keys (org_id, id, name, role, hash) VALUES ($1, 'okey_1', '', 'admin', $2)`, org, hash); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO nodes (org_id, id, name, token_hash, spiffe_id) VALUES ($1, 'node_1', '', 'n' || $2, 'spiffe://x/' || $2)`, org, hash)
			return err
		})
	}
	for presented, want := range map[string]string{
		"aa": a + " 0", "bb": b + " 0", "naa": "0 " + a, "spiffe://x/bb": "0 " + b, "cc": "0 0", "%": "0 0", "' OR 1=1 --": "0 0", "aa,bb": "0 0",
	} {
		err := db.Presenting(ctx, presented, func(tx pgx.Tx) error {
			var got string
			if err := tx.QueryRow(ctx, `SELECT coalesce((SELECT string_agg(org_id, ',') FROM org_keys), '0') || ' ' || coalesce((SELECT string_agg(org_id, ',') FROM nodes), '0')`).Scan(&got); err != nil {
				return err
			}
			if got != want {
				t.Errorf("%q opens %q, want %q", presented, got, want)
			}
			var others int
			return tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM orgs) + (SELECT count(*) FROM agents) + (SELECT count(*) FROM providers)`).Scan(&others)
		})
		if err != nil {
			t.Error(err)
		}
	}
	err := db.Presenting(ctx, "aa", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE org_keys SET role = 'admin'`)
		return err
	})
	if code(err) != "25006" { // read_only_sql_transaction
		t.Errorf("a write: %v", err)
	}
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Two transactions that wait for each other both end, and what both did is there.
func TestRunsAgainAfterDeadlock(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	ctx := t.Context()
	inOrg(t, db, org, func(tx pgx.Tx) error {
		return errors.Join(insertAgent(ctx, tx, org, "ag_1"), insertAgent(ctx, tx, org, "ag_2"))
	})
	var runs atomic.Int64
	var both sync.WaitGroup // each has one row
	both.Add(2)
	var wg sync.WaitGroup
	for _, order := range [][]string{{"ag_1", "ag_2"}, {"ag_2", "ag_1"}} {
		wg.Go(func() {
			first := true
			err := db.InOrg(ctx, org, func(tx pgx.Tx) error {
				runs.Add(1)
				for i, id := range order {
					if _, err := tx.Exec(ctx, `UPDATE agents SET version = version + 1 WHERE id = $1`, id); err != nil {
						return err
					}
					if i == 0 && first {
						first = false
						both.Done()
						both.Wait()
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := runs.Load(); n != 3 {
		t.Errorf("%d runs, want 3", n)
	}
	inOrg(t, db, org, func(tx pgx.Tx) error {
		var sum int
		if err := tx.QueryRow(ctx, `SELECT sum(version) FROM agents`).Scan(&sum); err != nil || sum != 6 {
			t.Errorf("versions add up to %d, %v, want 6", sum, err)
		}
		return nil
	})
}

// A transaction that always loses returns an error after a few tries.
func TestGivesUp(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	runs := 0
	err := db.InOrg(t.Context(), org, func(tx pgx.Tx) error {
		runs++
		_, err := tx.Exec(t.Context(), `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'serialization_failure'; END $$`)
		return err
	})
	if code(err) != "40001" || runs != 4 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

func TestSettings(t *testing.T) {
	db := storetest.OpenWith(t, store.Config{StatementTimeout: 50 * time.Millisecond})
	for name, want := range map[string]string{
		"statement_timeout": "50ms", "lock_timeout": "50ms", "idle_in_transaction_session_timeout": "30s", "TimeZone": "UTC", "application_name": "aid", "search_path": "public",
	} {
		var got string
		if err := db.Pool().QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := db.Pool().Exec(t.Context(), `SELECT pg_sleep(30)`); code(err) != "57014" {
		t.Errorf("a long statement: %v", err)
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	db := storetest.OpenWith(t, store.Config{Registerer: reg, MaxConns: 3})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
		if f.GetName() == "aid_store_connections_max" && f.GetMetric()[0].GetGauge().GetValue() != 3 {
			t.Error("the limit is not 3")
		}
	}
	if len(names) != 5 {
		t.Errorf("metrics: %v", names)
	}
	db.Close()
	if families, err := reg.Gather(); err != nil || len(families) != 0 {
		t.Errorf("after Close: %v, %v", families, err)
	}
}

// Each new connection is shown before it is used: a server that took over is noticed.
func TestOnConnect(t *testing.T) {
	db := storetest.OpenWith(t, store.Config{MaxConns: 1})
	seen := 0
	db.OnConnect(func(ctx context.Context, conn *pgx.Conn) {
		if err := conn.QueryRow(ctx, `SELECT $1::int + 1`, seen).Scan(&seen); err != nil {
			t.Error(err)
		}
	})
	for i := range 3 {
		db.Pool().Reset()
		for range 2 {
			if err := db.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if seen != i+1 {
			t.Errorf("after %d connections, %d were seen", i+1, seen)
		}
	}
}
