package provider_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// What a provider runs itself is found in every format, and what the caller runs is not.
func TestHosted(t *testing.T) {
	for _, c := range []struct{ path, body, want string }{
		{"/v1/chat/completions", `{"model":"m","tools":[{"type":"function","function":{"name":"web_search"}}]}`, ""},
		{"/v1/chat/completions", `{"model":"m","web_search_options":{}}`, "web_search"},
		{"/v1/responses", `{"model":"m","tools":[{"type":"function","name":"f"},{"type":"web_search_preview_2025_03_11"}]}`, "web_search_preview"},
		{"/v1/responses", `{"model":"m","tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}`, "code_interpreter"},
		{"/v1/responses", `{"model":"m","tools":[{"type":"image_generation"}]}`, "image_generation"},
		{"/v1/responses", `{"model":"m","tools":[{"type":"mcp","server_label":"crm","server_url":"https://x.example"}]}`, "mcp:crm"},
		{"/v1/responses", `{"model":"m","tools":[{"type":"local_shell"},{"type":"custom","name":"x"},{"type":"computer_use_preview"}]}`, ""},
		{"/v1/responses", `{"model":"m","tools":[{"type":"shell"}]}`, "shell"},
		{"/v1/messages", `{"model":"m","tools":[{"name":"bash","type":"bash_20250124"},{"name":"web_search"}]}`, ""},
		{"/v1/messages", `{"model":"m","tools":[{"name":"web_search","type":"web_search_20250305"}]}`, "web_search"},
		{"/v1/messages", `{"model":"m","mcp_servers":[{"name":"crm","type":"url","url":"https://x.example"}]}`, "mcp:crm"},
		{"/v1beta/models/m:generateContent", `{"tools":[{"functionDeclarations":[{"name":"googleSearch"}]}]}`, ""},
		{"/v1beta/models/m:generateContent", `{"tools":[{"googleSearch":{}}]}`, "google_search"},
		{"/v1beta/models/m:generateContent", `{"tools":[{"code_execution":{}}]}`, "code_execution"},
		{"/v1beta/models/m:generateContent", `{"tools":[{"url_context":{}}]}`, "url_context"},
	} {
		if call := callOf(t, c.path, c.body); call.Hosted() != c.want {
			t.Errorf("%s: %q, want %q", c.body, call.Hosted(), c.want)
		}
	}
}

func callOf(t *testing.T, path, body string) provider.Call {
	t.Helper()
	ep, params, ok := provider.Match("POST", path)
	if !ok {
		t.Fatal(path)
	}
	call, e := provider.Parse(ep, params, "application/json", "", []byte(body))
	if e != nil {
		t.Fatalf("%s: %v", body, e)
	}
	return call
}

// No tokenizer makes more tokens than the text has bytes.
func TestBound(t *testing.T) {
	const image = `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"n":3,"max_tokens":7}`
	b := callOf(t, "/v1/chat/completions", image).Bound(provider.Forward{}, 7)
	if !b.Opaque || b.Output != 21 || b.Input < int64(len(image)) {
		t.Errorf("%+v", b)
	}
	for body, choices := range map[string]int64{`{"model":"m","prompt":"x","n":2,"best_of":9}`: 9, `{"model":"m","prompt":"x","n":null}`: 1, `{"model":"m","prompt":"x","n":0}`: 1} {
		if b := callOf(t, "/v1/completions", body).Bound(provider.Forward{}, 10); b.Output != 10*choices || b.Opaque {
			t.Errorf("%s: %+v", body, b)
		}
	}
	if b := callOf(t, "/v1beta/models/m:generateContent", `{"generation_config":{"candidate_count":4}}`).Bound(provider.Forward{}, 10); b.Output != 40 {
		t.Errorf("%+v", b)
	}
	if b := callOf(t, "/v1/embeddings", `{"model":"m","input":"x"}`).Bound(provider.Forward{}, 10); b.Output != 0 || b.Input < 25 {
		t.Errorf("%+v", b)
	}
	if b := callOf(t, "/v1/completions", `{"model":"m","prompt":"x","n":9007199254740992}`).Bound(provider.Forward{}, 16384); b.Output < 1<<53 {
		t.Errorf("%+v", b)
	}
	for _, n := range []string{"2.0", "1e1", "-1", `"3"`, "true", "9007199254740993", "[1]"} {
		ep, params, _ := provider.Match("POST", "/v1/completions")
		if _, e := provider.Parse(ep, params, "application/json", "", []byte(`{"model":"m","prompt":"x","n":`+n+`}`)); e == nil || e.Code != "invalid_type" {
			t.Errorf("n of %s: %v", n, e)
		}
	}
}

