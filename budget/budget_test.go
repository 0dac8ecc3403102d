package budget_test

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/budget"
)

type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time {
	return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(c.ns.Load()))
}
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func one(key string, perMinute int64) []budget.Limit {
	return []budget.Limit{{Key: key, Max: perMinute}}
}

func TestOneLimit(t *testing.T) {
	c := &clock{}
	m := budget.NewMemory(c.now, nil)
	for i, step := range []struct {
		wait time.Duration
		want budget.Result
	}{
		{0, budget.Result{OK: true, Limit: 3, Remaining: 2, Reset: 20 * time.Second}},
		{0, budget.Result{OK: true, Limit: 3, Remaining: 1, Reset: 40 * time.Second}},
		{0, budget.Result{OK: true, Limit: 3, Remaining: 0, Reset: time.Minute}},
		{0, budget.Result{Limit: 3, Reset: time.Minute, RetryAfter: 20 * time.Second}},
		{20*time.Second - 1, budget.Result{Limit: 3, Reset: 40*time.Second + 1, RetryAfter: 1}},
		{1, budget.Result{OK: true, Limit: 3, Remaining: 0, Reset: time.Minute}},
		{40 * time.Second, budget.Result{OK: true, Limit: 3, Remaining: 1, Reset: 40 * time.Second}},
		{-time.Hour, budget.Result{OK: true, Limit: 3, Remaining: 0, Reset: time.Minute}}, // the clock jumps back
		{0, budget.Result{Limit: 3, Reset: time.Minute, RetryAfter: 20 * time.Second}},
		{25 * time.Hour, budget.Result{OK: true, Limit: 3, Remaining: 2, Reset: 20 * time.Second}},
	} {
		c.advance(step.wait)
		if got := m.Take(one("key:key_1", 3)); got != step.want {
			t.Fatalf("step %d: %+v, want %+v", i, got, step.want)
		}
	}
}

func TestNoLimits(t *testing.T) {
	m := budget.NewMemory((&clock{}).now, nil)
	if r := m.Take(nil); !r.OK || r.Which != -1 {
		t.Errorf("no limits: %+v", r)
	}
	for _, n := range []int64{0, -1, -1 << 63} {
		if r := m.Take(one("k", n)); r.OK || r.RetryAfter != time.Minute {
			t.Errorf("%d per minute: %+v", n, r)
		}
	}
	if (budget.Result{}).OK {
		t.Error("the zero Result allows")
	}
}

// A rejected request is counted against no limit, whichever limit rejects it.
func TestAllOrNone(t *testing.T) {
	m := budget.NewMemory((&clock{}).now, nil)
	wide, narrow, never := budget.Limit{Key: "wide", Max: 10}, budget.Limit{Key: "narrow", Max: 2}, budget.Limit{Key: "never"}
	for _, order := range [][]budget.Limit{{wide, narrow}, {narrow, wide}} {
		if r := m.Take(order); !r.OK || order[r.Which].Key != narrow.Key {
			t.Fatalf("%+v: the figures are not the narrow limit's", r)
		}
	}
	for _, order := range [][]budget.Limit{{wide, narrow}, {narrow, wide}, {never, wide}, {wide, never}, {wide, narrow, never}} {
		if r := m.Take(order); r.OK || order[r.Which].Key == wide.Key || r.RetryAfter <= 0 {
			t.Fatalf("%+v", r)
		}
	}
	if r := m.Take([]budget.Limit{narrow, never}); r.Which != 1 {
		t.Errorf("%+v: the figures are not those of the longest wait", r)
	}
	if r := m.Take([]budget.Limit{wide}); r.Remaining != 7 {
		t.Errorf("%d left after two that passed and one of its own, want 7", r.Remaining)
	}
}

func TestOneKeyTwice(t *testing.T) {
	m := budget.NewMemory((&clock{}).now, nil)
	twice := []budget.Limit{{Key: "k", Max: 4}, {Key: "k", Max: 2}}
	if r := m.Take(twice); !r.OK || r.Limit != 2 || r.Remaining != 1 {
		t.Errorf("first: %+v", r)
	}
	if r := m.Take(twice); !r.OK {
		t.Errorf("second: %+v", r)
	}
	if r := m.Take(twice); r.OK {
		t.Errorf("third: %+v", r)
	}
}

