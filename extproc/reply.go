package extproc

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ai-identity/ai-identity/envoy"
)

// Only this file builds messages for Envoy.
//
// Each message gets exactly one reply. The default action on a header appends, which would
// send a credential beside the client's. So each header here is overwritten. Changes to
// headers in a reply to a body count only in BUFFERED mode, where a changed body needs its
// exact content-length.

// mutation collects changes to headers.
type mutation struct {
	set    []*corev3.HeaderValueOption
	remove []string
	slab   []headerSlot // what set points to, allocated at once
}

type headerSlot struct {
	option corev3.HeaderValueOption
	header corev3.HeaderValue
}

func newMutation(n int) *mutation {
	return &mutation{set: make([]*corev3.HeaderValueOption, 0, n), slab: make([]headerSlot, n)}
}

// header sets name to value and replaces any other value.
func (m *mutation) header(name, value string) {
	if len(m.slab) == 0 {
		m.slab = make([]headerSlot, 4)
	}
	s := &m.slab[0]
	m.slab = m.slab[1:]
	s.header.Key, s.header.RawValue = name, []byte(value)
	s.option.Header = &s.header
	s.option.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	m.set = append(m.set, &s.option)
}

// sets reports whether m sets name.
func (m *mutation) sets(name string) bool {
	for _, o := range m.set {
		if o.GetHeader().GetKey() == name {
			return true
		}
	}
	return false
}

func (m *mutation) message() *extprocv3.HeaderMutation {
	if m == nil {
		return nil
	}
	return &extprocv3.HeaderMutation{SetHeaders: m.set, RemoveHeaders: m.remove}
}

// waitForBody keeps the headers in Envoy until the decision on the body. It enforces
// nothing: without the route header of the decision there is no route.
func waitForBody() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{},
	}}
}

// forwardHeaders is the decision "allow" for a request without a body.
func forwardHeaders(m *mutation) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{
			HeaderMutation:  m.message(),
			ClearRouteCache: true, // the route that was found before the decision is the 503
		}},
	}}
}

// forwardBody is the decision "allow" for a request with a body. With a nil body, the
// original body is forwarded. Otherwise m must hold the body's content-length.
func forwardBody(m *mutation, body []byte) *extprocv3.ProcessingResponse {
	r := &extprocv3.CommonResponse{HeaderMutation: m.message(), ClearRouteCache: true}
	if body != nil {
		r.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: body}}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: r},
	}}
}

// withMetadata stores in Envoy's metadata what Envoy needs for responses that do not come here
// (see package xds). Its route adds the receipt to such responses. Its own error responses
// need the caller's format, if the provider's path does not show it. Either may be empty.
func withMetadata(r *extprocv3.ProcessingResponse, receipt, format string) *extprocv3.ProcessingResponse {
	fields := map[string]*structpb.Value{}
	for name, value := range map[string]string{envoy.MetadataReceipt: receipt, envoy.MetadataFormat: format} {
		if value != "" {
			fields[name] = structpb.NewStringValue(value)
		}
	}
	r.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
		envoy.MetadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: fields}),
	}}
	return r
}

// dropRequestTrailers removes every trailer, since policy did not evaluate them.
func dropRequestTrailers(m *extprocv3.HttpTrailers) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
		RequestTrailers: &extprocv3.TrailersResponse{HeaderMutation: &extprocv3.HeaderMutation{RemoveHeaders: names(m.GetTrailers())}},
	}}
}

// respond sends the client a response from here. Nothing more is forwarded.
func respond(status int, m *mutation, body []byte, details string) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			Headers: m.message(),
			Body:    body,
			Details: details, // for Envoy's access log: a code, never a value
		},
	}}
}

func followHeaders(m *mutation) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
		ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m.message()}},
	}}
}

// streamResponse has Envoy send the response here, where its configuration does not.
func streamResponse(r *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	r.ModeOverride = envoy.AnswerMode(filterv3.ProcessingMode_STREAMED)
	return r
}

// bufferResponse has Envoy buffer the response's body, send it in one message, and hold the
// headers back until then.
func bufferResponse(r *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	r.ModeOverride = envoy.AnswerMode(filterv3.ProcessingMode_BUFFERED)
	return r
}

// passBody passes a chunk of the response unchanged, without sending it back.
func passBody() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{},
	}}
}

// replaceBody replaces a chunk of the response by b.
func replaceBody(b []byte) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{
			BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: b}},
		}},
	}}
}

// replaceWhole replaces the buffered body of the response by b. m holds its content-length.
func replaceWhole(m *mutation, b []byte) *extprocv3.ProcessingResponse {
	r := replaceBody(b)
	r.GetResponseBody().GetResponse().HeaderMutation = m.message()
	return r
}

// passTrailers passes the response's trailers without those to remove.
func passTrailers(remove []string) *extprocv3.ProcessingResponse {
	r := &extprocv3.TrailersResponse{}
	if len(remove) > 0 {
		r.HeaderMutation = &extprocv3.HeaderMutation{RemoveHeaders: remove}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: r}}
}

func names(h *corev3.HeaderMap) []string {
	var out []string
	for _, t := range h.GetHeaders() {
		out = append(out, t.GetKey())
	}
	return out
}
