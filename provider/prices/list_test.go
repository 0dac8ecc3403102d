package prices

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

// TestList: the built-in list is the output of tools/prices.py. The test has its counts, so
// that a new version of the package is reviewed before use.
func TestList(t *testing.T) {
	table, err := Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	type counts struct{ models, priced, services, steps, dated int }
	want := map[string]counts{
		"openai":    {114, 104, 69, 16, 5},
		"anthropic": {27, 27, 5, 4, 2},
		"gemini":    {49, 45, 8, 9, 11},
		"cohere":    {9, 9, 0, 0, 0},
		"mistral":   {53, 37, 0, 0, 5},
	}
	for _, v := range table.vendors {
		var got counts
		for _, m := range v.Models {
			got.models++
			if len(m.Prices) > 0 {
				got.priced++
			}
			for i, p := range append(slices.Clone(m.Prices), m.Services...) {
				wellFormed(t, v.Kind+" "+m.ID, p, i >= len(m.Prices))
				if p.Service != "" {
					got.services++
				} else if len(p.rates[input].steps) > 0 {
					got.steps++
				}
				if p.Service == "" && !p.from.IsZero() {
					got.dated++
				}
			}
			if !slices.IsSortedFunc(m.Prices, func(a, b period) int { return a.from.Compare(b.from) }) {
				t.Errorf("%s %s: its prices are not in the order of time", v.Kind, m.ID)
			}
			if !reachable(v, m) {
				t.Errorf("%s %s: each of its names is an earlier model's", v.Kind, m.ID)
			}
		}
		if got != want[v.Kind] {
			t.Errorf("%s: %+v, want %+v", v.Kind, got, want[v.Kind])
		}
		for _, h := range v.Hosts {
			if h != strings.ToLower(h) || strings.ContainsAny(h, "/:") {
				t.Errorf("%s: %q is no host", v.Kind, h)
			}
		}
	}
	if len(table.vendors) != len(want) {
		t.Errorf("%d vendors", len(table.vendors))
	}
}

// wellFormed searches for impossible rates. An error of the tool would be a factor of a
// thousand or a million.
func wellFormed(t *testing.T, name string, p period, service bool) {
	t.Helper()
	const dollar = 1_000_000_000
	for s, r := range p.rates {
		rates := []int64{r.base}
		for _, step := range r.steps {
			rates = append(rates, step.rate)
			if step.above < 50_000 || step.above > 2_000_000 {
				t.Errorf("%s: %s changes at %d tokens", name, sortNames[s], step.above)
			}
		}
		for _, rate := range rates {
			if r.known && (rate < dollar/1000 || rate > 1000*dollar) {
				t.Errorf("%s: %s is %d", name, sortNames[s], rate)
			}
		}
	}
	for cheap, dear := range map[sort]sort{cached: input, cachedAudio: inputAudio, cachedImage: inputImage, write: longWrite} {
		if a, b := p.rates[cheap], p.rates[dear]; a.known && b.known && a.base > b.base {
			t.Errorf("%s: %s costs more than %s", name, sortNames[cheap], sortNames[dear])
		}
	}
	switch {
	case service != (p.Service != ""):
		t.Errorf("%s: service is %q", name, p.Service)
	case service && !slices.Contains([]string{"flex", "priority", "fast"}, p.Service):
		t.Errorf("%s: nobody reads the service %q from answers", name, p.Service)
	case !service && !p.rates[input].known:
		t.Errorf("%s: has no rate for its input", name)
	}
	if !p.from.IsZero() && (p.from.Year() < 2023 || p.from.Year() > 2030 || p.from.Hour() != 0) {
		t.Errorf("%s: from %v", name, p.from)
	}
}

// reachable reports whether some name finds m, if disputes are ignored.
func reachable(v vendor, m model) bool {
	for _, pattern := range m.Match {
		name := strings.NewReplacer("*", "", "#", "7").Replace(pattern)
		for i := range v.Models {
			if v.Models[i].is(name) {
				if v.Models[i].ID == m.ID || v.Models[i].ID == "disputed" {
					return true
				}
				break
			}
		}
	}
	return false
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, yes, no string
	}{
		{"gpt-4o", "gpt-4o", "gpt-4o-mini gpt-4 Gpt-4o xgpt-4o"},
		{"gpt-4*", "gpt-4 gpt-4o gpt-4-32k", "gpt-3 xgpt-4"},
		{"*-tts", "a-tts -tts", "a-tts-b tts"},
		{"*-tts-*", "a-tts-b -tts-", "a-tts"},
		{"a*b*c", "abc axbxc abbc abcbc", "ab acb abcx"},
		{"a*a", "aa aba", "a"},
		{"*", "x gpt", ""},
		{"m-####-##-##", "m-2026-01-31", "m-2026-1-31 m-2026-01-31x m-abcd-01-31 m-####-##-##"},
		{"m-#*", "m-1 m-1x", "m- m-x"},
	} {
		for _, s := range strings.Fields(c.yes) {
			if !matches(c.pattern, s) {
				t.Errorf("%s does not match %s", c.pattern, s)
			}
		}
		for _, s := range strings.Fields(c.no) {
			if matches(c.pattern, s) {
				t.Errorf("%s matches %s", c.pattern, s)
			}
		}
	}
}

