package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// EmbeddedConfig configures an embedded Postgres.
type EmbeddedConfig struct {
	// Dir is the folder of its state. It is created if it does not exist. One process at a
	// time uses it.
	Dir string
	// Binaries is the folder whose bin has initdb and postgres: see FetchPostgres
	// and FindPostgres.
	Binaries string
	// Short is a folder with a short path, which only we may enter. It gets a link to Dir
	// if the path in Dir is too long for a socket's address, which has at most 107 bytes.
	// Short may be empty if that is not needed.
	Short string
	// Settings are added to the server's, or replace them.
	Settings map[string]string
	Log      *slog.Logger
}

// Embedded is a Postgres that starts and ends with our process, for a single machine and
// for tests. It is as durable as a normal server (fsync is on).
//
// Access: it listens on one Unix socket and on no network address. The socket is in a
// separate folder with mode 0700. Every role needs its password (SCRAM-SHA-256), even on
// the socket. The superuser needs our user id or root's, which the kernel reports.
//
// Account: our own, except as root, since Postgres does not run as root. As root it is a
// user id without an account, so that no other program shares it. It has no group, no
// capability and no open file of root. If its data is below a folder that it may not enter
// (such as /root), it receives the open folder.
//
// Data of an earlier version is changed at its start. Data that belongs to a shared account
// gets a separate user id, and passwords replace trust.
type Embedded struct {
	c      EmbeddedConfig
	data   string // Dir/data
	socket string // the folder of the socket, with a short path
	server server
	ended  chan struct{} // closed when Run returns
	err    error         // of Run, once ended
}

// maxSocket is the longest address of a Unix socket on Linux.
const maxSocket = 107

const (
	socketDir  = "socket"
	socketFile = ".s.PGSQL.5432"
	hbaFile    = "pg_hba.conf"
	identFile  = "pg_ident.conf"
)

// hba is the content of pg_hba.conf. The kernel verifies that the superuser has our user
// id, and each role needs its password.
const hba = "# Written by aid at each start.\nlocal all postgres peer map=aid\nlocal all all scram-sha-256\n"

// NewEmbedded validates c. It starts nothing: call Run.
func NewEmbedded(c EmbeddedConfig) (*Embedded, error) {
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, err
	}
	if c.Binaries, err = usable(c.Binaries); err != nil {
		return nil, err
	}
	e := &Embedded{c: c, data: filepath.Join(c.Dir, "data"), ended: make(chan struct{})}
	e.socket = e.sockets()
	if len(filepath.Join(e.socket, socketFile)) > maxSocket {
		e.socket = filepath.Join(c.Short, "postgres")
		if c.Short == "" || len(filepath.Join(e.socket, socketFile)) > maxSocket {
			return nil, fmt.Errorf("the path %s is too long for a socket: choose a shorter folder", e.data)
		}
	}
	return e, nil
}

// sockets is the folder of the socket. It is inside the data folder, which is the server's
// working directory. So its path is always short and always valid.
func (e *Embedded) sockets() string { return filepath.Join(e.data, socketDir) }

// URL connects as the server's superuser, "postgres", to its database of that name. It
// works for our own user id and for root, and needs no password.
func (e *Embedded) URL() string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/postgres", RawQuery: url.Values{"host": {e.socket}}.Encode()}
	return u.String()
}

// PID is the process id of the server, 0 while none runs.
func (e *Embedded) PID() int { return int(e.server.pid.Load()) }

// Restarts counts how often the server ended without a request to stop.
func (e *Embedded) Restarts() int64 { return e.server.restarts.Load() }

// Tail is the last lines that the server printed, oldest first.
func (e *Embedded) Tail() []string { return e.server.lines() }

// Ready returns nil once the server responds. It returns an error if ctx is done before
// that, or Run has returned.
func (e *Embedded) Ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := e.answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-e.ended:
			return errors.Join(errors.New("the embedded Postgres has ended"), e.err, lastWords(e.Tail()))
		case <-ctx.Done():
			return fmt.Errorf("the embedded Postgres does not answer: %w", errors.Join(err, lastWords(e.Tail())))
		case <-tick.C:
		}
	}
}

func lastWords(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	return errors.New("its last lines:\n  " + strings.Join(lines, "\n  "))
}

