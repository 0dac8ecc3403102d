package extproc

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// state is the progress of an exchange. Messages may only come in this order.
type state uint8

const (
	fresh     state = iota // no message came yet
	waiting                // the headers came, and the body must follow; there is no decision yet
	forwarded              // the decision is "allow", it is recorded, and Envoy has it
	answering              // the provider's response has begun
	ended                  // rejected, answered by us, or answered to the end
	bypassed               // Envoy answered before the decision; the request is not forwarded
)

func (s state) String() string {
	return [...]string{"fresh", "waiting", "forwarded", "answering", "ended", "bypassed"}[s]
}

// exchange is one request and its response. It belongs to the goroutine in run, except for
// handle.
type exchange struct {
	s      *Server
	handle handle
	state  state

	// identify
	began       time.Time
	req         request
	place       *place
	answeredCut chan struct{} // closed when Process has answered instead of run
	wholeBody   bool          // Envoy declared that it buffers request bodies
	span        span
	otel        trace.Span              // nil: no tracer
	known       bool                    // caller and org are set: rejections are recorded
	presented   identity.Presented      // of the credential that counts
	beside      identity.Presented      // of the workload beside a key; "": no such workload
	besideKind  identity.CredentialKind // of beside, if the agent has it
	token       identity.Token          // of the workload; zero if no token was presented
	caller      identity.Caller
	org         verdict.Org

	// parse, decide
	verdict    verdict.Verdict
	evaluating string // the phase that began last, at phaseBegan
	phaseBegan time.Time

	// record
	effect    policy.Effect // the decision on disk; Deny until it is there, and after a cut
	receipt   audit.Receipt
	inactive  bool // the caller is known, and its key or agent may not be used
	counted   bool // it has no entry: an equal rejection has one, and this one is counted
	attempted bool // an entry was passed to the recorder
	recorded  bool // the entry is durable
	inDoubt   bool // the entry may be durable: the wait for the recorder timed out

	// follow, inspect
	response response

	// settle
	outcome string // set where it is known; otherwise derived from how the stream ended
	settled bool
	logged  bool // the error was logged when it happened
}

func (s *Server) newExchange() *exchange {
	x := &exchange{s: s, handle: handle{cutCh: make(chan struct{})}, answeredCut: make(chan struct{}), began: s.c.Now()}
	x.response = response{s: s, verdict: &x.verdict, req: &x.req, began: x.began}
	return x
}

// answer returns the one reply to each message.
func (x *exchange) answer(ctx context.Context, req *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	if req.GetObservabilityMode() {
		return nil, x.outOfOrder("observability_mode")
	}
	switch m := req.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return x.requestHeaders(ctx, m.RequestHeaders, req)
	case *extprocv3.ProcessingRequest_RequestBody:
		return x.requestBody(ctx, m.RequestBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return x.requestTrailers(m.RequestTrailers)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return x.responseHeaders(m.ResponseHeaders, req)
	case *extprocv3.ProcessingRequest_ResponseBody:
		return x.responseBody(m.ResponseBody)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return x.responseTrailers(m.ResponseTrailers, req)
	default:
		return nil, x.outOfOrder("unknown")
	}
}

// outOfOrder is the reply to a message that our configuration of Envoy never causes. It is an
// error, so that the request does not continue.
func (x *exchange) outOfOrder(message string) error {
	x.s.metrics.protocol.WithLabelValues(message).Inc()
	return status.Errorf(codes.FailedPrecondition, "ext_proc: message %s is out of order (the exchange is %s)", message, x.state)
}

// ---- request headers ----

func (x *exchange) requestHeaders(ctx context.Context, m *extprocv3.HttpHeaders, req *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	if x.state != fresh {
		return nil, x.outOfOrder("request_headers")
	}
	if err := x.fault("headers"); err != nil {
		return nil, err
	}
	if err := x.modes(req.GetProtocolConfig()); err != nil {
		return nil, err
	}
	x.req = readRequest(m, x.s.findToken())
	x.req.MaxBody = x.s.c.MaxBody
	x.req.verifyHost(x.s.c.Domains)
	if x.req.canary != "" && x.s.sawCanary(x.req.canary) {
		return x.answerCanary(), nil // no span: a canary belongs to no caller
	}
	if err := x.startSpan(ctx); err != nil {
		return nil, err
	}

	if err := x.fault("identify"); err != nil {
		return nil, err
	}
	refused := x.identify(ctx)
	x.s.metrics.phase("identify", x.s.c.Now().Sub(x.began))
	if refused != nil && !x.known {
		x.countUnknown(refused)
		// No key makes this served, so it is the first thing to correct.
		if unserved := x.req.unserved(); unserved != nil && refused.Status == http.StatusUnauthorized {
			refused = unserved
		}
		// Without an org there is no audit log to write this to.
		return x.reject(refused), nil
	}
	if refused != nil && x.repeated(refused) {
		return x.reject(refused), nil
	}
	if refused == nil {
		refused = x.req.headersAlone(x.org.Providers)
	}
	if refused != nil || x.req.endOfStream {
		// The request is complete, or its headers are enough.
		return x.decide(ctx, nil, refused)
	}
	if refused := x.enterGuard(); refused != nil {
		return x.decide(ctx, nil, refused)
	}
	x.state = waiting
	reply := waitForBody()
	if x.response.reading = x.response.reading.forEndpoint(x.org.Providers, x.req.Endpoint); x.response.reading == requested {
		reply = streamResponse(reply)
	}
	return reply, nil
}

