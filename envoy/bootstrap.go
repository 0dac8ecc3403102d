// Package envoy starts Envoy: its static configuration, and its process. What Envoy serves
// once it runs comes from package xds.
//
// The bootstrap holds what must exist before the first response of the control plane, and
// what must not change while streams live:
//
//   - the clusters of the control plane, the management API and extproc (a change of
//     extproc's over CDS would end every live stream)
//   - the limits
//   - the admin socket
//
// An Envoy with this bootstrap and no control plane listens on nothing.
package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	internallistenerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The clusters of the bootstrap. What xds builds refers to them by these names.
const (
	ClusterXDS     = "aid_xds"     // the control plane: ADS
	ClusterExtProc = "aid_extproc" // the sidecar that evaluates
	ClusterAPI     = "aid_api"     // the management API, for the gateway's /v1/agents and the like
)

// Config is the configuration of an Envoy's bootstrap.
type Config struct {
	NodeID  string // names this Envoy to the control plane; required
	Cluster string // node.cluster; empty: "aid"

	XDS Endpoint // the control plane; required

	ExtProc string   // Unix socket of `aid extproc`; required
	API     Endpoint // management API; zero: this Envoy has no aid_api

	Admin string // Unix socket of the admin interface; required, never TCP

	MaxConnections int64 // downstream, for all listeners together; 0: 50,000
	MaxHeapBytes   int64 // at 98 % requests are rejected, at 95 % memory is released; 0: 2 GiB
	MaxStreams     int64 // concurrent exchanges; circuit breakers have twice that limit; 0: 50,000
}

// connectionBuffer is the size of Envoy's buffer for a connection to extproc, the API or
// the control plane, in bytes. It is a soft limit: a larger body passes. When that much of
// a response waits for extproc, Envoy stops reading from the provider. At 17 MiB, 200 slow
// readers used 2 GiB.
const connectionBuffer = 256 << 10

// Endpoint is where a server listens: a Unix socket, or a host and port.
type Endpoint struct {
	Address string // "unix:/path" or "host:port"
	TLS     *TLS   // nil: plaintext, which is allowed only for Unix sockets and loopback
}

// TLS configures the connection to a server on another machine.
type TLS struct {
	CAFile            string // PEM; required
	ServerName        string // SNI, and the DNS name that the certificate must carry; empty: the host
	CertFile, KeyFile string // client certificate, or both empty
}

// Bootstrap is the file that Envoy is started with, as JSON: a pure function of c.
func Bootstrap(c Config) ([]byte, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	ads := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	clusters := []*clusterv3.Cluster{c.xds(), c.extproc()}
	if c.API.Address != "" {
		clusters = append(clusters, c.api())
	}
	b := &bootstrapv3.Bootstrap{
		Node:            &corev3.Node{Id: c.NodeID, Cluster: c.Cluster},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: clusters},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: c.ads(),
			LdsConfig: ads,
			CdsConfig: ads,
		},
		Admin: &bootstrapv3.Admin{Address: &corev3.Address{Address: &corev3.Address_Pipe{
			Pipe: &corev3.Pipe{Path: c.Admin, Mode: 0o600},
		}}},
		OverloadManager: c.overload(),
		LayeredRuntime:  runtimeLayers(),
		// Listeners of this process: the one behind the forward proxy.
		BootstrapExtensions: []*corev3.TypedExtensionConfig{{Name: "envoy.bootstrap.internal_listener", TypedConfig: pack(&internallistenerv3.InternalListener{})}},
		// Counters are read on request, so an idle Envoy does no work for them.
		StatsFlush: &bootstrapv3.Bootstrap_StatsFlushOnAdmin{StatsFlushOnAdmin: true},
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	loose, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	// protojson varies its white space on purpose. The output here must not vary.
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, loose); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func (c Config) withDefaults() Config {
	set := func(n *int64, to int64) {
		if *n == 0 {
			*n = to
		}
	}
	set(&c.MaxConnections, 50_000)
	set(&c.MaxHeapBytes, 2<<30)
	set(&c.MaxStreams, 50_000)
	if c.Cluster == "" {
		c.Cluster = "aid"
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.NodeID == "":
		return errors.New("no node id")
	case c.XDS.Address == "":
		return errors.New("no control plane address")
	case c.ExtProc == "":
		return errors.New("no extproc socket")
	case c.Admin == "":
		return errors.New("no admin socket")
	}
	for _, path := range []string{c.ExtProc, c.Admin, unixPath(c.XDS.Address), unixPath(c.API.Address)} {
		// sun_path is 108 bytes with its NUL; Envoy rejects longer paths
		if len(path) > 107 {
			return fmt.Errorf("socket path %q is longer than 107 bytes", path)
		}
	}
	if err := c.XDS.validate(); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	if c.API.Address != "" {
		if err := c.API.validate(); err != nil {
			return fmt.Errorf("management API: %w", err)
		}
	}
	return nil
}

