package verdict_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/budget/valkeytest"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/prices"
	"github.com/ai-identity/ai-identity/verdict"
)

var names = flag.Int("names", 1500, "invented names of models and sessions in TestInventedNames")

// store is the audit log of an org in which nothing was charged.
type store struct{}

func (store) Sums(_ context.Context, _ string, counters []string) ([]budget.Sum, error) {
	return make([]budget.Sum, len(counters)), nil
}
func (store) Sidecars(context.Context, string) (int, error) { return 1, nil }
func (store) Shipped(context.Context, string) error         { return nil }

// sharedStore counts in a real Valkey.
func sharedStore(t *testing.T) (*budget.Valkey, *valkeytest.Server) {
	t.Helper()
	s := valkeytest.Start(t)
	v, err := budget.NewValkey(budget.ValkeyConfig{Addresses: []string{s.Address()}, Sums: store{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = v.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	valkeytest.Within(t, "the store counts", func() bool {
		_, err := v.Reserve(ctx, "org_1", fmt.Sprint(time.Now().UnixNano()), []budget.Limit{{Key: "probe", Kind: budget.Month, Max: 1, Amount: 2}})
		return err == nil
	})
	return v, s
}

// judgeCounted repeats a request while the store is too slow, so that no slow machine decides.
func (w *world) judgeCounted() verdict.Verdict {
	v := w.judge()
	for e := v.Rejection(); e != nil && e.Code == "budget_store_unavailable"; e = v.Rejection() {
		w.request.ID += "+"
		v = w.judge()
	}
	return v
}

// A provider whose models are "*" accepts each name that a client invents. Invented names share
// one count, and so do sessions after the first thousand: in memory, and in a shared store.
func TestInventedNames(t *testing.T) {
	const limits = `{"rpm":[{"limit":1000000,"per":"request.model"},{"limit":1000000,"per":["agent","request.model"]}],"tpm":{"limit":900000000,"per":["key","request.model"]},` +
		`"daily_usd_cap":[{"limit":1000000,"per":"request.model"},{"limit":1000000,"per":["agent","request.model"]}],"monthly_usd_cap":{"limit":1000000,"per":["agent.team","request.model"]}}`
	open := func(t *testing.T, limits string) *world {
		w := newWorld(t, `{"name":"p","effect":"allow","conditions":{},"limits":`+limits+`}`)
		p := provider.Provider{ID: "prov_one", OrgID: "org_1", Name: "one", Kind: "openai", BaseURL: "http://127.0.0.1:1/v1",
			Models: []string{"small", "*"}, Credential: provider.NewSecret("sk-one"), HasCredential: true}
		p.Cluster = provider.ClusterName(p)
		var err error
		if w.org.Providers, err = provider.NewRegistry([]provider.Provider{p}, func(pattern, model string) bool { return true }); err != nil {
			t.Fatal(err)
		}
		w.caller.Agent.AllowedModels = []string{"*", "of-the-agent"}
		table, err := prices.Load([]byte("prices:\n- {provider: one, models: [\"*\"], input: 1, output: 2, context_window: 100000, max_output_tokens: 10}\n- {provider: one, models: [priced], input: 1, output: 2}\n"))
		if err != nil {
			t.Fatal(err)
		}
		w.org.Pricer, w.org.Sessions = table, &budget.Sessions{}
		return w
	}
	ask := func(w *world, i int, model, session string) verdict.Verdict {
		w.request.ID, w.request.Session = fmt.Sprint("req-", i), session
		w.request.Body = []byte(`{"model":"` + model + `","messages":[]}`)
		v := w.judgeCounted()
		if v.Reserved {
			w.org.Limiter.Settle(t.Context(), w.request.ID, budget.Used{NanoUSD: 1})
		}
		return v
	}
	inMemory := func(*testing.T) (verdict.Limiter, func() int) {
		m := budget.NewMemory(func() time.Time { return noon }, sums{})
		return m, m.Len
	}
	shared := func(t *testing.T) (verdict.Limiter, func() int) {
		v, server := sharedStore(t)
		return v, func() int {
			n := 0
			for range strings.Lines(server.Do("KEYS aid:*")) {
				n++
			}
			return n
		}
	}
	for name, limiter := range map[string]func(*testing.T) (verdict.Limiter, func() int){"memory": inMemory, "valkey": shared} {
		t.Run("models/"+name, func(t *testing.T) {
			w := open(t, limits)
			var keys func() int
			w.org.Limiter, keys = limiter(t)
			for i, listed := range []string{"small", "of-the-agent", "priced", "gpt-4o"} {
				d := ask(w, -1-i, listed, "")
				if e := d.Decided(&w.org, w.caller, &w.request); e.ModelUnlisted || e.Limits[0].Subject != listed {
					t.Errorf("%s counts for %q: %+v", listed, e.Limits[0].Subject, d.Rejection())
				}
			}
			before := keys()
			for i := range *names {
				v := ask(w, i, fmt.Sprint("invented-", i), "")
				if !v.Allowed() {
					t.Fatalf("%d: %+v %v", i, v.Rejection(), v.Decision.Err)
				}
				if d := v.Decided(&w.org, w.caller, &w.request); i == 0 && (!d.ModelUnlisted || d.Model != "invented-0" || d.Limits[0].Subject != "(other)") {
					t.Errorf("%+v", d)
				}
				if s := v.Settled(w.caller, &w.request, verdict.Ending{Time: noon}, true, w.org.Pricer); !s.ModelUnlisted {
					t.Errorf("%+v", s)
				}
			}
			if after := keys(); after > before+16 {
				t.Errorf("%d counts after %d invented names, %d before", after, *names, before)
			}
		})
	}
	// Requests that another limit rejects begin no session, so the bound of a thousand sessions
	// does not hold for them. They must leave no count.
	t.Run("sessions", func(t *testing.T) {
		w := open(t, `{"rpm":{"limit":1,"per":"agent"},"session_requests":5,"session_usd_cap":1,"daily_usd_cap":{"limit":9,"per":["agent","session"]}}`)
		m := budget.NewMemory(func() time.Time { return noon }, sums{})
		w.org.Limiter = m
		for i := range *names {
			ask(w, i, "small", fmt.Sprint("session-", i))
		}
		if n := m.Len(); n > 16 {
			t.Errorf("%d counts after %d rejected sessions", n, *names)
		}
	})
	t.Run("many sessions", func(t *testing.T) {
		w := open(t, `{"session_requests":5}`)
		m := budget.NewMemory(func() time.Time { return noon }, sums{})
		w.org.Limiter = m
		for i := range *names {
			ask(w, i, "small", fmt.Sprint("session-", i))
		}
		if n := m.Len(); n > 1001 {
			t.Errorf("%d counts after %d sessions", n, *names)
		}
	})
}
