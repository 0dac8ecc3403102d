package xds_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/verdict"
	"github.com/ai-identity/ai-identity/xds"
)

var wrongTenant = flag.Int("wrong-tenant", 50_000, "requests of TestWrongTenant; 1000000 for the whole")

// provider creates a provider with a credential. Its id is the same in every org.
func (p *plane) provider(org, secret string) provider.Provider {
	p.t.Helper()
	now := time.Now()
	prov := provider.Provider{ID: "prov_same", OrgID: org, Name: "one", Kind: "openai", BaseURL: "http://127.0.0.1:9/v1", Models: []string{"m"}, Version: 1, CreatedAt: now, UpdatedAt: now}
	sealed, err := p.sealer.Seal([]byte(secret))
	if err != nil {
		p.t.Fatal(err)
	}
	p.in(org, func(tx pgx.Tx) error {
		return errors.Join(provider.Insert(context.Background(), tx, p.sealer, prov),
			provider.PutCredential(context.Background(), tx, provider.Credential{ProviderID: prov.ID, Cluster: provider.ClusterName(prov), Sealed: sealed, UpdatedAt: now}))
	})
	return prov
}

// sole returns the only provider that a client has for an org.
func sole(x *xds.Client, org string) (provider.Provider, error) {
	o, err := x.Org(org)
	if err != nil {
		return provider.Provider{}, err
	}
	all := o.Providers.Providers()
	if len(all) != 1 {
		return provider.Provider{}, fmt.Errorf("%s has %d providers", org, len(all))
	}
	return all[0], nil
}

var bothRoles = []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}

// fetch subscribes to a type as the node with the token.
func (p *plane) fetch(token, typeURL string) (*discoveryv3.DeltaDiscoveryResponse, error) {
	p.t.Helper()
	g, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn()).DeltaAggregatedResources(
		metadata.AppendToOutgoingContext(ctx(p.t), "authorization", "Bearer "+token))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := g.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}); err != nil {
		return nil, err
	}
	return g.Recv()
}

