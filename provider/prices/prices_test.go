package prices_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/prices"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func load(t testing.TB, file string) *prices.Table {
	t.Helper()
	table, err := prices.Load([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// vendors are providers with the vendors' own APIs.
var vendors = map[string]provider.Provider{
	"openai":    {Name: "o", Kind: "openai", BaseURL: "https://api.openai.com/v1"},
	"anthropic": {Name: "a", Kind: "anthropic", BaseURL: "https://api.anthropic.com"},
	"gemini":    {Name: "g", Kind: "gemini", BaseURL: "https://generativelanguage.googleapis.com"},
	"cohere":    {Name: "c", Kind: "cohere", BaseURL: "https://api.cohere.com"},
	"mistral":   {Name: "m", Kind: "mistral", BaseURL: "https://api.mistral.ai"},
}

const (
	million = 1_000_000
	cent    = 10_000_000 // nano-dollars
	dollar  = 100 * cent
)

// TestVendors has prices from the vendors' pages, copied by hand. If a price in the list
// differs, it has changed or is wrong.
//
//	https://openai.com/api/pricing, https://platform.openai.com/docs/pricing
//	https://platform.claude.com/docs/en/about-claude/pricing
//	https://ai.google.dev/gemini-api/docs/pricing
//	https://cohere.com/pricing
//	https://mistral.ai/pricing
func TestVendors(t *testing.T) {
	table := load(t, "")
	in := func(n int64) provider.Usage { return provider.Usage{InputTokens: n} }
	out := func(n int64) provider.Usage { return provider.Usage{OutputTokens: n} }
	read := func(n int64) provider.Usage { return provider.Usage{InputTokens: n, CachedTokens: n} }
	written := func(n int64) provider.Usage { return provider.Usage{InputTokens: n, CacheWriteTokens: n} }
	kept := func(n int64) provider.Usage {
		return provider.Usage{InputTokens: n, CacheWriteTokens: n, LongWriteTokens: n}
	}
	heard := func(n int64) provider.Usage {
		return provider.Usage{InputTokens: n, InputMedia: provider.Media{Audio: n}}
	}
	as := func(service string, u provider.Usage) provider.Usage { u.Service = service; return u }
	for _, c := range []struct {
		kind, model string
		usage       provider.Usage
		want        int64
	}{
		{"openai", "gpt-4o", in(million), 250 * cent},
		{"openai", "gpt-4o", read(million), 125 * cent},
		{"openai", "gpt-4o", out(million), 10 * dollar},
		{"openai", "gpt-4o", provider.Usage{OutputTokens: million, ReasoningTokens: million}, 10 * dollar}, // reasoning is output
		{"openai", "gpt-4o-2024-11-20", in(million), 250 * cent},
		{"openai", "gpt-4o-2024-05-13", in(million), 5 * dollar},
		{"openai", "gpt-4o-mini", in(million), 15 * cent},
		{"openai", "gpt-4o-mini", out(million), 60 * cent},
		{"openai", "gpt-4o-mini", read(million), 75 * cent / 10},
		{"openai", "gpt-4o", provider.Usage{InputTokens: million, Coarse: true}, 250 * cent}, // it has no rates that this would hide
		{"openai", "gpt-4.1", in(million), 2 * dollar},
		{"openai", "gpt-4.1", read(million), 50 * cent},
		{"openai", "gpt-5-2025-08-07", in(million), 125 * cent},
		{"openai", "gpt-5", as("default", out(million)), 10 * dollar},
		{"openai", "gpt-5", as("flex", out(million)), 5 * dollar},
		{"openai", "gpt-5", as("priority", out(million)), 20 * dollar},
		{"openai", "text-embedding-3-small", in(million), 2 * cent},
		{"openai", "text-embedding-3-large", in(million), 13 * cent},
		{"openai", "gpt-audio", heard(million), 32 * dollar},
		{"openai", "gpt-4o", heard(million), 250 * cent}, // it has no other rate
		{"anthropic", "claude-sonnet-4-5-20250929", in(million / 10), 30 * cent},
		{"anthropic", "claude-sonnet-4-5", out(million), 15 * dollar},
		{"anthropic", "claude-haiku-4-5-20251001", in(million), 1 * dollar},
		{"anthropic", "claude-haiku-4-5-20251001", read(million), 10 * cent},
		{"anthropic", "claude-haiku-4-5-20251001", written(million), 125 * cent},
		{"anthropic", "claude-haiku-4-5-20251001", kept(million), 2 * dollar},
		{"anthropic", "claude-haiku-4-5-20251001", as("standard", out(million)), 5 * dollar},
		{"anthropic", "claude-opus-4-5-20251101", out(million), 25 * dollar},
		{"gemini", "gemini-2.5-pro", in(200_000), 25 * cent},
		{"gemini", "gemini-2.5-pro", provider.Usage{InputTokens: 200_001, CachedTokens: 1}, 50*cent + 250}, // the rate applies to all tokens, not only to those above
		{"gemini", "models/gemini-2.5-flash", out(million), 250 * cent},
		{"gemini", "gemini-2.5-flash", in(million), 30 * cent},
		{"gemini", "gemini-2.5-flash", heard(million), 1 * dollar},
		{"gemini", "gemini-embedding-001", in(million), 15 * cent},
		{"cohere", "command-a-03-2025", in(million), 250 * cent},
		{"cohere", "command-a-03-2025", provider.Usage{InputTokens: 71, OutputTokens: 418, CachedTokens: 64, Billed: provider.Billed{Said: true, InputTokens: 5, OutputTokens: 418}}, 5*2500 + 418*10_000},
		{"cohere", "command-r7b-12-2024", in(million), 375 * cent / 100},
		{"cohere", "embed-v4.0", in(million), 12 * cent},
		{"mistral", "mistral-embed", in(million), 10 * cent},
		{"mistral", "mistral-large-2512", out(million), 150 * cent},
		{"mistral", "codestral-2508", in(million), 30 * cent},
	} {
		c.usage.Source = "provider"
		if got, ok := table.Cost(vendors[c.kind], c.model, "", c.usage, now); !ok || got != c.want {
			t.Errorf("%s %s %+v: %d %v, want %d", c.kind, c.model, c.usage, got, ok, c.want)
		}
	}
}

// TestNotKnown: the result is false, never 0.
func TestNotKnown(t *testing.T) {
	table := load(t, "")
	u := provider.Usage{InputTokens: 10, OutputTokens: 10, Source: "provider"}
	with := func(change func(*provider.Usage)) provider.Usage { u := u; change(&u); return u }
	at := func(kind, url string) provider.Provider {
		return provider.Provider{Name: "p", Kind: kind, BaseURL: url}
	}
	if n, ok := table.Cost(vendors["openai"], "gpt-4o", "", u, now); !ok || n != 125_000 {
		t.Fatalf("gpt-4o: %d %v", n, ok)
	}
	for _, c := range []struct {
		name, model string
		p           provider.Provider
		u           provider.Usage
	}{
		{"no usage", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) { u.Source = "absent" })},
		{"zero usage", "gpt-4o", vendors["openai"], provider.Usage{}},
		{"an unknown model", "gpt-99", vendors["openai"], u},
		{"an unknown date", "gpt-4o-2031-01-01", vendors["openai"], u},
		{"another vendor's model", "claude-haiku-4-5", vendors["openai"], u},
		{"a name that lists do not agree on", "mistral-large-latest", vendors["mistral"], u},
		{"a model by the page", "mistral-ocr-latest", vendors["mistral"], u},
		{"no rate for the output", "text-embedding-3-small", vendors["openai"], u},
		{"a server that only speaks like OpenAI", "gpt-4o", at("openai", "https://llm.example/v1"), u},
		{"one on this machine", "gpt-4o", at("openai", "http://127.0.0.1:8000/v1"), u},
		{"a custom one at OpenAI's host", "gpt-4o", at("custom", "https://api.openai.com/v1"), u},
		{"another vendor's host", "gpt-4o", at("openai", "https://api.mistral.ai/v1"), u},
		{"a host that ends like OpenAI's", "gpt-4o", at("openai", "https://notapi.openai.com/v1"), u},
		{"OpenAI's host in a region, which charges more", "gpt-4o", at("openai", "https://eu.api.openai.com/v1"), u},
		{"OpenAI's name without TLS", "gpt-4o", at("openai", "http://api.openai.com/v1"), u},
		{"OpenAI's name at another port", "gpt-4o", at("openai", "https://api.openai.com:8443/v1"), u},
		{"no URL", "gpt-4o", at("openai", ""), u},
		{"a way of processing without a price", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) { u.Service = "flex" })},
		{"a way of processing nobody heard of", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) { u.Service = "auto" })},
		{"a place that costs more", "claude-opus-4-8", vendors["anthropic"], with(func(u *provider.Usage) { u.Service = "in us" })},
		{"more cached than there was", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) { u.CachedTokens = 11 })},
		{"more written than there was", "claude-haiku-4-5", vendors["anthropic"], with(func(u *provider.Usage) { u.CachedTokens, u.CacheWriteTokens = 6, 6 })},
		{"more kept than written", "claude-haiku-4-5", vendors["anthropic"], with(func(u *provider.Usage) { u.CacheWriteTokens, u.LongWriteTokens = 1, 2 })},
		{"more sound than there was", "gpt-audio", vendors["openai"], with(func(u *provider.Usage) { u.InputMedia.Audio = 11 })},
		{"sound, some of it cached, or not", "gemini-2.5-flash", vendors["gemini"], with(func(u *provider.Usage) { u.CachedTokens, u.InputMedia.Audio = 5, 5 })},
		{"something that is not tokens", "embed-v4.0", vendors["cohere"], provider.Usage{InputTokens: 2, Source: "provider", Billed: provider.Billed{Said: true, InputTokens: 2, More: true}}},
		{"nobody looked for sound", "gemini-2.5-flash", vendors["gemini"], with(func(u *provider.Usage) { u.Coarse = true })},
		{"nobody looked how long a cache is kept", "claude-haiku-4-5", vendors["anthropic"], with(func(u *provider.Usage) { u.CacheWriteTokens, u.Coarse = 1, true })},
		{"fewer than none", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) { u.InputTokens = -1 })},
		{"fewer than none cached", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) { u.CachedTokens = -1 })},
		{"figures that overflow", "gpt-4o", vendors["openai"], with(func(u *provider.Usage) {
			u.InputTokens, u.CachedTokens = math.MinInt64, math.MaxInt64
		})},
		{"more than an int64 of nano-dollars", "gpt-4-32k", vendors["openai"], with(func(u *provider.Usage) { u.OutputTokens = 1 << 53 })},
	} {
		if n, ok := table.Cost(c.p, c.model, "", c.u, now); ok || n != 0 {
			t.Errorf("%s: %d %v", c.name, n, ok)
		}
	}
}

