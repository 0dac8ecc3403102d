package verdict

import (
	"context"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/policy"
)

// Replay evaluates recorded requests again: by a candidate set of policies and by the
// current one. Rates are counted for each set, at the times of the requests, which must
// come in the order of the audit log. It belongs to one goroutine.
type Replay struct {
	candidate, current replayed
}

type replayed struct {
	policies *policy.Bundle
	rates    *budget.Memory
	now      time.Time
}

// NewReplay begins a replay of requests from a time on.
func NewReplay(candidate, current *policy.Bundle, start time.Time) *Replay {
	r := &Replay{}
	for _, x := range []struct {
		of       *replayed
		policies *policy.Bundle
	}{{&r.candidate, candidate}, {&r.current, current}} {
		x.of.policies, x.of.now = x.policies, start
		x.of.rates = budget.NewMemory(func() time.Time { return x.of.now }, nil)
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
	a.Candidate = r.candidate.decide(ctx, in, &a)
	a.Current = r.current.decide(ctx, in, nil)
	return a, true
}

func (r *replayed) decide(ctx context.Context, in policy.Input, a *Again) policy.Decision {
	d := r.policies.Decide(ctx, in)
	if d.Effect != policy.Allow || len(d.Limits) == 0 {
		return d
	}
	limits := make([]budget.Limit, 0, len(d.Limits))
	for _, l := range d.Limits {
		if l.Name != "rpm" {
			if a != nil {
				a.Unsimulated = append(a.Unsimulated, l.Name)
			}
			continue
		}
		limits = append(limits, budget.Limit{Key: l.Key, Max: l.Value})
	}
	if in.Request.Time.After(r.now) {
		r.now = in.Request.Time
	}
	if taken := r.rates.Take(limits); !taken.OK {
		d.Effect = policy.Deny
		d.Reasons = []policy.Reason{{Code: "rate_limit_exceeded", Message: "A rate limit is used up."}}
	}
	return d
}
