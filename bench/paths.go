package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// environment is what all paths share.
type environment struct {
	aid, envoy, valkey string // programs
	dir                string
	upstream           string // the test provider's address
}

// path is one running way to the provider.
type path struct {
	name string
	addr string   // where to send requests
	keys []string // what to send as the credential; connections take turns
	dir  string   // the folder of its logs
	api  string   // URL of the management API, and the key for it
	auth string
	cmds []*exec.Cmd
	// ready is the time until `aid up` was ready; 0 for the other paths.
	ready time.Duration
	// procs has the processes whose CPU time is the path's cost, by role.
	procs func() map[string][]int
}

// stop ends the path's processes in the reverse order of their start.
func (p *path) stop() {
	for i := len(p.cmds) - 1; i >= 0; i-- {
		_ = p.cmds[i].Process.Signal(syscall.SIGTERM)
		_ = p.cmds[i].Wait()
	}
}

// envoyConfig is Envoy's configuration for plain and no-op: the same listener and limits, and
// the ext_proc filter only if Socket is set.
var envoyConfig = template.Must(template.New("envoy").Parse(`
admin: {address: {pipe: {path: "{{.Dir}}/admin.sock"}}}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: {{.Port}}}}
    per_connection_buffer_limit_bytes: 16777216
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          stream_idle_timeout: 300s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: "/"}, route: {cluster: provider, timeout: 0s}}]
          http_filters:
{{- if .Socket}}
          - name: envoy.filters.http.ext_proc
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {envoy_grpc: {cluster_name: noop}}
              message_timeout: 10s
              processing_mode: {request_header_mode: SEND, request_body_mode: BUFFERED, response_header_mode: SEND, response_body_mode: {{.ResponseBody}}, request_trailer_mode: SKIP, response_trailer_mode: SKIP}
{{- end}}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: provider
    per_connection_buffer_limit_bytes: 16777216
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment: {cluster_name: provider, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Upstream}}}}}}]}]}
{{- if .Socket}}
  - name: noop
    per_connection_buffer_limit_bytes: 16777216
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment: {cluster_name: noop, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "{{.Socket}}"}}}}]}]}
{{- end}}
`))

// startEnvoy runs Envoy alone, or with the no-op server if responseBody has an ext_proc mode for
// the response's body.
func (e environment) startEnvoy(ctx context.Context, name, responseBody string) (*path, error) {
	dir := filepath.Join(e.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	p := &path{name: name, addr: "127.0.0.1:" + strconv.Itoa(port), keys: []string{"sk-bench"}, dir: dir}
	socket := ""
	if responseBody != "" {
		socket = filepath.Join(dir, "noop.sock")
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if err := p.start(ctx, dir, "noop", self, "-noop", socket); err != nil {
			return nil, err
		}
	}
	var config bytes.Buffer
	if err := envoyConfig.Execute(&config, map[string]any{"Dir": dir, "Port": port, "Upstream": upstreamPort(e.upstream), "Socket": socket, "ResponseBody": responseBody}); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, config.Bytes(), 0o600); err != nil {
		return nil, err
	}
	// The same number of workers as `aid up` gives its Envoy: one for each core.
	if err := p.start(ctx, dir, "envoy", e.envoy, "-c", file, "--log-level", "warn", "--disable-hot-restart"); err != nil {
		return nil, err
	}
	p.procs = func() map[string][]int {
		m := map[string][]int{}
		for _, c := range p.cmds {
			role := "ext_proc"
			if c.Path == e.envoy {
				role = "envoy"
			}
			m[role] = append(m[role], c.Process.Pid)
		}
		return m
	}
	return p, p.answers(ctx)
}

func (p *path) start(ctx context.Context, dir, name, bin string, args ...string) error {
	out, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmds = append(p.cmds, cmd)
	return nil
}

// lastWords returns the ends of the logs of the path's programs.
func (p *path) lastWords() string {
	var out strings.Builder
	logs, _ := filepath.Glob(filepath.Join(p.dir, "*.log")) // only an invalid pattern is an error
	for _, file := range logs {
		b, _ := os.ReadFile(file)
		fmt.Fprintf(&out, "%s:\n%s\n", filepath.Base(file), b[max(0, len(b)-2000):])
	}
	return out.String()
}

// answers waits until a chat completion on the path returns 200.
func (p *path) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	l := load{addr: p.addr, requests: p.chats(modelPassed, 1<<10, false), conns: 1, duration: time.Nanosecond}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := l.run(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to answer: %w\n%s", p.name, err, p.lastWords())
		case <-tick.C:
		}
	}
}

// startProvider runs the test provider in a process of its own.
func startProvider(ctx context.Context, dir string, events int) (*path, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &path{name: "provider", dir: dir, addr: "127.0.0.1:" + strconv.Itoa(port)}
	if err := p.start(ctx, dir, "provider", self, "-provider", strconv.Itoa(port), "-events", strconv.Itoa(events)); err != nil {
		return nil, err
	}
	p.procs = func() map[string][]int { return map[string][]int{"provider": {p.cmds[0].Process.Pid}} }
	if err := dials(ctx, p.addr); err != nil {
		p.stop()
		return nil, fmt.Errorf("%w\n%s", err, p.lastWords())
	}
	return p, nil
}

