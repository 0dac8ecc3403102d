package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// TestMain lets this binary play the process that is killed: see TestKilledWithUs.
func TestMain(m *testing.M) {
	if address := os.Getenv("STORE_TEST_CONNECT"); address != "" {
		_, err := pgx.Connect(context.Background(), address)
		fmt.Println(err)
		os.Exit(0)
	}
	if os.Getenv("STORE_TEST_DIR") == "" {
		os.Exit(m.Run())
	}
	e, err := store.NewEmbedded(store.EmbeddedConfig{
		Dir: os.Getenv("STORE_TEST_DIR"), Binaries: os.Getenv("STORE_TEST_BINARIES"), Settings: unsafe, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() {
		if err := e.Run(context.Background()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := e.Ready(ctx); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", e.PID(), e.URL())
	select {}
}

// unsafe makes the database faster. The test survives no power cut.
var unsafe = map[string]string{"fsync": "off"}

type running struct {
	*store.Embedded
	t    *testing.T
	dir  string
	stop func() error
	log  *lockedBuffer
}

// embedded starts a Postgres in dir and waits until it answers.
func embedded(t *testing.T, dir string, change ...func(*store.EmbeddedConfig)) *running {
	t.Helper()
	log := &lockedBuffer{}
	c := store.EmbeddedConfig{Dir: dir, Binaries: storetest.Binaries(t), Settings: unsafe, Log: slog.New(slog.NewTextHandler(log, nil))}
	for _, f := range change {
		f(&c)
	}
	e, err := store.NewEmbedded(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	r := &running{Embedded: e, t: t, dir: dir, log: log, stop: sync.OnceValue(func() error { cancel(); return <-done })}
	t.Cleanup(func() { r.stop() })
	r.ready()
	return r
}

func (r *running) ready() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		r.t.Fatalf("%v\n%s", err, r.log.String())
	}
}

func (r *running) do(statement string) {
	r.t.Helper()
	exec1(r.t, r.URL(), statement)
}

func exec1(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	execute(t, conn, statement)
}

func (r *running) rows() int {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), r.URL())
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var n int
	if err := conn.QueryRow(r.t.Context(), `SELECT count(*) FROM kept`).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
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

// until asks until the response is yes, for ten seconds.
func until(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ask(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// postgresOf is every process of a Postgres whose data is in dir.
func postgresOf(t *testing.T, dir string) (pids []int) {
	t.Helper()
	data, err := os.Stat(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if at, err := os.Stat(filepath.Join("/proc", e.Name(), "cwd")); err == nil && os.SameFile(at, data) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestEmbedded(t *testing.T) {
	r := embedded(t, t.TempDir())
	conn := storetest.Connect(t, r.URL())
	for query, want := range map[string]string{
		`SELECT current_setting('listen_addresses')`: "", `SELECT current_setting('unix_socket_permissions')`: "0700", `SELECT current_setting('max_connections')`: "100",
		`SELECT current_setting('shared_buffers')`: "64MB", `SELECT current_setting('data_checksums')`: "on", `SELECT pg_encoding_to_char(encoding) || datcollate FROM pg_database WHERE datname = 'postgres'`: "UTF8C",
		`SELECT current_setting('synchronous_commit') || current_setting('full_page_writes')`: "onon",
		`SELECT coalesce(string_agg(type || database::text || auth_method, ' '), '') FROM pg_hba_file_rules WHERE type = 'local' AND NOT (auth_method = 'scram-sha-256' OR auth_method = 'peer' AND user_name = '{postgres}') OR type <> 'local'`: "",
	} {
		if got := column(t, conn, query); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	// No other account can open the socket, and there is no other way in.
	if info, err := os.Stat(filepath.Join(r.dir, "data")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data folder: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(r.dir, "data", "socket", ".s.PGSQL.5432")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if got := tcpOf(t, r.PID()); len(got) > 0 {
		t.Errorf("it listens on %v", got)
	}
	// It is not us where we are root, and never root.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		switch f := strings.Fields(line); {
		case len(f) == 0:
		case f[0] == "Uid:" || f[0] == "Gid:":
			if os.Geteuid() != 0 && f[0] == "Uid:" && f[1] != strconv.Itoa(os.Geteuid()) {
				t.Errorf("it runs as %s", line)
			}
			if slices.Contains(f[1:], "0") {
				t.Errorf("it runs as root: %s", line)
			}
		case f[0] == "Groups:" && len(f) > 1 && os.Geteuid() == 0:
			t.Errorf("it has our groups: %s", line)
		case (f[0] == "CapEff:" || f[0] == "CapPrm:" || f[0] == "CapAmb:") && strings.Trim(f[1], "0") != "":
			t.Errorf("it has capabilities: %s", line)
		}
	}
	// A client's error may contain text that must not be in a log.
	if _, err := conn.Exec(t.Context(), `SELECT 'hunter2'::int`); err == nil {
		t.Error("a text is a number")
	}
	r.do(`CREATE TABLE kept (x int)`)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if left := postgresOf(t, r.dir); len(left) > 0 {
		t.Errorf("%v still run", left)
	}
	if strings.Contains(r.log.String(), "hunter2") || strings.Contains(r.log.String(), "level=ERROR") {
		t.Errorf("the log:\n%s", r.log.String())
	}
	// Its state is still there, and it comes up again.
	again := embedded(t, r.dir)
	if again.rows() != 0 {
		t.Error("rows from nowhere")
	}
}

// tcpOf is the addresses that a process listens on over TCP.
func tcpOf(t *testing.T, pid int) (addresses []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	sockets := map[string]bool{}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:[") {
			sockets[strings.Trim(to, "socket:[]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // no IPv6
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && sockets[f[9]] {
				addresses = append(addresses, f[1])
			}
		}
	}
	return addresses
}

// The server is killed and everything goes on. The supervisor starts it again, committed
// data is there, the pool reconnects, and Listen receives again.
func TestServerKilled(t *testing.T) {
	r := embedded(t, t.TempDir())
	p, err := store.Provision(t.Context(), r.URL(), storetest.Provision("aid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Migrate(t.Context(), p.OwnerURL, quiet); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: p.AppURL, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	org := storetest.OrgAt(t, p.OwnerURL)

	ctx, cancel := context.WithCancel(t.Context())
	heard, connected, done := make(chan string, 10), make(chan struct{}, 10), make(chan error, 1)
	go func() {
		done <- db.Listen(ctx, "aid_changed", func(p string) { heard <- p }, func() { connected <- struct{}{} })
	}()
	<-connected
	for i := range 2 {
		id := fmt.Sprint("ag_", i)
		inOrg(t, db, org, func(tx pgx.Tx) error { return insertAgent(t.Context(), tx, org, id) })
		number, _, _ := strings.Cut(<-heard, " ")
		var what string
		inOrg(t, db, org, func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT what FROM changes WHERE seq = $1::bigint`, number).Scan(&what)
		})
		if what != "agents "+org+" "+id {
			t.Errorf("heard of %q", what)
		}
		before := r.PID()
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the server is started again", func() bool { pid := r.PID(); return pid != 0 && pid != before })
		r.ready()
		<-connected
		until(t, "the pool finds it", func() bool { return db.Ping(t.Context()) == nil })
		inOrg(t, db, org, func(tx pgx.Tx) error {
			if n, err := countAgents(t.Context(), tx); err != nil || n != i+1 {
				t.Errorf("%d agents after the kill, %v", n, err)
			}
			return nil
		})
	}
	if r.Restarts() != 2 {
		t.Errorf("%d restarts", r.Restarts())
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Listen ended with %v", err)
	}
}

// When the process that runs it is killed with SIGKILL, each of its Postgres processes
// ends, a busy one included. The next process starts over what is left. This holds as root
// and as an ordinary account.
func TestKilledWithUs(t *testing.T) {
	for _, as := range []string{"ourselves", "an ordinary account"} {
		t.Run(as, func(t *testing.T) {
			binaries := storetest.Binaries(t)
			dir := t.TempDir()
			var who *syscall.Credential
			if as == "an ordinary account" {
				if os.Geteuid() != 0 {
					t.Skip("we are one")
				}
				who = nobody(t)
				dir = forNobody(t, who)
			}
			parent, pid, url := supervisor(t, dir, binaries, who)
			if owner := ownerOf(t, pid); owner == 0 || who != nil && owner != who.Uid {
				t.Errorf("the server runs as %d", owner)
			}
			exec1(t, url, `CREATE TABLE kept (x int)`)
			exec1(t, url, `INSERT INTO kept VALUES (1)`)
			busy, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			defer busy.Close(context.Background())
			ended := make(chan error, 1)
			go func() {
				_, err := busy.Exec(t.Context(), `SELECT count(*) FROM generate_series(1, 1000000000) a, generate_series(1, 1000000000) b`)
				ended <- err
			}()
			backend := int(busy.PgConn().PID())
			until(t, "the query runs", func() bool { return cpuOf(backend) > 5 })

			parent.Process.Kill()
			parent.Wait() //nolint:errcheck // it was killed
			until(t, "every Postgres has ended", func() bool { return len(postgresOf(t, dir)) == 0 })
			if err := <-ended; err == nil {
				t.Error("the query ended well")
			}

			parent, _, url = supervisor(t, dir, binaries, who)
			exec1(t, url, `INSERT INTO kept VALUES (2)`)
			conn := storetest.Connect(t, url)
			if got := column(t, conn, `SELECT x::text FROM kept ORDER BY x`); !slices.Equal(got, []string{"1", "2"}) {
				t.Errorf("kept: %v", got)
			}
			parent.Process.Kill()
			parent.Wait() //nolint:errcheck // it was killed
			until(t, "every Postgres has ended again", func() bool { return len(postgresOf(t, dir)) == 0 })
		})
	}
}

// supervisor runs this binary as the process that keeps a Postgres.
func supervisor(t *testing.T, dir, binaries string, who *syscall.Credential) (parent *exec.Cmd, pid int, url string) {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	// By the open file: an ordinary account cannot walk to where `go test` built it.
	parent = exec.Command("/proc/self/fd/3")
	parent.ExtraFiles = []*os.File{self}
	parent.Dir = "/"
	parent.Env = append(os.Environ(), "STORE_TEST_DIR="+dir, "STORE_TEST_BINARIES="+binaries)
	parent.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { parent.Process.Kill() }) //nolint:errcheck // it has ended, then
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, new(string), &pid, &url); err != nil {
		t.Fatalf("the supervisor says %s", line)
	}
	return parent, pid, url
}

// The superuser and every role need a password. As root, the server has a user id of its
// own, which no account and no other process has. Data of an earlier version (with trust,
// owned by a shared account) is changed when the server starts, and nothing is lost.
func TestEmbeddedIsOurs(t *testing.T) {
	r := embedded(t, t.TempDir())
	bare, err := url.Parse(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []*url.Userinfo{url.UserPassword("aid_owner", "wrong"), url.User("aid_owner")} {
		bare.User = user
		if conn, err := pgx.Connect(t.Context(), bare.String()); err == nil {
			conn.Close(t.Context()) //nolint:errcheck // the test has failed
			t.Errorf("%s gets in", user.Username())
		}
	}
	ownID := func(r *running) {
		t.Helper()
		if os.Geteuid() != 0 {
			return
		}
		uid := fmt.Sprint(ownerOf(t, r.PID()))
		if u, err := user.LookupId(uid); err == nil {
			t.Errorf("the server runs as %s, an account that others share", u.Username)
		}
	}
	ownID(r)
	r.do(`CREATE TABLE kept (x int)`)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	// As an earlier version left it.
	data := filepath.Join(r.dir, "data")
	if err := errors.Join(
		os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("local all all trust\nhost all all all reject\n"), 0o600),
		os.RemoveAll(filepath.Join(data, "socket"))); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		who := nobody(t)
		err := filepath.WalkDir(data, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(who.Uid), int(who.Gid)))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	again := embedded(t, r.dir)
	ownID(again)
	if again.rows() != 0 {
		t.Error("rows from nowhere")
	}
	if conn, err := pgx.Connect(t.Context(), bare.String()); err == nil {
		conn.Close(t.Context()) //nolint:errcheck // the test has failed
		t.Error("the socket still trusts")
	}
	refusesNobody(t, again)
}

// refusesNobody connects as a shared system account. The socket's folder is open to all, so
// the server must reject it.
func refusesNobody(t *testing.T, r *running) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	for _, dir := range []string{r.dir, filepath.Join(r.dir, "data"), filepath.Join(r.dir, "data", "socket")} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(r.dir, "data", "socket", ".s.PGSQL.5432")
	if err := os.Chmod(socket, 0o777); err != nil {
		t.Fatal(err)
	}
	who := nobody(t)
	if err := os.Chmod(filepath.Dir(r.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	client := exec.Command("/proc/self/fd/3")
	client.ExtraFiles, client.Dir = []*os.File{self}, "/"
	client.Env = append(os.Environ(), "STORE_TEST_CONNECT="+r.URL())
	client.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	out, _ := client.CombinedOutput()
	if !strings.Contains(string(out), "28000") {
		t.Errorf("nobody as superuser: %s", out)
	}
}

func nobody(t *testing.T) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}
}

// forNobody is a temporary folder of that account's, which it can walk to.
func forNobody(t *testing.T, who *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "aid-store-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, int(who.Uid), int(who.Gid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ownerOf(t *testing.T, pid int) uint32 {
	t.Helper()
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// cpuOf is how long a process has computed, in the kernel's ticks.
func cpuOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	n, _ := strconv.Atoi(f[11])
	return n
}

// A predecessor left its files, and another process of the same account now has the number
// in its PID file. Postgres alone would not start.
func TestStalePIDFile(t *testing.T) {
	r := embedded(t, t.TempDir())
	r.do(`CREATE TABLE kept (x int)`)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(r.dir, "data")
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	other := exec.Command("/bin/sleep", "300")
	if os.Geteuid() == 0 {
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid, Groups: []uint32{}}}
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()         //nolint:errcheck // it was killed
	defer other.Process.Kill() //nolint:errcheck // it has ended, then
	for _, text := range []string{fmt.Sprintf("%d\n%s\n1\n5432\n.\n\n 1 1\nready\n", other.Process.Pid, data), "", "not a number\n"} {
		for _, name := range []string{"postmaster.pid", "socket/.s.PGSQL.5432.lock"} {
			path := filepath.Join(data, name)
			if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, int(st.Uid), int(st.Gid))); err != nil {
				t.Fatal(err)
			}
		}
		again := embedded(t, r.dir)
		if again.Restarts() != 0 || again.rows() != 0 {
			t.Errorf("%d restarts", again.Restarts())
		}
		if err := again.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the other process was ended: %v", err)
	}
}

// A Postgres without a supervisor is ended first, since two on the same data would destroy
// it.
func TestEndsOrphans(t *testing.T) {
	first := embedded(t, t.TempDir())
	first.do(`CREATE TABLE kept (x int)`)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	data, err := os.Open(filepath.Join(first.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	info, err := data.Stat()
	if err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command(filepath.Join(storetest.Binaries(t), "bin", "postgres"), "-D", "/proc/self/fd/3", "-c", "listen_addresses=", "-c", "unix_socket_directories=socket")
	orphan.ExtraFiles, orphan.Dir, orphan.Env = []*os.File{data}, "/", []string{}
	if os.Geteuid() == 0 {
		st := info.Sys().(*syscall.Stat_t)
		orphan.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid, Groups: []uint32{}}}
	}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	until(t, "the orphan answers", func() bool {
		conn, err := pgx.Connect(t.Context(), first.URL())
		return err == nil && conn.Close(t.Context()) == nil
	})

	r := embedded(t, first.dir)
	<-ended
	if !strings.Contains(r.log.String(), "outlived") || r.rows() != 0 {
		t.Errorf("the log does not say so:\n%s", r.log.String())
	}
}

func TestEmbeddedRefuses(t *testing.T) {
	binaries := storetest.Binaries(t)
	for _, dir := range []string{"", "/nonexistent", t.TempDir()} {
		if _, err := store.NewEmbedded(store.EmbeddedConfig{Dir: t.TempDir(), Binaries: dir, Log: quiet}); err == nil {
			t.Errorf("programs in %q are taken", dir)
		}
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 25))
	if _, err := store.NewEmbedded(store.EmbeddedConfig{Dir: long, Binaries: binaries, Log: quiet}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a path that is too long: %v", err)
	}

	r := embedded(t, t.TempDir())
	second, err := store.NewEmbedded(store.EmbeddedConfig{Dir: r.dir, Binaries: binaries, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one in the same folder: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	version := filepath.Join(r.dir, "data", "PG_VERSION")
	if err := os.WriteFile(version, []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := store.NewEmbedded(store.EmbeddedConfig{Dir: r.dir, Binaries: binaries, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "pg_upgrade") {
		t.Errorf("data of another version: %v", err)
	}
	if err := old.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("waiting for one that has ended: %v", err)
	}
}

// A folder whose path is too long for a socket has a short link. What initdb left
// half done is done again. A setting that is wrong is seen in the error.
func TestEmbeddedCorners(t *testing.T) {
	short, err := os.MkdirTemp("/tmp", "aid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 25))
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "data.new", "half"), 0o700), os.Mkdir(filepath.Join(dir, "data"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nonexistent", filepath.Join(short, "postgres")); err != nil {
		t.Fatal(err)
	}
	r := embedded(t, dir, func(c *store.EmbeddedConfig) { c.Short = short })
	if !strings.Contains(r.URL(), short[1:4]) {
		t.Errorf("the URL %s is not short", r.URL())
	}
	r.do(`SELECT 1`)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	e, err := store.NewEmbedded(store.EmbeddedConfig{Dir: dir, Short: short, Binaries: storetest.Binaries(t), Settings: map[string]string{"work_mem": "much"}, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	until(t, "it is started again and again", func() bool { return e.Restarts() >= 2 })
	wait, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := e.Ready(wait); err == nil || !strings.Contains(err.Error(), "work_mem") {
		t.Errorf("what is wrong is not in %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Programs below a folder that only root may enter (a clone in /root) run all the
// same.
func TestBinariesOutOfReach(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has another account's server")
	}
	far := filepath.Join(t.TempDir(), "postgres") // below a folder that only we may enter
	if err := os.CopyFS(far, os.DirFS(storetest.Binaries(t))); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", forEverybody(t))
	var copies []string
	for range 2 {
		r := embedded(t, t.TempDir(), func(c *store.EmbeddedConfig) { c.Binaries = far })
		r.do(`SELECT 1`)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		found, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "aid-postgres-*"))
		if err != nil {
			t.Fatal(err)
		}
		copies = append(copies, found...)
	}
	if len(copies) != 2 || copies[0] != copies[1] {
		t.Errorf("copies: %v", copies)
	}
	// Anybody may make a folder in /tmp: one that is not ours is not run.
	if err := os.Lchown(copies[0], 65534, 65534); err != nil {
		t.Fatal(err)
	}
	e, err := store.NewEmbedded(store.EmbeddedConfig{Dir: t.TempDir(), Binaries: far, Settings: unsafe, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); err == nil {
		t.Error("programs of another account's are run")
	}
}

func forEverybody(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "aid-store-tmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o1777); err != nil {
		t.Fatal(err)
	}
	return dir
}
