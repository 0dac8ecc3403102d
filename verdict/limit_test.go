package verdict_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/prices"
	"github.com/ai-identity/ai-identity/verdict"
)

// sums is what was charged before, by counter.
type sums map[string]int64

func (s sums) Charged(_ context.Context, _ string, counters []string) ([]int64, error) {
	out := make([]int64, len(counters))
	for i, c := range counters {
		out[i] = s[c]
	}
	return out, nil
}

func (sums) Alone(context.Context, string) error { return nil }

// money is a world with prices and counts in memory. A token of small costs $0.000001 in and
// $0.000002 out.
func money(t *testing.T, limits string) (*world, *budget.Memory) {
	t.Helper()
	w := newWorld(t, `{"name":"p","effect":"allow","conditions":{},"limits":`+limits+`}`)
	table, err := prices.Load([]byte(`prices:
- provider: one
  models: [small]
  input: 1
  output: 2
  max_output_tokens: 8000
- provider: one
  models: ["big-wide"]
  input: 1
  output: 2
  context_window: 100000
- provider: one
  models: ["big-free"]
  input: 0
  output: 0
`))
	if err != nil {
		t.Fatal(err)
	}
	m := budget.NewMemory(func() time.Time { return noon }, sums{})
	w.org.Limiter, w.org.Pricer = m, table
	return w, m
}

func next(w *world) change {
	return func(x *world) { w.request.ID += "+"; x.request.ID = w.request.ID }
}

const chat = `,"messages":[{"role":"user","content":"hello"}]}`

// A request under a cap reserves the most that it may cost, and says so in its entry.
func TestReserved(t *testing.T) {
	w, m := money(t, `{"monthly_usd_cap":1}`)
	body(`{"model":"small","max_tokens":100,"n":3` + chat)(w)
	v := w.allow()
	worst := int64(len(w.request.Body)+256)*1000 + 300*2000
	d := v.Decided(&w.org, w.caller, &w.request)
	if d.ReservedNanoUSD != worst || d.PriceVersion != w.org.Pricer.Version() || len(d.Limits) != 1 {
		t.Fatalf("%+v, want %d", d, worst)
	}
	want := audit.Limit{Source: "pol_a", Name: "monthly_usd_cap", Value: 1e9, PolicyID: "pol_a", Limit: "monthly_usd_cap", Per: "policy",
		Counter: "policy:pol_a:monthly_usd_cap:policy:@2026-07", Period: "2026-07", Max: 1e9, Left: 1e9 - worst}
	if d.Limits[0] != want {
		t.Errorf("%+v, want %+v", d.Limits[0], want)
	}
	if reserved, _, _ := m.InFlight(); reserved != worst {
		t.Errorf("%d reserved, want %d", reserved, worst)
	}
	if v.Forward.Body != nil || v.Forward.Added() != nil {
		t.Errorf("the body of a request with a cap of its own is changed: %s", v.Forward.Body)
	}
}

