package xds

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	corexds "github.com/cncf/xds/go/xds/core/v3"
	matcherv3xds "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	customv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/custom_response/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/custom_response/local_response_policy/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
)

// Placeholders that Envoy replaces in its responses.
const (
	requestIDNow = "%REQ(X-REQUEST-ID)%"
	statusNow    = "%RESPONSE_CODE%"
)

// ownReply is a response that Envoy generates. Envoy's own text is never sent, since it has
// addresses.
type ownReply struct {
	flags   []string // Envoy's response flags; empty: any
	details string   // the beginning of Envoy's response code details; empty: any
	provider.Error
}

// ownReplies returns the responses that Envoy generates. The first match is used.
func ownReplies() []ownReply {
	const invalid, server = "invalid_request_error", "api_error"
	var all []ownReply
	for _, u := range provider.UnusableStatuses {
		all = append(all, ownReply{details: u.Error.Code, Error: u.Error})
	}
	add := func(details string, flags []string, e provider.Error) { all = append(all, ownReply{flags, details, e}) }
	add("", nil, provider.Error{Status: 400, Type: invalid, Code: "bad_request",
		Message: "The request is not valid HTTP, or its path or a header is not in normal form."})
	add("rbac_access_denied", nil, provider.Error{Status: 403, Type: server, Code: "provider_address_refused",
		Message: "The provider's address is not public, and the operator has not allowed it. An administrator must correct its base_url, or set --private-targets."})
	add("", nil, provider.Error{Status: 403, Type: "permission_error", Code: "upgrade_refused", Message: "This kind of request is not available here."})
	add("", nil, provider.Error{Status: 404, Type: invalid, Code: "unknown_endpoint", Message: "This path is not served here."})
	add("", nil, provider.Error{Status: 408, Type: invalid, Code: "request_timeout", Message: "The request did not arrive in time."})
	add("", nil, provider.Error{Status: 413, Type: invalid, Code: "request_too_large", Message: "The request is larger than the gateway takes."})
	add("", nil, provider.Error{Status: 431, Type: invalid, Code: "headers_too_large", Message: "The request's headers are larger than the gateway takes."})
	add("ext_proc_error", nil, provider.Error{Status: 503, Type: server, Code: "decision_unavailable",
		Message: "The gateway's sidecar does not respond, so the request was not evaluated and not forwarded. Try again shortly.", RetryAfter: time.Second})
	add("direct_response", nil, provider.Error{Status: 503, Type: server, Code: "not_decided",
		Message: "The request was not evaluated, so it was not forwarded. Try again shortly.", RetryAfter: time.Second})
	add("", []string{"UF", "UH"}, provider.Error{Status: 503, Type: server, Code: "provider_unreachable",
		Message: "The provider cannot be reached. Try again shortly.", RetryAfter: time.Second})
	add("", []string{"UC", "UR", "UPE"}, provider.Error{Status: 503, Type: server, Code: "provider_disconnected",
		Message: "The provider closed the connection before it responded. Try again shortly.", RetryAfter: time.Second})
	add("", []string{"NC", "NR"}, provider.Error{Status: 503, Type: server, Code: "provider_not_configured",
		Message: "The provider is not configured on this gateway yet. Try again shortly.", RetryAfter: time.Second})
	add("", []string{"UO", "OM"}, provider.Error{Status: 503, Type: server, Code: "gateway_overloaded",
		Message: "The gateway is at its limit. Try again shortly.", RetryAfter: time.Second})
	add("overload", nil, provider.Error{Status: 503, Type: server, Code: "gateway_overloaded",
		Message: "The gateway is at its limit. Try again shortly.", RetryAfter: time.Second})
	add("", []string{"UPE"}, provider.Error{Status: 502, Type: server, Code: "provider_protocol",
		Message: "The provider's response is not valid HTTP. Try again, or tell an administrator."})
	add("", nil, provider.Error{Status: 503, Type: server, Code: "unavailable",
		Message: "The gateway cannot serve this request right now. Try again shortly.", RetryAfter: time.Second})
	add("", nil, provider.Error{Status: 504, Type: server, Code: "timeout", Message: "The provider did not respond in time."})
	add("", nil, provider.Error{Type: server, Code: "gateway_error", Message: "The gateway could not complete this request. Try again shortly."}) // any other status
	return all
}

