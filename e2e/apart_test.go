package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/process"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// apart is the product as docs/production.md sets it up. It has Postgres with TLS and two
// control planes behind a TCP load balancer. One of its two nodes has a join token, the
// other a certificate. Every command is from the page, and every process is started by its
// unit file. Only the names of hosts, folders and ports differ, since everything runs on
// one machine.
type apart struct {
	dir      string // for all files
	page     map[string][]string
	db       *postgres
	dbWay    *way // between the control planes and the database
	xdsWay   *way // the load balancer
	controls [2]*host
	nodes    [2]*host
	small    bool // the second node's segments are on a separate small disk
}

// host is one machine of the page: its files, and its processes.
type host struct {
	name    string
	etc     string
	replace *strings.Replacer // from the page's names to those of this test
	status  string            // URL of /readyz and /metrics
	serves  string            // URL of the API, or of the gateway
	aid     *unit             // the control plane, or extproc
	envoy   *unit             // nil on control planes
}

var sections = regexp.MustCompile(`(?m)^## (\d)\. `)

// startApart follows the page up to step 5.
func startApart(t *testing.T) *apart {
	t.Helper()
	envoytest.Path(t) // it skips the test before anything is started
	storetest.Binaries(t)
	a := &apart{dir: e2e.Home(t), page: map[string][]string{}}
	text, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "production.md"))
	if err != nil {
		t.Fatal(err)
	}
	at := sections.FindAllStringSubmatchIndex(string(text), -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		for _, block := range fenced.FindAllStringSubmatch(string(text[m[0]:end]), -1) {
			section := string(text[m[2]:m[3]])
			if block[2] == "yaml" {
				section = "scrape"
			}
			a.page[section] = append(a.page[section], block[3])
		}
	}
	if err := os.Mkdir(a.etc(), 0o700); err != nil {
		t.Fatal(err)
	}
	a.db = startPostgres(t, a.dir, a.etc())
	a.dbWay = newWay(t, a.db.address)
	a.xdsWay = newWay(t)
	for i := range a.controls {
		a.controls[i] = a.host(t, fmt.Sprintf("control-%d", i+1))
		a.xdsWay.add(a.controls[i].replace.Replace("0.0.0.0:18000"), a.controls[i].ready)
	}
	for i := range a.nodes {
		a.nodes[i] = a.host(t, fmt.Sprintf("node-%d", i+1))
	}
	a.small = mounted(t, filepath.Join(filepath.Dir(a.nodes[1].etc), "lib"))

	a.types(t, "1", 0, 1)
	a.types(t, "2", 0)
	a.types(t, "3", 0)
	a.types(t, "4", 0)
	for _, h := range a.controls {
		a.copyFiles(t, string(text), h, "each control plane")
		h.aid = newUnit(t, h, "aid-control", "control.env")
		h.aid.start()
	}
	for _, h := range a.controls {
		h.waitReady(t)
	}
	a.types(t, "4", 1)
	a.types(t, "5", 0)
	for i, column := range []string{"node with a token", "node with a certificate"} {
		h := a.nodes[i]
		a.copyFiles(t, string(text), h, column)
		made, err := filepath.Glob(h.etc + "/*.env")
		if err != nil || len(made) != 1 {
			t.Fatalf("%s has %v as its variables", h.name, made)
		}
		if err := os.Rename(made[0], filepath.Join(h.etc, "extproc.env")); err != nil {
			t.Fatal(err)
		}
		relay(t, h)
		h.aid = newUnit(t, h, "aid-extproc", "extproc.env")
		h.envoy = newUnit(t, h, "aid-envoy", "")
		h.aid.start()
		h.envoy.start()
	}
	for _, h := range a.nodes {
		h.waitReady(t)
	}
	a.types(t, "5", 1, 2)
	return a
}

// etc is the page's /etc/aid on the machine where files are prepared.
func (a *apart) etc() string { return filepath.Join(a.dir, "etc") }

