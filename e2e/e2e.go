// Package e2e tests the whole product as its users run it. It builds the program and runs
// `aid up` with a real Envoy and a real Postgres. It checks what a client, a provider and
// an auditor would see.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/provider"
)

// Root is the repository's folder.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(file))
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "aid-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "aid")
	args := []string{"build", "-o", path}
	if os.Getenv("AID_RACE") != "" {
		args = append(args, "-race") // much slower; what it finds is in Stderr, and end fails
	}
	cmd := exec.Command("go", append(args, "./cmd/aid")...)
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building aid: %w\n%s", err, out)
	}
	return path, nil
})

// Binary is `aid`, built once for all tests of a run.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Config configures a run of `aid up`.
type Config struct {
	Home      string   // empty: a new one
	Providers string   // the text of a providers file; empty: none
	Args      []string // further flags of `aid up`
	Env       []string // further variables
}

// Up is a running `aid up` that has printed "ready".
type Up struct {
	Home, Gateway, API, Metrics string
	Egress, Proxy               string // of intercepted connections
	OrgKey                      string

	cmd    *exec.Cmd
	stderr *buffer
	ended  chan struct{}
	err    error // the reason of the end; read it after ended
}

// Start runs `aid up` until the test ends, and returns when it is ready.
func Start(t testing.TB, c Config) *Up {
	t.Helper()
	u, err := TryStart(t, c)
	if err != nil {
		t.Fatalf("%v\n%s", err, u.Stderr())
	}
	return u
}

// TryStart is Start for tests that expect an error.
func TryStart(t testing.TB, c Config) (*Up, error) {
	t.Helper()
	if c.Home == "" {
		c.Home = Home(t)
	}
	u, err := run(Binary(t), envoytest.Path(t), c)
	if u == nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.end(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("aid up said:\n%s", u.Stderr())
		}
	})
	return u, err
}

// shared is the one `aid up` of tests that do not disturb each other.
var shared struct {
	sync.Mutex
	up  *Up
	err error
}

// MaxBody is the limit of request bodies of Shared, in bytes.
const MaxBody = 10 << 20

// Shared is an `aid up` for several tests, which only add their own agents, keys and
// providers. Main stops it.
func Shared(t testing.TB) *Up {
	t.Helper()
	bin, envoy := Binary(t), envoytest.Path(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.up == nil && shared.err == nil {
		home, err := os.MkdirTemp("/tmp", "aid")
		if err == nil {
			err = os.Chmod(home, 0o711)
		}
		if err != nil {
			t.Fatal(err)
		}
		shared.up, shared.err = run(bin, envoy, Config{Home: home, Args: []string{"--max-body", strconv.Itoa(MaxBody)}})
	}
	if shared.err != nil {
		t.Fatalf("%v\n%s", shared.err, shared.up.Stderr())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the shared aid up printed so far:\n%s", shared.up.Stderr())
		}
	})
	return shared.up
}

// Main runs the tests and stops what they shared. TestMain calls it.
func Main(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.up != nil {
		// No test interrupts the shared control plane, so Envoy's stream to it lasts for minutes.
		if said := shared.up.Stderr(); strings.Contains(said, "config stream to aid_xds closed") {
			fmt.Fprintf(os.Stderr, "Envoy lost its configuration stream:\n%s", said)
			code = 1
		}
		if err := shared.up.end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.RemoveAll(shared.up.Home)
	}
	if path, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	return code
}

