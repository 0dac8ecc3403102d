package xds

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
)

// Egress configures the interception of connections that applications make to a provider's own
// host. The zero Egress intercepts nothing.
type Egress struct {
	// Listen is the host:port of the listener for TLS connections whose server name is a
	// governed host; "": none.
	Listen string
	// Proxy is the host:port of the forward proxy, which accepts CONNECT to governed hosts on
	// port 443; "": none. It must be an address of this machine: it asks for no credentials.
	Proxy string
	// Hosts are the names that the operator allows to be decrypted: exact names in lower case.
	// An org governs those of its providers.
	Hosts []string
}

// maxEgressHosts limits Egress.Hosts: each has a filter chain and a certificate.
const maxEgressHosts = 100

func (e Egress) on() bool { return e.Listen != "" || e.Proxy != "" }

// CheckEgress returns what is wrong with e, or nil.
func CheckEgress(e Egress) error {
	if !e.on() {
		return nil
	}
	if len(e.Hosts) > maxEgressHosts {
		return fmt.Errorf("%d egress hosts: at most %d are possible", len(e.Hosts), maxEgressHosts)
	}
	for i, h := range e.Hosts {
		if !exactHost(h) {
			return fmt.Errorf("egress host %q: set an exact host name in lower case, such as api.openai.com, without a scheme, a port or a wildcard", h)
		}
		if slices.Contains(e.Hosts[:i], h) {
			return fmt.Errorf("egress host %s is there twice", h)
		}
	}
	for _, a := range []string{e.Listen, e.Proxy} {
		if a == "" {
			continue
		}
		if _, err := socket(a); err != nil {
			return err
		}
	}
	if host, _, _ := net.SplitHostPort(e.Proxy); e.Proxy != "" && host != "localhost" {
		if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
			return fmt.Errorf("proxy %s: other machines could reach the forward proxy, which asks for no credentials: use an address of this machine, such as 127.0.0.1:3128", e.Proxy)
		}
	}
	return nil
}

// exactHost reports whether h is a DNS name with at least two labels, in lower case.
func exactHost(h string) bool {
	if len(h) > 253 || !strings.Contains(h, ".") {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	_, err := netip.ParseAddr(h)
	return err != nil
}

// Names of the resources of egress.
const (
	egressListener = "aid_egress"
	proxyListener  = "aid_proxy"
	innerListener  = "aid_inner" // of this process: behind the proxy
	innerCluster   = "aid_inner"

	egressRoutes = "aid_egress/" // and the host
	leafPrefix   = "aid_leaf/"   // and the host: the secret with its certificate
)

// egress adds the listeners, the routes and the inner cluster of the governed hosts. routes has
// the routes to each provider of the org, by cluster.
func (in Input) egress(s *Snapshot, routes map[string][]*routev3.Route) error {
	if !in.Egress.on() {
		return nil
	}
	governed := map[string][]*routev3.Route{} // by host
	for _, p := range in.Providers {
		for _, host := range p.EgressHosts() {
			if slices.Contains(in.Egress.Hosts, host) {
				governed[host] = append(governed[host], routes[provider.ClusterName(p)]...)
			}
		}
	}
	for host, all := range governed {
		slices.SortStableFunc(all, func(a, b *routev3.Route) int {
			return strings.Compare(a.GetRoute().GetCluster(), b.GetRoute().GetCluster())
		})
		s.Routes[egressRoutes+host] = in.egressTable(host, all)
	}
	return in.egressListeners(s)
}

// egressTable returns the route table of one governed host. Only the decision leads to a
// provider. There are no management paths.
func (in Input) egressTable(host string, providers []*routev3.Route) *routev3.RouteConfiguration {
	end := func() *routev3.Route {
		return ended(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}})
	}
	limit := wrapperspb.UInt64(uint64(in.MaxBody + slack))
	return &routev3.RouteConfiguration{
		Name: egressRoutes + host,
		VirtualHosts: []*routev3.VirtualHost{
			{Name: host, Domains: []string{host}, Routes: append(append([]*routev3.Route{escapedSlash()}, providers...), end()), RequestBodyBufferLimit: limit},
			// extproc rejects every other host with 421. No route leads from here to a provider.
			{Name: "misdirected", Domains: []string{"*"}, Routes: []*routev3.Route{end()}, RequestBodyBufferLimit: limit},
		},
		ValidateClusters: wrapperspb.Bool(false),
	}
}

// egressListeners makes the listeners for the route tables of s. Join calls it again for the
// hosts of several orgs.
func (in Input) egressListeners(s *Snapshot) error {
	var hosts []string
	for name := range s.Routes {
		if h, ok := strings.CutPrefix(name, egressRoutes); ok {
			hosts = append(hosts, h)
		}
	}
	slices.Sort(hosts)
	for _, name := range []string{egressListener, proxyListener, innerListener} {
		delete(s.Listeners, name)
	}
	delete(s.Clusters, innerCluster)
	if in.Egress.Listen != "" && len(hosts) > 0 {
		address, err := socket(in.Egress.Listen)
		if err != nil {
			return err
		}
		l := in.terminating(egressListener, hosts, false)
		l.Address = address
		s.Listeners[egressListener] = l
	}
	if in.Egress.Proxy != "" {
		address, err := socket(in.Egress.Proxy)
		if err != nil {
			return err
		}
		s.Listeners[proxyListener] = in.proxy(address, hosts)
		if len(hosts) > 0 {
			l := in.terminating(innerListener, hosts, true)
			l.ListenerSpecifier = &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}}
			s.Listeners[innerListener] = l
			s.Clusters[innerCluster] = inner()
		}
	}
	return nil
}

