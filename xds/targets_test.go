package xds_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/matchers/upstream_ip_port/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/xds"
)

// rulesOf returns the rules of the one cluster's filter.
func rulesOf(t *testing.T, s *xds.Snapshot) *rbacv3.RBAC {
	t.Helper()
	for _, c := range s.Clusters {
		var o httpv3.HttpProtocolOptions
		var filter rbacfilterv3.RBAC
		for _, a := range c.GetTypedExtensionProtocolOptions() {
			if err := a.UnmarshalTo(&o); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.GetHttpFilters()[0].GetTypedConfig().UnmarshalTo(&filter); err != nil {
			t.Fatal(err)
		}
		return filter.GetRules()
	}
	t.Fatal("no cluster")
	return nil
}

// rule is a permission as Envoy evaluates it.
type rule func(netip.Addr, uint16) bool

func ruleOf(t *testing.T, p *rbacv3.Permission) rule {
	t.Helper()
	each := func(s *rbacv3.Permission_Set) (out []rule) {
		for _, p := range s.GetRules() {
			out = append(out, ruleOf(t, p))
		}
		return out
	}
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		all := each(r.AndRules)
		return func(a netip.Addr, port uint16) bool {
			for _, f := range all {
				if !f(a, port) {
					return false
				}
			}
			return true
		}
	case *rbacv3.Permission_OrRules:
		all := each(r.OrRules)
		return func(a netip.Addr, port uint16) bool {
			for _, f := range all {
				if f(a, port) {
					return true
				}
			}
			return false
		}
	case *rbacv3.Permission_NotRule:
		f := ruleOf(t, r.NotRule)
		return func(a netip.Addr, port uint16) bool { return !f(a, port) }
	case *rbacv3.Permission_Matcher:
		var m upstreamv3.UpstreamIpPortMatcher
		if err := r.Matcher.GetTypedConfig().UnmarshalTo(&m); err != nil {
			t.Fatal(err)
		}
		prefix := netip.PrefixFrom(netip.MustParseAddr(m.GetUpstreamIp().GetAddressPrefix()), int(m.GetUpstreamIp().GetPrefixLen().GetValue()))
		ports := m.GetUpstreamPortRange()
		return func(a netip.Addr, port uint16) bool {
			return prefix.Contains(a) && (ports == nil || int64(port) >= ports.GetStart() && int64(port) < ports.GetEnd())
		}
	default:
		t.Fatalf("a rule of type %T", r)
		return nil
	}
}

// TestTargetsAlike compares Envoy's rules with provider.Targets: the check of a literal address
// and the check of a resolved name are the same.
func TestTargetsAlike(t *testing.T) {
	const each, seed = 25_000, 7
	random := rand.New(rand.NewPCG(seed, seed))
	ports := []uint16{1, 80, 443, 8080, 8081, 9090}
	own := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8081"), netip.MustParseAddrPort("0.0.0.0:9090"), netip.MustParseAddrPort("[::]:8080"), netip.MustParseAddrPort("10.0.0.5:8080"),
		netip.MustParseAddrPort("[fd00::5]:443"), netip.MustParseAddrPort("[::ffff:10.0.0.6]:80")}
	allowed, rejected := 0, 0
	for _, private := range [][]string{nil, {"127.0.0.0/8", "::1"}, {"10.0.0.0/8", "fd00::/8"}, {"0.0.0.0/0", "::/0"}} {
		for _, ours := range [][]netip.AddrPort{nil, own} {
			targets, err := provider.ParseTargets(private)
			if err != nil {
				t.Fatal(err)
			}
			targets.Own = ours
			in := input("stream", providers()[:1]...)
			in.Targets = targets
			rules := rulesOf(t, build(t, in))
			if rules.GetAction() != rbacv3.RBAC_ALLOW || len(rules.GetPolicies()) != 1 {
				t.Fatal(rules)
			}
			var envoys rule
			for _, p := range rules.GetPolicies() {
				if len(p.GetPermissions()) != 1 {
					t.Fatal(p)
				}
				envoys = ruleOf(t, p.GetPermissions()[0])
			}
			var edges []netip.Prefix
			edges = append(append(append(edges, provider.Public...), provider.Special...), provider.Never...)
			edges = append(edges, targets.Private...)
			for _, o := range targets.OwnPrefixes() {
				edges = append(edges, o.Prefix)
			}
			for range each {
				a, port := address(random, edges), ports[random.IntN(len(ports))]
				want := targets.Allows(a, port)
				if got := envoys(a, port); got != want {
					t.Fatalf("%s port %d with %v, own %v: Envoy %v, provider.Targets %v", a, port, private, ours, got, want)
				}
				if want {
					allowed++
				} else {
					rejected++
				}
			}
		}
	}
	if allowed < 10_000 || rejected < 10_000 {
		t.Errorf("%d allowed and %d rejected: too one-sided to show anything", allowed, rejected)
	}
	t.Logf("%d addresses, %d of them allowed, 0 differences", allowed+rejected, allowed)
}

// address returns an address: any, or one in or beside the edge of a range, also in the
// forms in which IPv6 holds IPv4.
func address(random *rand.Rand, edges []netip.Prefix) netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	a := netip.AddrFrom16(b)
	if random.IntN(2) == 0 {
		a = netip.AddrFrom4([4]byte(b[:4]))
	}
	if random.IntN(4) > 0 {
		p := edges[random.IntN(len(edges))]
		a = p.Addr()
		if random.IntN(2) == 0 { // the last of the range
			raw := a.AsSlice()
			for i := p.Bits(); i < a.BitLen(); i++ {
				raw[i/8] |= 1 << (7 - i%8)
			}
			a, _ = netip.AddrFromSlice(raw)
		}
		switch next := [3]netip.Addr{a.Prev(), a, a.Next()}[random.IntN(3)]; {
		case next.IsValid():
			a = next
		}
	}
	if a.Is4() && random.IntN(4) == 0 {
		v4 := a.As4()
		forms := []string{fmt.Sprintf("::ffff:%s", a), fmt.Sprintf("64:ff9b::%s", a), fmt.Sprintf("2002:%02x%02x:%02x%02x::1", v4[0], v4[1], v4[2], v4[3]), fmt.Sprintf("::%s", a)}
		a = netip.MustParseAddr(forms[random.IntN(len(forms))])
	}
	return a
}

// TestTargetsAreSmall bounds what each provider costs: Envoy gets the rules with each
// cluster.
func TestTargetsAreSmall(t *testing.T) {
	all := make([]provider.Provider, 200)
	for i := range all {
		all[i] = providers()[0]
		all[i].ID, all[i].Name, all[i].BaseURL = fmt.Sprintf("prov_%03d", i), fmt.Sprintf("p%03d", i), fmt.Sprintf("https://p%03d.example.com/v1", i)
	}
	s := build(t, input("stream", all...))
	total := 0
	for _, c := range s.Clusters {
		total += proto.Size(c)
	}
	rules := proto.Size(rulesOf(t, s))
	t.Logf("%d clusters: %d bytes, of which rules of targets: %d each", len(s.Clusters), total, rules)
	if len(s.Clusters) != 200 || total > 200*8_000 {
		t.Errorf("%d clusters take %d bytes", len(s.Clusters), total)
	}
}