// run starts `aid up` and returns when it is ready or has ended. The Up is nil only if it
// could not be started.
func run(bin, envoy string, c Config) (*Up, error) {
	args := []string{"up", "--home", c.Home, "--envoy", envoy}
	for _, flag := range []string{"--gateway", "--api", "--metrics", "--egress", "--proxy"} {
		if !contains(c.Args, flag) {
			args = append(args, flag, "127.0.0.1:0")
		}
	}
	if c.Providers != "" {
		file := filepath.Join(c.Home, "providers.yaml")
		if err := os.WriteFile(file, []byte(c.Providers), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--providers", file)
	}
	u := &Up{Home: c.Home, stderr: &buffer{}, ended: make(chan struct{})}
	u.cmd = exec.Command(bin, append(args, c.Args...)...)
	u.cmd.Env = append(os.Environ(), c.Env...)
	u.cmd.Stderr = u.stderr
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := u.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			if s.Text() == "ready" {
				close(ready)
			}
		}
	}()
	go func() {
		<-read // before Wait, which closes the pipe
		u.err = u.cmd.Wait()
		close(u.ended)
	}()
	select {
	case <-ready:
	case <-u.ended:
		return u, fmt.Errorf("aid up ended: %v", u.err)
	case <-time.After(120 * time.Second):
		return u, fmt.Errorf("aid up is not ready after 120 s")
	}
	var e struct{ Gateway, API, Metrics, Egress, Proxy string }
	b, err := os.ReadFile(filepath.Join(c.Home, "endpoints.json"))
	if err != nil {
		return u, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return u, err
	}
	u.Gateway, u.API, u.Metrics, u.Egress, u.Proxy = e.Gateway, e.API, e.Metrics, e.Egress, e.Proxy
	key, err := os.ReadFile(filepath.Join(c.Home, "org.key"))
	if err != nil {
		return u, err
	}
	u.OrgKey = strings.TrimSpace(string(key))
	return u, nil
}

// end stops it if it is still running.
func (u *Up) end() error {
	u.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-u.ended:
	case <-time.After(60 * time.Second):
		u.cmd.Process.Kill()
		<-u.ended
		return fmt.Errorf("aid up did not stop in 60 s")
	}
	if said := u.Stderr(); strings.Contains(said, "WARNING: DATA RACE") || strings.Contains(said, "panicked") {
		return fmt.Errorf("a data race or a panic:\n%s", said)
	}
	return nil
}

// Home is a folder for one `aid up`. Another account can reach it, which the embedded
// Postgres needs when the tests run as root.
func Home(t testing.TB) string {
	t.Helper()
	dir := envoytest.SocketDir(t)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// PID is the supervisor's process id.
func (u *Up) PID() int { return u.cmd.Process.Pid }

// Stderr is its output there so far.
func (u *Up) Stderr() string { return u.stderr.String() }

// Stop stops it as Ctrl-C does, and returns its error and how long it took.
func (u *Up) Stop() (time.Duration, error) {
	began := time.Now()
	u.cmd.Process.Signal(syscall.SIGINT)
	<-u.ended
	return time.Since(began), u.err
}

// Kill kills it with SIGKILL.
func (u *Up) Kill() {
	u.cmd.Process.Kill()
	<-u.ended
}

// Children are the processes below the supervisor, by the beginnings of their command
// lines: "envoy", "aid control", "aid extproc", "postgres".
func (u *Up) Children(t testing.TB) map[int]string {
	t.Helper()
	parent, name := map[int]int{}, map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		stat, _ := os.ReadFile(d + "/stat")
		_, after, ok := strings.Cut(string(stat), ") ")
		if f := strings.Fields(after); ok && len(f) > 1 && f[0] != "Z" {
			parent[pid], _ = strconv.Atoi(f[1])
		}
		line, _ := os.ReadFile(d + "/cmdline")
		argv := strings.Split(string(line), "\x00")
		name[pid] = filepath.Base(argv[0])
		if name[pid] == "aid" && len(argv) > 1 {
			name[pid] += " " + argv[1]
		}
	}
	out := map[int]string{}
	for pid := range parent {
		for at := parent[pid]; at > 1; at = parent[at] {
			if at == u.PID() {
				out[pid] = name[pid]
			}
		}
	}
	return out
}

// Alive reports whether a process that is not our child is running.
func Alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// Manage calls the management API with the org key. The test fails unless the status is
// want. out may be nil.
func (u *Up) Manage(t testing.TB, method, path, body string, want int, out any) {
	t.Helper()
	resp := u.Do(t, u.API, method, path, u.OrgKey, body)
	if resp.Status != want {
		t.Fatalf("%s %s: %d, want %d: %s", method, path, resp.Status, want, resp.Body)
	}
	if out != nil {
		if err := json.Unmarshal(resp.Body, out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, resp.Body)
		}
	}
}

