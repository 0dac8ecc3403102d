package envoy

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The names of Envoy's filters that the configuration uses.
const (
	FilterExtProc = "envoy.filters.http.ext_proc"
	FilterUsage   = "envoy.filters.http.ai_protocol_manager"
	FilterCORS    = "envoy.filters.http.cors" // only with origins that are allowed

	// Only where Envoy reads usage, and extproc does not see response headers:
	FilterResponse = "envoy.filters.http.header_mutation" // removes headers
	FilterReplace  = "envoy.filters.http.custom_response" // replaces whole responses
)

// messageTimeout bounds extproc's reply to one message. It is above the sum of
// extproc's own limits, so that the reason comes from extproc.
const messageTimeout = 10 * time.Second

// PeerFormat is the address of the connection itself.
const PeerFormat = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"

// ProtocolFormat is the version of HTTP that the client speaks.
const ProtocolFormat = "%PROTOCOL%"

// EarlyMutation removes the headers that only the gateway may set, before anything reads
// them, and sets HeaderPeer and HeaderProtocol. extproc removes the other x-aid-* headers. It reads some of
// them first.
func EarlyMutation() *earlyv3.HeaderMutation {
	return &earlyv3.HeaderMutation{Mutations: append(ownHeaders(),
		removeHeader(HeaderEgress), removeHeader(HeaderConnect),
		overwriteHeader(HeaderPeer, PeerFormat), overwriteHeader(HeaderProtocol, ProtocolFormat),
	)}
}

// EgressMutation is EarlyMutation for intercepted connections to a governed host. tunneled is
// for connections through the forward proxy, which says where they came from and for what.
// Otherwise a value that is empty would leave the client's own header (measured, 1.40), so each
// keeps an empty value.
func EgressMutation(host string, tunneled bool) *earlyv3.HeaderMutation {
	peer, connect := PeerFormat, ""
	if tunneled {
		peer, connect = TunnelPeerFormat, TunnelConnectFormat
	}
	return &earlyv3.HeaderMutation{Mutations: append(ownHeaders(),
		fact(HeaderEgress, host), fact(HeaderConnect, connect), fact(HeaderPeer, peer), fact(HeaderProtocol, ProtocolFormat),
	)}
}

// Filter state that the forward proxy passes to the inner listener, and its formats there.
const (
	StateTunnelPeer     = "aid.tunnel.peer"
	StateTunnelConnect  = "aid.tunnel.connect"
	TunnelPeerFormat    = "%FILTER_STATE(" + StateTunnelPeer + ":PLAIN)%"
	TunnelConnectFormat = "%FILTER_STATE(" + StateTunnelConnect + ":PLAIN)%"
)

func ownHeaders() []*mutationv3.HeaderMutation {
	return []*mutationv3.HeaderMutation{removeHeader(HeaderRoute), removeOnMatch(prefixed(PrefixAgent)), removeOnMatch(prefixed("x-envoy-"))}
}

func removeHeader(name string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}}
}

// fact overwrites a header with a fact of the connection, also with an empty one.
func fact(name, value string) *mutationv3.HeaderMutation {
	m := overwriteHeader(name, value)
	m.GetAppend().KeepEmptyValue = true
	return m
}

// ResponseMutations are the changes to a provider's response headers that extproc makes
// where it receives them. The gateway's own headers are added after the removal. further
// are the names that the provider's settings allow.
func ResponseMutations(further []string) *headerv3.HeaderMutationPerRoute {
	return &headerv3.HeaderMutationPerRoute{Mutations: &headerv3.Mutations{ResponseMutations: []*mutationv3.HeaderMutation{
		removeOnMatch(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
			SafeRegex: &matcherv3.RegexMatcher{Regex: noneOf(slices.Concat([]string{":status"}, responseHeaders, further))},
		}}),
		overwriteHeader(HeaderDecision, "allow"),
		overwriteHeader(HeaderReceipt, ReceiptFormat),
	}}}
}

// ReceiptFormat is the receipt that extproc left in the metadata.
const ReceiptFormat = "%DYNAMIC_METADATA(" + MetadataNamespace + ":" + MetadataReceipt + ")%"

