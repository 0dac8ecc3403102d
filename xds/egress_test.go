package xds_test

import (
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/xds"
)

// intercepting returns the input of an org with providers of two governed hosts.
func intercepting(org string) xds.Input {
	one, two := providers()[0], providers()[0]
	one.Name, one.ID, one.OrgID, one.Hosts = "one", "prov_1", org, []string{"api.one.example", "not.governed.example"}
	two.Name, two.ID, two.OrgID, two.Hosts = "two", "prov_2", org, []string{"api.two.example"}
	in := input("stream", one, two)
	in.OrgID = org
	in.Egress = xds.Egress{Listen: "127.0.0.1:8443", Proxy: "127.0.0.1:3128", Hosts: []string{"api.one.example", "api.two.example", "api.three.example"}}
	return in
}

func TestEgressGolden(t *testing.T) {
	usage := intercepting("org_1")
	usage.Usage = "envoy"
	if err := xds.Lint(build(t, usage)); err != nil {
		t.Error(err)
	}
	s := build(t, intercepting("org_1"))
	if err := xds.Lint(s); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"aid_gateway", "aid_inner"} {
		delete(s.Listeners, name) // as in all.json, and as aid_egress with the facts of the tunnel
	}
	delete(s.Routes, "aid_routes")
	for _, l := range s.Listeners {
		for _, c := range l.GetFilterChains() {
			hcm := &hcmv3.HttpConnectionManager{}
			unpack(t, c.GetFilters()[0].GetTypedConfig(), hcm)
			hcm.LocalReplyConfig = nil
			c.GetFilters()[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, hcm)}
		}
	}
	golden(t, "egress.json", render(t, s))
}

// An Envoy of two orgs has one chain for a host that both govern, with the routes of both.
func TestEgressJoin(t *testing.T) {
	a, b := build(t, intercepting("org_1")), build(t, intercepting("org_2"))
	s, err := xds.Join([]*xds.Snapshot{a, b})
	if err != nil {
		t.Fatal(err)
	}
	if err := xds.Lint(s); err != nil {
		t.Error(err)
	}
	table := s.Routes["aid_egress/api.one.example"]
	if n := len(table.GetVirtualHosts()[0].GetRoutes()); n != 4 { // escaped slashes, two orgs, the end
		t.Errorf("%d routes", n)
	}
	if n := len(s.Listeners["aid_egress"].GetFilterChains()); n != 2 {
		t.Errorf("%d chains", n)
	}
	only := intercepting("org_3")
	only.Providers = only.Providers[:1]
	s, err = xds.Join([]*xds.Snapshot{build(t, only), b})
	if err != nil {
		t.Fatal(err)
	}
	if err := xds.Lint(s); err != nil {
		t.Error(err)
	}
	if n := len(s.Listeners["aid_inner"].GetFilterChains()); n != 2 {
		t.Errorf("%d chains", n)
	}
}