// One gateway serves several orgs. Their providers have the same ids, names and models. A
// request's key selects the org, and so the provider, its cluster and its credential. An org
// that the gateway does not serve does not exist for it.
func TestWrongTenant(t *testing.T) {
	p := newPlane(t)
	var orgs []string
	for range 5 {
		orgs = append(orgs, storetest.Org(t, p.db))
	}
	served, foreign := orgs[:4], orgs[4]
	keys := map[identity.Presented]string{} // orgs by key
	clusters := map[string]string{}         // by org
	for _, org := range orgs {
		clusters[org] = provider.ClusterName(p.provider(org, "secret of "+org))
		for range 3 {
			_, k := p.agent(org)
			keys[identity.PresentedKey(k.Hash)] = org
		}
	}
	token, _ := p.nodeOf(identity.Node{Roles: bothRoles, ByOperator: true}, served...)
	x := p.client(token, nil)
	for _, org := range served {
		eventually(t, func() error {
			prov, err := sole(x, org)
			if err == nil && prov.Credential.Reveal() != "secret of "+org {
				err = errors.New("no credential")
			}
			return err
		})
	}

	// Envoy has a route for each org, with its own name, to the cluster of that name. The
	// other org has no route.
	resp, err := p.fetch(token, xds.RouteType)
	if err != nil || len(resp.GetResources()) != 1 {
		t.Fatalf("routes: %v, %v", resp, err)
	}
	var table routev3.RouteConfiguration
	if err := resp.GetResources()[0].GetResource().UnmarshalTo(&table); err != nil {
		t.Fatal(err)
	}
	leads := map[string]string{} // clusters by the value of x-aid-route
	for _, r := range table.GetVirtualHosts()[0].GetRoutes() {
		for _, h := range r.GetMatch().GetHeaders() {
			leads[h.GetStringMatch().GetExact()] = r.GetRoute().GetCluster()
		}
	}
	want := map[string]string{}
	for _, org := range served {
		want[clusters[org]] = clusters[org]
	}
	if !maps.Equal(leads, want) {
		t.Errorf("routes %v, want %v", leads, want)
	}
	if resp, err = p.fetch(token, xds.ClusterType); err != nil || len(resp.GetResources()) != len(served) {
		t.Errorf("clusters: %v, %v", resp, err)
	}

	seed := mathrand.Uint64()
	r := mathrand.New(mathrand.NewPCG(seed, 0))
	all := slices.Sorted(maps.Keys(keys))
	for i := range *wrongTenant {
		key := all[r.IntN(len(all))]
		org := keys[key]
		c, err := x.Caller(t.Context(), key, netip.Addr{})
		if org == foreign {
			if !errors.Is(err, verdict.ErrUnknownCaller) {
				t.Fatalf("seed %d, request %d: a key of another org: %+v, %v", seed, i, c, err)
			}
			continue
		}
		if err != nil || c.Agent.OrgID != org || c.Key.OrgID != org {
			t.Fatalf("seed %d, request %d: a key of %s is %+v, %v", seed, i, org, c, err)
		}
		prov, err := sole(x, c.Agent.OrgID)
		if err != nil || prov.OrgID != org || leads[prov.Cluster] != clusters[org] || prov.Credential.Reveal() != "secret of "+org {
			t.Fatalf("seed %d, request %d: a request of %s goes to %s of %s, %v", seed, i, org, prov.Cluster, prov.OrgID, err)
		}
	}
	if _, err := x.Org(foreign); err == nil {
		t.Error("an org that the node does not serve is there")
	}

	// Sums of counts have the same names in every org.
	for i, org := range orgs {
		p.charged(org, "same", int64(i+1))
	}
	budgets := xds.NewBudgets(p.conn(), token)
	for i, org := range orgs {
		got, err := budgets.Counts(ctx(t), audit.CountsRequest{Org: org, Writer: "w_1", Names: []audit.CountName{{Counter: "same", Period: "2026-11"}}})
		if org == foreign {
			if !errors.Is(err, xds.ErrDenied) || len(got.Counts) != 0 || got.Sidecars != 0 {
				t.Errorf("the sums of another org: %+v, %v", got, err)
			}
			continue
		}
		if err != nil || got.Counts[0].ChargedNanoUSD != int64(i+1) || got.Sidecars != 1 {
			t.Errorf("the sums of %s: %+v, %v", org, got, err)
		}
	}

	// A node may append for its orgs. A batch with another org is rejected as a whole.
	ship := xds.NewIngest(p.conn(), token)
	entry := []byte("{}")
	for i, org := range served[:2] {
		seq := uint64(i + 1)
		if n, err := ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: seq, Org: org, Entry: entry}}}); err != nil || n != seq {
			t.Errorf("a record of one of two orgs: %d, %v", n, err)
		}
	}
	before := p.taken.count()
	_, err = ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 4, Org: served[0], Entry: entry}, {Seq: 5, Org: foreign, Entry: entry}}})
	if status.Code(errors.Unwrap(err)) != codes.PermissionDenied || p.taken.count() != before {
		t.Errorf("a batch with another org's record: %v, and %d were taken", err, p.taken.count()-before)
	}
	// All records of a batch must belong to one org, since the reply is about one.
	_, err = ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 4, Org: served[0], Entry: entry}, {Seq: 5, Org: served[1], Entry: entry}}})
	if status.Code(errors.Unwrap(err)) != codes.InvalidArgument || p.taken.count() != before {
		t.Errorf("a batch of two orgs: %v, and %d were taken", err, p.taken.count()-before)
	}
	_, err = ship.Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 5, Org: foreign, Entry: entry}}})
	if status.Code(errors.Unwrap(err)) != codes.PermissionDenied || p.taken.count() != before {
		t.Errorf("a batch with another org's record: %v, and %d were taken", err, p.taken.count()-before)
	}
}

