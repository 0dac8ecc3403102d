package verdict

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Verdict is the result of one evaluation, with everything that is needed to enforce and
// record it. The zero Verdict rejects.
type Verdict struct {
	// Effect is the decision. It counts only with a nil Refusal and a nil Err.
	Effect  policy.Effect
	Refusal *provider.Error // what the caller gets instead
	// Err is the reason why there is no decision: a phase failed. The request must not
	// continue. Judge's caller decides how it ends.
	Err error

	Time      time.Time // the instant of the decision
	Call      provider.Call
	Provider  provider.Provider // zero for requests that are answered here
	Decision  policy.Decision
	BodyBytes int64  // of the body as received
	Digest    string // of the decoded body; "" without a body or a key

	// Shadow is the decision that the org's policies in shadow would have made. Without a
	// PolicyVersion there was no such decision. It is recorded and never enforced.
	Shadow policy.Decision

	// Forward is the request to send. ForwardedDigest is the digest of its body if it
	// differs from the body that was evaluated. Local is our own response.
	Forward         provider.Forward
	ForwardedDigest string
	Local           []byte

	// Counts are the limits that count this request, with their figures. If Reserved, it was
	// taken from all of them. What is not forwarded is given back (Limiter.Release). What is
	// forwarded is charged at its end (Limiter.Settle). Taken has the figures of the tightest.
	Counts   []budget.Limit
	Reserved bool
	Taken    budget.Result
	// ShadowIDs are the ids under which it was taken from limits of policies in shadow.
	ShadowIDs []string
	// PriceVersion names the prices that a USD cap's reservation was made from; "": no cap
	// applies.
	PriceVersion string

	spend   *audit.Spend   // what the agent has spent, if a policy reads it
	day     string         // of the decision, in the org's time zone
	listed  bool           // the model's name is in a list, so that it has counts of its own
	session budget.Session // with a name if Org has Sessions
	asked   bool           // session is as it began on any sidecar
	worst   int64          // the most that it may cost, in nano-dollars
	counted []int          // of Decision.Limits: those that Counts counts

	// Approval is the id of the approval that the decision uses or waits for.
	Approval string
}

// Allowed reports whether the request may be forwarded or answered.
func (v *Verdict) Allowed() bool {
	return v.Effect == policy.Allow && v.Refusal == nil && v.Err == nil
}

// Rejection is the error for the caller, or nil if the request is allowed.
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

// PolicyID is the policy that caused a rejection, or "".
func (v *Verdict) PolicyID() string {
	if v.Allowed() || len(v.Decision.Reasons) == 0 {
		return ""
	}
	return v.Decision.Reasons[0].PolicyID
}

// Reject is the Verdict of a request with a known error.
func Reject(at time.Time, e *provider.Error) Verdict { return Verdict{Refusal: e, Time: at} }

// Judge evaluates a complete request: its content, the caller's permissions, and how to
// forward it. The accepted bytes are the bytes to forward. Limits come last, so that a
// request that is rejected for another reason is not counted.
//
// A panic becomes a *Panic in Err. The results up to that point are kept, so that they are
// recorded.
func (o *Org) Judge(ctx context.Context, c identity.Caller, r Request) (v Verdict) {
	v.Time, v.day = r.Time, o.period("daily_usd_cap", r.Time)
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

// shadow evaluates the policies in shadow for a request that policy evaluated. Its errors
// are recorded, and change nothing.
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
	trial := *v // what would be rejected must change nothing of v
	for i, l := range d.Limits {
		if o.Limiter == nil || !v.Allowed() {
			return // a rejected request is not counted against a limit
		}
		code := ""
		counts, _ := counted(l.Name)
		if ofSession(l) {
			if v.session.Name == "" {
				continue
			}
			o.resolve(ctx, v)
			trial.session = v.session
			o.passed(ctx, v, nil)
		}
		switch {
		case !trial.applies(l):
			continue
		case l.Name == limitSessionSeconds:
			if v.Time.Sub(v.session.Began) >= time.Duration(l.Value)*time.Second {
				code = "session_limit_exceeded"
			}
		case l.Name == limitMaxTokens:
			if v.Call.MaxTokens > l.Value {
				code = "max_tokens_exceeded"
			}
		case policy.Money(l.Name) && trial.PriceVersion == "":
			if refused := o.price(&trial, l); refused != nil {
				code = refused.Code
			}
		}
		if code == "" && counts {
			id := "shadow:" + strconv.Itoa(i) + ":" + r.ID
			count := o.count(ctx, &trial, l)
			count.Shadow = true
			taken, err := o.Limiter.Reserve(ctx, o.ID, id, []budget.Limit{count})
			switch {
			case err != nil:
				code = "limits_unavailable"
			case !taken.OK:
				refused := o.exceeded(&trial, l, taken)
				code = refused.Code
			default:
				v.ShadowIDs = append(v.ShadowIDs, id)
				if ofSession(l) {
					o.passed(ctx, v, []budget.Limit{count})
				}
			}
		}
		if code != "" {
			v.Shadow.Effect = policy.Deny
			v.Shadow.Reasons = append(v.Shadow.Reasons, policy.Reason{Code: code, PolicyID: l.Source})
		}
	}
}

