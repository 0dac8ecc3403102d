package extproc

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// reading is the place where a response's body is read, and how it arrives. It is decided
// with the request's headers: that is the last time when Envoy can be asked for the body.
// The response's headers change it in two cases:
//
//   - to buffered, for a response that is translated and not streamed
//   - to byEnvoy, for Envoy's own response
type reading uint8

const (
	byEnvoy    reading = iota // Envoy reads the usage and sends it with the trailers; the body does not come here
	configured                // Envoy's configuration sends the body of every response here
	requested                 // Envoy's configuration does not, and this exchange requested the body
	buffered                  // the body comes in one chunk, before the headers continue
)

// readingOf returns where responses are read by Envoy's configuration.
func readingOf(c *extprocv3.ProtocolConfiguration) reading {
	if c.GetResponseBodyMode() == filterv3.ProcessingMode_NONE {
		return byEnvoy
	}
	return configured
}

// forEndpoint returns where the response of an endpoint is read. Whether it must be
// translated depends on the model, which is in the request's body. So the body is requested
// if translation is possible.
func (r reading) forEndpoint(p *provider.Registry, ep provider.Endpoint) reading {
	if r == byEnvoy && p.Reads(ep) {
		return requested
	}
	return r
}

// here reports whether the body comes here.
func (r reading) here() bool { return r != byEnvoy }

// response processes one response to its end. It removes what must not reach the caller,
// reads usage, translates, and determines the outcome. It belongs to the exchange's
// goroutine, which passes it Envoy's messages.
type response struct {
	s       *Server
	verdict *verdict.Verdict // of the exchange
	req     *request
	began   time.Time

	reading reading
	redact  redactor
	form    form                     // from its headers
	reader  *provider.ResponseReader // nil: its body is not read
	came    bool                     // its headers came
	notSent bool                     // the provider received nothing
	over    bool                     // it is complete, or it was replaced
	outcome string                   // set where it is known before the end

	status     int   // what the client got, as far as known
	seen       int64 // output tokens that passed, at an estimate
	firstByte  time.Duration
	bytes      int64
	providerID string // the provider's own id of the request
	retryAfter string // from the provider
	service    string // the provider's service tier, from a header
	usage      provider.Usage
	model      string
	lost       []string // what translation could not keep
	end        end      // Envoy's report on a response that did not end
	// providerStatus is the status of the provider's own response, 0 without one.
	providerStatus int
}

// follow is called when the request is forwarded. It sets what the response is searched
// for.
func (r *response) follow(snapshot *provider.Registry) {
	p, f := &r.verdict.Provider, &r.verdict.Forward
	r.s.ends.expect(r.req.ID) // the report may come before the response's headers
	r.redact.patterns = r.s.patternsOf(snapshot, p.ID, append(f.Sent, p.Credential.Reveal()))
}