// startAID runs the product as its users do and makes an agent and a key.
func (e environment) startAID(ctx context.Context, name, usage string, pprof bool, more ...string) (*path, error) {
	home := filepath.Join(e.dir, name)
	if err := os.Mkdir(home, 0o755); err != nil {
		return nil, err
	}
	providers := filepath.Join(home, "providers.yaml")
	file := fmt.Appendf(nil,
		"providers:\n- {name: bench, kind: openai, base_url: 'http://%s/v1', models: ['bench-*'], credential: {secret: sk-provider-bench-secret}}\n", e.upstream)
	if usage == "stream" { // if Envoy reads usage, this is not possible for this org's chat completions
		file = fmt.Appendf(file,
			"- {name: translated, kind: anthropic, base_url: 'http://%s', models: ['%s'], credential: {secret: sk-provider-bench-secret}}\n", e.upstream, modelTranslated)
	}
	err := os.WriteFile(providers, file, 0o600)
	if err != nil {
		return nil, err
	}
	args := []string{"up", "--home", home, "--providers", providers, "--envoy", e.envoy, "--usage", usage, "--pprof=" + strconv.FormatBool(pprof)}
	args = append(args, more...)
	for _, f := range []string{"--gateway", "--api", "--metrics"} {
		port, err := freePort(ctx)
		if err != nil {
			return nil, err
		}
		args = append(args, f, "127.0.0.1:"+strconv.Itoa(port))
	}
	p := &path{name: name, dir: home}
	if err := p.start(ctx, home, "aid", e.aid, args...); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := p.waitReady(ctx, home); err != nil {
		p.stop()
		return nil, err
	}
	p.ready = time.Since(began)
	if err := p.settle(ctx, home); err != nil {
		p.stop()
		return nil, err
	}
	root := p.cmds[0].Process.Pid
	p.procs = func() map[string][]int { return family(root) }
	return p, p.answers(ctx)
}

// profile writes a CPU profile of the product's extproc over d.
func (p *path) profile(ctx context.Context, file string, d time.Duration) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.dir, "run", "extproc-status.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://extproc/debug/pprof/profile?seconds=%d", max(1, int(d.Seconds()))), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}

// waitReady waits until `aid up` prints "ready".
func (p *path) waitReady(ctx context.Context, home string) error {
	ctx, cancel := context.WithTimeout(ctx, 120*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for log := filepath.Join(home, "aid.log"); ; {
		out, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		if strings.HasSuffix("\n"+string(out), "\nready\n") || strings.Contains(string(out), "\nready\n") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for `aid up`: %w\n%s", ctx.Err(), out)
		case <-tick.C:
		}
	}
}

// agents is how many agents send the requests. At most 512 requests of one may wait for their
// bodies at once, and 1,000 streams begin together.
const agents = 8

// settle creates the agents and their keys.
func (p *path) settle(ctx context.Context, home string) error {
	var ends struct{ Gateway, API string }
	raw, err := os.ReadFile(filepath.Join(home, "endpoints.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &ends); err != nil {
		return fmt.Errorf("endpoints.json: %w", err)
	}
	p.addr = strings.TrimPrefix(ends.Gateway, "http://")
	org, err := os.ReadFile(filepath.Join(home, "org.key"))
	if err != nil {
		return err
	}
	p.api, p.auth = ends.API, strings.TrimSpace(string(org))
	for i := range agents {
		var agent, key struct{ ID, Key string }
		if err := post(ctx, p.api+"/v1/agents", p.auth, fmt.Sprintf(`{"name":"bench-%d","allowed_models":["bench-*"]}`, i), &agent); err != nil {
			return err
		}
		if err := post(ctx, p.api+"/v1/agents/"+agent.ID+"/keys", p.auth, `{"name":"bench","scopes":["chat:completions"]}`, &key); err != nil {
			return err
		}
		p.keys = append(p.keys, key.Key)
	}
	return nil
}

func post(ctx context.Context, url, auth, body string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+auth)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("POST %s: %s: %s", url, resp.Status, raw)
	}
	return json.Unmarshal(raw, out)
}

// family finds the descendants of the supervisor by role: "envoy", "ext_proc" (`aid extproc`),
// "control" (`aid control`) and "postgres".
func family(root int) map[string][]int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	parent := map[int]int{}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if f := stat(pid); len(f) > 1 {
			parent[pid], _ = strconv.Atoi(f[1])
		}
	}
	m := map[string][]int{}
	for pid := range parent {
		for at := pid; at > 1; at = parent[at] {
			if at != root {
				continue
			}
			cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			argv := strings.Split(string(cmdline), "\x00")
			switch {
			case strings.HasPrefix(filepath.Base(argv[0]), "envoy"):
				m["envoy"] = append(m["envoy"], pid)
			case len(argv) > 1 && argv[1] == "extproc":
				m["ext_proc"] = append(m["ext_proc"], pid)
			case len(argv) > 1 && argv[1] == "control":
				m["control"] = append(m["control"], pid)
			case strings.HasPrefix(filepath.Base(argv[0]), "postgres"):
				m["postgres"] = append(m["postgres"], pid)
			}
		}
	}
	return m
}

// stat reads the fields of /proc/PID/stat that follow the command's name. [0] is the state,
// [1] the parent, [11] and [12] user and system ticks.
func stat(pid int) []string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	return strings.Fields(after)
}

// cpuTime is the processor time that a process has used so far. Linux counts it in ticks of
// 10 ms.
func cpuTime(pid int) time.Duration {
	f := stat(pid)
	if len(f) <= 12 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// cpu is the processor time used so far by the path, by role.
func (p *path) cpu() map[string]time.Duration {
	m := map[string]time.Duration{}
	for role, pids := range p.procs() {
		for _, pid := range pids {
			m[role] += cpuTime(pid)
		}
	}
	return m
}

// rss is the resident memory of the path's ext_proc processes, in MB.
func (p *path) rss() float64 {
	var pages int
	for _, pid := range p.procs()["ext_proc"] {
		if f := stat(pid); len(f) > 21 {
			n, _ := strconv.Atoi(f[21])
			pages += n
		}
	}
	return float64(pages*os.Getpagesize()) / 1e6
}

func upstreamPort(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("not a TCP address")
	}
	return a.Port, nil
}