// TestWhichName: the model of the response comes before the requested model.
func TestWhichName(t *testing.T) {
	table := load(t, "")
	u := provider.Usage{InputTokens: million, Source: "provider"}
	for _, c := range []struct {
		asked, answered string
		want            int64
	}{
		{"gpt-4o", "gpt-4o-2024-05-13", 5 * dollar},
		{"gpt-4o", "gpt-4o-2031-01-01", 250 * cent},
		{"gpt-4o", "", 250 * cent},
		{"alias-of-ours", "gpt-4o-mini-2024-07-18", 15 * cent},
		{"GPT-4o", "", 250 * cent},
	} {
		if got, ok := table.Cost(vendors["openai"], c.asked, c.answered, u, now); !ok || got != c.want {
			t.Errorf("%s, %s: %d %v, want %d", c.asked, c.answered, got, ok, c.want)
		}
	}
}

func TestOverrides(t *testing.T) {
	table := load(t, `
# All that the file can say.
prices:
- provider: azure
  models: [gpt-4o-at-discount, "house-*"]
  input: "2.00"
  output: 8
  cached_input: 0.5
  cache_write: 2.5
  cache_write_1h: 4
  reasoning: 9
- {provider: azure, list: openai}
- {provider: o, models: [gpt-4o], input: 1, output: 1}
- {kind: custom, models: ["llama-*"], input: 0, output: 0}
- {provider: heard, input: 1, output: 2, input_audio: 30, input_image: 3, output_audio: 60, output_image: 6}
`)
	named := func(name, kind string) provider.Provider {
		return provider.Provider{Name: name, Kind: kind, BaseURL: "http://127.0.0.1:8000/v1"}
	}
	all := provider.Usage{InputTokens: 100, CachedTokens: 10, CacheWriteTokens: 20, LongWriteTokens: 5, OutputTokens: 50, ReasoningTokens: 30}
	const allCosts = 70*2000 + 10*500 + 15*2500 + 5*4000 + 20*8000 + 30*9000
	media := provider.Usage{InputTokens: 100, OutputTokens: 100, InputMedia: provider.Media{Text: 50, Audio: 40, Image: 10}, OutputMedia: provider.Media{Audio: 1, Image: 2}}
	for _, c := range []struct {
		name, asked, answered string
		p                     provider.Provider
		u                     provider.Usage
		want                  int64 // -1: not known
	}{
		{"every rate", "house-1", "", named("azure", "openai"), all, allCosts},
		{"in other letters", "HOUSE-1", "", named("azure", "openai"), all, allCosts},
		{"by what was asked", "house-1", "gpt-99", named("azure", "openai"), all, allCosts},
		{"the vendor's list elsewhere", "gpt-4o", "", named("azure", "openai"), provider.Usage{InputTokens: million}, 250 * cent},
		{"which does not have it", "gpt-99", "", named("azure", "openai"), all, -1},
		{"another name of a provider", "house-1", "", named("azure-2", "openai"), all, -1},
		{"before the list", "gpt-4o", "", vendors["openai"], provider.Usage{InputTokens: million}, 1 * dollar},
		{"other models as before", "gpt-4o-mini", "", vendors["openai"], provider.Usage{InputTokens: million}, 15 * cent},
		{"the file has one price for a model", "gpt-4o", "", vendors["openai"], provider.Usage{InputTokens: million, Service: "flex"}, -1},
		{"free, which is known", "llama-4", "", named("local", "custom"), all, 0},
		{"of the kind, but not the model", "qwen", "", named("local", "custom"), all, -1},
		{"media", "x", "", named("heard", "openai"), media, 50*1000 + 40*30_000 + 10*3000 + 97*2000 + 1*60_000 + 2*6000},
	} {
		c.u.Source = "provider"
		got, ok := table.Cost(c.p, c.asked, c.answered, c.u, now)
		if ok != (c.want >= 0) || ok && got != c.want {
			t.Errorf("%s: %d %v, want %d", c.name, got, ok, c.want)
		}
	}
}

