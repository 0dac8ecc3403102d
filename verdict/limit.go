package verdict

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// maxAdded is the largest cap on the output that is added to a request without one.
const maxAdded = 16_384

// kinds are the limits that are counted, by their names in policies. max_tokens looks at
// each request alone.
var kinds = map[string]budget.Kind{
	"rpm": budget.Requests, "tpm": budget.Tokens, "concurrent": budget.Slots, "daily_usd_cap": budget.Day, "monthly_usd_cap": budget.Month,
	"session_requests": budget.Uses, "session_usd_cap": budget.SessionUSD, "sessions_per_hour": budget.Starts,
}

// The limits that are not counted: each looks at one request.
const (
	limitMaxTokens      = "max_tokens"
	limitSessionSeconds = "session_seconds"
)

// counted reports whether a limit of this name is counted. A name that is not known is not
// supported.
func counted(name string) (counts, supported bool) {
	_, counts = kinds[name]
	return counts, counts || name == limitMaxTokens || name == limitSessionSeconds
}

// ofPolicy reports whether a policy sets the limit.
func ofPolicy(l policy.Limit) bool {
	return l.Source != policy.SourceKey && l.Source != policy.SourceTier
}

// ofSession reports whether a limit is about sessions.
func ofSession(l policy.Limit) bool {
	return l.Name == "sessions_per_hour" || slices.Contains(strings.Split(l.Per, "+"), "session")
}

// Full rejects a caller whose key has used up its rate, and takes nothing. It looks only at
// the key's own limit: which others apply is decided with the body.
func (o *Org) Full(c identity.Caller) (v Verdict, full bool) {
	if o.Limiter == nil || c.Key.RateLimit <= 0 {
		return v, false
	}
	l := policy.KeyRate(c.Key.ID, c.Key.RateLimit)
	r, full := o.Limiter.Full([]budget.Limit{{Key: l.Key, Max: l.Value}})
	if !full {
		return v, false
	}
	v.Decision.Limits, v.counted = []policy.Limit{l}, []int{0}
	v.Counts = []budget.Limit{{Key: l.Key, Max: l.Value, Left: r.Remaining, Reset: r.Reset}}
	v.Refusal, v.Taken = o.exceeded(&v, l, r), r
	return v, true
}

// applies reports whether a limit applies to the call. What a provider does not charge for
// is never rejected by a cap, and what has no output not by max_tokens.
func (v *Verdict) applies(l policy.Limit) bool {
	switch {
	case policy.Money(l.Name):
		return v.Call.Endpoint.Charges(v.Provider.Kind)
	case l.Name == "tpm":
		return v.Call.Endpoint.Bills
	case l.Name == limitMaxTokens:
		return v.Call.Endpoint.Writes()
	}
	return true
}

// capOutput limits the output of a request that sets no limit, if one of the decision's
// limits depends on the output. A request that sets a larger one than a policy allows is
// rejected: what the caller asked for is never lowered.
func (o *Org) capOutput(v *Verdict) *provider.Error {
	var narrowest *policy.Limit
	depends := false
	for i := range v.Decision.Limits {
		l := &v.Decision.Limits[i]
		switch {
		case !v.applies(*l):
		case l.Name == limitMaxTokens:
			depends = true
			if narrowest == nil || l.Value < narrowest.Value {
				narrowest = l
			}
		case l.Name == "tpm" || policy.Money(l.Name):
			depends, v.Call.WantUsage = true, true
		}
	}
	if !depends || !v.Call.Endpoint.Writes() {
		return nil
	}
	if v.Call.Capped() {
		switch {
		case narrowest != nil && v.Call.MaxTokens > narrowest.Value:
			return v.denies(*narrowest, Refuse(http.StatusForbidden, "max_tokens_exceeded",
				fmt.Sprintf("The request asks for up to %d output tokens. At most %d are allowed.", v.Call.MaxTokens, narrowest.Value)))
		case v.Call.MaxTokens == 0:
			return Refuse(http.StatusBadRequest, "invalid_max_tokens", "A limit on tokens or cost applies to this request, and providers read a limit of 0 output tokens differently. Ask for at least 1.")
		}
		return nil
	}
	most := int64(maxAdded)
	if narrowest != nil {
		most = min(most, narrowest.Value)
	}
	if o.Pricer != nil {
		if n := o.Pricer.MaxOutput(v.Provider, v.Call.Model, v.Time); n > 0 {
			most = min(most, n)
		}
	}
	if n := v.Provider.MaxTokens(); n > 0 {
		most = min(most, n)
	}
	v.Call.Cap = most
	return nil
}

