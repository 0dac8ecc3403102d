package provider_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/ai-identity/ai-identity/provider"
)

func TestValidate(t *testing.T) {
	good := prov("a", "openai", "gpt-4o gpt-*")
	good.Hosts, good.Headers = []string{"api.openai.com", "*.openai.com"}, provider.Headers(map[string]string{"x-team": "blue", "openai-beta": "x=1, y"})
	for _, url := range []string{"https://api.openai.com/v1", "https://api.openai.com", "http://127.0.0.1:8080", "http://[::1]:1/v1", "https://h.example:8443/openai/v1/", "http://llm.internal/v1", "https://my_host/v1"} {
		p := good
		p.BaseURL = url
		if err := provider.Validate(p); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	type change = func(*provider.Provider)
	url := func(s string) change { return func(p *provider.Provider) { p.BaseURL = s } }
	header := func(name, value string) change {
		return func(p *provider.Provider) { p.Headers = provider.Headers(map[string]string{name: value}) }
	}
	settings := func(s string) change { return func(p *provider.Provider) { p.Settings = []byte(s) } }
	custom := func(s string) change {
		return func(p *provider.Provider) { p.Kind, p.Settings = "custom", []byte(s) }
	}
	for _, c := range []struct {
		field  string
		change change
	}{
		{"name", func(p *provider.Provider) { p.Name = "" }}, {"name", func(p *provider.Provider) { p.Name = "a/b" }}, {"name", func(p *provider.Provider) { p.Name = strings.Repeat("a", 65) }},
		{"name", func(p *provider.Provider) { p.Name = "a\n" }}, {"name", func(p *provider.Provider) { p.Name = "-a" }},
		{"kind", func(p *provider.Provider) { p.Kind = "" }}, {"kind", func(p *provider.Provider) { p.Kind = "OpenAI" }}, {"kind", func(p *provider.Provider) { p.Kind = "azure" }},
		{"base_url", url("")}, {"base_url", url("api.openai.com")}, {"base_url", url("ftp://h/")}, {"base_url", url("https://")}, {"base_url", url("https:///v1")}, {"base_url", url("https://user:hunter2@h.example/")},
		{"base_url", url("https://h.example/?key=hunter2")}, {"base_url", url("https://h.example/?")}, {"base_url", url("https://h.example/#x")}, {"base_url", url("https://h.example:0/")}, {"base_url", url("https://h.example:99999/")},
		{"base_url", url("https://h.example:x/hunter2")}, {"base_url", url("https://h.example/%2e%2e/")}, {"base_url", url("https://h.example/../x")}, {"base_url", url("https://h.example//v1")}, {"base_url", url("https://h example/")},
		{"base_url", url("https://h.example/v1\n")}, {"base_url", url("//h.example")}, {"base_url", url("https:h.example")}, {"base_url", url("https://hé.example/")}, {"base_url", url("https://[fe80::1%25eth0]/")}, {"base_url", url("https://-h.example/")}, {"base_url", url("https://h..example/")},
		{"models[1]", func(p *provider.Provider) { p.Models = []string{"a", ""} }}, {"models[0]", func(p *provider.Provider) { p.Models = []string{"a b"} }}, {"models[1]", func(p *provider.Provider) { p.Models = []string{"a", "a"} }},
		{"hosts[0]", func(p *provider.Provider) { p.Hosts = []string{"https://h.example"} }}, {"hosts[0]", func(p *provider.Provider) { p.Hosts = []string{"H.example"} }}, {"hosts[0]", func(p *provider.Provider) { p.Hosts = []string{"h.example:443"} }},
		{"hosts[0]", func(p *provider.Provider) { p.Hosts = []string{"*"} }}, {"hosts[1]", func(p *provider.Provider) { p.Hosts = []string{"h.example", "h.example"} }}, {"hosts[0]", func(p *provider.Provider) { p.Hosts = []string{"a.*.example"} }},
		{"headers.X-Team", header("X-Team", "a")}, {"headers.authorization", header("authorization", "Bearer hunter2")}, {"headers.api-key", header("api-key", "hunter2")}, {"headers.cookie", header("cookie", "a")},
		{"headers.host", header("host", "a")}, {"headers.content-length", header("content-length", "1")}, {"headers.transfer-encoding", header("transfer-encoding", "chunked")}, {"headers.x-aid-route", header("x-aid-route", "a")}, {"headers.x-agent-id", header("x-agent-id", "a")},
		{"headers.x-envoy-retry-on", header("x-envoy-retry-on", "5xx")}, {"headers.x-forwarded-for", header("x-forwarded-for", "1.1.1.1")}, {"headers.x-request-id", header("x-request-id", "a")}, {"headers", header(":path", "/")},
		{"headers.x-team", header("x-team", "a\r\nb: c")}, {"headers.x-team", header("x-team", "é")}, {"headers.x-team", header("x-team", strings.Repeat("a", 4097))}, {"headers", header("x team", "a")}, {"headers", header("sk-hunter2!", "a")}, {"headers", header("", "a")},
		{"settings", settings(`[]`)}, {"settings", settings(`{"of_next_year":true}`)}, {"settings", settings(`{} {}`)}, {"settings", settings(`{"auth":1}`)}, {"settings", settings(`{`)},
		{"settings.auth.type", settings(`{"auth":{"type":"digest"}}`)}, {"settings.auth", settings(`{"auth":{"type":"bearer","name":"x"}}`)}, {"settings.auth.name", settings(`{"auth":{"type":"header"}}`)}, {"settings.auth.name", settings(`{"auth":{"type":"header","name":"host"}}`)},
		{"settings.auth.name", settings(`{"auth":{"type":"header","name":"x-aid-route"}}`)}, {"settings.auth.name", settings(`{"auth":{"type":"query","name":"a&b"}}`)}, {"settings.auth.user", settings(`{"auth":{"type":"basic","user":"a:b"}}`)}, {"settings.auth.user", settings(`{"auth":{"type":"basic"}}`)},
		{"settings.query", settings(`{"query":{"a":"b&c=d"}}`)}, {"settings.query", settings(`{"query":{"api-key":"hunter2"}}`)}, {"settings.paths", settings(`{"paths":{"/v1/chat/completions":"/x"}}`)},
		{"settings.drop", settings(`{"drop":"all"}`)}, {"settings.drop_unsupported", settings(`{"drop_unsupported":true}`)}, {"settings.max_tokens", settings(`{"max_tokens":1}`)}, {"settings.input_type", settings(`{"input_type":"search_query"}`)},
		{"settings.max_tokens", func(p *provider.Provider) { p.Kind, p.Settings = "anthropic", []byte(`{"max_tokens":-1}`) }},
		{"settings.input_type", func(p *provider.Provider) { p.Kind, p.Settings = "cohere", []byte(`{"input_type":"other"}`) }},
		{"settings.answer", settings(`{"answer":{"error":"/e"}}`)},
		{"settings", custom(`{"answer":{"errors":"/e"}}`)}, {"settings.answer.error", custom(`{"answer":{"error":"e"}}`)}, {"settings.answer.error", custom(`{"answer":{"error":"/"}}`)},
		{"settings.answer.error", custom(`{"answer":{"error":"/a~2b"}}`)}, {"settings.answer.error", custom(`{"answer":{"error":"/a b"}}`)}, {"settings.answer.error", custom(`{"answer":{"error":"/a/b/c/d/e"}}`)},
		{"settings.answer.model", custom(`{"answer":{"model":"/` + strings.Repeat("m", 33) + `"}}`)}, {"settings.answer.stream", custom(`{"answer":{"stream":"websocket"}}`)},
		{"settings.answer.usage", custom(`{"answer":{"usage":{}}}`)}, {"settings.answer.usage.output", custom(`{"answer":{"usage":{"input":"/n/in","output":"/n/in"}}}`)},
		{"settings.answer.usage.output", custom(`{"answer":{"usage":{"input":"/n","output":"/n/out"}}}`)}, {"settings.answer.model", custom(`{"answer":{"model":"/usage"}}`)},
		{"settings.inject_usage", custom(`{"inject_usage":true,"answer":{"usage":{"input":"/n"}}}`)},
		{"settings.inject_usage", func(p *provider.Provider) { p.Kind, p.Settings = "gemini", []byte(`{"inject_usage":true}`) }},
		{"settings.paths", func(p *provider.Provider) { p.Kind, p.Settings = "custom", []byte(`{"paths":{"/v1/whatever":"/x"}}`) }},
		{"settings.paths", func(p *provider.Provider) {
			p.Kind, p.Settings = "custom", []byte(`{"paths":{"/v1/chat/completions":"x?y"}}`)
		}},
	} {
		p := good
		c.change(&p)
		err := provider.Validate(p)
		var invalid *provider.Invalid
		if !errors.As(err, &invalid) || invalid.Field != c.field || invalid.Problem == "" {
			t.Errorf("%s: %+v: %v", c.field, p, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("quoted: %v", err)
		}
	}
}

func TestUpstream(t *testing.T) {
	for url, want := range map[string]provider.Upstream{
		"https://api.openai.com/v1":   {Host: "api.openai.com", Port: 443, TLS: true, PathPrefix: "/v1"},
		"http://LLM.Internal":         {Host: "llm.internal", Port: 80},
		"https://h.example:8443/a/b/": {Host: "h.example", Port: 8443, TLS: true, PathPrefix: "/a/b"},
		"http://[::1]:9000/v1":        {Host: "::1", Port: 9000, PathPrefix: "/v1"},
	} {
		got, err := provider.Provider{BaseURL: url}.Upstream()
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", url, got, err)
		}
	}
}

func TestClusterName(t *testing.T) {
	seen := map[string]string{}
	for _, p := range []provider.Provider{
		{OrgID: "o", ID: "p", BaseURL: "https://a"}, {OrgID: "o", ID: "p", BaseURL: "https://b"}, {OrgID: "o", ID: "q", BaseURL: "https://a"}, {OrgID: "q", ID: "p", BaseURL: "https://a"},
		{OrgID: "op", ID: "", BaseURL: "https://a"}, {OrgID: "", ID: "op", BaseURL: "https://a"}, {OrgID: "o", ID: "phttps://a", BaseURL: ""}, {OrgID: "o", ID: "p", BaseURL: "https://a/"},
	} {
		name, what := provider.ClusterName(p), fmt.Sprintf("%q %q %q", p.OrgID, p.ID, p.BaseURL)
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s are both %s", what, other, name)
		}
		seen[name] = what
		p.Name, p.Models, p.Version = "other", []string{"m"}, 7
		if provider.ClusterName(p) != name || len(name) != len("provider-")+32 {
			t.Errorf("%s: %s", what, name)
		}
	}
	// It is stored with credentials, so it must never change.
	if got := provider.ClusterName(provider.Provider{OrgID: "org_default", ID: "prov_1", BaseURL: "https://api.openai.com/v1"}); got != "provider-6fa704f2df6f2b94cb7c1379a166c2cd" {
		t.Error(got)
	}
}