func (e *Embedded) answers(ctx context.Context) error {
	if e.PID() == 0 {
		return errors.New("it does not run yet") // one that Run is about to end may still run
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, e.URL())
	if err != nil {
		return err
	}
	return errors.Join(conn.Ping(ctx), conn.Close(ctx))
}

// Run creates the database if it does not exist, and ends processes that a killed
// predecessor left. It keeps the server running until ctx is done. Then it stops the
// server, with all committed data on disk, and returns nil. An error means that the server
// cannot be run. Call Run once.
func (e *Embedded) Run(ctx context.Context) (err error) {
	defer func() {
		switch {
		case ctx.Err() != nil:
			err = nil // it was stopped, perhaps before it was ready
		case err != nil:
			err = fmt.Errorf("running the embedded Postgres: %w", err)
		}
		e.err = err
		close(e.ended)
	}()
	if err := os.MkdirAll(e.c.Dir, 0o700); err != nil {
		return err
	}
	lock, err := lockDir(e.c.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	who, moved, err := accountFor(e.c.Dir, e.data)
	if err != nil {
		return err
	}
	bin, err := e.binariesFor(who)
	if err != nil {
		return err
	}
	if err := e.settle(ctx); err != nil {
		return err
	}
	if moved {
		e.c.Log.Warn("the database gets a separate user id", "dir", e.data, "uid", who.uid)
		if err := who.give(e.data); err != nil {
			return fmt.Errorf("giving the database a separate user id: %w", err)
		}
	}
	major, err := majorVersion(ctx, bin, who)
	if err != nil {
		return err
	}
	if err := e.ensureData(ctx, bin, who); err != nil {
		return err
	}
	if err := e.checkVersion(major); err != nil {
		return err
	}
	if err := e.secure(who); err != nil {
		return err
	}
	if e.socket != e.sockets() {
		if err := link(e.sockets(), e.socket); err != nil {
			return err
		}
	}
	return e.keep(ctx, bin, who)
}

// lockDir excludes a second process. The kernel releases the lock when our process ends, in
// every case.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process uses %s", dir)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

// link makes path a link to dir.
func link(dir, path string) error {
	if at, err := os.Readlink(path); err == nil && at == dir {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(dir, path)
}

// ensureData creates the data folder if it does not exist. It is created under another name
// first, so an existing folder is always complete.
func (e *Embedded) ensureData(ctx context.Context, bin string, who account) error {
	if _, err := os.Stat(filepath.Join(e.data, "PG_VERSION")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	e.c.Log.Info("making a database", "dir", e.data)
	fresh := e.data + ".new"
	maker := who
	if who.other && !named(who.uid) {
		var err error
		if maker, err = idle(); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o700), maker.own(fresh)); err != nil {
		return err
	}
	dir, files, err := maker.handed(fresh)
	if err != nil {
		return err
	}
	defer closeAll(files)
	args := []string{
		// No connection is allowed until secure has written the rules.
		"-D", dir, "--username=postgres", "--auth-local=reject", "--auth-host=reject",
		// C, so that the order does not depend on the machine's C library.
		"--encoding=UTF8", "--locale=C", "--data-checksums",
	}
	if e.c.Settings["fsync"] == "off" {
		args = append(args, "--no-sync")
	}
	out, err := run(ctx, maker, files, filepath.Join(bin, "initdb"), args...)
	if err != nil {
		return fmt.Errorf("making a database: %w: %s", err, out)
	}
	if err := who.give(fresh); err != nil {
		return fmt.Errorf("making a database: %w", err)
	}
	// There may be an empty folder with that name.
	if err := os.Remove(e.data); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(fresh, e.data)
}

// secure writes the connection rules before each start, and creates the folder of the
// socket.
func (e *Embedded) secure(who account) error {
	if err := privateFolder(e.sockets(), who); err != nil {
		return err
	}
	us, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return fmt.Errorf("the embedded Postgres needs a name for our user id: %w; add it to /etc/passwd, or use a server with --postgres", err)
	}
	for name, text := range map[string]string{hbaFile: hba, identFile: "# Written by aid at each start.\naid \"" + us.Username + "\" postgres\naid root postgres\n"} {
		path := filepath.Join(e.data, name)
		if current, err := os.ReadFile(path); err == nil && string(current) == text {
			continue
		}
		if err := replace(path, text, who); err != nil {
			return err
		}
	}
	return nil
}

// privateFolder makes a folder that only the account may enter. The folder above
// belongs to that account, so a link in its place is not followed.
func privateFolder(dir string, who account) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(dir, syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o700); err != nil || !who.other {
		return err
	}
	return f.Chown(int(who.uid), int(who.gid))
}

