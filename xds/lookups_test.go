package xds_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/verdict"
	"github.com/ai-identity/ai-identity/xds"
)

// overheard is a connection that records the order of the responses for callers.
type overheard struct {
	grpc.ClientConnInterface
	mu      sync.Mutex
	answers [][]string // the names of callers in each message
}

func (o *overheard) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := o.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	return overheardStream{s, o}, err
}

type overheardStream struct {
	grpc.ClientStream
	o *overheard
}

func (s overheardStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if resp, ok := m.(*discoveryv3.DeltaDiscoveryResponse); ok && err == nil && resp.GetTypeUrl() == xds.CallerType {
		names := slices.Clone(resp.GetRemovedResources())
		for _, r := range resp.GetResources() {
			names = append(names, r.GetName())
		}
		s.o.mu.Lock()
		s.o.answers = append(s.o.answers, names)
		s.o.mu.Unlock()
	}
	return err
}

// before returns how many callers were in messages before the message with the name, and the
// number of messages.
func (o *overheard) before(name string) (n, messages int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, names := range o.answers {
		if slices.Contains(names, name) {
			return n, len(o.answers)
		}
		n += len(names)
	}
	return -1, len(o.answers)
}

// lockKeys blocks every transaction that reads keys, until the returned function is called.
func lockKeys(t *testing.T) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), storetest.OwnerURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE agent_keys IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := conn.Exec(context.Background(), "ROLLBACK"); err != nil {
			t.Error(err)
		}
	}
}

// A thousand unknown keys, all at once from one peer, cost a few transactions. A new key of
// another peer is looked up before most of them. A new key of the same peer is also looked
// up.
func TestJunkKeysDoNotStarve(t *testing.T) {
	const junk = 1000
	attacker, client := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	key := func(n int) identity.Presented {
		return identity.PresentedKey([32]byte{byte(n), byte(n >> 8), 0xad})
	}
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	_, good := p.agent(org)
	_, same := p.agent(org)
	conn, registry := &overheard{ClientConnInterface: p.conn()}, prometheus.NewRegistry()
	x := p.client(token, func(c *xds.ClientConfig) { c.Conn, c.Registerer = conn, registry })
	eventually(t, x.Ready)
	waiting := func(x *prometheus.Registry, want float64) {
		t.Helper()
		eventually(t, func() error {
			all, err := x.Gather()
			for _, f := range all {
				if f.GetName() == "aid_xds_client_lookups_waiting" && f.GetMetric()[0].GetGauge().GetValue() != want {
					err = fmt.Errorf("%v keys wait, want %v", f.GetMetric()[0].GetGauge().GetValue(), want)
				}
			}
			return err
		})
	}
	var users sync.WaitGroup
	flood := func(x *xds.Client) {
		for n := range junk {
			users.Go(func() {
				if _, err := x.Caller(ctx(t), key(n), attacker); !errors.Is(err, verdict.ErrUnknownCaller) {
					t.Errorf("junk: %v", err)
				}
			})
		}
	}
	use := func(k identity.Key, peer netip.Addr) {
		for range 2 { // one lookup for both
			users.Go(func() {
				if c, err := x.Caller(t.Context(), identity.PresentedKey(k.Hash), peer); err != nil || c.Key.ID != k.ID {
					t.Errorf("a good key from %v: %v", peer, err)
				}
			})
		}
	}

	release := lockKeys(t)
	flood(x)
	waiting(registry, junk)
	use(same, attacker)
	waiting(registry, junk+1)
	use(good, client)
	waiting(registry, junk+2)
	if err := errors.Join(x.Ready(), p.server.Ready(t.Context())); err != nil {
		t.Errorf("not ready under junk: %v", err)
	}
	release()
	users.Wait()
	name := "key:" + string(identity.PresentedKey(good.Hash))
	n, messages := conn.before(name)
	if n < 0 || n > 2*200 {
		t.Errorf("%d keys of the other peer were answered before the good one", n)
	}
	if messages > 40 {
		t.Errorf("%d keys were looked up in %d transactions", junk+2, messages)
	}
	t.Logf("%d keys in %d transactions; %d before the good one", junk+2, messages, n)

	// Another node looks up the same keys. The control plane has them in its cache of
	// missing callers, so it needs no transaction. A transaction would block now.
	release = lockKeys(t)
	token, _ = p.node(org)
	x2 := p.client(token, func(c *xds.ClientConfig) { c.NegativeTTL = time.Millisecond })
	eventually(t, x2.Ready)
	flood(x2)
	users.Wait()
	release()
	// A created key is known at once.
	a, _ := p.agent(org)
	hash, _ := key(0).KeyHash()
	k := identity.Key{OrgID: org, AgentID: a.ID, ID: "key_late", Name: "late", Hash: hash, CreatedAt: time.Now()}
	p.in(org, func(tx pgx.Tx) error { return identity.InsertKey(context.Background(), tx, k) })
	eventually(t, func() error { _, err := x2.Caller(ctx(t), key(0), attacker); return err })
}

// The lookups of one peer and of all peers are limited. If all are full, the newest lookup of
// the peer with the most ends, and a peer without a lookup gets its place.
func TestLookupsAreBounded(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	x := p.client(token, nil)
	eventually(t, x.Ready)
	release := lockKeys(t)
	const perPeer, all = 2000, 8000
	hung, hang := context.WithCancel(t.Context())
	var users sync.WaitGroup
	results := make(chan error, 20_000)
	n := 0
	from := func(peer string, count int) {
		for range count {
			n++
			k := identity.PresentedKey([32]byte{byte(n), byte(n >> 8), 7})
			users.Go(func() {
				_, err := x.Caller(hung, k, netip.MustParseAddr(peer))
				results <- err
			})
		}
	}
	rejected := func(want int) {
		t.Helper()
		for range want {
			if err := <-results; !errors.Is(err, xds.ErrUnavailable) {
				t.Errorf("beyond the bound: %v", err)
			}
		}
	}
	// 200 lookups of the first peer are in flight and not in a queue.
	from("192.0.2.1", perPeer+200+50)
	rejected(50)
	from("192.0.2.2", perPeer+1)
	rejected(1)
	from("192.0.2.3", perPeer)
	// Addresses of one /64 are one peer.
	for i := range 10 {
		from(fmt.Sprintf("2001:db8::%x", i+1), perPeer/10)
	}
	from("2001:db8::ffff", 1)
	rejected(1)
	from("192.0.2.4", 1) // all are full: the newest of a full peer ends
	rejected(1)
	from("192.0.2.4", 1) // this peer has one already
	rejected(1)
	if len(results) != 0 {
		t.Errorf("%d more were rejected", len(results))
	}
	hang()
	users.Wait()
	release()
	_, k := p.agent(org)
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
