package xds_test

import (
	"strings"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/xds"
)

// parts are the parts of a snapshot that a mutation may change.
type parts struct {
	s        *xds.Snapshot
	listener *listenerv3.Listener
	hcm      *hcmv3.HttpConnectionManager
	extproc  *extprocv3.ExternalProcessor
	vh       *routev3.VirtualHost
	provider *routev3.Route // the first
	unseen   *routev3.Route // with usage "envoy": the first one without response headers for extproc
	escaped  *routev3.Route // the first route, for paths with escaped slashes
	manage   *routev3.Route // the first to the management API
	last     *routev3.Route
	cluster  *clusterv3.Cluster // a cluster with TLS
	tls      *tlsv3.UpstreamTlsContext
}

// targets changes the rules of the addresses that the cluster may connect to.
func (p *parts) targets(change func(*rbacv3.RBAC)) {
	const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	var o httpv3.HttpProtocolOptions
	var filter rbacfilterv3.RBAC
	if err := p.cluster.TypedExtensionProtocolOptions[options].UnmarshalTo(&o); err != nil {
		panic(err)
	}
	if err := o.HttpFilters[0].GetTypedConfig().UnmarshalTo(&filter); err != nil {
		panic(err)
	}
	change(filter.Rules)
	packed, err := anypb.New(&filter)
	if err == nil {
		o.HttpFilters[0].ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed}
		p.cluster.TypedExtensionProtocolOptions[options], err = anypb.New(&o)
	}
	if err != nil {
		panic(err)
	}
}

// early changes the one header that the listener sets before extproc.
func (p *parts) early(change func(*corev3.HeaderValueOption)) {
	e := p.hcm.EarlyHeaderMutationExtensions[0]
	var m earlyv3.HeaderMutation
	if err := e.GetTypedConfig().UnmarshalTo(&m); err != nil {
		panic(err)
	}
	for _, mut := range m.Mutations {
		if a := mut.GetAppend(); a != nil {
			change(a)
		}
	}
	packed, err := anypb.New(&m)
	if err != nil {
		panic(err)
	}
	e.TypedConfig = packed
}

// log writes another line into the access log.
func (p *parts) log(t testing.TB, line string) {
	file := envoy.RequestLog("/dev/null")
	file.GetLogFormat().GetTextFormatSource().Specifier = &corev3.DataSource_InlineString{InlineString: line}
	p.hcm.AccessLog[1].ConfigType = &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(t, file)}
}

func unpack(t testing.TB, a *anypb.Any, m proto.Message) {
	t.Helper()
	if err := a.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// broken is a valid snapshot with one change.
func broken(t testing.TB, usage string, change func(*parts)) *xds.Snapshot {
	t.Helper()
	p := &parts{s: build(t, input(usage, providers()...)), hcm: &hcmv3.HttpConnectionManager{}, extproc: &extprocv3.ExternalProcessor{}, tls: &tlsv3.UpstreamTlsContext{}}
	for _, p.listener = range p.s.Listeners {
	}
	unpack(t, p.listener.GetFilterChains()[0].GetFilters()[0].GetTypedConfig(), p.hcm)
	unpack(t, p.hcm.GetHttpFilters()[0].GetTypedConfig(), p.extproc)
	for _, rc := range p.s.Routes {
		p.vh = rc.GetVirtualHosts()[0]
	}
	for _, r := range p.vh.GetRoutes() {
		switch {
		case r.GetRoute().GetCluster() == envoy.ClusterAPI && p.manage == nil:
			p.manage = r
		case r.GetMatch().GetSafeRegex() != nil && p.escaped == nil:
			p.escaped = r
		case r.GetRoute().GetCluster() != envoy.ClusterAPI && r.GetRoute() != nil && p.provider == nil:
			p.provider = r
		case r.GetTypedPerFilterConfig()[envoy.FilterResponse] != nil && p.unseen == nil:
			p.unseen = r
		}
		p.last = r
	}
	for _, c := range p.s.Clusters {
		if c.GetTransportSocket() != nil {
			p.cluster = c
		}
	}
	unpack(t, p.cluster.GetTransportSocket().GetTypedConfig(), p.tls)
	filters, tlsBefore := len(p.hcm.GetHttpFilters()), p.cluster.GetTransportSocket()
	change(p)
	if p.cluster.GetTransportSocket() == tlsBefore {
		p.cluster.TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: pack(t, p.tls)}
	}
	if len(p.hcm.GetHttpFilters()) == filters && p.hcm.GetHttpFilters()[0].GetName() == "envoy.filters.http.ext_proc" {
		p.hcm.HttpFilters[0].ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, p.extproc)}
	}
	p.listener.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, p.hcm)}
	return p.s
}

