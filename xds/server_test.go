package xds_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/verdict"
	"github.com/ai-identity/ai-identity/xds"
)

// plane is a control plane on a real database.
type plane struct {
	t      testing.TB
	db     *store.DB
	sealer *provider.Sealer
	server *xds.Server
	taken  *taken
	chain  *audit.Chain
	conn   func() *grpc.ClientConn
	stop   func() // the gRPC server, and with it every stream
	serve  func()
}

// taken is an Appender that stores its batches.
type taken struct {
	mu   sync.Mutex
	recs []audit.Record
}

func (a *taken) Append(_ context.Context, b audit.Batch) (uint64, error) {
	recs := b.Records
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recs = append(a.recs, recs...)
	return recs[len(recs)-1].Seq, nil
}

func (a *taken) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.recs)
}

func newPlane(t testing.TB) *plane {
	t.Helper()
	p := &plane{t: t, db: storetest.Open(t), taken: &taken{}}
	var err error
	if p.sealer, err = provider.NewSealer([]string{"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="}); err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ParseKeys([]string{"1 " + strings.Repeat("ab", 32)})
	if err != nil {
		t.Fatal(err)
	}
	if p.chain, err = audit.NewChain(audit.ChainConfig{DB: p.db, Keys: keys}); err != nil {
		t.Fatal(err)
	}
	tiers, err := policy.ParseTiers([]byte(`{"gold": {"rpm": 7}}`))
	if err != nil {
		t.Fatal(err)
	}
	p.server, err = xds.NewServer(xds.ServerConfig{
		Tiers: tiers, DB: p.db, Sealer: p.sealer, Appender: p.taken, Ledger: p.chain, Targets: private, Gateway: "127.0.0.1:8080", Usage: "stream", MaxBody: 1 << 20,
		DigestKey: func() []byte { return []byte("digest") }, Heartbeat: 20 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.server.Run(ctx) }()
	var mu sync.Mutex
	var l *bufconn.Listener
	var g *grpc.Server
	p.serve = func() {
		mu.Lock()
		defer mu.Unlock()
		l, g = bufconn.Listen(1<<20), grpc.NewServer()
		p.server.Register(g)
		go g.Serve(l) //nolint:errcheck // returns after Stop
	}
	p.stop = func() {
		mu.Lock()
		defer mu.Unlock()
		g.Stop()
	}
	p.serve()
	p.conn = func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///plane", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				mu.Lock()
				at := l
				mu.Unlock()
				return at.DialContext(ctx)
			}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	t.Cleanup(func() {
		p.stop()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, func() error { return p.server.Ready(context.Background()) })
	return p
}

func eventually(t testing.TB, ask func() error) {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (p *plane) in(org string, fn func(tx pgx.Tx) error) {
	p.t.Helper()
	if err := p.db.InOrg(context.Background(), org, fn); err != nil {
		p.t.Fatal(err)
	}
}

func mint(t testing.TB, kind identity.Kind) (string, [32]byte) {
	t.Helper()
	secret, hash, err := identity.Mint(kind, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return secret, hash
}

// node creates a node of the org and returns its token and id.
func (p *plane) node(org string) (token, id string) {
	p.t.Helper()
	return p.nodeOf(identity.Node{Roles: []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}}, org)
}

// nodeOf creates a node that serves the orgs.
func (p *plane) nodeOf(n identity.Node, orgs ...string) (token, id string) {
	p.t.Helper()
	token, hash := mint(p.t, identity.NodeToken)
	id, err := identity.NewID(identity.NodeID, time.Now(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	n.ID, n.Name, n.TokenHash, n.CreatedAt = id, "n", hash, time.Now()
	err = p.db.InOrgs(context.Background(), orgs, func(org string, tx pgx.Tx) error {
		n.OrgID = org
		return identity.InsertNode(context.Background(), tx, n)
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return token, id
}

// agent creates an agent with one key.
func (p *plane) agent(org string) (a identity.Agent, k identity.Key) {
	p.t.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond)
	var err error
	a = identity.Agent{OrgID: org, Name: "bot", Status: identity.Active, AllowedModels: []string{"*"}, CreatedAt: now, UpdatedAt: now, Version: 1,
		Metadata: identity.Metadata{"pii": true, "team": "x"}}
	if a.ID, err = identity.NewID(identity.AgentID, now, rand.Reader); err != nil {
		p.t.Fatal(err)
	}
	a.Fingerprint = identity.Fingerprint(org, a.ID, a.Name, now)
	k = identity.Key{Kind: identity.KindKey, OrgID: org, AgentID: a.ID, Name: "k", Scopes: []string{"*"}, RateLimit: 7, CreatedAt: now}
	if k.ID, err = identity.NewID(identity.KeyID, now, rand.Reader); err != nil {
		p.t.Fatal(err)
	}
	_, k.Hash = mint(p.t, identity.AgentKey)
	p.in(org, func(tx pgx.Tx) error {
		if err := identity.InsertAgent(context.Background(), tx, a); err != nil {
			return err
		}
		return identity.InsertKey(context.Background(), tx, k)
	})
	return a, k
}

// client runs a client for the node with the token.
func (p *plane) client(token string, change func(*xds.ClientConfig)) *xds.Client {
	p.t.Helper()
	c := xds.ClientConfig{Conn: p.conn(), NodeID: "test", Token: token, Log: slog.New(slog.NewTextHandler(p.t.Output(), nil))}
	if change != nil {
		change(&c)
	}
	x, err := xds.NewClient(c)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	return x
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

// A key is looked up once. Changes of the key and its agent are pushed.
func TestCallers(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	a, k := p.agent(org)
	type told struct {
		c     identity.Caller
		known bool
	}
	changes := make(chan told, 16)
	x := p.client(token, func(c *xds.ClientConfig) {
		c.Changed = func(_ identity.Presented, caller identity.Caller, known bool) { changes <- told{caller, known} }
	})
	eventually(t, x.Ready)
	got, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Agent.ID != a.ID || got.Agent.Fingerprint != a.Fingerprint || got.Key.ID != k.ID || got.Key.RateLimit != 7 || got.Agent.Metadata["pii"] != true {
		t.Errorf("got %+v", got)
	}
	if err := got.ActiveAt(time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := x.Caller(ctx(t), identity.PresentedKey([32]byte{1}), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
		t.Errorf("an unknown key: %v", err)
	}

	next := func(what string) told {
		t.Helper()
		select {
		case c := <-changes:
			return c
		case <-time.After(20 * time.Second):
			t.Fatalf("%s was not pushed", what)
			return told{}
		}
	}
	a.Status = identity.Suspended
	p.in(org, func(tx pgx.Tx) (err error) { a, err = identity.UpdateAgent(context.Background(), tx, a); return err })
	if c := next("the suspension"); c.c.Agent.Status != identity.Suspended || c.c.ActiveAt(time.Now()) == nil {
		t.Errorf("suspended: %+v", c)
	}
	a.Status = identity.Active
	p.in(org, func(tx pgx.Tx) (err error) { a, err = identity.UpdateAgent(context.Background(), tx, a); return err })
	if c := next("the return"); c.c.ActiveAt(time.Now()) != nil {
		t.Errorf("active again: %+v", c)
	}
	p.in(org, func(tx pgx.Tx) error {
		return identity.RevokeKey(context.Background(), tx, a.ID, k.ID, time.Now())
	})
	if c := next("the revocation"); c.c.ActiveAt(time.Now()) == nil {
		t.Errorf("revoked: %+v", c)
	}
	p.in(org, func(tx pgx.Tx) error { return identity.DeleteAgent(context.Background(), tx, a.ID) })
	if c := next("the deletion"); c.known {
		t.Errorf("deleted: %+v", c)
	}
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
		t.Errorf("a deleted key: %v", err)
	}
}

// A node that was disconnected receives the changes when it connects again.
// An identity is served, changed and revoked as a key is, also by a gateway of several orgs.
func TestWorkloads(t *testing.T) {
	p := newPlane(t)
	one, two := storetest.Org(t, p.db), storetest.Org(t, p.db)
	bot := identity.Workload{Kind: identity.KindSPIFFE, SPIFFEID: "spiffe://" + strings.ReplaceAll(one, "_", "-") + "/bot"}
	a, _ := p.agent(one)
	i := identity.Identity{Workload: bot, Key: identity.Key{ID: "idn_1", Kind: bot.Kind, OrgID: one, AgentID: a.ID, Name: "n", Scopes: []string{"models"}, RateLimit: 3, CreatedAt: time.Now()}}
	only, _ := p.nodeOf(identity.Node{Roles: bothRoles}, one)
	shared, _ := p.nodeOf(identity.Node{Roles: bothRoles, ByOperator: true}, one, two)
	clients := []*xds.Client{p.client(only, nil), p.client(shared, nil)}
	for _, x := range clients {
		eventually(t, func() error {
			if _, err := x.Caller(ctx(t), bot.Presented(), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
				return fmt.Errorf("a workload that is not bound: %v", err)
			}
			return nil
		})
	}
	storetest.InOrgAsOwner(t, one, func(tx pgx.Tx) error {
		return identity.GrantPrefix(ctx(t), tx, one, strings.TrimSuffix(bot.SPIFFEID, "/bot"))
	})
	p.in(one, func(tx pgx.Tx) error { return identity.InsertIdentity(ctx(t), tx, i) })
	for _, x := range clients {
		eventually(t, func() error {
			c, err := x.Caller(ctx(t), bot.Presented(), netip.Addr{})
			if err != nil {
				return err
			}
			if c.Workload != bot || c.Key.ID != i.ID || c.Key.Kind != identity.KindSPIFFE || c.Key.RateLimit != 3 || c.Agent.ID != a.ID || c.ActiveAt(time.Now()) != nil {
				t.Errorf("the caller is %+v", c)
			}
			return nil
		})
	}
	p.in(one, func(tx pgx.Tx) error { return identity.RevokeIdentity(ctx(t), tx, a.ID, i.ID, time.Now()) })
	for _, x := range clients {
		eventually(t, func() error {
			c, err := x.Caller(ctx(t), bot.Presented(), netip.Addr{})
			if err != nil || c.ActiveAt(time.Now()) == nil {
				return fmt.Errorf("a revoked identity is active: %v", err)
			}
			return nil
		})
	}
	storetest.InOrgAsOwner(t, one, func(tx pgx.Tx) error {
		return identity.WithdrawPrefix(ctx(t), tx, strings.TrimSuffix(bot.SPIFFEID, "/bot"))
	})
	for _, x := range clients {
		eventually(t, func() error {
			if _, err := x.Caller(ctx(t), bot.Presented(), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
				return fmt.Errorf("an identity without its grant: %v", err)
			}
			return nil
		})
	}
}

func TestReconnect(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	a, k := p.agent(org)
	_, unseen := p.agent(org)
	var revoked atomic.Bool
	x := p.client(token, func(c *xds.ClientConfig) {
		c.Changed = func(_ identity.Presented, caller identity.Caller, _ bool) {
			revoked.Store(caller.ActiveAt(time.Now()) != nil)
		}
	})
	eventually(t, x.Ready)
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	p.stop()
	eventually(t, func() error {
		if _, err := x.Caller(ctx(t), identity.PresentedKey([32]byte{9}), netip.Addr{}); !errors.Is(err, xds.ErrUnavailable) {
			return fmt.Errorf("still connected: %v", err)
		}
		return nil
	})
	// A known caller needs no control plane. Another key is unavailable, not unknown.
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
		t.Errorf("a known caller, cut off: %v", err)
	}
	if _, err := x.Caller(ctx(t), identity.PresentedKey(unseen.Hash), netip.Addr{}); !errors.Is(err, xds.ErrUnavailable) || errors.Is(err, verdict.ErrUnknownCaller) {
		t.Errorf("an unseen caller, cut off: %v", err)
	}
	p.in(org, func(tx pgx.Tx) error { return identity.RevokeKey(context.Background(), tx, a.ID, k.ID, time.Now()) })
	p.serve()
	eventually(t, func() error {
		if !revoked.Load() {
			return errors.New("not revoked here yet")
		}
		return nil
	})
	eventually(t, func() error { _, err := x.Caller(ctx(t), identity.PresentedKey(unseen.Hash), netip.Addr{}); return err })
}

// Providers, credentials and policies take effect without a restart. With one invalid object,
// the last valid ones stay.
func TestOrg(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	x := p.client(token, nil)
	eventually(t, x.Ready)
	now := time.Now()
	prov := provider.Provider{ID: "prov_1", OrgID: org, Name: "one", Kind: "openai", BaseURL: "http://127.0.0.1:9/v1", Models: []string{"m"}, Version: 1, CreatedAt: now, UpdatedAt: now}
	sealed, err := p.sealer.Seal([]byte("sk-secret"))
	if err != nil {
		t.Fatal(err)
	}
	p.in(org, func(tx pgx.Tx) error {
		if err := provider.Insert(context.Background(), tx, p.sealer, prov); err != nil {
			return err
		}
		return provider.PutCredential(context.Background(), tx, provider.Credential{ProviderID: prov.ID, Cluster: provider.ClusterName(prov), Sealed: sealed, UpdatedAt: now})
	})
	resolve := func() (provider.Provider, error) {
		o, err := x.Org(org)
		if err != nil {
			return provider.Provider{}, err
		}
		for _, p := range o.Providers.Providers() {
			return p, nil
		}
		return provider.Provider{}, errors.New("no provider")
	}
	eventually(t, func() error {
		got, err := resolve()
		if err == nil && got.Credential.Reveal() != "sk-secret" {
			err = errors.New("no credential")
		}
		return err
	})
	// A new address removes the credential.
	prov.BaseURL = "http://127.0.0.1:10/v1"
	p.in(org, func(tx pgx.Tx) (err error) {
		prov, err = provider.Update(context.Background(), tx, p.sealer, prov)
		return err
	})
	eventually(t, func() error {
		got, err := resolve()
		if err == nil && (got.BaseURL != prov.BaseURL || got.Credential.Reveal() != "") {
			err = fmt.Errorf("at %s with the credential %q", got.BaseURL, got.Credential.Reveal())
		}
		return err
	})

	pol := policy.Policy{ID: "pol_1", OrgID: org, Name: "none", Version: 1, Document: []byte(`{"name":"none","effect":"deny","conditions":{}}`), CreatedAt: now, UpdatedAt: now}
	p.in(org, func(tx pgx.Tx) error { return policy.Insert(context.Background(), tx, pol, policy.By{}) })
	denies := func() error {
		o, err := x.Org(org)
		if err != nil {
			return err
		}
		d := o.Policies.Decide(context.Background(), policy.Input{Org: policy.OrgAttrs{ID: org}})
		for _, r := range d.Reasons {
			if r.PolicyID == pol.ID {
				return nil
			}
		}
		return fmt.Errorf("the policy is not in force: %+v", d)
	}
	eventually(t, denies)
	// The table has a document that this build does not support.
	bad := pol
	bad.ID, bad.Name, bad.Document = "pol_2", "bad", []byte(`{"name":"bad","effect":"someday"}`)
	marker := prov
	marker.ID, marker.Name = "prov_2", "two"
	p.in(org, func(tx pgx.Tx) error {
		if err := policy.Insert(context.Background(), tx, bad, policy.By{}); err != nil {
			return err
		}
		return provider.Insert(context.Background(), tx, p.sealer, marker)
	})
	eventually(t, func() error {
		o, err := x.Org(org)
		if err == nil && len(o.Providers.Providers()) != 2 {
			err = errors.New("the other change has not come")
		}
		return err
	})
	if err := denies(); err != nil {
		t.Error(err)
	}
}

// An org's nodes receive only that org's configuration. An unknown node receives nothing.
func TestIsolation(t *testing.T) {
	p := newPlane(t)
	one, two := storetest.Org(t, p.db), storetest.Org(t, p.db)
	token, id := p.node(one)
	_, k := p.agent(two)
	x := p.client(token, nil)
	eventually(t, x.Ready)
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
		t.Errorf("another org's key: %v", err)
	}
	if _, err := x.Org(two); err == nil {
		t.Error("another org's configuration")
	}
	// Records of another org are rejected. The node's own are accepted.
	ship := xds.NewIngest(p.conn(), token)
	if _, err := ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 1, Org: two, Entry: []byte("{}")}}}); status.Code(errors.Unwrap(err)) != codes.PermissionDenied {
		t.Errorf("another org's record: %v", err)
	}
	if n, err := ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 1, Org: one, Entry: []byte("{}")}}}); err != nil || n != 1 {
		t.Errorf("one's own record: %d %v", n, err)
	}
	// A revoked node is disconnected, and cannot connect again.
	p.in(one, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
	eventually(t, func() error {
		if _, err := x.Caller(ctx(t), identity.PresentedKey([32]byte{3}), netip.Addr{}); !errors.Is(err, xds.ErrUnavailable) {
			return fmt.Errorf("still served: %v", err)
		}
		return nil
	})
	if _, err := ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 2, Org: one, Entry: []byte("{}")}}}); err == nil {
		t.Error("a revoked node's records were taken")
	}
}

