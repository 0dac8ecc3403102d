package budget_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ai-identity/ai-identity/budget"
)

// chain is an audit log with a lag: records are in its sums once they are shipped.
type chain struct {
	*auditLog
	waiting []func()
	charged int64
	open    map[string]int64
	while   func() // is called while it is asked
}

func newChain() *chain {
	return &chain{auditLog: &auditLog{}, open: map[string]int64{}, while: func() {}}
}

func (c *chain) decided(id string, amount int64) {
	c.waiting = append(c.waiting, func() { c.open[id] = amount })
}

func (c *chain) settled(id string, charge int64) {
	c.waiting = append(c.waiting, func() {
		delete(c.open, id)
		c.charged += charge
	})
}

func (c *chain) ship(n int) {
	for ; n > 0 && len(c.waiting) > 0; n-- {
		c.waiting[0]()
		c.waiting = c.waiting[1:]
	}
}

func (c *chain) Shipped(context.Context, string) error {
	n := len(c.waiting)
	c.while()
	c.ship(n)
	return nil
}

func (c *chain) Sums(_ context.Context, _ string, counters []string) ([]budget.Sum, error) {
	c.while()
	s := budget.Sum{Charged: c.charged}
	for _, n := range c.open {
		s.Reserved += n
	}
	c.while()
	out := make([]budget.Sum, len(counters))
	for i := range out {
		out[i] = s
	}
	return out, nil
}

func (c *chain) Charged(ctx context.Context, org string, counters []string) ([]int64, error) {
	out := make([]int64, len(counters))
	for i := range out {
		out[i] = c.charged
	}
	return out, nil
}

// corrected are what was added and what was removed.
func corrected(c *prometheus.CounterVec) string {
	return fmt.Sprint(testutil.ToFloat64(c.WithLabelValues("added")), " ", testutil.ToFloat64(c.WithLabelValues("removed")))
}

