package xds

import (
	"net/http"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
)

// What Envoy puts into its answers while it gives them.
const (
	requestIDNow = "%REQ(X-REQUEST-ID)%"
	statusNow    = "%RESPONSE_CODE%"
)

// ownReplies are the answers that Envoy gives by itself. Nothing of Envoy's own
// words is among them: those name addresses.
var ownReplies = []provider.Error{
	{Status: 400, Type: "invalid_request_error", Code: "bad_request", Message: "The request is not valid HTTP, or its path or a header is not in normal form."},
	{Status: 403, Type: "permission_error", Code: "upgrade_refused", Message: "This kind of request is not available here."},
	{Status: 408, Type: "invalid_request_error", Code: "request_timeout", Message: "The request did not arrive in time."},
	{Status: 413, Type: "invalid_request_error", Code: "request_too_large", Message: "The request is larger than the gateway takes."},
	{Status: 431, Type: "invalid_request_error", Code: "headers_too_large", Message: "The request's headers are larger than the gateway takes."},
	{Status: 503, Type: "api_error", Code: "unavailable", Message: "The gateway cannot judge this request right now, or does not reach its provider. Try again shortly.", RetryAfter: time.Second},
	{Status: 504, Type: "api_error", Code: "timeout", Message: "No answer came in time."},
	{Type: "api_error", Code: "gateway_error", Message: "The gateway could not complete this request. Try again shortly."}, // any other status
}

// formats are the formats of errors, each with the condition on a path that asks
// for it: what provider.FormatOf says, in CEL, and a test holds the two equal. The
// last one is for everything else.
var formats = []struct {
	format provider.Format
	asks   string // of PATH
}{
	{provider.FormatAnthropic, `PATH == "/v1/messages" || PATH.startsWith("/v1/messages/") || PATH == "/v1/complete"`},
	{provider.FormatGemini, `PATH.startsWith("/v1beta/") || PATH.startsWith("/v1alpha/") || PATH.startsWith("/v1/models/") && !PATH.startsWith("/v1/models/ft:") && PATH.matches(":[a-z][a-zA-Z]*[A-Z][a-zA-Z]*$")`},
	{provider.FormatCohere, `PATH.startsWith("/v2/")`},
	{provider.FormatMistral, `PATH.startsWith("/v1/fim/") || PATH == "/v1/ocr"`},
	{provider.FormatOpenAI, ""},
}

// asks is true where the caller's format is f. After the verdict the path is the
// provider's; if that asks for another format, extproc has said which one the
// caller's is. Without a path, since the request's head could not be read, it is
// true for none.
func asks(f provider.Format, condition string) *accesslogv3.AccessLogFilter {
	const ours = `metadata.filter_metadata["` + envoy.MetadataNamespace + `"]`
	condition = strings.ReplaceAll(condition, "PATH", "request.url_path")
	return cel(`("` + envoy.MetadataNamespace + `" in metadata.filter_metadata && "` + envoy.MetadataFormat + `" in ` + ours + `) ? ` +
		ours + `["` + envoy.MetadataFormat + `"] == "` + f.String() + `" : (` + condition + `)`)
}

// localReplies gives Envoy's own answers the form of the errors of the API that
// was called. What extproc answers ("aid_…") passes as it is.
func localReplies() *hcmv3.LocalReplyConfig {
	mappers := []*hcmv3.ResponseMapper{{Filter: extprocs()}}
	for _, f := range formats {
		for _, e := range ownReplies {
			var conditions []*accesslogv3.AccessLogFilter
			if e.Status != 0 {
				conditions = append(conditions, statusIs(uint32(e.Status)))
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
			mappers = append(mappers, m)
		}
	}
	return &hcmv3.LocalReplyConfig{Mappers: mappers}
}

// extprocs is true for what extproc answers.
func extprocs() *accesslogv3.AccessLogFilter {
	return cel(`response.code_details.startsWith("` + envoy.DetailsPrefix + `")`)
}

// replyBody is what provider's Encode makes of e, with what is only known later. A
// request whose head was refused has no id: then it is null, where Encode would
// leave it out (Envoy's omit_empty_values would leave out OpenAI's param too).
// Encode writes an object, always; if it did not, Lint would find the body empty.
func replyBody(f provider.Format, e provider.Error) *structpb.Struct {
	anyStatus := e.Status == 0
	if anyStatus {
		e.Status = http.StatusInternalServerError
	}
	s := &structpb.Struct{}
	_ = protojson.Unmarshal(f.Encode(&e, requestIDNow, ""), s)
	if detail := s.GetFields()["error"].GetStructValue(); anyStatus && detail.GetFields()["code"].GetNumberValue() != 0 {
		detail.Fields["code"] = structpb.NewStringValue(statusNow) // alone in a string it becomes a number
	}
	return s
}

func cel(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(&celv3.ExpressionFilter{Expression: expression})},
	}}}
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
