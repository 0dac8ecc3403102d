package xds

import (
	"errors"
	"fmt"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ai_protocol_manager/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
)

const hcmFilter = "envoy.filters.network.http_connection_manager"

// messageTimeout bounds extproc's answer to each message; above what extproc's own
// time limits add up to, so that it is extproc who says why.
const messageTimeout = 10 // seconds

// VerdictNamespace is where extproc leaves what Envoy is to use by itself: the
// receipt for the route to show, where extproc is not asked about the answer's
// headers, and under FormatKey the caller's format, where the provider's path does
// not tell it.
const (
	VerdictNamespace = "aid"
	FormatKey        = "format"
)

// peerFormat is of the connection itself, whatever a client says of others.
const peerFormat = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"

// usageNamespace is where Envoy publishes the usage that it read.
const usageNamespace = "envoy.ai.token_usage"

// listener is the gateway: one port, one filter chain, extproc before the router.
func (in Input) listener() (*listenerv3.Listener, error) {
	address, err := socket(in.Gateway)
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name: listenerName, Address: address,
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(uint32(in.MaxBody + slack)),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: hcmFilter, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(in.manager())},
		}}}},
	}, nil
}

// manager is Envoy's HTTP at a governed edge (docs/operations.md lists the limits).
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

		// One reading of a path and of a host, for identity, policy, routing and record.
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		StripPortMode:                &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		StripTrailingHostDot:         true,
		// The scheme that a client names over HTTP/2 would go on over HTTP/2.
		SchemeHeaderTransformation: &corev3.SchemeHeaderTransformation{MatchUpstream: true},

		// What a client says of itself and of others is not believed.
		UseRemoteAddress:              yes(),
		GenerateRequestId:             yes(),
		PreserveExternalRequestId:     false,
		AlwaysSetRequestIdInResponse:  true,
		ForwardClientCertDetails:      hcmv3.HttpConnectionManager_SANITIZE_SET,
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{early()},
		ServerHeaderTransformation:    hcmv3.HttpConnectionManager_OVERWRITE,
		ServerName:                    "aid",

		// What two parsers could read differently is refused.
		StreamErrorOnInvalidHttpMessage: yes(),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  seconds(900),
			MaxHeadersCount:              wrapperspb.UInt32(100),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{
			AcceptHttp_10: false, AllowChunkedLength: false,
			EnableTrailers: true, // to be seen, and refused, on both protocols alike
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams: wrapperspb.UInt32(1000),
			// A request's buffer is as large as its window, so a body must fit into it.
			InitialStreamWindowSize:     wrapperspb.UInt32(uint32(in.MaxBody + slack)),
			InitialConnectionWindowSize: wrapperspb.UInt32(uint32(max(in.MaxBody+slack, 16<<20))),
		},
		MaxRequestHeadersKb: wrapperspb.UInt32(60),

		RequestHeadersTimeout: seconds(10),
		RequestTimeout:        seconds(300), // for the whole request to arrive
		StreamIdleTimeout:     seconds(600), // a model may think for long before it says more
		DelayedCloseTimeout:   seconds(1),
		DrainTimeout:          seconds(5),

		LocalReplyConfig: localReplies(),
	}
}

// early removes what only we may say, before anything reads it, and says whom the
// request is from. The rest of x-aid-* is extproc's to remove: it reads some of it
// first.
func early() *corev3.TypedExtensionConfig {
	remove := func(m *matcherv3.StringMatcher) *mutationv3.HeaderMutation {
		return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
			RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: m},
		}}
	}
	prefix := func(p string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}, IgnoreCase: true}
	}
	return &corev3.TypedExtensionConfig{
		Name: "envoy.http.early_header_mutation.header_mutation",
		TypedConfig: pack(&earlyv3.HeaderMutation{Mutations: []*mutationv3.HeaderMutation{
			{Action: &mutationv3.HeaderMutation_Remove{Remove: RouteHeader}},
			remove(prefix("x-agent-")), remove(prefix("x-envoy-")),
			{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: PeerHeader, Value: peerFormat},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}}},
		}}),
	}
}

