package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/xds"
)

// defaultMaxBody is the largest request body. It is larger than usual prompts, and small
// enough that many bodies fit into memory.
const defaultMaxBody = 16 << 20

func controlCommand() *cobra.Command {
	c := &control{}
	cmd := &cobra.Command{
		Use:   "control",
		Short: "Run the control plane: management API, xDS, audit ingest",
		Long: `control is the control plane. It serves the management API. It configures every
Envoy and every ` + "`aid extproc`" + ` over xDS. It appends the records of the sidecars to
each org's chain in Postgres.

Replicas need the same database and the same key files. Each replica can serve
every node. Run ` + "`aid migrate`" + ` first: it creates the schema.

Nodes authenticate with a join token or a client certificate. On an address that
others can reach, xDS speaks TLS only (--tls-cert, --tls-key). On SIGTERM
/readyz turns red, new connections are rejected, and requests in flight end.`,
		Example: `  # on one machine, behind a Unix socket
  export AID_POSTGRES='postgres://aid_app@/aid?host=/run/postgresql'
  aid control --listen-xds unix:/run/aid/xds.sock --fernet-keys fernet.keys \
      --hmac-keys hmac.keys --digest-key digest.key

  # a replica in a cluster
  export AID_POSTGRES='postgres://aid_app@db.example.com/aid?sslmode=verify-full&passfile=/run/secrets/pgpass'
  aid control --listen-xds 0.0.0.0:18000 --listen-api 0.0.0.0:8081 --gateway 0.0.0.0:8080 \
      --tls-cert tls.crt --tls-key tls.key --tls-client-ca nodes-ca.pem \
      --fernet-keys fernet.keys --hmac-keys hmac.keys --digest-key digest.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.log, err = logger(cmd, "control"); err != nil {
				return err
			}
			return c.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.postgres, "postgres", "", postgresHelp)
	f.Int32Var(&c.connections, "postgres-connections", 20, "limit of connections to the database; at most half of them append audit records")
	f.StringVar(&c.api, "listen-api", defaultAPI, "`address` of the management API: host:port or unix:/path")
	f.StringVar(&c.xds, "listen-xds", "127.0.0.1:18000", "`address` that Envoys and sidecars connect to: host:port or unix:/path")
	f.StringVar(&c.status, "listen-status", "127.0.0.1:9091", "`address` of /metrics, /healthz and /readyz: host:port or unix:/path")
	f.StringVar(&c.publicURL, "public-url", "", "`URL` of the API in its documentation (default: the address of the request)")
	f.StringVar(&c.files.cert, "tls-cert", "", "PEM `file` of the certificate for the listeners that others can reach")
	f.StringVar(&c.files.key, "tls-key", "", "PEM `file` of the key of --tls-cert")
	f.StringVar(&c.files.ca, "tls-client-ca", "", "PEM `file` of the CA of nodes' certificates (their SPIFFE ids are the nodes' identities)")
	f.StringVar(&c.fernet, "fernet-keys", "", "`file` with the keys that encrypt provider credentials, one per line; the first encrypts, all decrypt")
	f.StringVar(&c.hmac, "hmac-keys", "", "`file` with the keys of the audit chain, one \"EPOCH HEX\" or \"EPOCH HEX from=TIME\" per line; the newest after its time signs, all verify")
	f.StringVar(&c.digest, "digest-key", "", "`file` with the hex key of the digests of request bodies in the audit log")
	c.signing.flags(f)
	f.StringVar(&c.logName, "log-name", "", "name of this installation's logs, in every checkpoint; set it before the first start (default: a random one)")
	f.DurationVar(&c.sessionGrace, "session-grace", audit.DefaultGrace, "how long the attestation of a closed session waits for requests and sidecars; then it says what is open")
	f.Float64Var(&c.kmsRate, "kms-rate", 30, "limit of checkpoints that this process signs in a second; beyond it organizations take turns")
	c.anchoring.flags(f)
	f.StringVar(&c.gateway, "gateway", defaultGateway, "`address` that Envoys listen on for applications")
	f.StringVar(&c.egress.listen, "egress", "", "`address` that Envoys with the role egress listen on for TLS connections to governed hosts (default: none)")
	f.StringVar(&c.egress.proxy, "proxy", "", "`address` of the forward proxy of these Envoys, on their own machine, such as 127.0.0.1:3128 (default: none)")
	f.StringSliceVar(&c.egress.hosts, "egress-hosts", egressHosts, egressHostsHelp)
	f.StringVar(&c.accessLog, "access-log", "", "`file` on the nodes for Envoy's access log, which their sidecars compare with the audit log, such as /var/lib/aid/access.log (default: none)")
	f.StringVar(&c.usage, "usage", "stream", "reader of usage in responses: stream (the sidecar) or envoy (faster, experimental in Envoy)")
	f.StringVar(&c.tiers, "tiers", "", tiersHelp)
	f.StringVar(&c.providerCA, "provider-ca", "", "PEM `file` on the Envoys' machines with the CAs of providers (default: "+xds.SystemCAs+")")
	f.StringSliceVar(&c.private, "private-targets", nil, privateHelp)
	f.StringSliceVar(&c.origins, "cors-origins", nil, originsHelp)
	f.Int64Var(&c.maxBody, "max-body", defaultMaxBody, "largest request body in `bytes`; larger ones get 413")
	f.BoolVar(&c.pprof, "pprof", false, "serve Go's profiles beside /metrics, under /debug/pprof/")
	return cmd
}

const tiersHelp = "JSON `file` with the limits of organizations by their tiers (docs/policy.md); an organization with another tier is not published; read only at the start"

// loadTiers reads the file of --tiers. Without a file, tiers have no limits.
func loadTiers(file string) (policy.Tiers, error) {
	if file == "" {
		return nil, nil
	}
	text, err := readTrusted(file, publicFile)
	if err != nil {
		return nil, usagef("--tiers: %v", err)
	}
	tiers, err := policy.ParseTiers(text)
	if err != nil {
		return nil, usagef("--tiers %s: %v", file, err)
	}
	return tiers, nil
}

const postgresHelp = "database `URL`, better given as AID_POSTGRES; verify-full TLS unless it is on this machine"

const privateHelp = "`addresses` or CIDRs that are not public and that providers may use, such as 10.0.0.0/8 (default: none)"

const originsHelp = "`origins` of web pages with scripts that may call the gateway, such as https://app.example.com (default: none, CORS is off)"

// control is one run of `aid control`.
type control struct {
	postgres, api, xds, status, publicURL   string
	connections                             int32
	files                                   tlsFiles
	fernet, hmac, digest, providerCA, tiers string
	gateway, usage, accessLog               string
	egress                                  egress
	origins, private                        []string
	maxBody                                 int64
	pprof                                   bool
	signing                                 signing
	logName                                 string
	kmsRate                                 float64
	anchoring                               anchoring
	sessionGrace                            time.Duration

	log *slog.Logger
}

func (c *control) run(ctx context.Context) error {
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore) // a second signal ends the process at once

	if c.usage != "stream" && c.usage != "envoy" {
		return usagef("--usage %q: valid values are stream and envoy", c.usage)
	}
	if err := xds.CheckOrigins(c.origins); err != nil {
		return usagef("--cors-origins: %v", err)
	}
	targets, err := provider.ParseTargets(c.private)
	if err != nil {
		return usagef("--private-targets: %v", err)
	}
	targets.Own = ownPorts(c.api, c.xds, c.status, c.gateway, c.egress.listen, c.egress.proxy)
	if err := c.egress.check(); err != nil {
		return err
	}
	if c.sessionGrace <= 0 {
		return usagef("--session-grace %v: set a time above 0, such as 10m", c.sessionGrace)
	}
	if !(c.kmsRate > 0 && c.kmsRate <= 1e6) {
		return usagef("--kms-rate %g: set a number above 0, at most 1000000", c.kmsRate)
	}
	if c.maxBody <= 0 {
		return usagef("--max-body %d: set a number of bytes above 0", c.maxBody)
	}
	reg := registry()
	files := newReloads(reg, c.log)
	secure, err := files.server(c.files)
	if err != nil {
		return err
	}
	if secure == nil && !local(c.xds) {
		return usagef("--listen-xds %s: other machines can reach this address, and it serves credentials: set --tls-cert and --tls-key, or listen on 127.0.0.1 or unix:/path", c.xds)
	}
	if secure == nil && !local(c.api) {
		c.log.Warn("other machines can reach --listen-api, which is plain HTTP: set --tls-cert and --tls-key, or terminate TLS in front of it", "address", c.api)
	}
	sealer, err := sealerOf(c.fernet)
	if err != nil {
		return err
	}
	shown := newKeyInfo(reg)
	var reread atomic.Pointer[func()] // set once the keys have a user
	err = files.add("fernet-keys", func() ([]byte, error) { return readTrusted(c.fernet, secretFile) }, func() (func(), error) {
		keys, err := lines(c.fernet)
		if err != nil {
			return nil, err
		}
		if _, err := provider.NewSealer(keys); err != nil {
			return nil, err
		}
		return func() {
			sealer.Replace(keys) //nolint:errcheck // NewSealer has accepted them
			shown.set("fernet-keys", keys)
			if again := reread.Load(); again != nil {
				(*again)()
			}
		}, nil
	})
	if err != nil {
		return err
	}
	keys, err := chainKeys(c.hmac)
	if err != nil {
		return err
	}
	var digest atomic.Pointer[[]byte]
	err = files.add("hmac-keys", func() ([]byte, error) { return readTrusted(c.hmac, secretFile) }, func() (func(), error) {
		text, err := lines(c.hmac)
		if err != nil {
			return nil, err
		}
		next, err := audit.ParseKeys(text)
		if err != nil {
			return nil, err
		}
		return func() { shown.set("hmac-keys", text) }, keys.Replace(next, time.Now())
	})
	if err != nil {
		return err
	}
	if c.digest == "" {
		digest.Store(new([]byte))
	} else {
		err = files.add("digest-key", func() ([]byte, error) { return readTrusted(c.digest, secretFile) }, func() (func(), error) {
			key, err := digestKey(c.digest)
			if err != nil {
				return nil, err
			}
			return func() {
				digest.Store(&key)
				shown.set("digest-key", []string{hex.EncodeToString(key)})
				if again := reread.Load(); again != nil {
					(*again)()
				}
			}, nil
		})
		if err != nil {
			return err
		}
	}

	if err := c.signing.open(ctx); err != nil {
		return err
	}
	if err := c.anchoring.check(ctx, len(c.signing.signers()) > 0); err != nil {
		return err
	}

	if err := envoy.CheckLogPath(c.accessLog); err != nil {
		return usagef("--access-log: %v", err)
	}

	// Listen first, so that an address in use is reported before anything is opened.
	statusL, err := listen(ctx, "listen-status", c.status)
	if err != nil {
		return err
	}
	life := newLife(c.log)
	defer life.stop(20 * time.Second)
	var ready readiness
	life.start(ctx, "status", func(ctx context.Context) error {
		return serveHTTP(ctx, statusL, profiled(status(registered(reg, c.log), ready.ask), c.pprof), c.log)
	})
	defer ready.stop() // runs before life.stop, so that /readyz is red before a part ends

	life.start(ctx, "files", files.run)
	db, err := waitForStore(ctx, c.postgres, c.connections, reg, c.log)
	if err != nil || ctx.Err() != nil {
		return err
	}
	life.start(ctx, "database", func(ctx context.Context) error {
		<-ctx.Done()
		db.Close()
		return nil
	})
	if err := c.signing.recall(ctx, db.Pool(), c.log); err != nil {
		return err
	}
	if err := audit.UseSigningKeys(ctx, db.Pool(), time.Now(), c.signing.signers()...); err != nil {
		return fmt.Errorf("--signing-key, --witness-key: %w", err)
	}
	name, err := audit.LogName(ctx, db.Pool(), c.logName, rand.Reader)
	if err != nil {
		return fmt.Errorf("--log-name: %w", err)
	}
	documents := audit.NewDocumentSigner(db.Pool(), name, c.signing.signers())
	publicKeys := func(ctx context.Context) (evidence.KeySet, error) { return audit.PublicKeys(ctx, db.Pool(), name) }
	anchors, err := c.anchoring.open(ctx, name, db.Pool(), reg)
	if err != nil {
		return err
	}
	guard, err := audit.NewGuard(audit.GuardConfig{DB: db.Pool(), LogName: name, Anchors: anchors, Keys: publicKeys, Log: c.log, Registerer: reg})
	if err != nil {
		return err
	}
	// Nothing is appended before the first comparison. If it fails for the database, the next
	// one is at the next connection.
	if err := guard.Check(ctx); err != nil {
		c.log.Error("comparing the database with its signed checkpoints", "err", err)
	}
	db.OnConnect(func(ctx context.Context, conn *pgx.Conn) { guard.Connected(ctx, conn) })
	life.start(ctx, "guard", guard.Run)
	chain, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys, AtOnce: max(1, int(c.connections)/2), Guard: guard, Log: c.log, Registerer: reg})
	if err != nil {
		return err
	}
	notary, err := audit.NewNotary(audit.NotaryConfig{
		DB: db, Pool: db.Pool(), LogName: name, Signers: c.signing.signers, Guard: guard, Anchors: anchors, Rate: c.kmsRate, Log: c.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	life.start(ctx, "notary", notary.Run)
	life.start(ctx, "inspection", func(ctx context.Context) error { return chain.Inspect(ctx, db.Pool()) })
	sessions, err := audit.NewSessions(audit.SessionsConfig{
		DB: db, Pool: db.Pool(), Chain: chain, Signer: documents, Grace: c.sessionGrace, Log: c.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	life.start(ctx, "sessions", sessions.Run)
	months := newHousekeeping(db, reg, c.log)
	life.start(ctx, "housekeeping", months.run)

	tiers, err := loadTiers(c.tiers)
	if err != nil {
		return err
	}
	leaves, err := c.authority(ctx, db, sealer)
	if err != nil {
		return err
	}
	control, err := xds.NewServer(xds.ServerConfig{
		Egress: c.egress.config(), Leaves: leaves,
		Tiers: tiers, Targets: targets, DB: db, Sealer: sealer, Appender: chain, Ledger: chain, Gateway: c.gateway, Usage: c.usage, MaxBody: c.maxBody, Origins: c.origins,
		AccessLog: c.accessLog, CAFile: c.providerCA, DigestKey: func() []byte { return *digest.Load() }, Log: c.log, Registerer: reg,
	})
	if err != nil {
		return err
	}
	again := control.Reread
	reread.Store(&again)
	all := func(ctx context.Context) error {
		if err := db.Writable(ctx); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if err := months.failed(); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if err := control.Ready(ctx); err != nil {
			return fmt.Errorf("xds: %w", err)
		}
		if err := errors.Join(chain.Ready(ctx, db.Pool()), guard.Ready(), notary.Ready()); err != nil {
			return err
		}
		if err := chain.Bad(); err != nil {
			return stillReady(err.Error())
		}
		if err := control.Unopened(); err != nil {
			return stillReady("xds: " + err.Error())
		}
		return nil
	}
	server, err := api.New(api.Config{
		Tiers: tiers, Targets: targets, DB: db, Chain: chain, Sealer: sealer, Log: c.log, Registerer: reg, PublicURL: c.publicURL, Version: version(),
		Signer: documents, PublicKeys: publicKeys,
		OrgKeys: func(ctx context.Context, tx pgx.Tx, org string) (evidence.KeySet, error) {
			return audit.OrgKeys(ctx, tx, name, org)
		},
	})
	if err != nil {
		return err
	}
	xdsL, err := listen(ctx, "listen-xds", c.xds)
	if err != nil {
		return err
	}
	apiL, err := listen(ctx, "listen-api", c.api)
	if err != nil {
		return err
	}
	life.start(ctx, "xds", control.Run)
	life.start(ctx, "xds-listener", func(ctx context.Context) error {
		return serveGRPC(ctx, xdsL, c.xdsServer(secure, control))
	})
	life.start(ctx, "api-jobs", server.Run)
	life.start(ctx, "api", func(ctx context.Context) error {
		l := apiL
		if secure != nil && !local(c.api) {
			l = tls.NewListener(l, secure)
		}
		return serveHTTP(ctx, l, server, c.log)
	})
	ready.set(remember(500*time.Millisecond, all))
	life.start(ctx, "readiness", ready.announce(c.log, func() []any {
		return []any{"api", c.api, "xds", c.xds, "nodes", control.Nodes(), "version", version()}
	}))
	c.log.Info("serving", "api", c.api, "xds", c.xds, "status", c.status, "version", version())
	return life.wait(ctx)
}

// authority returns the CA of intercepted connections, or nil if none are intercepted.
func (c *control) authority(ctx context.Context, db *store.DB, sealer *provider.Sealer) (xds.Leaves, error) {
	if c.egress.listen == "" && c.egress.proxy == "" {
		return nil, nil
	}
	a, err := identity.NewAuthority(ctx, db.Pool(), sealer, c.egress.hosts, time.Now(), rand.Reader)
	switch {
	case errors.Is(err, identity.ErrCAHosts):
		return nil, usagef("--egress-hosts: %v", err)
	case err != nil:
		return nil, fmt.Errorf("the egress CA: %w", err)
	}
	return a, nil
}

// ownPorts returns the TCP addresses of listeners, without Unix sockets.
func ownPorts(listeners ...string) (out []netip.AddrPort) {
	for _, l := range listeners {
		host, port, err := net.SplitHostPort(l)
		n, bad := strconv.ParseUint(port, 10, 16)
		if err != nil || bad != nil || n == 0 {
			continue
		}
		a, err := netip.ParseAddr(host)
		if err != nil {
			a = netip.IPv4Unspecified() // "", localhost, or a name of this machine
		}
		out = append(out, netip.AddrPortFrom(a, uint16(n)))
	}
	return out
}

// xdsServer serves ADS and the audit ingest. A response may have all changed resources, and
// a batch has a few hundred records.
func (c *control) xdsServer(secure *tls.Config, control *xds.Server) *grpc.Server {
	s := grpc.NewServer(c.xdsOptions(secure)...)
	control.Register(s)
	return s
}

func (c *control) xdsOptions(secure *tls.Config) []grpc.ServerOption {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(32 << 20), grpc.MaxSendMsgSize(256 << 20), grpc.MaxConcurrentStreams(1000),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if secure != nil && !local(c.xds) {
		options = append(options, grpc.Creds(credentials.NewTLS(secure)))
	}
	return options
}

// serveGRPC serves s on l until ctx is done. xDS streams never end on their own, so
// connected nodes get a GOAWAY, and the connections are closed soon after.
func serveGRPC(ctx context.Context, l net.Listener, s *grpc.Server) error {
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopGRPC(s, 2*time.Second)
	return nil
}

// stopGRPC waits at most limit for streams to end, and then closes them.
func stopGRPC(s *grpc.Server, limit time.Duration) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.GracefulStop()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		s.Stop()
		<-ended
	}
}

// registry returns a registry with the metrics of every aid process.
func registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// openStore opens the database that --postgres names.
func openStore(ctx context.Context, url string, connections int32, reg prometheus.Registerer, log *slog.Logger) (*store.DB, error) {
	if url == "" {
		return nil, usagef("--postgres is required: the URL of the database, best in the variable AID_POSTGRES, such as postgres://aid_app@db.example.com/aid?sslmode=verify-full")
	}
	warnOfPassword(url, log)
	db, err := store.Open(ctx, store.Config{URL: url, MaxConns: connections, Log: log, Registerer: reg})
	if err != nil {
		return nil, fmt.Errorf("--postgres: %w", err)
	}
	return db, nil
}

// waitForStore is openStore, and waits while the database cannot be reached, as when both
// are started together. An error that stays ends the wait: a wrong URL or password, a role
// with too many rights, or a schema that is too old.
func waitForStore(ctx context.Context, url string, connections int32, reg prometheus.Registerer, log *slog.Logger) (*store.DB, error) {
	const pause, repeat = time.Second, 30 * time.Second
	said := time.Time{}
	for {
		db, err := openStore(ctx, url, connections, reg, log)
		if err == nil && !said.IsZero() {
			log.Info("the database is available")
		}
		if err == nil || ctx.Err() != nil || !store.Away(err) {
			return db, err
		}
		if time.Since(said) >= repeat {
			said = time.Now()
			log.Warn("waiting for the database; until then, nothing is served and /readyz is red", "err", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, nil
		case <-timer.C:
		}
	}
}

// sealerOf reads the keys that encrypt provider credentials.
func sealerOf(file string) (*provider.Sealer, error) {
	if file == "" {
		return nil, usagef("--fernet-keys is required: a file with the keys that encrypt provider credentials; create one with `head -c 32 /dev/urandom | base64 | tr +/ -_`")
	}
	keys, err := lines(file)
	if err != nil {
		return nil, usagef("--fernet-keys: %v", err)
	}
	s, err := provider.NewSealer(keys)
	if err != nil {
		return nil, usagef("--fernet-keys %s: %v", file, err)
	}
	return s, nil
}

// chainKeys reads the keys of the audit chain.
func chainKeys(file string) (audit.Keys, error) {
	var none audit.Keys
	if file == "" {
		return none, usagef("--hmac-keys is required: a file with the keys of the audit chain, one \"EPOCH HEX\" per line; create one with `echo 1 $(openssl rand -hex 32)`")
	}
	text, err := lines(file)
	if err != nil {
		return none, usagef("--hmac-keys: %v", err)
	}
	keys, err := audit.ParseKeys(text)
	if err != nil {
		return none, usagef("--hmac-keys %s: %v", file, err)
	}
	return keys, nil
}

// digestKey reads the key of the digests of request bodies. Without a file it returns nil: no digests.
func digestKey(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	text, err := readSecret(file)
	if err != nil {
		return nil, usagef("--digest-key: %v", err)
	}
	key, err := hex.DecodeString(text)
	if err != nil || len(key) < 16 {
		return nil, usagef("--digest-key %s: the file must have at least 32 hex digits; create it with `openssl rand -hex 32`", file)
	}
	return key, nil
}
