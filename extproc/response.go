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

// reading is who reads a response's body, and how it arrives. It is decided with the
// request's headers, when Envoy can be asked for the body for the last time. The
// response's headers change it in two cases: to buffered for a response that is
// translated and not streamed, and to byEnvoy for Envoy's own response.
type reading uint8

const (
	byEnvoy    reading = iota // Envoy reads the usage and sends it with the trailers; the body does not come here
	configured                // Envoy's configuration sends the body of every response here
	requested                 // it does not, and this exchange requested the body
	buffered                  // the body comes in one chunk, before the headers go on
)

// readingOf is who reads responses by Envoy's configuration.
func readingOf(c *extprocv3.ProtocolConfiguration) reading {
	if c.GetResponseBodyMode() == filterv3.ProcessingMode_NONE {
		return byEnvoy
	}
	return configured
}

// forEndpoint is who reads the response of an endpoint. Whether it must be translated is
// known with the model, in the request's body, so it is enough that it may have to be.
func (r reading) forEndpoint(p *provider.Registry, ep provider.Endpoint) reading {
	if r == byEnvoy && p.Reads(ep) {
		return requested
	}
	return r
}

// here reports whether the body comes here.
func (r reading) here() bool { return r != byEnvoy }

// response follows one response to its end: it removes what must not reach the caller,
// reads usage, translates, and knows how the response ended. The exchange gives it
// Envoy's messages, and only the exchange's goroutine touches it.
type response struct {
	s       *Server
	verdict *verdict.Verdict // of the exchange
	req     *request
	began   time.Time

	reading reading
	redact  redactor
	form    form                     // by its headers
	reader  *provider.ResponseReader // nil: its body is not read
	came    bool                     // its headers did
	over    bool                     // all of it came, or it was replaced
	outcome string                   // set where it is known before the end

	status     int // what the caller got, as far as known
	firstByte  time.Duration
	bytes      int64
	providerID string // the provider's own id of the request
	retryAfter string // the provider's
	service    string // how the provider processed it, from a header
	usage      provider.Usage
	model      string
	lost       []string // by translation
	end        end      // what Envoy reports of a response that did not end
}

// follow begins with the request that is forwarded: what its provider must not return is
// searched for from here on.
func (r *response) follow(snapshot *provider.Registry) {
	p, f := &r.verdict.Provider, &r.verdict.Forward
	r.s.ends.expect(r.req.ID) // the report may come before the response's headers
	r.redact.patterns = r.s.patternsOf(snapshot, p.ID, append(f.Sent, p.Credential.Reveal()))
}

// headers takes the headers of the provider's response, or of Envoy's in its place. out
// has what every response gets. rejected is what the caller gets instead.
func (r *response) headers(m *extprocv3.HttpHeaders, req *extprocv3.ProcessingRequest, out *mutation) (reply *extprocv3.ProcessingResponse, rejected *provider.Error) {
	r.came, r.status, r.firstByte = true, statusOf(m), r.s.c.Now().Sub(r.began)
	ofProvider := true
	if details := attributeOf(req, envoy.AttributeDetails); details != "" && details != "via_upstream" {
		// Envoy answers in the provider's place: it was not reached, or broke off.
		r.outcome, r.reading, ofProvider = verdict.OutcomeUpstreamReset, byEnvoy, false
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
		if rejected := r.unusableStatus(); rejected != nil {
			return nil, rejected
		}
	}
	if why := unreadable(encoding, contentType); why != "" && ofProvider && !m.GetEndOfStream() {
		// It could hold the credential, and no search for it would find it.
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
	r.over = m.GetEndOfStream()
	if r.reader != nil && r.reader.Translated() != nil {
		return r.translate(out, length)
	}
	return followHeaders(out), nil
}

// unusableStatus rejects a response by its status, or returns nil.
func (r *response) unusableStatus() *provider.Error {
	switch {
	case r.status == http.StatusUnauthorized:
		// The caller's key is valid. The provider rejects the gateway's, and its error
		// may quote it.
		return r.unusable("provider_unauthorized", "The provider refused the gateway's credential. Your key is fine; an administrator must renew the provider's.")
	case r.status >= 300 && r.status < 400 && r.status != http.StatusNotModified:
		// A client that follows it leaves the gateway, with the prompt and with its key:
		// HTTP clients remove only "authorization".
		return r.unusable("provider_redirects", "The provider sends requests elsewhere, where the gateway does not follow. An administrator must correct its base URL.")
	case r.status < http.StatusOK:
		// 101, which was not requested: what follows would be in another protocol. Envoy
		// keeps the other 1xx.
		return r.unusable("provider_protocol", "The provider did not answer in HTTP. Try again, or tell an administrator.")
	}
	return nil
}

// unusable is what the caller gets in the place of a response that must not reach it.
func (r *response) unusable(code, message string) *provider.Error {
	r.outcome = verdict.OutcomeProviderError
	return verdict.Refuse(http.StatusBadGateway, code, message)
}

// translate begins a response that is said in the caller's words. One that is not
// streamed is buffered, since its status is certain at its end only. It must fit into
// Envoy's buffer: length is what its headers say, if they do.
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
		return nil, r.unusable("answer_too_large", fmt.Sprintf("The provider's answer is larger than %d bytes. Ask for less, or for a stream.", r.s.c.MaxBody))
	}
	out.remove = append(out.remove, "content-length", "content-encoding", "content-md5", "digest", "etag", "trailer", "location")
	if t.Streamed() {
		return followHeaders(out), nil
	}
	r.reading = buffered
	return wholeAnswer(followHeaders(out)), nil
}