// headers processes the headers of the provider's response, or of Envoy's own. out has the
// headers that every response gets. rejected replaces the response.
func (r *response) headers(m *extprocv3.HttpHeaders, req *extprocv3.ProcessingRequest, out *mutation) (reply *extprocv3.ProcessingResponse, rejected *provider.Error) {
	r.came, r.status, r.firstByte = true, statusOf(m), r.s.c.Now().Sub(r.began)
	ofProvider := true
	if details := attributeOf(req, envoy.AttributeDetails); details != "" && details != "via_upstream" {
		// Envoy responds instead of the provider, which was not reached or broke off.
		r.outcome, r.reading, ofProvider = verdict.OutcomeUpstreamReset, byEnvoy, false
		r.notSent = neverSent(details)
	}

	further := r.verdict.Provider.PassesToCaller()
	contentType, encoding, length := "", "", int64(0)
	for _, h := range m.GetHeaders().GetHeaders() {
		name := lower(h.GetKey())
		switch name {
		case ":status":
			continue
		case "content-type":
			contentType = string(h.GetRawValue())
		case "content-encoding":
			encoding += "," + string(h.GetRawValue())
		case "content-length":
			length, _ = strconv.ParseInt(string(h.GetRawValue()), 10, 64)
		case "x-request-id", "request-id", "apim-request-id", "x-amzn-requestid":
			if r.providerID == "" {
				r.providerID = r.said(string(h.GetRawValue()), 128)
			}
		case "retry-after":
			r.retryAfter = string(h.GetRawValue())
		case "x-gemini-service-tier":
			r.service = lower(string(h.GetRawValue()))
		}
		if !envoy.PassesToCaller(name, further) || r.redact.in(h.GetRawValue()) {
			out.remove = append(out.remove, name)
		}
	}
	if ofProvider {
		r.providerStatus = r.status
		if rejected := provider.Unusable(r.status); rejected != nil {
			r.outcome = verdict.OutcomeProviderError
			return nil, rejected
		}
	}
	if why := unreadable(encoding, contentType); why != "" && ofProvider && !m.GetEndOfStream() {
		// It could contain the credential in a form that the search does not find.
		return nil, r.unusable("provider_encoding", "The provider sent a response in "+why+". An administrator must correct the provider.")
	}
	r.form = formOf(contentType)
	switch {
	case !ofProvider:
	case r.verdict.Forward.Translated():
		r.reader = r.verdict.Forward.NewResponseReader(r.status, contentType, r.s.c.Now, r.id)
	case r.reading.here() && r.status >= 400:
		r.reader = r.verdict.Provider.NewError(r.verdict.Call.Endpoint.Format, r.status, r.req.ID)
	case r.reading.here() && !m.GetEndOfStream():
		r.reader = provider.NewResponseReader(r.verdict.Call, r.verdict.Provider, r.status, contentType)
	}
	if r.reader != nil && r.verdict.Meters() {
		r.reader.CountOutput()
	}
	r.over = m.GetEndOfStream()
	if r.reader != nil && r.reader.Translated() != nil {
		return r.translate(out, length)
	}
	return followHeaders(out), nil
}

// neverSent says whether Envoy's details of a response of its own say that nothing was sent
// to the provider.
func neverSent(details string) bool {
	const reset = "upstream_reset_before_response_started{"
	for _, why := range []string{"no_healthy_upstream", "cluster_not_found", "route_not_found",
		reset + "local_connection_failure", reset + "remote_connection_failure", reset + "connection_timeout"} {
		if strings.HasPrefix(details, why) {
			return true
		}
	}
	return false
}

// unusable returns the error that replaces a response that must not reach the caller.
func (r *response) unusable(code, message string) *provider.Error {
	r.outcome = verdict.OutcomeProviderError
	return verdict.Refuse(http.StatusBadGateway, code, message)
}

// translate begins a translated response. A response that is not streamed is buffered,
// since its status is certain only at its end. It must fit into Envoy's buffer. length is
// its content-length, or 0.
func (r *response) translate(out *mutation, length int64) (*extprocv3.ProcessingResponse, *provider.Error) {
	t := r.reader.Translated()
	out.header("content-type", t.ContentType())
	switch {
	case r.over:
		body, _ := r.reader.Chunk(nil, true)
		out.remove = nil
		if r.retryAfter != "" && !r.redact.in([]byte(r.retryAfter)) {
			out.header("retry-after", r.retryAfter)
		}
		r.status = t.Status()
		return respond(r.status, out, body, envoy.DetailsPrefix+"translated"), nil
	case !t.Streamed() && length > r.s.c.MaxBody:
		return nil, r.unusable("answer_too_large", fmt.Sprintf("The provider's response is larger than %d bytes. Request a shorter response or a stream.", r.s.c.MaxBody))
	}
	out.remove = append(out.remove, "content-length", "content-encoding", "content-md5", "digest", "etag", "trailer", "location")
	if t.Streamed() {
		return followHeaders(out), nil
	}
	r.reading = buffered
	return bufferResponse(followHeaders(out)), nil
}

// id is the id of a response that has none from the provider.
func (r *response) id() string { return "chatcmpl-" + strings.ReplaceAll(r.req.ID, "-", "") }