// modes verifies the modes that Envoy's filter declares in its first message. A body that
// does not come in one piece cannot be evaluated.
func (x *exchange) modes(c *extprocv3.ProtocolConfiguration) error {
	if c == nil {
		return nil // then each body must declare that it is complete
	}
	x.wholeBody = c.GetRequestBodyMode() == filterv3.ProcessingMode_BUFFERED
	x.response.reading = readingOf(c)
	if !x.wholeBody || c.GetSendBodyWithoutWaitingForHeaderResponse() {
		return x.outOfOrder("request_body_mode")
	}
	return nil
}

// startSpan continues the caller's trace, or begins one.
func (x *exchange) startSpan(ctx context.Context) error {
	parent, known := parseTraceparent(x.req.traceparent)
	if x.s.tracer == nil {
		var err error
		if x.span, err = nextSpan(parent, known, x.s.c.Rand); err != nil {
			return fmt.Errorf("making a span id: %w", err)
		}
	} else {
		if known {
			ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: parent.trace, SpanID: parent.id, TraceFlags: trace.TraceFlags(parent.flags), Remote: true,
			}))
		}
		_, x.otel = x.s.tracer.Start(ctx, "exchange", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.began))
		sc := x.otel.SpanContext()
		x.span = span{trace: sc.TraceID(), id: sc.SpanID(), flags: byte(sc.TraceFlags())}
	}
	x.req.TraceID = x.span.traceID()
	if x.req.ID == "" {
		// Envoy makes the id. Without one, it is made here. It never comes from the client.
		var b [16]byte
		if _, err := io.ReadFull(x.s.c.Rand, b[:]); err != nil {
			return fmt.Errorf("making a request id: %w", err)
		}
		x.req.ID = hex.EncodeToString(b[:])
	}
	return nil
}

// answerCanary replies to the request of /readyz, which shows that it came through Envoy.
func (x *exchange) answerCanary() *extprocv3.ProcessingResponse {
	x.state, x.outcome, x.response.status = ended, outcomeCanary, http.StatusNoContent
	m := newMutation(1)
	m.header(envoy.HeaderCanary, x.req.canary)
	return respond(x.response.status, m, nil, envoy.UnrecordedPrefix+"canary")
}

// identify finds the caller. Without a caller it returns the reason. known is set as soon
// as the caller's org is known, before the caller can be rejected.
func (x *exchange) identify(ctx context.Context) *provider.Error {
	if x.req.unidentified != nil {
		return x.req.unidentified
	}
	secret, token := x.req.secret, x.req.token
	x.req.secret, x.req.token = "", "" // they are not needed any more
	if x.s.c.Workloads != nil && x.s.c.Workloads.Ours(secret) {
		if token != "" && token != secret {
			return verdict.Refuse(400, "ambiguous_credentials", "The request carries two different workload tokens. Send one token, once.")
		}
		token, secret = secret, ""
	}
	if token != "" {
		if refused := x.verify(ctx, token); refused != nil {
			return refused
		}
		if !strings.HasPrefix(secret, ownPrefix) {
			secret = "" // a provider's own credential, which is never forwarded
		}
	} else if secret == "" {
		return unauthenticated("missing_api_key", "No API key was sent. Send an agent key (aid_sk_…) as \"Authorization: Bearer …\".")
	}
	if secret == "" {
		x.presented = x.token.Workload.Presented()
	} else {
		// The form and the checksum are verified first, so that malformed keys cause no lookup.
		kind, hash, err := identity.Parse(secret)
		if refused := agentKey(kind, err); refused != nil {
			return refused
		}
		x.presented = identity.PresentedKey(hash)
		if token != "" {
			x.beside = x.token.Workload.Presented()
			x.s.live.key(&x.handle, x.beside)
		}
	}
	x.s.live.key(&x.handle, x.presented) // before the lookup, so that a revocation in between finds it
	return x.lookUp(ctx)
}

// ownPrefix begins each of our secrets.
const ownPrefix = "aid_"

