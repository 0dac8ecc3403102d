package budget_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/budget"
)

// ledger is Sums of a control plane.
type ledger struct {
	mu    sync.Mutex
	sums  map[string]int64
	asked map[string]int
	err   error
	alone error
	block chan struct{} // Charged waits until it is closed
}

func (l *ledger) Charged(ctx context.Context, _ string, counters []string) ([]int64, error) {
	if l.block != nil {
		select {
		case <-l.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	out := make([]int64, len(counters))
	for i, c := range counters {
		if l.asked == nil {
			l.asked = map[string]int{}
		}
		l.asked[c]++
		out[i] = l.sums[c]
	}
	return out, nil
}

func (l *ledger) Alone(context.Context, string) error { return l.alone }

func month(key string, most, amount int64) []budget.Limit {
	return []budget.Limit{{Key: key, Kind: budget.Month, Max: most, Amount: amount}}
}

// A request under a cap passes through all states: it is held, charged, spent, too large,
// and free again in the next month.
func TestCap(t *testing.T) {
	c := &clock{}
	l := &ledger{sums: map[string]int64{"cap@2026-07": 40}}
	m := budget.NewMemory(c.now, l)
	reserve := func(id string, amount int64) budget.Result {
		t.Helper()
		r, err := m.Reserve(t.Context(), "org_1", id, month("cap", 100, amount))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	end := 30*24*time.Hour + 12*time.Hour // from noon on July 1
	for _, step := range []struct {
		id     string
		amount int64
		want   budget.Result
	}{
		{"a", 61, budget.Result{Limit: 100, Remaining: 60, Reset: end, Why: budget.TooLarge, Fits: 60}},
		{"a", 35, budget.Result{OK: true, Which: -1}},
		{"a", 35, budget.Result{OK: true, Which: -1}}, // again: it takes nothing more
		{"b", 26, budget.Result{Limit: 100, Remaining: 25, Reset: end, Why: budget.Held, RetryAfter: time.Second}},
		{"b", 25, budget.Result{OK: true, Which: -1}},
		{"c", 1, budget.Result{Limit: 100, Reset: end, Why: budget.Held, RetryAfter: time.Second}},
		{"free", 0, budget.Result{OK: true, Which: -1}},
	} {
		if got := reserve(step.id, step.amount); got != step.want {
			t.Fatalf("%s %d: %+v, want %+v", step.id, step.amount, got, step.want)
		}
	}
	m.Settle(t.Context(), "a", budget.Used{NanoUSD: 10})
	m.Settle(t.Context(), "a", budget.Used{NanoUSD: 10}) // once only
	if r := reserve("d", 26); r.Why != budget.Held || r.Remaining != 25 {
		t.Errorf("after a settlement: %+v", r)
	}
	m.Settle(t.Context(), "b", budget.Used{NanoUSD: 70}) // an overrun is counted in full
	if r := reserve("d", 1); r.OK || r.Why != budget.Spent || r.RetryAfter != 0 || r.Reset != end {
		t.Errorf("spent: %+v", r)
	}
	if l.asked["cap@2026-07"] != 1 {
		t.Errorf("asked %v", l.asked)
	}
	c.advance(end)
	if r := reserve("e", 100); !r.OK {
		t.Errorf("in August: %+v", r)
	}
	if l.asked["cap@2026-08"] != 1 {
		t.Errorf("asked %v", l.asked)
	}
	m.Release(t.Context(), "e")
	m.Settle(t.Context(), "free", budget.Used{})
	if reserved, slots, n := m.InFlight(); reserved != 0 || slots != 0 || n != 0 {
		t.Errorf("at rest %d, %d and %d are in flight", reserved, slots, n)
	}
}

// A charge after midnight goes to the period in which it was reserved.
func TestSettleAfterMidnight(t *testing.T) {
	c := &clock{}
	m := budget.NewMemory(c.now, &ledger{})
	zone, err := budget.NewCalendar("Europe/Berlin", "Europe/Berlin", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	day := func(amount int64) []budget.Limit {
		return []budget.Limit{{Key: "cap", Kind: budget.Day, Max: 10, Amount: amount, Calendar: zone}}
	}
	c.advance(9*time.Hour + 59*time.Minute) // 23:59 in Berlin
	before := day(10)
	if r, err := m.Reserve(t.Context(), "org_1", "a", before); err != nil || !r.OK || before[0].Period != "2026-07-01" || before[0].Reset != time.Minute || before[0].Left != 0 {
		t.Fatalf("%+v %v %+v", r, err, before)
	}
	c.advance(2 * time.Minute)
	m.Settle(t.Context(), "a", budget.Used{NanoUSD: 10})
	after := day(10)
	if r, err := m.Reserve(t.Context(), "org_1", "b", after); err != nil || !r.OK || after[0].Counter() != "cap@2026-07-02" {
		t.Fatalf("%+v %v %+v", r, err, after)
	}
}

// Periods follow the calendar where clocks change and months end.
func TestPeriods(t *testing.T) {
	zone, err := budget.NewCalendar("Europe/Berlin", "Europe/Berlin", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at     string
		kind   budget.Kind
		period string
		length time.Duration
	}{
		{"2026-03-28T23:00:00Z", budget.Day, "2026-03-29", 23 * time.Hour},
		{"2026-10-24T22:00:00Z", budget.Day, "2026-10-25", 25 * time.Hour},
		{"2026-01-30T23:00:00Z", budget.Day, "2026-01-31", 24 * time.Hour},
		{"2026-01-31T23:00:00Z", budget.Month, "2026-02", 28 * 24 * time.Hour},
		{"2026-02-28T23:00:00Z", budget.Month, "2026-03", 31*24*time.Hour - time.Hour},
		{"2027-12-31T22:59:59Z", budget.Month, "2027-12", time.Second},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		m := budget.NewMemory(func() time.Time { return at }, &ledger{})
		l := []budget.Limit{{Key: "k", Kind: c.kind, Max: 1, Amount: 1, Calendar: zone}}
		if r, err := m.Reserve(t.Context(), "o", "r", l); err != nil || !r.OK || l[0].Period != c.period || l[0].Reset != c.length {
			t.Errorf("%s: %+v %v %+v", c.at, r, err, l[0])
		}
	}
}

// Nothing under a cap is admitted until what was charged before is known. Requests that wait
// for the same sum ask once.
func TestUnknownSums(t *testing.T) {
	ctx := t.Context()
	if _, err := budget.NewMemory((&clock{}).now, nil).Reserve(ctx, "o", "a", month("cap", 1, 1)); !errors.Is(err, budget.ErrUnknownSums) {
		t.Errorf("without sums: %v", err)
	}
	l := &ledger{alone: budget.ErrStoreRequired}
	m := budget.NewMemory((&clock{}).now, l)
	if _, err := m.Reserve(ctx, "o", "a", month("cap", 1, 1)); !errors.Is(err, budget.ErrStoreRequired) {
		t.Errorf("beside another sidecar: %v", err)
	}
	l.alone, l.err = nil, budget.ErrStoreRequired
	if _, err := m.Reserve(ctx, "o", "a", month("cap", 1, 1)); !errors.Is(err, budget.ErrStoreRequired) {
		t.Errorf("with an error: %v", err)
	}
	if r, err := m.Reserve(ctx, "o", "free", month("cap", 1, 0)); err != nil || !r.OK {
		t.Errorf("what costs nothing: %+v %v", r, err)
	}
	l.err, l.block, l.sums = nil, make(chan struct{}), map[string]int64{"cap@2026-07": 95, "x@2026-07": 1, "y@2026-07": 1}
	var wg sync.WaitGroup
	var mu sync.Mutex
	passed := 0
	for i := range 20 {
		wg.Go(func() {
			limits := append(month("cap", 100, 1), month([]string{"x", "y"}[i%2], 100, 1)...)
			if i%4 < 2 {
				slices.Reverse(limits)
			}
			r, err := m.Reserve(ctx, "o", fmt.Sprint(i), limits)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if r.OK {
				passed++
			}
		})
	}
	close(l.block)
	wg.Wait()
	if passed != 5 || l.asked["cap@2026-07"] != 1 || l.asked["x@2026-07"] != 1 || l.asked["y@2026-07"] != 1 {
		t.Errorf("%d passed, want 5; asked %v", passed, l.asked)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	l.block = make(chan struct{})
	if _, err := m.Reserve(gone, "o", "late", month("other", 1, 1)); err == nil {
		t.Error("a request that nobody waits for passes")
	}
}

func TestSlots(t *testing.T) {
	m := budget.NewMemory((&clock{}).now, nil)
	slot := func() []budget.Limit { return []budget.Limit{{Key: "s", Kind: budget.Slots, Max: 2}} }
	for _, id := range []string{"a", "b"} {
		if r, _ := m.Reserve(t.Context(), "o", id, slot()); !r.OK {
			t.Fatalf("%s: %+v", id, r)
		}
	}
	if r, _ := m.Reserve(t.Context(), "o", "c", slot()); r.OK || r.Why != budget.Busy || r.RetryAfter == 0 {
		t.Errorf("the third: %+v", r)
	}
	m.Settle(t.Context(), "a", budget.Used{})
	m.Release(t.Context(), "a")
	if r, _ := m.Reserve(t.Context(), "o", "c", slot()); !r.OK {
		t.Errorf("after one ended: %+v", r)
	}
	if r, _ := m.Reserve(t.Context(), "o", "d", slot()); r.OK {
		t.Error("one end freed two slots")
	}
}

// Tokens are estimated at once and the true rest is taken at the end, also into debt.
func TestTokens(t *testing.T) {
	c := &clock{}
	m := budget.NewMemory(c.now, nil)
	tokens := func(n int64) []budget.Limit {
		return []budget.Limit{{Key: "t", Kind: budget.Tokens, Max: 600, Amount: n}}
	}
	if r, _ := m.Reserve(t.Context(), "o", "big", tokens(601)); r.OK || r.Why != budget.TooLarge || r.RetryAfter != 0 || r.Fits != 600 {
		t.Errorf("larger than the limit: %+v", r)
	}
	l := tokens(100)
	if r, _ := m.Reserve(t.Context(), "o", "a", l); !r.OK || l[0].Left != 500 {
		t.Errorf("%+v %+v", r, l)
	}
	m.Settle(t.Context(), "a", budget.Used{Tokens: 1800, Counted: true})
	l = tokens(1)
	if r, _ := m.Reserve(t.Context(), "o", "b", l); r.OK || l[0].Left != -1200 || r.RetryAfter != 2*time.Minute+100*time.Millisecond {
		t.Errorf("in debt: %+v %+v", r, l)
	}
	c.advance(119 * time.Second)
	m.Take(one("other", 1)) // what is forgotten meanwhile is not the debt
	c.advance(1100 * time.Millisecond)
	if r, _ := m.Reserve(t.Context(), "o", "b", tokens(1)); !r.OK {
		t.Errorf("after the wait: %+v", r)
	}
	m.Settle(t.Context(), "b", budget.Used{}) // not counted: the estimate stays
	c.advance(time.Hour)
	if r, _ := m.Reserve(t.Context(), "o", "c", tokens(600)); !r.OK {
		t.Errorf("an hour later: %+v", r)
	}
	m.Settle(t.Context(), "c", budget.Used{Tokens: 0, Counted: true})
	if r, _ := m.Reserve(t.Context(), "o", "d", tokens(600)); !r.OK {
		t.Errorf("none was used: %+v", r)
	}
	m.Settle(t.Context(), "d", budget.Used{Tokens: 1<<63 - 1, Counted: true})
	if r, _ := m.Reserve(t.Context(), "o", "e", tokens(1)); r.OK || r.RetryAfter <= 0 {
		t.Errorf("an absurd debt: %+v", r)
	}
	c.advance(5 * time.Minute)
	m.Take(one("other", 1))
	c.advance(5 * time.Minute)
	if r, _ := m.Reserve(t.Context(), "o", "e", tokens(1)); r.OK {
		t.Error("the debt was forgotten")
	}
}

// model is what Memory does with caps and slots, in the plainest Go.
type model struct {
	charged, reserved, slots map[string]int64
	held                     map[string][]budget.Limit
}

func (m *model) fits(limits []budget.Limit) bool {
	for _, l := range limits {
		switch {
		case l.Kind == budget.Slots && m.slots[l.Key] >= l.Max:
			return false
		case l.Kind != budget.Slots && l.Amount > 0 && m.charged[l.Key]+m.reserved[l.Key]+l.Amount > l.Max:
			return false
		}
	}
	return true
}

func (m *model) move(limits []budget.Limit, sign, charge int64) {
	seen := map[string]bool{}
	for _, l := range limits {
		if seen[l.Key] {
			continue
		}
		seen[l.Key] = true
		if l.Kind == budget.Slots {
			m.slots[l.Key] += sign
		} else {
			m.reserved[l.Key] += sign * l.Amount
			m.charged[l.Key] += charge
		}
	}
}

// Whatever order requests come and end in, Memory does what the model does. It takes all or
// none, and each once. A cap is never exceeded while no charge is above its reservation. At
// rest nothing is in flight.
func TestStateMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &clock{}
		m := budget.NewMemory(c.now, &ledger{})
		want := &model{map[string]int64{}, map[string]int64{}, map[string]int64{}, map[string][]budget.Limit{}}
		most := map[string]int64{"a": 100, "b": 60, "c": 1000, "s": 2, "t": 3}
		ctx := context.Background()
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6"}).Draw(t, "id")
				amount := rapid.Int64Range(0, 70).Draw(t, "amount")
				var limits []budget.Limit
				for _, key := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "s", "t"}), 1, 5).Draw(t, "keys") {
					l := budget.Limit{Key: key, Kind: budget.Month, Max: most[key], Amount: amount}
					if most[key] < 10 {
						l.Kind = budget.Slots
					}
					limits = append(limits, l)
				}
				r, err := m.Reserve(ctx, "o", id, slices.Clone(limits))
				if err != nil {
					t.Fatal(err)
				}
				if want.held[id] != nil {
					if !r.OK {
						t.Fatalf("a request that is held is rejected: %+v", r)
					}
					return
				}
				if r.OK != want.fits(limits) {
					t.Fatalf("%+v, want %v for %+v of %+v", r, !r.OK, limits, want)
				}
				if r.OK {
					want.held[id] = limits
					want.move(limits, 1, 0)
				} else if l := limits[r.Which]; want.fits([]budget.Limit{l}) {
					t.Fatalf("rejected by %+v, which has room", l)
				}
			},
			"end": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6"}).Draw(t, "id")
				limits := want.held[id]
				delete(want.held, id)
				charge := int64(0)
				if rapid.Bool().Draw(t, "settle") {
					if len(limits) > 0 {
						charge = rapid.Int64Range(0, limits[0].Amount).Draw(t, "charge")
					}
					m.Settle(ctx, id, budget.Used{NanoUSD: charge})
				} else {
					m.Release(ctx, id)
				}
				want.move(limits, -1, charge)
			},
			"": func(t *rapid.T) {
				c.advance(time.Second)
				for _, key := range []string{"a", "b", "c"} {
					if sum := want.charged[key] + want.reserved[key]; sum > most[key] {
						t.Fatalf("%s: %d of %d", key, sum, most[key])
					}
				}
				reserved, slots, n := m.InFlight()
				if reserved != want.reserved["a"]+want.reserved["b"]+want.reserved["c"] || slots != want.slots["s"]+want.slots["t"] || n != len(want.held) {
					t.Fatalf("%d reserved, %d slots, %d held; want %+v", reserved, slots, n, want)
				}
			},
		})
		for id := range want.held {
			m.Settle(ctx, id, budget.Used{})
		}
		if reserved, slots, n := m.InFlight(); reserved != 0 || slots != 0 || n != 0 {
			t.Fatalf("at rest %d, %d and %d", reserved, slots, n)
		}
	})
}

// $02 on one store: 1,000 first requests at once for a caller that was never seen.
func TestBarrier(t *testing.T) {
	const cent = 10_000_000
	for _, c := range []struct{ most, amount, charge, want int64 }{
		{1000 * cent, 5 * cent, 5 * cent, 200},
		{1, 5 * cent, 0, 0},
	} {
		m := budget.NewMemory((&clock{}).now, &ledger{})
		start := make(chan struct{})
		var wg sync.WaitGroup
		var mu sync.Mutex
		passed := int64(0)
		for i := range 1000 {
			wg.Go(func() {
				<-start
				id := fmt.Sprint(i)
				r, err := m.Reserve(context.Background(), "o", id, month("cap", c.most, c.amount))
				if err != nil {
					t.Error(err)
				}
				if r.OK {
					m.Settle(context.Background(), id, budget.Used{NanoUSD: c.charge})
					mu.Lock()
					passed++
					mu.Unlock()
				}
			})
		}
		close(start)
		wg.Wait()
		if passed != c.want {
			t.Errorf("%d passed, want %d", passed, c.want)
		}
	}
}
