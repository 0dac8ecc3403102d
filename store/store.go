package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is the configuration of a database connection.
type Config struct {
	// URL is the address and the role: "postgres://aid_app@host/aid?…". It must have
	// sslmode=verify-full, except for this machine (a socket, or a loopback address).
	URL string
	// MaxConns is the maximum number of connections, without those that listen. 0: 10.
	MaxConns int32
	// StatementTimeout bounds every statement. 0: 15 s.
	StatementTimeout time.Duration
	// TransactionTimeout bounds every transaction, with all its statements and attempts,
	// even if the server is silent. 0: 30 s.
	TransactionTimeout time.Duration
	// Log receives the events of connections.
	Log *slog.Logger
	// Registerer, if not nil, registers metrics of the pool (aid_store_…).
	Registerer prometheus.Registerer
}

const (
	minServer = 15 // Postgres, as a major version

	lockTimeout = 5 * time.Second
	idleTimeout = 30 * time.Second // between two statements of a transaction
	tries       = 4                // for a transaction that lost a conflict

	// stillThere is the interval after which a silent connection is probed: a machine that
	// vanished sends nothing.
	stillThere = 15 * time.Second
)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	pool    *pgxpool.Pool
	listen  *pgx.ConnConfig
	limit   time.Duration // for a transaction
	silence time.Duration // after which a listening connection is probed
	log     *slog.Logger
	metrics prometheus.Collector
	reg     prometheus.Registerer

	connected atomic.Pointer[func(context.Context, *pgx.Conn)]
}

// Open connects to the database. It rejects a database that is not fit for serving:
//
//   - Others can read the connection.
//   - Postgres is older than 15.
//   - The schema is older than this build.
//   - The role of the URL may bypass row security.
//   - It has several primaries. Locks of rows hold on one of them only, so the audit log could
//     get two histories.
//
// The caller must Close it.
func Open(ctx context.Context, c Config) (*DB, error) {
	if c.MaxConns == 0 {
		c.MaxConns = 10
	}
	if c.StatementTimeout == 0 {
		c.StatementTimeout = 15 * time.Second
	}
	if c.TransactionTimeout == 0 {
		c.TransactionTimeout = 30 * time.Second
	}
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err) // it redacts the password
	}
	if err := private(&pc.ConnConfig.Config); err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	pc.MaxConns = c.MaxConns
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.ConnConfig.ConnectTimeout = 10 * time.Second
	settings(pc.ConnConfig, c.StatementTimeout)
	db := &DB{listen: pc.ConnConfig.Copy(), silence: stillThere, limit: c.TransactionTimeout, log: c.Log}
	pc.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if fn := db.connected.Load(); fn != nil {
			(*fn)(ctx, conn)
		}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	db.pool = pool
	if err := db.fit(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	if c.Registerer != nil {
		db.metrics, db.reg = poolCollector{pool}, c.Registerer
		if err := c.Registerer.Register(db.metrics); err != nil {
			pool.Close()
			return nil, fmt.Errorf("opening the database: %w", err)
		}
	}
	return db, nil
}

