package verdict_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/verdict"
)

// spends is what agents have spent. A negative amount is not known.
type spends struct {
	day, month int64
	at         time.Time
	asked      []string
}

func (s *spends) Spent(org, agent, day, month string) (inDay, inMonth *int64, at time.Time) {
	s.asked = append(s.asked, org+" "+agent+" "+day+" "+month)
	if s.day >= 0 {
		inDay = &s.day
	}
	if s.month >= 0 {
		inMonth = &s.month
	}
	return inDay, inMonth, s.at
}

// Policies read what the agent has spent. The entry has it with its age, so that the request
// is decided alike from the entry. What is not known is missing.
func TestSpend(t *testing.T) {
	w := newWorld(t, `{"name":"rich","effect":"deny","conditions":{"spend.month_usd":{"gte":50.5}}}`, `{"name":"today","effect":"deny","conditions":{"spend.day_usd":{"between":[1,2]}}}`)
	for _, c := range []struct {
		day, month int64
		denied     bool
		entry      string
	}{
		{-1, -1, false, `null`},
		{0, 0, false, `{"day_nano_usd":0,"month_nano_usd":0,"age_ms":1500}`},
		{-1, 50_499_999_999, false, `{"day_nano_usd":null,"month_nano_usd":50499999999,"age_ms":1500}`},
		{-1, 50_500_000_000, true, `{"day_nano_usd":null,"month_nano_usd":50500000000,"age_ms":1500}`},
		{1_000_000_000, -1, true, `{"day_nano_usd":1000000000,"month_nano_usd":null,"age_ms":1500}`},
		{2_000_000_001, 1, false, `{"day_nano_usd":2000000001,"month_nano_usd":1,"age_ms":1500}`},
	} {
		s := &spends{day: c.day, month: c.month, at: noon.Add(-1500 * time.Millisecond)}
		w.org.Spender = s
		v := w.judge()
		if v.Allowed() == c.denied {
			t.Errorf("%+v: %+v", c, v.Rejection())
		}
		if len(s.asked) != 1 || s.asked[0] != "org_1 ag_1 2026-07-01 2026-07" {
			t.Errorf("asked %q", s.asked)
		}
		d := v.Decided(&w.org, w.caller, &w.request)
		if got, err := json.Marshal(d.Spend); err != nil || string(got) != c.entry {
			t.Errorf("the entry has %s, want %s", got, c.entry)
		}
		e, err := audit.Parse(audit.Stamp(d, "org_1", "w_1", noon).Encode())
		if err != nil {
			t.Fatal(err)
		}
		in, _, ok := verdict.InputOf(e.(audit.Decided))
		if again := w.org.Policies.Decide(t.Context(), in); !ok || (again.Effect == policy.Deny) != c.denied {
			t.Errorf("%+v: decided again: %+v", c, again)
		}
		// A dry-run says that it does not know.
		a, ok := verdict.NewReplay(w.org.Policies, w.org.Policies, noon, nil, nil).Next(t.Context(), e.(audit.Decided))
		if !ok || !slices.Contains(a.Unknown, "spend.month_usd") {
			t.Errorf("%+v", a)
		}
	}
	other := newWorld(t, `{"name":"p","effect":"allow","conditions":{}}`)
	s := &spends{}
	other.org.Spender = s
	if v := other.allow(); len(s.asked) != 0 || v.Decided(&other.org, other.caller, &other.request).Spend != nil {
		t.Errorf("asked %q, though no policy reads it", s.asked)
	}
}