// host chooses folders and ports.
func (a *apart) host(t *testing.T, name string) *host {
	t.Helper()
	dir := filepath.Join(a.dir, name)
	h := &host{name: name, etc: filepath.Join(dir, "etc")}
	for _, d := range []string{dir, h.etc, filepath.Join(dir, "run"), filepath.Join(dir, "lib")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	port := func() string { return strconv.Itoa(envoytest.Port(t)) }
	status, serves := port(), port()
	h.status, h.serves = "http://127.0.0.1:"+status, "http://127.0.0.1:"+serves
	if strings.HasPrefix(name, "control") {
		h.serves = "https://127.0.0.1:" + serves
	}
	xds := "0.0.0.0:" + port()
	h.replace = strings.NewReplacer(
		a.etc(), h.etc, "/etc/aid", h.etc,
		// Two nodes of this machine need two ports: see relay.
		// One path on all nodes, which is another file for each of these.
		"--access-log /var/lib/aid/", "--access-log /proc/self/cwd/",
		"--xds unix:/run/aid/envoy-xds.sock", "--xds unix:"+filepath.Join(dir, "run", "relay.sock"),
		"/run/aid", filepath.Join(dir, "run"), "/var/lib/aid", filepath.Join(dir, "lib"),
		"/usr/local/bin/aid", e2e.Binary(t), "/usr/local/bin/envoy", envoytest.Path(t),
		"control.example.com:18000", a.xdsWay.address,
		// The providers of the tests are on this machine.
		" --listen-xds 0.0.0.0:18000", " --private-targets 127.0.0.0/8 --listen-xds "+xds, "0.0.0.0:18000", xds, "0.0.0.0:8081", "0.0.0.0:"+serves,
		"0.0.0.0:9091", "127.0.0.1:"+status, "0.0.0.0:9092", "127.0.0.1:"+status,
		"0.0.0.0:8080", "127.0.0.1:8080", "http://127.0.0.1:8080", h.serves,
	)
	return h
}

// types runs blocks from a section of the page, on the machine where files are prepared.
func (a *apart) types(t *testing.T, section string, blocks ...int) {
	t.Helper()
	for _, i := range blocks {
		if i >= len(a.page[section]) {
			t.Fatalf("section %s of production.md has %d blocks of commands", section, len(a.page[section]))
		}
		a.run(t, a.page[section][i])
	}
}

// run runs commands of the page.
func (a *apart) run(t *testing.T, commands string) string {
	t.Helper()
	commands = strings.NewReplacer(
		"DNS:control.example.com", "DNS:control.example.com,IP:127.0.0.1",
		"http://control-1.example.com:9091", a.controls[0].status, "http://control-2.example.com:9091", a.controls[1].status,
		"http://node-2.example.com:9092", a.nodes[1].status, "control.example.com:18000", a.xdsWay.address,
		"http://control.example.com:9091", a.controls[0].status, "https://control.example.com:8081", a.controls[0].serves,
		"http://node-1.example.com:9092", a.nodes[0].status, "http://node-1.example.com:8080", a.nodes[0].serves,
		"db.example.com", a.dbWay.address, "/etc/aid", a.etc(),
	).Replace(commands)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -e\ncurl() { command curl --silent --show-error --fail-with-body \"$@\"; }\n"+commands)
	cmd.Dir = a.etc()
	cmd.Env = environ(filepath.Dir(e2e.Binary(t)))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, commands, out)
	}
	return string(out)
}

// environ is the environment of a process, without the tests' own AID_ variables.
func environ(path string) []string {
	return []string{"PATH=" + path + ":" + os.Getenv("PATH"), "HOME=/nonexistent", "LANG=C"}
}

