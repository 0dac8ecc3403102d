package extproc

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ai-identity/ai-identity/envoy"
)

// This file builds every message for Envoy, and nothing else does.
//
// Exactly one reply for each message. The default action on a header appends, so
// that a credential would be sent beside the client's: each header here is
// overwritten. Changes to headers in a reply to a body count only in BUFFERED
// mode, where a changed body needs its exact content-length.

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

// header sets name to value whatever it was.
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

// sets says whether m sets name.
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

// waitForBody lets the headers wait for the verdict on the body. It enforces
// nothing: without the verdict's route header there is no route.
func waitForBody() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{},
	}}
}

// forwardHeaders is the verdict "allow" on a request without a body.
func forwardHeaders(m *mutation) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{
			HeaderMutation:  m.message(),
			ClearRouteCache: true, // the route that was found before the verdict is the 503
		}},
	}}
}

// forwardBody is the verdict "allow" on a request with a body. A nil body is
// forwarded as it came; else m must hold its content-length.
func forwardBody(m *mutation, body []byte) *extprocv3.ProcessingResponse {
	r := &extprocv3.CommonResponse{HeaderMutation: m.message(), ClearRouteCache: true}
	if body != nil {
		r.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: body}}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: r},
	}}
}

// telling leaves with Envoy what it needs by itself (see package xds): the receipt,
// for its route to show where the answer's headers do not come by here, and the
// caller's format, for its own answers where the provider's path does not tell it.
// Either may be empty.
func telling(r *extprocv3.ProcessingResponse, receipt, format string) *extprocv3.ProcessingResponse {
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

// dropRequestTrailers removes every trailer: nobody judged them.
func dropRequestTrailers(m *extprocv3.HttpTrailers) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
		RequestTrailers: &extprocv3.TrailersResponse{HeaderMutation: &extprocv3.HeaderMutation{RemoveHeaders: names(m.GetTrailers())}},
	}}
}

// respond answers the client from here. Nothing is forwarded, or nothing more.
func respond(status int, m *mutation, body []byte, details string) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			Headers: m.message(),
			Body:    body,
			Details: details, // into Envoy's access log: a code, never a value
		},
	}}
}

func followHeaders(m *mutation) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
		ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m.message()}},
	}}
}

// readingAnswer has Envoy send us the answer, where its configuration does not.
func readingAnswer(r *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	r.ModeOverride = envoy.AnswerMode(filterv3.ProcessingMode_STREAMED)
	return r
}

// wholeAnswer has Envoy send us the answer's body in one piece, and hold its headers
// back until then.
func wholeAnswer(r *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	r.ModeOverride = envoy.AnswerMode(filterv3.ProcessingMode_BUFFERED)
	return r
}

// passBody lets a piece of the answer through as it is, without sending it back.
func passBody() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{},
	}}
}

// replaceBody puts b in the place of a piece of the answer.
func replaceBody(b []byte) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{
			BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: b}},
		}},
	}}
}

// replaceWhole puts b in the place of the answer's body, which came in one piece; m
// holds its content-length.
func replaceWhole(m *mutation, b []byte) *extprocv3.ProcessingResponse {
	r := replaceBody(b)
	r.GetResponseBody().GetResponse().HeaderMutation = m.message()
	return r
}

// passTrailers lets the answer's trailers through, less those to remove.
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