// Panic is a panic during an evaluation. Value and Stack may contain anything, even the
// text of a request, and are not part of the error's text.
type Panic struct {
	Value any
	Stack []byte
}

func (*Panic) Error() string { return "the evaluation panicked" }

// parse reads the content of the request. The bytes in v.Call.Body are exactly those that
// will be forwarded.
func (o *Org) parse(v *Verdict, r *Request) *provider.Error {
	v.BodyBytes = int64(len(r.Body))
	if v.BodyBytes > r.MaxBody {
		return tooLarge(r.MaxBody)
	}
	if r.Endpoint.Path == "" || r.Egress != "" {
		// The host's provider may have changed since the headers were read.
		if o.Providers == nil {
			return Unavailable("policy_unavailable", "Policies are not available right now. Try again shortly.")
		}
		if refused := r.Locate(o.Providers); refused != nil {
			return refused
		}
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
	if o.Tokens != nil && o.Tokens(plain) {
		return MisplacedToken("the request's body")
	}
	v.Digest = o.digest(plain)
	call, refused := provider.Parse(r.Endpoint, r.Params, r.ContentType, r.Query, plain)
	if refused != nil {
		return refused
	}
	v.Call = call
	v.Call.Headers, v.Call.Betas = r.Headers, r.Betas
	return nil
}

// digest is the keyed digest of a body for entries. It is "" without a body or without the
// org's key.
func (o *Org) digest(body []byte) string {
	if len(body) == 0 || len(o.DigestKey) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, o.DigestKey)
	mac.Write(body)
	return "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil))
}

// spent is what the agent has spent, or nil if no policy reads it or nothing is known.
func (o *Org) spent(agent string, now time.Time) *audit.Spend {
	if o.Spender == nil || !o.Policies.ReadsSpend() {
		return nil
	}
	inDay, inMonth, at := o.Spender.Spent(o.ID, agent, o.period("daily_usd_cap", now), o.period("monthly_usd_cap", now))
	if inDay == nil && inMonth == nil {
		return nil
	}
	return &audit.Spend{DayNanoUSD: inDay, MonthNanoUSD: inMonth, AgeMS: max(0, now.Sub(at).Milliseconds())}
}

// lists reports whether the model's exact name is in a list of a provider, of the prices, of
// the agent or of the key. Clients cannot change these lists.
func (o *Org) lists(c identity.Caller, model string) bool {
	return o.Providers.Lists(model) || o.Pricer != nil && o.Pricer.Lists(model) ||
		slices.Contains(c.Agent.AllowedModels, model) || slices.Contains(c.Key.AllowedModels, model)
}

// decide evaluates the caller's permissions, and prepares what follows: the provider with
// its credential and path, or our own response.
func (o *Org) decide(ctx context.Context, v *Verdict, c identity.Caller, r *Request) *provider.Error {
	v.listed = o.lists(c, v.Call.Model)
	if refused := Inactive(c, r.Time); refused != nil {
		return refused // it may have expired before the body came
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
		v.Call = o.Providers.Known(v.Call)
		v.listed = o.lists(c, v.Call.Model)
		if r.Egress != "" {
			v.Provider, _ = o.Providers.ByHost(r.Egress) // parse has found it
		} else {
			p, refused := o.Providers.Resolve(v.Call)
			if refused != nil {
				return refused
			}
			v.Provider = p
		}
	}
	if o.Sessions != nil {
		v.session = o.Sessions.Find(v.Time, o.ID, c.Agent.ID, cmp.Or(c.Key.Line, c.Key.ID), r.Session)
	}
	v.spend = o.spent(c.Agent.ID, v.Time)
	v.Decision = o.Policies.Decide(ctx, o.input(c, r, v))
	if v.Decision.Effect != policy.Allow {
		return denied(v.Decision, v.Call.Model)
	}
	v.Decision.Limits = slices.Concat(v.Decision.Limits, o.TierLimits.Bind(o.ID))
	o.raise(v)
	if len(v.Decision.Limits) > policy.MaxLimits {
		return Refuse(http.StatusForbidden, "too_many_limits", fmt.Sprintf("More than %d limits apply to this request, so it is rejected.", policy.MaxLimits))
	}
	if r.listsModels() {
		var refused *provider.Error
		v.Local, refused = o.models(c, r, v.Call.Model)
		return refused
	}
	if refused := o.capOutput(v); refused != nil {
		return refused
	}
	f, refused := v.Provider.Forward(v.Call, r.ownPath(), r.Query)
	if refused != nil {
		return refused
	}
	if f.Translated() && !r.ReadsAnswer {
		// The org got its first provider of this kind after Envoy had received the
		// instruction, with the request headers, not to send the response here.
		return Unavailable("configuration_changed", "The configuration has just changed. Try again.")
	}
	v.Forward, v.ForwardedDigest = f, o.digest(f.Body)
	return nil
}
