package budget_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/budget"
)

func TestSessions(t *testing.T) {
	var s budget.Sessions
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	find := func(after time.Duration, agent, id string) budget.Session {
		x := s.Find(at.Add(after), "org_1", agent, "key_1", id)
		s.Passed(at.Add(after), x)
		return x
	}
	for _, c := range []struct {
		after     time.Duration
		agent, id string
		fresh     bool
	}{
		{0, "ag_1", "a", true},
		{0, "ag_2", "a", true}, // another agent's
		{time.Minute, "ag_1", "a", false},
		{23 * time.Hour, "ag_1", "a", false}, // silence does not end it
		{23*time.Hour + 59*time.Minute, "ag_1", "a", false},
		{24 * time.Hour, "ag_1", "a", true},
		{24*time.Hour + time.Minute, "ag_1", "a", false},
		{24 * time.Hour, "ag_1", "", true},
		{24*time.Hour + 29*time.Minute, "ag_1", "", false},
		{24*time.Hour + 58*time.Minute, "ag_1", "", false},
		{24*time.Hour + 88*time.Minute, "ag_1", "", true}, // 30 minutes of silence
	} {
		x := find(c.after, c.agent, c.id)
		if x.Fresh != c.fresh || c.fresh && !x.Began.Equal(at.Add(c.after)) || x.Named != (c.id != "") {
			t.Errorf("%s %q after %v: %+v", c.agent, c.id, c.after, x)
		}
	}
	long := strings.Repeat("a", 5000)
	if x := find(47*time.Hour, "ag_1", long+"b"); len(x.Name) > 100 || !x.Fresh || find(47*time.Hour, "ag_1", long+"b").Fresh || !find(47*time.Hour, "ag_1", long+"c").Fresh {
		t.Errorf("a long id: %+v", x)
	}
	// An agent that changes its id with each request gets no count of its own at last.
	names := map[string]bool{}
	for i := range 3000 {
		names[find(48*time.Hour, "ag_3", fmt.Sprint(i)).Name] = true
	}
	if len(names) != 1001 {
		t.Errorf("%d sessions are told apart", len(names))
	}
	if x := find(48*time.Hour, "ag_3", "7"); x.Fresh {
		t.Error("a session was forgotten")
	}
	if x := find(73*time.Hour, "ag_3", "new"); !x.Fresh || x.Name != "ag_3/id/new" {
		t.Errorf("after a day: %+v", x)
	}
}

// A session's cap counts what an earlier process charged in it, for a day from its first
// request. Its requests are counted whether they end or not.
func TestSessionCounts(t *testing.T) {
	c := &clock{}
	l := &ledger{sums: map[string]int64{"s@2026-06-30T13:00": 4, "s@2026-06-29T11:00": 100}}
	m := budget.NewMemory(c.now, l)
	x := budget.Session{Name: "s", Began: c.now(), Named: true}
	usd := func(n int64) []budget.Limit {
		return []budget.Limit{{Key: "s", Kind: budget.SessionUSD, Max: 10, Amount: n, Session: x}, {Key: "n", Kind: budget.Uses, Max: 3, Session: x}}
	}
	if r, err := m.Reserve(t.Context(), "org_1", "a", usd(7)); err != nil || r.OK || r.Why != budget.TooLarge || r.Fits != 6 {
		t.Fatalf("%+v %v", r, err)
	}
	first := usd(6)
	if r, err := m.Reserve(t.Context(), "org_1", "a", first); err != nil || !r.OK || first[0].Left != 0 || first[1].Left != 2 {
		t.Fatalf("%+v %v %+v", r, err, first)
	}
	m.Settle(t.Context(), "a", budget.Used{NanoUSD: 1})
	for i, want := range []bool{true, true, false} {
		id := fmt.Sprint(i)
		if r, err := m.Reserve(t.Context(), "org_1", id, usd(1)); err != nil || r.OK != want || !want && (r.Which != 1 || r.Why != budget.Spent || r.RetryAfter != 0) {
			t.Fatalf("%d: %+v %v", i, r, err)
		}
	}
	m.Release(t.Context(), "1") // was not forwarded
	if r, err := m.Reserve(t.Context(), "org_1", "b", usd(1)); err != nil || !r.OK {
		t.Fatalf("%+v %v", r, err)
	}
	if reserved, _, n := m.InFlight(); reserved != 2 || n != 2 {
		t.Errorf("%d reserved by %d", reserved, n)
	}
	// The next session of the same name counts anew.
	c.advance(budget.SessionLife)
	x.Began = c.now()
	l.sums = nil
	if r, err := m.Reserve(t.Context(), "org_1", "c", usd(10)); err != nil || !r.OK {
		t.Fatalf("%+v %v", r, err)
	}
}

// The first requests of a session that come together have one count, also where the name of
// its period changes between them. A session that begins after silence has its own.
func TestSessionBeginsOnce(t *testing.T) {
	for _, kind := range []budget.Kind{budget.Uses, budget.SessionUSD} {
		for _, apart := range []time.Duration{time.Millisecond, -time.Millisecond} {
			c := &clock{}
			m := budget.NewMemory(c.now, &ledger{})
			n := 0
			passes := func(began time.Time) bool {
				n++
				l := []budget.Limit{{Key: "s", Kind: kind, Max: 2, Amount: 1, Session: budget.Session{Name: "s", Began: began}}}
				r, err := m.Reserve(t.Context(), "org_1", fmt.Sprint(n), l)
				if err != nil {
					t.Fatal(err)
				}
				m.Settle(t.Context(), fmt.Sprint(n), budget.Used{NanoUSD: 1})
				return r.OK
			}
			border := c.now().Truncate(10 * time.Minute).Add(10 * time.Minute)
			a, b := border.Add(-apart/2), border.Add(apart/2)
			if !passes(a) || !passes(b) || passes(a) || passes(b) {
				t.Errorf("kind %d, %v apart: it has more than 2", kind, apart)
			}
			if c.advance(31 * time.Minute); !passes(a.Add(30*time.Minute + time.Millisecond)) {
				t.Errorf("kind %d: the next session has the count of the one before", kind)
			}
		}
	}
}

// Sessions begin at a rate of an hour, and a request of a known session takes nothing.
func TestStarts(t *testing.T) {
	c := &clock{}
	m := budget.NewMemory(c.now, nil)
	starts := func(n int64) budget.Result {
		return m.Take([]budget.Limit{{Key: "k", Kind: budget.Starts, Max: 2, Amount: n}})
	}
	for i, want := range []bool{true, true, false} {
		if r := starts(1); r.OK != want || !want && r.RetryAfter != 30*time.Minute {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if r := starts(0); !r.OK {
		t.Fatalf("%+v", r)
	}
	c.advance(29 * time.Minute) // longer than counts of a minute are kept
	m.Take([]budget.Limit{{Key: "other", Max: 1}})
	c.advance(59 * time.Second)
	if r := starts(1); r.OK {
		t.Fatalf("%+v", r)
	}
	c.advance(time.Second)
	if r := starts(1); !r.OK {
		t.Fatalf("%+v", r)
	}
}