// terminating returns a listener with a filter chain for each host: TLS with the host's
// certificate, then the same HTTP settings as the gateway's. A connection with another server
// name, or without TLS, has no chain and is closed.
func (in Input) terminating(name string, hosts []string, tunneled bool) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:                          name,
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		ListenerFilters: []*listenerv3.ListenerFilter{{
			Name: "envoy.filters.listener.tls_inspector", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&inspectorv3.TlsInspector{})},
		}},
		ListenerFiltersTimeout: seconds(5),
		AccessLog:              in.connectionLog(name),
	}
	for _, host := range hosts {
		m := in.manager()
		m.StatPrefix = "egress"
		m.GetRds().RouteConfigName = egressRoutes + host
		m.HttpFilters = Input{Usage: in.Usage}.filters() // no CORS: pages call the provider's host
		m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{earlyOf(envoy.EgressMutation(host, tunneled))}
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
			Name:                          host,
			FilterChainMatch:              &listenerv3.FilterChainMatch{ServerNames: []string{host}, TransportProtocol: "tls"},
			TransportSocket:               terminates(host),
			TransportSocketConnectTimeout: seconds(5),
			Filters: []*listenerv3.Filter{{
				Name: hcmFilter, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)},
			}},
		})
	}
	return l
}

// terminates is the TLS of a governed host. The certificate comes from the control plane over
// the same stream as everything else, and its key is never on disk.
func terminates(host string) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&tlsv3.DownstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsParams: &tlsv3.TlsParameters{
					TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
				},
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{
					Name: leafPrefix + host,
					SdsConfig: &corev3.ConfigSource{
						ResourceApiVersion: corev3.ApiVersion_V3,
						// Without a certificate connections to this host are closed. The gateway must not
						// wait for it when Envoy starts.
						InitialFetchTimeout:   seconds(5),
						ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
					},
				}},
				AlpnProtocols: []string{"h2", "http/1.1"},
			},
		})},
	}
}

// inner is the cluster that leads from the proxy to the inner listener. The filter state goes
// with the connection.
func inner() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: innerCluster, ConnectTimeout: seconds(5),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(100_000), MaxPendingRequests: wrapperspb.UInt32(100_000),
			MaxRequests: wrapperspb.UInt32(100_000), MaxRetries: wrapperspb.UInt32(1_000),
		}}},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: innerCluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{
					Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
						AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: innerListener},
					}},
				}}},
			}}}},
		},
		TransportSocket: &corev3.TransportSocket{
			Name: "envoy.transport_sockets.internal_upstream",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&internalv3.InternalUpstreamTransport{
				TransportSocket: &corev3.TransportSocket{
					Name: "envoy.transport_sockets.raw_buffer", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawv3.RawBuffer{})},
				},
			})},
		},
	}
}

// proxy is the forward proxy. It opens tunnels to governed hosts, on port 443, and only to the
// inner listener. Everything else gets a response: nothing passes.
func (in Input) proxy(address *corev3.Address, hosts []string) *listenerv3.Listener {
	state := func(key, format string) *statev3.FilterStateValue {
		return &statev3.FilterStateValue{
			Key:                &statev3.FilterStateValue_ObjectKey{ObjectKey: key},
			FactoryKey:         "envoy.string",
			SharedWithUpstream: statev3.FilterStateValue_TRANSITIVE,
			Value: &statev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: format}}},
			}},
		}
	}
	var routes []*routev3.VirtualHost
	for _, host := range hosts {
		routes = append(routes, &routev3.VirtualHost{Name: host, Domains: []string{host + ":443"}, Routes: []*routev3.Route{{
			Name:  envoy.RouteTunnel,
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: innerCluster},
				Timeout:          seconds(0), IdleTimeout: seconds(1000), // the inner listener ends idle connections first
				UpgradeConfigs: []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "CONNECT", ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{}}},
			}},
		}, refused(false)}})
	}
	routes = append(routes, &routev3.VirtualHost{Name: "other", Domains: []string{"*"}, Routes: []*routev3.Route{refused(true), refused(false)}})
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: "proxy",
		CodecType:  hcmv3.HttpConnectionManager_HTTP1,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: proxyListener, VirtualHosts: routes, ValidateClusters: wrapperspb.Bool(false),
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: "envoy.filters.http.set_filter_state", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&setstatev3.Config{
				OnRequestHeaders: []*statev3.FilterStateValue{
					state(envoy.StateTunnelPeer, envoy.PeerFormat), state(envoy.StateTunnelConnect, "%REQ(:AUTHORITY)%"),
				},
			})}},
			{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{SuppressEnvoyHeaders: true})}},
		},
		UpgradeConfigs:   []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT"}},
		UseRemoteAddress: yes(), GenerateRequestId: yes(), AlwaysSetRequestIdInResponse: true,
		ForwardClientCertDetails:        hcmv3.HttpConnectionManager_SANITIZE,
		ServerHeaderTransformation:      hcmv3.HttpConnectionManager_OVERWRITE,
		ServerName:                      "aid",
		StreamErrorOnInvalidHttpMessage: yes(),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout: seconds(60), MaxHeadersCount: wrapperspb.UInt32(100), HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		MaxRequestHeadersKb:   wrapperspb.UInt32(16),
		RequestHeadersTimeout: seconds(10),
		StreamIdleTimeout:     seconds(1000),
		DelayedCloseTimeout:   seconds(1),
		DrainTimeout:          seconds(5),
		AccessLog:             in.requestLog(),
	}
	return &listenerv3.Listener{
		Name: proxyListener, Address: address,
		AccessLog:                     in.connectionLog(proxyListener),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: hcmFilter, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)},
		}}}},
	}
}