// Where the caller sets no limit on the output, one is added under the field that the
// endpoint takes. What the caller sets is never lowered.
func TestOutputIsCapped(t *testing.T) {
	for _, c := range []struct {
		limits, path, body, added string
		want                      string
	}{
		{`{"monthly_usd_cap":9}`, "", `{"model":"small"` + chat, "max_tokens=8000", `{"max_tokens":8000,"model":"small"` + chat},
		{`{"tpm":100000}`, "", `{"model":"big-free"` + chat, "max_tokens=16384", `{"max_tokens":16384,"model":"big-free"` + chat},
		{`{"max_tokens":50}`, "", `{ }`, "", ""},
		{`{"max_tokens":50}`, "", `{"model":"small"` + chat, "max_tokens=50", `{"max_tokens":50,"model":"small"` + chat},
		{`{"max_tokens":50}`, "", `{"model":"small","max_tokens":null` + chat, "max_tokens=50", `{"model":"small","max_tokens":50` + chat},
		{`{"max_tokens":50}`, "", `{"model":"small","max_tokens":50` + chat, "", ""},
		{`{"max_tokens":50}`, "", `{"model":"small","max_completion_tokens":50` + chat, "", ""},
		{`{"max_tokens":50}`, "/v1/responses", `{"model":"small","input":"hello"}`, "max_output_tokens=50", `{"max_output_tokens":50,"model":"small","input":"hello"}`},
		{`{"max_tokens":50}`, "/v1/completions", `{"model":"small","prompt":"hello"}`, "max_tokens=50", `{"max_tokens":50,"model":"small","prompt":"hello"}`},
		{`{"max_tokens":50}`, "/v1/embeddings", `{"model":"small","input":"hello"}`, "", ""},
		{`{"rpm":50}`, "", `{"model":"small"` + chat, "", ""},
		{`{"monthly_usd_cap":9}`, "", `{"model":"small","stream":true` + chat, "max_tokens=8000",
			`{"max_tokens":8000,"stream_options":{"include_usage":true},"model":"small","stream":true` + chat},
		{`{"monthly_usd_cap":9}`, "", `{"model":"small","max_tokens":7,"stream_options":{},"stream":true` + chat, "",
			`{"model":"small","max_tokens":7,"stream_options":{"include_usage":true},"stream":true` + chat},
		{`{"monthly_usd_cap":9}`, "", `{"max_tokens":null,"stream_options":{"include_obfuscation":true},"stream":true,"model":"small"` + chat, "max_tokens=8000",
			`{"max_tokens":8000,"stream_options":{"include_usage":true,"include_obfuscation":true},"stream":true,"model":"small"` + chat},
	} {
		w, _ := money(t, c.limits)
		w.caller.Key.Scopes = []string{"*"}
		v := w.judge(body(c.body), func(w *world) {
			if c.path != "" {
				w.request.Path = c.path
			}
		})
		if added := strings.Join(v.Forward.Added(), " "); added != c.added || c.want != "" && string(v.Forward.Body) != c.want {
			t.Errorf("%s %s: added %q: %s", c.limits, c.body, added, v.Forward.Body)
		}
		if v.Forward.Body != nil && (!json.Valid(v.Forward.Body) || v.ForwardedDigest == "" || v.ForwardedDigest == v.Digest) {
			t.Errorf("%s: forwards %s", c.body, v.Forward.Body)
		}
	}
	w, m := money(t, `{"max_tokens":50,"monthly_usd_cap":9}`)
	v := w.deny(403, "max_tokens_exceeded", body(`{"model":"small","max_tokens":51`+chat))
	if v.PolicyID() != "pol_a" {
		t.Errorf("it rests on %q", v.PolicyID())
	}
	w.deny(403, "max_tokens_exceeded", body(`{"model":"small","max_tokens":1,"max_completion_tokens":51`+chat))
	w.deny(400, "invalid_max_tokens", body(`{"model":"small","max_tokens":0`+chat))
	w.deny(400, "invalid_type", body(`{"model":"small","n":2.0`+chat))
	if reserved, _, n := m.InFlight(); reserved != 0 || n != 0 {
		t.Errorf("rejected requests hold %d", reserved)
	}
}

// What has no bound, or no price, is rejected under a cap. What costs nothing is not.
func TestUnboundedCost(t *testing.T) {
	w, m := money(t, `{"monthly_usd_cap":0.000000001}`)
	w.caller.Key.Scopes = []string{"*"}
	v := w.deny(403, "price_unknown", body(`{"model":"big-other"`+chat))
	if e := v.Rejection(); !strings.Contains(e.Message, `- {provider: one, models: ["big-other"], input: …, output: …}`) {
		t.Error(e.Message)
	}
	image := `,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x.example/a.png"}}]}]}`
	w.deny(403, "price_unknown", body(`{"model":"small"`+image))
	w.deny(429, "budget_too_large", body(`{"model":"big-wide"`+image))
	for _, tools := range []string{`"web_search_options":{}`, `"tools":[{"type":"web_search"}]`, `"tools":[{"type":"mcp","server_label":"a","server_url":"https://x.example"}]`} {
		if v := w.judge(body(`{"model":"small",` + tools + chat)); v.Rejection() == nil || v.Rejection().Code != "unbounded_cost" && v.Rejection().Code != "unknown_field" {
			t.Errorf("%s: %+v", tools, v.Rejection())
		}
	}
	w.deny(403, "price_unknown", func(w *world) { w.org.Pricer = nil })
	v = w.allow(body(`{"model":"big-free"` + chat))
	if s := v.Settled(w.caller, &w.request, verdict.Ending{Outcome: "completed", Usage: provider.Usage{InputTokens: 5, Source: "provider"}}, true, w.org.Pricer); s.ChargedNanoUSD != 0 || s.ChargeBasis != audit.BasisUsage {
		t.Errorf("%+v", s)
	}
	w.allow(next(w), path("/v1/models"), func(w *world) { w.request.Method, w.request.Body, w.request.ContentType = "GET", nil, "" })
	if reserved, _, _ := m.InFlight(); reserved != 0 {
		t.Errorf("%d is held", reserved)
	}
}