// No window of a minute lets more than 2n requests pass, and a burst is at most n. A caller
// that waits for RetryAfter passes.
func TestRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &clock{}
		m := budget.NewMemory(c.now, nil)
		n := rapid.OneOf(rapid.Int64Range(1, 50), rapid.Int64Range(1, 1_000_000)).Draw(t, "n")
		var passed []time.Duration
		var now time.Duration
		for range rapid.IntRange(1, 200).Draw(t, "asked") {
			wait := time.Duration(rapid.Int64Range(0, int64(3*time.Minute)/n).Draw(t, "wait"))
			now += wait
			c.advance(wait)
			r := m.Take(one("k", n))
			if r.OK {
				passed = append(passed, now)
				if r.Remaining < 0 || r.Remaining >= n {
					t.Fatalf("%d of %d left", r.Remaining, n)
				}
				continue
			}
			if r.RetryAfter <= 0 || r.RetryAfter > time.Minute || r.Remaining != 0 {
				t.Fatalf("refused with %+v", r)
			}
			if rapid.Bool().Draw(t, "obedient") {
				now += r.RetryAfter
				c.advance(r.RetryAfter)
				if r := m.Take(one("k", n)); !r.OK {
					t.Fatalf("refused again after waiting: %+v", r)
				}
				passed = append(passed, now)
			}
		}
		// The k-th of any run of passes comes no sooner than the rate allows
		// after a burst of n.
		for i := range passed {
			for j := i + int(min(n, int64(len(passed)))); j < len(passed); j++ {
				if least := time.Duration(int64(j-i)-n+1) * (time.Minute / time.Duration(n)); passed[j]-passed[i] < least {
					t.Fatalf("%d passed in %v with %d a minute", j-i+1, passed[j]-passed[i], n)
				}
			}
		}
	})
}

// A burst is exactly n, also where a minute is not n whole nanoseconds.
func TestBurst(t *testing.T) {
	for _, n := range []int64{1, 7, 60, 99_991} {
		m := budget.NewMemory((&clock{}).now, nil)
		for i := range n {
			if r := m.Take(one("k", n)); !r.OK || r.Remaining != n-i-1 {
				t.Fatalf("%d a minute, number %d: %+v", n, i, r)
			}
		}
		if r := m.Take(one("k", n)); r.OK {
			t.Errorf("%d a minute: one more passes", n)
		}
	}
	for _, n := range []int64{1 << 62, 1<<63 - 1, int64(time.Minute) + 1} {
		m := budget.NewMemory((&clock{}).now, nil)
		if r := m.Take(one("k", n)); !r.OK || r.Limit != n {
			t.Errorf("%d a minute: %+v", n, r)
		}
	}
}

func TestForgets(t *testing.T) {
	c := &clock{}
	m := budget.NewMemory(c.now, nil)
	for i := range 200_000 {
		c.advance(10 * time.Millisecond) // 33 minutes in all
		m.Take(one("key:"+strconv.Itoa(i), 1))
		m.Take(one("steady", 1_000_000))
	}
	// What was used in the last four minutes: 24,000 keys and the steady one, twice.
	if n := m.Len(); n > 24_002 {
		t.Errorf("%d counts are kept", n)
	}
	if r := m.Take(one("key:199999", 1)); r.OK {
		t.Error("a fresh count was forgotten")
	}
	c.advance(time.Hour)
	m.Take(nil)
	m.Take(one("x", 1))
	if n := m.Len(); n != 1 {
		t.Errorf("%d counts are kept after an hour", n)
	}
}

func TestConcurrent(t *testing.T) {
	m := budget.NewMemory((&clock{}).now, nil)
	var passed atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				if m.Take([]budget.Limit{{Key: "shared", Max: 1000}, {Key: fmt.Sprint(g, i%3), Max: 1000}}).OK {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := passed.Load(); n != 1000 {
		t.Errorf("%d passed, want 1000", n)
	}
}

func BenchmarkTake(b *testing.B) {
	m := budget.NewMemory(time.Now, nil)
	limits := []budget.Limit{{Key: "key:key_1", Max: 1 << 40}, {Key: "policy:pol_1:ag_1", Max: 1 << 40}}
	b.ReportAllocs()
	for b.Loop() {
		m.Take(limits)
	}
}
