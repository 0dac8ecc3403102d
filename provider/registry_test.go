package provider_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// prov returns a provider for a registry. Models are separated by spaces.
func prov(name, kind, models string) provider.Provider {
	p := provider.Provider{ID: "prov_" + name, OrgID: "org_1", Name: name, Kind: kind, BaseURL: "https://" + name + ".example/v1", Models: strings.Fields(models),
		Credential: provider.NewSecret("secret-of-" + name), HasCredential: true}
	p.Cluster = provider.ClusterName(p)
	return p
}

func registry(t testing.TB, ps ...provider.Provider) *provider.Registry {
	t.Helper()
	r, err := provider.NewRegistry(ps, policy.Matches)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestResolve(t *testing.T) {
	ps := []provider.Provider{
		prov("zeta", "openai", "gpt-4o gpt-* shared both-a"),
		prov("alpha", "openai", "* gpt-4* shared"),
		prov("beta", "openai", "gpt-4o-* *-mini a*b*c"),
		prov("anthro", "anthropic", "claude-* shared claude-exact"),
		prov("gem", "gemini", "gemini-*"),
		prov("mis", "mistral", "mistral-* codestral-*"),
		prov("co", "cohere", "command-*"),
		prov("xeno", "anthropic", "same same-*"),
		prov("yota", "openai", "same same-*"),
	}
	for _, c := range []struct{ path, model, want string }{
		{chat, "gpt-4o", "zeta"},         // exact before any glob
		{chat, "gpt-4o-mini", "beta"},    // the longest prefix
		{chat, "gpt-4-turbo", "alpha"},   // gpt-4* before gpt-*
		{chat, "gpt-3.5", "zeta"},        // gpt-* before *
		{chat, "o1-mini", "beta"},        // *-mini is longer than *
		{chat, "shared", "alpha"},        // two exact matches: by name
		{chat, "axbyc", "beta"},          //
		{chat, "axby", "alpha"},          // *
		{chat, "claude-3", "anthro"},     // by translation
		{chat, "claude-exact", "anthro"}, //
		{chat, "same", "yota"},           // both have the exact name: the provider without translation
		{chat, "same-1", "yota"},         // both have the pattern
		{chat, "gemini-2.5-pro", "gem"},  //
		{chat, "GPT-4o", "alpha"},        // names are case-sensitive
		{chat, "gpt-4o ", "alpha"},       // Parse rejects such names earlier
		{chat, "openai/gpt-4o", "alpha"}, // a model's name has no provider
		{chat, "zeta/gpt-4o", "alpha"},   //
		{messages, "shared", "anthro"},   // the others do not have that format
		{messages, "claude-exact", "anthro"},
		{messages, "gpt-4o", "400 unsupported_endpoint"},
		{messages, "nothing", "400 unsupported_endpoint"}, // alpha matches every name
		{generate, "gemini-2.5-pro", "gem"},
		{"/v1/fim/completions", "codestral-1", "mis"},
		{"/v2/chat", "command-a", "co"},
	} {
		call := provider.Call{Model: c.model}
		call.Endpoint, _, _ = provider.Match("POST", c.path)
		for range 5 { // in any order
			rand.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
			p, e := registry(t, ps...).Resolve(call)
			got := p.Name
			if e != nil {
				got = fmt.Sprintf("%d %s", e.Status, e.Code)
			}
			if got != c.want {
				t.Errorf("%s %s: %s, want %s", c.path, c.model, got, c.want)
			}
		}
	}
	call := provider.Call{Model: "x\"y" + strings.Repeat("z", 300)}
	call.Endpoint, _, _ = provider.Match("POST", chat)
	if _, e := registry(t).Resolve(call); e == nil || e.Status != 404 || e.Code != "model_not_found" || e.Param != "model" || len(e.Message) > 300 {
		t.Errorf("%+v", e)
	}
	if _, err := provider.NewRegistry([]provider.Provider{prov("a", "openai", ""), prov("a", "openai", "")}, policy.Matches); err == nil {
		t.Error("two of a name")
	}
}

func TestModels(t *testing.T) {
	r := registry(t, prov("b", "openai", "m2 m1 glob-* shared"), prov("a", "anthropic", "claude shared *"))
	got := fmt.Sprint(r.Models(func(m string) bool { return m != "m2" }))
	if got != "[{claude a} {m1 b} {shared a}]" {
		t.Error(got)
	}
	// A model that a caller may use by name is listed if a glob matches it.
	got = fmt.Sprint(r.Models(func(string) bool { return true }, "glob-1", "m1", "glob-*", "other"))
	if got != "[{claude a} {glob-1 b} {m1 b} {m2 b} {other a} {shared a}]" {
		t.Error(got)
	}
	if n := len(registry(t).Models(func(string) bool { return true })); n != 0 {
		t.Error(n)
	}
	// The list that was passed is not kept: changing it changes nothing.
	ps := []provider.Provider{prov("a", "openai", "m")}
	r = registry(t, ps...)
	ps[0].Name = "changed"
	if r.Providers()[0].Name != "a" {
		t.Error("the registry changed")
	}
}

// A host has one provider. A wildcard governs nothing, since only exact names are decrypted.
func TestByHost(t *testing.T) {
	a, b, c, d := prov("a", "openai", ""), prov("b", "openai", ""), prov("c", "openai", ""), prov("d", "openai", "")
	a.Hosts, b.Hosts = []string{"*.example.com"}, []string{"api.example.com", "own.example.com"}
	c.BaseURL, d.BaseURL = "https://own.example.com/v1", "https://twice.example.com/v1"
	e := d
	e.Name = "e"
	r := registry(t, a, b, c, d, e)
	for host, want := range map[string]string{
		"api.example.com": "b", "own.example.com": "b", "twice.example.com": "", "x.example.com": "", "example.com": "", ".example.com": "", "api.example.com.evil": "", "": "",
	} {
		p, ok := r.ByHost(host)
		if p.Name != want || ok != (want != "") {
			t.Errorf("%q: %q", host, p.Name)
		}
	}
}

// FuzzGlob compares globs with the obvious way to match them.
func FuzzGlob(f *testing.F) {
	f.Add("a*b*c", "axxbxxc")
	f.Add("*", "")
	f.Add("a**b", "ab")
	f.Add("*aab", "aaab")
	f.Fuzz(func(t *testing.T, pattern, model string) {
		if pattern == "" || model == "" || len(pattern)+len(model) > 40 {
			return
		}
		call := provider.Call{Model: model}
		call.Endpoint, _, _ = provider.Match("POST", chat)
		p := prov("a", "openai", "")
		p.Models = []string{pattern}
		_, e := registry(t, p).Resolve(call)
		if (e == nil) != obvious(pattern, model) {
			t.Fatalf("%q and %q: %v", pattern, model, e)
		}
	})
}

func obvious(pattern, s string) bool {
	if pattern == "" {
		return s == ""
	}
	if pattern[0] != '*' {
		return s != "" && s[0] == pattern[0] && obvious(pattern[1:], s[1:])
	}
	for i := range len(s) + 1 {
		if obvious(pattern[1:], s[i:]) {
			return true
		}
	}
	return false
}
