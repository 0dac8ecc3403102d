package store

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ProvisionConfig configures Provision.
type ProvisionConfig struct {
	// Database is its name. Empty: "aid".
	Database string
	// The passwords of the roles, in printable ASCII. Empty: an existing password is kept,
	// and none is set. A role without a password connects by the server's own rules (peer,
	// trust, a certificate).
	OwnerPassword, AppPassword, AuditorPassword string
	Log                                         *slog.Logger
}

// Provisioned has the URLs for connecting as each role. They contain the given passwords.
type Provisioned struct {
	OwnerURL, AppURL, AuditorURL string
}

// Provision creates the roles and the database, as an administrator: a superuser, or a role
// with CREATEROLE and CREATEDB. A second run changes only what is missing or wrong.
// adminURL is a URL ("postgres://…") of any database of the server.
func Provision(ctx context.Context, adminURL string, c ProvisionConfig) (Provisioned, error) {
	if c.Database == "" {
		c.Database = "aid"
	}
	p, err := provision(ctx, adminURL, c)
	if err != nil {
		return Provisioned{}, fmt.Errorf("preparing the database: %w", err)
	}
	return p, nil
}

func provision(ctx context.Context, adminURL string, c ProvisionConfig) (p Provisioned, err error) {
	for _, r := range []struct {
		to             *string
		role, password string
	}{{&p.OwnerURL, OwnerRole, c.OwnerPassword}, {&p.AppURL, AppRole, c.AppPassword}, {&p.AuditorURL, AuditorRole, c.AuditorPassword}} {
		if *r.to, err = urlFor(adminURL, r.role, r.password, c.Database); err != nil {
			return p, err
		}
	}
	admin, err := connectAdmin(ctx, adminURL, "")
	if err != nil {
		return p, err
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing waits for it
	// Roles belong to the whole server, and the lock to this database, which every
	// Provision uses.
	if _, err := admin.Exec(ctx, `SELECT pg_advisory_lock($1)`, migrationLock+1); err != nil {
		return p, err
	}
	for _, r := range []struct{ name, password string }{{OwnerRole, c.OwnerPassword}, {AppRole, c.AppPassword}, {AuditorRole, c.AuditorPassword}} {
		if err := makeRole(ctx, admin, r.name, r.password, c.Log); err != nil {
			return p, fmt.Errorf("role %s: %w", r.name, err)
		}
	}
	if err := makeDirectory(ctx, admin, c.Log); err != nil {
		return p, fmt.Errorf("role %s: %w", DirectoryRole, err)
	}
	if err := makeDatabase(ctx, admin, c.Database, c.Log); err != nil {
		return p, fmt.Errorf("database %s: %w", c.Database, err)
	}
	inside, err := connectAdmin(ctx, adminURL, c.Database)
	if err != nil {
		return p, err
	}
	defer inside.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing waits for it
	if err := grants(ctx, inside, c.Database); err != nil {
		return p, fmt.Errorf("database %s: %w", c.Database, err)
	}
	return p, nil
}

func connectAdmin(ctx context.Context, adminURL, database string) (*pgx.Conn, error) {
	cc, err := pgx.ParseConfig(adminURL)
	if err != nil {
		return nil, err
	}
	if err := private(&cc.Config); err != nil {
		return nil, err
	}
	if database != "" {
		cc.Database = database
	}
	cc.RuntimeParams["application_name"] = "aid migrate --provision"
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return nil, err
	}
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	if version < minServer*10000 {
		return nil, errors.Join(fmt.Errorf("it is Postgres %d; %d is the oldest that works", version/10000, minServer), conn.Close(ctx))
	}
	return conn, nil
}

// makeRole creates or changes a role so that it may log in and has no other attribute.
func makeRole(ctx context.Context, conn *pgx.Conn, name, password string, log *slog.Logger) error {
	if err := harmlessRole(ctx, conn, name, "LOGIN", log); err != nil {
		return err
	}
	if password == "" || hasPassword(ctx, conn, name, password) {
		return nil
	}
	verifier, err := scramVerifier(password)
	if err != nil {
		return err
	}
	// Postgres accepts no parameter there, so format() writes the literal.
	var statement string
	if err := conn.QueryRow(ctx, `SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)`, name, verifier).Scan(&statement); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		return err
	}
	log.Info("password set", "role", name)
	return nil
}

// harmlessRole creates or changes a role so that it has no attribute except login, LOGIN or
// NOLOGIN.
func harmlessRole(ctx context.Context, conn *pgx.Conn, name, login string, log *slog.Logger) error {
	attributes := " " + login + ` NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION`
	var right bool
	err := conn.QueryRow(ctx, `SELECT rolcanlogin = $2 AND NOT (rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole OR rolreplication)
		FROM pg_roles WHERE rolname = $1`, name, login == "LOGIN").Scan(&right)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		if _, err := conn.Exec(ctx, `CREATE ROLE `+name+attributes); err != nil {
			return err
		}
		log.Info("role made", "role", name)
	case err != nil:
		return err
	case !right:
		if _, err := conn.Exec(ctx, `ALTER ROLE `+name+attributes); err != nil {
			return err
		}
		log.Warn("the role had too many permissions, or lacked its own: corrected", "role", name)
	}
	return nil
}