// The three rejections of a cap.
func TestCapRejects(t *testing.T) {
	for per, own := range map[string]bool{"agent": true, "policy": false} {
		w, m := money(t, `{"monthly_usd_cap":{"limit":0.01,"per":"`+per+`"}}`)
		deny := func(code, text string, retry bool, c ...change) {
			t.Helper()
			v := w.deny(429, code, append(c, next(w))...)
			e := v.Rejection()
			if !strings.Contains(e.Message, "monthly USD cap") || !strings.Contains(e.Message, "2026-08-01T00:00:00Z") || !strings.Contains(e.Message, text) ||
				(e.RetryAfter > 0) != retry || e.Final() == retry || strings.Contains(e.Message, "The cap is $0.01") != own {
				t.Errorf("%s: %+v final %v", per, e, e.Final())
			}
			if d := v.Decided(&w.org, w.caller, &w.request); d.ReservedNanoUSD != 0 || len(d.Limits) != 1 || d.Limits[0].Counter == "" || v.PolicyID() != "pol_a" {
				t.Errorf("%+v", d)
			}
		}
		deny("budget_too_large", "With max_tokens of 48", false, body(`{"model":"small","max_tokens":7000`+chat))
		first := body(`{"model":"small","max_tokens":4000` + chat)
		w.allow(first)
		id := w.request.ID
		deny("budget_held", "Try again in 1s.", true, first)
		m.Settle(t.Context(), id, budget.Used{NanoUSD: 10_000_000})
		deny("insufficient_quota", "is spent", false, first)
	}
}

