package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each field of the input document changes the key of a policy in Rego.
func TestMemoKeyHasEveryField(t *testing.T) {
	for _, f := range inputFields() {
		if f.mixed {
			f.keys = []string{"k"}
		}
		e := &engine{writer: &writer{sections: []section{{fields: []keyed{{field: f}}}}}}
		key := func(in *Input) string {
			var r room
			e.appendKey(&r, in)
			return string(r.key)
		}
		// Two inputs that differ in every field.
		a, b := fullInput(1), fullInput(2)
		if key(&a) == key(&b) {
			t.Errorf("%s: inputs that differ in it have the same key", f.id())
		}
		// What the field is made from, alone, changes the key whenever it changes the value.
		for _, name := range fieldPaths(reflect.TypeFor[Input](), nil) {
			c := fullInput(1)
			reflect.ValueOf(&c).Elem().FieldByIndex(name).Set(reflect.ValueOf(b).FieldByIndex(name))
			va, vc := f.value(&a), f.value(&c)
			if va != nil && vc != nil && va.Compare(vc) != 0 && key(&a) == key(&c) {
				t.Errorf("%s: field %v changes the value, and not the key", f.id(), name)
			}
		}
	}
}

func fieldPaths(t reflect.Type, path []int) (out [][]int) {
	for i := range t.NumField() {
		p := append(append([]int{}, path...), i)
		if f := t.Field(i).Type; f.Kind() == reflect.Struct && f != reflect.TypeFor[time.Time]() {
			out = append(out, fieldPaths(f, p)...)
		} else {
			out = append(out, p)
		}
	}
	return out
}

func fullInput(n int) Input {
	s, nano := strings.Repeat("x", n), int64(n)
	return Input{
		Spend: SpendAttrs{Day: &nano, Month: &nano},
		Agent: AgentAttrs{ID: s, Name: s, Team: s, Environment: s, Tier: s, Status: s, AllowedModels: []string{s}, Metadata: map[string]any{"k": json.Number([]string{"", "1", "2"}[n])}},
		Request: RequestAttrs{Operation: s, Scope: s, Provider: s, Model: s, Mode: s, Host: s, Path: s, Stream: n == 1, MaxTokens: int64(n), InputTokensEstimate: int64(n),
			Bytes: int64(n), Tools: []string{s}, ToolFamilies: []string{s}, ToolsOther: n == 1, SessionID: s, URLHosts: []string{s}, Time: time.Date(2026, 7, n, n, 0, 0, 0, time.UTC)},
		Caller: CallerAttrs{Kind: s, KeyID: s, KeyScopes: []string{s}, KeyAllowedModels: []string{s}, KeyExpiresAt: time.Date(2027, 7, n, 0, 0, 0, 0, time.UTC), KeyStatus: s, KeyRateLimit: int64(n), IP: s, UserAgent: s},
		Org:    OrgAttrs{ID: s, Tier: s},
	}
}

// A span does not change within what steady returns, in each zone and at each change of an
// offset. What steady returns is not empty.
func TestSpanIsSteady(t *testing.T) {
	for _, s := range []span{
		{zone: "Europe/Berlin", hours: true, from: 22 * 60, to: 6 * 60}, {zone: "America/Los_Angeles", hours: true, from: 2*60 + 30, to: 3 * 60},
		{zone: "Asia/Kathmandu", weekdays: true, firstDay: 1, lastDay: 5}, {zone: "Australia/Lord_Howe", hours: true, from: 60, to: 150, firstDate: "2026-04-01", endDate: "2026-04-05"},
		{zone: "America/Sao_Paulo", firstDate: "2018-11-03", endDate: "2018-11-04"}, {zone: "Pacific/Apia", weekdays: true, firstDay: 5, lastDay: 6}, {},
	} {
		for _, day := range []time.Time{
			time.Date(2026, 3, 7, 0, 0, 0, 0, time.UTC), time.Date(2026, 3, 28, 0, 0, 0, 0, time.UTC), time.Date(2026, 10, 24, 0, 0, 0, 0, time.UTC),
			time.Date(2026, 4, 4, 0, 0, 0, 0, time.UTC), time.Date(2018, 11, 3, 0, 0, 0, 0, time.UTC), time.Date(2011, 12, 29, 0, 0, 0, 0, time.UTC),
			time.Date(1890, 1, 1, 0, 0, 0, 0, time.UTC),
		} {
			for at := day; at.Before(day.Add(60 * time.Hour)); at = at.Add(7*time.Minute + 13*time.Second) {
				from, until, ok := s.steady(at)
				if !ok || from.After(at) || !until.After(at) {
					t.Fatalf("%+v at %v: from %v until %v, %v", s, at, from, until, ok)
				}
				for step := range 16 {
					if x := from.Add(until.Sub(from) / 16 * time.Duration(step)); s.holds(x) != s.holds(at) {
						t.Fatalf("%+v at %v holds: %v. At %v, between %v and %v, it does not agree", s, at, s.holds(at), x, from, until)
					}
				}
				if last := until.Add(-time.Nanosecond); s.holds(last) != s.holds(at) {
					t.Fatalf("%+v: at %v, the last instant before %v", s, last, until)
				}
			}
		}
	}
}

// A memo is bounded, and keeps what is used.
func TestMemoIsBounded(t *testing.T) {
	m := newMemo()
	m.put("used", &outcome{})
	for i := range 40 * maxGeneration / 1024 {
		m.put(strings.Repeat(string(rune('a'+i%26)), 900)+string(rune(i)), &outcome{})
		if m.get([]byte("used")) == nil {
			t.Fatalf("after %d others, what is used is gone", i)
		}
		if m.weight > maxGeneration || len(m.young)+len(m.old) > 2*maxGeneration/900 {
			t.Fatalf("%d entries of weight %d", len(m.young)+len(m.old), m.weight)
		}
	}
	for name, o := range map[string]*outcome{strings.Repeat("x", maxRemembered): {}, "y": {governs: make([]string, maxRemembered/memberWeight)}} {
		if m.put(name, o); m.get([]byte(name)) != nil {
			t.Error("a result that is too large is kept")
		}
	}
}

