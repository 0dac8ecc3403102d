package policy

import (
	"context"
	"fmt"
	"time"
)

// maxSteps is the most expressions that an evaluation may evaluate; one that is evaluated
// again counts again. A decision takes about forty. The most that documents can reach is
// 800,000: MaxPolicies allow policies with maxConditions conditions each, all true, without
// help of an index.
const maxSteps = 2_000_000

// deadline is how long an evaluation may take that has more than clockEvery steps. It is
// for work that steps do not count. maxSteps take a second or two, so an endless evaluation
// ends by its steps. The deadline is longer, because on a busy machine the time of others
// counts.
const (
	deadline   = 5 * time.Second
	clockEvery = 1024 // steps; a power of two
)

// bound ends an evaluation that takes too long. OPA calls Cancelled before each expression
// that it evaluates, so counting the calls counts the work. An ordinary evaluation pays
// only for that, and never reads a clock.
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

// Cancel is part of OPA's interface. It has no callers.
func (b *bound) Cancel() { b.err = errTimeout }