// raise adds the raises in force to the caps of the decision.
func (o *Org) raise(v *Verdict) {
	if len(o.Raises) == 0 {
		return
	}
	for i := range v.Decision.Limits {
		l := &v.Decision.Limits[i]
		if !ofPolicy(*l) || !policy.Raisable(l.Name) {
			continue
		}
		raised(l, o.Raises[l.Key], v.Time, o.period(l.Name, v.Time))
	}
}

// period is the period of a cap at a time.
func (o *Org) period(name string, at time.Time) string { return period(o.Calendar, name, at) }

// denies notes that a limit of a policy is the reason for a rejection.
func (v *Verdict) denies(l policy.Limit, e *provider.Error) *provider.Error {
	v.Decision.Effect = policy.Deny
	r := policy.Reason{Code: e.Code}
	if ofPolicy(l) {
		r.PolicyID = l.Source
	}
	v.Decision.Reasons = append(v.Decision.Reasons, r)
	return e
}

// limit takes this request from every limit that the decision names.
func (o *Org) limit(ctx context.Context, v *Verdict, id string) *provider.Error {
	if len(v.Decision.Limits) == 0 {
		return nil
	}
	sessions := false
	for i, l := range v.Decision.Limits {
		counts, supported := counted(l.Name)
		if !supported || l.Key == "" {
			// A limit that cannot be enforced rejects.
			return Refuse(http.StatusForbidden, "policy_error", "The limit "+strconv.Quote(l.Name)+" cannot be enforced by this version.")
		}
		if ofSession(l) {
			if sessions = true; v.session.Name == "" {
				return Unavailable("limits_unavailable", "Limits cannot be counted right now. Try again shortly.")
			}
			o.resolve(ctx, v)
		}
		if age := v.Time.Sub(v.session.Began); l.Name == limitSessionSeconds && age >= time.Duration(l.Value)*time.Second {
			return v.denies(l, Refuse(http.StatusTooManyRequests, "session_limit_exceeded",
				fmt.Sprintf("The session may last %d s, and has lasted %d s. Begin a new session.", l.Value, int64(age.Seconds()))))
		}
		if !counts || !v.applies(l) {
			continue
		}
		if policy.Money(l.Name) && v.PriceVersion == "" {
			if refused := o.price(v, l); refused != nil {
				return refused
			}
		}
		v.Counts = append(v.Counts, o.count(ctx, v, l))
		v.counted = append(v.counted, i)
	}
	if len(v.Counts) == 0 {
		if sessions {
			o.passed(ctx, v, nil)
		}
		return nil
	}
	if o.Limiter == nil {
		return Unavailable("limits_unavailable", "Limits cannot be counted right now. Try again shortly.")
	}
	taken, err := o.Limiter.Reserve(ctx, o.ID, id, v.Counts)
	switch {
	case errors.Is(err, budget.ErrStoreAway) && slices.ContainsFunc(v.Counts, func(l budget.Limit) bool { return l.Kind.Money() }):
		v.fails(err)
		return Unavailable("budget_store_unavailable", "A USD cap applies, and the store that counts it is not available right now. Try again shortly.")
	case errors.Is(err, budget.ErrStoreRequired):
		v.fails(err)
		return Unavailable("budget_store_required", "A USD cap applies, and several gateways serve this organization without a shared store. An administrator must set --redis, or run one of them only.")
	case errors.Is(err, budget.ErrUnknownSums):
		v.fails(err)
		return Unavailable("budget_unavailable", "A USD cap applies, and what was charged in its period is not known yet. Try again shortly.")
	case err != nil:
		v.fails(err)
		return Unavailable("limits_unavailable", "Limits cannot be counted right now. Try again shortly.")
	case !taken.OK:
		v.Taken = taken
		l := v.Decision.Limits[v.counted[taken.Which]]
		return v.denies(l, o.exceeded(v, l, taken))
	}
	for n, i := range v.counted {
		if l := v.Decision.Limits[i]; l.Raised > 0 && v.Counts[n].Period != o.period(l.Name, v.Time) {
			// A new period has just begun by the clock of the counts. The raise was for the old one.
			o.Limiter.Release(ctx, id)
			return Unavailable("limits_unavailable", "A period of a USD cap has just ended. Try again.")
		}
	}
	v.Taken, v.Reserved = taken, true
	if sessions {
		o.passed(ctx, v, v.Counts)
	}
	return nil
}