// The cap on the output stands where each API has it, once.
func TestCapPlaces(t *testing.T) {
	gemini := provider.Provider{ID: "prov_g", OrgID: "o", Name: "g", Kind: "gemini", BaseURL: "https://g.example", Models: []string{"*"}, Credential: provider.NewSecret("k"), HasCredential: true}
	anthropic := provider.Provider{ID: "prov_a", OrgID: "o", Name: "a", Kind: "anthropic", BaseURL: "https://a.example", Models: []string{"*"}, Credential: provider.NewSecret("k"), HasCredential: true}
	openai := provider.Provider{ID: "prov_o", OrgID: "o", Name: "o", Kind: "openai", BaseURL: "https://api.openai.com/v1", Models: []string{"*"}, Credential: provider.NewSecret("k"), HasCredential: true}
	cohere := provider.Provider{ID: "prov_c", OrgID: "o", Name: "c", Kind: "cohere", BaseURL: "https://c.example", Models: []string{"*"}, Credential: provider.NewSecret("k"), HasCredential: true}
	const g = "/v1beta/models/m:generateContent"
	for _, c := range []struct {
		p                provider.Provider
		path, body, want string
	}{
		{gemini, g, `{"contents":[]}`, `{"generationConfig":{"maxOutputTokens":9},"contents":[]}`},
		{gemini, g, `{"generationConfig": {} ,"contents":[]}`, `{"generationConfig": {"maxOutputTokens":9} ,"contents":[]}`},
		{gemini, g, `{"contents":[],"generation_config":{"temperature":1}}`, `{"contents":[],"generation_config":{"maxOutputTokens":9,"temperature":1}}`},
		{gemini, g, `{"generationConfig" : null,"contents":[]}`, `{"generationConfig" : {"maxOutputTokens":9},"contents":[]}`},
		{gemini, g, `{"generationConfig":{"max_output_tokens":null}}`, `{"generationConfig":{"max_output_tokens":9}}`},
		{gemini, g, `{"generationConfig":[{"temperature":1}]}`, ""},
		{anthropic, "/v1/messages", `{"model":"m","messages":[]}`, `{"max_tokens":9,"model":"m","messages":[]}`},
		{cohere, "/v2/chat", `{"model":"m","messages":[]}`, `{"max_tokens":9,"model":"m","messages":[]}`},
		{openai, "/v1/chat/completions", ` {"model":"m","messages":[]}`, ` {"max_completion_tokens":9,"model":"m","messages":[]}`},
		{openai, "/v1/chat/completions", `{"max_tokens":null,"model":"m","messages":[]}`, `{"max_completion_tokens":9,"max_tokens":null,"model":"m","messages":[]}`},
		{openai, "/v1/chat/completions", `{"max_completion_tokens":null,"model":"m","messages":[]}`, `{"max_completion_tokens":9,"model":"m","messages":[]}`},
	} {
		c.p.Cluster = provider.ClusterName(c.p)
		call := callOf(t, c.path, c.body)
		call.Cap = 9
		f, e := c.p.Forward(call, c.path, "")
		if string(f.Body) != c.want || (e == nil) != (c.want != "") {
			t.Errorf("%s: %v: %s", c.body, e, f.Body)
		}
		if e == nil {
			if again := callOf(t, c.path, string(f.Body)); again.MaxTokens != 9 {
				t.Errorf("%s says %d", f.Body, again.MaxTokens)
			}
		}
	}
	// A translated request has the cap in its own words.
	anthropic.Cluster = provider.ClusterName(anthropic)
	call := callOf(t, "/v1/chat/completions", `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`)
	call.Cap, call.WantUsage = 9, true
	f, e := anthropic.Forward(call, "/v1/chat/completions", "")
	if e != nil || !strings.Contains(string(f.Body), `"max_tokens":9`) || !f.Translated() || fmt.Sprint(f.Added()) != "[max_completion_tokens=9]" {
		t.Errorf("%v: %s", e, f.Body)
	}
}