// Each way to end has its charge.
func TestCharges(t *testing.T) {
	w, _ := money(t, `{"monthly_usd_cap":9}`)
	whole := w.allow(body(`{"model":"small","max_tokens":100` + chat))
	stream := w.allow(next(w), body(`{"model":"small","max_tokens":100,"stream":true`+chat))
	picture := w.allow(next(w), body(`{"model":"big-wide","max_tokens":100,"stream":true,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}`))
	opaque := picture.Decided(&w.org, w.caller, &w.request).ReservedNanoUSD
	worst := whole.Decided(&w.org, w.caller, &w.request).ReservedNanoUSD
	usage := provider.Usage{InputTokens: 10, OutputTokens: 5, Source: "provider"}
	reserved := stream.Decided(&w.org, w.caller, &w.request).ReservedNanoUSD
	estimate := int64(stream.Call.InputTokensEstimate) * 1000
	for _, c := range []struct {
		name      string
		v         verdict.Verdict
		forwarded bool
		e         verdict.Ending
		want      int64
		basis     string
		overrun   bool
	}{
		{"not forwarded", whole, false, verdict.Ending{Outcome: "refused"}, 0, audit.BasisNothing, false},
		{"cut before it was sent", whole, false, verdict.Ending{Outcome: "cut"}, 0, audit.BasisNothing, false},
		{"no connection", whole, true, verdict.Ending{Outcome: "upstream_reset", NotSent: true}, 0, audit.BasisNothing, false},
		{"an error of the provider", whole, true, verdict.Ending{Outcome: "provider_error", ProviderStatus: 500}, 0, audit.BasisError, false},
		{"usage", whole, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: usage}, 20_000, audit.BasisUsage, false},
		{"usage of zero", whole, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: provider.Usage{Source: "provider"}}, 0, audit.BasisUsage, false},
		{"an overrun", whole, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: provider.Usage{InputTokens: 1e6, Source: "provider"}}, 1e9, audit.BasisUsage, true},
		{"no usage", whole, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200}, worst, audit.BasisReservation, false},
		{"a price that is not known", whole, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: provider.Usage{InputTokens: 1, Source: "provider", Service: "flex"}}, worst, audit.BasisReservation, false},
		{"contradicting usage", whole, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: provider.Usage{InputTokens: 1, Source: "provider", Contradicts: true}}, worst, audit.BasisReservation, false},
		{"no answer", whole, true, verdict.Ending{Outcome: "client_closed"}, worst, audit.BasisReservation, false},
		{"unknown", whole, true, verdict.Ending{Outcome: audit.OutcomeUnknown}, worst, audit.BasisReservation, false},
		{"half of a whole answer", whole, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200}, worst, audit.BasisReservation, false},
		{"a stream", stream, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200, OutputSeen: 7}, estimate + 14_000, audit.BasisSeen, false},
		{"usage comes first", stream, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200, OutputSeen: 7, Usage: provider.Usage{InputTokens: 10, OutputTokens: 1, Source: "provider"}},
			10_000 + 14_000, audit.BasisSeen, false},
		{"usage comes often", stream, true, verdict.Ending{Outcome: "cut", ProviderStatus: 200, OutputSeen: 1, Usage: usage}, 20_000, audit.BasisSeen, false},
		{"a stream about a picture", picture, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200, OutputSeen: 1}, opaque, audit.BasisReservation, false},
		{"a stream about a picture, usage first", picture, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200, OutputSeen: 7, Usage: usage}, 24_000, audit.BasisSeen, false},
		{"an error in a stream", stream, true, verdict.Ending{Outcome: "provider_error", ProviderStatus: 200, OutputSeen: 7}, estimate + 14_000, audit.BasisSeen, false},
		{"a stream with final usage", stream, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, OutputSeen: 5, Usage: usage}, 20_000, audit.BasisUsage, false},
		{"zeros until the finish reason", stream, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, OutputSeen: 7, Usage: provider.Usage{Source: "provider"}}, reserved, audit.BasisReservation, false},
		{"zeros, and no output that is seen", stream, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: provider.Usage{Source: "provider"}}, reserved, audit.BasisReservation, false},
		{"input only until the finish reason", stream, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, OutputSeen: 7, Usage: provider.Usage{InputTokens: 10, Source: "provider"}}, reserved, audit.BasisReservation, false},
		{"old figures until the finish reason", stream, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, OutputSeen: 9, Usage: usage}, 28_000, audit.BasisSeen, false},
		{"no output at all", stream, true, verdict.Ending{Outcome: "completed", ProviderStatus: 200, Usage: provider.Usage{InputTokens: 10, Source: "provider"}}, 10_000, audit.BasisUsage, false},
		{"zeros, and it breaks off", stream, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200, OutputSeen: 7, Usage: provider.Usage{Source: "provider"}}, estimate + 14_000, audit.BasisSeen, false},
		{"zeros about a picture", picture, true, verdict.Ending{Outcome: "client_closed", ProviderStatus: 200, OutputSeen: 7, Usage: provider.Usage{Source: "provider"}}, opaque, audit.BasisReservation, false},
		{"more than was reserved", stream, true, verdict.Ending{Outcome: "broken_off", ProviderStatus: 200, OutputSeen: 1e6}, worst + 14_000, audit.BasisSeen, false},
	} {
		s := c.v.Settled(w.caller, &w.request, c.e, c.forwarded, w.org.Pricer)
		want := c.want
		if c.name == "more than was reserved" {
			want = c.v.Decided(&w.org, w.caller, &w.request).ReservedNanoUSD
		}
		if s.ChargedNanoUSD != want || s.ChargeBasis != c.basis || s.Overrun != c.overrun {
			t.Errorf("%s: charged %d %s overrun %v, want %d %s %v", c.name, s.ChargedNanoUSD, s.ChargeBasis, s.Overrun, want, c.basis, c.overrun)
		}
		if s.Priced && c.basis == audit.BasisReservation {
			t.Errorf("%s: it says that it cost %d", c.name, s.CostNanoUSD)
		}
	}
	free := newWorld(t)
	v := free.allow()
	if s := v.Settled(free.caller, &free.request, verdict.Ending{Outcome: "client_closed"}, true, nil); s.ChargeBasis != "" || s.ChargedNanoUSD != 0 {
		t.Errorf("without a cap: %+v", s)
	}
}

