package verdict

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Verdict is the result of one evaluation, and everything that enforcing and
// recording it needs. The zero Verdict rejects.
type Verdict struct {
	// Effect is the decision. It counts only with a nil Refusal and a nil Err.
	Effect  policy.Effect
	Refusal *provider.Error // what the caller gets instead
	// Err is why there is no decision at all: a phase failed. The request must
	// not go on, and the caller of Judge decides how it ends.
	Err error

	Time      time.Time // the instant of the decision
	Call      provider.Call
	Provider  provider.Provider // zero for what is answered here
	Decision  policy.Decision
	BodyBytes int64  // of the body as received
	Digest    string // of the decoded body; "" without a body or a key

	// Shadow is the decision that would have been made with the org's policies in
	// shadow. Without a PolicyVersion there was none. It is recorded and never enforced.
	Shadow policy.Decision

	// Forward is what to send, and ForwardedDigest the digest of its body if it is
	// not the body that was evaluated. Local is the response if it is ours.
	Forward         provider.Forward
	ForwardedDigest string
	Local           []byte

	// Reserved are the limits that this request was taken from, and Taken the
	// figures of the tightest. What is not forwarded is given back (Limiter.Release).
	Reserved []budget.Limit
	Taken    budget.Result
	// Approval is the id of the approval that the decision rests on or waits for.
	Approval string
}

// Allowed says whether the request may be forwarded or answered.
func (v *Verdict) Allowed() bool {
	return v.Effect == policy.Allow && v.Refusal == nil && v.Err == nil
}

// Rejection is the error for the caller, nil only if the request is allowed.
func (v *Verdict) Rejection() *provider.Error {
	switch {
	case v.Allowed():
		return nil
	case v.Refusal != nil:
		return v.Refusal
	default:
		return Unavailable("internal_error", "The request could not be evaluated, so it was not forwarded. Try again shortly.")
	}
}

// PolicyID is the policy that a rejection rests on, or "".
func (v *Verdict) PolicyID() string {
	if v.Allowed() || len(v.Decision.Reasons) == 0 {
		return ""
	}
	return v.Decision.Reasons[0].PolicyID
}

// Reject is the Verdict of a request that an error is known about already.
func Reject(at time.Time, e *provider.Error) Verdict { return Verdict{Refusal: e, Time: at} }

// Judge evaluates a complete request: what it asks, whether the caller may, and
// what is then to be done. The bytes that it accepts are the bytes to forward.
// Limits come last, so that what is rejected for another reason takes nothing.
//
// A panic on the way becomes a *Panic in Err: what was found out until then is kept,
// because it is recorded.
func (o *Org) Judge(ctx context.Context, c identity.Caller, r Request) (v Verdict) {
	v.Time = r.Time
	defer func() {
		if p := recover(); p != nil {
			v.Err = &Panic{Value: p, Stack: debug.Stack()}
		}
		if v.Err != nil || v.Refusal != nil {
			v.Effect, v.Forward, v.Local, v.ForwardedDigest = policy.Deny, provider.Forward{}, nil, ""
		}
	}()
	if v.Err = o.begin("parse"); v.Err != nil {
		return v
	}
	v.Refusal = o.parse(&v, &r)
	if v.Refusal == nil {
		if v.Err = o.begin("decide"); v.Err != nil {
			return v
		}
		v.Refusal = o.decide(ctx, &v, c, &r)
	}
	if v.Err = o.begin(""); v.Err == nil && v.Refusal == nil {
		v.Refusal = o.limit(ctx, &v, r.ID)
	}
	if v.Err == nil && v.Refusal == nil {
		v.Effect = policy.Allow
	}
	o.shadow(ctx, &v, c, &r)
	return v
}

// shadow evaluates the policies in shadow for a request that policy was asked about.
// Whatever goes wrong in it is recorded, and changes nothing.
func (o *Org) shadow(ctx context.Context, v *Verdict, c identity.Caller, r *Request) {
	if v.Err != nil || v.Decision.PolicyVersion == "" || !o.Policies.InShadow() {
		return // most requests: the input is not made a second time for nothing
	}
	defer func() {
		if p := recover(); p != nil {
			v.Shadow = policy.Decision{PolicyVersion: v.Decision.PolicyVersion, Reasons: []policy.Reason{{Code: "policy_error"}}}
		}
	}()
	d, _ := o.Policies.Shadow(ctx, o.input(c, r, v))
	v.Shadow = d
	for _, l := range d.Limits {
		if o.Limiter == nil || !v.Allowed() {
			return // what is rejected takes nothing from a limit
		}
		taken, err := o.Limiter.Reserve(ctx, "shadow:"+l.Source+":"+r.ID, []budget.Limit{{Key: l.Key, PerMinute: l.Value}})
		switch {
		case err != nil:
			v.Shadow.Effect = policy.Deny
			v.Shadow.Reasons = append(v.Shadow.Reasons, policy.Reason{Code: "limits_unavailable", PolicyID: l.Source})
		case !taken.OK:
			v.Shadow.Effect = policy.Deny
			v.Shadow.Reasons = append(v.Shadow.Reasons, policy.Reason{Code: "rate_limit_exceeded", PolicyID: l.Source})
		}
	}
}

