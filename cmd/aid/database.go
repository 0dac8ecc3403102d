package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
)

// database has the URLs with which the servers and commands of one `aid up` connect.
type database struct{ appURL, ownerURL string }

// The files in a home's run/ with these URLs, for commands with --home and for scripts.
const (
	appURLFile   = "postgres.url"
	ownerURLFile = "postgres-owner.url"
)

// database starts the embedded Postgres, or uses --postgres, and brings roles, database and
// schema up to date.
func (u *up) database(ctx context.Context) (at database, err error) {
	admin := u.postgres
	c := store.ProvisionConfig{Log: u.log}
	if admin == "" {
		u.say("starting Postgres")
		if admin, err = u.embedded(ctx); err != nil {
			return at, err
		}
	} else {
		warnOfPassword(admin, u.log)
	}
	for _, p := range []struct {
		name string
		to   *string
	}{{"postgres-owner.password", &c.OwnerPassword}, {"postgres-app.password", &c.AppPassword}, {"postgres-auditor.password", &c.AuditorPassword}} {
		file, err := u.home.secret(p.name, randomHex)
		if err != nil {
			return at, err
		}
		if *p.to, err = readSecret(file); err != nil {
			return at, err
		}
	}
	p, err := store.Provision(ctx, admin, c)
	if err != nil {
		return at, u.databaseError(err)
	}
	if err := store.Migrate(ctx, p.OwnerURL, u.log); err != nil {
		return at, u.databaseError(err)
	}
	at = database{appURL: p.AppURL, ownerURL: p.OwnerURL}
	for name, url := range map[string]string{appURLFile: at.appURL, ownerURLFile: at.ownerURL} {
		if err := writeFile(filepath.Join(u.home.run, name), []byte(url+"\n"), 0o600); err != nil {
			return at, err
		}
	}
	return at, nil
}

// embedded starts the embedded Postgres and returns the URL of its administrator.
func (u *up) embedded(ctx context.Context) (string, error) {
	dir, missing, err := findPostgres(u.postgresDir)
	if err != nil {
		return "", fmt.Errorf("--postgres-dir: %w", err)
	}
	if missing != "" {
		if err := store.FetchPostgres(ctx, missing, func(step string) { u.say("%s", step) }); err != nil {
			return "", fmt.Errorf("fetching Postgres into %s: %w; install one, or use your own server with --postgres", missing, err)
		}
		dir = missing
	}
	e, err := store.NewEmbedded(store.EmbeddedConfig{Dir: u.home.path("postgres"), Binaries: dir, Short: u.home.run, Log: u.log})
	if err != nil {
		return "", fmt.Errorf("embedded Postgres: %w", err)
	}
	u.life.start(ctx, "postgres", e.Run)
	u.postgresRestarts = e.Restarts
	wait, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := e.Ready(wait); err != nil {
		return "", err
	}
	return e.URL(), nil
}

// findPostgres finds the programs of Postgres as package store does, or downloaded ones. If
// there are none, missing is the folder to download them into.
func findPostgres(asked string) (dir, missing string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	dir, err = store.FindPostgres(asked, filepath.Dir(exe))
	if err == nil || asked != "" {
		return dir, "", err
	}
	// The server runs under another account, which cannot read root's own cache.
	cache := "/var/cache"
	if os.Getuid() != 0 {
		if cache, err = os.UserCacheDir(); err != nil {
			return "", "", err
		}
	}
	fetched := filepath.Join(cache, "aid", "postgres-"+store.PostgresVersion)
	if dir, err = store.FindPostgres(fetched, ""); err == nil {
		return dir, "", nil
	}
	return "", fetched, nil
}

