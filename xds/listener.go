package xds

import (
	"errors"
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ai_protocol_manager/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	customv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/custom_response/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
)

const hcmFilter = "envoy.filters.network.http_connection_manager"

// listener is the gateway: one port, one filter chain, extproc before the router.
func (in Input) listener() (*listenerv3.Listener, error) {
	address, err := socket(in.Gateway)
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name: listenerName, Address: address,
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: hcmFilter, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(in.manager())},
		}}}},
	}, nil
}

// Envoy's buffers for a connection, without the body that it buffers for extproc. The route
// limits that body. These limits are small, since a slow reader or a rejected sender can
// fill them (docs/operations.md, Limits).
const (
	connectionBuffer = 256 << 10
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
)

// manager returns the HTTP settings of the gateway (docs/operations.md lists the limits).
func (in Input) manager() *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: "gateway",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: routesName,
			ConfigSource: &corev3.ConfigSource{
				ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: seconds(0), // without routes there is nothing to serve
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			},
		}},
		HttpFilters: in.filters(),

		// Paths and hosts are normalized once, for identity, policy, routing and the audit log.
		NormalizePath: wrapperspb.Bool(true),
		MergeSlashes:  true,
		// A path with an escaped slash reaches extproc, which accepts it only in a model's
		// name. No route leads from there to a cluster (see escapedSlash).
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		StripPortMode:                &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		StripTrailingHostDot:         true,
		// Without this, a client's :scheme would be forwarded over HTTP/2.
		SchemeHeaderTransformation: &corev3.SchemeHeaderTransformation{MatchUpstream: true},

		// Addresses, ids and certificates in a client's headers are not trusted.
		UseRemoteAddress:              yes(),
		GenerateRequestId:             yes(),
		PreserveExternalRequestId:     false,
		AlwaysSetRequestIdInResponse:  true,
		ForwardClientCertDetails:      hcmv3.HttpConnectionManager_SANITIZE_SET,
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{early()},
		ServerHeaderTransformation:    hcmv3.HttpConnectionManager_OVERWRITE,
		ServerName:                    "aid",

		// A message that parsers could read differently is rejected.
		StreamErrorOnInvalidHttpMessage: yes(),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout: seconds(900),
			// extproc has lower limits, and rejects with a response. What Envoy rejects while it
			// reads the headers has no response: extproc's filter holds the response, and Envoy
			// resets the stream at once.
			MaxHeadersCount: wrapperspb.UInt32(200),
			// This also closes the connection. A proxy in front that reads Transfer_Encoding as
			// Transfer-Encoding would otherwise see one request where Envoy sees two.
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{
			// extproc rejects HTTP/1.0, by envoy.HeaderProtocol. A request without a Host gets
			// one that does not exist, so that it has the same response.
			AcceptHttp_10: true, DefaultHostForHttp_10: "http-1.0.invalid", AllowChunkedLength: false,
			EnableTrailers: true, // so that they are rejected with both protocols
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(1000),
			InitialStreamWindowSize:     wrapperspb.UInt32(streamWindow),
			InitialConnectionWindowSize: wrapperspb.UInt32(connectionWindow),
		},
		MaxRequestHeadersKb: wrapperspb.UInt32(96),

		RequestHeadersTimeout: seconds(10),
		RequestTimeout:        seconds(300), // for the whole request to arrive
		StreamIdleTimeout:     seconds(600), // a model may pause for minutes
		DelayedCloseTimeout:   seconds(1),
		DrainTimeout:          seconds(5),

		LocalReplyConfig: localReplies(),
		AccessLog:        append([]*accesslogv3.AccessLog{endLog()}, in.requestLog()...),
	}
}

func endLog() *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.http_grpc", Filter: envoy.EndLogFilter(),
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(envoy.EndLog())},
	}
}

// requestLog is the access log of requests, if there is one.
func (in Input) requestLog() []*accesslogv3.AccessLog { return fileLog(in.AccessLog, envoy.RequestLog) }

// connectionLog is the access log of a listener's connections, if there is one.
func (in Input) connectionLog(listener string) []*accesslogv3.AccessLog {
	return fileLog(in.AccessLog, func(path string) *filelogv3.FileAccessLog {
		return envoy.ConnectionLog(path, listener, listener == innerListener)
	})
}

func fileLog(path string, log func(path string) *filelogv3.FileAccessLog) []*accesslogv3.AccessLog {
	if path == "" {
		return nil
	}
	return []*accesslogv3.AccessLog{{
		Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(log(path))},
	}}
}

func early() *corev3.TypedExtensionConfig { return earlyOf(envoy.EarlyMutation()) }

func earlyOf(m *earlyv3.HeaderMutation) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: "envoy.http.early_header_mutation.header_mutation", TypedConfig: pack(m)}
}

// filters are these: CORS, with allowed origins; extproc; Envoy's usage filter, if Envoy
// reads usage; the router.
func (in Input) filters() []*hcmv3.HttpFilter {
	filter := func(name string, config *hcmv3.HttpFilter_TypedConfig) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, ConfigType: config}
	}
	var fs []*hcmv3.HttpFilter
	if len(in.Origins) > 0 {
		fs = append(fs, filter(envoy.FilterCORS, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&corsv3.Cors{})}))
	}
	fs = append(fs, filter(envoy.FilterExtProc, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(envoy.ExtProcFilter(in.Usage))}))
	if in.Usage == envoy.UsageEnvoy {
		// Responses pass these in reverse order. The routes have their settings.
		fs = append(fs, filter(envoy.FilterReplace, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&customv3.CustomResponse{})}),
			filter(envoy.FilterResponse, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&headerv3.HeaderMutation{})}))
		fs = append(fs, filter(envoy.FilterUsage, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&aiv3.AiProtocolManager{
			ResponseHandling: &aiv3.ResponseHandling{TokenUsage: &aiv3.TokenUsageExtraction{
				MetadataNamespace: envoy.UsageNamespace, UsageSignal: aiv3.TokenUsageExtraction_SYNTHESIZE_TRAILERS,
				Limits: &aiv3.TokenUsageExtractionLimits{
					// The defaults are for short responses; these are the highest values.
					MaxSseEventSize: wrapperspb.UInt32(1 << 20), MaxJsonBodySize: wrapperspb.UInt32(10 << 20), MaxParsedSseEvents: wrapperspb.UInt32(1_000_000),
				},
			}},
		})}))
	}
	return append(fs, filter("envoy.filters.http.router", &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{
		SuppressEnvoyHeaders: true, // x-envoy-upstream-service-time is not for clients
	})}))
}

// managerOf unpacks the HTTP connection manager of a listener that Build made.
func managerOf(l *listenerv3.Listener) (*hcmv3.HttpConnectionManager, error) {
	if len(l.GetFilterChains()) != 1 || len(l.GetFilterChains()[0].GetFilters()) != 1 {
		return nil, errors.New("xds: the listener does not have exactly one filter")
	}
	var hcm hcmv3.HttpConnectionManager
	if err := l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(&hcm); err != nil {
		return nil, fmt.Errorf("xds: %s: %w", l.GetName(), err)
	}
	return &hcm, nil
}

func inline(hcm *hcmv3.HttpConnectionManager, routes *routev3.RouteConfiguration) {
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes}
}