// verify reads the token of a workload.
func (x *exchange) verify(ctx context.Context, token string) *provider.Error {
	if x.s.c.Workloads == nil {
		return unauthenticated("workload_tokens_off", "X-AID-Workload-Token is not accepted: the operator has configured no issuer (--workload-issuers).")
	}
	var err error
	x.token, err = x.s.c.Workloads.Verify(token, x.s.c.Now())
	var invalid *identity.InvalidToken
	switch {
	case err == nil:
		x.req.Workload = x.token.Workload.String()
		return nil
	case errors.As(err, &invalid):
		return unauthenticated("invalid_workload_token", "The workload token is not valid: "+invalid.Reason+".")
	case errors.Is(err, identity.ErrNotWorkload):
		return unauthenticated("invalid_workload_token", "X-AID-Workload-Token has no token of an issuer that the operator has configured (--workload-issuers).")
	default:
		x.s.c.Log.WarnContext(ctx, "a workload token cannot be verified", "exchange", x.req.ID, "err", err)
		return verdict.Unavailable("identity_unavailable", "Callers cannot be identified right now. Try again shortly.")
	}
}

// agentKey rejects what is not an agent's key.
func agentKey(kind identity.Kind, err error) *provider.Error {
	switch {
	case err != nil:
		return unauthenticated("invalid_api_key", "The API key is not an AI Identity key: check that all of it was copied. Agent keys begin with aid_sk_.")
	case kind == identity.OrgKey:
		return unauthenticated("org_key_on_model_path", "This is an organization key (aid_org_…). It manages agents; to call models, create an agent key (aid_sk_…) with POST /v1/agents/{id}/keys and send that.")
	case kind != identity.AgentKey:
		return unauthenticated("invalid_api_key", "This key does not call models. Send an agent key (aid_sk_…).")
	}
	return nil
}

// lookUp finds the caller, and the policies and providers of its org, as they are now. It
// runs again when the body has arrived. That may take minutes, and the caller's permissions
// may have been reduced in that time.
func (x *exchange) lookUp(ctx context.Context) *provider.Error {
	ctx, cancel := context.WithTimeout(ctx, x.s.c.IdentifyTimeout)
	defer cancel()
	if ends := x.token.Expires; !ends.IsZero() && !x.s.c.Now().Before(ends) {
		return unauthenticated("invalid_workload_token", "The workload token is not valid: it has expired.")
	}
	caller, err := x.s.c.Directory.Caller(ctx, x.presented, x.peer())
	_, workload := x.presented.WorkloadHash()
	switch {
	case errors.Is(err, verdict.ErrUnknownCaller) && workload:
		return unauthenticated("workload_not_bound", "No agent has the identity of this workload. Bind it with POST /v1/agents/{id}/identities.")
	case errors.Is(err, verdict.ErrUnknownCaller):
		return unauthenticated("invalid_api_key", "The API key is not known. It may have been deleted, or belong to another installation.")
	case err != nil:
		x.s.c.Log.WarnContext(ctx, "caller cannot be looked up", "exchange", x.req.ID, "err", err)
		return verdict.Unavailable("identity_unavailable", "Callers cannot be identified right now. Try again shortly.")
	case caller.Agent.OrgID == "" || caller.Key.OrgID != caller.Agent.OrgID || caller.Key.AgentID != caller.Agent.ID:
		x.s.c.Log.ErrorContext(ctx, "directory returned a key of another agent", "exchange", x.req.ID, "agent", caller.Agent.ID, "key", caller.Key.ID)
		return verdict.Unavailable("identity_unavailable", "Callers cannot be identified right now. Try again shortly.")
	case x.known && caller.Agent.OrgID != x.org.ID:
		return verdict.Unavailable("identity_unavailable", "This API key has moved to another organization. Try again.")
	}
	first := !x.known
	x.caller, x.known = caller, true

	// From here on every rejection is recorded in this org.
	x.org.ID, x.org.Tokens = caller.Agent.OrgID, x.s.findToken()
	// An inactive caller learns nothing more about its agent, and its rejections are counted.
	// The decision checks it again when the body has arrived.
	if first {
		if refused := verdict.Inactive(caller, x.s.c.Now()); refused != nil {
			x.inactive = true
			if org, err := x.s.c.Directory.Org(caller.Agent.OrgID); err == nil {
				x.org.Tier = org.Tier // for its entry
			}
			return refused
		}
	}
	if refused := x.lookUpBeside(ctx); refused != nil {
		return refused
	}
	if refused := x.required(); refused != nil {
		return refused
	}
	org, err := x.s.c.Directory.Org(caller.Agent.OrgID)
	if err != nil || org.Policies == nil || org.Providers == nil {
		x.s.c.Log.WarnContext(ctx, "policies and providers of the org are not available", "exchange", x.req.ID, "agent", caller.Agent.ID, "err", err)
		return verdict.Unavailable("policy_unavailable", "Policies are not available right now. Try again shortly.")
	}
	x.org = org // one snapshot for the whole exchange
	x.org.ID, x.org.Limiter, x.org.Sessions, x.org.Pricer, x.org.Phase = caller.Agent.OrgID, x.s.c.Limiter, &x.s.sessions, x.s.c.Pricer, x.phase
	x.org.Spender, x.org.Shared, x.org.Tokens = x.s.c.Spender, x.s.shared, x.s.findToken()
	return nil
}

