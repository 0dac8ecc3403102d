package provider_test

import (
	"slices"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

func TestOwnPath(t *testing.T) {
	for _, c := range []struct{ kind, base, settings, host, path, want string }{
		{"openai", "https://api.openai.com/v1", "", "api.openai.com", "/v1/chat/completions", "/v1/chat/completions"},
		{"openai", "https://api.openai.com", "", "api.openai.com", "/v1/chat/completions", "/v1/chat/completions"},
		{"openai", "https://api.groq.com/openai/v1", "", "api.groq.com", "/openai/v1/chat/completions", "/v1/chat/completions"},
		{"openai", "https://api.groq.com/openai/v1", "", "api.groq.com", "/v1/chat/completions", ""},
		{"openai", "http://10.0.0.1/x", "", "api.openai.com", "/v1/chat/completions", "/v1/chat/completions"},
		{"openai", "http://10.0.0.1/x", "", "api.openai.com", "/x/chat/completions", ""},
		{"openai", "https://api.openai.com/v1", "", "api.openai.com", "/v1", ""},
		{"openai", "https://api.openai.com/v1", "", "api.openai.com", "/v1x/chat", ""},
		{"openai", "https://api.openai.com/v1", "", "api.openai.com", "/v2/chat", ""},
		{"openai", "https://api.openai.com/v1", "", "api.openai.com", "", ""},
		{"anthropic", "https://api.anthropic.com", "", "api.anthropic.com", "/v1/messages", "/v1/messages"},
		{"anthropic", "https://api.anthropic.com/v1", "", "api.anthropic.com", "/v1/messages", "/v1/messages"},
		{"anthropic", "https://x.example/anthropic", "", "x.example", "/anthropic/v1/messages", "/v1/messages"},
		{"gemini", "https://generativelanguage.googleapis.com", "", "generativelanguage.googleapis.com", "/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"},
		{"mistral", "https://api.mistral.ai/v1", "", "api.mistral.ai", "/v1/chat/completions", "/mistral/v1/chat/completions"},
		{"cohere", "https://api.cohere.com", "", "api.cohere.com", "/v2/chat", "/v2/chat"},
		{"custom", "https://x.example/api", `{"paths":{"/v1/chat/completions":"/ask"}}`, "x.example", "/api/ask", "/v1/chat/completions"},
	} {
		p := provider.Provider{Name: "p", Kind: c.kind, BaseURL: c.base}
		if c.settings != "" {
			p.Settings = []byte(c.settings)
		}
		p.Cluster = provider.ClusterName(p)
		if got, ok := p.OwnPath(c.host, c.path); got != c.want || ok != (c.want != "") {
			t.Errorf("%s %s %s%s: %q %v, want %q", c.kind, c.base, c.host, c.path, got, ok, c.want)
		}
	}
}

func TestEgressHosts(t *testing.T) {
	for base, want := range map[string][]string{
		"https://api.openai.com/v1": {"api.openai.com"}, "https://api.openai.com:443/v1": {"api.openai.com"}, "https://api.openai.com:8443/v1": nil,
		"http://api.openai.com/v1": nil, "https://10.0.0.1/v1": nil, "https://[2001:db8::1]/v1": nil, "https://localhost/v1": nil,
	} {
		p := provider.Provider{Name: "p", Kind: "openai", BaseURL: base}
		if got := p.EgressHosts(); !slices.Equal(got, want) {
			t.Errorf("%s: %q", base, got)
		}
	}
	p := provider.Provider{BaseURL: "https://api.openai.com/v1", Hosts: []string{"*.example.com", "a.example.com"}}
	if got := p.EgressHosts(); !slices.Equal(got, []string{"a.example.com"}) {
		t.Errorf("%q", got)
	}
}
