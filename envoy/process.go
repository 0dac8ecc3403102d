package envoy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ai-identity/ai-identity/process"
)

// FlushInterval is how long lines of the access log stay in Envoy's memory. An Envoy that is
// killed loses them.
const FlushInterval = time.Second

// MinVersion is the oldest Envoy that fails closed: before 1.39.0 a missing
// ext_proc client failed open, and 1.39.1 fixes a use after free in ext_proc.
const MinVersion = "1.39.1"

// ProcessConfig describes one running Envoy.
type ProcessConfig struct {
	Path      string // the program
	Bootstrap string // the file that Bootstrap's bytes were written to
	Admin     string // Unix socket of the admin interface, as in the bootstrap
	// Concurrency is the number of worker threads; 0: one for each CPU.
	Concurrency int
	// LogLevel is Envoy's log level ("warning", "info", "debug", …); empty: "warning".
	LogLevel string
	// DrainTimeout is the time that live exchanges have when Run stops. 0: 10 s.
	DrainTimeout time.Duration
	Log          *slog.Logger
}

// Process is a supervised Envoy.
type Process struct {
	c     ProcessConfig
	child *process.Child
}

// NewProcess returns an Envoy that Run will start.
func NewProcess(c ProcessConfig) *Process {
	if c.LogLevel == "" {
		c.LogLevel = "warning"
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 10 * time.Second
	}
	p := &Process{c: c}
	args := []string{
		"--config-path", c.Bootstrap,
		"--log-level", c.LogLevel,
		"--log-format", "%l\t%n\t%v",
		// Without shared memory several Envoys on a machine do not conflict.
		"--disable-hot-restart",
		"--drain-time-s", "1", "--drain-strategy", "immediate",
		"--file-flush-interval-msec", strconv.Itoa(int(FlushInterval.Milliseconds())),
	}
	if c.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(c.Concurrency))
	}
	p.child = process.New(process.Config{
		Name: "envoy", Path: c.Path, Args: args,
		Env:         environment(),
		Each:        func() []string { return []string{ProcessVariable + "=" + strings.ToLower(rand.Text())} },
		Line:        p.line,
		Stop:        p.stop,
		StopTimeout: c.DrainTimeout + 5*time.Second,
		Log:         c.Log,
	})
	return p
}

// Run keeps Envoy running until ctx is done, then drains and ends it.
func (p *Process) Run(ctx context.Context) error {
	return p.child.Run(ctx)
}

// PID is the process id of the running Envoy, 0 while none runs.
func (p *Process) PID() int { return p.child.PID() }

// Restarts counts how often Envoy ended before it was stopped.
func (p *Process) Restarts() int64 { return p.child.Restarts() }

// Tail is the last lines that Envoy printed.
func (p *Process) Tail() []string { return p.child.Tail() }

// line writes a line of Envoy's log with the matching log level.
func (p *Process) line(line string) {
	level, at := slog.LevelInfo, strings.SplitN(line, "\t", 3)
	if len(at) < 3 {
		p.c.Log.Warn(line, "process", "envoy")
		return
	}
	switch at[0] {
	case "trace", "debug":
		level = slog.LevelDebug
	case "warning":
		level = slog.LevelWarn
	case "error", "critical", "off":
		level = slog.LevelError
	}
	p.c.Log.Log(context.Background(), level, at[2], "process", "envoy", "logger", at[1])
}

// stop closes the listeners, lets live exchanges end, and then ends Envoy. After it no
// request can arrive, so the servers behind Envoy may stop.
func (p *Process) stop(ctx context.Context, proc *os.Process) error {
	drain, cancel := context.WithTimeout(ctx, p.c.DrainTimeout)
	defer cancel()
	admin := Admin(p.c.Admin)
	for _, path := range []string{"/healthcheck/fail", "/drain_listeners"} {
		if _, err := admin.Post(drain, path); err != nil {
			p.c.Log.Warn("draining Envoy", "path", path, "err", err)
			return proc.Signal(syscall.SIGTERM) // it does not respond: do not wait for it
		}
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := admin.ActiveRequests(drain); err != nil || n == 0 {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-drain.Done():
		}
		break
	}
	return proc.Signal(syscall.SIGTERM)
}

// AdminClient is a client of Envoy's admin interface.
type AdminClient struct{ http *http.Client }

