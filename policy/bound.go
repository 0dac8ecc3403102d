package policy

import (
	"context"
	"fmt"
	"time"
)

// maxSteps is the limit of expressions for one evaluation. An expression that is evaluated
// twice counts twice. A decision takes about 40. Documents can reach at most 800,000, with
// MaxPolicies allow policies of maxConditions conditions each, all true and not indexed.
const maxSteps = 2_000_000

// deadline limits the time of an evaluation with more than clockEvery steps. It bounds the
// work that steps do not count. maxSteps take one or two seconds, so an endless evaluation
// reaches that limit first. The deadline is longer, because on a busy machine an evaluation
// waits for a processor.
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
	err   error // why it was ended; it stays set
}

// Cancelled counts a step and reports whether the evaluation must end.
func (b *bound) Cancelled() bool {
	if b.steps++; b.steps%clockEvery == 0 || b.steps > b.e.steps {
		b.look()
	}
	return b.err != nil
}

// look checks the context and the deadline, which Cancelled does only every clockEvery steps.
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