// TestRounding: once, at the end, with halves rounded up.
func TestRounding(t *testing.T) {
	table := load(t, "prices: [{provider: p, input: 0.0005, output: 0.000499999}]")
	p := provider.Provider{Name: "p", Kind: "custom"}
	for _, c := range []struct{ in, out, want int64 }{
		{1, 0, 1}, {0, 1, 0}, {2, 0, 1}, {3, 0, 2}, {1, 1, 1}, {0, 2, 1}, {0, 0, 0}, {1_000_000, 0, 500_000},
	} {
		u := provider.Usage{InputTokens: c.in, OutputTokens: c.out, Source: "provider"}
		if got, ok := table.Cost(p, "x", "", u, now); !ok || got != c.want {
			t.Errorf("%+v: %d %v", c, got, ok)
		}
	}
}

// TestArithmetic uses any usage up to 10^12 tokens of a sort and any rate that a file can
// have. The cost equals that of arbitrary precision, and grows with each count. Two
// requests cost as much as one with the sum of their tokens, except for rounding.
func TestArithmetic(t *testing.T) {
	table := load(t, `
prices:
- {provider: dear, input: 999999.999999999, output: 999999.999999999, cached_input: 999999.999999999, cache_write: 999999.999999999, reasoning: 999999.999999999}
- {provider: odd, input: 2.500000001, output: 10.000000007, cached_input: 0.249999999, cache_write: 3.123456789, reasoning: 12.987654321}
`)
	nano := map[string][5]int64{
		"dear": {999_999_999_999_999, 999_999_999_999_999, 999_999_999_999_999, 999_999_999_999_999, 999_999_999_999_999},
		"odd":  {2_500_000_001, 10_000_000_007, 249_999_999, 3_123_456_789, 12_987_654_321},
	}
	r := rand.New(rand.NewPCG(1, 2))
	usage := func(n [5]int64) provider.Usage { // plain input, plain output, cached, written, reasoning
		return provider.Usage{InputTokens: n[0] + n[2] + n[3], OutputTokens: n[1] + n[4], CachedTokens: n[2], CacheWriteTokens: n[3], ReasoningTokens: n[4], Source: "provider"}
	}
	for range 20_000 {
		for name, rates := range nano {
			p := provider.Provider{Name: name, Kind: "custom"}
			var n, more [5]int64
			sum := new(big.Int)
			for i := range n {
				n[i] = r.Int64N(1_000_000_000_001) >> r.IntN(41)
				more[i] = n[i]
				sum.Add(sum, new(big.Int).Mul(big.NewInt(n[i]), big.NewInt(rates[i])))
			}
			want := sum.Div(sum.Add(sum, big.NewInt(500_000)), big.NewInt(1_000_000))
			got, ok := table.Cost(p, "x", "", usage(n), now)
			if ok != want.IsInt64() || ok && got != want.Int64() {
				t.Fatalf("%s %v: %d %v, want %v", name, n, got, ok, want)
			}
			more[r.IntN(5)] += 1 + r.Int64N(1000)
			grown, grownOK := table.Cost(p, "x", "", usage(more), now)
			if grownOK && (!ok || grown < got) {
				t.Fatalf("%s: %v costs %d and %v costs %d", name, n, got, more, grown)
			}
			var rest [5]int64
			for i := range rest {
				rest[i] = more[i] - n[i]
			}
			if alone, _ := table.Cost(p, "x", "", usage(rest), now); grownOK && max(grown-got-alone, got+alone-grown) > 1 {
				t.Fatalf("%s: %d and %d make %d", name, got, alone, grown)
			}
		}
	}
}