// settings are those of every connection that serves. What waits for ever would
// hold a connection, and soon all of them.
func settings(c *pgx.ConnConfig, statement time.Duration) {
	for name, value := range map[string]string{
		"application_name":                    "aid",
		"timezone":                            "UTC",
		"search_path":                         "public",
		"statement_timeout":                   ms(statement),
		"lock_timeout":                        ms(min(lockTimeout, statement)),
		"idle_in_transaction_session_timeout": ms(idleTimeout),
	} {
		c.RuntimeParams[name] = value
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// private rejects a connection that could be read or taken over on its way. Every host that
// may be tried must be this machine, or its certificate must be verified by name.
func private(c *pgconn.Config) error {
	hosts := []*pgconn.FallbackConfig{{Host: c.Host, TLSConfig: c.TLSConfig}}
	for _, f := range append(hosts, c.Fallbacks...) {
		// verify-full is the one mode that leaves the check of the name to
		// crypto/tls.
		verified := f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify && f.TLSConfig.ServerName != ""
		if !verified && !local(f.Host) {
			return fmt.Errorf("the connection to %s could be read or taken over on its way. Add sslmode=verify-full to the URL. Add sslrootcert=FILE unless a public authority signed the server's certificate", f.Host)
		}
	}
	return nil
}

func local(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// fit checks what Open promises of the database itself.
func (db *DB) fit(ctx context.Context) error {
	var version int
	var role string
	var above bool
	err := db.pool.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_user, rolsuper OR rolbypassrls
		FROM pg_roles WHERE rolname = current_user`).Scan(&version, &role, &above)
	switch {
	case err != nil:
		return err
	case version < minServer*10000:
		return fmt.Errorf("it is Postgres %d; %d is the oldest that works", version/10000, minServer)
	case above:
		return fmt.Errorf("the role %s may bypass row-level security, which keeps organizations apart: connect as aid_app (`aid migrate --provision` makes it)", role)
	}
	if err := onePrimary(ctx, db.pool); err != nil {
		return err
	}
	return checkSchema(ctx, db.pool)
}

// primaries returns the name of a database with several primaries, or "".
func primaries(version string, extensions []string) string {
	switch {
	case strings.HasPrefix(version, "CockroachDB"):
		return "CockroachDB"
	case strings.Contains(version, "-YB-"):
		return "YugabyteDB"
	}
	for extension, name := range map[string]string{"bdr": "BDR (EDB Postgres Distributed)", "spock": "Spock (pgEdge)", "pgactive": "pgactive"} {
		if slices.Contains(extensions, extension) {
			return name
		}
	}
	return ""
}

// onePrimary rejects a database with several primaries, as far as it shows.
func onePrimary(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) error {
	var version string
	var extensions []string
	if err := q.QueryRow(ctx, `SELECT version(), ARRAY(SELECT extname::text FROM pg_extension)`).Scan(&version, &extensions); err != nil {
		return err
	}
	if name := primaries(version, extensions); name != "" {
		return fmt.Errorf("it is %s, with several primaries: locks hold on one of them only, so the audit log could get two histories. Use Postgres with one primary", name)
	}
	// A subscription that writes the audit log makes this database one primary of two.
	var subscription, table string
	err := q.QueryRow(ctx, `SELECT s.subname, c.relname FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid JOIN pg_class c ON c.oid = r.srrelid
		WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND c.relnamespace = 'public'::regnamespace
		AND (c.relname LIKE 'audit\_%' OR c.relname LIKE 'directory\_%' OR c.relname = 'installation') LIMIT 1`).Scan(&subscription, &table)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("its table %s receives rows from the subscription %s, so another database writes the audit log too: drop the subscription", table, subscription)
}

// Close closes all connections. It waits for those in use.
func (db *DB) Close() {
	if db.reg != nil {
		db.reg.Unregister(db.metrics)
	}
	db.pool.Close()
}

// Ping is nil if the database answers.
func (db *DB) Ping(ctx context.Context) error {
	if err := db.pool.Ping(ctx); err != nil {
		return fmt.Errorf("asking the database: %w", err)
	}
	return nil
}

// Writable is nil if the database takes writes from this role. A standby and a read-only
// database answer Ping all the same. Nothing is changed.
func (db *DB) Writable(ctx context.Context) error {
	if _, err := db.pool.Exec(ctx, `UPDATE audit_heads SET seq = seq WHERE false`); err != nil {
		return fmt.Errorf("the database takes no writes: %w", err)
	}
	return nil
}

// Away says whether an error of Open may be over soon: the server cannot be reached, is
// starting or stopping, or has no connection left.
func Away(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return strings.HasPrefix(pg.Code, "57P0") || strings.HasPrefix(pg.Code, "08") || pg.Code == "53300"
	}
	var connect *pgconn.ConnectError
	var tlsError *tls.CertificateVerificationError
	return errors.As(err, &connect) && !errors.As(err, &tlsError)
}

// OnConnect sets a function that is called with each new connection before it is used,
// except those that listen.
func (db *DB) OnConnect(fn func(context.Context, *pgx.Conn)) { db.connected.Store(&fn) }

// Pool is for statements that are of no org.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

// InOrg runs fn in a transaction that sees the rows of one org only, and commits it if fn
// returns nil. It returns fn's error, joined with the error of the rollback, if any.
//
// A transaction that lost to another one (a deadlock, a serialization failure) is run
// again, a few times. So fn may run more than once: it changes only the database, or sets
// its results anew each time.
func (db *DB) InOrg(ctx context.Context, org string, fn func(pgx.Tx) error) error {
	if org == "" {
		return errors.New("a transaction needs an org") // none would mean: no rows, and a caller who wonders
	}
	return db.again(ctx, pgx.TxOptions{}, "aid.org", org, fn)
}

// InOrgs is like InOrg for several orgs in one transaction. fn runs once for each org, in
// the order of their ids, and sees only the rows of that org.
func (db *DB) InOrgs(ctx context.Context, orgs []string, fn func(org string, tx pgx.Tx) error) error {
	sorted := slices.Compact(slices.Sorted(slices.Values(orgs)))
	if len(sorted) == 0 || sorted[0] == "" {
		return errors.New("a transaction needs an org")
	}
	return db.InOrg(ctx, sorted[0], func(tx pgx.Tx) error {
		for _, org := range sorted {
			if _, err := tx.Exec(ctx, `SELECT set_config('aid.org', $1, true)`, org); err != nil {
				return fmt.Errorf("setting aid.org: %w", err)
			}
			if err := fn(org, tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// Presenting runs fn in a read-only transaction that sees only what the presented secret
// opens. That is the row of the org key or node with that hex SHA-256, or of the node with
// that SPIFFE id. Use it to find the org.
func (db *DB) Presenting(ctx context.Context, presented string, fn func(pgx.Tx) error) error {
	if presented == "" {
		return errors.New("a transaction needs what was presented")
	}
	return db.again(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}, "aid.presented", presented, fn)
}

func (db *DB) again(ctx context.Context, o pgx.TxOptions, name, value string, fn func(pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, db.limit)
	defer cancel()
	for try := 1; ; try++ {
		err := db.once(ctx, o, name, value, fn)
		if err == nil || try == tries || !lost(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(try) * 10 * time.Millisecond):
		}
	}
}

func (db *DB) once(ctx context.Context, o pgx.TxOptions, name, value string, fn func(pgx.Tx) error) (err error) {
	tx, err := db.pool.BeginTx(ctx, o)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	// fn has a context of its own, which may be without a deadline. So the connection
	// gets one: whatever fn waits for there ends with ctx.
	conn := tx.Conn()
	stop := context.AfterFunc(ctx, func() { _ = conn.PgConn().Conn().SetDeadline(time.Unix(1, 0)) })
	// Also when fn panics. What is committed is not touched by it.
	defer func() {
		if !stop() {
			// The deadline stays with the connection, so no other transaction may get it.
			// Closing it is quick: nothing can be sent or received any more.
			_ = conn.Close(ctx)
		}
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if e := tx.Rollback(back); e != nil && !errors.Is(e, pgx.ErrTxClosed) && err == nil {
			err = fmt.Errorf("rolling back: %w", e)
		}
	}()
	// Of this transaction alone: the next one on this connection has none.
	if _, err := tx.Exec(ctx, `SELECT set_config($1, $2, true)`, name, value); err != nil {
		return fmt.Errorf("setting %s: %w", name, err)
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// lost says whether a transaction may be run again: it fell to another one, and
// nothing of it is there.
func lost(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// Listen receives the notifications of a channel, and calls fn with each payload. It
// returns nil when ctx is done, and not before. If the connection is lost or fails, it
// connects again, after pauses of up to five seconds. connected is called after each
// connect. Notifications in between are lost, so the caller must read again what it must
// not miss.
//
// Both are called from one goroutine, and must not take long.
func (db *DB) Listen(ctx context.Context, channel string, fn func(payload string), connected func()) error {
	const first, last = 50 * time.Millisecond, 5 * time.Second
	pause, away := first, false
	for {
		heard := false
		err := db.hear(ctx, channel, fn, func() {
			if away {
				db.log.Info("the connection for notifications is back", "channel", channel)
			}
			pause, heard, away = first, true, false
			connected()
		})
		if ctx.Err() != nil {
			return nil
		}
		level := slog.LevelDebug // one line for each change, not for each attempt
		if heard || !away {
			level = slog.LevelWarn
		}
		away = true
		db.log.Log(ctx, level, "the connection for notifications is lost, connecting again", "channel", channel, "err", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, last)
	}
}

func (db *DB) hear(ctx context.Context, channel string, fn func(string), connected func()) error {
	conn, err := pgx.ConnectConfig(ctx, db.listen.Copy())
	if err != nil {
		return err
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(bye) //nolint:errcheck // there is nothing to do about it
	}()
	begin, cancel := context.WithTimeout(ctx, stillThere)
	_, err = conn.Exec(begin, "LISTEN "+pgx.Identifier{channel}.Sanitize())
	cancel()
	if err != nil {
		return err
	}
	connected()
	for {
		wait, cancel := context.WithTimeout(ctx, db.silence)
		n, err := conn.WaitForNotification(wait)
		silent := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			fn(n.Payload)
		case !silent:
			return err
		default:
			ping, cancel := context.WithTimeout(ctx, stillThere)
			err := conn.Ping(ping)
			cancel()
			if err != nil {
				return err
			}
		}
	}
}
