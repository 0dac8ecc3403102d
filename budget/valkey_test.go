package budget_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/budget/valkeytest"
)

// server is a real Valkey.
type server struct {
	*valkeytest.Server
	t *testing.T
}

func startValkey(t *testing.T, args ...string) *server {
	t.Helper()
	return &server{valkeytest.Start(t, args...), t}
}

func within(t *testing.T, what string, is func() bool) { t.Helper(); valkeytest.Within(t, what, is) }

// log is the audit log of several sidecars: what was charged to each counter, and what is
// reserved by decisions.
type auditLog struct {
	mu       sync.Mutex
	sums     map[string]int64
	reserved int64 // in each
	asked    map[string]int
	sidecars int
	err      error
	hold     chan struct{} // Shipped waits until it is closed
}

func (a *auditLog) Charged(_ context.Context, _ string, counters []string) ([]int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	out := make([]int64, len(counters))
	for i, c := range counters {
		if a.asked == nil {
			a.asked = map[string]int{}
		}
		a.asked[c]++
		out[i] = a.sums[c]
	}
	return out, nil
}

func (a *auditLog) Sums(ctx context.Context, org string, counters []string) ([]budget.Sum, error) {
	sums, err := a.Charged(ctx, org, counters)
	out := make([]budget.Sum, len(sums))
	for i, n := range sums {
		a.mu.Lock()
		out[i] = budget.Sum{Charged: n, Reserved: a.reserved}
		a.mu.Unlock()
	}
	return out, err
}

func (a *auditLog) Alone(context.Context, string) error { return nil }

func (a *auditLog) Sidecars(context.Context, string) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(1, a.sidecars), a.err
}