func (e Endpoint) validate() error {
	if unixPath(e.Address) != "" {
		if e.TLS != nil {
			return errors.New("TLS is not supported on a Unix socket. Remove its TLS settings")
		}
		return nil
	}
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil {
		return fmt.Errorf("address %q is not valid. Use unix:/path or host:port", e.Address)
	}
	ip := net.ParseIP(host)
	local := host == "localhost" || ip != nil && ip.IsLoopback()
	switch {
	case e.TLS == nil && !local:
		return fmt.Errorf("address %q is not on this machine, so TLS is required", e.Address)
	case e.TLS != nil && e.TLS.CAFile == "":
		return errors.New("TLS without a CA file")
	case e.TLS != nil && (e.TLS.CertFile == "") != (e.TLS.KeyFile == ""):
		return errors.New("a client certificate needs both its file and its key")
	}
	return nil
}

func (c Config) ads() *corev3.ApiConfigSource {
	grpc := &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ClusterXDS},
		},
	}

	return &corev3.ApiConfigSource{
		ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
		TransportApiVersion:       corev3.ApiVersion_V3,
		SetNodeOnFirstMessageOnly: true,
		GrpcServices:              []*corev3.GrpcService{grpc},
	}
}

// xds uses keep-alive, since a connection that a network drops shows no other error.
func (c Config) xds() *clusterv3.Cluster {
	cl := c.cluster(ClusterXDS, c.XDS, 5*time.Second)
	cl.CircuitBreakers = breakers(1000)
	cl.TypedExtensionProtocolOptions = http2(&corev3.Http2ProtocolOptions{
		MaxConcurrentStreams:        wrapperspb.UInt32(100),
		InitialStreamWindowSize:     wrapperspb.UInt32(1 << 20),
		InitialConnectionWindowSize: wrapperspb.UInt32(4 << 20),
		ConnectionKeepalive: &corev3.KeepaliveSettings{
			Interval: durationpb.New(10 * time.Second),
			Timeout:  durationpb.New(5 * time.Second),
		},
	})
	return cl
}

// Every exchange has one stream to extproc for its whole life, and a streamed response too.
// Envoy's default circuit breakers stop at 1,024.
func (c Config) extproc() *clusterv3.Cluster {
	cl := c.cluster(ClusterExtProc, Endpoint{Address: "unix:" + c.ExtProc}, time.Second)
	cl.CircuitBreakers = breakers(2 * c.MaxStreams)
	cl.TypedExtensionProtocolOptions = http2(&corev3.Http2ProtocolOptions{
		// Above this number Envoy opens another connection. Thousands of streams on one
		// would share its flow control window and its one reader in Go.
		MaxConcurrentStreams:        wrapperspb.UInt32(1024),
		InitialStreamWindowSize:     wrapperspb.UInt32(1 << 20),
		InitialConnectionWindowSize: wrapperspb.UInt32(16 << 20),
	})
	return cl
}

func (c Config) api() *clusterv3.Cluster {
	cl := c.cluster(ClusterAPI, c.API, 2*time.Second)
	cl.CircuitBreakers = breakers(4096)
	return cl
}

func (c Config) cluster(name string, e Endpoint, connect time.Duration) *clusterv3.Cluster {
	cl := &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:                durationpb.New(connect),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: e.address()}},
			}}}},
		},
	}
	host, _, _ := net.SplitHostPort(e.Address)
	if unixPath(e.Address) == "" && net.ParseIP(host) == nil {
		cl.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	}
	if e.TLS != nil {
		cl.TransportSocket = e.TLS.socket(host)
	}
	return cl
}