// lookUpBeside compares the workload beside a key with the key's agent. A workload that is
// bound to no agent is recorded, and the key counts.
func (x *exchange) lookUpBeside(ctx context.Context) *provider.Error {
	if x.beside == "" {
		return nil
	}
	x.besideKind = ""
	other, err := x.s.c.Directory.Caller(ctx, x.beside, x.peer())
	switch {
	case errors.Is(err, verdict.ErrUnknownCaller):
		return nil
	case err != nil:
		x.s.c.Log.WarnContext(ctx, "the workload beside a key cannot be looked up", "exchange", x.req.ID, "err", err)
		return verdict.Unavailable("identity_unavailable", "Callers cannot be identified right now. Try again shortly.")
	case other.Agent.ID != x.caller.Agent.ID || other.Agent.OrgID != x.caller.Agent.OrgID:
		return verdict.Refuse(http.StatusForbidden, "conflicting_identities", "The key and the workload of this request belong to two agents.")
	}
	x.besideKind = other.Key.Kind
	return verdict.Inactive(other, x.s.c.Now())
}

// required rejects a request without a kind of credential that the agent requires. A workload
// that is bound to no agent does not count.
func (x *exchange) required() *provider.Error {
	for _, kind := range x.caller.Agent.RequiredIdentities {
		if kind != x.caller.Key.Kind && kind != x.besideKind {
			return verdict.Refuse(http.StatusForbidden, "identity_required", "This agent's requests need credentials of these kinds at once: "+
				kindsText(x.caller.Agent.RequiredIdentities)+". Send its key and its workload's token (X-AID-Workload-Token).")
		}
	}
	return nil
}

func kindsText(kinds []identity.CredentialKind) string {
	var b strings.Builder
	for i, k := range kinds {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(k))
	}
	return b.String()
}

// enterGuard reserves a place for the body, or returns the reason for the rejection. A
// request over its key's rate is rejected here too, before anything is buffered for it. It
// counts against the rate only once, with the decision.
func (x *exchange) enterGuard() *provider.Error {
	if v, full := x.org.Full(x.caller); full {
		x.verdict = v
		return v.Refusal
	}
	bytes := x.req.ContentLength
	if bytes < 0 {
		bytes = x.s.c.MaxBody // chunked: it may be as large as the limit
	}
	place, why := x.s.guard.enter(&x.handle, x.caller.Key.ID, x.caller.Agent.ID, bytes)
	switch why {
	case admitted:
		x.place = place
		return nil
	case tooMany:
		l := x.s.guard.limits
		e := verdict.Refuse(http.StatusTooManyRequests, why, fmt.Sprintf("Too many requests of this key or agent wait for their bodies. "+
			"The limits are %d requests and %d MiB for a key, %d and %d MiB for an agent. Send the bodies, then try again.",
			l.PerKey, l.KeyBytes>>20, l.PerAgent, l.AgentBytes>>20))
		e.RetryAfter = time.Second
		return e
	default:
		return verdict.Revoked(why)
	}
}

// ---- request body ----

func (x *exchange) requestBody(ctx context.Context, m *extprocv3.HttpBody) (*extprocv3.ProcessingResponse, error) {
	if x.state != waiting || !x.known {
		return nil, x.outOfOrder("request_body")
	}
	if err := x.fault("body"); err != nil {
		return nil, err
	}
	if !m.GetEndOfStream() {
		if !x.wholeBody {
			// This is one chunk of a body. It cannot be evaluated.
			return nil, x.outOfOrder("partial_request_body")
		}
		// In BUFFERED mode the body is complete, and trailers follow. No client of an LLM
		// sends trailers, and policy cannot evaluate them.
		return x.decide(ctx, nil, verdict.Refuse(http.StatusBadRequest, "trailers_not_accepted", "Requests with trailers are not accepted."))
	}
	x.s.guard.arrived(x.place, int64(len(m.GetBody())))
	return x.decide(ctx, m.GetBody(), x.lookUp(ctx))
}

