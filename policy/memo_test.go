package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Each field of the input document changes the key of a memo, but the time.
func TestMemoKeyHasEveryField(t *testing.T) {
	for _, f := range inputFields() {
		id := f.section + "." + f.name
		w := &writer{metadata: []string{"k"}, sections: []section{{fields: []keyed{{id: id, name: f.name, value: f.value}}}}}
		// Two inputs that differ in every field.
		a, b := fullInput(1), fullInput(2)
		same := string(w.key(nil, &a)) == string(w.key(nil, &b))
		if same != timely[id] {
			t.Errorf("%s: inputs that differ in it have the same key: %v", id, same)
		}
		// What the field is made from, alone, changes the key whenever it changes the value.
		for _, name := range fieldPaths(reflect.TypeFor[Input](), nil) {
			c := fullInput(1)
			reflect.ValueOf(&c).Elem().FieldByIndex(name).Set(reflect.ValueOf(b).FieldByIndex(name))
			va, vc := f.value(&a), f.value(&c)
			if va != nil && vc != nil && va.Compare(vc) != 0 && string(w.key(nil, &a)) == string(w.key(nil, &c)) && !timely[id] {
				t.Errorf("%s: field %v changes the value, and not the key", id, name)
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
		Caller: CallerAttrs{KeyID: s, KeyScopes: []string{s}, KeyAllowedModels: []string{s}, KeyExpiresAt: time.Date(2027, 7, n, 0, 0, 0, 0, time.UTC), KeyStatus: s, KeyRateLimit: int64(n), IP: s, UserAgent: s},
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
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	m.put("used", remembered{})
	for i := range 40 * maxGeneration / 1024 {
		m.put(strings.Repeat(string(rune('a'+i%26)), 900)+string(rune(i)), remembered{})
		if _, ok := m.get([]byte("used"), now); !ok {
			t.Fatalf("after %d others, what is used is gone", i)
		}
		if m.weight > maxGeneration || len(m.young)+len(m.old) > 2*maxGeneration/900 {
			t.Fatalf("%d entries of weight %d", len(m.young)+len(m.old), m.weight)
		}
	}
	m.put(strings.Repeat("x", maxRemembered+1), remembered{})
	if _, ok := m.get([]byte(strings.Repeat("x", maxRemembered+1)), now); ok {
		t.Error("an answer that is too large is kept")
	}
	m.put("timed", remembered{from: now, until: now.Add(time.Second)})
	for at, want := range map[time.Duration]bool{-1: false, 0: true, time.Second - 1: true, time.Second: false} {
		if _, ok := m.get([]byte("timed"), now.Add(at)); ok != want {
			t.Errorf("at %v it is kept: %v", at, ok)
		}
	}
}