// resolve finds out when a session that is new here began on other sidecars.
func (o *Org) resolve(ctx context.Context, v *Verdict) {
	if o.Shared == nil || v.asked || !v.session.Fresh {
		return
	}
	v.asked = true
	v.session = o.Shared.Session(ctx, o.ID, v.session)
}

// started reports whether the start of the session has been counted against a limit, here or
// on another sidecar.
func (o *Org) started(ctx context.Context, v *Verdict, limit string) bool {
	if o.Sessions.Started(v.Time, v.session, limit) {
		return true
	}
	return o.Shared != nil && !o.Shared.Session(ctx, o.ID, v.startOf(limit)).Fresh
}

// startOf is the start of the session for a limit, as a shared store has it.
func (v *Verdict) startOf(limit string) budget.Session {
	return budget.Session{Name: v.session.Name + "@" + strconv.FormatInt(v.session.Began.UnixMicro(), 10) + " " + limit, Named: true, Began: v.session.Began, Fresh: true}
}

// passed notes that a request of the session has passed, which counts took.
func (o *Org) passed(ctx context.Context, v *Verdict, counts []budget.Limit) {
	var starts []string
	for i := range counts {
		if l := &counts[i]; l.Kind == budget.Starts {
			starts = append(starts, l.Key)
			if l.Amount > 0 && o.Shared != nil {
				o.Shared.Began(ctx, o.ID, v.startOf(l.Key))
			}
		}
	}
	if o.Sessions.Passed(v.Time, v.session, starts...) && o.Shared != nil {
		o.Shared.Began(ctx, o.ID, v.session)
	}
}

// count is a limit as it is counted, and what the request takes from it.
func (o *Org) count(ctx context.Context, v *Verdict, l policy.Limit) budget.Limit {
	c := budget.Limit{Key: l.Key, Kind: kinds[l.Name], Max: l.Value, Calendar: o.Calendar}
	switch {
	case c.Kind == budget.Uses:
		c.Session = v.session
	case c.Kind == budget.Starts:
		if !o.started(ctx, v, l.Key) {
			c.Amount = 1
		}
	case c.Kind == budget.Tokens:
		c.Amount = max(1, v.Call.InputTokensEstimate)
	case c.Kind.Money():
		c.Amount, c.Session = v.worst, v.session
	}
	return c
}

// fails notes why limits cannot be counted.
func (v *Verdict) fails(err error) {
	v.Decision.Effect = policy.Deny
	v.Decision.Err = fmt.Errorf("counting limits: %w", err)
}

// price finds out what the request may cost at most, for the cap l. A request without such
// a figure is rejected.
func (o *Org) price(v *Verdict, l policy.Limit) *provider.Error {
	switch tool := v.Call.Hosted(); {
	case tool != "":
		return v.denies(l, Refuse(http.StatusForbidden, "unbounded_cost", "A USD cap applies, and nothing bounds what the tool "+strconv.Quote(provider.Clip(tool, 128))+
			" costs, which the provider runs itself. Leave the tool out."))
	case !v.Call.Endpoint.Metered():
		return v.denies(l, Refuse(http.StatusForbidden, "price_unknown", "A USD cap applies, and this operation is not charged by tokens, so its cost is not known before the request."))
	case o.Pricer == nil:
		return v.denies(l, Refuse(http.StatusForbidden, "price_unknown", "A USD cap applies, and this gateway has no prices."))
	}
	most := v.Call.MaxTokens
	if v.Call.Cap > 0 {
		most = v.Call.Cap
	}
	n, missing := o.Pricer.Worst(v.Provider, v.Call.Model, v.Call.Bound(v.Forward, most), v.Time)
	if missing != "" {
		return v.denies(l, Refuse(http.StatusForbidden, "price_unknown", "A USD cap applies, and the price of this model is not known. An administrator must add this line to the file of --prices: "+missing))
	}
	v.worst, v.PriceVersion = n, o.Pricer.Version()
	return nil
}

