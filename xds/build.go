package xds

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
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

// Input is the input of Build for one org.
type Input struct {
	OrgID     string
	Providers []provider.Provider // in any order
	Gateway   string              // host:port to listen on; the host is an address, "localhost" or empty for all
	Usage     string              // "stream" or "envoy"
	MaxBody   int64               // largest request body, in bytes
	Origins   []string            // origins of web pages that may call the gateway: see CheckOrigins
	Targets   provider.Targets    // the addresses that providers may use
	CAFile    string              // PEM, on Envoy's machine; empty: SystemCAs
	Egress    Egress              // the interception of connections to providers' own hosts
	AccessLog string              // the file on Envoy's machine that the sidecar compares with the audit log; empty: none
}

// SystemCAs is the file with the CAs in Debian and most images that are based on it.
const SystemCAs = "/etc/ssl/certs/ca-certificates.crt"

// Names of the resources of Build, except the clusters of providers.
const (
	listenerName = "aid_gateway"
	routesName   = "aid_routes"
)

// slack is added to the largest body for Envoy's buffers. So extproc, not Envoy, rejects a
// body that is a little too large.
const slack = 1 << 20

// Snapshot is the configuration of one org's Envoys.
type Snapshot struct {
	Listeners map[string]*listenerv3.Listener
	Routes    map[string]*routev3.RouteConfiguration
	Clusters  map[string]*clusterv3.Cluster

	// Left has the providers that are not in the configuration, by id, and the reasons.
	Left map[string]error

	in Input // that it was built from; only its settings for the whole installation matter
}

// Build makes a snapshot. It is a pure function: equal input gives equal bytes. The order of
// providers has no effect.
func Build(in Input) (*Snapshot, error) {
	if in.Usage != envoy.UsageStream && in.Usage != envoy.UsageEnvoy {
		return nil, fmt.Errorf("xds: usage %q: valid values are stream and envoy", in.Usage)
	}
	if in.MaxBody <= 0 || in.MaxBody > 1<<30 {
		return nil, fmt.Errorf("xds: largest body of %d bytes: set 1 to %d", in.MaxBody, 1<<30)
	}
	if err := CheckOrigins(in.Origins); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	if err := envoy.CheckLogPath(in.AccessLog); err != nil {
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
	if err := CheckEgress(in.Egress); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	in.Providers = ps
	var routes []*routev3.Route
	byCluster := map[string][]*routev3.Route{}
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
		byCluster[c.GetName()] = in.providerRoutes(p, c.GetName(), host)
		routes = append(routes, byCluster[c.GetName()]...)
	}
	listener, err := in.listener()
	if err != nil {
		return nil, err
	}
	s.Listeners[listenerName] = listener
	s.Routes[routesName] = in.routes(routes)
	s.in = in
	return s, in.egress(s, byCluster)
}

// Join makes one snapshot out of several orgs' for an Envoy that serves all of them. The
// listener and the routes to the management API are the same in all. A cluster's name
// includes a digest of its org, so no route of one org leads to another org's provider.
func Join(all []*Snapshot) (*Snapshot, error) {
	if len(all) == 0 || slices.Contains(all, nil) {
		return nil, errors.New("xds: an org has no configuration for Envoy")
	}
	if len(all) == 1 {
		return all[0], nil
	}
	s := &Snapshot{
		Listeners: maps.Clone(all[0].Listeners), Routes: map[string]*routev3.RouteConfiguration{},
		Clusters: map[string]*clusterv3.Cluster{}, Left: map[string]error{}, in: all[0].in,
	}
	tables := map[string]bool{}
	for _, one := range all {
		for name, c := range one.Clusters {
			if s.Clusters[name] != nil && name != innerCluster {
				return nil, fmt.Errorf("xds: two orgs have the cluster %s", name)
			}
			s.Clusters[name] = c
		}
		for name := range one.Routes {
			tables[name] = true
		}
	}
	for name := range tables {
		s.Routes[name] = joinTables(name, all)
	}
	return s, s.in.egressListeners(s)
}

// joinTables makes one route table out of several orgs'. The first virtual host has the routes
// to providers.
func joinTables(name string, all []*Snapshot) *routev3.RouteConfiguration {
	var table *routev3.RouteConfiguration
	var tail []*routev3.Route // routes that do not lead to a provider, from the first org
	var providers []*routev3.Route
	for _, one := range all {
		from := one.Routes[name]
		if from == nil {
			continue
		}
		first := table == nil
		if first {
			table = proto.CloneOf(from)
		}
		for _, r := range from.GetVirtualHosts()[0].GetRoutes() {
			switch {
			case one.Clusters[r.GetRoute().GetCluster()] != nil:
				providers = append(providers, r)
			case first:
				tail = append(tail, r)
			}
		}
	}
	table.GetVirtualHosts()[0].Routes = slices.Concat(tail[:1], providers, tail[1:]) // first the one for escaped slashes
	return table
}

// CheckOrigins returns an error for an origin that is not written as browsers send it.
func CheckOrigins(origins []string) error {
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || o != u.Scheme+"://"+strings.ToLower(u.Host) || strings.Contains(o, "*") {
			return fmt.Errorf("origin %q: set a scheme and a host in lower case, such as https://app.example.com", o)
		}
	}
	return nil
}

// Resources returns a snapshot's resources of one type, by name.
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

// Static returns the snapshot for an Envoy without a control plane, for tests and for
// validation by Envoy itself. The routes are inside the listener.
func (s *Snapshot) Static() (*bootstrapv3.Bootstrap_StaticResources, error) {
	s = s.withoutEgress() // whose certificates only a control plane has
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

// socket parses the address that Envoy listens on.
func socket(address string) (*corev3.Address, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("xds: gateway %q: set host:port", address)
	}
	switch host {
	case "":
		host = "0.0.0.0"
	case "localhost":
		host = "127.0.0.1"
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if _, bad := netip.ParseAddr(host); bad != nil || err != nil || port == 0 {
		return nil, fmt.Errorf("xds: gateway %q: set an address and a port, such as 127.0.0.1:8080", address)
	}
	return socketAddress(host, uint32(port)), nil
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: strings.Trim(host, "[]"), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// pack cannot fail, since Build made a complete message. Equal messages give equal bytes.
func pack(m proto.Message) *anypb.Any {
	a := &anypb.Any{TypeUrl: typePrefix + string(m.ProtoReflect().Descriptor().FullName())}
	a.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return a
}

func seconds(n int64) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }

func yes() *wrapperspb.BoolValue { return wrapperspb.Bool(true) }