// Agent creates an agent from a JSON body and returns its id.
func (u *Up) Agent(t testing.TB, body string) string {
	t.Helper()
	var a struct{ ID string }
	u.Manage(t, http.MethodPost, "/v1/agents", body, http.StatusCreated, &a)
	return a.ID
}

// Key creates a key of an agent and returns its id and its secret.
func (u *Up) Key(t testing.TB, agent, body string) (id, secret string) {
	t.Helper()
	var k struct{ ID, Key string }
	u.Manage(t, http.MethodPost, "/v1/agents/"+agent+"/keys", body, http.StatusCreated, &k)
	return k.ID, k.Key
}

// Revoke revokes a key of an agent.
func (u *Up) Revoke(t testing.TB, agent, key string) {
	t.Helper()
	u.Manage(t, http.MethodDelete, "/v1/agents/"+agent+"/keys/"+key, "", http.StatusNoContent, nil)
}

// Provider adds an LLM provider from a JSON body, gives it its credential, and
// returns its id. It waits until Envoy has an address of the provider's cluster:
// until then Envoy replies provider_not_configured, which clients retry.
func (u *Up) Provider(t testing.TB, body, credential string) string {
	t.Helper()
	var p struct {
		ID      string
		BaseURL string `json:"base_url"`
	}
	u.Manage(t, http.MethodPost, "/v1/providers", body, http.StatusCreated, &p)
	u.Manage(t, http.MethodPut, "/v1/providers/"+p.ID+"/credential", fmt.Sprintf(`{"secret":%q}`, credential), http.StatusOK, nil)
	var me struct {
		OrgID string `json:"org_id"`
	}
	u.Manage(t, http.MethodGet, "/v1/me", "", http.StatusOK, &me)
	cluster := provider.ClusterName(provider.Provider{OrgID: me.OrgID, ID: p.ID, BaseURL: p.BaseURL})
	Eventually(t, 30*time.Second, func() error {
		text := u.Do(t, u.Metrics, http.MethodGet, "/metrics", "", "").Body
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "envoy_cluster_membership_total{") && strings.Contains(line, cluster) && !strings.HasSuffix(line, " 0\n") {
				return nil
			}
		}
		return fmt.Errorf("Envoy has no address of provider %s", p.ID)
	})
	return p.ID
}

// Metric is the sum of the samples whose lines begin with prefix: a metric's name, with or
// without labels.
func (u *Up) Metric(t testing.TB, prefix string) float64 {
	t.Helper()
	r := u.Do(t, u.Metrics, http.MethodGet, "/metrics", "", "")
	sum := 0.0
	for line := range strings.Lines(string(r.Body)) {
		if rest, ok := strings.CutPrefix(line, prefix); ok && rest != "" && strings.ContainsRune("{ ,", rune(rest[0])) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64)
			if err != nil {
				t.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// Child is the process id of the one child of that name; see Children.
func (u *Up) Child(t testing.TB, name string) int {
	t.Helper()
	for pid, n := range u.Children(t) {
		if n == name {
			return pid
		}
	}
	return 0
}

// Ready waits until a request through Envoy gets a decision again.
func (u *Up) Ready(t testing.TB) {
	t.Helper()
	Eventually(t, 60*time.Second, func() error {
		resp, err := http.Get(u.Metrics + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("not ready: %s", b)
		}
		return nil
	})
}

// Chat sends one chat completion through the gateway.
func (u *Up) Chat(t testing.TB, key, body string) Response {
	t.Helper()
	return u.Do(t, u.Gateway, http.MethodPost, "/v1/chat/completions", key, body)
}

// Response is a response, read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends a request with a bearer credential.
func (u *Up) Do(t testing.TB, base, method, path, bearer, body string) Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return Response{resp.StatusCode, resp.Header, b}
}

// Eventually repeats a check until it returns nil, for at most d.
func Eventually(t testing.TB, d time.Duration, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %v", d, err)
		}
		<-tick.C
	}
}