// TestDocs: the file in docs/prices.md has the prices that the text beside it gives.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/prices.md")
	if err != nil {
		t.Fatal(err)
	}
	_, file, _ := strings.Cut(string(text), "```yaml\n")
	file, _, _ = strings.Cut(file, "```")
	table := load(t, file)
	u := provider.Usage{InputTokens: million, CachedTokens: million / 2, Source: "provider"}
	for _, c := range []struct {
		provider, kind, model string
		want                  int64
	}{
		{"azure", "openai", "gpt-4o-ours", 125 * cent},
		{"azure", "openai", "gpt-4o", (250 + 125) * cent / 2},
		{"local", "custom", "llama-4", 0},
	} {
		p := provider.Provider{Name: c.provider, Kind: c.kind, BaseURL: "https://x.example"}
		if got, ok := table.Cost(p, c.model, "", u, now); !ok || got != c.want {
			t.Errorf("%s %s: %d %v, want %d", c.provider, c.model, got, ok, c.want)
		}
	}
}

// TestFileErrors: each error has its line.
func TestFileErrors(t *testing.T) {
	const good = "prices:\n- provider: a\n  input: 1\n"
	for _, c := range []struct{ name, text, want string }{
		{"an unknown field", good + "  inputs: 1\n", `line 4: unknown field "inputs"`},
		{"an unknown field above", "price: []\n", `line 1: unknown field "price"`},
		{"a field twice", good + "  input: 2\n", `line 4: the field "input" is repeated`},
		{"nobody's", "prices:\n- models: [a]\n  input: 1\n", "line 2: provider: set the owner of these prices"},
		{"two's", good + "  kind: openai\n", "line 4: kind: set provider or kind, not both"},
		{"a kind that is not one", "prices:\n- kind: azure\n  input: 1\n", "line 2: kind: it must be one of openai, "},
		{"no number", good + "  output: free\n", "line 4: output: it must be a decimal number of US dollars, such as 2.50"},
		{"an exponent", good + "  output: 1e-3\n", "line 4: output: it must be a decimal number"},
		{"less than nothing", good + "  output: -1\n", "line 4: output: it must be a decimal number"},
		{"finer than a nano-dollar", good + "  output: 0.0000000001\n", "line 4: output: it must have at most 9 digits after the point"},
		{"dear", good + "  output: 1000000\n", "line 4: output: it must be less than 1000000"},
		{"a list for a number", good + "  output: [1]\n", "line 4: output: it must be a decimal number"},
		{"no rates", "prices:\n- provider: a\n  cached_input: 1\n", "line 2: input: set input or output, in US dollars per million tokens, or a list"},
		{"rates and a list", good + "  list: openai\n", "line 4: list: set list or rates, not both"},
		{"an unknown list", "prices:\n- provider: a\n  list: azure\n", "line 3: list: it must be one of openai, anthropic, gemini, cohere, mistral"},
		{"an empty model", good + "  models: [\"\"]\n", "line 4: models[0]: it is empty"},
		{"a model with a space", good + "  models: [a, \"b c\"]\n", "line 4: models[1]: it must be visible ASCII"},
		{"an alias of itself", "prices:\n- &x\n  output: *x\n", "line 2: anchors, aliases and tags are not accepted; write the full value"},
		{"a tag", "prices: !!float 1\n", "line 1: anchors, aliases and tags are not accepted"},
		{"two documents", good + "---\n" + good, "more than one document"},
		{"broken YAML", good + "  models: [a\n", "line "},
		{"large", strings.Repeat("#", 1<<20+1), "more than 1048576 bytes"},
	} {
		if _, err := prices.Load([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	for _, empty := range []string{"", "prices:\n", "prices: []\n", "# nothing\n"} {
		load(t, empty)
	}
}
