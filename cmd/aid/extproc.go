package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	logv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/extproc/tieout"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/verdict"
	"github.com/ai-identity/ai-identity/xds"
)

func extprocCommand() *cobra.Command {
	s := &sidecar{}
	cmd := &cobra.Command{
		Use:   "extproc",
		Short: "Run the sidecar beside Envoy that evaluates each request",
		Long: `extproc serves Envoy's external processing filter. It identifies the agent, decides,
records the decision durably, and only then lets Envoy forward.

It uses no database. Where several sidecars serve an organization, set --redis, so that
they share the counts of limits. Policies, providers and the keys in use come from the control
plane (--xds) and stay in memory. What it records waits in --segments until the
control plane has it. Without a control plane it continues with what it has for
--max-staleness, then rejects every request.

/readyz is green once a request to --gateway-url has arrived here through Envoy. SIGTERM
stops the process in three steps:

  1. /readyz turns red. Requests are still served for --lame-duck, so that a load
     balancer can use other nodes. This ends early if Envoy closes its connections.
  2. New requests get 503 with Retry-After. Requests in flight may end within --drain.
  3. The audit log is flushed and shipped.

A second signal skips --lame-duck and --drain. A third ends the process at once.

Keep --segments on a disk that survives this process. It is the only copy of entries
that are not yet shipped.`,
		Example: `  # in a pod, beside Envoy
  aid extproc --xds aid-control.aid.svc:18000 --tls-ca /run/tls/ca.pem --tls-cert /run/tls/tls.crt \
      --tls-key /run/tls/tls.key --segments /var/lib/aid --gateway-url http://127.0.0.1:8080

  # on a virtual machine, with a join token; Envoy gets its configuration from here
  aid extproc --xds control.example.com:18000 --tls-ca ca.pem --token-file node.token \
      --listen-xds unix:/run/aid/envoy-xds.sock \
      --segments /var/lib/aid --gateway-url http://127.0.0.1:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if s.log, err = logger(cmd, "extproc"); err != nil {
				return err
			}
			return s.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.listen, "listen", "unix:/run/aid/extproc.sock", "`address` that Envoy connects to: unix:/path, or host:port on this machine")
	f.StringVar(&s.envoyXDS, "listen-xds", "", "`address` where Envoy gets its configuration, forwarded from the control plane as this node: unix:/path (default: nowhere)")
	f.StringVar(&s.status, "listen-status", "127.0.0.1:9092", "`address` of /metrics, /healthz and /readyz: host:port or unix:/path")
	f.StringVar(&s.xds, "xds", "", "control plane: host:port or unix:/path")
	f.StringVar(&s.nodeID, "node-id", "", "name of this sidecar at the control plane (default: the host's name)")
	f.StringVar(&s.tokenFile, "token-file", "", "`file` with the node's join token (aid_node_…)")
	f.StringVar(&s.files.ca, "tls-ca", "", "PEM `file` of the CA of the control plane's certificate; required unless the control plane is on this machine")
	f.StringVar(&s.serverName, "tls-server-name", "", "name in the control plane's certificate (default: the host of --xds)")
	f.StringVar(&s.files.cert, "tls-cert", "", "PEM `file` of this node's client certificate")
	f.StringVar(&s.files.key, "tls-key", "", "PEM `file` of the key of --tls-cert")
	s.redis.flags(f)
	f.StringVar(&s.segments, "segments", "", "`folder` for audit entries on their way to the control plane; on a durable disk, and not shared with another sidecar")
	f.Int64Var(&s.maxBacklog, "max-backlog", 4<<30, "`bytes` of segments from which on requests are rejected, since they could not be recorded")
	f.Int64Var(&s.keepAcked, "keep-acked", 2<<30, "`bytes` of shipped segments to keep for 24h, in addition, in case the database is restored (negative: none)")
	f.Int64Var(&s.minFree, "min-free", 64<<20, "free `bytes` on the disk of --segments below which requests are rejected")
	f.StringVar(&s.gatewayURL, "gateway-url", "", "`URL` of the Envoy beside this sidecar; /readyz sends a request through it (default: /readyz does not check Envoy)")
	f.StringVar(&s.envoyAdmin, "envoy-admin", "", "Unix `socket` of Envoy's admin interface; --listen-status then has Envoy's statistics under /metrics/envoy (default: it has none)")
	f.StringVar(&s.accessLog, "access-log", "", "`file` of Envoy's access log, as --access-log of the control plane; it is compared with the audit log (default: it is not)")
	f.DurationVar(&s.maxStaleness, "max-staleness", 10*time.Minute, "how long to decide without contact to the control plane")
	f.StringSliceVar(&s.domains, "domains", nil, domainsHelp)
	f.StringVar(&s.issuers, "workload-issuers", "", issuersHelp)
	f.Int64Var(&s.maxBody, "max-body", defaultMaxBody, "largest request body in `bytes`; larger ones get 413")
	f.StringVar(&s.prices, "prices", "", pricesHelp)
	f.IntVar(&s.maxStreams, "max-streams", 20_000, "limit of concurrent requests; a streamed response counts until it ends")
	f.IntVar(&s.maxDeciding, "max-deciding", 0, "limit of requests that are parsed and decided at the same time (default: 4 for each CPU)")
	f.Int64Var(&s.maxWaiting, "max-waiting-bytes", 512<<20, "limit in `bytes` for the bodies of all waiting requests; one agent may use half of it, one key a quarter")
	f.IntVar(&s.maxCallers, "max-callers", 100_000, "limit of keys in memory; keys with requests in flight are not counted")
	f.DurationVar(&s.lameDuck, "lame-duck", 5*time.Second, "how long to continue serving when stopping, with /readyz red, until no more requests arrive")
	f.DurationVar(&s.drain, "drain", 10*time.Second, "how long requests in flight may continue when stopping")
	f.DurationVar(&s.shipLast, "ship-last", 5*time.Second, "how long to wait when stopping until the control plane has all records")
	f.BoolVar(&s.pprof, "pprof", false, "serve Go's profiles beside /metrics, under /debug/pprof/")
	return cmd
}

const issuersHelp = "JSON `file` with the issuers of tokens that identify workloads: Kubernetes clusters and SPIFFE trust domains (default: only keys identify agents)"

// loadIssuers reads the file of --workload-issuers. Without a file it returns nil.
func loadIssuers(file string, log *slog.Logger) (*identity.Issuers, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, usagef("--workload-issuers: %v", err)
	}
	issuers, err := identity.ParseIssuers(b, time.Now(), log)
	if err != nil {
		return nil, usagef("--workload-issuers %s: %v", file, err)
	}
	return issuers, nil
}

const domainsHelp = "`hosts` that clients use for the gateway, such as ai.example.com or *.example.com; others get 421 (default: every host, and policies have no request.host)"

// sidecar is one run of `aid extproc`.
type sidecar struct {
	listen, status, xds, nodeID, tokenFile  string
	envoyXDS, envoyAdmin, accessLog         string
	files                                   tlsFiles
	redis                                   redis
	serverName                              string
	segments                                string
	maxBacklog, keepAcked, minFree          int64
	gatewayURL, prices, issuers             string
	domains                                 []string
	maxStaleness, lameDuck, drain, shipLast time.Duration
	maxBody, maxWaiting                     int64
	maxStreams, maxDeciding, maxCallers     int
	pprof                                   bool

	log *slog.Logger
}

// check validates the flags.
func (s *sidecar) check() error {
	if err := extproc.CheckDomains(s.domains); err != nil {
		return usagef("--domains: %v", err)
	}
	switch {
	case s.xds == "":
		return usagef("--xds is required: set it to the address of the control plane, such as control.example.com:18000 or unix:/run/aid/xds.sock")
	case s.segments == "":
		return usagef("--segments is required. Set a folder for the audit log on a durable disk, such as /var/lib/aid/segments")
	case s.maxBody <= 0:
		return usagef("--max-body %d: set a number of bytes above 0", s.maxBody)
	case s.maxWaiting < 4*s.maxBody:
		return usagef("--max-waiting-bytes %d: one key may use a quarter, which must be at least --max-body %d: set %d or more", s.maxWaiting, s.maxBody, 4*s.maxBody)
	case s.maxStaleness <= 0:
		return usagef("--max-staleness %v: set a time above 0, such as 10m", s.maxStaleness)
	case s.lameDuck < 0 || s.drain < 0 || s.shipLast < 0:
		return usagef("--lame-duck, --drain and --ship-last must not be negative")
	case s.maxStreams <= 0:
		return usagef("--max-streams %d: set a number above 0", s.maxStreams)
	case !local(s.listen):
		return usagef("--listen %s: other machines can reach this address. Use unix:/path or 127.0.0.1, since every client is trusted", s.listen)
	case s.envoyXDS != "" && !strings.HasPrefix(s.envoyXDS, "unix:"):
		return usagef("--listen-xds %s: every process of this machine could reach it. Use unix:/path in a folder for only Envoy and this sidecar", s.envoyXDS)
	case envoy.CheckLogPath(s.accessLog) != nil:
		return usagef("--access-log: %v", envoy.CheckLogPath(s.accessLog))
	case s.files.ca == "" && !local(s.xds):
		return usagef("--xds %s is not on this machine: set --tls-ca", s.xds)
	}
	return s.redis.check()
}

func (s *sidecar) run(ctx context.Context) error {
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore) // end handles the next signal
	if err := s.check(); err != nil {
		return err
	}
	table, err := loadPrices(s.prices)
	if err != nil {
		return err
	}
	issuers, err := loadIssuers(s.issuers, s.log)
	if err != nil {
		return err
	}
	if s.nodeID == "" {
		s.nodeID, _ = os.Hostname()
	}
	// The live heap is a few MB. Go collects when it has doubled, so the collector would
	// run all the time. This unused memory is not resident and counts as live, so the
	// collector runs less often.
	room := make([]byte, 16<<20)
	defer runtime.KeepAlive(room)

	reg := registry()
	tp, flush, err := tracing(ctx, "extproc")
	if err != nil {
		return err
	}
	defer flush()

	newKeyInfo(reg)
	files := newReloads(reg, s.log)
	conn, err := s.dial(files)
	if err != nil {
		return err
	}
	defer conn.Close()
	statusL, err := listen(ctx, "listen-status", s.status)
	if err != nil {
		return err
	}
	// Two lives: parts that complete requests must outlive parts that accept requests.
	below, above := newLife(s.log), newLife(s.log)
	defer below.stop(10 * time.Second)
	var ready readiness
	below.start(ctx, "status", func(ctx context.Context) error {
		return serveHTTP(ctx, statusL, profiled(withEnvoy(status(registered(reg, s.log), ready.ask), s.envoyAdmin), s.pprof), s.log)
	})

	below.start(ctx, "files", files.run)
	if err := checkFolder(s.segments, false); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--segments: %w", err)
	}
	writer, err := audit.OpenWriter(audit.WriterConfig{
		Dir: s.segments, Node: s.nodeID, MaxBacklogBytes: s.maxBacklog, KeepAckedBytes: s.keepAcked, MinFreeBytes: s.minFree, Log: s.log, Registerer: reg,
	})
	if err != nil {
		return fmt.Errorf("--segments: %w", err)
	}
	below.start(ctx, "writer", writer.Run)
	shipping, shipped := context.WithCancel(context.WithoutCancel(ctx))
	defer shipped()
	below.start(ctx, "shipping", func(context.Context) error {
		return writer.Ship(shipping, xds.NewIngest(conn, ""))
	})

	spend := xds.NewSpend(xds.NewBudgets(conn, ""), writer, time.Now, s.log)
	var limiter verdict.Limiter
	store, err := s.redis.open(spend.Shared, files, reg, s.log)
	switch {
	case err != nil:
		return err
	case store == nil:
		m := budget.NewMemory(time.Now, spend)
		comparison, err := budget.NewComparison(m, spend.Books(), s.log, reg)
		if err != nil {
			return err
		}
		limiter = m
		below.start(ctx, "comparison", comparison.Run)
	default:
		if err := unfit(store.Check(ctx)); err != nil {
			return err
		}
		limiter = store
		below.start(ctx, "store", store.Run)
	}
	below.start(ctx, "spend", spend.Run)

	var server *extproc.Server // set below; only Run calls Changed and InUse
	client, err := xds.NewClient(xds.ClientConfig{
		Conn: conn, NodeID: s.nodeID, MaxStaleness: s.maxStaleness, MaxCallers: s.maxCallers,
		InUse:   func(p identity.Presented) bool { return server.InUse(p) },
		Changed: func(p identity.Presented, c identity.Caller, known bool) { server.CallerChanged(p, c, known) },
		Log:     s.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	config := extproc.Config{
		Domains:   s.domains,
		Directory: client, Recorder: writer, Limiter: limiter, Pricer: table, Spender: spend,
		Log: s.log, Registerer: reg, MaxBody: s.maxBody, MaxStreams: s.maxStreams, MaxDeciding: s.maxDeciding,
		Repeats: writer,
		Unknown: func(cause string, peer netip.Addr) { writer.Count(client.Home(), cause, peer) },
		Waiting: extproc.WaitLimits{Bytes: s.maxWaiting}, EndTimeout: time.Second,
	}
	if tp != nil {
		config.Tracer = tp
	}
	if issuers != nil {
		config.Workloads = issuers
		below.start(ctx, "issuers", func(ctx context.Context) error { return issuers.Run(ctx, time.Now) })
	}
	if server, err = extproc.New(config); err != nil {
		return err
	}
	below.start(ctx, "xds", client.Run)

	compared := newLife(s.log)
	defer compared.stop(10 * time.Second)
	var compare *tieout.TieOut
	if s.accessLog != "" {
		c := tieout.Config{Path: s.accessLog, Segments: writer, Home: client.Home, Log: s.log, Registerer: reg}
		if s.envoyAdmin != "" {
			c.Counts = envoy.Admin(s.envoyAdmin).Counters
		}
		if compare, err = tieout.New(c); err != nil {
			return fmt.Errorf("--access-log: %w", err)
		}
		compared.start(ctx, "tie-out", compare.Run)
	}

	if s.envoyXDS != "" {
		l, err := listen(ctx, "listen-xds", s.envoyXDS)
		if err != nil {
			return err
		}
		below.start(ctx, "envoy-xds", func(ctx context.Context) error { return serveGRPC(ctx, l, forwardXDS(conn)) })
	}
	l, err := listen(ctx, "listen", s.listen)
	if err != nil {
		return err
	}
	envoys := &connections{}
	g := s.server(server, grpc.StatsHandler(envoys))
	logv3.RegisterAccessLogServiceServer(g, server)
	above.start(ctx, "exchanges", func(context.Context) error { return g.Serve(l) })
	ready.set(remember(500*time.Millisecond, s.ready(server, client, writer, compare)))
	below.start(ctx, "readiness", ready.announce(s.log, func() []any {
		return []any{"orgs", client.Orgs(), "gateway", s.gatewayURL, "node", s.nodeID, "audit_waiting", writer.Waiting()}
	}))
	s.log.Info("serving", "listen", s.listen, "xds", s.xds, "segments", s.segments, "version", version())

	ended := make(chan error, 1)
	select {
	case <-ctx.Done():
		ended <- nil
	case err := <-above.ended:
		ended <- err
	case err := <-below.ended:
		ended <- err
	}
	s.end(ctx, &ready, server, g, envoys, compared, writer)
	return <-ended
}

// end stops the sidecar in this order:
//
//  1. /readyz turns red, and requests are served for --lame-duck.
//  2. Requests in flight end, within --drain.
//  3. The gRPC server stops.
//  4. All records are made durable, and are shipped if the control plane is available.
//
// A second signal skips the waits of the first two steps. Records are always made durable.
func (s *sidecar) end(ctx context.Context, ready *readiness, server *extproc.Server, g *grpc.Server, envoys *connections, compared *life, writer *audit.Writer) {
	hurry, calm := nextSignal(ctx)
	defer calm()
	ctx = context.WithoutCancel(ctx)
	ready.stop()
	s.serveOn(hurry, envoys)
	drain, cancel := context.WithTimeout(hurry, s.drain)
	defer cancel()
	if err := server.Drain(drain); err != nil {
		s.log.Warn("stopping", "err", err)
	}
	stopGRPC(g, time.Second)
	compared.stop(10 * time.Second) // it writes entries
	if err := writer.Close(); err != nil {
		s.log.Error("closing the audit log", "err", err)
	}
	last, cancel := context.WithTimeout(ctx, s.shipLast)
	defer cancel()
	if err := writer.WaitShipped(last); err != nil {
		s.log.Warn("some audit records are not shipped; the next start ships them", "segments", s.segments, "err", err)
	}
}

// dial returns a connection to the control plane, which may be established later.
func (s *sidecar) dial(files *reloads, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	target, secure := s.xds, insecure.NewCredentials()
	if !strings.HasPrefix(target, "unix:") {
		target = "dns:///" + target
	}
	if s.files.ca != "" {
		var err error
		if secure, err = files.client(s.files, s.serverName); err != nil {
			return nil, err
		}
	}
	var options []grpc.DialOption
	if s.tokenFile != "" {
		token, err := files.token(s.tokenFile)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithPerRPCCredentials(token))
	}
	options = append(options, grpc.WithTransportCredentials(secure),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20), grpc.MaxCallSendMsgSize(32<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			// Reconnect soon after the control plane is back, but not all nodes at once.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}))
	conn, err := grpc.NewClient(target, append(options, more...)...)
	if err != nil {
		return nil, usagef("--xds: %v", err)
	}
	return conn, nil
}

// maxMessage returns the largest message between Envoy and the sidecar. Envoy limits bodies
// to maxBody plus a margin, and may exceed that limit before it stops reading.
func maxMessage(maxBody int64) int { return int(min(4*maxBody+64<<20, 1<<31-1)) }

// server returns the gRPC server for Envoy. It has no interceptor that recovers from panics:
// a nil response would be an "allow" for Envoy.
func (s *sidecar) server(handler extprocv3.ExternalProcessorServer, more ...grpc.ServerOption) *grpc.Server {
	g := grpc.NewServer(append(more,
		// Far above Envoy's buffer limits, which are soft: a chunk of a response may exceed
		// the limit by one read. So no message is rejected for its size.
		grpc.MaxRecvMsgSize(maxMessage(s.maxBody)), grpc.MaxSendMsgSize(maxMessage(s.maxBody)),
		grpc.MaxConcurrentStreams(uint32(s.maxStreams)+1000),
		// Small, so that Envoy stops reading a response that extproc does not read.
		// Otherwise only the limit of request bodies would limit the waiting bytes.
		grpc.InitialWindowSize(256<<10), grpc.InitialConnWindowSize(16<<20),
		grpc.ReadBufferSize(64<<10), grpc.WriteBufferSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)...)
	extprocv3.RegisterExternalProcessorServer(g, handler)
	return g
}

// ready reports whether requests are evaluated. The audit log must be writable, the
// configuration must be present, and a request to Envoy must arrive here.
func (s *sidecar) ready(server *extproc.Server, client *xds.Client, writer *audit.Writer, compare *tieout.TieOut) check {
	gateway := &http.Client{
		Timeout:       5 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableKeepAlives: true},
	}
	return func(ctx context.Context) error {
		if err := writer.Ready(); err != nil {
			return fmt.Errorf("record: %w", err)
		}
		if err := client.Ready(); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
		if s.gatewayURL != "" {
			if err := canary(ctx, gateway, s.gatewayURL, server); err != nil {
				return fmt.Errorf("gateway: %w", err)
			}
		}
		if age, ok := client.Staleness(); ok && age > staleAfter {
			return stillReady(fmt.Sprintf("control plane: its last message is %v old; requests are rejected from %v on (--max-staleness)", age.Round(time.Second), s.maxStaleness))
		}
		if err := writer.Shipping(); err != nil {
			return stillReady("record: " + err.Error()) // requests are recorded here as long as there is room
		}
		if compare != nil {
			if err := compare.Stuck(); err != nil {
				return stillReady(err.Error())
			}
		}
		return nil
	}
}

// staleAfter is the age of the configuration from which on /readyz shows it. It is several
// heartbeats.
const staleAfter = 15 * time.Second

// canary sends a request to Envoy and returns nil if it arrives here.
func canary(ctx context.Context, gateway *http.Client, url string, server *extproc.Server) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nonce, seen, forget, err := server.Canary()
	if err != nil {
		return err
	}
	defer forget()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/v1/models", nil)
	if err != nil {
		return err
	}
	req.Header.Set(envoy.HeaderCanary, nonce)
	resp, err := gateway.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	select {
	case <-seen:
	default:
		return fmt.Errorf("Envoy returned %d, and the request did not arrive at this sidecar", resp.StatusCode)
	}
	if resp.StatusCode != http.StatusNoContent || resp.Header.Get(envoy.HeaderCanary) != nonce {
		return fmt.Errorf("Envoy returned %d, and the response is not from this sidecar", resp.StatusCode)
	}
	return nil
}