// A client that closes the connection before the usage has used its input and the output that
// it got.
func TestTokensUsed(t *testing.T) {
	w, _ := money(t, `{"tpm":100000}`)
	w.org.Pricer = nil
	whole := w.allow(body(`{"model":"small","max_tokens":100` + chat))
	stream := w.allow(next(w), body(`{"model":"small","max_tokens":100,"stream":true`+chat))
	if free := newWorld(t).allow(); !stream.Meters() || free.Meters() {
		t.Errorf("the output is counted: %v with tpm, %v without limits", stream.Meters(), free.Meters())
	}
	estimate := stream.Call.InputTokensEstimate
	if estimate <= 10 {
		t.Fatalf("the estimate is %d", estimate)
	}
	usage := func(in, out int64) provider.Usage {
		return provider.Usage{InputTokens: in, OutputTokens: out, Source: "provider"}
	}
	absent := provider.Usage{Source: "absent"}
	for _, c := range []struct {
		name string
		v    verdict.Verdict
		e    verdict.Ending
		want int64 // 0: the estimate stays
	}{
		{"usage", whole, verdict.Ending{Outcome: "completed", Usage: usage(10, 5)}, 15},
		{"usage of zero", whole, verdict.Ending{Outcome: "completed", Usage: usage(0, 0)}, whole.Call.InputTokensEstimate},
		{"half of a whole response", whole, verdict.Ending{Outcome: "client_closed", OutputSeen: 900, Usage: absent}, whole.Call.InputTokensEstimate + 900},
		{"an error", whole, verdict.Ending{Outcome: "provider_error", Usage: absent}, 0},
		{"a stream with final usage", stream, verdict.Ending{Outcome: "completed", OutputSeen: 5, Usage: usage(10, 5)}, 15},
		{"no usage", stream, verdict.Ending{Outcome: "client_closed", OutputSeen: 900, Usage: absent}, estimate + 900},
		{"no usage after the finish reason", stream, verdict.Ending{Outcome: "completed", OutputSeen: 900, Usage: absent}, estimate + 900},
		{"usage of the input first", stream, verdict.Ending{Outcome: "client_closed", OutputSeen: 900, Usage: usage(5000, 1)}, 5900},
		{"zeros", stream, verdict.Ending{Outcome: "client_closed", OutputSeen: 900, Usage: usage(0, 0)}, estimate + 900},
		{"zeros until the finish reason", stream, verdict.Ending{Outcome: "completed", OutputSeen: 900, Usage: usage(0, 0)}, estimate + 900},
		{"old figures until the finish reason", stream, verdict.Ending{Outcome: "completed", OutputSeen: 900, Usage: usage(5000, 1)}, 5900},
		{"zeros and no output", stream, verdict.Ending{Outcome: "client_closed", Usage: usage(0, 0)}, estimate},
	} {
		if u := c.v.Used(c.e, 7); u.NanoUSD != 7 || u.Counted != (c.want > 0) || u.Counted && u.Tokens != c.want {
			t.Errorf("%s: %+v, want %d", c.name, u, c.want)
		}
	}
}