// The output that has passed is counted by its text, however it comes.
func TestOutputSeen(t *testing.T) {
	call := callOf(t, "/v1/chat/completions", `{"model":"m","stream":true,"messages":[]}`)
	chunk := func(text string) string {
		return `data: {"id":"chatcmpl-0123456789012345678901234567890123456789","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"` + text + `"},"finish_reason":null}],"usage":null}` + "\n\n"
	}
	p := provider.Provider{ID: "p", Kind: "openai", BaseURL: "https://x.example/v1"}
	words60 := strings.Repeat("word ", 60)
	for _, c := range []struct {
		stream string
		want   int64
	}{
		{chunk(""), 0},
		{chunk("abc"), 1},
		{chunk("a") + chunk("b") + chunk("c"), 3},
		{chunk(strings.Repeat("word ", 60)), 100},
		{chunk(`\"\\\"`), 1},
		{chunk("abc") + `data: {"choices":[{"delta":{"content":"abcdef`, 3},
		{chunk("abc") + `data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"fff","arguments":"{\"a\":1}"}}]}}]}` + "\n\n", 5},
		{chunk("abc") + "data: [DONE]\n\n", 1},
		// Arguments of tools may be objects, with names that the model chooses.
		{`data: {"message":{"tool_calls":[{"id":"call_1","function":{"name":"fff","arguments":{"id":"` + words60 + `"}}}]}}` + "\n\n", 103},
		{`data: {"message":{"tool_calls":[{"function":{"arguments":{"` + words60 + `":1}}}]}}` + "\n\n", 101},
		{`data: {"parts":[{"functionCall":{"args":{"a":[{"status":"` + words60 + `"},"` + words60 + `"]}}}]}` + "\n\n", 206},
		{`data: {"content_block":{"type":"tool_use","id":"` + strings.Repeat("x", 60) + `","input":{}}}` + "\n\n", 0},
		{`data: {"input":{"a":{}},"id":"abc","input":{"status":"` + words60, 105},
		{`data: {"data":{"status":"` + words60 + `","` + words60 + `":[1]}}` + "\n\n", 200},
		{`data: {"signature":"` + words60 + `","encrypted_content":"` + words60 + `"}` + "\n\n", 0},
		{`data: {"content":[{"id":"x"},"abc"]}` + "\n\n", 1},
	} {
		for size := range []int{1, 7, 1 << 20} {
			a := provider.NewResponseReader(call, p, 200, "text/event-stream")
			a.CountOutput()
			for b := c.stream; b != ""; {
				n := min(len(b), size+1)
				a.Chunk([]byte(b[:n]), false)
				b = b[n:]
			}
			if a.OutputSeen() != c.want {
				t.Errorf("pieces of %d: %d tokens, want %d: %s", size+1, a.OutputSeen(), c.want, c.stream)
			}
		}
	}
	// Usage replaces the estimate of what came before it.
	usage := func(text string, tokens int) string {
		return strings.Replace(chunk(text), `"usage":null`, fmt.Sprintf(`"usage":{"prompt_tokens":1,"completion_tokens":%d}`, tokens), 1)
	}
	first := func(text string, tokens int) string { // usage before the text
		return fmt.Sprintf(`data: {"usage":{"prompt_tokens":1,"completion_tokens":%d},"choices":[{"delta":{"content":"%s"}}]}`+"\n\n", tokens, text)
	}
	messages := callOf(t, "/v1/messages", `{"model":"m","stream":true,"max_tokens":9,"messages":[]}`)
	gemini := callOf(t, "/v1beta/models/m:streamGenerateContent", `{"contents":[]}`)
	words := strings.Repeat("word ", 6)
	for _, c := range []struct {
		name   string
		call   provider.Call
		kind   string
		stream string
		want   int64
	}{
		{"each event", call, "openai", usage(words, 7) + usage(words, 14), 14},
		{"text after it", call, "openai", usage(words, 7) + chunk(words), 17},
		{"text before it", call, "openai", chunk(words) + chunk(words) + usage(words, 20), 20},
		{"it stands first in its event", call, "openai", first(words, 7) + first(words, 14), 14},
		{"broken off behind it", call, "openai", first(words, 7)[:len(first(words, 7))-20], 7},
		{"zeros are no report", call, "openai", usage(words, 0) + usage(words, 0), 20},
		{"nor are equal figures", call, "openai", usage("abc", 1) + usage(words, 1) + usage(words, 1), 21},
		{"Anthropic's first", messages, "anthropic", `data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":3}}}` + "\n\n" + `data: {"type":"content_block_delta","delta":{"text":"` + words + `"}}` + "\n\n", 10},
		{"Anthropic's last", messages, "anthropic", `data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":3}}}` + "\n\n" + `data: {"type":"content_block_delta","delta":{"text":"` + words + `"}}` + "\n\n" +
			`data: {"type":"message_delta","usage":{"output_tokens":8}}` + "\n\n", 8},
		{"an array", gemini, "gemini", `[{"candidates":[{"content":{"parts":[{"text":"a } b ` + words + `"}]}}],"usageMetadata":{"candidatesTokenCount":9}},{"candidates":[{"content":{"parts":[{"text":"` + words, 19},
	} {
		for size := range []int{1, 7, 1 << 20} {
			contentType := "text/event-stream"
			if c.kind == "gemini" {
				contentType = "application/json"
			}
			a := provider.NewResponseReader(c.call, provider.Provider{ID: "p", Kind: c.kind, BaseURL: "https://x.example"}, 200, contentType)
			a.CountOutput()
			for b := c.stream; b != ""; {
				n := min(len(b), size+1)
				a.Chunk([]byte(b[:n]), false)
				b = b[n:]
			}
			if a.OutputSeen() != c.want {
				t.Errorf("%s, pieces of %d: %d tokens, want %d", c.name, size+1, a.OutputSeen(), c.want)
			}
		}
	}
	a := provider.NewResponseReader(call, p, 200, "text/event-stream")
	if a.Chunk([]byte(chunk("abc")), false); a.OutputSeen() != 0 {
		t.Error("it counts although nothing asked for it")
	}
}
