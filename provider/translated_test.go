package provider_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

const embeddings = "/v1/embeddings"

// TestForwardTranslated: where a translated request goes, as whom, and that its
// bytes are made of those that were judged.
func TestForwardTranslated(t *testing.T) {
	for _, c := range []struct{ kind, base, endpoint, body, path, headers string }{
		{"anthropic", "https://api.anthropic.com", chat, ``, "/v1/messages",
			"accept=application/json,anthropic-version=2023-06-01,content-type=application/json,x-api-key=secret-of-a"},
		{"anthropic", "https://api.anthropic.com/v1", chat, ``, "/v1/messages", ""},
		{"anthropic", "https://proxy.example/anthropic", chat, ``, "/anthropic/v1/messages", ""},
		{"anthropic", "https://api.anthropic.com", chat, `"stream":true,`, "/v1/messages",
			"accept=text/event-stream,anthropic-version=2023-06-01,content-type=application/json,x-api-key=secret-of-a"},
		{"gemini", "https://generativelanguage.googleapis.com", chat, ``, "/v1beta/models/m:generateContent",
			"accept=application/json,content-type=application/json,x-goog-api-key=secret-of-a"},
		{"gemini", "https://generativelanguage.googleapis.com", chat, `"stream":true,`, "/v1beta/models/m:streamGenerateContent?alt=sse", ""},
		{"gemini", "https://generativelanguage.googleapis.com/v1", chat, ``, "/v1/models/m:generateContent", ""},
		{"gemini", "https://proxy.example/google", chat, ``, "/google/v1beta/models/m:generateContent", ""},
		{"gemini", "https://generativelanguage.googleapis.com", embeddings, ``, "/v1beta/models/m:batchEmbedContents", ""},
		{"cohere", "https://api.cohere.com", chat, ``, "/v2/chat",
			"accept=application/json,authorization=Bearer secret-of-a,content-type=application/json"},
		{"cohere", "https://api.cohere.com/v2", embeddings, ``, "/v2/embed", ""},
		{"mistral", "https://api.mistral.ai", chat, ``, "/v1/chat/completions", ""},
		{"mistral", "https://api.mistral.ai/v1", embeddings, ``, "/v1/embeddings", ""},
	} {
		p := prov("a", c.kind, "m")
		p.BaseURL = c.base
		p.Cluster = provider.ClusterName(p)
		body := `{` + c.body + `"model":"m","messages":[{"role":"user","content":"hello"}]}`
		if c.endpoint == embeddings {
			body = `{"model":"m","input":["a","b"]}`
		}
		call := parsed(t, c.endpoint, body)
		f, e := p.Forward(call, c.endpoint, "")
		if e != nil {
			t.Errorf("%s %s: %v", c.kind, c.base, e)
			continue
		}
		if f.Path != c.path || !f.Translated() || f.Cluster != p.Cluster || !json.Valid(f.Body) || f.Dropped() != nil {
			t.Errorf("%s %s: %s %s", c.kind, c.base, f.Path, f.Body)
		}
		if !bytes.Equal(call.Body, []byte(body)) {
			t.Errorf("the judged body was changed: %s", call.Body)
		}
		var got []string
		for _, name := range slices.Sorted(maps.Keys(f.Set)) {
			got = append(got, name+"="+f.Set[name])
		}
		if c.headers != "" && strings.Join(got, ",") != c.headers {
			t.Errorf("%s: %v", c.kind, got)
		}
	}
}

// TestForwardOwn: Mistral's client speaks Mistral's words, and they pass as they are.
func TestForwardOwn(t *testing.T) {
	p := prov("a", "mistral", "m")
	call := parsed(t, chat, `{"model":"m","safe_prompt":true,"messages":[{"role":"user","content":"hello"}]}`)
	call.Own = provider.OwnClient("mistral-client-python/3.7.0 speakeasy-sdk/python")
	if f, e := p.Forward(call, chat, ""); e != nil || f.Translated() || f.Body != nil {
		t.Errorf("%+v %v", f, e)
	}
	call.Own = provider.OwnClient("OpenAI/Python 3.54.0")
	if _, e := p.Forward(call, chat, ""); e == nil || e.Status != 422 || e.Param != "safe_prompt" {
		t.Errorf("%+v", e)
	}
	// Where a path has one format only, the client changes nothing.
	a := prov("b", "anthropic", "m")
	call = parsed(t, chat, `{"model":"m","messages":[{"role":"user","content":"hello"}]}`)
	call.Own = true
	if f, e := a.Forward(call, chat, ""); e != nil || !f.Translated() {
		t.Errorf("%+v %v", f, e)
	}
}