// body processes the next chunk of the body.
func (r *response) body(b []byte, end bool) (reply *extprocv3.ProcessingResponse, rejected *provider.Error, err error) {
	if r.redact.disguised(b, r.form) {
		// The body is compressed and its headers do not declare that. The reply is 502, or
		// a cut if the headers have continued.
		r.outcome = verdict.OutcomeProviderError
		if r.reading == buffered {
			return nil, r.unusable("provider_encoding", "The provider sent a compressed response without saying so. An administrator must correct the provider."), nil
		}
		return nil, nil, status.Error(codes.Aborted, "ext_proc: cut: provider_encoding")
	}
	changed := false
	r.bytes += int64(len(b))
	r.over = end || r.reading == buffered
	if r.reader != nil {
		if out, replaced := r.reader.Chunk(b, r.over); replaced {
			b, changed = out, true
		}
	}
	n, held := len(b), r.redact.holds()
	b, blanked := r.redact.pass(b, r.over)
	if blanked {
		r.s.metrics.leaks.Inc()
	}
	switch {
	case r.reading == buffered:
		return replaceWhole(r.finish(len(b)), b), nil, nil
	case changed || blanked || held || len(b) != n:
		return replaceBody(b), nil, nil
	}
	return passBody(), nil, nil
}

// finish returns the headers of a buffered response that depend on its end.
func (r *response) finish(length int) *mutation {
	t := r.reader.Translated()
	m := newMutation(3)
	if status := t.Status(); status != r.status {
		r.status = status
		m.header(":status", strconv.Itoa(status))
	}
	if d := t.RetryAfter(); d > 0 && r.retryAfter == "" {
		m.header("retry-after", strconv.FormatInt(verdict.Seconds(d), 10))
	}
	m.header("content-length", strconv.Itoa(length))
	return m
}

// strip returns the names of the trailers that must not reach the caller.
func (r *response) strip(m *extprocv3.HttpTrailers) (remove []string) {
	further := r.verdict.Provider.PassesToCaller()
	for _, h := range m.GetTrailers().GetHeaders() {
		if name := lower(h.GetKey()); !envoy.PassesToCaller(name, further) || r.redact.in(h.GetRawValue()) {
			remove = append(remove, name)
		}
	}
	return remove
}

// trailers ends the response. With "usage: envoy" they are the only message after the
// decision, and have the usage that Envoy read. ok is false if the response had to be
// translated and was not.
func (r *response) trailers(req *extprocv3.ProcessingRequest) (ok bool, err error) {
	r.usageOfEnvoy(req)
	if n := numberOf(req, envoy.AttributeStatus); n != 0 && r.status == 0 {
		r.status, r.came = n, true
	}
	if r.reader != nil {
		// Every byte has passed already. This only ends the reader. Output of a translation
		// cannot follow trailers, and a response that lacks it must not look complete.
		if out, _ := r.reader.Chunk(nil, true); len(out) > 0 && r.reader.Translated() != nil {
			r.outcome = verdict.OutcomeCut
			return true, status.Error(codes.Aborted, "ext_proc: cut: trailers after a translated response")
		}
	} else if r.verdict.Forward.Translated() && r.outcome == "" {
		return false, nil
	}
	if r.redact.holds() {
		// The held bytes cannot follow trailers.
		r.outcome = verdict.OutcomeCut
		return true, status.Error(codes.Aborted, "ext_proc: cut: trailers after what may be a credential")
	}
	r.over = true
	return true, nil
}

// usageOfEnvoy reads the figures that Envoy's ai_protocol_manager published.
func (r *response) usageOfEnvoy(req *extprocv3.ProcessingRequest) {
	typed := req.GetMetadataContext().GetTypedFilterMetadata()[envoy.UsageNamespace]
	if typed == nil {
		return
	}
	var u aiv3.TokenUsage
	if err := typed.UnmarshalTo(&u); err != nil || u.GetExtractionStatus() != aiv3.TokenUsage_COMPLETE {
		r.s.metrics.protocol.WithLabelValues("token_usage").Inc()
		return
	}
	r.model = r.said(u.GetModel(), 256)
	r.usage = provider.Usage{
		InputTokens:      int64(u.GetInputTokens().GetValue()),
		OutputTokens:     int64(u.GetOutputTokens().GetValue()),
		CachedTokens:     int64(u.GetInputTokenDetails().GetCachedTokens().GetValue()),
		CacheWriteTokens: int64(u.GetInputTokenDetails().GetCacheCreationTokens().GetValue()),
		ReasoningTokens:  int64(u.GetOutputTokenDetails().GetReasoningTokens().GetValue()),
		Source:           "provider",
		Coarse:           true,
	}
}