// Counts in memory are compared with the audit log while requests begin and end, and records
// are on their way. There is no difference, so nothing is corrected. A difference that is made
// is corrected in both directions, at the latest at rest, and never below the truth.
func TestComparison(t *testing.T) {
	for seed := range uint64(300) {
		dice := rand.New(rand.NewPCG(seed, 1))
		log := newChain()
		log.charged = 1000
		m := budget.NewMemory(time.Now, log)
		c, err := budget.NewComparison(m, log, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		amounts, ending := map[string]int64{}, map[string]int64{}
		truth, n := int64(1000), 0
		some := func() {
			for range dice.IntN(8) {
				switch dice.IntN(5) {
				case 0, 1:
					n++
					id, amount := fmt.Sprint(n), 1+dice.Int64N(100)
					if r, err := m.Reserve(t.Context(), "org_1", id, month1(1<<40, amount)); err != nil || !r.OK {
						t.Fatal(r, err)
					}
					if dice.IntN(10) == 0 {
						m.Release(t.Context(), id) // it was rejected
						break
					}
					log.decided(id, amount)
					amounts[id] = amount
				case 2:
					for id, amount := range amounts {
						ending[id] = dice.Int64N(amount + 1)
						log.settled(id, ending[id])
						delete(amounts, id)
						break
					}
				case 3:
					for id, charge := range ending {
						m.Settle(t.Context(), id, budget.Used{NanoUSD: charge})
						truth += charge
						delete(ending, id)
						break
					}
				default:
					log.ship(dice.IntN(5))
				}
			}
		}
		log.while = some
		for range 20 {
			some()
			c.Pass(t.Context())
		}
		if got := corrected(c.Corrected()); got != "0 0" {
			t.Fatalf("seed %d: corrected %s without a difference", seed, got)
		}
		lost := 40 - dice.Int64N(81)
		some()
		if r, err := m.Reserve(t.Context(), "org_1", "known", month1(1<<40, 1)); err != nil || !r.OK {
			t.Fatal(r, err)
		}
		m.Release(t.Context(), "known")
		m.Lose(thisMonth(), lost)
		left := func() int64 {
			limits := month1(1<<40, 0)
			if _, err := m.Reserve(t.Context(), "org_1", "look", limits); err != nil {
				t.Fatal(err)
			}
			m.Release(t.Context(), "look")
			return limits[0].Left
		}
		for range 5 {
			some()
			c.Pass(t.Context())
			if reserved, _, _ := m.InFlight(); lost < 0 && 1<<40-left() < truth+reserved {
				t.Fatalf("seed %d: %d are counted, and %d are charged and %d reserved", seed, 1<<40-left(), truth, reserved)
			}
		}
		log.while = func() {}
		for id, amount := range amounts {
			ending[id] = amount
			log.settled(id, amount)
		}
		for id, charge := range ending {
			m.Settle(t.Context(), id, budget.Used{NanoUSD: charge})
			truth += charge
		}
		c.Pass(t.Context())
		c.Pass(t.Context())
		if got := 1<<40 - left(); got != truth {
			t.Fatalf("seed %d: %d nano-dollars were lost; at rest %d are counted, and %d were charged", seed, lost, got, truth)
		}
		if got := corrected(c.Corrected()); (got == "0 0") != (lost == 0) {
			t.Fatalf("seed %d: %d were lost and corrected %s", seed, lost, got)
		}
	}
}

// A count of the store is corrected in both directions, once all sidecars have shipped what
// was counted when it was last compared. Before, it is only raised to what the log has charged.
func TestValkeyCompares(t *testing.T) {
	s := startValkey(t)
	log := &auditLog{sidecars: 1}
	v := open(t, log, s.Address())
	key := "aid:{org_1}:usd:" + thisMonth()
	set := func(charged, reserved int64) {
		log.set(func(a *auditLog) { a.sums, a.reserved = map[string]int64{thisMonth(): charged}, reserved })
	}
	compared := func(want int64) {
		t.Helper()
		v.Compare(t.Context(), "org_1")
		if got := s.Do("HGET " + key + " charged"); got != strconv.FormatInt(want, 10) {
			t.Errorf("charged %s, want %d", got, want)
		}
	}
	had := func(n int64) { s.Do(fmt.Sprintf("HSET %s charged %d", key, n)) }
	if r := reserve(t, v, "live", month1(1<<62, 5)); !r.OK {
		t.Fatalf("%+v", r)
	}
	set(20, 5)
	had(19)
	compared(20) // first seen: only what the log has charged
	had(30)
	compared(25) // more than is charged and reserved
	had(19)
	compared(20) // 20 are charged, and 5 reserved
	set(1<<53+1, 5)
	had(1 << 53)
	compared(1<<53 + 1)
	set(20, 5)
	had(20)
	v.Settle(t.Context(), "live", budget.Used{NanoUSD: 3})
	v.Flush()
	compared(23) // the log does not have the completion yet
	set(23, 0)
	compared(23) // it is at rest, so it is compared again only after its next use
	// A request that is rejected is one. The remembered rejection ends with the correction.
	had(1000)
	for range 2 {
		if r := reserve(t, v, "spent", month1(1000, 5)); r.OK || r.Why != budget.Spent {
			t.Fatalf("%+v", r)
		}
	}
	compared(1000)
	compared(23)
	if r := reserve(t, v, "again", month1(1000, 5)); !r.OK {
		t.Fatalf("%+v", r)
	}
	v.Release(t.Context(), "again")
	v.Flush()
	compared(23)

	// Another sidecar has charges that are not shipped: nothing is taken away.
	other := open(t, log, s.Address())
	log.set(func(a *auditLog) { a.sidecars = 2 })
	if r := reserve(t, other, "theirs", month1(1<<62, 9)); !r.OK {
		t.Fatalf("%+v", r)
	}
	other.Settle(t.Context(), "theirs", budget.Used{NanoUSD: 9})
	other.Flush()
	for range 3 {
		compared(32)
	}
	set(32, 0)
	other.Compare(t.Context(), "org_1")
	had(40)
	compared(32)
	if got := corrected(v.Corrected()); got[0] == '0' || got[len(got)-2:] == " 0" {
		t.Errorf("corrected %s", got)
	}
}