// An org that revokes a gateway is no longer served; the other orgs are. A gateway that gets
// another org serves it without a restart.
func TestOrgLeavesGateway(t *testing.T) {
	p := newPlane(t)
	one, two := storetest.Org(t, p.db), storetest.Org(t, p.db)
	p.provider(one, "1")
	p.provider(two, "2")
	_, k1 := p.agent(one)
	_, k2 := p.agent(two)
	token, id := p.nodeOf(identity.Node{Roles: bothRoles, ByOperator: true}, one, two)
	x := p.client(token, nil)
	for _, org := range []string{one, two} {
		eventually(t, func() error { _, err := sole(x, org); return err })
	}
	for _, k := range []identity.Key{k1, k2} {
		if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
			t.Fatal(err)
		}
	}
	p.in(two, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
	eventually(t, func() error {
		if _, err := x.Org(two); err == nil {
			return errors.New("the org is still there")
		}
		if _, err := x.Caller(ctx(t), identity.PresentedKey(k2.Hash), netip.Addr{}); !errors.Is(err, verdict.ErrUnknownCaller) {
			return fmt.Errorf("its key: %v", err)
		}
		return nil
	})
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k1.Hash), netip.Addr{}); err != nil {
		t.Errorf("the other org's key: %v", err)
	}
	if prov, err := sole(x, one); err != nil || prov.Credential.Reveal() != "1" {
		t.Errorf("the other org: %v", err)
	}
}

// Each role receives only its types, and only a sidecar may append.
func TestRoles(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	p.provider(org, "sk")
	envoys := []string{xds.ListenerType, xds.RouteType, xds.ClusterType}
	sidecars := []string{xds.CredentialType, xds.ProviderType, xds.PolicyType, xds.OrgType, xds.HeartbeatType}
	for _, c := range []struct {
		roles []identity.NodeRole
		may   []string
		ships bool
	}{
		{nil, nil, false},
		{[]identity.NodeRole{identity.NodeEnvoy}, envoys, false},
		{[]identity.NodeRole{identity.NodeExtproc}, append([]string{xds.CallerType}, sidecars...), true},
		{bothRoles, slices.Concat(envoys, sidecars, []string{xds.CallerType}), true},
	} {
		token, _ := p.nodeOf(identity.Node{Roles: c.roles}, org)
		for _, typeURL := range slices.Concat(envoys, sidecars, []string{xds.CallerType}) {
			may := slices.Contains(c.may, typeURL)
			if may && typeURL == xds.CallerType {
				continue // nothing is sent until the node subscribes to a name
			}
			resp, err := p.fetch(token, typeURL)
			if may && err != nil || !may && status.Code(err) != codes.PermissionDenied {
				t.Errorf("roles %v, %s: %d resources, %v", c.roles, typeURL, len(resp.GetResources()), err)
			}
		}
		n, err := xds.NewIngest(p.conn(), token).Send(ctx(t), audit.Batch{Writer: "w_1", Records: []audit.Record{{Seq: 1, Org: org, Entry: []byte("{}")}}})
		if c.ships && (err != nil || n != 1) || !c.ships && status.Code(errors.Unwrap(err)) != codes.PermissionDenied {
			t.Errorf("roles %v append: %d, %v", c.roles, n, err)
		}
	}
}

// A revoked node deletes its configuration at once: a denial is not an outage.
func TestRevokedNodeDecidesNothing(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	p.provider(org, "sk")
	_, k := p.agent(org)
	token, id := p.node(org)
	ended := make(chan bool, 4)
	x := p.client(token, func(c *xds.ClientConfig) {
		c.Changed = func(_ identity.Presented, _ identity.Caller, known bool) { ended <- known }
	})
	eventually(t, func() error { _, err := sole(x, org); return err })
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	p.in(org, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
	if known := <-ended; known {
		t.Error("what was in flight is not ended")
	}
	if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); !errors.Is(err, xds.ErrDenied) {
		t.Errorf("a caller that was known: %v", err)
	}
	if _, err := x.Org(org); !errors.Is(err, xds.ErrDenied) {
		t.Errorf("the org: %v", err)
	}
	if err := x.Ready(); !errors.Is(err, xds.ErrDenied) || !strings.Contains(err.Error(), "aid node create") {
		t.Errorf("ready: %v", err)
	}
}