func (a *auditLog) Shipped(ctx context.Context, _ string) error {
	a.mu.Lock()
	hold, err := a.hold, a.err
	a.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (a *auditLog) set(change func(a *auditLog)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

// open returns a sidecar's store, which runs until the test ends.
func open(t *testing.T, sums budget.SharedSums, addresses ...string) *budget.Valkey {
	t.Helper()
	return openWith(t, budget.ValkeyConfig{Addresses: addresses, Sums: sums})
}

func openWith(t *testing.T, c budget.ValkeyConfig) *budget.Valkey {
	t.Helper()
	c.Log, c.Registerer = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	v, err := budget.NewValkey(c)
	if err != nil {
		t.Fatal(err)
	}
	v.Hurry(50 * time.Millisecond)
	v.Wait(10 * time.Second)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = v.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return v
}

// reserve waits until the store counts, and reserves.
func reserve(t *testing.T, v *budget.Valkey, id string, limits []budget.Limit) budget.Result {
	t.Helper()
	// A request whose reservation is in doubt has ended, so each attempt is another request.
	within(t, "the store counts", func() bool {
		probe := fmt.Sprint("probe", probes.Add(1))
		_, err := v.Reserve(t.Context(), "org_1", probe, []budget.Limit{{Key: "probe", Kind: budget.Month, Max: 1, Amount: 2}})
		return err == nil
	})
	r, err := v.Reserve(t.Context(), "org_1", id, limits)
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	return r
}

var probes atomic.Int64

// now is the server's clock in microseconds.
func (s *server) now() int64 {
	n, _ := strconv.ParseInt(s.Do(`EVAL "local t = redis.call('TIME') return t[1] * 1000000 + t[2]" 0`), 10, 64)
	return n
}

// settled waits until nothing of money is in flight.
func (s *server) settled(counter string) string {
	s.t.Helper()
	key := "aid:{org_1}:usd:" + counter
	within(s.t, counter+" is at rest", func() bool { r, err := s.Send("HGET " + key + " reserved"); return err == nil && r == "0" })
	return s.Do("HGET " + key + " charged")
}

func month1(most, amount int64) []budget.Limit { return month("cap", most, amount) }

func thisMonth() string { return "cap@" + time.Now().UTC().Format("2006-01") }

func TestValkeyCap(t *testing.T) {
	s := startValkey(t)
	a := &auditLog{sums: map[string]int64{thisMonth(): 40}}
	v := open(t, a, s.Address())
	if r := reserve(t, v, "a", month1(100, 61)); r.OK || r.Why != budget.TooLarge || r.Fits != 60 || r.Remaining != 60 {
		t.Fatalf("%+v", r)
	}
	limits := month1(100, 35)
	if r := reserve(t, v, "a", limits); !r.OK || limits[0].Left != 25 || limits[0].Counter() != thisMonth() {
		t.Fatalf("%+v %+v", r, limits)
	}
	if r := reserve(t, v, "a", month1(100, 35)); !r.OK {
		t.Fatalf("again: %+v", r)
	}
	if r := reserve(t, v, "b", month1(100, 26)); r.OK || r.Why != budget.Held || r.Remaining != 25 || r.RetryAfter != time.Second {
		t.Fatalf("%+v", r)
	}
	if r := reserve(t, v, "b", month1(100, 25)); !r.OK {
		t.Fatalf("%+v", r)
	}
	v.Settle(t.Context(), "a", budget.Used{NanoUSD: 10})
	v.Settle(t.Context(), "a", budget.Used{NanoUSD: 10}) // once only
	v.Settle(t.Context(), "b", budget.Used{NanoUSD: 70})
	if got := s.settled(thisMonth()); got != "120" {
		t.Fatalf("charged %s", got)
	}
	if r := reserve(t, v, "c", month1(100, 1)); r.OK || r.Why != budget.Spent || r.RetryAfter != 0 || r.Reset <= 0 {
		t.Fatalf("%+v", r)
	}
	if r := reserve(t, v, "c", month1(121, 1)); !r.OK { // the cap was raised
		t.Fatalf("%+v", r)
	}
	v.Release(t.Context(), "c")
	if got := s.settled(thisMonth()); got != "120" {
		t.Fatalf("charged %s", got)
	}
	if a.asked[thisMonth()] != 1 {
		t.Errorf("asked %v", a.asked)
	}
	if s.Do("DBSIZE") != "2" { // the org and the cap; what reserve asks for in vain leaves none
		t.Errorf("%s keys are left", s.Do("DBSIZE"))
	}
}

// Amounts above 2^53 are exact, and the largest do not overflow.
func TestValkeyIsExact(t *testing.T) {
	const most = 1<<63 - 1
	for _, c := range []struct{ had, max, amount, charge, want int64 }{
		{0, 1<<53 + 1, 1<<53 + 1, 1<<53 + 1, 1<<53 + 1},
		{1 << 53, 1<<53 + 2, 1, 1, 1<<53 + 1},
		{1<<62 + 12345, most, 1<<61 + 999999999, 1<<61 + 1, 1<<62 + 12345 + 1<<61 + 1},
		{0, most, most, most, most},
		{5, most, 7, most - 2, most},
		{999999999, 2000000000, 1000000001, 1, 1000000000},
		{1, 1000000001, 1000000000, 0, 1},
	} {
		t.Run(fmt.Sprint(c.had), func(t *testing.T) {
			s := startValkey(t)
			v := open(t, &auditLog{sums: map[string]int64{thisMonth(): c.had}}, s.Address())
			if left := c.max - c.had; left < most {
				if r := reserve(t, v, "no", month1(c.max, left+1)); r.OK || r.Why != budget.TooLarge || r.Fits != left {
					t.Fatalf("one more than fits: %+v", r)
				}
			}
			if r := reserve(t, v, "a", month1(c.max, c.amount)); !r.OK {
				t.Fatalf("%+v", r)
			}
			if got := s.Do("HGET aid:{org_1}:usd:" + thisMonth() + " reserved"); got != strconv.FormatInt(c.amount, 10) {
				t.Fatalf("reserved %s, want %d", got, c.amount)
			}
			v.Settle(t.Context(), "a", budget.Used{NanoUSD: c.charge})
			if got := s.settled(thisMonth()); got != strconv.FormatInt(c.want, 10) {
				t.Fatalf("charged %s, want %d", got, c.want)
			}
		})
	}
}

// Many sidecars and one cap: at no instant more than the cap is taken, and all of it can be.
func TestValkeyMany(t *testing.T) {
	s := startValkey(t)
	a := &auditLog{}
	const sidecars, requests, most, amount = 8, 400, 100, 1
	var admitted atomic.Int64
	var wg sync.WaitGroup
	barrier := make(chan struct{})
	a.sidecars = 1
	for i := range sidecars {
		v := open(t, a, s.Address())
		for j := range requests / sidecars {
			wg.Go(func() {
				<-barrier
				for {
					r, err := v.Reserve(t.Context(), "org_1", fmt.Sprintf("r-%d-%d", i, j), month1(most, amount))
					if err != nil {
						continue
					}
					if r.OK {
						admitted.Add(1)
					}
					return
				}
			})
		}
	}
	close(barrier)
	wg.Wait()
	if n := admitted.Load(); n != most {
		t.Errorf("%d were admitted, want %d", n, most)
	}
	if got := s.Do("HGET aid:{org_1}:usd:" + thisMonth() + " reserved"); got != "100" {
		t.Errorf("reserved %s", got)
	}
}
