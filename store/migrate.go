package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// The roles, see the package's comment.
const (
	OwnerRole   = "aid_owner"
	AppRole     = "aid_app"
	AuditorRole = "aid_auditor"

	// DirectoryRole reads the slot, size and root of every organization's tree, and nothing
	// else. No connection has it: it owns the function aid_directory.
	DirectoryRole = "aid_directory"
)

// migrationLock prevents two Migrates at the same time, even on different machines. It is
// "aid" in ASCII, with room for more locks.
const migrationLock = 0x616964_0001

// Version is the schema of this build: the highest number of its migrations.
func Version() (int64, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		return 0, errors.Join(errors.New("this build has no migrations"), err)
	}
	highest := int64(0)
	for _, name := range names {
		number, _, _ := strings.Cut(strings.TrimPrefix(name, "migrations/"), "_")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("migration %s has no number: %w", name, err)
		}
		highest = max(highest, n)
	}
	return highest, nil
}

// querier is a pool or a connection.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// checkSchema rejects a schema that is older than this build's.
func checkSchema(ctx context.Context, q querier) error {
	need, err := Version()
	if err != nil {
		return err
	}
	have, err := SchemaVersion(ctx, q)
	switch {
	case err != nil:
		return err
	case have == 0:
		return errors.New("it has no schema yet: run `aid migrate` first")
	case have < need:
		return fmt.Errorf("its schema is at version %d and this build needs %d: run `aid migrate` first", have, need)
	}
	return nil
}

// SchemaVersion is the version of a database's schema, 0 if it has none.
func SchemaVersion(ctx context.Context, q querier) (int64, error) {
	var have int64
	err := q.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&have)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "42P01": // no such table
		return 0, nil
	case errors.As(err, &pg) && pg.Code == "42501": // it exists, without permission for us: a migration was interrupted
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("asking for the schema's version: %w", err)
	}
	return have, nil
}

// Migrate brings a database's schema to this build's version, under a lock. Each migration
// is one transaction, and is logged. ownerURL connects as aid_owner, or as a role that may
// become it. It changes nothing in a schema that is up to date or newer.
func Migrate(ctx context.Context, ownerURL string, log *slog.Logger) error {
	c, err := pgx.ParseConfig(ownerURL)
	if err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	if err := private(&c.Config); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	// A migration may take long, but must not block other sessions while it waits for a
	// lock.
	c.RuntimeParams["application_name"] = "aid migrate"
	c.RuntimeParams["lock_timeout"] = ms(lockTimeout)
	c.RuntimeParams["timezone"] = "UTC"
	// The migration's objects must be in the schema that all roles use, and no other schema
	// may be searched.
	c.RuntimeParams["search_path"] = "public"
	db := stdlib.OpenDB(*c, stdlib.OptionAfterConnect(becomeOwner))
	defer db.Close()
	if err := migrate(ctx, db, log); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	return nil
}

// becomeOwner gives the owner all objects that the connection creates.
func becomeOwner(ctx context.Context, conn *pgx.Conn) error {
	var user string
	var version int
	var roles int
	err := conn.QueryRow(ctx, `SELECT current_user, current_setting('server_version_num')::int,
		(SELECT count(*) FROM pg_roles WHERE rolname IN ($1, $2, $3, $4))`, OwnerRole, AppRole, AuditorRole, DirectoryRole).Scan(&user, &version, &roles)
	switch {
	case err != nil:
		return err
	case version < minServer*10000:
		return fmt.Errorf("it is Postgres %d; %d is the oldest that works", version/10000, minServer)
	case roles < 4:
		return fmt.Errorf("not all of the roles %s, %s, %s and %s are there: run `aid migrate --provision` first", OwnerRole, AppRole, AuditorRole, DirectoryRole)
	case user == OwnerRole:
		return nil
	}
	if _, err := conn.Exec(ctx, "SET ROLE "+OwnerRole); err != nil {
		return fmt.Errorf("%s may not act as %s, the schema's owner: connect as %s: %w", user, OwnerRole, OwnerRole, err)
	}
	return nil
}

func migrate(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	// There is one migration at a time, even on different machines. The second one waits,
	// and finds nothing to do. The lock ends with its connection.
	locked, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer locked.Close()
	if _, err := locked.ExecContext(ctx, `SET lock_timeout = 0`); err != nil {
		return err
	}
	if _, err := locked.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, migrationLock); err != nil {
		return err
	}
	// goose logs each migration at Info too; our own log has more.
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	need, err := Version()
	if err != nil {
		return err
	}
	done, err := p.Up(ctx)
	for _, r := range done {
		log.Info("migration applied", "version", r.Source.Version, "file", r.Source.Path, "took", r.Duration)
	}
	if err != nil {
		return err
	}
	// Servers read the version when they start.
	if _, err := db.ExecContext(ctx, `GRANT SELECT ON goose_db_version TO `+AppRole+`, `+AuditorRole); err != nil {
		return err
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	switch {
	case have > need:
		log.Info("the schema is newer than this build, and left as it is", "version", have, "build", need)
	case len(done) == 0:
		log.Info("the schema is up to date", "version", have)
	}
	return nil
}