// copyFiles copies to a host the files in a column of the page's table.
func (a *apart) copyFiles(t *testing.T, page string, h *host, column string) {
	t.Helper()
	at := -1
	for line := range strings.Lines(page) {
		cells := strings.Split(line, "|")
		if at < 0 {
			for i, c := range cells {
				if strings.TrimSpace(c) == column {
					at = i
				}
			}
			continue
		}
		if len(cells) < 2 {
			return // the end of the table
		}
		if strings.TrimSpace(cells[at]) != "yes" {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			b, err := os.ReadFile(filepath.Join(a.etc(), m[1]))
			if err != nil {
				t.Fatal(err)
			}
			if filepath.Ext(m[1]) == ".env" {
				b = []byte(h.replace.Replace(string(b)))
			}
			if err := os.WriteFile(filepath.Join(h.etc, m[1]), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("production.md has no table with the column %q", column)
}

// ready returns nil if the host's process is ready.
func (h *host) ready() error {
	body, err := h.get("/readyz")
	if err != nil {
		return fmt.Errorf("%s: %w: %s", h.name, err, body)
	}
	return nil
}

// get sends a request to the host's own process, each time over a new connection.
func (h *host) get(path string) (string, error) {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(h.status + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(b)), err
}

func (h *host) waitReady(t *testing.T) {
	t.Helper()
	e2e.Eventually(t, 60*time.Second, h.ready)
}

// metric is the sum of the samples that begin with prefix.
func (h *host) metric(prefix string) (float64, error) {
	text, err := h.get("/metrics")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, prefix); ok && rest != "" && strings.ContainsRune("{ ,}", rune(rest[0])) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
	}
	return sum, nil
}

// unit is one process, which is restarted as its unit file specifies: Restart=always,
// RestartSec=1.
type unit struct {
	t    *testing.T
	name string
	pre  string
	conf process.Config
	log  *lines

	mu     sync.Mutex
	child  *process.Child
	cancel context.CancelFunc
	ended  chan struct{}
	hard   bool // it is killed without a signal to stop
}

// newUnit reads docs/systemd/NAME.service and the file of variables of the host.
func newUnit(t *testing.T, h *host, name, env string) *unit {
	t.Helper()
	u := &unit{t: t, name: h.name + " " + name, log: &lines{}}
	b, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "systemd", name+".service"))
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(h.replace.Replace(strings.ReplaceAll(string(b), "\\\n", " "))) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			settings[key] = value
		}
	}
	if settings["Restart"] != "always" || settings["RestartSec"] != "1" || settings["ExecStart"] == "" {
		t.Fatalf("%s is started as %v", name, settings)
	}
	variables := environ(filepath.Dir(e2e.Binary(t)))
	if env != "" {
		file := filepath.Join(h.etc, env)
		if settings["EnvironmentFile"] != file {
			t.Fatalf("%s reads its variables from %s, and the page makes %s", name, settings["EnvironmentFile"], file)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			variables = append(variables, strings.TrimSpace(line))
		}
	}
	u.pre = settings["ExecStartPre"]
	umask := ""
	if settings["UMask"] != "" {
		umask = "umask " + settings["UMask"] + "; "
	}
	start := umask
	if u.pre != "" {
		start += u.pre + "; "
	}
	u.conf = process.Config{
		Name: u.name, Path: "/bin/bash", Args: []string{"-ec", start + "exec " + settings["ExecStart"]}, Env: variables, Dir: filepath.Join(filepath.Dir(h.etc), "lib"),
		Each: func() []string { return []string{fmt.Sprint("INVOCATION_ID=", rand.Uint64())} }, // as systemd does
		Line: u.log.add, MinBackoff: time.Second, MaxBackoff: time.Second, StopTimeout: 40 * time.Second,
		Log: slog.New(slog.DiscardHandler),
		Stop: func(_ context.Context, p *os.Process) error {
			u.mu.Lock()
			defer u.mu.Unlock()
			if u.hard {
				return p.Kill()
			}
			return p.Signal(syscall.SIGTERM)
		},
	}
	t.Cleanup(func() {
		u.stop()
		if t.Failed() {
			t.Logf("%s said last:\n%s", u.name, u.log)
		}
	})
	return u
}

// start starts it, unless it is running.
func (u *unit) start() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.child != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	child, ended := process.New(u.conf), make(chan struct{})
	u.child, u.cancel, u.ended, u.hard = child, cancel, ended, false
	go func() {
		defer close(ended)
		if err := child.Run(ctx); err != nil {
			u.t.Error(err)
		}
	}()
}

// end stops it until it is started again: with SIGTERM, or with SIGKILL.
func (u *unit) end(hard bool) {
	u.mu.Lock()
	child, cancel, ended := u.child, u.cancel, u.ended
	u.child, u.hard = nil, hard
	u.mu.Unlock()
	if child == nil {
		return
	}
	cancel()
	<-ended
}

func (u *unit) stop() { u.end(false) }
func (u *unit) kill() { u.end(true) }

// signal sends a signal to the running process.
func (u *unit) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := syscall.Kill(u.child.PID(), s); err != nil {
		t.Fatal(err)
	}
}

// lines are the last lines of a log.
type lines struct {
	mu   sync.Mutex
	last []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last = append(l.last, line); len(l.last) > 60 {
		l.last = l.last[1:]
	}
}

func (l *lines) Write(b []byte) (int, error) {
	l.add(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "\n")
}

// postgres is a real server with TLS, on a separate address of this machine.
type postgres struct {
	dir, address string

	mu       sync.Mutex
	embedded *store.Embedded
	cancel   context.CancelFunc
	ended    chan error
	settings map[string]string
}

