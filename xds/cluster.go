package xds

import (
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/provider"
)

// dnsCluster is the type of a cluster with a DNS name.
const dnsCluster = "envoy.clusters.dns"

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// cluster returns a provider's cluster, and the Host header for it. The requests to a
// provider have no effective limit: Envoy's default of 1,024 is too low for streamed
// responses, which take long.
func (in Input) cluster(p provider.Provider) (c *clusterv3.Cluster, host string, err error) {
	if err := provider.Validate(p); err != nil {
		return nil, "", err
	}
	if err := in.Targets.Check(p); err != nil {
		return nil, "", err
	}
	up, err := p.Upstream()
	if err != nil {
		return nil, "", err
	}
	name := provider.ClusterName(p)
	c = &clusterv3.Cluster{
		Name:                          name,
		ConnectTimeout:                seconds(5),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(100_000), MaxPendingRequests: wrapperspb.UInt32(100_000),
			MaxRequests: wrapperspb.UInt32(100_000), MaxRetries: wrapperspb.UInt32(1_000),
		}}},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(up.Host, uint32(up.Port))}},
			}}}},
		},
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveTime: wrapperspb.UInt32(60), KeepaliveInterval: wrapperspb.UInt32(15), KeepaliveProbes: wrapperspb.UInt32(4),
		}},
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: pack(in.upstreamHTTP(up.TLS))},
	}
	_, notIP := netip.ParseAddr(up.Host)
	if notIP != nil {
		c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: dnsCluster, TypedConfig: pack(&dnsv3.DnsCluster{
				// Each address is a separate host, so that the filter of targets checks the
				// address of the connection. A host that disappears ends no request. A host
				// that cannot be reached costs a retry, so one address family is better.
				DnsLookupFamily: commondnsv3.DnsLookupFamily_V4_PREFERRED, RespectDnsTtl: true, DnsRefreshRate: seconds(10), // for responses without a TTL
			}),
		}}
	}
	if up.TLS {
		c.TransportSocket = in.tls(up.Host, notIP == nil)
	}
	return c, authority(up), nil
}

// authority returns the Host header that a provider expects.
func authority(up provider.Upstream) string {
	host := up.Host
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	if up.TLS && up.Port == 443 || !up.TLS && up.Port == 80 {
		return host
	}
	return host + ":" + uitoa(uint64(up.Port))
}

// upstreamHTTP lets ALPN choose HTTP/2 or HTTP/1.1. Without TLS it is HTTP/1.1.
func (in Input) upstreamHTTP(tls bool) *httpv3.HttpProtocolOptions {
	o := &httpv3.HttpProtocolOptions{
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: filterTargets, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&rbacfilterv3.RBAC{Rules: targets(in.Targets)})}},
			{Name: filterCodec, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&codecv3.UpstreamCodec{})}},
		},
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			// Shorter than the idle timeout of servers, so that a server does not close a
			// connection at the moment of its next use.
			IdleTimeout: seconds(50),
		},
	}
	if !tls {
		o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}}
		return o
	}
	o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_AutoConfig{AutoConfig: &httpv3.HttpProtocolOptions_AutoHttpConfig{
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(100),
			InitialStreamWindowSize:     wrapperspb.UInt32(streamWindow),
			InitialConnectionWindowSize: wrapperspb.UInt32(16 * connectionWindow), // shared by 100 streams
			ConnectionKeepalive:         &corev3.KeepaliveSettings{Interval: seconds(30), Timeout: seconds(10)},
		},
	}}
	return o
}

// tls requires that the certificate has the host name of the base URL: a chain to a CA is not
// enough. The name matches as in RFC 6125, with at most one wildcard label.
func (in Input) tls(host string, ip bool) *corev3.TransportSocket {
	san, sni := tlsv3.SubjectAltNameMatcher_DNS, host
	if ip {
		san, sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, ""
	}
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&tlsv3.UpstreamTlsContext{
			Sni: sni,
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsParams: &tlsv3.TlsParameters{
					TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
				},
				ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
					TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: in.CAFile}},
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
						SanType: san, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host}},
					}},
				}},
			},
		})},
	}
}