// decide runs the other phases of the request. Its input is the complete request, or the
// reason to reject it. It is called once for each exchange.
func (x *exchange) decide(ctx context.Context, body []byte, refused *provider.Error) (*extprocv3.ProcessingResponse, error) {
	defer x.s.guard.leave(x.place) // the body is forwarded or dropped
	began := x.s.c.Now()
	x.req.Time = verdict.Instant(began)
	defer x.s.c.Recorder.Deciding(x.req.Time)()
	if refused != nil {
		x.verdict.Refusal, x.verdict.Time = refused, x.req.Time
	} else if x.evaluate(ctx, body); x.verdict.Err != nil {
		if p, ok := errors.AsType[*verdict.Panic](x.verdict.Err); ok {
			return nil, x.panicked(ctx, p.Value, p.Stack)
		}
		return nil, x.verdict.Err
	}
	// The decision is recorded before it is enforced, whether it is allow or deny.
	if err := x.fault("record"); err != nil {
		return nil, err
	}
	recording := x.s.c.Now()
	if err := x.record(ctx); err != nil {
		x.s.metrics.audit.Inc()
		x.s.c.Log.ErrorContext(ctx, "decision not recorded, request rejected", "exchange", x.req.ID, "agent", x.caller.Agent.ID, "err", err)
		x.outcome = outcomeUnrecorded
		return x.reject(verdict.Unavailable("audit_unavailable", "The decision could not be recorded, so nothing was forwarded. Try again shortly.")), nil
	}
	x.rejected()
	now := x.s.c.Now()
	x.s.metrics.phase("record", now.Sub(recording))
	x.s.metrics.decision.Observe(now.Sub(began).Seconds())

	if err := x.fault("enforce"); err != nil {
		return nil, err
	}
	switch {
	case !x.verdict.Allowed():
		return x.reject(x.verdict.Rejection()), nil
	case x.verdict.Local != nil:
		return x.respondLocally(), nil
	}
	x.handle.forwarded.Store(true)
	if reason := x.handle.cutReason(); reason != "" {
		// The key was revoked during the decision. The decision entry has "allow"; the
		// completion entry has the cut.
		x.outcome, x.effect = verdict.OutcomeCut, policy.Deny
		return x.reject(verdict.Revoked(reason)), nil
	}
	return x.enforce(), nil
}

// evaluate waits for its turn and sets the decision.
func (x *exchange) evaluate(ctx context.Context, body []byte) {
	wait, cancel := context.WithTimeout(ctx, x.s.c.IdentifyTimeout)
	defer cancel()
	select {
	case x.s.deciding <- struct{}{}:
		defer func() { <-x.s.deciding }()
	case <-wait.Done():
		x.verdict = verdict.Reject(x.req.Time, verdict.Unavailable("overloaded", "Too many requests are being decided right now. Try again shortly."))
		return
	}
	r := x.req.Request
	r.Body, r.ReadsAnswer, r.Cut = body, x.response.reading.here(), x.handle.cutReason()
	x.verdict = x.org.Judge(ctx, x.caller, r)
	if err := x.verdict.Decision.Err; err != nil {
		x.s.c.Log.WarnContext(ctx, "no decision, request rejected", "exchange", x.req.ID, "agent", x.caller.Agent.ID, "policies", x.verdict.Decision.PolicyVersion, "err", err)
	}
}

// phase is called at the beginning of each phase of the evaluation, and with "" at its end.
func (x *exchange) phase(name string) error {
	now := x.s.c.Now()
	if x.evaluating != "" {
		x.s.metrics.phase(x.evaluating, now.Sub(x.phaseBegan))
	}
	x.evaluating, x.phaseBegan = name, now
	if name == "" {
		return nil
	}
	return x.fault(name)
}

// record writes the decision and returns nil only once it is durable. It waits even if the
// client has gone, since the entry may be on disk by then.
func (x *exchange) record(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.s.c.RecordTimeout)
	defer cancel()
	if err := x.ownSession(); err != nil {
		return err
	}
	x.attempted = true
	receipt, err := x.s.c.Recorder.Append(ctx, x.org.ID, x.verdict.Decided(&x.org, x.caller, &x.req.Request))
	if err != nil {
		x.inDoubt = ctx.Err() != nil
		return fmt.Errorf("recording the decision: %w", err)
	}
	x.receipt, x.recorded = receipt, true
	if x.verdict.Reserved {
		x.s.c.Limiter.Recorded(x.req.ID)
	}
	if x.verdict.Allowed() {
		x.effect = policy.Allow
	}
	return nil
}

// ownSession gives a request without X-Session-ID the sidecar's id of its session.
func (x *exchange) ownSession() (err error) {
	if x.req.Session != "" || x.inactive {
		return nil
	}
	key := x.caller.Key
	x.req.OwnSession, err = x.s.sessions.Own(x.verdict.Time, x.org.ID, x.caller.Agent.ID, cmp.Or(key.Line, key.ID), func() (string, error) {
		return identity.NewID("sess_", x.verdict.Time, x.s.c.Rand)
	})
	return err
}