// replace writes a complete private file and gives it to the account.
func replace(path, text string, who account) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if who.other {
		err = errors.Join(err, f.Chown(int(who.uid), int(who.gid)))
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// run runs a program to its end, as who.
func run(ctx context.Context, who account, files []*os.File, path string, args ...string) (string, error) {
	// The parent-death signal is tied to the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = "/", environment(), files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: who.credential()}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// environment is the part of our environment that Postgres gets, without any variable that
// could be a secret, and without libpq's settings.
func environment() []string {
	return []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
}

// majorVersion runs the programs in bin, which also proves that the account can run them.
func majorVersion(ctx context.Context, bin string, who account) (int, error) {
	out, err := run(ctx, who, nil, filepath.Join(bin, "postgres"), "--version") // "postgres (PostgreSQL) 18.3 (Debian …)"
	if err != nil {
		return 0, fmt.Errorf("running %s as %s: %w: %s", filepath.Join(bin, "postgres"), who, err, out)
	}
	_, rest, _ := strings.Cut(out, ") ")
	digits, _, _ := strings.Cut(rest, ".")
	major, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("%s does not print its version: %q", filepath.Join(bin, "postgres"), out)
	}
	if major < minServer {
		return 0, fmt.Errorf("%s is Postgres %d; %d is the oldest that works", filepath.Join(bin, "postgres"), major, minServer)
	}
	return major, nil
}

// checkVersion rejects data that this Postgres cannot read, before it tries.
func (e *Embedded) checkVersion(major int) error {
	b, err := os.ReadFile(filepath.Join(e.data, "PG_VERSION"))
	if err != nil {
		return err
	}
	if was := strings.TrimSpace(string(b)); was != strconv.Itoa(major) {
		return fmt.Errorf("the data in %s is from Postgres %s, and the programs are from %d: use programs of version %s, or move the data with pg_upgrade", e.data, was, major, was)
	}
	return nil
}

// arguments are the server's. Other settings have the defaults of Postgres.
func (e *Embedded) arguments(dir string) []string {
	settings := map[string]string{
		"listen_addresses": "", "unix_socket_directories": socketDir, "unix_socket_permissions": "0700",
		"max_connections": "100", "shared_buffers": "64MB", "max_wal_size": "512MB", "huge_pages": "off", "jit": "off",
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
		"timezone": "UTC", "log_timezone": "UTC",
		// Its log goes to our log. Clients receive their own errors. Those are not logged,
		// since a statement or a value in them may be secret.
		"log_destination": "stderr", "logging_collector": "off", "log_line_prefix": "", "log_checkpoints": "off",
		"log_min_messages": "log", "log_min_error_statement": "panic", "log_error_verbosity": "terse",
	}
	maps.Copy(settings, e.c.Settings)
	args := []string{"-D", dir, "-p", "5432"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// line writes a line of the server's log with the matching log level.
func (e *Embedded) line(line string) {
	level, text := slog.LevelInfo, line
	if severity, rest, ok := strings.Cut(line, ":  "); ok {
		switch severity {
		case "PANIC":
			level, text = slog.LevelError, rest
		case "FATAL":
			// This is about one connection, which came too early or ended with the server.
			level, text = slog.LevelInfo, rest
			if e.server.starting.Load() {
				level = slog.LevelError
			}
			if strings.HasPrefix(rest, "the database system is ") {
				level = slog.LevelDebug
			}
		case "WARNING":
			level, text = slog.LevelWarn, rest
		case "ERROR", "LOG", "NOTICE", "INFO", "DEBUG", "HINT", "DETAIL":
			text = rest
		}
	}
	e.c.Log.Log(context.Background(), level, text, "process", "postgres")
}