// startPostgres starts it. The file admin.pgpass has its administrator's password, and
// the file db-ca.crt has its CA certificate.
func startPostgres(t *testing.T, dir, etc string) *postgres {
	t.Helper()
	// No other test has this address: the port cannot be chosen.
	ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
	p := &postgres{dir: filepath.Join(dir, "pg"), address: ip + ":5432"}
	p.start(t)
	conn := storetest.Connect(t, p.embedded.URL())
	password := "admin-" + strconv.FormatUint(rand.Uint64(), 36)
	if _, err := conn.Exec(t.Context(), "ALTER ROLE postgres PASSWORD '"+password+"'"); err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	p.stop(t)

	// The server must own the certificate's key.
	cert, key := certificateFor(t, dir, "127.0.0.1")
	data := filepath.Join(p.dir, "data")
	owner, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	id := owner.Sys().(*syscall.Stat_t)
	for name, b := range map[string][]byte{"night.crt": cert, "night.key": key} {
		path := filepath.Join(data, name)
		if err := errors.Join(os.WriteFile(path, b, 0o600), os.Chown(path, int(id.Uid), int(id.Gid))); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range map[string][]byte{"db-ca.crt": cert, "admin.pgpass": []byte("*:*:*:postgres:" + password + "\n")} {
		if err := os.WriteFile(filepath.Join(etc, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hba := filepath.Join(dir, "pg_hba.conf") // the server may not be able to reach its data by path
	if err := os.WriteFile(hba, []byte("local all postgres peer map=aid\nhostssl all all 127.0.0.0/8 scram-sha-256\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.settings = map[string]string{
		"listen_addresses": ip, "ssl": "on", "ssl_cert_file": "night.crt", "ssl_key_file": "night.key", "hba_file": hba,
	}
	p.start(t)
	t.Cleanup(func() { p.stop(t) })
	return p
}

// start returns when it responds.
func (p *postgres) start(t *testing.T) {
	t.Helper()
	settings := map[string]string{"shared_buffers": "32MB"}
	for k, v := range p.settings {
		settings[k] = v
	}
	e, err := store.NewEmbedded(store.EmbeddedConfig{Dir: p.dir, Binaries: storetest.Binaries(t), Settings: settings, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	p.embedded, p.cancel, p.ended = e, cancel, ended
	wait, enough := context.WithTimeout(t.Context(), time.Minute)
	defer enough()
	if err := e.Ready(wait); err != nil {
		t.Fatal(err)
	}
}

func (p *postgres) stop(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel == nil {
		return
	}
	p.cancel()
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
	p.cancel = nil
}

// copyTo copies the stopped server's files, as a cold backup does.
func (p *postgres) copyTo(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", filepath.Join(p.dir, "data"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
}

// restore puts the files of copyTo in the place of the stopped server's.
func (p *postgres) restore(t *testing.T, dir string) {
	t.Helper()
	data := filepath.Join(p.dir, "data")
	if err := errors.Join(os.RemoveAll(data), os.Rename(dir, data)); err != nil {
		t.Fatal(err)
	}
}

// certificateFor makes a certificate for an address that is its own CA.
func certificateFor(t *testing.T, dir, ip string) (cert, key []byte) {
	t.Helper()
	c, k := filepath.Join(dir, "db.crt"), filepath.Join(dir, "db.key")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-subj", "/CN=db", "-addext", "subjectAltName=IP:"+ip, "-keyout", k, "-out", c).CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	cert, err1 := os.ReadFile(c)
	key, err2 := os.ReadFile(k)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// way is a TCP load balancer: it connects to a backend that is ready, or else to any that
// accepts. It can drop the bytes of its connections, like a firewall that lost their state.
type way struct {
	address string

	mu       sync.Mutex
	backends []backend
	turn     int
	conns    map[net.Conn]bool
	silent   chan struct{} // closed when bytes flow again; nil: they flow
}

type backend struct {
	address string
	ready   func() error // nil: always
}

func newWay(t *testing.T, to ...string) *way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{address: l.Addr().String(), conns: map[net.Conn]bool{}}
	for _, address := range to {
		w.add(address, nil)
	}
	t.Cleanup(func() {
		l.Close()
		w.cut()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(c)
		}
	}()
	return w
}

func (w *way) add(address string, ready func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.backends = append(w.backends, backend{address, ready})
}

// serve connects one connection.
func (w *way) serve(c net.Conn) {
	defer c.Close()
	w.mu.Lock()
	w.turn++
	var order []backend
	for i := range w.backends {
		order = append(order, w.backends[(w.turn+i)%len(w.backends)])
	}
	w.mu.Unlock()
	var to net.Conn
	for _, strict := range []bool{true, false} {
		for _, b := range order {
			if to != nil || strict && b.ready != nil && b.ready() != nil {
				continue
			}
			to, _ = net.DialTimeout("tcp", b.address, 2*time.Second)
		}
	}
	if to == nil {
		return
	}
	defer to.Close()
	w.mu.Lock()
	w.conns[c], w.conns[to] = true, true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, c)
		delete(w.conns, to)
	}()
	var both sync.WaitGroup
	both.Go(func() { w.copy(to, c) })
	both.Go(func() { w.copy(c, to) })
	both.Wait()
}

// copy copies one direction, and then ends both.
func (w *way) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		w.mu.Lock()
		silent := w.silent
		w.mu.Unlock()
		if silent != nil {
			<-silent // dropped bytes do not come later
			return
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// silence drops all bytes until the returned func is called. Connections stay open.
func (w *way) silence() (again func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	silent := make(chan struct{})
	w.silent = silent
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.silent = nil
		close(silent)
	})
}

// cut ends all connections.
func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.Close()
	}
}

// relay is between Envoy and its sidecar's configuration and changes only the port of the
// listener. Control planes send the same port to each node's Envoy, and these two nodes are
// on one machine.
func relay(t *testing.T, h *host) {
	t.Helper()
	run := filepath.Join(filepath.Dir(h.etc), "run")
	l, err := net.Listen("unix", filepath.Join(run, "relay.sock"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(run, "envoy-xds.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(h.serves, "http://"), ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &relayed{to: discoveryv3.NewAggregatedDiscoveryServiceClient(conn), port: uint32(n)})
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-served
		conn.Close()
	})
}

type relayed struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	to   discoveryv3.AggregatedDiscoveryServiceClient
	port uint32
}

func (r *relayed) DeltaAggregatedResources(in discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	out, err := r.to.DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	go func() {
		for {
			m, err := in.Recv()
			if err != nil {
				cancel()
				return
			}
			if out.Send(m) != nil {
				return
			}
		}
	}()
	for {
		m, err := out.Recv()
		if err != nil {
			return err
		}
		if m.GetTypeUrl() == resourcev3.ListenerType {
			for _, res := range m.GetResources() {
				var l listenerv3.Listener
				if err := res.GetResource().UnmarshalTo(&l); err != nil {
					return err
				}
				l.GetAddress().GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: r.port}
				if err := res.GetResource().MarshalFrom(&l); err != nil {
					return err
				}
			}
		}
		if err := in.Send(m); err != nil {
			return err
		}
	}
}

// api is a client of the control planes' API, which trusts the page's CA.
func (a *apart) api(t *testing.T) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(a.etc(), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bytes.TrimSpace(pem)) {
		t.Fatal("no CA")
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
}

// systemd accepts the unit files without a warning, where it is installed.
func TestUnitFiles(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip(err) // TestProduction starts the commands of the unit files in any case
	}
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"aid-control", "aid-extproc", "aid-envoy"} {
		b, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "systemd", name+".service"))
		if err != nil {
			t.Fatal(err)
		}
		// It verifies that the programs exist.
		text := strings.NewReplacer("/usr/local/bin/aid", "/bin/true", "/usr/local/bin/envoy", "/bin/true").Replace(string(b))
		files = append(files, filepath.Join(dir, name+".service"))
		if err := os.WriteFile(files[len(files)-1], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%v %s", err, out)
	}
}

// TestProduction follows all of docs/production.md.
func TestProduction(t *testing.T) {
	a := startApart(t)
	t.Run("metrics", func(t *testing.T) { a.scraped(t) })
	t.Run("an alert", func(t *testing.T) { a.fires(t) })
	a.types(t, "6", 0)
	// Step 7, in its order: nodes continue while each control plane is stopped.
	a.types(t, "7", 0)
	for _, h := range a.controls {
		h.aid.stop()
		for _, n := range a.nodes {
			if err := n.ready(); err != nil {
				t.Error(err)
			}
		}
		h.aid.start()
		h.waitReady(t)
	}
	for _, h := range a.nodes {
		h.envoy.stop()
		h.aid.stop()
		h.aid.start()
		h.envoy.start()
		h.waitReady(t)
	}
}