// makeDirectory creates the role that owns the function aid_directory. No connection has it.
// The owner may give it the function. From Postgres 16 on the owner has none of its rights.
func makeDirectory(ctx context.Context, conn *pgx.Conn, log *slog.Logger) error {
	if err := harmlessRole(ctx, conn, DirectoryRole, "NOLOGIN", log); err != nil {
		return err
	}
	var member bool
	var version int
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, EXISTS (SELECT FROM pg_auth_members
		WHERE roleid = $1::text::regrole AND member = $2::text::regrole)`, DirectoryRole, OwnerRole).Scan(&version, &member)
	if err != nil || member {
		return err
	}
	grant := `GRANT ` + DirectoryRole + ` TO ` + OwnerRole
	if version >= 160000 {
		grant += ` WITH INHERIT FALSE, SET TRUE`
	}
	_, err = conn.Exec(ctx, grant)
	return err
}

// hasPassword reports whether the role already has the password. Only superusers can read
// it; for others the result is false.
func hasPassword(ctx context.Context, conn *pgx.Conn, role, password string) bool {
	var stored *string
	if err := conn.QueryRow(ctx, `SELECT rolpassword FROM pg_authid WHERE rolname = $1`, role).Scan(&stored); err != nil || stored == nil {
		return false
	}
	return scramMatches(password, *stored)
}

// scramMatches reports whether stored is password's
// SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER.
func scramMatches(password, stored string) bool {
	rest, ok := strings.CutPrefix(stored, "SCRAM-SHA-256$")
	iterations, rest, ok2 := strings.Cut(rest, ":")
	salt64, _, ok3 := strings.Cut(rest, "$")
	n, err := strconv.Atoi(iterations)
	salt, err2 := base64.StdEncoding.DecodeString(salt64)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || n < 1 || n > 1_000_000 {
		return false
	}
	same, err := scram(password, salt, n)
	return err == nil && hmac.Equal([]byte(same), []byte(stored))
}

// scramVerifier is what the server stores for a password (RFC 5803). It is computed here,
// so that the password is in no statement and in no log of the server.
func scramVerifier(password string) (string, error) {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return "", err
	}
	return scram(password, salt, 4096)
}

func scram(password string, salt []byte, iterations int) (string, error) {
	// Other characters than ASCII would have to be normalized (SASLprep).
	if i := strings.IndexFunc(password, func(r rune) bool { return r < 0x20 || r > 0x7e }); i >= 0 {
		return "", fmt.Errorf("the password's character %d is not printable ASCII", i+1)
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}

func makeDatabase(ctx context.Context, conn *pgx.Conn, name string, log *slog.Logger) error {
	var owner string
	err := conn.QueryRow(ctx, `SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1`, name).Scan(&owner)
	switch {
	case err == nil && owner != OwnerRole:
		return fmt.Errorf("it exists and belongs to %s. Choose another name, or change its owner with ALTER DATABASE … OWNER TO %s", owner, OwnerRole)
	case err == nil:
		return nil
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	}
	if err := becomeMember(ctx, conn); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize()+` OWNER `+OwnerRole+` ENCODING 'UTF8' TEMPLATE template0`)
	if err != nil {
		return err
	}
	log.Info("database made", "database", name)
	return nil
}

// becomeMember lets an administrator who is not a superuser give objects to the owner.
func becomeMember(ctx context.Context, conn *pgx.Conn) error {
	var member bool
	if err := conn.QueryRow(ctx, `SELECT pg_has_role(current_user, $1, 'MEMBER')`, OwnerRole).Scan(&member); err != nil || member {
		return err
	}
	_, err := conn.Exec(ctx, `GRANT `+OwnerRole+` TO current_user`)
	return err
}

// grants gives permissions only to the roles below.
func grants(ctx context.Context, conn *pgx.Conn, database string) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit it does nothing
	db := pgx.Identifier{database}.Sanitize()
	for _, statement := range []string{
		`SET LOCAL ROLE ` + OwnerRole,
		`REVOKE ALL ON DATABASE ` + db + ` FROM PUBLIC`,
		`GRANT CONNECT ON DATABASE ` + db + ` TO ` + AppRole + `, ` + AuditorRole,
		`REVOKE ALL ON SCHEMA public FROM PUBLIC`,
		`GRANT USAGE ON SCHEMA public TO ` + AppRole + `, ` + AuditorRole,
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}

// urlFor is the URL of the same server for another role and database.
func urlFor(adminURL, role, password, database string) (string, error) {
	u, err := url.Parse(adminURL)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return "", errors.New("the database must be given as a URL, such as postgres://postgres@db.example.com/postgres?sslmode=verify-full")
	}
	u.User = url.User(role)
	if password != "" {
		u.User = url.UserPassword(role, password)
	}
	u.Path = "/" + database
	u.RawPath = ""
	q := u.Query()
	for _, name := range []string{"user", "password", "dbname", "database"} {
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	if _, err := pgconn.ParseConfig(u.String()); err != nil {
		return "", err
	}
	return u.String(), nil
}