// TestForwardUnsupported: what cannot be carried is refused by its name, or left
// out and listed; what is no request is 400.
func TestForwardUnsupported(t *testing.T) {
	const body = `{"model":"m","seed":1,"logit_bias":{"1":2},"odd \"name\"":1,"messages":[{"role":"user","content":"hello"}]}`
	p := prov("a", "anthropic", "m")
	_, e := p.Forward(parsed(t, chat, strings.Replace(body, `"odd \"name\"":1,`, "", 1)), chat, "")
	if e == nil || e.Status != 422 || e.Code != "unsupported_by_provider" || e.Param != "logit_bias" && e.Param != "seed" || !strings.Contains(e.Message, "Anthropic") {
		t.Errorf("%+v", e)
	}
	p.Settings = []byte(`{"drop_unsupported":true}`)
	f, e := p.Forward(parsed(t, chat, strings.Replace(body, `"odd \"name\"":1,`, `"odd name!":1,`, 1)), chat, "")
	if e != nil {
		t.Fatal(e)
	}
	got := f.Dropped()
	slices.Sort(got)
	if fmt.Sprint(got) != "[logit_bias other:1 seed]" || bytes.Contains(f.Body, []byte("seed")) {
		t.Errorf("%v %s", got, f.Body)
	}
	_, e = p.Forward(parsed(t, chat, `{"model":"m"}`), chat, "")
	if e == nil || e.Status != 400 || e.Param != "messages" {
		t.Errorf("%+v", e)
	}
	_, e = p.Forward(parsed(t, embeddings, `{"model":"m","input":"a"}`), embeddings, "")
	if e == nil || e.Status != 400 || e.Code != "unsupported_endpoint" {
		t.Errorf("Anthropic has no embeddings: %+v", e)
	}
	p.Settings = []byte(`{"max_tokens":77}`)
	if f, e = p.Forward(parsed(t, chat, `{"model":"m","messages":[{"role":"user","content":"hello"}]}`), chat, ""); e != nil || !bytes.Contains(f.Body, []byte(`"max_tokens":77`)) {
		t.Errorf("%s %v", f.Body, e)
	}
}

// TestAnswerTranslated: usage, model and bytes are the translator's.
func TestAnswerTranslated(t *testing.T) {
	p := prov("a", "cohere", "m")
	f, e := p.Forward(parsed(t, chat, `{"model":"m","messages":[{"role":"user","content":"hello"}]}`), chat, "")
	if e != nil {
		t.Fatal(e)
	}
	a := f.NewAnswer(200, "application/json", func() time.Time { return time.Unix(1_700_000_000, 0) }, func() string { return "chatcmpl-1" })
	if u := a.Usage(); u.Source != "absent" {
		t.Errorf("%+v", u)
	}
	const said = `{"id":"c1","finish_reason":"COMPLETE","message":{"role":"assistant","content":[{"type":"text","text":"hi"}]},"usage":{"billed_units":{"input_tokens":3,"output_tokens":2},"tokens":{"input_tokens":9,"output_tokens":2}}}`
	if out, replaced := a.Chunk([]byte(said[:50]), false); !replaced || len(out) != 0 {
		t.Errorf("%s %v", out, replaced)
	}
	out, replaced := a.Chunk([]byte(said[50:]), true)
	if !replaced || !strings.Contains(string(out), `"object":"chat.completion"`) {
		t.Errorf("%s", out)
	}
	if u := a.Usage(); u != (provider.Usage{InputTokens: 9, OutputTokens: 2, Source: "provider"}) || a.Model() != "m" {
		t.Errorf("%+v %s", u, a.Model())
	}
}