// A request without a node's credential receives nothing.
func TestUnauthenticated(t *testing.T) {
	p := newPlane(t)
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn())
	agentKey, _ := mint(t, identity.AgentKey)
	stranger, _ := mint(t, identity.NodeToken)
	shown := [][]string{{}, {"authorization", ""}, {"authorization", "Bearer "}, {"authorization", "Bearer x"}, {"authorization", "Bearer " + agentKey},
		{"authorization", "Bearer " + stranger}, {"authorization", "Basic " + stranger}, {"authorization", "Bearer " + stranger, "authorization", "Bearer " + stranger}}
	types := []string{xds.CredentialType, xds.CallerType, xds.ListenerType, xds.ProviderType, "x", ""}
	seed := mathrand.New(mathrand.NewPCG(1, 2))
	for i := range 300 {
		c := metadata.AppendToOutgoingContext(ctx(t), shown[i%len(shown)]...)
		g, err := client.DeltaAggregatedResources(c)
		if err != nil {
			t.Fatal(err)
		}
		_ = g.Send(&discoveryv3.DeltaDiscoveryRequest{
			Node: &corev3.Node{Id: fmt.Sprint(seed.Int())}, TypeUrl: types[seed.IntN(len(types))], ResourceNamesSubscribe: []string{"*", "key:00"}[:seed.IntN(3)],
		})
		if resp, err := g.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Fatalf("%q got %v %v", shown[i%len(shown)], resp, err)
		}
	}
}

