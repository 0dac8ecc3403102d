package budget_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/budget"
)

// store is what Memory and Valkey have in common.
type store interface {
	Reserve(ctx context.Context, org, id string, limits []budget.Limit) (budget.Result, error)
	Recorded(id string)
	Release(ctx context.Context, id string)
	Settle(ctx context.Context, id string, used budget.Used)
}

var (
	_ store = (*budget.Memory)(nil)
	_ store = (*budget.Valkey)(nil)
)

// atNoon is a calendar in which it is about noon now, so that no test sees a day end.
func atNoon(t *testing.T) *budget.Calendar {
	t.Helper()
	now := time.Now().UTC()
	zone := "Etc/UTC"
	switch h := 12 - now.Hour(); {
	case h > 0:
		zone = fmt.Sprintf("Etc/GMT-%d", h)
	case h < 0:
		zone = fmt.Sprintf("Etc/GMT+%d", -h)
	}
	c, err := budget.NewCalendar(zone, zone, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// aMinute is more than a slow machine takes between two stores, and less than the steps of
// the rates here.
const aMinute = 10 * time.Second

// same compares results and limits. Times differ by what passes between two calls.
func same(t *rapid.T, what string, a, b budget.Result, la, lb []budget.Limit) {
	near := func(x, y time.Duration) bool { return (x-y).Abs() < aMinute && (x == 0) == (y == 0) }
	if !near(a.Reset, b.Reset) || !near(a.RetryAfter, b.RetryAfter) {
		t.Fatalf("%s: times differ: %+v, %+v", what, a, b)
	}
	a.Reset, a.RetryAfter, b.Reset, b.RetryAfter = 0, 0, 0, 0
	if a != b {
		t.Fatalf("%s: %+v in memory, %+v in the store, for %+v and %+v", what, a, b, la, lb)
	}
	for i := range la {
		x, y := la[i], lb[i]
		if !near(x.Reset, y.Reset) {
			t.Fatalf("%s: times of limit %d differ: %+v, %+v", what, i, x, y)
		}
		x.Reset, y.Reset = 0, 0
		if x.Kind.Money() && x.Amount <= 0 {
			x.Left, y.Left = 0, 0 // known only if the store was asked about the cap before
		}
		if !reflect.DeepEqual(x, y) {
			t.Fatalf("%s: limit %d: %+v in memory, %+v in the store", what, i, x, y)
		}
	}
}

// Memory and Valkey give the same results for the same calls.
func TestStoresAgree(t *testing.T) {
	s := startValkey(t)
	a := &auditLog{sums: map[string]int64{}}
	v := open(t, a, s.Address())
	reserve(t, v, "ready", month1(1, 1))
	calendar := atNoon(t)
	var run atomic.Int64
	rapid.Check(t, func(r *rapid.T) {
		prefix := fmt.Sprintf("run%d:", run.Add(1))
		m := budget.NewMemory(time.Now, a)
		drawn := func() (out []budget.Limit) {
			for range rapid.IntRange(1, 5).Draw(r, "limits") {
				kind := budget.Kind(rapid.IntRange(0, 4).Draw(r, "kind"))
				l := budget.Limit{
					Key: fmt.Sprintf("%s%d-%d", prefix, kind, rapid.IntRange(0, 2).Draw(r, "key")), Kind: kind, Calendar: calendar,
					Max:    rapid.SampledFrom([]int64{-1, 0, 1, 2, 3, 5}).Draw(r, "max"),
					Amount: rapid.SampledFrom([]int64{-1, 0, 1, 1, 2, 7}).Draw(r, "amount"),
				}
				if kind.Money() {
					const dollar = 1_000_000_000
					l.Max = rapid.SampledFrom([]int64{0, 1, 3 * dollar, 10 * dollar, 1<<53 + 3, 1<<63 - 1}).Draw(r, "cap")
					l.Amount = rapid.SampledFrom([]int64{0, 1, dollar - 1, dollar, 2*dollar + 1, 1 << 53, 1 << 62}).Draw(r, "usd")
					l.Shadow = rapid.IntRange(0, 5).Draw(r, "shadow") == 0
					if l.Shadow {
						l.Key += "s"
					}
				}
				for j := range out { // of one request, limits with equal keys take the same
					if out[j].Key == l.Key {
						l.Amount = out[j].Amount
					}
				}
				out = append(out, l)
			}
			return out
		}
		live, ended := []string{}, map[string]bool{}
		for n := range rapid.IntRange(1, 25).Draw(r, "calls") {
			id := fmt.Sprintf("%sr%d", prefix, n)
			if len(live) > 0 && rapid.IntRange(0, 3).Draw(r, "which") == 0 {
				id = rapid.SampledFrom(live).Draw(r, "id")
			}
			call := rapid.SampledFrom([]string{"reserve", "reserve", "reserve", "settle", "release"}).Draw(r, "call")
			if call == "reserve" && ended[id] {
				continue // ids are not used again
			}
			ended[id] = ended[id] || call != "reserve"
			r.Logf("%s %s", call, id)
			switch call {
			case "reserve":
				la := drawn()
				lb := append([]budget.Limit(nil), la...)
				for _, l := range la {
					if l.Kind.Money() && strings.HasSuffix(l.Key, "-1") {
						name, _ := calendar.Day(time.Now())
						if l.Kind == budget.Month {
							name, _ = calendar.Month(time.Now())
						}
						a.set(func(a *auditLog) { a.sums[l.Key+"@"+name] = 2_000_000_000 })
					}
				}
				ra, err := m.Reserve(t.Context(), "org_1", id, la)
				if err != nil {
					r.Fatal(err)
				}
				rb, err := v.Reserve(t.Context(), "org_1", id, lb)
				if err != nil {
					r.Fatal(err)
				}
				r.Logf("%+v: %+v", la, ra)
				if rb.Why == budget.Spent && !rb.OK { // remembered, without the other limits' figures
					if ra.OK || ra.Why != budget.Spent && ra.RetryAfter > 0 {
						r.Fatalf("%s: %+v in memory, spent in the store", id, ra)
					}
					continue
				}
				same(r, id, ra, rb, la, lb)
				if ra.OK {
					live = append(live, id)
				}
			case "settle":
				used := budget.Used{
					Tokens: rapid.Int64Range(0, 9).Draw(r, "tokens"), Counted: rapid.Bool().Draw(r, "counted"),
					NanoUSD: rapid.SampledFrom([]int64{0, 1, 999_999_999, 1 << 53, 1 << 62}).Draw(r, "charge"),
				}
				m.Settle(t.Context(), id, used)
				v.Settle(t.Context(), id, used)
				v.Flush()
			case "release":
				m.Release(t.Context(), id)
				v.Release(t.Context(), id)
				v.Flush()
			}
		}
	})
}

// A slot whose request ends while its lease is renewed is free again at once. One that the
// store has lost is counted again.
func TestRenewalOfEndedSlot(t *testing.T) {
	s := startValkey(t)
	v := open(t, &auditLog{}, s.Address())
	reserve(t, v, "ready", month1(1, 1))
	slot := func(id string) (budget.Result, error) {
		return v.Reserve(t.Context(), "org_1", id, []budget.Limit{{Key: "one", Kind: budget.Slots, Max: 1}})
	}
	if r, err := slot("first"); err != nil || !r.OK {
		t.Fatal(r, err)
	}
	v.RenewLate(t.Context(), "org_1", func() {
		v.Settle(t.Context(), "first", budget.Used{})
		v.Flush()
	})
	if r, err := slot("second"); err != nil || !r.OK {
		t.Fatal("the slot of an ended request came back:", r, err)
	}
	s.Do("FLUSHALL")
	n := 0
	within(t, "the slot in use is counted again", func() bool {
		n++
		id := fmt.Sprint("other", n)
		r, err := slot(id)
		if err == nil && r.OK {
			v.Release(t.Context(), id)
			v.Flush()
		}
		return err == nil && !r.OK
	})
}

// In and out are a call of a concurrent history.
type (
	in struct {
		settle bool
		id     int
		amount int64
	}
	out struct {
		ok  bool
		why budget.Why
	}
	// held is a state: what is charged, and what is reserved by whom.
	held struct {
		charged  int64
		reserved [40]int64
	}
)

// cap40 is a cap of 100 with at most 40 requests.
var cap40 = porcupine.Model{
	Init: func() any { return held{} },
	Step: func(state, input, output any) (bool, any) {
		s, i, o := state.(held), input.(in), output.(out)
		if i.settle {
			if s.reserved[i.id] > 0 {
				s.charged += i.amount
			}
			s.reserved[i.id] = 0
			return true, s
		}
		total := int64(0)
		for _, r := range s.reserved {
			total += r
		}
		want := out{}
		switch free := 100 - s.charged; {
		case free <= 0:
			want.why = budget.Spent
		case i.amount > free:
			want.why = budget.TooLarge
		case i.amount > free-total:
			want.why = budget.Held
		default:
			want.ok = true
			s.reserved[i.id] = i.amount
		}
		return o == want, s
	},
	Equal: func(a, b any) bool { return a == b },
}

// What several sidecars do at the same time has the results of some order of it.
func TestValkeyIsLinearizable(t *testing.T) {
	s := startValkey(t)
	a := &auditLog{}
	const sidecars, each, histories = 4, 10, 20
	var stores [sidecars]*budget.Valkey
	for i := range stores {
		stores[i] = open(t, a, s.Address())
		reserve(t, stores[i], fmt.Sprint("ready", i), month1(1<<40, 1))
	}
	for h := range histories {
		var mu sync.Mutex
		var ops []porcupine.Operation
		began := time.Now()
		note := func(client int, i in, call func() out) {
			from := time.Since(began).Nanoseconds()
			o := call()
			to := time.Since(began).Nanoseconds()
			mu.Lock()
			defer mu.Unlock()
			ops = append(ops, porcupine.Operation{ClientId: client, Input: i, Output: o, Call: from, Return: to})
		}
		var wg sync.WaitGroup
		for c, v := range stores {
			wg.Go(func() {
				for n := range each {
					place := c*each + n
					id := fmt.Sprintf("h%d-%d", h, place)
					amount := int64(7 + 13*((place+h)%5))
					var r budget.Result
					note(c, in{id: place, amount: amount}, func() out {
						var err error
						if r, err = v.Reserve(t.Context(), "org_1", id, month(fmt.Sprint("history", h), 100, amount)); err != nil {
							t.Error(err)
						}
						return out{r.OK, r.Why}
					})
					if r.OK && n%3 != 2 {
						charge := amount / 3
						note(c, in{settle: true, id: place, amount: charge}, func() out {
							v.Settle(t.Context(), id, budget.Used{NanoUSD: charge})
							v.Flush()
							return out{}
						})
					}
				}
			})
		}
		wg.Wait()
		if !porcupine.CheckOperations(cap40, ops) {
			t.Fatalf("history %d has no order: %+v", h, ops)
		}
	}
}

// The rights that docs/operations.md gives a sidecar suffice, and are for its orgs alone.
func TestValkeyRights(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "ACL SETUSER aid on >PASSWORD ")
	rules, _, ok2 := strings.Cut(rest, "\n```")
	rules = strings.ReplaceAll(rules, "\\\n", "")
	if !ok || !ok2 {
		t.Fatal("docs/operations.md has no ACL")
	}
	s := startValkey(t)
	s.Do("ACL SETUSER aid on >secret " + rules)
	a := &auditLog{}
	v := openWith(t, budget.ValkeyConfig{
		Addresses: []string{s.Address()}, Sums: a, Username: "aid", Password: func() (string, error) { return "secret", nil },
	})
	limits := []budget.Limit{
		{Key: "r", Kind: budget.Requests, Max: 5}, {Key: "t", Kind: budget.Tokens, Max: 5, Amount: 1}, {Key: "s", Kind: budget.Slots, Max: 2},
		{Key: "cap", Kind: budget.Month, Max: 100, Amount: 10}, {Key: "shadow", Kind: budget.Month, Max: 100, Amount: 10, Shadow: true},
	}
	if r := reserve(t, v, "a", limits); !r.OK {
		t.Fatalf("%+v", r)
	}
	v.Settle(t.Context(), "a", budget.Used{NanoUSD: 3, Tokens: 2, Counted: true})
	s.charged(thisMonth(), "3")
	if err := v.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := v.Reserve(t.Context(), "org_2", "b", month1(100, 1)); !errors.Is(err, budget.ErrStoreAway) {
		t.Error("it may count for another org")
	}
	s.Do("FLUSHALL")
	reserve(t, v, "c", month1(100, 1)) // it may join again
}

// With TLS and a password the store counts, and with a wrong CA or password it is away.
func TestValkeyTLS(t *testing.T) {
	s := startValkey(t)
	s.Do("CONFIG SET requirepass secret")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &proxy{listener: l, to: s.Address(), conns: map[net.Conn]bool{}}
	t.Cleanup(func() { p.lead("") })
	go p.accept()
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	password := func(is string) func() (string, error) { return func() (string, error) { return is, nil } }
	c := budget.ValkeyConfig{
		Addresses: []string{l.Addr().String()}, Sums: &auditLog{}, Password: password("secret"), TLS: func() *tls.Config { return &tls.Config{RootCAs: roots} },
	}
	if r := reserve(t, openWith(t, c), "a", month1(100, 10)); !r.OK {
		t.Fatalf("%+v", r)
	}
	for name, change := range map[string]func(*budget.ValkeyConfig){
		"CA":       func(c *budget.ValkeyConfig) { c.TLS = func() *tls.Config { return &tls.Config{} } },
		"password": func(c *budget.ValkeyConfig) { c.Password = password("guess") },
		"no TLS":   func(c *budget.ValkeyConfig) { c.TLS = nil },
	} {
		wrong := c
		change(&wrong)
		if err := openWith(t, wrong).Check(t.Context()); !errors.Is(err, budget.ErrStoreAway) || strings.Contains(err.Error(), "guess") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The store's clock decides which period it is, whatever this machine's is.
func TestValkeyPeriod(t *testing.T) {
	s := startValkey(t)
	v := open(t, &auditLog{}, s.Address())
	reserve(t, v, "a", month1(100, 1))
	for _, off := range []time.Duration{-40 * 24 * time.Hour, 40 * 24 * time.Hour} {
		v.Misdate("org_1", time.Now().Add(off))
		limits := month1(100, 1)
		if r := reserve(t, v, fmt.Sprint(off), limits); !r.OK || limits[0].Counter() != thisMonth() {
			t.Errorf("%v: %+v %+v", off, r, limits)
		}
	}
}