// enforce sends Envoy the route, the caller's identity and the bytes to forward.
func (x *exchange) enforce() *extprocv3.ProcessingResponse {
	x.state = forwarded
	x.response.follow(x.org.Providers)
	f := &x.verdict.Forward
	m := newMutation(len(f.Set) + 9)
	for name, value := range f.Set {
		m.header(lower(name), value)
	}
	// These lines replace what the provider's configuration set above, which must not
	// choose any of them.
	m.header(envoy.HeaderRoute, f.Cluster) // without it there is no route to a provider
	if f.Path != x.req.target {
		m.header(":path", f.Path)
	}
	m.header("accept-encoding", "identity") // a compressed response cannot be read
	m.header(envoy.HeaderRequestID, x.req.ID)
	m.header(envoy.HeaderAgentID, x.caller.Agent.ID)
	m.header(envoy.HeaderAgentFingerprint, x.caller.Agent.Fingerprint)
	m.header("traceparent", x.span.String())
	if x.response.reading == requested {
		m.header(envoy.HeaderAnswer, "read") // selects a route on which Envoy does not read it too
	}

	// Only headers that are present are removed: Envoy searches all headers for each name.
	m.remove = make([]string, 0, len(x.req.remove)+len(f.Remove)+1)
	for _, names := range [...][]string{x.req.remove, f.Remove} {
		for _, name := range names {
			// Envoy removes before it sets. The result must not depend on that order, so no
			// header is in both lists.
			if !m.sets(name) {
				m.remove = append(m.remove, name)
			}
		}
	}
	body := f.Body
	if body == nil && len(x.req.Encodings) > 0 {
		body = x.verdict.Call.Body // decoded: the bytes that were evaluated
	}
	if body != nil {
		m.remove = append(m.remove, "content-encoding")
		m.header("content-length", strconv.Itoa(len(body)))
	}
	reply := forwardBody(m, body)
	if x.req.endOfStream {
		reply = forwardHeaders(m)
	}
	receipt, format := "", ""
	if !x.response.reading.here() {
		receipt = x.signedReceipt()
	}
	if path, _, _ := strings.Cut(f.Path, "?"); provider.FormatOf(path) != x.req.Format {
		format = x.req.Format.String()
	}
	if receipt != "" || format != "" {
		reply = withMetadata(reply, receipt, format)
	}
	return reply
}

// respondLocally responds without a provider.
func (x *exchange) respondLocally() *extprocv3.ProcessingResponse {
	x.state, x.outcome, x.response.status = ended, verdict.OutcomeCompleted, http.StatusOK
	x.response.bytes = int64(len(x.verdict.Local))
	m := newMutation(5)
	x.setHeaders(m)
	m.header("content-type", "application/json")
	return respond(http.StatusOK, m, x.verdict.Local, envoy.DetailsPrefix+"local")
}

// reject rejects the request in the format of the API that the client called.
func (x *exchange) reject(e *provider.Error) *extprocv3.ProcessingResponse {
	x.state, x.response.status = ended, e.Status
	if x.outcome == "" {
		x.outcome = verdict.OutcomeRefused
	}
	x.s.metrics.refusals.WithLabelValues(e.Code).Inc()
	m := newMutation(8)
	x.setHeaders(m)
	m.header("content-type", "application/json")
	if e.Final() {
		m.header("x-should-retry", "false")
	}
	if e.RetryAfter > 0 {
		m.header("retry-after", strconv.FormatInt(verdict.Seconds(e.RetryAfter), 10))
	}
	if e.Status == http.StatusTooManyRequests || x.verdict.Provider.RateHeaders() != provider.RatesOff {
		x.rateHeaders(m)
	}
	details := envoy.UnrecordedPrefix
	if x.recorded {
		details = envoy.DetailsPrefix
	}
	return respond(e.Status, m, x.req.Format.Encode(e, x.req.ID, x.policyID()), details+e.Code)
}

// signedReceipt returns the receipt for the caller. It is signed on its first use.
func (x *exchange) signedReceipt() string {
	if !x.receipt.Signed {
		x.receipt = x.s.c.Recorder.Sign(x.org.ID, x.receipt)
	}
	return x.receipt.String()
}

// setHeaders sets the headers that every response to a governed request has.
func (x *exchange) setHeaders(m *mutation) {
	m.header(envoy.HeaderRequestID, x.req.ID)
	if x.req.Format == provider.FormatAnthropic {
		m.header("request-id", x.req.ID) // Anthropic's SDKs read the id from this header
	}
	m.header(envoy.HeaderDecision, x.effect.String())
	if x.recorded {
		m.header(envoy.HeaderReceipt, x.signedReceipt())
	}
	if x.effect == policy.Allow {
		if dropped := x.verdict.Forward.Dropped(); len(dropped) > 0 {
			m.header(envoy.HeaderDropped, listed(dropped))
		}
		if added := x.verdict.Forward.Added(); len(added) > 0 {
			m.header(envoy.HeaderAdded, listed(added))
		}
	}
}

// ---- after the decision ----

func (x *exchange) requestTrailers(m *extprocv3.HttpTrailers) (*extprocv3.ProcessingResponse, error) {
	if err := x.fault("trailers"); err != nil {
		return nil, err
	}
	if x.state != forwarded && x.state != answering && x.state != ended {
		return nil, x.outOfOrder("request_trailers")
	}
	return dropRequestTrailers(m), nil
}