// Panic is a panic during an evaluation. Value and Stack may hold anything, the text
// of a request included, and are not part of the error's text.
type Panic struct {
	Value any
	Stack []byte
}

func (*Panic) Error() string { return "the evaluation panicked" }

// parse finds out what is asked. What it accepts as v.Call.Body is, byte for byte,
// what will be forwarded.
func (o *Org) parse(v *Verdict, r *Request) *provider.Error {
	v.BodyBytes = int64(len(r.Body))
	if v.BodyBytes > r.MaxBody {
		return tooLarge(r.MaxBody)
	}
	if r.Endpoint.Path == "" {
		if refused := r.Match(); refused != nil {
			return refused
		}
	}
	v.Call.Endpoint = r.Endpoint
	plain, refused := provider.Decode(r.Encodings, r.Body, r.MaxBody)
	if refused != nil {
		return refused
	}
	if identity.FindSecrets(plain) {
		return Misplaced("the request's body")
	}
	v.Digest = o.digest(plain)
	call, refused := provider.Parse(r.Endpoint, r.Params, r.ContentType, r.Query, plain)
	if refused != nil {
		return refused
	}
	v.Call = call
	v.Call.Own, v.Call.Headers = provider.OwnClient(r.UserAgent), r.Headers
	return nil
}

// digest is the keyed digest of a body as entries have it, "" for no body or
// without the org's key.
func (o *Org) digest(body []byte) string {
	if len(body) == 0 || len(o.DigestKey) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, o.DigestKey)
	mac.Write(body)
	return "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil))
}

// decide says whether the caller may, and prepares what is then to be done: the
// provider, its credential and path, or a response of ours.
func (o *Org) decide(ctx context.Context, v *Verdict, c identity.Caller, r *Request) *provider.Error {
	if refused := Inactive(c, r.Time); refused != nil {
		return refused // it may have expired while the body came
	}
	switch {
	case r.Cut != "":
		return Revoked(r.Cut)
	case o.Providers == nil || o.Policies == nil:
		return Unavailable("policy_unavailable", "Policies are not available right now. Try again shortly.")
	case c.Agent.OrgID != o.ID:
		return Unavailable("identity_unavailable", "Callers cannot be identified right now. Try again shortly.")
	}
	if !r.listsModels() {
		p, refused := o.Providers.Resolve(v.Call)
		if refused != nil {
			return refused
		}
		v.Provider = p
	}
	v.Decision = o.Policies.Decide(ctx, o.input(c, r, v))
	if v.Decision.Effect != policy.Allow {
		return denied(v.Decision, v.Call.Model)
	}
	if r.listsModels() {
		var refused *provider.Error
		v.Local, refused = o.models(c, r, v.Call.Model)
		return refused
	}
	f, refused := v.Provider.Forward(v.Call, r.Path, r.Query)
	if refused != nil {
		return refused
	}
	if f.Translated() && !r.ReadsAnswer {
		// The org got its first provider of this kind after Envoy received, with the
		// request headers, that the response is not read here.
		return Unavailable("configuration_changed", "The configuration has just changed. Try again.")
	}
	v.Forward, v.ForwardedDigest = f, o.digest(f.Body)
	return nil
}

// Full rejects a caller whose key has used up its rate, and takes nothing. It knows
// only the key's own limit: which others apply is decided with the body.
func (o *Org) Full(c identity.Caller) (v Verdict, full bool) {
	if o.Limiter == nil || c.Key.RateLimit <= 0 {
		return v, false
	}
	r, full := o.Limiter.Full([]budget.Limit{{Key: policy.KeyCount(c.Key.ID), PerMinute: c.Key.RateLimit}})
	if !full {
		return v, false
	}
	v.Refusal, v.Taken = limited(r), r
	v.Decision.Limits = []policy.Limit{{Source: "key", Name: "rpm", Value: c.Key.RateLimit, Key: policy.KeyCount(c.Key.ID)}}
	return v, true
}

// limit takes this request from every limit that the decision names.
func (o *Org) limit(ctx context.Context, v *Verdict, id string) *provider.Error {
	if len(v.Decision.Limits) == 0 {
		return nil
	}
	limits := make([]budget.Limit, len(v.Decision.Limits))
	for i, l := range v.Decision.Limits {
		if l.Name != "rpm" || l.Key == "" {
			// A limit that cannot be enforced rejects.
			return Refuse(http.StatusForbidden, "policy_error", "The limit "+strconv.Quote(l.Name)+" cannot be enforced by this version.")
		}
		limits[i] = budget.Limit{Key: l.Key, PerMinute: l.Value}
	}
	if o.Limiter == nil {
		return Unavailable("limits_unavailable", "Limits cannot be counted right now. Try again shortly.")
	}
	taken, err := o.Limiter.Reserve(ctx, id, limits)
	switch {
	case err != nil:
		v.Decision.Effect = policy.Deny
		v.Decision.Err = fmt.Errorf("counting limits: %w", err)
		return Unavailable("limits_unavailable", "Limits cannot be counted right now. Try again shortly.")
	case !taken.OK:
		v.Taken = taken
		v.Decision.Effect = policy.Deny
		return limited(taken)
	}
	v.Taken, v.Reserved = taken, limits
	return nil
}