// exceeded is the error for a request over the limit l. A limit that others share shows its
// name and when it is full again, and no figures.
func (o *Org) exceeded(v *Verdict, l policy.Limit, r budget.Result) *provider.Error {
	e := o.exceeds(v, l, r)
	e.RetryAfter, e.Hopeless = r.RetryAfter, r.RetryAfter == 0
	return e
}

func (o *Org) exceeds(v *Verdict, l policy.Limit, r budget.Result) *provider.Error {
	const status = http.StatusTooManyRequests
	again := fmt.Sprintf(" Try again in %ds.", Seconds(r.RetryAfter))
	switch l.Name {
	case "rpm":
		return Refuse(status, "rate_limit_exceeded", fmt.Sprintf("Rate limit reached: %d requests per minute.", r.Limit)+again)
	case "tpm":
		if r.Why == budget.TooLarge {
			return Refuse(status, "rate_limit_exceeded", fmt.Sprintf("The request is larger than the limit of %d tokens per minute, so it never passes. Send less.", r.Limit))
		}
		return Refuse(status, "rate_limit_exceeded", fmt.Sprintf("Rate limit reached: %d tokens per minute.", r.Limit)+again)
	case "session_requests":
		return Refuse(status, "session_limit_exceeded", fmt.Sprintf("The session may have %d requests, and has had them. Begin a new session.", r.Limit))
	case "sessions_per_hour":
		return Refuse(status, "rate_limit_exceeded", fmt.Sprintf("Rate limit reached: %d new sessions per hour.", r.Limit)+again)
	case "concurrent":
		return Refuse(status, "concurrency_limit_exceeded", fmt.Sprintf("Limit reached: %d requests in progress at a time.", r.Limit)+again)
	}
	name := "daily USD cap"
	switch l.Name {
	case "monthly_usd_cap":
		name = "monthly USD cap"
	case "session_usd_cap":
		name = "session's USD cap"
	}
	reset := fmt.Sprintf(" It begins anew at %s.", v.Time.Add(r.Reset).UTC().Round(time.Second).Format(time.RFC3339))
	figures := ""
	if l.Per == "agent" || l.Per == "agent.id" || l.Per == "key" {
		figures = fmt.Sprintf(" The cap is $%s, $%s is left, and this request may cost $%s.", USD(r.Limit), USD(r.Remaining), USD(v.worst))
	}
	switch r.Why {
	case budget.Spent:
		return Refuse(status, "insufficient_quota", "The "+name+" is spent."+figures+reset)
	case budget.Held:
		return Refuse(status, "budget_held", "The "+name+" has no room until requests in progress have ended."+figures+reset+again)
	}
	fits := " It does not fit with any max_tokens: send less."
	if n := o.fitting(v, r.Fits); n > 0 {
		fits = fmt.Sprintf(" With max_tokens of %d it would fit.", n)
	}
	return Refuse(status, "budget_too_large", "This request may cost more than what is left of the "+name+"."+figures+fits+reset)
}

