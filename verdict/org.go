package verdict

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Org is the configuration of an org for decisions. It is one snapshot: a request uses one
// Org from its first byte to its last. The zero Org rejects every request.
type Org struct {
	ID, Tier string
	// DigestKey is the key of the digests of bodies in audit entries. Without it
	// entries have no digests.
	DigestKey []byte
	Policies  *policy.Bundle     // nil denies
	Providers *provider.Registry // nil has no model
	// TierLimits are the limits of the org's tier. They apply to each request.
	TierLimits *policy.Tier
	// Raises add to USD caps, by policy.Limit.Key.
	Raises map[string][]Raise
	// Calendar names the days and months of caps. Nil is UTC.
	Calendar *budget.Calendar

	// The fields below are set by the process that evaluates, not by the org.

	// Limiter counts requests. Nil rejects each request with a limit.
	Limiter Limiter
	// Sessions distinguishes sessions. Nil rejects each request with a limit on sessions.
	Sessions *budget.Sessions
	// Shared has when sessions began on other sidecars. Nil: there are none.
	Shared SharedSessions
	// Pricer has the prices for USD caps. Nil rejects each request that a cap applies to.
	Pricer Pricer
	// Spender has what agents have spent. Nil: it is not known.
	Spender Spender
	// Tokens reports whether a workload's token is in a text, or inside its encodings. Nil: no
	// issuer of such tokens is configured.
	Tokens func([]byte) bool
	// Phase, if not nil, is called at the beginning of each phase of an evaluation ("parse",
	// "decide"), and with "" after the last one. It may measure. An error ends the
	// evaluation and becomes Verdict.Err.
	Phase func(name string) error
}

// Raise adds to one count of a USD cap in one of its periods, until a time in it.
type Raise struct {
	Period  string
	NanoUSD int64
	Begins  time.Time // zero: it holds already
	Ends    time.Time
}

// raised adds to a cap the raises that hold at a time, for its period then.
func raised(l *policy.Limit, raises []Raise, at time.Time, period string) {
	for _, r := range raises {
		if !at.Before(r.Begins) && at.Before(r.Ends) && r.Period == period && l.Value <= math.MaxInt64-r.NanoUSD {
			l.Value, l.Raised = l.Value+r.NanoUSD, l.Raised+r.NanoUSD
		}
	}
}

// period is the name of the day or month that a cap counts in at a time.
func period(c *budget.Calendar, limit string, at time.Time) (name string) {
	if kinds[limit] == budget.Day {
		name, _ = c.Day(at)
	} else {
		name, _ = c.Month(at)
	}
	return name
}

// A Limiter counts what callers use. It must be safe for concurrent use.
type Limiter interface {
	// Reserve takes the request with this id from all limits, or from none and returns the
	// one that is exceeded. It sets the figures of each limit. An error rejects the request.
	Reserve(ctx context.Context, org, id string, limits []budget.Limit) (budget.Result, error)
	// Full returns the figures of a limit that admits no request now, and takes
	// nothing. It is advice: what it admits, Reserve may still reject.
	Full(limits []budget.Limit) (budget.Result, bool)
	// Recorded notes that the decision about a request is durable, so that the audit log has
	// what the request holds.
	Recorded(id string)
	// Release gives back what Reserve took for a request that was not forwarded.
	Release(ctx context.Context, id string)
	// Settle replaces what Reserve took by what the request has used.
	Settle(ctx context.Context, id string, used budget.Used)
}

// SharedSessions has when sessions began, for all sidecars. It must be safe for concurrent use.
type SharedSessions interface {
	// Session returns the session as it began on any sidecar. Fresh: on none.
	Session(ctx context.Context, org string, x budget.Session) budget.Session
	// Began notes that a request of the session has passed.
	Began(ctx context.Context, org string, x budget.Session) budget.Session
}

// A Spender has what agents have spent. It must be safe for concurrent use.
type Spender interface {
	// Spent returns what the agent had spent in the day and the month with these names, in
	// nano-dollars, and when that was. It does not wait. An amount that is not known is nil.
	Spent(org, agent, day, month string) (inDay, inMonth *int64, at time.Time)
}

// A Pricer has the prices of providers. It must be safe for concurrent use.
type Pricer interface {
	// Cost returns the price of a request in nano-dollars, or false if it is not known.
	// asked is the requested model. answered is the model in the response.
	Cost(p provider.Provider, asked, answered string, u provider.Usage, at time.Time) (nanoUSD int64, known bool)
	// Worst is the most that a request may cost. missing is not empty if that is not known:
	// the line of the price file that would make it known.
	Worst(p provider.Provider, asked string, b provider.Bound, at time.Time) (nanoUSD int64, missing string)
	// MaxOutput is the most output tokens that the model may write, 0 if that is not known.
	MaxOutput(p provider.Provider, asked string, at time.Time) int64
	// Lists reports whether the prices have the model by its exact name.
	Lists(model string) bool
	// Version names the prices.
	Version() string
}

// ErrUnknownCaller is wrapped by the error of a lookup without a matching caller. Any other
// error means that the result is not known now.
var ErrUnknownCaller = errors.New("no caller presents this")

// begin reports the start of a phase.
func (o *Org) begin(phase string) error {
	if o.Phase == nil {
		return nil
	}
	return o.Phase(phase)
}
