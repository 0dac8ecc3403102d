package extproc_test

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/budget/valkeytest"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/provider"
)

var shares = flag.Bool("shares", false, "run TestShared with 20 sidecars, 1,000 streams and $10")

// cents is a pricer: a request may cost 5 cents, and costs charge.
type cents struct{ charge int64 }

const nickel = 50_000_000

func (cents) Worst(provider.Provider, string, provider.Bound, time.Time) (int64, string) {
	return nickel, ""
}
func (cents) MaxOutput(provider.Provider, string, time.Time) int64 { return 0 }
func (cents) Version() string                                      { return "cents" }

func (c cents) Cost(provider.Provider, string, string, provider.Usage, time.Time) (int64, bool) {
	return c.charge, true
}

// nothingBefore is an audit log without earlier charges.
type nothingBefore struct{}

func (nothingBefore) Sums(_ context.Context, _ string, counters []string) ([]budget.Sum, error) {
	return make([]budget.Sum, len(counters)), nil
}
func (nothingBefore) Sidecars(context.Context, string) (int, error) { return 1, nil }
func (nothingBefore) Shipped(context.Context, string) error         { return nil }

// Sidecars with one store and one cap, all their streams behind one barrier, by gRPC as Envoy
// does. What is charged and reserved is never above the cap. With a charge as large as the
// reservation exactly what fits passes. With a tenth of it, and clients that try again, at
// least 95 % is charged in the end. Without -shares it runs with a tenth of the streams.
func TestShared(t *testing.T) {
	sidecars, streams, dollars := 4, 25, int64(1)
	if *shares {
		sidecars, streams, dollars = 20, 50, 10
	}
	most := dollars * 1_000_000_000
	for name, charge := range map[string]int64{"all": nickel, "a tenth": nickel / 10} {
		t.Run(name, func(t *testing.T) {
			s := valkeytest.Start(t)
			var passed, charged atomic.Int64
			var wg sync.WaitGroup
			barrier := make(chan struct{})
			for range sidecars {
				store, err := budget.NewValkey(budget.ValkeyConfig{Addresses: []string{s.Address()}, Sums: nothingBefore{}, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- store.Run(ctx) }()
				t.Cleanup(func() {
					stop()
					<-done
				})
				w := serve(t, options{
					policies: []string{fmt.Sprintf(`{"name":"p","effect":"allow","conditions":{},"limits":{"monthly_usd_cap":%d}}`, dollars)},
					config: func(c *extproc.Config) {
						c.Limiter, c.Pricer, c.Rand, c.MaxDeciding = store, cents{charge}, rand.Reader, 1000
						c.Log = slog.New(slog.DiscardHandler)
					},
				})
				for range streams {
					wg.Go(func() {
						<-barrier
						for t.Context().Err() == nil {
							answer, pieces := ok()
							out := w.play(t.Context(), w.chat("small"), answer, pieces)
							switch {
							case out.err != nil || out.client == nil:
								t.Errorf("a stream ended: %v", out.err)
								return
							case out.client.get(":status") == "200":
								passed.Add(1)
								charged.Add(charge)
								if charge == nickel {
									return
								}
							case out.client.get(":status") == "503":
								time.Sleep(10 * time.Millisecond) // the store was slow: as its Retry-After says, only sooner
							case out.client.get(":status") != "429":
								t.Errorf("%s %s", out.client.get(":status"), out.client.body)
								return
							case out.client.get("retry-after") == "":
								return // spent, or too large
							case out.client.get("x-should-retry") == "false":
								return
							default:
								time.Sleep(10 * time.Millisecond)
							}
						}
					})
				}
			}
			watched, unwatch := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() { result <- watch(watched, s, most) }()
			close(barrier)
			wg.Wait()
			unwatch()
			if err := <-result; err != nil {
				t.Error(err)
			}
			t.Logf("%d passed, %d of %d nano-dollars are charged", passed.Load(), charged.Load(), most)
			if n := charged.Load(); n > most || n < most*95/100 || charge == nickel && n != most {
				t.Errorf("%d are charged of %d", n, most)
			}
			key := "aid:{org_acme}:usd:policy:pol_1:monthly_usd_cap:policy:@" + time.Now().UTC().Format("2006-01")
			valkeytest.Within(t, "the store is at rest", func() bool { return s.Do("HGET "+key+" reserved") == "0" })
			if got := s.Do("HGET " + key + " charged"); got != strconv.FormatInt(charged.Load(), 10) {
				t.Errorf("the store has %s, and %d were charged", got, charged.Load())
			}
		})
	}
}

// watch looks at the cap all the time, until ctx ends.
func watch(ctx context.Context, s *valkeytest.Server, most int64) error {
	key := "aid:{org_acme}:usd:policy:pol_1:monthly_usd_cap:policy:@" + time.Now().UTC().Format("2006-01")
	looks := 0
	for ctx.Err() == nil {
		text, err := s.Send(`EVAL "return (redis.call('HGET', KEYS[1], 'charged') or 0) + (redis.call('HGET', KEYS[1], 'reserved') or 0)" 1 ` + key)
		if err != nil {
			return err
		}
		if n, err := strconv.ParseInt(text, 10, 64); err != nil || n > most {
			return fmt.Errorf("%s are charged and reserved at one instant, and the cap is %d", text, most)
		}
		looks++
	}
	if looks == 0 {
		return errors.New("nothing was watched")
	}
	return nil
}
