package xds

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
)

// Input is what Build makes an org's Envoy configuration from.
type Input struct {
	OrgID     string
	Providers []provider.Provider // in any order
	Gateway   string              // host:port to listen on; the host is an address, "localhost" or empty for all
	Usage     string              // "stream" or "envoy"
	MaxBody   int64               // of a request, in bytes
	Origins   []string            // of web pages that may call the gateway: see CheckOrigins
	Targets   provider.Targets    // the addresses that providers may have
	CAFile    string              // PEM, on Envoy's machine; empty: SystemCAs
}

// SystemCAs is where Debian, and most images made from it, keep the CAs.
const SystemCAs = "/etc/ssl/certs/ca-certificates.crt"

// Names of what Build makes, beside a cluster for each provider.
const (
	listenerName = "aid_gateway"
	routesName   = "aid_routes"
)

// slack is how much larger than the largest body Envoy's buffers are. So a body that is a
// little too large is rejected by extproc.
const slack = 1 << 20

// Snapshot is what one org's Envoys get.
type Snapshot struct {
	Listeners map[string]*listenerv3.Listener
	Routes    map[string]*routev3.RouteConfiguration
	Clusters  map[string]*clusterv3.Cluster

	// Left says why a provider, by its id, is not in the rest. The others are.
	Left map[string]error
}

// Build makes a snapshot. It is a pure function: equal input gives equal bytes, in
// whatever order the providers come.
func Build(in Input) (*Snapshot, error) {
	if in.Usage != envoy.UsageStream && in.Usage != envoy.UsageEnvoy {
		return nil, fmt.Errorf("xds: usage %q: want stream or envoy", in.Usage)
	}
	if in.MaxBody <= 0 || in.MaxBody > 1<<30 {
		return nil, fmt.Errorf("xds: largest body of %d bytes: want 1 to %d", in.MaxBody, 1<<30)
	}
	if err := CheckOrigins(in.Origins); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	if in.CAFile == "" {
		in.CAFile = SystemCAs
	}
	s := &Snapshot{
		Listeners: map[string]*listenerv3.Listener{}, Routes: map[string]*routev3.RouteConfiguration{},
		Clusters: map[string]*clusterv3.Cluster{}, Left: map[string]error{},
	}
	ps := slices.Clone(in.Providers)
	slices.SortFunc(ps, func(a, b provider.Provider) int { return cmp.Compare(a.ID, b.ID) })
	var routes []*routev3.Route
	for _, p := range ps {
		c, host, err := in.cluster(p)
		if err != nil {
			s.Left[p.ID] = err
			continue
		}
		if s.Clusters[c.GetName()] != nil {
			s.Left[p.ID] = errors.New("another provider has the same cluster")
			continue
		}
		s.Clusters[c.GetName()] = c
		routes = append(routes, in.providerRoutes(p, c.GetName(), host)...)
	}
	listener, err := in.listener()
	if err != nil {
		return nil, err
	}
	s.Listeners[listenerName] = listener
	s.Routes[routesName] = in.routes(routes)
	return s, nil
}

// Join makes one snapshot of several orgs' for an Envoy that serves all of them. The
// listener and the routes to the management API are alike in all. A cluster's name is a
// digest of its org, so no route of one org leads to another's provider.
func Join(all []*Snapshot) (*Snapshot, error) {
	if len(all) == 0 || slices.Contains(all, nil) {
		return nil, errors.New("xds: an org has no configuration for Envoy")
	}
	if len(all) == 1 {
		return all[0], nil
	}
	s := &Snapshot{
		Listeners: all[0].Listeners, Routes: map[string]*routev3.RouteConfiguration{},
		Clusters: map[string]*clusterv3.Cluster{}, Left: map[string]error{},
	}
	table := proto.CloneOf(all[0].Routes[routesName])
	host := table.GetVirtualHosts()[0]
	var tail []*routev3.Route // what is not to a provider, from the first org
	var providers []*routev3.Route
	for i, one := range all {
		for name, c := range one.Clusters {
			if s.Clusters[name] != nil {
				return nil, fmt.Errorf("xds: two orgs have the cluster %s", name)
			}
			s.Clusters[name] = c
		}
		for _, r := range one.Routes[routesName].GetVirtualHosts()[0].GetRoutes() {
			switch {
			case one.Clusters[r.GetRoute().GetCluster()] != nil:
				providers = append(providers, r)
			case i == 0:
				tail = append(tail, r)
			}
		}
	}
	host.Routes = slices.Concat(tail[:1], providers, tail[1:]) // first the one for escaped slashes
	s.Routes[routesName] = table
	return s, nil
}

// CheckOrigins returns what is wrong with the origins of web pages, or nil. Each is
// written as browsers send it.
func CheckOrigins(origins []string) error {
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || o != u.Scheme+"://"+strings.ToLower(u.Host) || strings.Contains(o, "*") {
			return fmt.Errorf("origin %q: want a scheme and a host in lower case, such as https://app.example.com", o)
		}
	}
	return nil
}

// Resources are a snapshot's resources of one type, by name.
func (s *Snapshot) Resources(typeURL string) map[string]proto.Message {
	out := map[string]proto.Message{}
	switch typeURL {
	case ListenerType:
		for name, m := range s.Listeners {
			out[name] = m
		}
	case RouteType:
		for name, m := range s.Routes {
			out[name] = m
		}
	case ClusterType:
		for name, m := range s.Clusters {
			out[name] = m
		}
	}
	return out
}

// Static is the snapshot as an Envoy without a control plane takes it: for tests,
// and to have Envoy itself validate it. The routes are inside the listener.
func (s *Snapshot) Static() (*bootstrapv3.Bootstrap_StaticResources, error) {
	out := &bootstrapv3.Bootstrap_StaticResources{}
	for _, l := range s.Listeners {
		l = proto.Clone(l).(*listenerv3.Listener)
		hcm, err := managerOf(l)
		if err != nil {
			return nil, err
		}
		inline(hcm, s.Routes[routesName])
		l.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(hcm)}
		out.Listeners = append(out.Listeners, l)
	}
	for _, c := range s.Clusters {
		out.Clusters = append(out.Clusters, c)
	}
	slices.SortFunc(out.Clusters, func(a, b *clusterv3.Cluster) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// socket takes an address apart that Envoy is to listen on.
func socket(address string) (*corev3.Address, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("xds: gateway %q: want host:port", address)
	}
	switch host {
	case "":
		host = "0.0.0.0"
	case "localhost":
		host = "127.0.0.1"
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if _, bad := netip.ParseAddr(host); bad != nil || err != nil || port == 0 {
		return nil, fmt.Errorf("xds: gateway %q: want an address and a port, such as 127.0.0.1:8080", address)
	}
	return socketAddress(host, uint32(port)), nil
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: strings.Trim(host, "[]"), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// pack cannot fail: the message is ours and complete. Equal messages give equal bytes.
func pack(m proto.Message) *anypb.Any {
	a := &anypb.Any{TypeUrl: typePrefix + string(m.ProtoReflect().Descriptor().FullName())}
	a.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return a
}

func seconds(n int64) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }

func yes() *wrapperspb.BoolValue { return wrapperspb.Bool(true) }
