package verdict_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/verdict"
)

// A raise adds to one count of a cap, in its period and until its end. The next request passes,
// in memory and in a shared store that remembers that the cap was spent.
func TestRaise(t *testing.T) {
	for name, limiter := range map[string]func(*testing.T) verdict.Limiter{
		"memory": func(*testing.T) verdict.Limiter { return budget.NewMemory(time.Now, sums{}) },
		"valkey": func(t *testing.T) verdict.Limiter { v, _ := sharedStore(t); return v },
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := money(t, `{"monthly_usd_cap":{"limit":0.001,"per":"agent"}}`)
			w.org.Limiter = limiter(t)
			now := time.Now().UTC()
			w.request.Time = now
			n := 0
			ask := func() verdict.Verdict {
				n++
				w.request.ID = fmt.Sprint("req-", n)
				body(`{"model":"small","max_tokens":100` + chat)(w)
				return w.judgeCounted()
			}
			spend := func(v verdict.Verdict, nano int64) {
				t.Helper()
				if !v.Allowed() {
					t.Fatalf("%+v", v.Rejection())
				}
				w.org.Limiter.Settle(t.Context(), w.request.ID, budget.Used{NanoUSD: nano})
			}
			spent := func(what string) {
				t.Helper()
				for {
					v := ask()
					e := v.Rejection()
					if e != nil && e.Code == "budget_held" {
						continue // the store gets charges soon after
					}
					if e == nil || e.Code != "insufficient_quota" {
						t.Fatalf("%s: %+v", what, e)
					}
					return
				}
			}
			spend(ask(), 1_000_000)
			spent("the cap")
			spent("the cap again")
			key, month := "policy:pol_a:monthly_usd_cap:agent:ag_1", now.Format("2006-01")
			raise := func(key string, rs ...verdict.Raise) { w.org.Raises = map[string][]verdict.Raise{key: rs} }
			good := verdict.Raise{Period: month, NanoUSD: 1_000_000, Ends: now.Add(time.Minute)}
			raise("policy:pol_a:monthly_usd_cap:agent:ag_2", good)
			spent("with a raise for another agent")
			raise(key, verdict.Raise{Period: month, NanoUSD: 1_000_000, Ends: now})
			spent("with a raise that has ended")
			raise(key, verdict.Raise{Period: "2001-01", NanoUSD: 1_000_000, Ends: now.Add(time.Minute)})
			spent("with a raise of another month")
			raise(key, good)
			v := ask()
			spend(v, 1_000_000)
			d := v.Decided(&w.org, w.caller, &w.request)
			if l := d.Limits[0]; l.Max != 2_000_000 || l.Raised != 1_000_000 || l.Value != 2_000_000 {
				t.Errorf("%+v", l)
			}
			spent("with a raise that is spent")
			if v := ask(); !strings.Contains(v.Rejection().Message, "The cap is $0.002") {
				t.Errorf("the refusal does not show the raised cap: %s", v.Rejection().Message)
			}
			raise(key, good, good)
			spend(ask(), 0) // raises add up
		})
	}
}

// A replay raises caps as they were raised at the times of the requests.
func TestReplayRaises(t *testing.T) {
	w, _ := money(t, `{"daily_usd_cap":0.002}`)
	body(`{"model":"small","max_tokens":100` + chat)(w)
	allowed := w.allow()
	recorded := allowed.Decided(&w.org, w.caller, &w.request)
	recorded.Org, recorded.ReservedNanoUSD = w.org.ID, 1_000_000
	day := noon.Format("2006-01-02")
	key := "policy:pol_a:daily_usd_cap:policy:"
	r := verdict.NewReplay(w.org.Policies, w.org.Policies, noon, nil, map[string][]verdict.Raise{key: {
		{Period: day, NanoUSD: 1_000_000, Begins: noon.Add(3 * time.Second), Ends: noon.Add(6 * time.Second)},
		{Period: "2001-01-01", NanoUSD: 9_000_000, Begins: noon, Ends: noon.Add(time.Hour)},
		{Period: day, NanoUSD: 5_000_000, Begins: noon.Add(7 * time.Second), Ends: noon.Add(time.Hour)},
	}})
	got := ""
	for i := range 8 {
		d := recorded
		d.RequestID, d.Time = fmt.Sprint("r", i), noon.Add(time.Duration(i)*time.Second)
		again, ok := r.Next(t.Context(), d)
		if !ok || again.Changes() {
			t.Fatalf("%+v", again)
		}
		got += again.Candidate.Effect.String()[:1]
		r.Ended(t.Context(), audit.Settled{RequestID: d.RequestID, Time: d.Time, ChargedNanoUSD: 1_000_000, Usage: audit.Usage{Source: "provider"}})
	}
	if got != "aadaddda" {
		t.Errorf("%s", got)
	}
}

// An entry names the version of each policy that decided. It also names the day of the
// decision in the org's time zone.
func TestVersionsAndDay(t *testing.T) {
	w := newWorld(t, `{"name":"a","effect":"allow","conditions":{}}`, `{"name":"b","effect":"allow","conditions":{}}`, `{"name":"c","effect":"deny","conditions":{"request.model":"big-x"}}`)
	calendar, err := budget.NewCalendar("Pacific/Kiritimati", "Pacific/Kiritimati", time.Time{}) // UTC+14
	if err != nil {
		t.Fatal(err)
	}
	w.org.Calendar = calendar
	v := w.allow()
	d := v.Decided(&w.org, w.caller, &w.request)
	if fmt.Sprintf("%v %v %s", d.PolicyIDs, d.PolicyVersions, d.Day) != "[pol_a pol_b] [1 1] 2026-07-02" {
		t.Errorf("%v %v %q", d.PolicyIDs, d.PolicyVersions, d.Day)
	}
	for end, day := range map[time.Time]string{noon: "2026-07-02", noon.Add(12 * time.Hour): "", noon.Add(36 * time.Hour): "2026-07-02"} {
		if s := v.Settled(w.caller, &w.request, verdict.Ending{Time: end}, true, nil); s.Day != day {
			t.Errorf("a request that ends at %v counts on %q, want %q", end, s.Day, day)
		}
	}
	v = w.deny(403, "policy_denied", body(`{"model":"big-x"`+chat))
	if d := v.Decided(&w.org, w.caller, &w.request); fmt.Sprint(d.PolicyIDs, d.PolicyVersions) != "[pol_c] [1]" {
		t.Errorf("%v %v", d.PolicyIDs, d.PolicyVersions)
	}
}