// said returns a text of the provider in the form that the audit log may have.
func (r *response) said(s string, n int) string {
	if r.redact.in([]byte(s)) {
		return "[redacted]"
	}
	return provider.Clip(s, n)
}

// awaitEnd waits for Envoy's report on a response that did not end.
func (r *response) awaitEnd(ctx context.Context) {
	if r.end = r.s.ends.wait(ctx, r.req.ID, r.s.c.EndTimeout); r.end.upstream && r.end.status != 0 {
		r.status = r.end.status // Envoy sent 502 if the client did not have the headers yet
	}
}

// read takes the reader's results. No more of the response comes.
func (r *response) read() {
	if r.reader == nil {
		return
	}
	r.usage, r.model, r.seen = r.reader.Usage(), r.said(r.reader.Model(), 256), r.reader.OutputSeen()
	for _, what := range r.reader.Lost() {
		r.lost = append(r.lost, r.said(what, 64))
	}
}

// whole is the outcome of a complete response.
func (r *response) whole() string {
	switch {
	case r.status >= 400 || r.reader != nil && r.reader.Failed():
		return verdict.OutcomeProviderError
	case r.reader != nil && !r.reader.Complete():
		return verdict.OutcomeBrokenOff
	}
	return verdict.OutcomeCompleted
}

// broken is the outcome of a response that did not end or did not begin.
func (r *response) broken() string {
	switch {
	case r.end.upstream && r.status >= 400:
		return verdict.OutcomeUpstreamReset // the status is Envoy's own
	case r.reader != nil && r.reader.Failed():
		return verdict.OutcomeProviderError
	case r.reader != nil && r.status < 400 && r.reader.Ended() && !r.redact.holds() && (r.reader.Streamed() || !r.end.upstream):
		return verdict.OutcomeCompleted // the client has all of it, and closed before the connection's end
	case r.end.upstream:
		return verdict.OutcomeUpstreamReset
	case r.end.downstream:
		return verdict.OutcomeClientClosed
	case r.came:
		return verdict.OutcomeBrokenOff // without Envoy's report it is not known which side broke it off
	default:
		return verdict.OutcomeClientClosed // if the provider breaks off before its response, Envoy itself responds
	}
}

// ending returns what the audit log has of the response.
func (r *response) ending(outcome string) verdict.Ending {
	return verdict.Ending{
		Time: r.s.c.Now(), Began: r.began, Outcome: outcome, Status: r.status,
		Usage: r.usage, ResponseModel: r.model, Service: r.service, ResponseBytes: r.bytes, FirstByte: r.firstByte,
		ProviderRequestID: r.providerID, Lost: r.lost, ProviderStatus: r.providerStatus, OutputSeen: r.seen, NotSent: r.notSent,
	}
}

// statusOf returns the status of a response, or 0.
func statusOf(m *extprocv3.HttpHeaders) int {
	for _, h := range m.GetHeaders().GetHeaders() {
		if h.GetKey() == ":status" {
			n, _ := strconv.Atoi(string(h.GetRawValue()))
			return n
		}
	}
	return 0
}

// attributeOf returns an attribute that Envoy may be configured to send with a message, or
// "".
func attributeOf(req *extprocv3.ProcessingRequest, name string) string {
	for _, a := range req.GetAttributes() {
		if v, ok := a.GetFields()[name]; ok {
			return v.GetStringValue()
		}
	}
	return ""
}

// numberOf is attributeOf for a number. It returns 0 without one.
func numberOf(req *extprocv3.ProcessingRequest, name string) int {
	for _, a := range req.GetAttributes() {
		if v, ok := a.GetFields()[name]; ok {
			return int(v.GetNumberValue())
		}
	}
	return 0
}