// TestLint breaks a valid snapshot in each relevant way. Lint must return an error with the
// rule.
func TestLint(t *testing.T) {
	if err := xds.Lint(broken(t, "stream", func(*parts) {})); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	no := wrapperspb.Bool(false)
	yes := wrapperspb.Bool(true)
	second := func(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }
	disabled := func(p *parts) map[string]*anypb.Any {
		return map[string]*anypb.Any{"envoy.filters.http.ext_proc": pack(t, &extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Disabled{Disabled: true}})}
	}
	for _, c := range []struct {
		rule, name string
		change     func(*parts)
	}{
		{"L01", "no extproc", func(p *parts) { p.hcm.HttpFilters = p.hcm.HttpFilters[1:] }},
		{"L01", "extproc twice", func(p *parts) { p.hcm.HttpFilters = append(p.hcm.HttpFilters[:1:1], p.hcm.HttpFilters...) }},
		{"L01", "extproc after the router", func(p *parts) {
			p.hcm.HttpFilters[0], p.hcm.HttpFilters[1] = p.hcm.HttpFilters[1], p.hcm.HttpFilters[0]
		}},
		{"L01", "extproc disabled", func(p *parts) { p.hcm.HttpFilters[0].Disabled = true }},
		{"L01", "extproc optional", func(p *parts) { p.hcm.HttpFilters[0].IsOptional = true }},
		{"L01", "another filter", func(p *parts) {
			p.hcm.HttpFilters = append([]*hcmv3.HttpFilter{{Name: "envoy.filters.http.lua"}}, p.hcm.HttpFilters...)
		}},
		{"L01", "extproc by discovery", func(p *parts) {
			f := proto.Clone(p.hcm.HttpFilters[0]).(*hcmv3.HttpFilter)
			f.ConfigType = &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{}}
			p.hcm.HttpFilters = append([]*hcmv3.HttpFilter{f}, p.hcm.HttpFilters...)
		}},
		{"L01", "somebody else is asked", func(p *parts) { p.extproc.GetGrpcService().GetEnvoyGrpc().ClusterName = "other" }},
		{"L01", "disabled on a provider's route", func(p *parts) { p.provider.TypedPerFilterConfig = disabled(p) }},
		{"L01", "disabled for all routes", func(p *parts) { p.vh.TypedPerFilterConfig = disabled(p) }},
		{"L01", "management changes another filter", func(p *parts) {
			p.manage.TypedPerFilterConfig["envoy.filters.http.router"] = p.manage.TypedPerFilterConfig["envoy.filters.http.ext_proc"]
		}},
		{"L01", "management of a governed path", func(p *parts) {
			p.manage.Match.PathSpecifier = &routev3.RouteMatch_Path{Path: "/v1/chat/completions"}
		}},
		{"L01", "management of all paths", func(p *parts) { p.manage.Match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"} }},
		{"L01", "management of what only begins like it", func(p *parts) {
			p.manage.Match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/v1/agents"}
		}},
		{"L01", "another filter chain", func(p *parts) { p.listener.DefaultFilterChain = p.listener.FilterChains[0] }},
		{"L01", "listener filters", func(p *parts) { p.listener.ListenerFilters = []*listenerv3.ListenerFilter{{Name: "x"}} }},
		{"L01", "other routes", func(p *parts) { p.hcm.GetRds().RouteConfigName = "other" }},
		{"L01", "two listeners", func(p *parts) { p.s.Listeners["b"] = p.listener }},
		{"L01", "no routes", func(p *parts) { clear(p.s.Routes) }},

		{"L02", "failure_mode_allow", func(p *parts) { p.extproc.FailureModeAllow = true }},
		{"L02", "observability_mode", func(p *parts) { p.extproc.ObservabilityMode = true }},
		{"L02", "disable_immediate_response", func(p *parts) { p.extproc.DisableImmediateResponse = true }},

		{"L03", "any mode may be chosen", func(p *parts) { p.extproc.AllowedOverrideModes = nil }},
		{"L03", "a mode without the request's body may be chosen", func(p *parts) {
			p.extproc.AllowedOverrideModes[0].RequestBodyMode = extprocv3.ProcessingMode_NONE
		}},
		{"L03", "a mode with request trailers may be chosen", func(p *parts) {
			p.extproc.AllowedOverrideModes[0].RequestTrailerMode = extprocv3.ProcessingMode_SEND
		}},
		{"L03", "a mode without the answer's headers may be chosen", func(p *parts) {
			p.extproc.AllowedOverrideModes[1].ResponseHeaderMode = extprocv3.ProcessingMode_SKIP
		}},
		{"L03", "a mode without the answer may be chosen", func(p *parts) {
			p.extproc.AllowedOverrideModes[1].ResponseBodyMode = extprocv3.ProcessingMode_NONE
		}},
		{"L03", "a mode without the answer's trailers may be chosen", func(p *parts) {
			p.extproc.AllowedOverrideModes[1].ResponseTrailerMode = extprocv3.ProcessingMode_SKIP
		}},
		{"L03", "body before headers", func(p *parts) { p.extproc.SendBodyWithoutWaitingForHeaderResponse = true }},
		{"L03", "headers skipped", func(p *parts) { p.extproc.ProcessingMode.RequestHeaderMode = extprocv3.ProcessingMode_SKIP }},
		{"L03", "body none", func(p *parts) { p.extproc.ProcessingMode.RequestBodyMode = extprocv3.ProcessingMode_NONE }},
		{"L03", "body streamed", func(p *parts) { p.extproc.ProcessingMode.RequestBodyMode = extprocv3.ProcessingMode_STREAMED }},
		{"L03", "body partial", func(p *parts) {
			p.extproc.ProcessingMode.RequestBodyMode = extprocv3.ProcessingMode_BUFFERED_PARTIAL
		}},
		{"L03", "answers' headers skipped", func(p *parts) { p.extproc.ProcessingMode.ResponseHeaderMode = extprocv3.ProcessingMode_SKIP }},
		{"L03", "answers buffered", func(p *parts) { p.extproc.ProcessingMode.ResponseBodyMode = extprocv3.ProcessingMode_BUFFERED }},
		{"L03", "answers unseen, and nobody reads usage", func(p *parts) { p.extproc.ProcessingMode.ResponseBodyMode = extprocv3.ProcessingMode_NONE }},
		{"L03", "no trailers", func(p *parts) { p.extproc.ProcessingMode.ResponseTrailerMode = extprocv3.ProcessingMode_SKIP }},

		{"L04", "mutations ignored", func(p *parts) { p.extproc.MutationRules.DisallowIsError = no }},
		{"L04", "no mutation rules", func(p *parts) { p.extproc.MutationRules = nil }},
		{"L04", "x-envoy may change", func(p *parts) { p.extproc.MutationRules.AllowEnvoy = yes }},
		{"L04", "routing may change", func(p *parts) { p.extproc.MutationRules.AllowAllRouting = yes }},

		{"L05", "clients may send the verdict", func(p *parts) { p.hcm.EarlyHeaderMutationExtensions = nil }},
		{"L05", "the peer's address appended to the client's", func(p *parts) { p.early(func(a *corev3.HeaderValueOption) { a.AppendAction = 0 }) }},
		{"L05", "another peer's address", func(p *parts) {
			p.early(func(a *corev3.HeaderValueOption) { a.Header.Value = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" })
		}},
		{"L05", "the verdict set early", func(p *parts) { p.early(func(a *corev3.HeaderValueOption) { a.Header.Key = envoy.HeaderRoute }) }},
		{"L05", "route without the verdict", func(p *parts) { p.provider.Match.Headers = nil }},
		{"L05", "route with any verdict", func(p *parts) {
			p.provider.Match.Headers[0].HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		}},
		{"L05", "route with another verdict", func(p *parts) {
			p.provider.Match.Headers[0].GetStringMatch().MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: "provider-"}
		}},
		{"L05", "route without regard to case", func(p *parts) { p.provider.Match.Headers[0].GetStringMatch().IgnoreCase = true }},
		{"L05", "route by the verdict's absence", func(p *parts) { p.provider.Match.Headers[0].InvertMatch = true }},
		{"L05", "route by another header", func(p *parts) { p.provider.Match.Headers[0].Name = "x-other" }},
		{"L05", "the verdict goes upstream", func(p *parts) { p.provider.RequestHeadersToRemove = nil }},
		{"L05", "a route adds headers", func(p *parts) {
			p.provider.RequestHeadersToAdd = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "authorization", Value: "x"}}}
		}},
		{"L05", "no default", func(p *parts) { p.vh.Routes = p.vh.Routes[:len(p.vh.Routes)-1] }},
		{"L05", "default to a provider", func(p *parts) { p.last.Action = p.provider.Action }},
		{"L05", "default leads to a cluster", func(p *parts) {
			p.last.GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: "provider-x"}
		}},
		{"L05", "default is not found as 404", func(p *parts) { p.last.GetRoute().ClusterNotFoundResponseCode = routev3.RouteAction_NOT_FOUND }},
		{"L05", "default for some paths", func(p *parts) { p.last.Match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/v1"} }},
		{"L05", "a route to elsewhere", func(p *parts) {
			p.provider.GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: "internet"}
		}},
		{"L05", "a route by header", func(p *parts) {
			p.provider.GetRoute().ClusterSpecifier = &routev3.RouteAction_ClusterHeader{ClusterHeader: "x-cluster"}
		}},
		{"L05", "a redirect", func(p *parts) { p.provider.Action = &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{}} }},
		{"L05", "two virtual hosts", func(p *parts) {
			for _, rc := range p.s.Routes {
				rc.VirtualHosts = append(rc.VirtualHosts, p.vh)
			}
		}},
		{"L05", "some hosts only", func(p *parts) { p.vh.Domains = []string{"example.com"} }},
		{"L05", "retry of what may have arrived", func(p *parts) { p.provider.GetRoute().RetryPolicy.RetryOn = "5xx" }},
		{"L05", "retry for all", func(p *parts) { p.vh.RetryPolicy = &routev3.RetryPolicy{RetryOn: "5xx"} }},
		{"L05", "a cluster that nobody routes to", func(p *parts) { p.vh.Routes = p.vh.Routes[1:] }},
		{"L05", "a cluster of ours replaced", func(p *parts) {
			c := proto.Clone(p.cluster).(*clusterv3.Cluster)
			c.Name = envoy.ClusterExtProc
			p.s.Clusters[c.Name] = c
		}},
		{"L05", "two servers", func(p *parts) {
			e := p.cluster.LoadAssignment.Endpoints[0]
			e.LbEndpoints = append(e.LbEndpoints, e.LbEndpoints[0])
		}},
		{"L05", "extproc clears routes by itself", func(p *parts) { p.extproc.RouteCacheAction = extprocv3.ExternalProcessor_CLEAR }},

		{"L06", "paths as they come", func(p *parts) { p.hcm.NormalizePath = no }},
		{"L06", "slashes as they come", func(p *parts) { p.hcm.MergeSlashes = false }},
		{"L06", "escaped slashes", func(p *parts) {
			p.hcm.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
		}},
		{"L06", "ports in hosts", func(p *parts) { p.hcm.StripPortMode = nil }},
		{"L06", "schemes of clients' own", func(p *parts) { p.hcm.SchemeHeaderTransformation = nil }},
		{"L06", "addresses of clients' own", func(p *parts) { p.hcm.UseRemoteAddress = no }},
		{"L06", "trusted hops", func(p *parts) { p.hcm.XffNumTrustedHops = 1 }},
		{"L06", "request ids of clients' own", func(p *parts) { p.hcm.PreserveExternalRequestId = true }},
		{"L06", "certificates of clients' own", func(p *parts) {
			p.hcm.ForwardClientCertDetails = hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY
		}},
		{"L06", "lenient messages", func(p *parts) { p.hcm.StreamErrorOnInvalidHttpMessage = nil }},
		{"L06", "underscores", func(p *parts) { p.hcm.CommonHttpProtocolOptions.HeadersWithUnderscoresAction = 0 }},
		{"L06", "HTTP/1.0 that extproc does not see", func(p *parts) {
			m := envoy.EarlyMutation()
			m.Mutations = m.Mutations[:len(m.Mutations)-1]
			p.hcm.EarlyHeaderMutationExtensions[0].TypedConfig, _ = anypb.New(m)
		}},
		{"L06", "chunked with a length", func(p *parts) { p.hcm.HttpProtocolOptions.AllowChunkedLength = true }},
		{"L06", "an access log", func(p *parts) { p.hcm.AccessLog = []*accesslogv3.AccessLog{{Name: "x"}} }},
		{"L06", "a path in the access log", func(p *parts) { p.log(t, "%REQ(:PATH)%\n") }},
		{"L06", "a credential in the access log", func(p *parts) { p.log(t, "%REQ(AUTHORIZATION)%\n") }},
		{"L06", "two access logs", func(p *parts) { p.hcm.AccessLog = append(p.hcm.AccessLog, p.hcm.AccessLog[1]) }},
		{"L06", "requests left out of the access log", func(p *parts) { p.hcm.AccessLog[1].Filter = p.hcm.AccessLog[0].Filter }},
		{"L17", "the access log in a relative file", func(p *parts) {
			p.hcm.AccessLog[1].ConfigType = &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(t, envoy.RequestLog("access.log"))}
		}},
		{"L17", "connections in an access log", func(p *parts) { p.listener.AccessLog = p.hcm.AccessLog[1:] }},
		{"L17", "a provider's route with another name", func(p *parts) { p.provider.Name = envoy.RouteManagement }},
		{"L17", "a management route with another name", func(p *parts) { p.manage.Name = "provider-x" }},
		{"L05", "the last route with another name", func(p *parts) { p.last.Name = envoy.RouteManagement }},
		{"L06", "the client's address upstream", func(p *parts) { p.provider.RequestHeadersToRemove = []string{envoy.HeaderRoute, "x-forwarded-proto"} }},
		{"L06", "the gateway's host upstream", func(p *parts) { p.provider.GetRoute().HostRewriteSpecifier = nil }},

		{"L07", "websockets", func(p *parts) {
			p.hcm.UpgradeConfigs = []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}}
		}},
		{"L07", "websockets on a route", func(p *parts) {
			p.provider.GetRoute().UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket"}}
		}},
		{"L07", "CONNECT", func(p *parts) { p.hcm.Http2ProtocolOptions.AllowConnect = true }},
		{"L07", "HTTP/3", func(p *parts) { p.hcm.Http3ProtocolOptions = &corev3.Http3ProtocolOptions{} }},
		{"L07", "a mirror", func(p *parts) {
			p.provider.GetRoute().RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: "x"}}
		}},
		{"L07", "a mirror of all", func(p *parts) {
			p.vh.RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: "x"}}
		}},
		{"L07", "redirects followed", func(p *parts) { p.provider.GetRoute().InternalRedirectPolicy = &routev3.InternalRedirectPolicy{} }},
		{"L07", "where the client says", func(p *parts) {
			p.cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		}},
		{"L07", "a custom cluster", func(p *parts) {
			p.cluster.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{Name: "x"}}
		}},

		{"L08", "default message_timeout", func(p *parts) { p.extproc.MessageTimeout = nil }},
		{"L08", "200 ms", func(p *parts) { p.extproc.MessageTimeout = &durationpb.Duration{Nanos: 200e6} }},
		{"L08", "longer than message_timeout", func(p *parts) { p.extproc.MaxMessageTimeout = second(60) }},
		{"L08", "default buffer", func(p *parts) { p.listener.PerConnectionBufferLimitBytes = nil }},
		{"L08", "default buffer of bodies", func(p *parts) { p.vh.RequestBodyBufferLimit = nil }},
		{"L08", "default buffer upstream", func(p *parts) { p.cluster.PerConnectionBufferLimitBytes = wrapperspb.UInt32(2 << 20) }},
		{"L08", "default breakers", func(p *parts) { p.cluster.CircuitBreakers = nil }},
		{"L08", "breakers at 1024", func(p *parts) { p.cluster.CircuitBreakers.Thresholds[0].MaxRequests = wrapperspb.UInt32(1024) }},
		{"L08", "no connect timeout", func(p *parts) { p.cluster.ConnectTimeout = nil }},
		{"L08", "answers cut after 15 s", func(p *parts) { p.provider.GetRoute().Timeout = nil }},
		{"L08", "answers cut when silent for 5 s", func(p *parts) { p.provider.GetRoute().IdleTimeout = second(5) }},
		{"L08", "headers for ever", func(p *parts) { p.hcm.RequestHeadersTimeout = nil }},
		{"L08", "bodies for ever", func(p *parts) { p.hcm.RequestTimeout = nil }},
		{"L08", "no idle timeout of streams", func(p *parts) { p.hcm.StreamIdleTimeout = nil }},
		{"L08", "idle connections for ever", func(p *parts) { p.hcm.CommonHttpProtocolOptions.IdleTimeout = nil }},
		{"L08", "headers without number", func(p *parts) { p.hcm.CommonHttpProtocolOptions.MaxHeadersCount = nil }},
		{"L08", "streams without number", func(p *parts) { p.hcm.Http2ProtocolOptions.MaxConcurrentStreams = nil }},

		{"L06", "escaped slashes decoded", func(p *parts) { p.hcm.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD }},
		{"L06", "escaped slashes routed", func(p *parts) { p.vh.Routes = p.vh.Routes[1:] }},
		{"L06", "some escaped slashes routed", func(p *parts) { p.escaped.GetMatch().GetSafeRegex().Regex = ".*%2F.*" }},

		{"L12", "Envoy's own words", func(p *parts) { p.hcm.LocalReplyConfig = nil }},
		{"L12", "Envoy's own words beside ours", func(p *parts) {
			f := p.hcm.LocalReplyConfig.Mappers[1].BodyFormatOverride.GetJsonFormat()
			f.Fields["why"] = structpb.NewStringValue("%LOCAL_REPLY_BODY%")
		}},
		{"L12", "extproc's answers changed", func(p *parts) { p.hcm.LocalReplyConfig.Mappers = p.hcm.LocalReplyConfig.Mappers[1:] }},
		{"L12", "answers left out", func(p *parts) {
			p.hcm.LocalReplyConfig.Mappers = p.hcm.LocalReplyConfig.Mappers[:len(p.hcm.LocalReplyConfig.Mappers)-1]
		}},
		{"L12", "another status", func(p *parts) { p.hcm.LocalReplyConfig.Mappers[2].StatusCode = wrapperspb.UInt32(200) }},

		{"L14", "addresses that are not checked", func(p *parts) {
			p.cluster.TypedExtensionProtocolOptions = map[string]*anypb.Any{}
		}},
		{"L14", "all addresses allowed", func(p *parts) { p.targets(func(r *rbacv3.RBAC) { r.Action = rbacv3.RBAC_DENY }) }},
		{"L14", "no rules", func(p *parts) { p.targets(func(r *rbacv3.RBAC) { r.Policies = nil }) }},
		{"L14", "a second policy", func(p *parts) { p.targets(func(r *rbacv3.RBAC) { r.Policies["more"] = r.Policies["targets"] }) }},
		{"L14", "special addresses allowed", func(p *parts) {
			p.targets(func(r *rbacv3.RBAC) {
				r.Policies["targets"].Permissions[0] = &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
			})
		}},
		{"L11", "no CA", func(p *parts) { p.tls.CommonTlsContext.GetValidationContext().TrustedCa = nil }},
		{"L11", "no validation", func(p *parts) { p.tls.CommonTlsContext.ValidationContextType = nil }},
		{"L11", "any name", func(p *parts) { p.tls.CommonTlsContext.GetValidationContext().MatchTypedSubjectAltNames = nil }},
		{"L11", "untrusted chains", func(p *parts) {
			p.tls.CommonTlsContext.GetValidationContext().TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
		}},
		{"L11", "expired certificates", func(p *parts) { p.tls.CommonTlsContext.GetValidationContext().AllowExpiredCertificate = true }},
		{"L11", "TLS 1.0", func(p *parts) {
			p.tls.CommonTlsContext.TlsParams.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_0
		}},
		{"L11", "another transport", func(p *parts) {
			p.cluster.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.raw_buffer", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: "x"}}}
		}},
	} {
		err := xds.Lint(broken(t, "stream", c.change))
		if err == nil || !strings.Contains(err.Error(), c.rule+": ") {
			t.Errorf("%s, %s: Lint returned %v", c.rule, c.name, err)
		}
	}
}