// Provider is an LLM provider that records every byte it receives.
type Provider struct {
	URL string // with /v1

	mu       sync.Mutex
	bytes    bytes.Buffer
	conns    []*bytes.Buffer // the same, for each connection
	requests []Received
}

// Received is one request as the provider received it.
type Received struct {
	Method, Path string
	Header       http.Header
	Body         []byte
}

// Record starts a provider. A nil handler responds with a small chat completion.
func Record(t testing.TB, h http.Handler) *Provider {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if h == nil {
		h = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, chatAnswer)
		})
	}
	p := &Provider{URL: "http://" + l.Addr().String() + "/v1"}
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		p.mu.Lock()
		p.requests = append(p.requests, Received{r.Method, r.URL.RequestURI(), r.Header.Clone(), body})
		p.mu.Unlock()
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	})}
	go s.Serve(recording{l, p})
	t.Cleanup(func() { s.Close() })
	return p
}

// Streaming responds to a request with "stream":true with events, one for each interval. It
// ends after n events or when enough is closed; n of 0 means no limit. For other requests
// it is like Record.
func Streaming(n int, interval time.Duration, enough <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, chatAnswer)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		event := func(data string) error {
			fmt.Fprintf(w, "data: %s\n\n", data)
			return http.NewResponseController(w).Flush()
		}
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for i := 0; n == 0 || i < n; i++ {
			if event(`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"delta":{"content":"Hello "},"finish_reason":null}]}`) != nil {
				return
			}
			select {
			case <-tick.C:
				continue
			case <-enough:
			case <-r.Context().Done():
				return
			}
			break
		}
		_ = event(`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-2024-08-06","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":9,"total_tokens":20}}`)
		_ = event("[DONE]")
	})
}

const chatAnswer = `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":9,"total_tokens":20}}`

// Requests are the requests that arrived completely or in part.
func (p *Provider) Requests() []Received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Received(nil), p.requests...)
}

// Bytes are all bytes of all connections.
func (p *Provider) Bytes() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.bytes.Bytes())
}

// Connections are the bytes of each connection.
func (p *Provider) Connections() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out [][]byte
	for _, c := range p.conns {
		out = append(out, bytes.Clone(c.Bytes()))
	}
	return out
}

// Body is the body of POST /v1/providers that adds this provider.
func (p *Provider) Body(name string, models ...string) string {
	quoted, _ := json.Marshal(models)
	return fmt.Sprintf(`{"name":%q,"kind":"openai","base_url":%q,"models":%s}`, name, p.URL, quoted)
}

// File is a providers file with this provider under the name, for the models.
func (p *Provider) File(name, credential string, models ...string) string {
	quoted, _ := json.Marshal(models)
	return fmt.Sprintf("providers:\n- name: %s\n  kind: openai\n  base_url: %s\n  models: %s\n  credential: {secret: %s}\n", name, p.URL, quoted, credential)
}

type recording struct {
	net.Listener
	p *Provider
}

func (r recording) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	own := &bytes.Buffer{}
	r.p.mu.Lock()
	r.p.conns = append(r.p.conns, own)
	r.p.mu.Unlock()
	return recordingConn{c, r.p, own}, err
}

type recordingConn struct {
	net.Conn
	p   *Provider
	own *bytes.Buffer
}

// NetConn returns the connection, for handlers that reset it.
func (c recordingConn) NetConn() net.Conn { return c.Conn }

func (c recordingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.p.mu.Lock()
	c.p.bytes.Write(b[:n])
	c.own.Write(b[:n])
	c.p.mu.Unlock()
	return n, err
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func contains(args []string, flag string) bool {
	for _, a := range args {
		if a == flag || strings.HasPrefix(a, flag+"=") {
			return true
		}
	}
	return false
}