func (e Endpoint) address() *corev3.Address {
	if path := unixPath(e.Address); path != "" {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	host, service, _ := net.SplitHostPort(e.Address)
	port, _ := net.LookupPort("tcp", service)
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func (t TLS) socket(host string) *corev3.TransportSocket {
	name := t.ServerName
	if name == "" {
		name = host
	}
	file := func(path string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
	}
	common := &tlsv3.CommonTlsContext{
		AlpnProtocols: []string{"h2"},
		// Without this setting Envoy's client side stops at 1.2.
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{
				TrustedCa: file(t.CAFile),
				// A chain to the CA is not enough: the certificate must be this server's.
				MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
					SanType: sanType(name),
					Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
				}},
			},
		},
	}
	if t.CertFile != "" {
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(t.CertFile), PrivateKey: file(t.KeyFile)}}
	}
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{
			TypedConfig: pack(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: name}),
		},
	}
}

func sanType(name string) tlsv3.SubjectAltNameMatcher_SanType {
	if net.ParseIP(name) != nil {
		return tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return tlsv3.SubjectAltNameMatcher_DNS
}

// overload rejects connections and requests while there is still memory for those in
// flight.
func (c Config) overload() *overloadv3.OverloadManager {
	trigger := func(at float64) []*overloadv3.Trigger {
		return []*overloadv3.Trigger{{
			Name:         "envoy.resource_monitors.fixed_heap",
			TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: at}},
		}}
	}
	return &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name: "envoy.resource_monitors.fixed_heap",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(&heapv3.FixedHeapConfig{
				MaxHeapSizeBytes: uint64(c.MaxHeapBytes),
			})},
		}, {
			Name: "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(&connectionsv3.DownstreamConnectionsConfig{
				MaxActiveDownstreamConnections: c.MaxConnections,
			})},
		}},
		// A stream of 1 MiB or more is counted for reset_high_memory_stream.
		BufferFactoryConfig: &overloadv3.BufferFactoryConfig{MinimumAccountToTrackPowerOfTwo: 20},
		Actions: []*overloadv3.OverloadAction{
			{Name: "envoy.overload_actions.shrink_heap", Triggers: trigger(0.95)},
			{Name: "envoy.overload_actions.disable_http_keepalive", Triggers: trigger(0.95)},
			// First the streams with the most memory are reset. New requests are rejected
			// only if that is not enough.
			{Name: "envoy.overload_actions.reset_high_memory_stream", Triggers: []*overloadv3.Trigger{{
				Name: "envoy.resource_monitors.fixed_heap",
				TriggerOneof: &overloadv3.Trigger_Scaled{Scaled: &overloadv3.ScaledTrigger{
					ScalingThreshold: 0.85, SaturationThreshold: 0.95,
				}},
			}}},
			{Name: "envoy.overload_actions.stop_accepting_requests", Triggers: trigger(0.98)},
		},
	}
}

// runtimeLayers has one static layer and no admin layer, so no guard can change while Envoy
// runs. It sets no guard to false (hardening L10).
func runtimeLayers() *bootstrapv3.LayeredRuntime {
	static := &structpb.Struct{Fields: map[string]*structpb.Value{
		// Off by default in 1.40: a chunk that two parsers could read differently is rejected (L06).
		"envoy.reloadable_features.strict_chunk_parsing": structpb.NewBoolValue(true),
		// Envoy's default of 100 is for untrusted patterns. This pattern is made from the
		// list of response headers that pass (see ResponseMutations).
		"re2.max_program_size.error_level": structpb.NewNumberValue(100_000),
		"re2.max_program_size.warn_level":  structpb.NewNumberValue(100_000),
	}}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name:           "static",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: static},
	}}}
}

func breakers(n int64) *clusterv3.CircuitBreakers {
	limit := wrapperspb.UInt32(uint32(n))
	threshold := func(p corev3.RoutingPriority) *clusterv3.CircuitBreakers_Thresholds {
		return &clusterv3.CircuitBreakers_Thresholds{
			Priority: p, MaxConnections: limit, MaxPendingRequests: limit, MaxRequests: limit, TrackRemaining: true,
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{
		threshold(corev3.RoutingPriority_DEFAULT), threshold(corev3.RoutingPriority_HIGH),
	}}
}

func http2(o *corev3.Http2ProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: o},
				},
			},
		}),
	}
}

// pack cannot fail: the message is complete and built here.
func pack(m proto.Message) *anypb.Any {
	a := &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())}
	a.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return a
}

func unixPath(address string) string {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return ""
	}
	return path
}