// If extproc does not receive a provider's response headers, Envoy's filters remove them.
func TestLintUnseen(t *testing.T) {
	if err := xds.Lint(broken(t, "envoy", func(*parts) {})); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for name, change := range map[string]func(*parts){
		"every header":       func(p *parts) { delete(p.unseen.TypedPerFilterConfig, envoy.FilterResponse) },
		"401 and redirects":  func(p *parts) { delete(p.unseen.TypedPerFilterConfig, envoy.FilterReplace) },
		"another list":       func(p *parts) { p.unseen.TypedPerFilterConfig[envoy.FilterResponse].Value = nil },
		"no replacements":    func(p *parts) { p.unseen.TypedPerFilterConfig[envoy.FilterReplace].Value = nil },
		"a header is set":    func(p *parts) { p.unseen.ResponseHeadersToAdd = []*corev3.HeaderValueOption{{}} },
		"on the route below": func(p *parts) { p.vh.Routes[3].TypedPerFilterConfig = nil },
	} {
		if err := xds.Lint(broken(t, "envoy", change)); err == nil || !strings.Contains(err.Error(), "L13: ") {
			t.Errorf("%s: Lint returned %v", name, err)
		}
	}
	if err := xds.Lint(broken(t, "envoy", func(p *parts) { p.hcm.HttpFilters = append(p.hcm.HttpFilters[:1:1], p.hcm.HttpFilters[2:]...) })); err == nil || !strings.Contains(err.Error(), "L01: ") {
		t.Errorf("without the filter that replaces responses: Lint returned %v", err)
	}
}