// Limits of policies in shadow count apart and reject nothing.
func TestShadowMoney(t *testing.T) {
	w, m := money(t, `{}`)
	shadow := newWorld(t, `{"name":"s","effect":"allow","state":"shadow","conditions":{},"limits":{"monthly_usd_cap":0.01,"max_tokens":5000,"concurrent":1}}`)
	w.org.Policies = shadow.org.Policies
	body(`{"model":"small","max_tokens":4000` + chat)(w)
	v := w.allow()
	if v.Shadow.Effect != policy.Allow || len(v.ShadowIDs) != 2 || v.Reserved || v.PriceVersion != "" {
		t.Errorf("%+v %v", v.Shadow, v.ShadowIDs)
	}
	if d := v.Decided(&w.org, w.caller, &w.request); d.ReservedNanoUSD != 0 || len(d.Limits) != 0 {
		t.Errorf("%+v", d)
	}
	v = w.allow(next(w))
	if v.Shadow.Effect != policy.Deny || fmt.Sprint(v.Shadow.Reasons) != "[{budget_held  pol_a} {concurrency_limit_exceeded  pol_a}]" {
		t.Errorf("%+v", v.Shadow)
	}
	for _, id := range []string{"shadow:0:req-1", "shadow:2:req-1"} {
		m.Settle(t.Context(), id, budget.Used{})
	}
	if reserved, slots, n := m.InFlight(); reserved != 0 || slots != 0 || n != 0 {
		t.Errorf("%d %d %d are held", reserved, slots, n)
	}
}