// statusesMatch matches the responses of a class, on routes where extproc does not receive them.
func statusesMatch(u provider.UnusableStatus) *matcherv3xds.Matcher_MatcherList_Predicate {
	if u.From == u.To {
		return statusMatches(strconv.Itoa(u.From))
	}
	class := classMatches(strconv.Itoa(u.From/100) + "xx")
	if u.Except == 0 {
		return class
	}
	return &matcherv3xds.Matcher_MatcherList_Predicate{MatchType: &matcherv3xds.Matcher_MatcherList_Predicate_AndMatcher{
		AndMatcher: &matcherv3xds.Matcher_MatcherList_Predicate_PredicateList{Predicate: []*matcherv3xds.Matcher_MatcherList_Predicate{
			class,
			{MatchType: &matcherv3xds.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: statusMatches(strconv.Itoa(u.Except))}},
		}},
	}}
}

// replaced lets Envoy replace provider.UnusableStatuses by its own responses. The details
// have the code of the error; localReplies has the body.
func replaced() *customv3.CustomResponse {
	list := &matcherv3xds.Matcher_MatcherList{}
	for _, u := range provider.UnusableStatuses {
		list.Matchers = append(list.Matchers, &matcherv3xds.Matcher_MatcherList_FieldMatcher{
			Predicate: statusesMatch(u),
			OnMatch: &matcherv3xds.Matcher_OnMatch{OnMatch: &matcherv3xds.Matcher_OnMatch_Action{Action: &corexds.TypedExtensionConfig{
				Name: u.Error.Code,
				TypedConfig: pack(&localv3.LocalResponsePolicy{
					StatusCode:                wrapperspb.UInt32(uint32(u.Error.Status)),
					ResponseHeadersToAdd:      []*corev3.HeaderValueOption{overwrite(envoy.HeaderDecision, "allow"), overwrite(envoy.HeaderReceipt, envoy.ReceiptFormat)},
					ResponseCodeDetailsAction: &localv3.LocalResponsePolicy_ResponseCodeDetails{ResponseCodeDetails: u.Error.Code},
				}),
			}}},
		})
	}
	return &customv3.CustomResponse{CustomResponseMatcher: &matcherv3xds.Matcher{MatcherType: &matcherv3xds.Matcher_MatcherList_{MatcherList: list}}}
}

func statusMatches(status string) *matcherv3xds.Matcher_MatcherList_Predicate {
	return inputMatches(&matcherv3.HttpResponseStatusCodeMatchInput{}, status)
}

func classMatches(class string) *matcherv3xds.Matcher_MatcherList_Predicate {
	return inputMatches(&matcherv3.HttpResponseStatusCodeClassMatchInput{}, class)
}

func inputMatches(input proto.Message, value string) *matcherv3xds.Matcher_MatcherList_Predicate {
	return &matcherv3xds.Matcher_MatcherList_Predicate{MatchType: &matcherv3xds.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &matcherv3xds.Matcher_MatcherList_Predicate_SinglePredicate{
			Input: &corexds.TypedExtensionConfig{Name: "status", TypedConfig: pack(input)},
			Matcher: &matcherv3xds.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: &matcherv3xds.StringMatcher{
				MatchPattern: &matcherv3xds.StringMatcher_Exact{Exact: value},
			}},
		},
	}}
}

// formats are the formats of errors, each with the condition on a path that requests it.
// The condition is provider.FormatOf in CEL, and a test compares the two. The last format
// is for everything else.
var formats = []struct {
	format provider.Format
	asks   string // a condition on PATH
}{
	{provider.FormatAnthropic, `PATH == "/v1/messages" || PATH.startsWith("/v1/messages/") || PATH == "/v1/complete"`},
	{provider.FormatGemini, `PATH.startsWith("/v1beta/") || PATH.startsWith("/v1alpha/") || PATH.startsWith("/v1/models/") && !PATH.startsWith("/v1/models/ft:") && PATH.matches(":[a-z][a-zA-Z]*[A-Z][a-zA-Z]*$")`},
	{provider.FormatCohere, `PATH.startsWith("/v2/")`},
	{provider.FormatMistral, `PATH.startsWith("/v1/fim/") || PATH == "/v1/ocr" || PATH.startsWith("/mistral/")`},
	{provider.FormatOpenAI, ""},
}

