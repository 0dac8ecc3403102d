package provider_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// forward sends a call to a provider, for the path and query of a request.
func forward(t testing.TB, p provider.Provider, path, query string) (provider.Forward, *provider.Error) {
	t.Helper()
	ep, params, ok := provider.Match("POST", path)
	if !ok {
		t.Fatal(path)
	}
	call, e := provider.Parse(ep, params, "application/json", query, []byte(`{"model":"`+or(params.Model, "m")+`"}`))
	if e != nil {
		t.Fatal(e)
	}
	return p.Forward(call, path, query)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func TestForwardPath(t *testing.T) {
	for _, c := range []struct{ kind, base, path, query, want string }{
		{"openai", "https://api.openai.com/v1", chat, "", "/v1/chat/completions"},
		{"openai", "https://api.openai.com/v1/", chat, "", "/v1/chat/completions"},
		{"openai", "https://api.openai.com", chat, "", "/v1/chat/completions"},
		{"openai", "https://api.openai.com/", chat, "", "/v1/chat/completions"},
		{"openai", "https://x.openai.azure.com/openai/v1", responses, "", "/openai/v1/responses"},
		{"openai", "https://generativelanguage.googleapis.com/v1beta/openai", chat, "", "/v1beta/openai/chat/completions"},
		{"openai", "https://open.bigmodel.cn/api/paas/v4", chat, "", "/api/paas/v4/chat/completions"},
		{"custom", "http://127.0.0.1:8000/llm", chat, "", "/llm/chat/completions"},
		{"mistral", "https://api.mistral.ai", "/mistral" + chat, "", "/v1/chat/completions"},
		{"mistral", "https://api.mistral.ai/v1", "/mistral/v1/embeddings", "", "/v1/embeddings"},
		{"mistral", "https://proxy.example/mistral", "/mistral" + chat, "", "/mistral/v1/chat/completions"},
		{"mistral", "https://api.mistral.ai/v1", "/v1/fim/completions", "", "/v1/fim/completions"},
		{"mistral", "https://proxy.example/mistral", "/v1/ocr", "", "/mistral/v1/ocr"},
		{"anthropic", "https://api.anthropic.com", messages, "beta=true", "/v1/messages?beta=true"},
		{"anthropic", "https://api.anthropic.com/v1", messages, "", "/v1/messages"},
		{"anthropic", "https://proxy.example/anthropic", messages, "", "/anthropic/v1/messages"},
		{"gemini", "https://generativelanguage.googleapis.com", "/v1beta/models/g:streamGenerateContent", "alt=sse", "/v1beta/models/g:streamGenerateContent?alt=sse"},
		{"gemini", "https://generativelanguage.googleapis.com", "/v1/models/g:generateContent", "", "/v1/models/g:generateContent"},
		{"gemini", "https://generativelanguage.googleapis.com/v1beta", "/v1/models/g:generateContent", "", "/v1beta/models/g:generateContent"},
		{"cohere", "https://api.cohere.com", "/v2/chat", "", "/v2/chat"},
		{"cohere", "https://api.cohere.com/v2", "/v2/rerank", "", "/v2/rerank"},
	} {
		p := prov("a", c.kind, "m")
		p.BaseURL = c.base
		p.Cluster = provider.ClusterName(p)
		f, e := forward(t, p, c.path, c.query)
		if e != nil || f.Path != c.want || f.Cluster != p.Cluster || f.Body != nil {
			t.Errorf("%s %s %s: %s %v", c.kind, c.base, c.path, f.Path, e)
		}
	}
}

func TestForwardAs(t *testing.T) {
	const key = "secret-of-a"
	for _, c := range []struct{ kind, path, settings, headers, query string }{
		{"openai", chat, ``, "authorization=Bearer " + key, ""},
		{"mistral", "/mistral" + chat, ``, "authorization=Bearer " + key, ""},
		{"cohere", "/v2/chat", ``, "authorization=Bearer " + key, ""},
		{"custom", chat, ``, "authorization=Bearer " + key, ""},
		{"anthropic", messages, ``, "x-api-key=" + key, ""},
		{"gemini", generate, ``, "x-goog-api-key=" + key, ""},
		{"openai", chat, `{"auth":{"type":"header","name":"api-key"}}`, "api-key=" + key, ""},
		{"anthropic", messages, `{"auth":{"type":"bearer"}}`, "authorization=Bearer " + key, ""},
		{"custom", chat, `{"auth":{"type":"query","name":"key"}}`, "", "key=" + key},
		{"custom", chat, `{"auth":{"type":"basic","user":"u"}}`, "authorization=Basic dTpzZWNyZXQtb2YtYQ==", ""},
		{"custom", chat, `{"auth":{"type":"none"}}`, "", ""},
		{"openai", chat, `{"query":{"api-version":"2026-01-01","a":"b"}}`, "authorization=Bearer " + key, "a=b&api-version=2026-01-01"},
		{"custom", chat, `{"paths":{"/v1/chat/completions":"/api/chat"}}`, "authorization=Bearer " + key, ""},
	} {
		p := prov("a", c.kind, "m")
		p.Headers, p.Settings = provider.Headers(map[string]string{"x-team": "blue"}), []byte(c.settings)
		if err := provider.Validate(p); err != nil {
			t.Fatal(err)
		}
		f, e := forward(t, p, c.path, "")
		if e != nil {
			t.Errorf("%s %s: %v", c.kind, c.settings, e)
			continue
		}
		var got []string
		for _, name := range slices.Sorted(maps.Keys(f.Set)) {
			if name != "x-team" {
				got = append(got, name+"="+f.Set[name])
			}
		}
		path, query, _ := strings.Cut(f.Path, "?")
		if strings.Join(got, ",") != c.headers || query != c.query || f.Set["x-team"] != "blue" {
			t.Errorf("%s %s: %v ?%s", c.kind, c.settings, got, query)
		}
		if strings.Contains(c.settings, "paths") && path != "/v1/api/chat" {
			t.Error(path)
		}
	}
}

// TestForwardRefuses: a credential is sent only to the address for which it was set.
func TestForwardRefuses(t *testing.T) {
	for name, change := range map[string]func(*provider.Provider){
		"another address":           func(p *provider.Provider) { p.BaseURL = "https://evil.example/v1" },
		"another org":               func(p *provider.Provider) { p.OrgID = "org_2" },
		"another id":                func(p *provider.Provider) { p.ID = "prov_other" },
		"another cluster":           func(p *provider.Provider) { p.Cluster = "provider-0" },
		"no cluster":                func(p *provider.Provider) { p.Cluster = "" },
		"no credential yet":         func(p *provider.Provider) { p.Credential = provider.Secret{} },
		"a line break in it":        func(p *provider.Provider) { p.Credential = provider.NewSecret("a\r\nx: y") },
		"settings of tomorrow":      func(p *provider.Provider) { p.Settings = []byte(`{"new":1}`) },
		"settings that are no JSON": func(p *provider.Provider) { p.Settings = []byte(`{`) },
	} {
		p := prov("a", "openai", "m")
		change(&p)
		for _, via := range []string{"itself", "a registry"} {
			if via == "a registry" {
				p = registry(t, p).Providers()[0]
			}
			f, e := forward(t, p, chat, "")
			if e == nil || e.Status != 503 || f.Cluster != "" || f.Set != nil {
				t.Errorf("%s, by %s: %+v %v", name, via, f, e)
			}
			if e != nil && strings.Contains(e.Message, "secret-of-a") {
				t.Error(e.Message)
			}
		}
	}
	p := prov("a", "openai", "m")
	if f, e := forward(t, p, messages, ""); e == nil || e.Code != "unsupported_endpoint" {
		t.Errorf("another kind's endpoint: %+v", f)
	}
	call := parsed(t, chat, `{"model":"m"}`)
	if f, e := p.Forward(call, "/v1/embeddings", ""); e == nil || f.Cluster != "" {
		t.Errorf("another path than was judged: %+v", f)
	}
	if f, e := p.Forward(provider.Call{}, chat, ""); e == nil || f.Cluster != "" {
		t.Errorf("no call: %+v", f)
	}
	p.Credential, p.HasCredential = provider.Secret{}, false
	if f, e := forward(t, p, chat, ""); e != nil || f.Set["authorization"] != "" {
		t.Errorf("a provider that needs none: %+v %v", f, e)
	}
}

// TestForwardNotShared: a request's changes do not affect another request.
func TestForwardNotShared(t *testing.T) {
	p := registry(t, prov("a", "openai", "m")).Providers()[0]
	p.Headers = provider.Headers(map[string]string{"x-team": "blue"})
	f, _ := forward(t, p, chat, "")
	f.Set["x-team"], f.Set["authorization"] = "red", "stolen"
	g, _ := forward(t, p, chat, "")
	if fmt.Sprint(g.Set) != "map[authorization:Bearer secret-of-a x-team:blue]" {
		t.Error(g.Set)
	}
}

// TestForwardSent: possible secrets in the query are in Sent, plain and as the query
// encodes them.
func TestForwardSent(t *testing.T) {
	p := provider.Provider{ID: "p", Name: "p", Kind: "openai", BaseURL: "https://p.example/v1", HasCredential: true, Credential: provider.NewSecret("se+cret/0123"),
		Settings: []byte(`{"auth":{"type":"query","name":"k"},"query":{"api-version":"2026-01-01","sig":"signature-0123"}}`)}
	p.Cluster = provider.ClusterName(p)
	f, refused := p.Forward(parsed(t, chat, `{"model":"m","messages":[]}`), chat, "")
	if refused != nil {
		t.Fatal(refused)
	}
	if want := []string{"signature-0123", "se%2Bcret%2F0123"}; !slices.Equal(f.Sent, want) {
		t.Errorf("%q, want %q", f.Sent, want)
	}
}