// Without heartbeats of the database, nothing is decided after MaxStaleness.
func TestStaleness(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	_, k := p.agent(org)
	var ahead atomic.Int64
	x := p.client(token, func(c *xds.ClientConfig) {
		c.MaxStaleness = time.Hour
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	eventually(t, x.Ready)
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	p.stop()
	eventually(t, func() error {
		if _, err := x.Caller(ctx(t), identity.PresentedKey([32]byte{9}), netip.Addr{}); !errors.Is(err, xds.ErrUnavailable) {
			return errors.New("still connected")
		}
		return nil
	})
	ahead.Store(int64(59 * time.Minute))
	if _, err := x.Org(org); err != nil {
		t.Errorf("after 59 minutes: %v", err)
	}
	ahead.Store(int64(61 * time.Minute))
	if _, err := x.Org(org); !errors.Is(err, xds.ErrUnavailable) {
		t.Errorf("after 61 minutes: %v", err)
	}
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); !errors.Is(err, xds.ErrUnavailable) {
		t.Errorf("after 61 minutes, a known caller: %v", err)
	}
	if x.Ready() == nil {
		t.Error("ready")
	}
}

// Unknown keys use no memory, and the number of callers is limited.
func TestBounds(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	x := p.client(token, func(c *xds.ClientConfig) { c.MaxCallers = 3 })
	eventually(t, x.Ready)
	for i := range 300 {
		if _, err := x.Caller(ctx(t), identity.PresentedKey([32]byte{byte(i), byte(i >> 8), 1}), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
			t.Fatalf("junk: %v", err)
		}
	}
	var keys []identity.Key
	for range 6 {
		_, k := p.agent(org)
		keys = append(keys, k)
	}
	for range 3 {
		for _, k := range keys {
			if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := xds.Callers(x); n > 3 {
		t.Errorf("%d callers are kept", n)
	}
}

// A sidecar learns the time zone of an org and when it changes.
func TestTimezone(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	x := p.client(token, nil)
	at := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	day := func(want string, at time.Time) {
		t.Helper()
		eventually(t, func() error {
			o, err := x.Org(org)
			if err != nil {
				return err
			}
			if got, _ := o.Calendar.Day(at); got != want {
				return fmt.Errorf("%v is %s, want %s", at, got, want)
			}
			return nil
		})
	}
	day("2026-12-02", at.Add(39*time.Hour))
	p.in(org, func(tx pgx.Tx) error {
		return identity.SetTimezone(context.Background(), tx, identity.Org{ID: org, Timezone: "Asia/Tokyo", TimezoneBefore: "UTC", TimezoneFrom: at})
	})
	day("2026-12-03", at.Add(39*time.Hour))
	day("2026-11-30", at.Add(-time.Hour))
}

// A sidecar gets the limits of an org's tier. An org whose tier is not in the file stays as it
// is. If the control plane has no valid state of it, sidecars do not receive it.
func TestTiers(t *testing.T) {
	p := newPlane(t)
	org, never, second := storetest.Org(t, p.db), storetest.Org(t, p.db), storetest.Org(t, p.db)
	set := func(org, name string) {
		t.Helper()
		conn := storetest.Connect(t, storetest.URL(t, store.OwnerRole))
		for _, statement := range []string{`SELECT set_config('aid.org', $1, false)`, `UPDATE orgs SET tier = '` + name + `' WHERE org_id = $1`} {
			if _, err := conn.Exec(t.Context(), statement, org); err != nil {
				t.Fatal(err)
			}
		}
	}
	tier := func(name string) { t.Helper(); set(org, name) }
	set(never, "lead")
	token, _ := p.node(org)
	x := p.client(token, nil)
	limits := func(want string) {
		t.Helper()
		eventually(t, func() error {
			o, err := x.Org(org)
			if err != nil {
				return err
			}
			if got := fmt.Sprintf("%v %s", o.TierLimits.Bind(org), o.Tier); got != want {
				return fmt.Errorf("%s, want %s", got, want)
			}
			return nil
		})
	}
	limits("[] ")
	gold := "[{tier rpm 7 0 org " + org + " tier:rpm:" + org + "}] gold"
	tier("gold")
	limits(gold)
	tier("lead")
	p.in(org, func(tx pgx.Tx) error { // a later change, which is not published either
		return identity.SetTimezone(context.Background(), tx, identity.Org{ID: org, Timezone: "Asia/Tokyo", TimezoneBefore: "Asia/Tokyo"})
	})
	limits(gold)
	// A sidecar that starts now gets an org of its own, and its changes, and the last valid state
	// of this one. An org whose tier was never known it does not get.
	token, _ = p.nodeOf(identity.Node{Roles: []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}}, org, never, second)
	fresh := p.client(token, nil)
	at := time.Date(2026, 12, 1, 20, 0, 0, 0, time.UTC)
	eventually(t, func() error { _, err := fresh.Org(second); return err })
	p.in(second, func(tx pgx.Tx) error {
		return identity.SetTimezone(context.Background(), tx, identity.Org{ID: second, Timezone: "Asia/Tokyo", TimezoneBefore: "Asia/Tokyo"})
	})
	eventually(t, func() error {
		o, err := fresh.Org(second)
		if day, _ := o.Calendar.Day(at); err == nil && day != "2026-12-02" {
			err = fmt.Errorf("it is %s", day)
		}
		return err
	})
	if o, err := fresh.Org(never); err == nil {
		t.Errorf("an org of a tier that is not known: %+v", o)
	}
	// The limits of a tier hold as soon as the org is there.
	for of, change := range map[string]func(){org: func() {}, never: func() { set(never, "gold") }} {
		change()
		var o verdict.Org
		eventually(t, func() (err error) { o, err = fresh.Org(of); return err })
		if got := fmt.Sprintf("%v %s", o.TierLimits.Bind(org), o.Tier); got != gold {
			t.Errorf("%s, want %s", got, gold)
		}
	}
	limits(gold)
}
