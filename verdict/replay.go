package verdict

import (
	"context"
	"slices"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/policy"
)

// Replay evaluates recorded requests again: by a candidate set of policies and by the
// current one. Limits are counted for each set, at the times of the requests, which must
// come in the order of the audit log. A request takes from tpm, concurrent and USD caps what
// is recorded: at its decision what it reserved, and at its end what it used. It belongs to
// one goroutine.
type Replay struct {
	candidate, current replayed
}

type replayed struct {
	policies *policy.Bundle
	counts   *budget.Memory
	calendar *budget.Calendar
	raises   map[string][]Raise
	now      time.Time
}

// nothing is what was charged before the window, as far as a replay knows.
type nothing struct{}

func (nothing) Charged(_ context.Context, _ string, counters []string) ([]int64, error) {
	return make([]int64, len(counters)), nil
}

func (nothing) Alone(context.Context, string) error { return nil }

// NewReplay begins a replay of requests from a time on. The calendar is the org's. raises are
// those that held at some time since, as in Org.
func NewReplay(candidate, current *policy.Bundle, start time.Time, calendar *budget.Calendar, raises map[string][]Raise) *Replay {
	r := &Replay{}
	for _, x := range []struct {
		of       *replayed
		policies *policy.Bundle
	}{{&r.candidate, candidate}, {&r.current, current}} {
		x.of.policies, x.of.now, x.of.calendar, x.of.raises = x.policies, start, calendar, raises
		x.of.counts = budget.NewMemory(func() time.Time { return x.of.now }, nothing{})
	}
	return r
}

// Again is what a recorded request would get.
type Again struct {
	Candidate, Current policy.Decision
	// Unknown lists the attributes that the entry does not hold as policy saw them. The
	// decisions may differ from those of the request itself.
	Unknown []string
	// Unsimulated names limits that a replay cannot count.
	Unsimulated []string
}

// Changes says whether the candidate decides otherwise than the current policies.
func (a *Again) Changes() bool { return a.Candidate.Effect != a.Current.Effect }

// Next evaluates a request. ok is false for an entry that cannot be evaluated: see InputOf.
func (r *Replay) Next(ctx context.Context, d audit.Decided) (a Again, ok bool) {
	in, unknown, ok := InputOf(d)
	if !ok {
		return Again{}, false
	}
	a.Unknown = unknown
	if r.candidate.policies.ReadsSpend() || r.current.policies.ReadsSpend() {
		// What agents would have spent under other policies is not known.
		a.Unknown = append(slices.Clone(unknown), "spend.day_usd", "spend.month_usd")
	}
	a.Candidate = r.candidate.decide(ctx, in, d, &a)
	a.Current = r.current.decide(ctx, in, d, nil)
	return a, true
}

// ReadsEnds reports whether a limit of one of the sets depends on how requests end. If so,
// Ended must be called.
func (r *Replay) ReadsEnds() bool {
	return r.candidate.policies.CountsEnds() || r.current.policies.CountsEnds()
}

// Ended notes how a request ended.
func (r *Replay) Ended(ctx context.Context, s audit.Settled) {
	used := budget.Used{
		Tokens: s.Usage.InputTokens + s.Usage.OutputTokens, Counted: s.Usage.InputTokens > 0,
		NanoUSD: max(s.ChargedNanoUSD, s.CostNanoUSD), // without a cap nothing was charged
	}
	for _, x := range []*replayed{&r.candidate, &r.current} {
		if s.Time.After(x.now) {
			x.now = s.Time
		}
		x.counts.Settle(ctx, s.RequestID, used)
	}
}

func (r *replayed) decide(ctx context.Context, in policy.Input, recorded audit.Decided, a *Again) policy.Decision {
	d := r.policies.Decide(ctx, in)
	if d.Effect != policy.Allow || len(d.Limits) == 0 {
		return d
	}
	deny := func(code, message, source string) policy.Decision {
		d.Effect = policy.Deny
		d.Reasons = []policy.Reason{{Code: code, Message: message}}
		if source != policy.SourceKey {
			d.Reasons[0].PolicyID = source
		}
		return d
	}
	limits := make([]budget.Limit, 0, len(d.Limits))
	var of []policy.Limit
	holds := false
	for _, l := range d.Limits {
		kind, counts := kinds[l.Name]
		switch {
		case l.Name == limitMaxTokens:
			if in.Request.MaxTokens > l.Value {
				return deny("max_tokens_exceeded", "The request asks for more output tokens than are allowed.", l.Source)
			}
			continue
		case !counts || ofSession(l):
			if a != nil {
				a.Unsimulated = append(a.Unsimulated, l.Name)
			}
			continue
		}
		if policy.Raisable(l.Name) {
			raised(&l, r.raises[l.Key], in.Request.Time, period(r.calendar, l.Name, in.Request.Time))
		}
		c := budget.Limit{Key: l.Key, Kind: kind, Max: l.Value, Calendar: r.calendar}
		switch {
		case kind == budget.Tokens:
			c.Amount = max(1, in.Request.InputTokensEstimate)
		case kind.Money():
			c.Amount = max(1, recorded.ReservedNanoUSD) // 1: what it may cost is not recorded
		}
		holds = holds || kind != budget.Requests
		limits, of = append(limits, c), append(of, l)
	}
	if in.Request.Time.After(r.now) {
		r.now = in.Request.Time
	}
	var taken budget.Result
	if holds {
		var err error
		if taken, err = r.counts.Reserve(ctx, recorded.Org, recorded.RequestID, limits); err != nil {
			return deny("limits_unavailable", "The limits cannot be counted.", "")
		}
	} else {
		taken = r.counts.Take(limits)
	}
	if !taken.OK {
		l := of[taken.Which]
		code, message := "rate_limit_exceeded", "A rate limit is used up."
		switch {
		case kinds[l.Name].Money() && taken.Why == budget.Spent:
			code, message = "insufficient_quota", "A USD cap is spent."
		case kinds[l.Name].Money() && taken.Why == budget.Held:
			code, message = "budget_held", "A USD cap has no room while requests are in progress."
		case kinds[l.Name].Money():
			code, message = "budget_too_large", "The request may cost more than what is left of a USD cap."
		case l.Name == "concurrent":
			code, message = "concurrency_limit_exceeded", "Too many requests are in progress."
		}
		return deny(code, message, l.Source)
	}
	return d
}
