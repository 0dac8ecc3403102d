package verdict

import (
	"context"
	"errors"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Org is what an org decides with. It is one snapshot: a request is decided with
// one Org from its first byte to its last. The zero Org rejects every request.
type Org struct {
	ID, Tier string
	// DigestKey is the key of the digests of bodies in audit entries. Without it
	// entries have no digests.
	DigestKey []byte
	Policies  *policy.Bundle     // nil denies
	Providers *provider.Registry // nil has no model

	// What follows is set by the process that evaluates, not by the org.

	// Limiter counts requests. Nil rejects each request that a limit applies to.
	Limiter Limiter
	// Phase, if not nil, is called as each phase of an evaluation begins ("parse",
	// "decide"), and with "" when the last one has ended. It may measure. An error
	// ends the evaluation and becomes Verdict.Err.
	Phase func(name string) error
}

// A Limiter counts what callers use. It must be safe for concurrent use.
type Limiter interface {
	// Reserve takes the request with this id from all limits, or from none and
	// returns the one that is full. An error rejects the request.
	Reserve(ctx context.Context, id string, limits []budget.Limit) (budget.Result, error)
	// Full returns the figures of a limit that admits no request now, and takes
	// nothing. It is advice: what it admits, Reserve may still reject.
	Full(limits []budget.Limit) (budget.Result, bool)
	// Release gives back what Reserve took for a request that was not forwarded.
	Release(ctx context.Context, id string, limits []budget.Limit)
	// Settle replaces what Reserve took by what the request has used.
	Settle(ctx context.Context, id string, limits []budget.Limit, used budget.Used)
}

// A Pricer knows what providers charge. It must be safe for concurrent use.
type Pricer interface {
	// Cost is the price of a request in nano-dollars, or false if it is not known.
	// asked is the requested model, answered the model that the response names.
	Cost(p provider.Provider, asked, answered string, u provider.Usage, at time.Time) (nanoUSD int64, known bool)
}

// ErrUnknownCaller is what the error of a lookup wraps if no caller presents that.
// Any other error means that it is not known now.
var ErrUnknownCaller = errors.New("no caller presents this")

// begin reports the start of a phase.
func (o *Org) begin(phase string) error {
	if o.Phase == nil {
		return nil
	}
	return o.Phase(phase)
}
