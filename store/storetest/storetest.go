// Package storetest gives tests a real Postgres.
//
// A test process has one server. It starts when the first test asks, and ends with the
// process. Its data is in the temporary folder, which is removed. Each test has its own
// database, a copy of one that was migrated once, which costs some tens of milliseconds.
package storetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
)

// server is the one of this process.
type server struct {
	once sync.Once
	err  error // why there is no server

	admin string   // the superuser's URL
	pipe  *os.File // held open to our end: see removeAfterUs
	names atomic.Int64
	orgs  atomic.Int64

	mu        sync.Mutex
	databases map[testing.TB]string
}

var shared server

const template = "aid_template"

// passwords are the roles', on a server that ends with its tests.
var passwords = map[string]string{
	store.OwnerRole: rand.Text(), store.AppRole: rand.Text(), store.AuditorRole: rand.Text(),
}

// Open returns a database as the servers see it: the role is aid_app, the schema is
// this build's, and there is nothing in it. It is closed and dropped when t ends. The
// same t has the same database, however often it asks.
//
// Where no Postgres is found (AID_POSTGRES_DIR, .tools/postgres beside go.mod, Debian's),
// the test is skipped, or fails where CI is set.
func Open(t testing.TB) *store.DB {
	t.Helper()
	return OpenWith(t, store.Config{})
}

// OpenWith is Open with a Config of the test's, whose URL it sets, and whose Log, if
// that is nil.
func OpenWith(t testing.TB, c store.Config) *store.DB {
	t.Helper()
	c.URL = URL(t, store.AppRole)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	db, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// OwnerURL connects to the same database as its owner, aid_owner.
func OwnerURL(t testing.TB) string {
	t.Helper()
	return URL(t, store.OwnerRole)
}

// AdminURL connects to the server's own database as its superuser. What a test does
// there, it undoes: others are on the server.
func AdminURL(t testing.TB) string {
	t.Helper()
	start(t)
	return shared.admin
}

// URL connects to the test's database as a role.
func URL(t testing.TB, role string) string {
	t.Helper()
	return as(t, role, database(t))
}

// Org makes an organization in db and returns its id, "org_test" and a number.
func Org(t testing.TB, db *store.DB) string {
	t.Helper()
	return OrgAt(t, as(t, store.OwnerRole, db.Pool().Config().ConnConfig.Database))
}

// OrgAt makes an organization in the database that ownerURL connects to as its owner.
func OrgAt(t testing.TB, ownerURL string) string {
	t.Helper()
	id := fmt.Sprintf("org_test%d", shared.orgs.Add(1))
	conn, err := pgx.Connect(t.Context(), ownerURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) //nolint:errcheck // nothing waits for it
	if _, err := conn.Exec(t.Context(), `SELECT set_config('aid.org', $1, false)`, id); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `INSERT INTO orgs (org_id, name) VALUES ($1, $2)`, id, t.Name()); err != nil {
		t.Fatal(err)
	}
	return id
}

// Provision is how the roles of the server are made, with their passwords, for a
// further database.
func Provision(database string) store.ProvisionConfig {
	return store.ProvisionConfig{
		Database: database, Log: slog.New(slog.DiscardHandler),
		OwnerPassword: passwords[store.OwnerRole], AppPassword: passwords[store.AppRole], AuditorPassword: passwords[store.AuditorRole],
	}
}

// As is url for another role, whose password is password.
func As(t testing.TB, address, role, password string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

// Connect is one connection, closed when t ends.
func Connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) }) //nolint:errcheck // nothing waits for it
	return conn
}

// InOrgAsOwner runs fn in a transaction of the database's owner in the org, as commands of
// the operator do.
func InOrgAsOwner(t testing.TB, org string, fn func(tx pgx.Tx) error) {
	t.Helper()
	if err := TryAsOwner(t, org, fn); err != nil {
		t.Fatal(err)
	}
}

// TryAsOwner is InOrgAsOwner, and returns the error.
func TryAsOwner(t testing.TB, org string, fn func(tx pgx.Tx) error) error {
	t.Helper()
	conn := Connect(t, OwnerURL(t))
	return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SELECT set_config('aid.org', $1, true)`, org); err != nil {
			return err
		}
		return fn(tx)
	})
}

// database is the name of t's.
func database(t testing.TB) string {
	t.Helper()
	start(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if name := shared.databases[t]; name != "" {
		return name
	}
	name := fmt.Sprintf("t%d", shared.names.Add(1))
	admin(t, `CREATE DATABASE `+name+` TEMPLATE `+template+` OWNER `+store.OwnerRole)
	// What is granted on a database is not copied with it.
	admin(t, `REVOKE ALL ON DATABASE `+name+` FROM PUBLIC`)
	admin(t, `GRANT CONNECT ON DATABASE `+name+` TO `+store.AppRole+`, `+store.AuditorRole)
	shared.databases[t] = name
	t.Cleanup(func() {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		delete(shared.databases, t)
		admin(t, `DROP DATABASE `+name+` WITH (FORCE)`)
	})
	return name
}

func admin(t testing.TB, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // t's own is over when it cleans up
	defer cancel()
	conn, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing waits for it
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatal(err)
	}
}

func as(t testing.TB, role, database string) string {
	t.Helper()
	u, err := url.Parse(shared.admin)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database
	if role != "postgres" {
		u.User = url.UserPassword(role, passwords[role])
	}
	return u.String()
}

// Binaries is the folder with Postgres that tests use. Without one the test is
// skipped, or fails where CI is set.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := store.FindPostgres(os.Getenv("AID_POSTGRES_DIR"), module())
	if err == nil {
		return dir
	}
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
	return ""
}

func start(t testing.TB) {
	t.Helper()
	dir := Binaries(t)
	shared.once.Do(func() {
		shared.databases = map[testing.TB]string{}
		shared.err = run(dir)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
}

// module is the folder of go.mod, where `make` puts its tools.
func module() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "."
		}
		dir = up
	}
}

// run starts the server, for as long as this process lives, and makes the template.
func run(binaries string) error {
	dir, err := os.MkdirTemp("", "aidpg")
	if err != nil {
		return err
	}
	if err := removeAfterUs(dir); err != nil {
		return err
	}
	var log lockedBuffer
	e, err := store.NewEmbedded(store.EmbeddedConfig{
		Dir: dir, Binaries: binaries, Log: slog.New(slog.NewTextHandler(&log, nil)),
		// Nothing here outlives a power cut anyway.
		Settings: map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "32MB", "max_wal_size": "256MB"},
	})
	if err != nil {
		return err
	}
	go e.Run(context.Background()) //nolint:errcheck // Ready says it
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := e.Ready(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, log.String())
	}
	shared.admin = e.URL()
	p, err := store.Provision(ctx, e.URL(), Provision(template))
	if err != nil {
		return err
	}
	return store.Migrate(ctx, p.OwnerURL, slog.New(slog.DiscardHandler))
}

// removeAfterUs removes dir when this process has ended, however it ends: a shell
// waits for the end of a pipe that only we hold open.
func removeAfterUs(dir string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	// The server may still be at it for a moment.
	cmd := exec.Command("/bin/sh", "-c", `read -r _; for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" 2>/dev/null; [ -e "$1" ] || exit 0; sleep 0.3; done`, "sh", dir)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	r.Close()
	if err != nil {
		w.Close()
		return err
	}
	shared.pipe = w
	return nil
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
