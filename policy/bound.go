package policy

import (
	"context"
	"fmt"
	"time"
)

// maxSteps is how many expressions an evaluation may come to, over and over ones
// counted each time. A decision takes some forty; one among MaxPolicies allow policies
// of maxConditions conditions each, all of which hold and none of which an index
// helps with, takes 800,000.
const maxSteps = 2_000_000

// deadline is how long an evaluation may take that is longer than clockEvery steps. It
// is for what steps do not see. maxSteps take a second or two, so that it is steps that
// end what does not end, and not a machine that is busy: the time in which others run
// counts.
const (
	deadline   = 5 * time.Second
	clockEvery = 1024 // steps; a power of two
)

// bound ends an evaluation that takes too long. OPA asks Cancelled before each
// expression that it evaluates, so counting the questions is counting the work; it is
// all that an ordinary evaluation pays, which never comes to read a clock.
//
// It is OPA's topdown.Cancel, for one evaluation, in its goroutine.
type bound struct {
	e     *engine
	ctx   context.Context
	steps int
	until time.Time
	err   error // why it was ended, for good
}

// Cancelled counts a step and says whether the evaluation must end.
func (b *bound) Cancelled() bool {
	if b.steps++; b.steps%clockEvery == 0 || b.steps > b.e.steps {
		b.look()
	}
	return b.err != nil
}

// look is what Cancelled does seldom.
func (b *bound) look() {
	switch {
	case b.err != nil:
	case b.steps > b.e.steps:
		b.err = errSteps
	case b.ctx.Err() != nil:
		b.err = fmt.Errorf("%w: %w", errTimeout, b.ctx.Err())
	case b.until.IsZero():
		b.until = b.e.now().Add(b.e.deadline)
	case !b.e.now().Before(b.until):
		b.err = errTimeout
	}
}

// Cancel is of OPA's interface. Nobody calls it.
func (b *bound) Cancel() { b.err = errTimeout }