// asks returns a filter for requests with the caller's format f. After the decision the path
// is the provider's, and may be of another format. Then extproc has set the caller's format
// in the metadata. Without a path, because the request headers could not be parsed, no
// filter matches.
func asks(f provider.Format, condition string) *accesslogv3.AccessLogFilter {
	const ours = `metadata.filter_metadata["` + envoy.MetadataNamespace + `"]`
	condition = strings.ReplaceAll(condition, "PATH", "request.url_path")
	return cel(`("` + envoy.MetadataNamespace + `" in metadata.filter_metadata && "` + envoy.MetadataFormat + `" in ` + ours + `) ? ` +
		ours + `["` + envoy.MetadataFormat + `"] == "` + f.String() + `" : (` + condition + `)`)
}

// localReplies converts Envoy's own responses to errors in the format of the called API.
// Responses of extproc ("aid_…") pass unchanged.
func localReplies() *hcmv3.LocalReplyConfig {
	mappers := []*hcmv3.ResponseMapper{{Filter: extprocs()}}
	for _, f := range formats {
		for _, r := range ownReplies() {
			e := r.Error
			var conditions []*accesslogv3.AccessLogFilter
			if e.Status != 0 {
				conditions = append(conditions, statusIs(uint32(e.Status)))
			}
			if len(r.flags) > 0 {
				conditions = append(conditions, flagged(r.flags))
			}
			if r.details != "" {
				conditions = append(conditions, cel(`response.code_details.startsWith("`+r.details+`")`))
			}
			if f.asks != "" {
				conditions = append(conditions, asks(f.format, f.asks))
			}
			m := &hcmv3.ResponseMapper{
				Filter: both(conditions...),
				BodyFormatOverride: &corev3.SubstitutionFormatString{
					ContentType: "application/json",
					Format:      &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: replyBody(f.format, e)},
				},
			}
			if e.RetryAfter > 0 {
				m.HeadersToAdd = []*corev3.HeaderValueOption{overwrite("retry-after", uitoa(uint64(e.RetryAfter/time.Second)))}
			}
			if r.Final() {
				m.HeadersToAdd = append(m.HeadersToAdd, overwrite("x-should-retry", "false"))
			}
			mappers = append(mappers, m)
		}
	}
	return &hcmv3.LocalReplyConfig{Mappers: mappers}
}

// extprocs returns a filter for responses of extproc.
func extprocs() *accesslogv3.AccessLogFilter {
	return cel(`response.code_details.startsWith("` + envoy.DetailsPrefix + `")`)
}

// replyBody returns the result of provider's Encode for e, with placeholders for values that
// only Envoy has. A request with rejected headers has no id. Then the id is null, and Encode
// would omit it. (Envoy's omit_empty_values would also omit OpenAI's param.) Encode always
// writes an object; Lint would report an empty body.
func replyBody(f provider.Format, e provider.Error) *structpb.Struct {
	anyStatus := e.Status == 0
	if anyStatus {
		e.Status = http.StatusInternalServerError
	}
	s := &structpb.Struct{}
	_ = protojson.Unmarshal(f.Encode(&e, requestIDNow, ""), s)
	if detail := s.GetFields()["error"].GetStructValue(); anyStatus && detail.GetFields()["code"].GetNumberValue() != 0 {
		detail.Fields["code"] = structpb.NewStringValue(statusNow) // Envoy converts a string with only this placeholder to a number
	}
	return s
}

func cel(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(&celv3.ExpressionFilter{Expression: expression})},
	}}}
}

func flagged(flags []string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: flags},
	}}
}

func statusIs(status uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{
		Comparison: &accesslogv3.ComparisonFilter{
			Op: accesslogv3.ComparisonFilter_EQ, Value: &corev3.RuntimeUInt32{DefaultValue: status, RuntimeKey: "aid.unused"},
		},
	}}}
}

func both(fs ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	switch len(fs) {
	case 0:
		return cel("true")
	case 1:
		return fs[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: fs}}}
}
