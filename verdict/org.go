package verdict

import (
	"context"
	"errors"
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
	// Calendar names the days and months of caps. Nil is UTC.
	Calendar *budget.Calendar

	// The fields below are set by the process that evaluates, not by the org.

	// Limiter counts requests. Nil rejects each request with a limit.
	Limiter Limiter
	// Phase, if not nil, is called at the beginning of each phase of an evaluation ("parse",
	// "decide"), and with "" after the last one. It may measure. An error ends the
	// evaluation and becomes Verdict.Err.
	Phase func(name string) error
}

// A Limiter counts what callers use. It must be safe for concurrent use.
type Limiter interface {
	// Reserve counts the request with this id against all limits. If one of them is full,
	// it counts against no limit and returns that one. An error rejects the request.
	Reserve(ctx context.Context, id string, limits []budget.Limit) (budget.Result, error)
	// Full returns the figures of a limit that admits no request now, and counts nothing.
	// It is a hint: Reserve may still reject a request that it admits.
	Full(limits []budget.Limit) (budget.Result, bool)
	// Release returns the reservation of a request that was not forwarded.
	Release(ctx context.Context, id string, limits []budget.Limit)
	// Settle replaces the reservation by the request's actual use.
	Settle(ctx context.Context, id string, limits []budget.Limit, used budget.Used)
}

// A Pricer computes the charges of providers. It must be safe for concurrent use.
type Pricer interface {
	// Cost returns the price of a request in nano-dollars, or false if it is not known.
	// asked is the requested model. answered is the model in the response.
	Cost(p provider.Provider, asked, answered string, u provider.Usage, at time.Time) (nanoUSD int64, known bool)
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
