package budget

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Books is what the audit log has. SharedSums is one.
type Books interface {
	// Sums returns the sums of each counter of the org.
	Sums(ctx context.Context, org string, counters []string) ([]Sum, error)
	// Shipped returns nil once the control plane has every record of the org that this
	// process and earlier ones have made so far.
	Shipped(ctx context.Context, org string) error
}

// The directions of a correction.
const (
	directionAdded   = "added"
	directionRemoved = "removed"
)

// compareEvery is the time between two comparisons of counts with the audit log.
const compareEvery = time.Minute

func newCorrected(name, help string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"direction"})
	for _, d := range []string{directionAdded, directionRemoved} {
		c.WithLabelValues(d) // alerts need it before the first correction
	}
	return c
}

// Comparison compares the USD caps of a Memory with the audit log each minute, and corrects
// what differs. Make one with NewComparison.
type Comparison struct {
	m         *Memory
	books     Books
	log       *slog.Logger
	corrected *prometheus.CounterVec
}

// NewComparison returns a Comparison. r may be nil: then no metrics are exported.
func NewComparison(m *Memory, books Books, log *slog.Logger, r prometheus.Registerer) (*Comparison, error) {
	c := &Comparison{m: m, books: books, log: log, corrected: newCorrected("aid_budget_corrected_nano_usd_total",
		"Nano-dollars by which counts in memory differed from the audit log, and were corrected. added: memory had less. removed: it had more.")}
	if r == nil {
		return c, nil
	}
	if err := r.Register(c.corrected); err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	return c, nil
}

// Run compares until ctx ends.
func (c *Comparison) Run(ctx context.Context) error {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.pass(ctx)
		}
	}
}

// moved is what had been charged to an account, and given back, at some time.
type moved struct{ in, out int64 }

// pass compares once.
func (c *Comparison) pass(ctx context.Context) {
	before := map[string]map[string]moved{} // by org and counter
	c.m.mu.Lock()
	n := 0
	for counter, a := range c.m.accounts {
		if !a.dirty || !a.known || n >= maxCompared {
			continue
		}
		if before[a.org] == nil {
			before[a.org] = map[string]moved{}
		}
		before[a.org][counter] = a.moved
		n++
	}
	c.m.mu.Unlock()
	for org, counts := range before {
		if err := c.org(ctx, org, counts); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "counts of USD caps were not compared with the audit log", "org", org, "err", err)
		}
	}
}

// org compares accounts of one org. before is what they had when they were listed.
func (c *Comparison) org(ctx context.Context, org string, before map[string]moved) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := c.books.Shipped(ctx, org); err != nil {
		return err
	}
	counters := make([]string, 0, len(before))
	for counter := range before {
		counters = append(counters, counter)
	}
	sums, err := c.books.Sums(ctx, org, counters)
	switch {
	case err != nil:
		return err
	case len(sums) != len(counters):
		return fmt.Errorf("%w: %d of %d sums came", ErrUnknownSums, len(sums), len(counters))
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	for i, counter := range counters {
		a := c.m.accounts[counter]
		if a == nil || !a.known || a.org != org {
			continue
		}
		had := a.charged
		a.correct(sums[i], before[counter])
		for direction, d := range map[string]int64{directionAdded: a.charged - had, directionRemoved: had - a.charged} {
			if d > 0 {
				c.corrected.WithLabelValues(direction).Add(float64(d))
				c.log.WarnContext(ctx, "a count of a USD cap differed from the audit log, and was corrected", "org", org, "counter", counter, "had", had, direction, d)
			}
		}
		a.dirty = a.reserved != 0 || a.moved != before[counter]
	}
	return nil
}

// correct makes what is charged agree with the sums of the audit log. The sums have all that
// was counted before, and may have what was counted since. So they give two bounds, which are
// equal at rest:
//
//   - what is charged and reserved is at least what the log has of both, less what was given
//     back since
//   - what is charged is at most what the log has of both, and what was charged since
func (a *account) correct(log Sum, before moved) {
	total := add(log.Charged, log.Reserved)
	if low := total - a.reserved - (a.moved.out - before.out); low > a.charged {
		a.charged = low
	}
	if most := add(total, a.moved.in-before.in); a.charged > most {
		a.charged = most
	}
}