// TestSecret prints a secret in every way.
func TestSecret(t *testing.T) {
	const text = "sk-hunter2hunter2"
	s := provider.NewSecret(text)
	p := provider.Provider{Name: "a", Credential: s}
	type outer struct {
		P  provider.Provider
		S  *provider.Secret
		In []any
		M  map[string]provider.Secret
	}
	o := outer{P: p, S: &s, In: []any{s, &p}, M: map[string]provider.Secret{"a": s}}
	var out strings.Builder
	for _, v := range []any{s, &s, p, &p, o, &o, []provider.Secret{s}, registry(t, p)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%10.3s", "%t"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		for _, marshal := range []func(any) ([]byte, error){json.Marshal, xml.Marshal, yaml.Marshal} {
			b, _ := marshal(v) // some of it cannot be marshalled, and the error must not have it
			out.Write(b)
		}
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v)
		out.WriteString(b.String())
	}
	for _, bad := range []string{text, "hunter2", fmt.Sprintf("%x", text), fmt.Sprintf("%X", text), "aHVudGVyMg"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%q was printed", bad)
		}
	}
	if !strings.Contains(out.String(), "[redacted]") {
		t.Error("it does not say that something is there")
	}
	if s.Reveal() != text || (provider.Secret{}).Reveal() != "" || (provider.Secret{}).String() != "" || provider.NewSecret("").Reveal() != "" {
		t.Error("not itself")
	}
	if b, err := json.Marshal(map[string]any{"s": s, "none": provider.Secret{}}); err != nil || string(b) != `{"none":"","s":"[redacted]"}` {
		t.Errorf("%s %v", b, err)
	}
}
