package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/process"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/xds"
)

const (
	defaultGateway = "127.0.0.1:8080"
	defaultAPI     = "127.0.0.1:8081"
	defaultMetrics = "127.0.0.1:9090"
	defaultEgress  = "127.0.0.1:8443"
	defaultProxy   = "127.0.0.1:3128"
)

func upCommand() *cobra.Command {
	u := &up{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything on this machine: Postgres, control plane, sidecar, Envoy",
		Long: `up runs the whole product on this machine, as the same processes and over the same
sockets as in production. These are an embedded Postgres (or yours, with --postgres),
the control plane, the sidecar that evaluates requests, and a real Envoy. They are
supervised: they are restarted if they end, and they stop with up.

State is in one folder (--home). The first start creates an organization "default" and
writes its key to org.key. Use that key to manage agents and their keys.

up is ready when a test request has gone through Envoy and the sidecar. Then it writes
endpoints.json into the folder and prints "ready" as its last line on stdout. Progress and
the log are on stderr. Ctrl-C stops everything in order; a second one stops it at once.`,
		Example: `  # with a provider, whose key is in a variable
  cat > providers.yaml <<END
  providers:
  - name: openai
    kind: openai
    base_url: https://api.openai.com/v1
    models: ["gpt-*", "o*", "text-embedding-*"]
    credential: {env: OPENAI_API_KEY}
  END
  aid up --providers providers.yaml

  # then, elsewhere
  ORG=$(cat .aid/org.key)
  curl -s localhost:8080/v1/agents -H "Authorization: Bearer $ORG" \
    -d '{"name":"support-bot","allowed_models":["gpt-4o"]}' -H 'Content-Type: application/json'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("log-level") {
				_ = cmd.Flags().Set("log-level", "warn") // people read this terminal
			}
			log, err := logger(cmd, "up")
			if err != nil {
				return err
			}
			u.log, u.out, u.errs = log, cmd.OutOrStdout(), cmd.ErrOrStderr()
			u.logLevel, _ = cmd.Flags().GetString("log-level")
			u.logFormat, _ = cmd.Flags().GetString("log-format")
			u.egressSet, u.proxySet = cmd.Flags().Changed("egress"), cmd.Flags().Changed("proxy")
			return u.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&u.homeDir, "home", ".aid", "`folder` for state, secrets and sockets")
	f.StringVar(&u.gateway, "gateway", defaultGateway, "`address` that applications send their requests to")
	f.StringVar(&u.egress.listen, "egress", defaultEgress, "`address` for TLS connections to providers' own hosts, which are intercepted; empty: none")
	f.StringVar(&u.egress.proxy, "proxy", defaultProxy, "`address` of the forward proxy for applications with their providers' own URLs; empty: none")
	f.StringSliceVar(&u.egress.hosts, "egress-hosts", egressHosts, egressHostsHelp)
	f.StringVar(&u.api, "api", defaultAPI, "`address` of the management API")
	f.StringVar(&u.metrics, "metrics", defaultMetrics, "`address` of /metrics, /healthz and /readyz")
	f.StringVar(&u.envoyPath, "envoy", "", "`path` of Envoy (default: the one that make installed, then PATH)")
	f.StringVar(&u.postgres, "postgres", "", "`URL` of a Postgres 15 or newer, as a user that may create roles and databases (default: an embedded Postgres)")
	f.StringVar(&u.postgresDir, "postgres-dir", "", "`folder` of the Postgres to embed (default: the one that make installed, or a downloaded one)")
	u.redis.flags(f)
	f.StringVar(&u.providers, "providers", "", "YAML `file` with the LLM providers; those with the same name are updated")
	f.StringVar(&u.standIn, "stand-in", "", "`address` on this machine for a test provider, \"demo\", that needs no key and responds to each chat with one sentence")
	f.StringVar(&u.prices, "prices", "", pricesHelp)
	f.StringVar(&u.tiers, "tiers", "", tiersHelp)
	f.StringVar(&u.providerCA, "provider-ca", systemCAs(), "PEM `file` with the CAs of providers")
	f.StringVar(&u.usage, "usage", "stream", "reader of usage in responses: stream (the sidecar) or envoy (faster, experimental in Envoy)")
	f.StringSliceVar(&u.anchors, "anchor", nil, "`URIs` of places outside of --home that store signed checkpoints: file:FOLDER or s3://BUCKET/PREFIX?region=REGION (default: none)")
	f.StringSliceVar(&u.private, "private-targets", []string{"127.0.0.0/8", "::1"}, "`addresses` or CIDRs that are not public and that providers may use, such as 10.0.0.0/8")
	f.StringSliceVar(&u.origins, "cors-origins", nil, originsHelp)
	f.StringSliceVar(&u.domains, "domains", nil, domainsHelp)
	f.StringVar(&u.issuers, "workload-issuers", "", issuersHelp)
	f.Int64Var(&u.maxBody, "max-body", defaultMaxBody, "largest request body in `bytes`; larger ones get 413")
	f.DurationVar(&u.maxStaleness, "max-staleness", 10*time.Minute, "how long the sidecar decides without contact to the control plane")
	f.IntVar(&u.concurrency, "envoy-concurrency", 0, "worker threads of Envoy (default: one for each CPU)")
	f.DurationVar(&u.drain, "drain", 10*time.Second, "how long requests in flight may continue when stopping")
	f.BoolVar(&u.pprof, "pprof", false, "serve Go's profiles of the control plane and the sidecar, on their sockets in the folder's run/")
	return cmd
}

// up is one run of `aid up`.
type up struct {
	homeDir, gateway, api, metrics string
	envoyPath, postgres, providers string
	prices, standIn, tiers         string
	redis                          redis
	egress                         egress
	egressSet, proxySet            bool   // the operator chose the address
	model                          string // the model of the example request; "": no provider has one
	postgresDir, providerCA        string
	usage                          string
	domains, origins, private      []string
	issuers                        string
	anchors                        []string
	maxBody                        int64
	maxStaleness, drain            time.Duration
	concurrency                    int
	pprof                          bool
	logLevel, logFormat            string

	log       *slog.Logger
	out, errs io.Writer

	home     *home
	life     *life
	mu       sync.Mutex
	children []*process.Child // changed under mu, only by the goroutine of run
	stopping atomic.Bool

	postgresRestarts func() int64 // restarts of the embedded Postgres; nil: it is not used
}

// say prints progress on the terminal.
func (u *up) say(format string, args ...any) {
	fmt.Fprintf(u.errs, "aid: "+format+"\n", args...)
}

func (u *up) run(ctx context.Context) (err error) {
	if err := u.check(); err != nil {
		return err
	}
	// A second Ctrl-C is not caught: it ends this process, and so the children.
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore)

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	began := time.Now()
	if u.home, err = openHome(u.homeDir); err != nil {
		return err
	}
	defer u.home.close()
	if err := u.look(ctx); err != nil {
		return err
	}

	u.life = newLife(u.log)
	defer func() {
		u.stopping.Store(true)
		if ctx.Err() != nil {
			u.say("stopping")
		}
		u.life.stop(u.drain + 15*time.Second)
		if ctx.Err() != nil && err == nil {
			u.say("stopped")
		}
	}()

	u.life.start(ctx, "SIGHUP", func(ctx context.Context) error { return u.passOn(ctx, hup) })
	db, err := u.database(ctx)
	if err != nil {
		return err
	}
	if u.standIn != "" {
		l, err := listen(ctx, "stand-in", u.standIn)
		if err != nil {
			return err
		}
		u.standIn = l.Addr().String()
		u.life.start(ctx, "stand-in", func(ctx context.Context) error { return serveHTTP(ctx, l, standIn(), u.log) })
	}
	token, err := u.settle(ctx, db)
	if err != nil {
		return err
	}
	if err := u.start(ctx, db, token); err != nil {
		return err
	}
	if err := u.waitReady(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	e := endpoints{Gateway: "http://" + u.gateway, API: "http://" + u.api, Metrics: "http://" + u.metrics}
	if u.egress.listen != "" {
		e.Egress = "https://" + reachable(u.egress.listen)
	}
	if u.egress.proxy != "" {
		e.Proxy = "http://" + u.egress.proxy
	}
	if err := u.egressRoots(ctx, db); err != nil {
		return err
	}
	if err := u.home.writeEndpoints(e); err != nil {
		return err
	}
	u.next(e, time.Since(began))
	fmt.Fprintln(u.out, "ready")
	return u.life.wait(ctx)
}

// passOn forwards SIGHUP to the children, which read their files again.
func (u *up) passOn(ctx context.Context, hup <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			u.mu.Lock()
			children := slices.Clone(u.children)
			u.mu.Unlock()
			for _, c := range children {
				if pid := c.PID(); pid != 0 {
					syscall.Kill(pid, syscall.SIGHUP) //nolint:errcheck // an error means that it has ended
				}
			}
		}
	}
}

// check validates every flag. It takes neither a lock nor a port.
func (u *up) check() error {
	if u.usage != "stream" && u.usage != "envoy" {
		return usagef("--usage %q: valid values are stream and envoy", u.usage)
	}
	if u.maxBody <= 0 || u.maxBody > 1<<30 {
		return usagef("--max-body %d: want a number of bytes from 1 to %d", u.maxBody, 1<<30)
	}
	if err := xds.CheckOrigins(u.origins); err != nil {
		return usagef("--cors-origins: %v", err)
	}
	if _, err := loadIssuers(u.issuers, u.log); err != nil {
		return err
	}
	if err := extproc.CheckDomains(u.domains); err != nil {
		return usagef("--domains: %v", err)
	}
	targets, err := provider.ParseTargets(u.private)
	if err != nil {
		return usagef("--private-targets: %v", err)
	}
	if u.maxStaleness <= 0 || u.drain < 0 || u.concurrency < 0 {
		return usagef("--max-staleness must be above 0; --drain and --envoy-concurrency must not be negative")
	}
	for _, a := range []struct{ flag, address string }{{"gateway", u.gateway}, {"api", u.api}, {"metrics", u.metrics}, {"stand-in", u.standIn}, {"egress", u.egress.listen}, {"proxy", u.egress.proxy}} {
		if optional := a.flag == "stand-in" || a.flag == "egress" || a.flag == "proxy"; optional && a.address == "" {
			continue
		}
		if _, port, err := net.SplitHostPort(a.address); err != nil || strings.HasPrefix(a.address, "unix:") {
			return usagef("--%s %q: set a host and a port, such as 127.0.0.1:8080, instead of a Unix socket", a.flag, a.address)
		} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return usagef("--%s %q: the port must be a number from 0 to 65535", a.flag, a.address)
		}
	}
	placed := u.egress
	for _, address := range []*string{&placed.listen, &placed.proxy} {
		if host, free := strings.CutSuffix(*address, ":0"); free {
			*address = host + ":1" // it becomes a free port
		}
	}
	if err := placed.check(); err != nil {
		return err
	}
	if u.standIn != "" && !local(u.standIn) {
		return usagef("--stand-in %s: other machines could reach this address. Use a local one, such as 127.0.0.1:8089", u.standIn)
	}
	if u.standIn != "" {
		host, _, _ := net.SplitHostPort(u.standIn) // the port may be 0, for any
		if err := targets.Check(standInProvider(net.JoinHostPort(host, "1")).Provider); err != nil {
			return usagef("--stand-in %s: --private-targets %s does not have this address, so Envoy would not connect to it: %v", u.standIn, strings.Join(u.private, ","), err)
		}
	}
	for _, f := range []struct{ flag, file string }{{"providers", u.providers}, {"provider-ca", u.providerCA}} {
		if f.file == "" || f.file == systemCAs() {
			continue
		}
		if _, err := os.ReadFile(f.file); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	if _, err := loadTiers(u.tiers); err != nil {
		return err
	}
	// The sidecar reads the prices later. Errors are better shown now.
	if _, err = loadPrices(u.prices); err != nil {
		return err
	}
	return u.redis.check()
}

// look finds Envoy, and tries the ports.
func (u *up) look(ctx context.Context) (err error) {
	for _, a := range []struct {
		flag    string
		address *string
	}{{"gateway", &u.gateway}, {"api", &u.api}, {"metrics", &u.metrics}} {
		if *a.address, err = free(ctx, a.flag, *a.address); err != nil {
			return err
		}
	}
	for _, a := range []struct {
		flag    string
		address *string
		set     bool
	}{{"egress", &u.egress.listen, u.egressSet}, {"proxy", &u.egress.proxy, u.proxySet}} {
		if *a.address == "" {
			continue
		}
		address, err := free(ctx, a.flag, *a.address)
		if err != nil && !a.set {
			u.say("--%s %s is in use, so it is off; set another address to use it", a.flag, *a.address)
			err = nil
		}
		if *a.address = address; err != nil {
			return err
		}
	}
	for flag, address := range map[string]string{"gateway": u.gateway, "api": u.api, "metrics": u.metrics} {
		if !local(address) {
			u.log.Warn("other machines can reach --"+flag+", which is plain HTTP: terminate TLS in front of it", "address", address)
		}
	}
	if u.envoyPath, err = findEnvoy(u.envoyPath); err != nil {
		return fmt.Errorf("--envoy: %w", err)
	}
	v, err := envoy.Version(ctx, u.envoyPath)
	if err == nil {
		err = envoy.CheckVersion(v)
	}
	if err != nil {
		return fmt.Errorf("--envoy: %w", err)
	}
	u.log.Info("Envoy found", "path", u.envoyPath, "version", v)
	return nil
}

// start starts the three programs and the status server. They stop in the reverse order.
func (u *up) start(ctx context.Context, db database, token joinToken) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	keys, err := u.home.keys()
	if err != nil {
		return err
	}
	h := u.home

	u.say("starting the control plane")
	u.child(ctx, self, "control", map[string]string{
		"AID_POSTGRES": db.appURL,
	}, append(h.signingArgs(keys), "--listen-api", u.api, "--listen-xds", "unix:"+h.socket("xds"), "--listen-status", "unix:"+h.socket("control"),
		"--fernet-keys", keys.fernet, "--hmac-keys", keys.hmac, "--digest-key", keys.digest,
		"--access-log", h.path("access.log"), "--gateway", u.gateway, "--egress", u.egress.listen, "--proxy", u.egress.proxy, "--egress-hosts", strings.Join(u.egress.hosts, ","), "--provider-ca", u.providerCA, "--tiers", u.tiers, "--usage", u.usage, "--max-body", strconv.FormatInt(u.maxBody, 10),
		"--cors-origins", strings.Join(u.origins, ","), "--private-targets", strings.Join(u.private, ","), "--anchor", strings.Join(u.anchors, ","))...)
	if err := u.until(ctx, "the control plane", 60*time.Second, readyOver("control", overUnix(h.socket("control")))); err != nil {
		return err
	}

	u.say("starting the sidecar and Envoy")
	u.child(ctx, self, "extproc", nil, append(u.redis.args(),
		"--listen", "unix:"+h.socket("extproc"), "--listen-status", "unix:"+h.socket("extproc-status"),
		"--xds", "unix:"+h.socket("xds"), "--listen-xds", "unix:"+h.socket("envoy-xds"), "--token-file", token.file, "--segments", h.path("segments"),
		"--access-log", h.path("access.log"), "--envoy-admin", h.socket("envoy"),
		"--gateway-url", "http://"+reachable(u.gateway), "--max-staleness", u.maxStaleness.String(),
		"--max-body", strconv.FormatInt(u.maxBody, 10), "--drain", u.drain.String(), "--lame-duck", "0s", "--prices", u.prices,
		"--workload-issuers", u.issuers, "--domains", strings.Join(u.domains, ","))...) // Envoy has ended before
	bootstrap, err := envoy.Bootstrap(envoy.Config{
		NodeID: "up", XDS: envoy.Endpoint{Address: "unix:" + h.socket("envoy-xds")},
		ExtProc: h.socket("extproc"), API: envoy.Endpoint{Address: reachable(u.api)}, Admin: h.socket("envoy"),
	})
	if err != nil {
		return err
	}
	file := h.path("secrets", "envoy.json")
	if err := writeFile(file, bootstrap, 0o600); err != nil {
		return err
	}
	proxy := envoy.NewProcess(envoy.ProcessConfig{
		Path: u.envoyPath, Bootstrap: file, Admin: h.socket("envoy"), Concurrency: u.concurrency,
		DrainTimeout: u.drain, Log: u.log,
	})
	u.life.start(ctx, "envoy", proxy.Run)

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range u.children {
		reg.MustRegister(restarts(c.Name(), c.Restarts))
	}
	reg.MustRegister(restarts("envoy", proxy.Restarts))
	if u.postgresRestarts != nil {
		reg.MustRegister(restarts("postgres", u.postgresRestarts))
	}
	l, err := listen(ctx, "metrics", u.metrics)
	if err != nil {
		return err
	}
	u.life.start(ctx, "metrics", func(ctx context.Context) error {
		return serveHTTP(ctx, l, status(u.allMetrics(reg), u.ready), u.log)
	})
	return nil
}

// egressRoots writes the certificates that intercepted applications must trust into the folder.
func (u *up) egressRoots(ctx context.Context, at database) error {
	if u.egress.listen == "" && u.egress.proxy == "" {
		return nil
	}
	db, err := store.Open(ctx, store.Config{URL: at.appURL, MaxConns: 1, Log: u.log})
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer db.Close()
	return pgx.BeginFunc(ctx, db.Pool(), func(tx pgx.Tx) error {
		roots, err := identity.EgressRoots(ctx, tx)
		if err != nil {
			return err
		}
		return writeFile(u.home.path("egress-ca.pem"), roots, 0o644)
	})
}

// systemCAs returns the file with this machine's certificate authorities. Its path depends on
// the distribution.
func systemCAs() string {
	places := []string{os.Getenv("SSL_CERT_FILE"), xds.SystemCAs, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}
	for _, file := range places {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			return file
		}
	}
	return xds.SystemCAs
}

// reachable returns the address with which this machine can reach a listener.
func reachable(address string) string {
	for _, any := range []string{"0.0.0.0:", "[::]:", ":"} {
		if port, ok := strings.CutPrefix(address, any); ok {
			return "127.0.0.1:" + port
		}
	}
	return address
}

func restarts(name string, n func() int64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "aid_up_restarts_total", Help: "Restarts of child processes that ended unexpectedly.",
		ConstLabels: prometheus.Labels{"child": name},
	}, func() float64 { return float64(n()) })
}

// child runs a subcommand of this binary. It inherits only the variables that are named here,
// so that it never has a provider's key by accident.
func (u *up) child(ctx context.Context, self, name string, env map[string]string, args ...string) {
	var all []string
	for _, v := range os.Environ() {
		key, _, _ := strings.Cut(v, "=")
		switch {
		case key == "PATH", key == "HOME", key == "TMPDIR", key == "TZ", key == "LANG",
			key == "GOMAXPROCS", key == "GOMEMLIMIT", key == "GOGC", key == "GODEBUG", key == "GOTRACEBACK", key == "GOCOVERDIR", key == "GORACE",
			strings.HasPrefix(key, "OTEL_"), strings.HasPrefix(key, "SSL_CERT_"):
			all = append(all, v)
		}
	}
	for k, v := range env {
		all = append(all, k+"="+v)
	}
	c := process.New(process.Config{
		Name: name, Path: self,
		Args: append([]string{name, "--log-level", u.logLevel, "--log-format", u.logFormat, "--pprof=" + strconv.FormatBool(u.pprof)}, args...),
		Env:  all,
		// Its lines are log lines of the same format.
		Line:        func(line string) { fmt.Fprintln(u.errs, line) },
		StopTimeout: u.drain + 10*time.Second,
		// Without one child nothing is served, so the backoff is short.
		MaxBackoff: 2 * time.Second,
		Log:        u.log,
	})
	u.mu.Lock()
	u.children = append(u.children, c)
	u.mu.Unlock()
	u.life.start(ctx, name, c.Run)
}

// ready returns nil only if a request that enters at the gateway is evaluated. The
// sidecar's own readiness sends one through Envoy and waits for it to arrive.
func (u *up) ready(ctx context.Context) error {
	if u.stopping.Load() {
		return errors.New("stopping")
	}
	h := u.home
	checks := []check{
		readyOver("control", overUnix(h.socket("control"))),
		func(ctx context.Context) error {
			if err := envoy.Admin(h.socket("envoy")).Live(ctx); err != nil {
				return fmt.Errorf("envoy: %w", err)
			}
			return nil
		},
		readyOver("extproc", overUnix(h.socket("extproc-status"))),
	}
	for _, c := range checks {
		if err := c(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (u *up) waitReady(ctx context.Context) error {
	return u.until(ctx, "a request through Envoy to be evaluated", 60*time.Second, u.ready)
}

// until runs a check until it returns nil. It returns an error when limit is over, when a
// part has failed, or when a child ends repeatedly.
func (u *up) until(ctx context.Context, what string, limit time.Duration, ask check) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := ask(try)
		cancel()
		if err == nil {
			return nil
		}
		for _, c := range u.children {
			if c.Restarts() >= 3 {
				return fmt.Errorf("waiting for %s: %s ends repeatedly:\n  %s", what, c.Name(), strings.Join(c.Tail(), "\n  "))
			}
		}
		select {
		case <-ctx.Done():
			return nil // stopped by a signal, which is not an error
		case err := <-u.life.ended:
			return err
		case <-deadline.C:
			return fmt.Errorf("waiting for %s: not ready after %v: %w; --log-level info shows more", what, limit, err)
		case <-tick.C:
		}
	}
}

// allMetrics serves the metrics of all processes under one address.
func (u *up) allMetrics(reg *prometheus.Registry) http.Handler {
	over := func(name, socket string) scrape {
		client := overUnix(socket)
		return scrape{name, func(ctx context.Context) ([]byte, error) { return get(ctx, client, "http://"+name+"/metrics") }}
	}
	h := u.home
	return merged(u.log,
		scrape{"up", func(context.Context) ([]byte, error) { return gathered(reg) }},
		over("control", h.socket("control")),
		over("extproc", h.socket("extproc-status")),
		scrape{"envoy", func(ctx context.Context) ([]byte, error) {
			text, err := envoy.Admin(h.socket("envoy")).Get(ctx, "/stats/prometheus")
			return filtered(text), err
		}},
	)
}

// next prints the next steps for a new user.
func (u *up) next(e endpoints, took time.Duration) {
	u.say("ready after %.1f s", took.Seconds())
	fmt.Fprintf(u.errs, `
  applications   %s/v1   (base URL of the OpenAI SDK; the key is an agent's)
  management     %s/v1   (the key is in %s)
  reference      %s/redoc, %s/docs
  metrics        %s/metrics

`, e.Gateway, e.Gateway, u.home.path("org.key"), e.API, e.API, e.Metrics)
	if u.model == "" {
		fmt.Fprintf(u.errs, "  No provider has a model yet. Set --providers (`aid up --help` shows a file), or try --stand-in 127.0.0.1:8089.\n\n")
		return
	}
	// A test runs these lines as they are printed.
	fmt.Fprintf(u.errs, `  An agent, its key, and its first request:

    ORG=$(cat %[1]s)
    AGENT=$(curl -s %[2]s/v1/agents -H "Authorization: Bearer $ORG" -H 'Content-Type: application/json' \
      -d '{"name": "support-bot", "allowed_models": ["%[3]s"]}' | sed 's/.*"\(ag_[^"]*\)".*/\1/')
    KEY=$(curl -s %[2]s/v1/agents/$AGENT/keys -H "Authorization: Bearer $ORG" -H 'Content-Type: application/json' \
      -d '{"name": "first", "scopes": ["chat:completions"]}' | sed 's/.*"\(aid_sk_[^"]*\)".*/\1/')
    curl -s %[2]s/v1/chat/completions -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \
      -d '{"model": "%[3]s", "messages": [{"role": "user", "content": "Hello"}]}'
`, u.home.path("org.key"), e.Gateway, u.model)
	fmt.Fprintln(u.errs)
}
