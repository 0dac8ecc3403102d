package prices

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/provider"
)

func load(t testing.TB, file string) *Table {
	t.Helper()
	table, err := Load([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// The most that a request may cost is at the highest rate that may apply to each token.
func TestWorst(t *testing.T) {
	now := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	openai := provider.Provider{Name: "openai", Kind: "openai", BaseURL: "https://api.openai.com/v1"}
	ours := provider.Provider{Name: "ours", Kind: "custom", BaseURL: "https://x.example/v1"}
	const file = `prices:
- provider: ours
  models: [m]
  input: 1
  output: 2
  cache_write: 3
  reasoning: 5
- provider: ours
  models: [wide]
  input: 1
  output: 0
  context_window: 1000
  max_output_tokens: 77
- provider: ours
  models: [free]
  input: 0
  output: 0
- provider: ours
  models: [embeds]
  input: 0.000000001
`
	table := load(t, file)
	for _, c := range []struct {
		p       provider.Provider
		model   string
		b       provider.Bound
		want    int64
		missing string
	}{
		{ours, "m", provider.Bound{Input: 10, Output: 20}, 10*3000 + 20*5000, ""},
		{ours, "M", provider.Bound{Input: 10, Output: 20}, 10*3000 + 20*5000, ""},
		{ours, "m", provider.Bound{Opaque: true}, 0, `- {provider: ours, models: ["m"], input: …, output: …, context_window: …}`},
		{ours, "wide", provider.Bound{Input: 5, Opaque: true}, 1000 * 1000, ""},
		{ours, "wide", provider.Bound{Input: 1 << 40}, 1000 * 1000, ""},
		{ours, "free", provider.Bound{Input: 1 << 40, Output: 1 << 40, Opaque: true}, 0, ""},
		{ours, "embeds", provider.Bound{Input: 1}, 1, ""},
		{ours, "embeds", provider.Bound{Input: 1, Output: 1}, 0, `models: ["embeds"]`},
		{ours, "other", provider.Bound{}, 0, `- {provider: ours, models: ["other"], input: …, output: …}`},
		{openai, "nothing-like-it", provider.Bound{}, 0, `models: ["nothing-like-it"]`},
		{ours, "m", provider.Bound{Input: math.MaxInt64, Output: math.MaxInt64}, math.MaxInt64, ""},
	} {
		n, missing := table.Worst(c.p, c.model, c.b, now)
		if n != c.want || missing != c.missing && (c.missing == "" || !strings.Contains(missing, c.missing)) {
			t.Errorf("%s %+v: %d %q, want %d %q", c.model, c.b, n, missing, c.want, c.missing)
		}
	}
	if n := table.MaxOutput(ours, "wide", now); n != 77 {
		t.Errorf("at most %d output tokens", n)
	}
	if a, b := table.Version(), load(t, "").Version(); a == b || a != load(t, file).Version() || !strings.HasPrefix(a, "sha256:") {
		t.Errorf("versions %s, %s", a, b)
	}
	for _, bad := range []string{"context_window: 0", "context_window: 1e5", "max_output_tokens: -1", "context_window: 1234567890123", "max_output_tokens: 08"} {
		if _, err := Load([]byte("prices:\n- provider: p\n  input: 1\n  " + bad + "\n")); err == nil || !strings.Contains(err.Error(), "whole number of tokens") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// No request costs more than its worst case, whatever its tokens turn out to be.
func TestCostIsAtMostWorst(t *testing.T) {
	table := load(t, "")
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SampledFrom(table.vendors).Draw(t, "vendor")
		p := provider.Provider{Name: "x", Kind: v.Kind, BaseURL: "https://" + v.Hosts[0]}
		m := rapid.SampledFrom(v.Models).Draw(t, "model")
		name := strings.NewReplacer("*", "", "#", "1").Replace(m.Match[0])
		at := time.Date(2026, time.Month(rapid.IntRange(1, 12).Draw(t, "month")), 1, 0, 0, 0, 0, time.UTC)
		b := provider.Bound{Input: rapid.Int64Range(0, 2_000_000).Draw(t, "input"), Output: rapid.Int64Range(0, 100_000).Draw(t, "output")}
		worst, missing := table.Worst(p, name, b, at)
		if missing != "" {
			t.Skip(missing) // rapid draws another input
		}
		u := provider.Usage{Source: "provider", Service: rapid.SampledFrom([]string{"", "default", "flex", "priority", "fast"}).Draw(t, "service")}
		u.InputTokens = rapid.Int64Range(0, b.Input).Draw(t, "in")
		if e, _ := table.entry(p, name, at); e.limits.Context > 0 {
			u.InputTokens = min(u.InputTokens, e.limits.Context)
		}
		u.OutputTokens = rapid.Int64Range(0, b.Output).Draw(t, "out")
		u.CachedTokens = rapid.Int64Range(0, u.InputTokens).Draw(t, "cached")
		u.CacheWriteTokens = rapid.Int64Range(0, u.InputTokens-u.CachedTokens).Draw(t, "written")
		u.LongWriteTokens = rapid.Int64Range(0, u.CacheWriteTokens).Draw(t, "for long")
		u.ReasoningTokens = rapid.Int64Range(0, u.OutputTokens).Draw(t, "reasoning")
		u.InputMedia.Audio = rapid.Int64Range(0, u.InputTokens).Draw(t, "audio")
		u.OutputMedia.Audio = rapid.Int64Range(0, u.OutputTokens).Draw(t, "spoken")
		if cost, known := table.Cost(p, name, "", u, at); known && cost > worst {
			t.Fatalf("%s costs %d, at most %d was reserved for %+v: %+v", name, cost, worst, b, u)
		}
	})
}
