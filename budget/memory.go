package budget

import (
	"context"
	"sync"
	"time"
)

// Memory keeps counts in this process. Make one with NewMemory. It is safe for concurrent
// use.
//
// It keeps the keys that were used in the last two to four minutes. Older counts are full
// buckets, as are keys that it does not have.
type Memory struct {
	now func() time.Time

	mu      sync.Mutex
	epoch   time.Time     // what the durations below count from
	last    time.Duration // the latest now: the clock never goes back here
	turned  time.Duration // when young became old
	young   map[string]time.Duration
	old     map[string]time.Duration // not used since turned
	changes []time.Duration          // of one Take; kept to save the allocation
}

// NewMemory returns a Memory in which nothing was counted yet.
func NewMemory(now func() time.Time) *Memory {
	return &Memory{now: now, epoch: now(), young: map[string]time.Duration{}}
}

// Take counts one against every limit. If any limit is exceeded, it counts against none.
// Without limits the result is allowed. A key that is given twice is counted once, against
// the stricter of its limits.
func (m *Memory) Take(limits []Limit) Result {
	best := Result{OK: true, Which: -1}
	if len(limits) == 0 {
		return best
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.last, m.now().Sub(m.epoch))
	m.turn()

	changes := m.changes[:0]
	for i, l := range limits {
		next, r := take(m.last, m.tat(l.Key), l.PerMinute)
		changes = append(changes, next)
		r.Which = i
		switch {
		case i == 0, best.OK && !r.OK:
			best = r
		case best.OK != r.OK:
		case r.OK && r.Remaining < best.Remaining, !r.OK && r.RetryAfter > best.RetryAfter:
			best = r
		}
	}
	m.changes = changes
	if best.OK {
		for i, l := range limits {
			// Of equal keys the latest full bucket holds.
			m.young[l.Key] = max(m.young[l.Key], changes[i])
		}
	}
	return best
}

// Reserve is Take: a rate is counted in full when a request is admitted. It ignores the id,
// since it keeps nothing about the request. It never fails.
func (m *Memory) Reserve(_ context.Context, _ string, limits []Limit) (Result, error) {
	return m.Take(limits), nil
}

// Full returns the figures of the limit with the longest wait, if a limit is exceeded. It
// counts nothing.
func (m *Memory) Full(limits []Limit) (worst Result, full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := max(m.last, m.now().Sub(m.epoch))
	for i, l := range limits {
		if _, r := take(now, m.tat(l.Key), l.PerMinute); !r.OK && (!full || r.RetryAfter > worst.RetryAfter) {
			worst, full = r, true
			worst.Which = i
		}
	}
	return worst, full
}

// Release returns what Take counted for one request: each bucket is full again one interval
// sooner.
func (m *Memory) Release(_ context.Context, _ string, limits []Limit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	back := make(map[string]time.Duration, len(limits))
	for _, l := range limits {
		if l.PerMinute > 0 {
			back[l.Key] = max(back[l.Key], interval(l.PerMinute)) // the narrower of equal keys, as in Take
		}
	}
	for key, d := range back {
		if tat := m.tat(key); tat > d {
			m.young[key] = tat - d
		}
	}
}

// Settle changes nothing: a rate counts requests, whatever they use.
func (m *Memory) Settle(context.Context, string, []Limit, Used) {}

// Len returns how many counts are kept, for metrics. A key that is used again after two
// minutes may be counted twice.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.young) + len(m.old)
}

// tat is the state of a key; 0 is long past.
func (m *Memory) tat(key string) time.Duration {
	if tat, ok := m.young[key]; ok {
		return tat
	}
	return m.old[key]
}

// turn forgets the counts that were unused for so long that their buckets are full. A key
// that is used is in young from then on.
func (m *Memory) turn() {
	idle := m.last - m.turned
	if idle < longest {
		return
	}
	m.old, m.young, m.turned = m.young, map[string]time.Duration{}, m.last
	if idle >= 2*longest {
		m.old = nil
	}
}