// fitting is the largest cap on the output with which the request may cost at most nano, or
// 0 without one.
func (o *Org) fitting(v *Verdict, nano int64) int64 {
	if !v.Call.Endpoint.Writes() {
		return 0
	}
	cost := func(n int64) int64 {
		worst, _ := o.Pricer.Worst(v.Provider, v.Call.Model, v.Call.Bound(v.Forward, n), v.Time)
		return worst
	}
	low, high := int64(0), max(v.Call.MaxTokens, v.Call.Cap)
	for low < high {
		middle := low + (high-low+1)/2
		if cost(middle) <= nano {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low
}

// USD is an amount of nano-dollars in dollars, exactly.
func USD(nano int64) string {
	sign := ""
	if nano < 0 {
		sign, nano = "-", -nano
	}
	s := fmt.Sprintf("%d.%09d", nano/1_000_000_000, nano%1_000_000_000)
	whole, fraction, _ := strings.Cut(s, ".")
	return sign + whole + "." + fraction[:2] + strings.TrimRight(fraction[2:], "0")
}

// limits are the limits of the decision as an entry has them.
func (v *Verdict) limits() (out []audit.Limit) {
	for i, l := range v.Decision.Limits {
		e := audit.Limit{Source: l.Source, Name: l.Name, Value: l.Value, Limit: l.Name, Per: l.Per, Subject: l.Subject, Max: l.Value, Left: l.Value, Raised: l.Raised}
		if ofPolicy(l) {
			e.PolicyID = l.Source
		}
		for n, of := range v.counted {
			if c := &v.Counts[n]; of == i {
				e.Counter, e.Period, e.Left = c.Counter(), c.Period, c.Left
			}
		}
		switch l.Name {
		case limitMaxTokens:
			e.Left -= max(v.Call.MaxTokens, v.Call.Cap)
		case limitSessionSeconds:
			e.Left -= int64(v.Time.Sub(v.session.Began).Seconds())
		}
		out = append(out, e)
	}
	return out
}

// capped reports whether a USD cap counts the request.
func (v *Verdict) capped() bool {
	for i := range v.Counts {
		if v.Counts[i].Kind.Money() {
			return v.Reserved
		}
	}
	return false
}

// charge is what the request is charged under USD caps, and why. cost is what it cost, if
// that is known. forwarded says that the recorded decision allowed the request.
func (v *Verdict) charge(e Ending, u provider.Usage, forwarded bool, cost int64, priced bool, pricer Pricer) (nanoUSD int64, basis string) {
	switch {
	case !v.capped():
		return 0, ""
	case !forwarded || e.NotSent:
		return 0, audit.BasisNothing
	case e.Outcome == OutcomeCompleted && priced && v.final(e, u):
		return cost, audit.BasisUsage
	case e.ProviderStatus >= 300 && u.Source == absent:
		return 0, audit.BasisError
	case e.ProviderStatus == 0 || e.ProviderStatus >= 300 || e.Outcome == OutcomeCompleted && !priced || !v.Call.Stream || u.Contradicts:
		return v.worst, audit.BasisReservation
	}
	if u.InputTokens == 0 && v.Call.Bound(v.Forward, 0).Opaque {
		// Nothing bounds what the provider has read. A client must not choose when it is charged.
		return v.worst, audit.BasisReservation
	}
	// A stream without its final usage. Its last report is up to some event.
	if u.Service == "" {
		u.Service = e.Service
	}
	far := u
	far.Source = "provider"
	if far.InputTokens == 0 { // each request has input
		far.InputTokens = v.Call.InputTokensEstimate
	}
	far.OutputTokens = max(far.OutputTokens, e.OutputSeen)
	n, known := pricer.Cost(v.Provider, v.Call.Model, e.ResponseModel, far, e.Began)
	if !known {
		return v.worst, audit.BasisReservation
	}
	if u.Source != absent {
		if m, known := pricer.Cost(v.Provider, v.Call.Model, e.ResponseModel, u, e.Began); known {
			n = max(n, m)
		}
	}
	return max(cost, min(n, v.worst)), audit.BasisSeen
}

// final reports whether the usage of a completed response is that of its end. Some servers
// send zeros or old figures with each event, and the true ones after the last finish reason.
// A client may close the connection between the two.
func (v *Verdict) final(e Ending, u provider.Usage) bool {
	return !v.Call.Stream || u.InputTokens > 0 && u.OutputTokens >= e.OutputSeen
}

// empty reports whether the usage of a stream has no figure of what was used: it is absent, or
// zero although there was output.
func (v *Verdict) empty(e Ending, u provider.Usage) bool {
	return v.Call.Stream && u.OutputTokens == 0 && (u.InputTokens == 0 || e.OutputSeen > 0)
}

// Meters reports whether a limit depends on the output that passes, if the response has no
// final usage.
func (v *Verdict) Meters() bool {
	return v.PriceVersion != "" || slices.ContainsFunc(v.Counts, func(l budget.Limit) bool { return l.Kind == budget.Tokens })
}

// Used is what a forwarded request has used of its limits. Without final usage, its tokens are
// the estimate of the input and the output that passed. nanoUSD is its charge.
func (v *Verdict) Used(e Ending, nanoUSD int64) budget.Used {
	u := e.Usage
	used := budget.Used{Tokens: u.InputTokens + u.OutputTokens, Counted: u.Source == "provider" || e.OutputSeen > 0, NanoUSD: nanoUSD}
	if u.InputTokens == 0 || e.Outcome != OutcomeCompleted || !v.final(e, u) {
		used.Tokens = max(u.InputTokens, v.Call.InputTokensEstimate, 1) + max(u.OutputTokens, e.OutputSeen)
	}
	return used
}

// absent is the source of usage that is not known.
const absent = "absent"