// A control plane without the key that encrypted a credential removes it from no node, and
// is not ready.
func TestUnopenedCredentialIsKept(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	prov := p.provider(org, "good")
	token, _ := p.node(org)
	x := p.client(token, nil)
	holds := func() error {
		got, err := sole(x, org)
		if err == nil && got.Credential.Reveal() != "good" {
			err = errors.New("the credential is gone")
		}
		return err
	}
	eventually(t, holds)
	other, err := provider.NewSealer([]string{"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := other.Seal([]byte("better"))
	if err != nil {
		t.Fatal(err)
	}
	p.in(org, func(tx pgx.Tx) error {
		return provider.PutCredential(context.Background(), tx, provider.Credential{ProviderID: prov.ID, Cluster: provider.ClusterName(prov), Sealed: sealed, UpdatedAt: time.Now()})
	})
	eventually(t, func() error {
		if err := p.server.Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "fernet") {
			return fmt.Errorf("the keys decrypt nothing, and Ready returned %v", err)
		}
		return nil
	})
	if err := holds(); err != nil {
		t.Error(err)
	}
	// Another org's credential opens: this one's is no reason to serve neither.
	second := storetest.Org(t, p.db)
	p.provider(second, "opens")
	token2, _ := p.node(second)
	y := p.client(token2, nil)
	eventually(t, func() error {
		if got, err := sole(y, second); err != nil || got.Credential.Reveal() != "opens" {
			return fmt.Errorf("%+v %v", got, err)
		}
		return p.server.Ready(context.Background())
	})
	if err := p.server.Unopened(); err == nil || !strings.Contains(err.Error(), org) || !strings.Contains(err.Error(), prov.ID) || strings.Contains(err.Error(), second) {
		t.Errorf("what does not open: %v", err)
	}
	// Also with another control plane that has never had the key.
	p.stop()
	eventually(t, func() error {
		if _, err := x.Caller(ctx(t), identity.PresentedKey([32]byte{9}), netip.Addr{}); !errors.Is(err, xds.ErrUnavailable) {
			return errors.New("still connected")
		}
		return nil
	})
	p.serve()
	_, k := p.agent(org)
	eventually(t, func() error { _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); return err })
	if err := holds(); err != nil {
		t.Errorf("after a reconnect: %v", err)
	}
	// With the key, the credential is decrypted without a change in the database.
	if err := p.sealer.Replace([]string{"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}); err != nil {
		t.Fatal(err)
	}
	p.server.Reread()
	eventually(t, func() error {
		got, err := sole(x, org)
		if err == nil && got.Credential.Reveal() != "better" {
			err = errors.New("the credential is the old one")
		}
		return errors.Join(err, p.server.Ready(context.Background()))
	})
}

// A control plane with another Fernet file is not ready before any node is connected. It is
// ready with the right file, and while a rotation is in progress. (FAULTS P5)
func TestOtherFernetFile(t *testing.T) {
	const first, second, stale = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "MTEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	p := newPlane(t) // the first control plane, with the key first
	ready := func(want bool, keys ...string) {
		t.Helper()
		if err := p.sealer.Replace(keys); err != nil {
			t.Fatal(err)
		}
		err := p.server.Ready(t.Context())
		if want && err != nil {
			t.Errorf("%v", err)
		}
		if !want && (err == nil || !strings.Contains(err.Error(), "--fernet-keys") || !strings.Contains(err.Error(), "credential")) {
			t.Errorf("with another file: %v", err)
		}
	}
	ready(false, stale)
	ready(true, first)
	ready(true, second, first) // the rotation: this replica first
	ready(true, first)         // the other replica has not read the file yet
	both, err := provider.NewSealer([]string{second, first})
	if err != nil {
		t.Fatal(err)
	}
	if err := provider.ResealProof(t.Context(), p.db.Pool(), both); err != nil {
		t.Fatal(err)
	}
	ready(true, second)
	ready(false, first) // the old key alone is a stale file now
}