// filters are extproc, if Envoy reads usage its filter for that, and the router.
func (in Input) filters() []*hcmv3.HttpFilter {
	filter := func(name string, config *hcmv3.HttpFilter_TypedConfig) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, ConfigType: config}
	}
	fs := []*hcmv3.HttpFilter{filter(extprocFilter, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(in.extproc())})}
	if in.Usage == "envoy" {
		fs = append(fs, filter(usageFilter, &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&aiv3.AiProtocolManager{
			ResponseHandling: &aiv3.ResponseHandling{TokenUsage: &aiv3.TokenUsageExtraction{
				MetadataNamespace: usageNamespace, UsageSignal: aiv3.TokenUsageExtraction_SYNTHESIZE_TRAILERS,
				Limits: &aiv3.TokenUsageExtractionLimits{
					// Its defaults are for short answers; these are the most it takes.
					MaxSseEventSize: wrapperspb.UInt32(1 << 20), MaxJsonBodySize: wrapperspb.UInt32(10 << 20), MaxParsedSseEvents: wrapperspb.UInt32(1_000_000),
				},
			}},
		})}))
	}
	return append(fs, filter("envoy.filters.http.router", &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{
		SuppressEnvoyHeaders: true, // x-envoy-upstream-service-time is nobody's business
	})}))
}

// extproc is the filter that asks. Every default that lets something pass, or
// makes it wait too short, is changed.
func (in Input) extproc() *extprocv3.ExternalProcessor {
	mode := &extprocv3.ProcessingMode{
		RequestHeaderMode: extprocv3.ProcessingMode_SEND, RequestBodyMode: extprocv3.ProcessingMode_BUFFERED, RequestTrailerMode: extprocv3.ProcessingMode_SKIP,
		ResponseHeaderMode: extprocv3.ProcessingMode_SEND, ResponseBodyMode: extprocv3.ProcessingMode_STREAMED, ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
	}
	p := &extprocv3.ExternalProcessor{
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: envoy.ClusterExtProc},
		}},
		FailureModeAllow: false,
		ProcessingMode:   mode,
		MessageTimeout:   seconds(messageTimeout),
		// Answers that are translated: see answerModes.
		AllowModeOverride: true, AllowedOverrideModes: answerModes(),
		MutationRules:      &mutationv3.HeaderMutationRules{DisallowIsError: yes(), AllowEnvoy: wrapperspb.Bool(false), AllowAllRouting: wrapperspb.Bool(false)},
		ResponseAttributes: []string{"response.code_details"},
		MetadataOptions: &extprocv3.MetadataOptions{
			ReceivingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{VerdictNamespace}},
		},
	}
	if in.Usage == "envoy" {
		// One message for an answer: its trailers. Headers must not be asked for
		// too: trailers that are synthesized while a reply on the headers is
		// awaited never come (measured, 1.40). The routes do what extproc would.
		mode.ResponseHeaderMode, mode.ResponseBodyMode = extprocv3.ProcessingMode_SKIP, extprocv3.ProcessingMode_NONE
		p.ResponseAttributes = append(p.ResponseAttributes, "response.code")
		p.MetadataOptions.ForwardingNamespaces = &extprocv3.MetadataOptions_MetadataNamespaces{Typed: []string{usageNamespace}}
	}
	return p
}

// answerModes are the only modes that extproc may choose for an exchange. Both send
// it as much as the configured mode does, or more: an answer that it translates comes
// to it whole if it is not a stream, and where Envoy reads usage it comes at all.
func answerModes() []*extprocv3.ProcessingMode {
	mode := func(body extprocv3.ProcessingMode_BodySendMode) *extprocv3.ProcessingMode {
		return &extprocv3.ProcessingMode{
			RequestHeaderMode: extprocv3.ProcessingMode_SEND, RequestBodyMode: extprocv3.ProcessingMode_BUFFERED, RequestTrailerMode: extprocv3.ProcessingMode_SKIP,
			ResponseHeaderMode: extprocv3.ProcessingMode_SEND, ResponseBodyMode: body, ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
		}
	}
	return []*extprocv3.ProcessingMode{mode(extprocv3.ProcessingMode_STREAMED), mode(extprocv3.ProcessingMode_BUFFERED)}
}

// managerOf unpacks the one HTTP connection manager of a listener of ours.
func managerOf(l *listenerv3.Listener) (*hcmv3.HttpConnectionManager, error) {
	if len(l.GetFilterChains()) != 1 || len(l.GetFilterChains()[0].GetFilters()) != 1 {
		return nil, errors.New("xds: a listener of ours has one filter")
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