// refused is the proxy's response: to CONNECT to another host, or to a request that is not
// CONNECT.
func refused(connect bool) *routev3.Route {
	match := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	status, code, message := uint32(400), "connect_required", "This proxy opens tunnels (CONNECT) to governed hosts. Use the https:// URL of the provider."
	if connect {
		match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}}
		status, code, message = 403, "host_not_governed", "This proxy opens tunnels only to governed hosts, on port 443. Add other hosts to NO_PROXY."
	}
	return &routev3.Route{
		Name: envoy.RouteRefused, Match: match,
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: status,
			Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{
				InlineString: fmt.Sprintf(`{"error":{"type":"invalid_request_error","code":%q,"message":%q}}`+"\n", code, message),
			}},
		}},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{overwrite("content-type", "application/json"), overwrite("x-should-retry", "false")},
	}
}

// leaf is a certificate of a node.
type leaf struct {
	resource *discoveryv3.Resource
	renewAt  time.Time // half of its life
	notAfter time.Time
}

// certify adds the certificates of a node's governed hosts to v. Each node has its own, which
// is renewed at half of its life. Heartbeats call it. A certificate that cannot be renewed stays
// until its end.
func (s *Server) certify(ctx context.Context, v view, node string) error {
	if s.c.Leaves == nil {
		return nil
	}
	now := s.c.Now()
	for _, host := range v.hosts {
		key := [2]string{node, host}
		s.mu.Lock()
		l, ok := s.leaves[key]
		s.mu.Unlock()
		if !ok || !now.Before(l.renewAt) {
			chain, secret, notAfter, err := s.c.Leaves.Leaf(ctx, host, now)
			if err != nil {
				s.metrics.unpublished.WithLabelValues("certificate").Inc()
				s.c.Log.ErrorContext(ctx, "no certificate for a governed host; the last one stays", "host", host, "node", node, "err", err)
				if !ok || !now.Before(l.notAfter) {
					continue
				}
			} else {
				inline := func(b []byte) *corev3.DataSource {
					return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
				}
				r, err := resource(leafPrefix+host, &tlsv3.Secret{Name: leafPrefix + host, Type: &tlsv3.Secret_TlsCertificate{
					TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(secret)},
				}})
				if err != nil {
					return err
				}
				l = leaf{r, now.Add(notAfter.Sub(now) / 2), notAfter}
				s.mu.Lock()
				s.leaves[key] = l
				maps.DeleteFunc(s.leaves, func(_ [2]string, l leaf) bool { return !now.Before(l.notAfter) }) // of nodes that are gone
				s.mu.Unlock()
			}
		}
		if v.resources[SecretType] == nil {
			v.resources[SecretType] = map[string]*discoveryv3.Resource{}
		}
		v.resources[SecretType][leafPrefix+host] = l.resource
	}
	return nil
}

// withoutEgress returns the snapshot of a node that does not intercept connections.
func (s *Snapshot) withoutEgress() *Snapshot {
	out := &Snapshot{Listeners: maps.Clone(s.Listeners), Routes: maps.Clone(s.Routes), Clusters: maps.Clone(s.Clusters), Left: s.Left}
	for _, name := range []string{egressListener, proxyListener, innerListener} {
		delete(out.Listeners, name)
	}
	delete(out.Clusters, innerCluster)
	maps.DeleteFunc(out.Routes, func(name string, _ *routev3.RouteConfiguration) bool { return strings.HasPrefix(name, egressRoutes) })
	return out
}

// leaves are the names of the certificates that the snapshot's listeners present.
func (s *Snapshot) leaves() (hosts []string) {
	for name := range s.Routes {
		if h, ok := strings.CutPrefix(name, egressRoutes); ok {
			hosts = append(hosts, h)
		}
	}
	slices.Sort(hosts)
	return hosts
}