// responseHeaders processes the headers of the provider's response, or of Envoy's own.
func (x *exchange) responseHeaders(m *extprocv3.HttpHeaders, req *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	switch x.state {
	case forwarded:
	case fresh, waiting:
		// Before the decision the only response is Envoy's own: a failed upgrade, or a body
		// over its buffer. It passes to the client. From here on the request cannot be
		// forwarded.
		x.state, x.response.status = bypassed, statusOf(m)
		return followHeaders(nil), nil
	case ended:
		return followHeaders(nil), nil // this is our own rejection; it is counted already
	default:
		return nil, x.outOfOrder("response_headers")
	}
	if err := x.fault("follow"); err != nil {
		return nil, err
	}
	x.state = answering
	out := newMutation(3)
	x.setHeaders(out)
	if x.verdict.Provider.RateHeaders() == provider.RatesAll {
		x.rateHeaders(out)
	}
	reply, rejected := x.response.headers(m, req, out)
	return x.followed(reply, rejected, nil)
}

// followed returns the reply of response to a message, or the rejection in its place.
func (x *exchange) followed(reply *extprocv3.ProcessingResponse, rejected *provider.Error, err error) (*extprocv3.ProcessingResponse, error) {
	if x.response.over {
		x.state = ended
	}
	x.outcome = cmp.Or(x.outcome, x.response.outcome)
	if rejected != nil {
		return x.reject(rejected), nil
	}
	return reply, err
}

func (x *exchange) responseBody(m *extprocv3.HttpBody) (*extprocv3.ProcessingResponse, error) {
	switch x.state {
	case answering:
	case ended, bypassed:
		if x.response.reading == buffered {
			return nil, x.outOfOrder("response_body") // its body came complete already
		}
		return passBody(), nil
	default:
		return nil, x.outOfOrder("response_body")
	}
	if err := x.fault("inspect"); err != nil {
		return nil, err
	}
	return x.followed(x.response.body(m.GetBody(), m.GetEndOfStream()))
}

// responseTrailers ends a response. See response.trailers.
func (x *exchange) responseTrailers(m *extprocv3.HttpTrailers, req *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	remove := x.response.strip(m)
	switch x.state {
	case forwarded, answering:
	case ended, bypassed:
		return passTrailers(remove), nil
	default:
		return nil, x.outOfOrder("response_trailers")
	}
	if err := x.fault("inspect"); err != nil {
		return nil, err
	}
	ok, err := x.response.trailers(req)
	if !ok {
		return nil, x.outOfOrder("response_trailers") // a response that was not translated
	}
	return x.followed(passTrailers(remove), nil, err)
}

// ---- stream end ----

// settle records how the exchange ended and what it cost, exactly once. It does so for
// every end: answered, rejected, client gone, reset, cut, panic. err is the error that run
// returns. ctx outlives the client.
func (x *exchange) settle(ctx context.Context, err error) {
	if x.settled {
		return
	}
	x.settled = true
	x.s.guard.leave(x.place)
	defer x.s.ends.forget(x.req.ID)
	if (x.state == answering || x.state == forwarded && x.response.reading.here()) && x.outcome == "" && x.handle.cutReason() == "" && over(err) {
		x.response.awaitEnd(ctx)
	}
	defer func() {
		if p := recover(); p != nil {
			_ = x.panicked(ctx, p, debug.Stack())
		}
	}()
	x.settleFault()
	outcome := x.howItEnded(err)
	x.s.metrics.exchanges.WithLabelValues(outcome).Inc()
	x.response.read()
	x.endSpan(outcome)
	x.s.metrics.count(x.response.usage)
	if log := x.s.c.Log; log.Enabled(ctx, x.levelOf(outcome)) {
		log.Log(ctx, x.levelOf(outcome), "exchange ended", "exchange", x.req.ID, "outcome", outcome, "status", x.response.status,
			"agent", x.caller.Agent.ID, "model", x.verdict.Call.Model, "provider", x.verdict.Provider.Name, "receipt", x.receipt.String(), "err", err)
	}
	if !x.known || x.counted {
		return // no org, so no audit log; or counted there
	}
	if !x.attempted {
		// The request ended before there was anything to decide. Nothing was forwarded, and
		// the attempt is recorded like any other.
		code := "request_incomplete"
		switch {
		case outcome == verdict.OutcomeFailed:
			code = "internal_error"
		case x.response.status == http.StatusRequestEntityTooLarge:
			code = "request_too_large" // Envoy's buffer was full
		}
		if x.verdict.Time.IsZero() {
			x.verdict.Time = verdict.Instant(x.s.c.Now())
		}
		defer x.s.c.Recorder.Deciding(x.verdict.Time)()
		x.verdict.Refusal = &provider.Error{Status: x.response.status, Code: code}
		if err := x.record(ctx); err != nil {
			x.s.metrics.audit.Inc()
			x.s.c.Log.ErrorContext(ctx, "incomplete request not recorded", "exchange", x.req.ID, "agent", x.caller.Agent.ID, "err", err)
		}
	}
	if outcome == outcomeUnrecorded {
		outcome = verdict.OutcomeRefused // the entry may exist, and the request was rejected in any case
	}
	ending := x.response.ending(outcome)
	ending.DecidedSeq = x.receipt.Seq
	settled := x.verdict.Settled(x.caller, &x.req.Request, ending, x.effect == policy.Allow, x.s.c.Pricer)
	// First the entry: a shared store that has lost its counts reads them from the audit log.
	if x.recorded || x.inDoubt { // otherwise it is certain that there is no first entry
		x.s.c.Recorder.Enqueue(x.org.ID, settled)
	}
	x.settleLimits(ctx, x.verdict.Used(ending, settled.ChargedNanoUSD))
	if settled.Overrun {
		x.s.metrics.overruns.Inc()
		x.s.c.Log.WarnContext(ctx, "a request cost more than was reserved for it", "exchange", x.req.ID, "model", x.verdict.Call.Model,
			"charged", verdict.USD(settled.ChargedNanoUSD))
	}
}

