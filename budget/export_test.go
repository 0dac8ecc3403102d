package budget

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Wait sets how long a request waits for the store. A slow machine must not decide a test.
func (v *Valkey) Wait(answer time.Duration) { v.answer = answer }

// Hurry makes heartbeats come as often as a test needs.
func (v *Valkey) Hurry(every time.Duration) { v.every, v.retry = every, min(every, v.retry) }

// Sidecars returns how many sidecars serve the org, as the control plane has last said.
func (v *Valkey) Sidecars(org string) int {
	o, err := v.org(org)
	if err != nil {
		return 0
	}
	return o.sidecars()
}

// Flush waits until the store has all completions.
func (v *Valkey) Flush() {
	v.wakeUp()
	for v.waiting() > 0 {
		time.Sleep(50 * time.Microsecond) // between two looks at what waits
	}
}

// Misdate makes the periods of the org those of another instant.
func (v *Valkey) Misdate(org string, at time.Time) {
	if o, err := v.org(org); err == nil {
		o.turn(at)
	}
}

// Compare compares the org's counts with the audit log.
func (v *Valkey) Compare(ctx context.Context, org string) {
	if o, err := v.org(org); err == nil {
		if _, _, err := v.here(ctx, o, 0, false); err == nil { // a heartbeat comes before it
			v.compare(ctx, o)
		}
	}
}

// RenewLate renews the org's slots, and does something between the list of those in use and
// the call to the store.
func (v *Valkey) RenewLate(ctx context.Context, org string, between func()) {
	o, err := v.org(org)
	if err != nil {
		return
	}
	v.renew(ctx, o) // from now on the store lacks none
	counts, ids := v.slotsInUse(o)
	between()
	v.extend(ctx, o, counts, ids)
}

// Pass compares once.
func (c *Comparison) Pass(ctx context.Context) { c.pass(ctx) }

// Corrected returns what was added and removed so far.
func (c *Comparison) Corrected() *prometheus.CounterVec { return c.corrected }

// Corrected returns what was added to the store and removed from it so far.
func (v *Valkey) Corrected() *prometheus.CounterVec { return v.m.corrected }

// Lose changes what is charged to a counter.
func (m *Memory) Lose(counter string, nanoUSD int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts[counter].charged -= nanoUSD
	m.accounts[counter].dirty = true
}