func TestUSD(t *testing.T) {
	for n, want := range map[int64]string{0: "0.00", 1: "0.000000001", 1_500_000_000: "1.50", -2_000_000_000: "-2.00", 1_234_000_000: "1.234"} {
		if got := verdict.USD(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// A session has its requests, its time and its dollars, and an agent a number of sessions.
// The id that the client sends is never trusted to be another agent's.
func TestSessionLimits(t *testing.T) {
	w, _ := money(t, `{"session_requests":2,"session_seconds":600,"session_usd_cap":0.01,"sessions_per_hour":3}`)
	clock := noon
	w.org.Limiter, w.org.Sessions = budget.NewMemory(func() time.Time { return clock }, sums{}), &budget.Sessions{}
	body(`{"model":"small","max_tokens":100` + chat)(w)
	in := func(id string, after time.Duration) change {
		return func(x *world) {
			next(w)(x)
			clock = noon.Add(after)
			x.request.Session, x.request.Time = id, clock
		}
	}
	v := w.allow(in("a", 0))
	d := v.Decided(&w.org, w.caller, &w.request)
	got := ""
	for _, l := range d.Limits {
		got += fmt.Sprintf("%s of %s: %s, %d left\n", l.Name, l.Subject, l.Counter, l.Left)
	}
	const want = "session_requests of ag_1/id/a: policy:pol_a:session_requests:session:ag_1/id/a@2026-07-01T12:00, 1 left\n"
	if !strings.Contains(got, want) || !strings.Contains(got, "session_seconds of ag_1/id/a: , 600 left") {
		t.Errorf("%s\nwant %s", got, want)
	}
	w.deny(429, "budget_too_large", in("a", 0), body(`{"model":"small","max_tokens":7000`+chat))
	w.deny(429, "session_limit_exceeded", in("a", 10*time.Minute))
	w.allow(in("a", 9*time.Minute))
	w.deny(429, "session_limit_exceeded", in("a", 9*time.Minute))
	w.allow(in("b", 9*time.Minute))
	w.allow(in("b", 9*time.Minute))
	w.allow(in("", 10*time.Minute))
	v = w.deny(429, "rate_limit_exceeded", in("c", 10*time.Minute))
	if e := v.Rejection(); e.RetryAfter != 10*time.Minute {
		t.Errorf("%+v", e)
	}
	w.deny(429, "rate_limit_exceeded", in("c", 10*time.Minute)) // a rejected session has not begun
	other := func(x *world) { x.caller.Agent.ID, x.caller.Key.AgentID = "ag_2", "ag_2" }
	w.allow(in("a", 11*time.Minute), other)
	w.org.Sessions = nil
	w.deny(503, "limits_unavailable", in("a", 11*time.Minute))
}

// A session counts as a start for each limit, also if it began under another policy. Otherwise
// a client could begin sessions where nothing limits them.
func TestSessionStartsCountForEachLimit(t *testing.T) {
	w := newWorld(t, `{"name":"a","effect":"allow","conditions":{"request.model":"small"},"limits":{"session_requests":5}}`,
		`{"name":"b","effect":"allow","conditions":{"request.model":"big-x"},"limits":{"sessions_per_hour":2}}`)
	w.org.Limiter, w.org.Sessions = budget.NewMemory(func() time.Time { return noon }, nil), &budget.Sessions{}
	in := func(id, model string) change {
		return func(x *world) {
			next(w)(x)
			x.request.Session = id
			body(`{"model":"` + model + `","max_tokens":1` + chat)(x)
		}
	}
	for _, id := range []string{"x", "y", "z"} {
		w.allow(in(id, "small"))
	}
	w.allow(in("x", "big-x"))
	w.allow(in("x", "big-x"))
	w.allow(in("y", "big-x"))
	w.deny(429, "rate_limit_exceeded", in("z", "big-x"))
	w.allow(in("y", "big-x"))
}

// With a shared store, a session begins once for all sidecars. Its time counts from the first
// request on any of them. A sidecar that starts again has it too.
func TestSharedSessions(t *testing.T) {
	shared, server := sharedStore(t)
	w, _ := money(t, `{"session_seconds":600,"sessions_per_hour":2}`)
	w.org.ID = "org_1"
	w.org.Limiter, w.org.Shared = shared, shared
	sidecars := []*budget.Sessions{{}, {}}
	now := time.Now().UTC()
	n := 0
	ask := func(sidecar int, id string, after time.Duration) string {
		t.Helper()
		n++
		w.org.Sessions = sidecars[sidecar]
		w.request.ID, w.request.Session, w.request.Time = fmt.Sprint("s", n), id, now.Add(after)
		body(`{"model":"small","max_tokens":1` + chat)(w)
		v := w.judgeCounted()
		if e := v.Rejection(); e != nil {
			return e.Code
		}
		return "ok"
	}
	for i, c := range []struct {
		sidecar int
		id      string
		after   time.Duration
		want    string
	}{
		{0, "a", 0, "ok"},
		{1, "a", 5 * time.Minute, "ok"}, // no second start
		{1, "", 5 * time.Minute, "ok"},
		{0, "", 6 * time.Minute, "ok"},
		{0, "c", 6 * time.Minute, "rate_limit_exceeded"},
		{1, "c", 6 * time.Minute, "rate_limit_exceeded"}, // a rejected session has not begun
		{1, "a", 10 * time.Minute, "session_limit_exceeded"},
		{0, "a", 10 * time.Minute, "session_limit_exceeded"},
		{0, "", 14 * time.Minute, "ok"},
		{0, "", 15 * time.Minute, "session_limit_exceeded"}, // it began on the other sidecar
	} {
		if got := ask(c.sidecar, c.id, c.after); got != c.want {
			t.Errorf("request %d: %s, want %s", i, got, c.want)
		}
	}
	sidecars[0] = &budget.Sessions{}
	if got := ask(0, "a", 11*time.Minute); got != "session_limit_exceeded" {
		t.Errorf("after a start: %s", got)
	}
	// Without the store, a sidecar counts on with what it knows.
	server.Kill()
	if got := ask(1, "a", 11*time.Minute); got != "session_limit_exceeded" {
		t.Errorf("without the store: %s", got)
	}
}

// A dry-run counts all limits but those of sessions, in the order of time: by what the log says
// that each request reserved and used.
func TestReplayCounts(t *testing.T) {
	w, _ := money(t, `{"monthly_usd_cap":1}`)
	body(`{"model":"small","max_tokens":100` + chat)(w)
	v := w.allow()
	recorded := v.Decided(&w.org, w.caller, &w.request)
	recorded.Org = "org_1"
	compiled := func(limits string) *policy.Bundle {
		b, err := policy.Compile(t.Context(), []policy.Policy{{ID: "pol_a", OrgID: "org_1", Version: 1, Document: []byte(`{"name":"p","effect":"allow","conditions":{},"limits":` + limits + `}`)}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// Each letter is a request that begins (upper case) or ends, a second later each.
	for _, c := range []struct{ limits, events, want string }{
		{`{"rpm":1}`, "ABabC", "allow rate_limit_exceeded rate_limit_exceeded"},
		{`{"concurrent":1}`, "ABaC", "allow concurrency_limit_exceeded allow"},
		{`{"tpm":100}`, "AaBb", "allow rate_limit_exceeded"}, // A used 5,000 tokens
		{`{"tpm":100}`, "ABab", "allow allow"},               // and B began before that was known
		{`{"max_tokens":99}`, "A", "max_tokens_exceeded"},
		{`{"monthly_usd_cap":0.0009}`, "ABaCD", "allow budget_held allow budget_held"}, // it reserves $0.0006 and costs $0.0001
		{`{"monthly_usd_cap":0.0001}`, "A", "budget_too_large"},
		{`{"daily_usd_cap":0.0007}`, "AaBbCcDdEeFfGgHh", "allow allow budget_too_large budget_too_large budget_too_large budget_too_large budget_too_large budget_too_large"},
		{`{"session_requests":1}`, "AB", "allow allow"},
	} {
		r := verdict.NewReplay(compiled(c.limits), compiled(`{"rpm":1000}`), noon, nil, nil)
		if ends := !strings.Contains(c.limits, "rpm") && !strings.Contains(c.limits, "max_tokens"); r.ReadsEnds() != ends {
			t.Errorf("%s: reads ends: %v", c.limits, r.ReadsEnds())
		}
		var got []string
		for i, letter := range c.events {
			at, id := noon.Add(time.Duration(i)*time.Second), strings.ToLower(string(letter))
			if strings.ToLower(string(letter)) == string(letter) {
				r.Ended(t.Context(), audit.Settled{RequestID: id, Time: at, ChargedNanoUSD: 100_000, Usage: audit.Usage{InputTokens: 3000, OutputTokens: 2000, Source: "provider"}})
				continue
			}
			d := recorded
			d.RequestID, d.Time = id, at
			again, ok := r.Next(t.Context(), d)
			if !ok || again.Current.Effect != policy.Allow {
				t.Fatalf("%+v", again)
			}
			if len(again.Candidate.Reasons) > 0 {
				got = append(got, again.Candidate.Reasons[0].Code)
			} else {
				got = append(got, again.Candidate.Effect.String())
			}
			if want := strings.Contains(c.limits, "session"); (len(again.Unsimulated) > 0) != want {
				t.Errorf("%s: not simulated: %v", c.limits, again.Unsimulated)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s, %s: %s\nwant %s (each reserves %d)", c.limits, c.events, strings.Join(got, " "), c.want, recorded.ReservedNanoUSD)
		}
	}
}

// Limits of the org's tier apply beside those of policies, and to agents that no policy selects.
func TestTierLimits(t *testing.T) {
	w, _ := money(t, `{"rpm":100}`)
	body(`{"model":"small","max_tokens":100` + chat)(w)
	tier, err := policy.ParseTier("pro", []byte(`{"rpm":2,"daily_usd_cap":0.01}`))
	if err != nil {
		t.Fatal(err)
	}
	w.org.TierLimits = tier
	v := w.allow(next(w))
	d := v.Decided(&w.org, w.caller, &w.request)
	if len(d.Limits) != 3 || d.Limits[1].Counter != "tier:rpm:org_1" || d.Limits[1].PolicyID != "" || d.Limits[2].Counter != "tier:daily_usd_cap:org_1@2026-07-01" || d.ReservedNanoUSD == 0 {
		t.Errorf("%+v", d.Limits)
	}
	v = w.deny(429, "budget_too_large", next(w), body(`{"model":"small","max_tokens":7000`+chat))
	if e := v.Rejection(); strings.Contains(e.Message, "0.01") || v.PolicyID() != "" {
		t.Errorf("%s: figures that others share, or a policy", e.Message)
	}
	w.allow(next(w))
	w.deny(429, "rate_limit_exceeded", next(w))
	bundle, err := policy.Compile(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.org.Policies = bundle
	w.deny(429, "rate_limit_exceeded", next(w))
}