// noneOf returns a regular expression that matches every string but words. RE2 has no
// negation, so the expression follows the words' letters. At each place it takes another
// letter and anything after it, or an end where no word ends.
func noneOf(words []string) string {
	next := map[byte][]string{}
	ends := false
	for _, w := range words {
		if w == "" {
			ends = true
			continue
		}
		next[w[0]] = append(next[w[0]], w[1:])
	}
	if len(next) == 0 {
		return ".+"
	}
	letters := slices.Sorted(maps.Keys(next))
	ways := []string{"[^" + strings.ReplaceAll(string(letters), "-", `\-`) + "].*"}
	for _, c := range letters {
		ways = append(ways, regexp.QuoteMeta(string(c))+noneOf(next[c]))
	}
	expression := "(?:" + strings.Join(ways, "|") + ")"
	if !ends {
		expression += "?"
	}
	return expression
}

func prefixed(p string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}, IgnoreCase: true}
}

func removeOnMatch(m *matcherv3.StringMatcher) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: m},
	}}
}

func overwriteHeader(name, value string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

// ExtProcFilter is the configuration of FilterExtProc. It changes each default that lets a
// request pass, or has too short a timeout.
func ExtProcFilter(usage string) *extprocv3.ExternalProcessor {
	p := &extprocv3.ExternalProcessor{
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ClusterExtProc},
		}},
		FailureModeAllow: false,
		ProcessingMode:   AnswerMode(extprocv3.ProcessingMode_STREAMED),
		MessageTimeout:   durationpb.New(messageTimeout),
		// A sidecar that stops or starts is an outage, and not an error of the request.
		StatusOnError: &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		// For responses that are translated: see AnswerMode.
		AllowModeOverride: true,
		AllowedOverrideModes: []*extprocv3.ProcessingMode{
			AnswerMode(extprocv3.ProcessingMode_STREAMED), AnswerMode(extprocv3.ProcessingMode_BUFFERED),
		},
		MutationRules: &mutationv3.HeaderMutationRules{
			DisallowIsError: wrapperspb.Bool(true), AllowEnvoy: wrapperspb.Bool(false), AllowAllRouting: wrapperspb.Bool(false),
		},
		ResponseAttributes: []string{AttributeDetails},
		MetadataOptions: &extprocv3.MetadataOptions{
			ReceivingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{MetadataNamespace}},
		},
	}
	if usage == UsageEnvoy {
		// One message for a response: its trailers. Do not request its headers too:
		// trailers that are synthesized while a reply on headers is awaited never
		// come (measured, 1.40). The routes do what extproc would do.
		p.ProcessingMode.ResponseHeaderMode, p.ProcessingMode.ResponseBodyMode = extprocv3.ProcessingMode_SKIP, extprocv3.ProcessingMode_NONE
		p.ResponseAttributes = append(p.ResponseAttributes, AttributeStatus)
		p.MetadataOptions.ForwardingNamespaces = &extprocv3.MetadataOptions_MetadataNamespaces{Typed: []string{UsageNamespace}}
	}
	return p
}

// AnswerMode is a mode that extproc may choose for a request's response: its body
// STREAMED or BUFFERED. Both send extproc as much as the configured mode, or more.
func AnswerMode(body extprocv3.ProcessingMode_BodySendMode) *extprocv3.ProcessingMode {
	return &extprocv3.ProcessingMode{
		RequestHeaderMode: extprocv3.ProcessingMode_SEND, RequestBodyMode: extprocv3.ProcessingMode_BUFFERED, RequestTrailerMode: extprocv3.ProcessingMode_SKIP,
		ResponseHeaderMode: extprocv3.ProcessingMode_SEND, ResponseBodyMode: body, ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
	}
}

// EndLog sends extproc the access log of requests that ended abnormally, and of no other
// request. Only this log shows whether the client or the provider broke a response off:
// Envoy's filters get no message for either (measured, 1.40).
func EndLog() *grpclogv3.HttpGrpcAccessLogConfig {
	return &grpclogv3.HttpGrpcAccessLogConfig{CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
		LogName: "aid",
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ClusterExtProc},
		}},
		TransportApiVersion: corev3.ApiVersion_V3,
		BufferSizeBytes:     wrapperspb.UInt32(0), // each entry at once: extproc waits for it
	}}
}

// EndLogFilter selects the entries of EndLog by Envoy's response flags. These flags mean
// that the provider or the client reset the connection, or that a limit of Envoy was
// reached.
func EndLogFilter() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"UR", "UC", "UF", "UPE", "UT", "UMSDR", "LR", "SI", "DC", "DR", "DPE"}},
	}}
}