// Each change that would let an intercepted request pass unjudged, or to another provider, is a
// fault with its rule.
func TestEgressLint(t *testing.T) {
	manager := func(s *xds.Snapshot, name string, change func(*hcmv3.HttpConnectionManager)) {
		f := s.Listeners[name].GetFilterChains()[0].GetFilters()[0]
		hcm := &hcmv3.HttpConnectionManager{}
		unpack(t, f.GetTypedConfig(), hcm)
		change(hcm)
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, hcm)}
	}
	table := func(s *xds.Snapshot) *routev3.RouteConfiguration { return s.Routes["aid_egress/api.one.example"] }
	for _, c := range []struct {
		name, rule string
		change     func(*xds.Snapshot)
	}{
		{"another listener", "L01", func(s *xds.Snapshot) { s.Listeners["x"] = proto.CloneOf(s.Listeners["aid_egress"]) }},
		{"a default chain", "L15", func(s *xds.Snapshot) {
			s.Listeners["aid_egress"].DefaultFilterChain = s.Listeners["aid_egress"].FilterChains[0]
		}},
		{"a chain for two names", "L15", func(s *xds.Snapshot) {
			s.Listeners["aid_egress"].FilterChains[0].FilterChainMatch.ServerNames = []string{"api.one.example", "x.example"}
		}},
		{"a wildcard", "L15", func(s *xds.Snapshot) {
			s.Listeners["aid_egress"].FilterChains[0].FilterChainMatch.ServerNames = []string{"*.one.example"}
		}},
		{"plain text", "L15", func(s *xds.Snapshot) { s.Listeners["aid_egress"].FilterChains[0].TransportSocket = nil }},
		{"another host's certificate", "L15", func(s *xds.Snapshot) {
			cs := s.Listeners["aid_egress"].FilterChains
			cs[0].TransportSocket = cs[1].TransportSocket
		}},
		{"another host's routes", "L15", func(s *xds.Snapshot) {
			manager(s, "aid_egress", func(h *hcmv3.HttpConnectionManager) {
				h.GetRds().RouteConfigName = "aid_egress/api.two.example"
			})
		}},
		{"the gateway's routes", "L15", func(s *xds.Snapshot) {
			manager(s, "aid_inner", func(h *hcmv3.HttpConnectionManager) { h.GetRds().RouteConfigName = "aid_routes" })
		}},
		{"no facts", "L15", func(s *xds.Snapshot) {
			manager(s, "aid_inner", func(h *hcmv3.HttpConnectionManager) { h.EarlyHeaderMutationExtensions = nil })
		}},
		{"facts of the listener in the tunnel", "L15", func(s *xds.Snapshot) {
			s.Listeners["aid_inner"].FilterChains = s.Listeners["aid_egress"].FilterChains
		}},
		{"no extproc", "L01", func(s *xds.Snapshot) {
			manager(s, "aid_inner", func(h *hcmv3.HttpConnectionManager) { h.HttpFilters = h.HttpFilters[1:] })
		}},
		{"an upgrade", "L07", func(s *xds.Snapshot) {
			manager(s, "aid_egress", func(h *hcmv3.HttpConnectionManager) {
				h.UpgradeConfigs = []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}}
			})
		}},
		{"another log of connections", "L17", func(s *xds.Snapshot) {
			s.Listeners["aid_egress"].AccessLog = s.Listeners["aid_inner"].AccessLog
		}},
		{"no log of connections", "L17", func(s *xds.Snapshot) { s.Listeners["aid_inner"].AccessLog = nil }},
		{"a proxy without a log", "L16", func(s *xds.Snapshot) { s.Listeners["aid_proxy"].AccessLog = nil }},
		{"an access log", "L06", func(s *xds.Snapshot) {
			manager(s, "aid_egress", func(h *hcmv3.HttpConnectionManager) { h.AccessLog = nil })
		}},
		{"a listener with an address behind the proxy", "L15", func(s *xds.Snapshot) {
			s.Listeners["aid_inner"].Address = s.Listeners["aid_egress"].Address
		}},
		{"a route for every host", "L15", func(s *xds.Snapshot) {
			table(s).VirtualHosts[1].Routes = table(s).VirtualHosts[0].Routes
		}},
		{"a table for every host", "L05", func(s *xds.Snapshot) { table(s).VirtualHosts[0].Domains = []string{"*"} }},
		{"a route without a decision", "L05", func(s *xds.Snapshot) { table(s).VirtualHosts[0].Routes[1].Match.Headers = nil }},
		{"a management path", "L05", func(s *xds.Snapshot) {
			rs := table(s).VirtualHosts[0].Routes
			table(s).VirtualHosts[0].Routes = slices.Insert(rs, 1, s.Routes["aid_routes"].VirtualHosts[0].Routes[3])
		}},
		{"a host without a table", "L15", func(s *xds.Snapshot) { delete(s.Routes, "aid_egress/api.two.example") }},
		{"a tunnel elsewhere", "L16", func(s *xds.Snapshot) {
			manager(s, "aid_proxy", func(h *hcmv3.HttpConnectionManager) {
				h.GetRouteConfig().VirtualHosts[0].Domains = []string{"*:443"}
			})
		}},
		{"a proxy for others", "L16", func(s *xds.Snapshot) {
			s.Listeners["aid_proxy"].Address.GetSocketAddress().Address = "0.0.0.0"
		}},
		{"a tunnel to a provider", "L16", func(s *xds.Snapshot) {
			manager(s, "aid_proxy", func(h *hcmv3.HttpConnectionManager) {
				h.GetRouteConfig().VirtualHosts[0].Routes[0].GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: provider.ClusterName(intercepting("org_1").Providers[0])}
			})
		}},
		{"an inner cluster that leads elsewhere", "L15", func(s *xds.Snapshot) {
			s.Clusters["aid_inner"].LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address = &corev3.Address{Address: &corev3.Address_SocketAddress{
				SocketAddress: &corev3.SocketAddress{Address: "203.0.113.1"},
			}}
		}},
		{"an inner cluster by DNS", "L15", func(s *xds.Snapshot) {
			s.Clusters["aid_inner"].ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := build(t, intercepting("org_1"))
			c.change(s)
			if err := xds.Lint(s); err == nil || !strings.Contains(err.Error(), c.rule+":") {
				t.Errorf("lint: %v, want %s", err, c.rule)
			}
		})
	}
}

func TestCheckEgress(t *testing.T) {
	ok := xds.Egress{Listen: "127.0.0.1:8443", Proxy: "127.0.0.1:3128", Hosts: []string{"api.openai.com"}}
	if err := xds.CheckEgress(ok); err != nil {
		t.Error(err)
	}
	for _, host := range []string{"", "*.openai.com", "API.openai.com", "api.openai.com:443", "https://api.openai.com", "localhost", "10.0.0.1", "api.openai.com.", "a..b", "-a.b", "a_b.c"} {
		e := ok
		e.Hosts = []string{host}
		if xds.CheckEgress(e) == nil {
			t.Errorf("host %q is accepted", host)
		}
	}
	for _, e := range []xds.Egress{
		{Proxy: "0.0.0.0:3128", Hosts: ok.Hosts}, {Proxy: ":3128", Hosts: ok.Hosts}, {Proxy: "10.0.0.1:3128", Hosts: ok.Hosts},
		{Listen: "x", Hosts: ok.Hosts}, {Listen: ok.Listen, Hosts: []string{"a.b", "a.b"}},
	} {
		if xds.CheckEgress(e) == nil {
			t.Errorf("%+v is accepted", e)
		}
	}
}