// settleLimits releases what was reserved for a request that was not forwarded. For other
// requests it replaces the reservation by the actual use.
func (x *exchange) settleLimits(ctx context.Context, used budget.Used) {
	for _, id := range x.verdict.ShadowIDs {
		if x.effect == policy.Allow {
			x.s.c.Limiter.Settle(ctx, id, used)
		} else {
			x.s.c.Limiter.Release(ctx, id)
		}
	}
	switch {
	case !x.verdict.Reserved:
	case x.effect == policy.Allow:
		x.s.c.Limiter.Settle(ctx, x.req.ID, used)
	default:
		x.s.c.Limiter.Release(ctx, x.req.ID)
	}
}

// settleFault runs the test's fault, which must not prevent the completion entry.
func (x *exchange) settleFault() {
	defer func() { _ = recover() }()
	_ = x.fault("settle")
}

// These outcomes are only counted. No completion entry has them.
const (
	outcomeCanary     = "canary"
	outcomeUnrecorded = "unrecorded"
)

// howItEnded returns the outcome of an exchange. err is how its stream ended.
func (x *exchange) howItEnded(err error) string {
	here := x.response.reading.here()
	switch {
	case x.outcome != "":
		return x.outcome
	case x.state == forwarded && !here && overWell(err):
		// Envoy reads the response, and sent no usage. The response may have been without
		// usage, broken off, or missing: that is not known here.
		return audit.OutcomeUnknown
	case x.state == ended && x.response.came, x.state == answering && !here && overWell(err):
		return x.response.whole()
	case x.handle.cutReason() != "":
		return verdict.OutcomeCut
	case x.state == bypassed:
		return verdict.OutcomeRefused // Envoy rejected it
	case !over(err):
		return verdict.OutcomeFailed
	}
	return x.response.broken()
}

// over reports whether err means that Envoy ended the stream. overWell reports whether
// Envoy ended it cleanly.
func over(err error) bool {
	return err == nil || errors.Is(err, errClosedEarly) || status.Code(err) == codes.Canceled || errors.Is(err, context.Canceled)
}

func overWell(err error) bool { return err == nil || errors.Is(err, errClosedEarly) }

func (x *exchange) endSpan(outcome string) {
	if x.otel == nil {
		return
	}
	x.otel.SetAttributes(
		attribute.String("aid.exchange", x.req.ID), attribute.String("aid.agent", x.caller.Agent.ID), attribute.String("aid.key", x.caller.Key.ID),
		attribute.String("aid.decision", x.effect.String()), attribute.String("aid.receipt", x.receipt.String()), attribute.String("aid.outcome", outcome),
		attribute.String("gen_ai.operation.name", x.verdict.Call.Endpoint.Operation), attribute.String("gen_ai.request.model", provider.Clip(x.verdict.Call.Model, 256)),
		attribute.String("gen_ai.response.model", x.response.model), attribute.String("gen_ai.provider.name", x.verdict.Provider.Name),
		attribute.Int64("gen_ai.usage.input_tokens", x.response.usage.InputTokens), attribute.Int64("gen_ai.usage.output_tokens", x.response.usage.OutputTokens),
		attribute.Int("http.response.status_code", x.response.status),
	)
	x.otel.End()
}

// fault lets tests break an exchange at a phase.
func (x *exchange) fault(phase string) error {
	if x.s.c.fault == nil {
		return nil
	}
	if err := x.s.c.fault(phase); err != nil {
		return fmt.Errorf("%s: %w", phase, err)
	}
	return nil
}