// checkDatabase checks whether the database is available, or can be started.
func (d *doctor) checkDatabase(ctx context.Context) {
	if d.postgres == "" {
		dir, missing, err := findPostgres(d.postgresDir)
		switch {
		case err != nil:
			d.fail("database", err.Error(), "run `make setup`, or use your own server with --postgres")
		case dir == "":
			d.warn("database", "no Postgres is installed: `aid up` will download one (15 MB) into "+missing, "run `make setup`, or use your own server with --postgres")
		default:
			d.ok("database", "embedded, with the programs of %s", dir)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	db, err := store.Open(ctx, store.Config{URL: d.postgres, MaxConns: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		d.fail("database", err.Error(), "check --postgres (AID_POSTGRES); `aid migrate` brings the schema up to date")
		return
	}
	defer db.Close()
	began := time.Now()
	if err := db.Ping(ctx); err != nil {
		d.fail("database", err.Error(), "check that the server runs and can be reached")
		return
	}
	d.ok("database", "responds in %v, and its schema is recent enough", time.Since(began).Round(10*time.Microsecond))
}

func (u *up) databaseError(err error) error {
	if u.postgres != "" {
		return fmt.Errorf("--postgres: %w", err)
	}
	return fmt.Errorf("embedded Postgres: %w", err)
}

func randomHex() (string, error) {
	var b [24]byte
	_, err := rand.Read(b[:])
	return hex.EncodeToString(b[:]) + "\n", err
}

// warnOfPassword logs a warning if a password is in an argument, where every process of the
// machine can read it.
func warnOfPassword(address string, log *slog.Logger) {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return
	}
	if _, has := u.User.Password(); !has {
		return
	}
	if slices.ContainsFunc(os.Args, func(a string) bool { return strings.Contains(a, address) }) {
		log.Warn("every process of this machine can read a password in an argument: use the variable AID_POSTGRES, or passfile= in the URL")
	}
}

// housekeeping creates the audit log's partitions of the next months, and counts the months that
// are older than the retention. If that fails, entries
// go to the default partition, and nothing is lost. The failure is an error in the log, a
// metric and a line of /readyz.
type housekeeping struct {
	db   *store.DB
	log  *slog.Logger
	last atomic.Pointer[error] // the result of the last try; nil before

	failures prometheus.Counter
	overdue  prometheus.Gauge
}

func newHousekeeping(db *store.DB, reg prometheus.Registerer, log *slog.Logger) *housekeeping {
	h := &housekeeping{db: db, log: log, failures: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "aid_store_partition_failures_total", Help: "Failures to create the audit log's partitions of the next months.",
	})}
	h.overdue = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "aid_audit_overdue_months", Help: "Months of the audit log that are older than the retention and still in the database. Above 0: run aid audit trim.",
	})
	reg.MustRegister(h.failures, h.overdue)
	return h
}

// failed returns why the last try failed. It returns nil if the database was not available.
func (h *housekeeping) failed() error {
	if err := h.last.Load(); err != nil && *err != nil {
		return fmt.Errorf("creating the audit log's partitions of the next months: %w", *err)
	}
	return nil
}

// count counts the months that are older than the retention.
func (h *housekeeping) count(ctx context.Context) error {
	due, err := audit.Due(ctx, h.db.Pool(), time.Now())
	if err != nil {
		return err
	}
	h.overdue.Set(float64(len(due)))
	return nil
}

func (h *housekeeping) run(ctx context.Context) error {
	const often, seldom = time.Minute, 6 * time.Hour
	for {
		try, cancel := context.WithTimeout(ctx, time.Minute)
		_, err := h.db.Pool().Exec(try, "SELECT aid_audit_partitions(3)")
		if counted := h.count(try); counted != nil && !store.Away(counted) && ctx.Err() == nil {
			h.log.Warn("counting the months that are older than the retention", "err", counted)
		}
		cancel()
		pause := seldom
		switch {
		case ctx.Err() != nil:
			return nil
		case store.Away(err):
			pause = often
		case err != nil:
			pause = often
			h.failures.Inc()
			h.last.Store(&err)
			h.log.Error("creating the audit log's partitions of the next months", "err", err)
		default:
			h.last.Store(&err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}