// Admin returns a client of the admin interface on a Unix socket.
func Admin(socket string) AdminClient {
	return AdminClient{&http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true, // requests are rare, and Envoy counts idle connections
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// Get returns a page of the admin interface.
func (a AdminClient) Get(ctx context.Context, path string) ([]byte, error) {
	return a.do(ctx, http.MethodGet, path)
}

// Post sends a command to the admin interface.
func (a AdminClient) Post(ctx context.Context, path string) ([]byte, error) {
	return a.do(ctx, http.MethodPost, path)
}

func (a AdminClient) do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking Envoy: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("reading %s from Envoy: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("Envoy responded to %s with %s", path, resp.Status)
	}
	return body, nil
}

// Live returns nil if Envoy has loaded its configuration and serves ("LIVE").
func (a AdminClient) Live(ctx context.Context) error {
	_, err := a.Get(ctx, "/ready")
	return err
}

// ActiveRequests counts the exchanges in flight on all listeners except admin's.
func (a AdminClient) ActiveRequests(ctx context.Context) (n int64, err error) {
	body, err := a.Get(ctx, "/stats?filter=^http\\..*\\.downstream_rq_active$")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(name, "http.admin.") {
			continue
		}
		v, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading Envoy's counter %s: %w", name, err)
		}
		n += v
	}
	return n, nil
}

// Counters are Envoy's own counts since its start.
type Counters struct {
	Uptime   int64 // seconds
	Requests int64 // on all listeners except admin's
	Active   int64 // of these: those that have not ended
	Upstream int64 // sent to providers, without retries
}

// Counters reads Envoy's counters of requests.
func (a AdminClient) Counters(ctx context.Context) (c Counters, err error) {
	body, err := a.Get(ctx, "/stats?filter="+url.QueryEscape(`^(server\.uptime|http\.(gateway|egress|proxy)\.downstream_rq_(total|active)|cluster\.provider-.*\.upstream_rq_(total|retry))$`))
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(string(body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		v, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return c, fmt.Errorf("reading Envoy's counter %s: %w", name, err)
		}
		switch {
		case name == "server.uptime":
			c.Uptime = v
		case strings.HasSuffix(name, ".downstream_rq_total"):
			c.Requests += v
		case strings.HasSuffix(name, ".downstream_rq_active"):
			c.Active += v
		case strings.HasSuffix(name, ".upstream_rq_total"):
			c.Upstream += v
		case strings.HasSuffix(name, ".upstream_rq_retry"):
			c.Upstream -= v
		}
	}
	return c, nil
}

// environment is the part of our environment that Envoy gets, without any variable that
// could be a secret.
func environment() (env []string) {
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "TZ", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Find returns the Envoy to use: asked, if it is not empty. Else it is the one that `make`
// installed for a program in programDir or the working directory, or the one on PATH.
func Find(asked, programDir string) (string, error) {
	if asked != "" {
		path, err := exec.LookPath(asked)
		if err != nil {
			return "", fmt.Errorf("no Envoy at %s: %w", asked, err)
		}
		return filepath.Abs(path)
	}
	for _, dir := range []string{".", programDir, filepath.Join(programDir, "..")} {
		path := filepath.Join(dir, ".tools", "bin", "envoy")
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		return "", errors.New("no Envoy found: not in .tools (run `make setup`), not on PATH")
	}
	return filepath.Abs(path)
}

var versionPattern = regexp.MustCompile(`version: [0-9a-f]+/(\d+\.\d+\.\d+)`)

// Version runs the program at path and returns its version, such as "1.40.0".
func Version(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = environment()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s does not print an Envoy version: %q", path, strings.TrimSpace(string(out)))
	}
	return string(m[1]), nil
}

// CheckVersion rejects an Envoy that does not fail closed.
func CheckVersion(version string) error {
	have, want := numbers(version), numbers(MinVersion)
	for i := range want {
		if have[i] != want[i] {
			if have[i] < want[i] {
				return fmt.Errorf("Envoy %s is too old: %s is the oldest that fails closed", version, MinVersion)
			}
			return nil
		}
	}
	return nil
}

func numbers(version string) (n [3]int) {
	for i, s := range strings.SplitN(version, ".", 3) {
		n[i], _ = strconv.Atoi(s)
	}
	return n
}