// id is the id of a response to which the provider gave none.
func (r *response) id() string { return "chatcmpl-" + strings.ReplaceAll(r.req.ID, "-", "") }

// body takes the next chunk of the body as it passes by.
func (r *response) body(b []byte, end bool) (reply *extprocv3.ProcessingResponse, rejected *provider.Error, err error) {
	if r.redact.disguised(b, r.form) {
		// It is compressed and does not say so: 502, or cut off if its headers have gone on.
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

// finish is what the headers of a buffered response say that only its end could tell.
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
// verdict, and carry what Envoy read. Not ok: it had to be translated, and was not.
func (r *response) trailers(req *extprocv3.ProcessingRequest) (ok bool, err error) {
	r.usageOfEnvoy(req)
	if n := numberOf(req, envoy.AttributeStatus); n != 0 && r.status == 0 {
		r.status, r.came = n, true
	}
	if r.reader != nil {
		// Every byte has passed already; this only tells the reader so. What a
		// translation would still say has no place behind trailers, and a response
		// that lacks it must not look whole.
		if out, _ := r.reader.Chunk(nil, true); len(out) > 0 && r.reader.Translated() != nil {
			r.outcome = verdict.OutcomeCut
			return true, status.Error(codes.Aborted, "ext_proc: cut: trailers after a translated answer")
		}
	} else if r.verdict.Forward.Translated() && r.outcome == "" {
		return false, nil
	}
	if r.redact.holds() {
		// What was held back has no place behind trailers.
		r.outcome = verdict.OutcomeCut
		return true, status.Error(codes.Aborted, "ext_proc: cut: trailers after what may be a credential")
	}
	r.over = true
	return true, nil
}

// usageOfEnvoy takes the figures that Envoy's ai_protocol_manager published.
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

// said is what a provider says, as it may stand in the audit log.
func (r *response) said(s string, n int) string {
	if r.redact.in([]byte(s)) {
		return "[redacted]"
	}
	return provider.Clip(s, n)
}

// awaitEnd waits for Envoy's report of a response that did not end.
func (r *response) awaitEnd(ctx context.Context) {
	if r.end = r.s.ends.wait(ctx, r.req.ID, r.s.c.EndTimeout); r.end.upstream && r.end.status != 0 {
		r.status = r.end.status // Envoy answers 502 where the client did not have the headers yet
	}
}

// read takes what the reader read. No more of the response comes.
func (r *response) read() {
	if r.reader == nil {
		return
	}
	r.usage, r.model = r.reader.Usage(), r.said(r.reader.Model(), 256)
	for _, what := range r.reader.Lost() {
		r.lost = append(r.lost, r.said(what, 64))
	}
}

// whole is the outcome of a response that came to its end.
func (r *response) whole() string {
	switch {
	case r.status >= 400 || r.reader != nil && r.reader.Failed():
		return verdict.OutcomeProviderError
	case r.reader != nil && !r.reader.Complete():
		return verdict.OutcomeBrokenOff
	}
	return verdict.OutcomeCompleted
}

// broken is the outcome of a response that did not, or that never began.
func (r *response) broken() string {
	switch {
	case r.end.upstream && r.status >= 400:
		return verdict.OutcomeUpstreamReset // that was Envoy's status, in the provider's place
	case r.reader != nil && r.reader.Failed():
		return verdict.OutcomeProviderError
	case r.reader != nil && r.status < 400 && r.reader.Ended() && !r.redact.holds():
		return verdict.OutcomeCompleted // the client has all of it, and did not wait for the connection's end
	case r.end.upstream:
		return verdict.OutcomeUpstreamReset
	case r.end.downstream:
		return verdict.OutcomeClientClosed
	case r.came:
		return verdict.OutcomeBrokenOff // without Envoy's report it is not known who broke it off
	default:
		return verdict.OutcomeClientClosed // Envoy itself answers where the provider breaks off before its response
	}
}

// ending is what the audit log has of the response.
func (r *response) ending(outcome string) verdict.Ending {
	return verdict.Ending{
		Time: r.s.c.Now(), Began: r.began, Outcome: outcome, Status: r.status,
		Usage: r.usage, ResponseModel: r.model, Service: r.service, ResponseBytes: r.bytes, FirstByte: r.firstByte,
		ProviderRequestID: r.providerID, Lost: r.lost,
	}
}

// statusOf is the status of a response, or 0.
func statusOf(m *extprocv3.HttpHeaders) int {
	for _, h := range m.GetHeaders().GetHeaders() {
		if h.GetKey() == ":status" {
			n, _ := strconv.Atoi(string(h.GetRawValue()))
			return n
		}
	}
	return 0
}

// attributeOf is an attribute that Envoy may be configured to send with a message,
// or "".
func attributeOf(req *extprocv3.ProcessingRequest, name string) string {
	for _, a := range req.GetAttributes() {
		if v, ok := a.GetFields()[name]; ok {
			return v.GetStringValue()
		}
	}
	return ""
}

// numberOf is attributeOf for a number, or 0.
func numberOf(req *extprocv3.ProcessingRequest, name string) int {
	for _, a := range req.GetAttributes() {
		if v, ok := a.GetFields()[name]; ok {
			return int(v.GetNumberValue())
		}
	}
	return 0
}