// A wrong result in the memo is found by the evaluations that check it. The request is denied,
// and then the memo is not used.
func TestMemoIsChecked(t *testing.T) {
	b, err := Compile(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	in := active()
	if d := b.Decide(context.Background(), in); d.Effect != Allow {
		t.Fatalf("%+v", d)
	}
	if b.engine.appendKey(&room{}, &in); len(b.engine.memo.young) != 1 {
		t.Fatalf("%d results are kept", len(b.engine.memo.young))
	}
	for key := range b.engine.memo.young {
		b.engine.memo.young[key] = &outcome{effect: Deny, deny: []string{"pol_x"}}
	}
	for n := range checkEvery + 2 {
		d := b.Decide(context.Background(), in)
		switch {
		case n < checkEvery-1 && d.Err == nil && d.Effect == Deny:
		case n == checkEvery-1 && errors.Is(d.Err, errMemo) && d.Effect == Deny && d.Reasons[0].Code == "policy_error":
		case n >= checkEvery && d.Err == nil && d.Effect == Allow:
		default:
			t.Fatalf("decision %d: %+v", n, d)
		}
	}
}

// An input that takes too many comparisons has no facts, and OPA evaluates it.
func TestFactsAreBounded(t *testing.T) {
	ps := make([]Policy, 60)
	for i := range ps {
		ps[i] = Policy{ID: fmt.Sprint("pol_", i), OrgID: "org_1", Document: []byte(`{"name": "x", "effect": "deny", "conditions": {"request.tool": {"glob": "none*"}}}`)}
	}
	b, err := Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	in := active()
	var r room
	if in.Request.Tools = make([]string, maxTrial/60); !b.engine.appendKey(&r, &in) {
		t.Errorf("%d comparisons are too many", r.steps)
	}
	in.Request.Tools = make([]string, maxTrial/60+1)
	if b.engine.appendKey(&r, &in) || r.steps > maxTrial+len(ps) {
		t.Errorf("%d comparisons are not too many", r.steps)
	}
	if d := b.Decide(context.Background(), in); d.Effect != Allow || len(b.engine.memo.young) != 0 {
		t.Errorf("%+v", d)
	}
	// Nor have times that do not sort as text.
	for _, year := range []int{0, 1, 9999, 10_000} {
		in := active()
		if in.Request.Time = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC); b.engine.appendKey(&r, &in) {
			t.Errorf("the year %d has facts", year)
		}
	}
}

// Rules are found by the values that they want. Each rule is found, or tried for each input.
func TestFactsAreIndexed(t *testing.T) {
	for conditions, fields := range map[string]string{
		`"agent.team": "a", "request.model": "m"`:                                      "agent.team",
		`"agent.team": {"in": ["a", "b"]}`:                                             "agent.team",
		`"any": [{"agent.team": "a"}, {"request.model": "m"}]`:                         "agent.team request.model",
		`"any": [{"agent.team": "a"}, {"request.bytes": {"gt": 1}}]`:                   "",
		`"not": {"agent.team": "a"}`:                                                   "",
		`"agent.team": {"ne": "a"}`:                                                    "",
		`"request.tool": "a"`:                                                          "request.tool_names",
		`"tool.family": "shell", "request.bytes": {"gt": 1}`:                           "request.tool_families",
		`"not": {"request.tool": "a"}`:                                                 "",
		`"request.url_host": "a.example"`:                                              "request.url_hosts",
		`"caller.key_scopes": "chat:completions"`:                                      "caller.key_scopes",
		`"agent.metadata.level": 3`:                                                    "agent.metadata.level",
		`"request.stream": true, "request.path": {"prefix": "/v1"}`:                    "request.stream",
		`"request.time": {"between": ["00:00", "12:00"]}, "request.host": "h.example"`: "request.host",
	} {
		d, err := parse([]byte(`{"name": "x", "effect": "deny", "conditions": {` + conditions + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		c := factCompiler{wanted: map[want]int{}}
		wants, _ := c.best(d.conditions, Deny)
		var of []string
		for _, w := range wants {
			of = append(of, w.of)
		}
		slices.Sort(of)
		if got := strings.Join(slices.Compact(of), " "); got != fields {
			t.Errorf("%s is found by %q, want %q", conditions, got, fields)
		}
		if fs := factsOf([]rule{{d.conditions, Deny}}); (len(fs.rest) == 0) != (fields != "") {
			t.Errorf("%s: %d rules are tried for each input", conditions, len(fs.rest))
		}
	}
	// An allow policy on tools holds without tools. Of two values the rarer one finds a rule.
	d, err := parse([]byte(`{"name": "x", "effect": "allow", "conditions": {"request.tool": "a"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if wants, _ := (&factCompiler{}).best(d.conditions, Allow); wants != nil {
		t.Errorf("%v", wants)
	}
	var rules []rule
	for i := range 10 {
		d, err := parse(fmt.Appendf(nil, `{"name": "x", "effect": "deny", "conditions": {"agent.environment": "prod", "request.model": "m-%d"}}`, i))
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, rule{d.conditions, Deny})
	}
	if fs := factsOf(rules); len(fs.indexes) != 1 || len(fs.indexes[0].rules) != 10 {
		t.Errorf("%+v", fs.indexes)
	}
}