func TestDollars(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "0.0": 0, "1": 1e9, "2.5": 25e8, "2.50": 25e8, "0.0375": 37_500_000, "0.000000001": 1, "999999.999999999": 999_999_999_999_999, "007": 7e9,
	} {
		if got, problem := dollars(s); got != want || problem != "" {
			t.Errorf("%s: %d %s", s, got, problem)
		}
	}
	for _, s := range []string{"", ".", "1.", ".5", "-1", "+1", "1e3", "1_000", "1,5", "0x1", "1 ", " 1", "1000000", "0.0000000001", "NaN", "١", "1.2.3"} {
		if got, problem := dollars(s); problem == "" {
			t.Errorf("%q is %d", s, got)
		}
	}
}

// TestPeriods: a price applies from the first moment of its day, UTC.
func TestPeriods(t *testing.T) {
	day := func(s string) time.Time {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	at := func(n int64) (r rates) { r[input] = price{known: true, base: n}; return r }
	out := func(n int64) (r rates) { r[output] = price{known: true, base: n}; return r }
	m := model{
		Prices: []period{{rates: at(1)}, {from: day("2026-03-01T00:00:00Z"), rates: at(2)}, {from: day("2026-05-01T00:00:00Z"), rates: at(3)}},
		Services: []period{
			{Service: "flex", from: day("2026-06-01T00:00:00Z"), rates: at(10)},
			{Service: "flex", from: day("2026-05-01T00:00:00Z"), rates: at(11)},
			{Service: "flex", from: day("2026-05-01T00:00:00Z"), rates: out(12)},
		},
	}
	for _, c := range []struct {
		at, service   string
		input, output int64
		ok            bool
	}{
		{"2020-01-01T00:00:00Z", "", 1, 0, true},
		{"2026-02-28T23:59:59Z", "default", 1, 0, true},
		{"2026-03-01T00:00:00Z", "standard", 2, 0, true},
		{"2026-03-01T00:30:00+01:00", "", 1, 0, true}, // still February in UTC
		{"2026-07-01T00:00:00Z", "", 3, 0, true},
		{"2026-04-30T23:59:59Z", "flex", 0, 0, false}, // no price yet
		{"2026-05-01T00:00:00Z", "flex", 11, 12, true},
		{"2026-06-01T00:00:00Z", "flex", 10, 12, true}, // the first that has begun, for each sort
		{"2026-06-01T00:00:00Z", "priority", 0, 0, false},
	} {
		r, ok := m.rates(c.service, day(c.at))
		if ok != c.ok || ok && (r[input].base != c.input || r[output].base != c.output) {
			t.Errorf("%s %s: %d %d %v", c.at, c.service, r[input].base, r[output].base, ok)
		}
	}
}

// FuzzFile: no file makes the parser panic. The prices in an accepted file are within the
// limits of the arithmetic.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "prices:\n- provider: a\n  input: 1\n", "prices: [{kind: openai, models: [\"gpt-*\"], list: openai}]",
		"prices:\n- {provider: a, input: \"0.000000001\", output: 999999.999999999, cached_input: 0, cache_write: 1, reasoning: 2}\n",
		"prices: &a [*a]\n", "prices:\n- &x\n  output: *x\n", "prices: !!float 1\n", "prices:\n- provider: a\n  input: !!str 1\n", "prices:\n- <<: {provider: a}\n  input: &x 1\n  output: *x\n",
	} {
		f.Add(seed)
	}
	lists, err := Load(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		overrides, err := lists.parse([]byte(text))
		if err != nil {
			return
		}
		table := &Table{overrides: overrides, vendors: lists.vendors}
		p := provider.Provider{Name: "a", Kind: "openai", BaseURL: "http://127.0.0.1/v1"}
		few, ok := table.Cost(p, "gpt-4o", "", provider.Usage{InputTokens: 10, OutputTokens: 10, Source: "provider"}, time.Unix(1e9, 0))
		many, okMany := table.Cost(p, "gpt-4o", "", provider.Usage{InputTokens: 11, OutputTokens: 10, Source: "provider"}, time.Unix(1e9, 0))
		if few < 0 || many < few || ok != okMany {
			t.Errorf("%q: %d %v, %d %v", text, few, ok, many, okMany)
		}
	})
}
