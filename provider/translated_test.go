package provider_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/translate"
)

const embeddings = "/v1/embeddings"

// TestForwardTranslated checks the destination and the credential of a translated request.
// Its bytes must come from the evaluated ones.
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
		{"cohere", "https://proxy.example/cohere/v1", chat, ``, "/cohere/v2/chat", ""},
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

// TestForwardOwn: Mistral's own format has separate paths, and passes unchanged. The user
// agent selects nothing.
func TestForwardOwn(t *testing.T) {
	p := prov("a", "mistral", "m")
	const body = `{"model":"m","seed":1,"safe_prompt":true,"messages":[{"role":"user","content":"hello"}]}`
	for _, path := range []string{"/v1/chat/completions", "/v1/embeddings", "/v1/moderations", "/v1/fim/completions", "/v1/ocr"} {
		own := parsed(t, "/mistral"+path, `{"model":"m"}`)
		if f, e := p.Forward(own, "/mistral"+path, ""); e != nil || f.Translated() || f.Body != nil || f.Path != path {
			t.Errorf("%s: %+v %v", path, f, e)
		}
		for _, kind := range []string{"openai", "custom", "anthropic", "gemini", "cohere"} {
			if _, e := prov("b", kind, "m").Forward(own, "/mistral"+path, ""); e == nil || e.Code != "unsupported_endpoint" {
				t.Errorf("%s at %s: %v", path, kind, e)
			}
		}
		if got := provider.FormatOf("/mistral" + path); got != provider.FormatMistral {
			t.Errorf("%s: errors of %s", path, got)
		}
	}
	call := parsed(t, chat, body)
	if f, e := p.Forward(call, chat, ""); e != nil || !strings.Contains(string(f.Body), `"random_seed":1,`) && !strings.Contains(string(f.Body), `"random_seed":1}`) || !strings.Contains(string(f.Body), `"safe_prompt":true`) {
		t.Errorf("%s %v", f.Body, e)
	}
	if e := provider.Unserved("POST", "/mistral/chat/completions"); e.Status != 404 || !strings.Contains(e.Message, "POST /mistral/v1/chat/completions") {
		t.Error(e.Message)
	}
	for _, path := range []string{"/mistral/v1/messages", "/mistral/v1/responses", "/mistral/v2/chat", "/mistral/mistral/v1/ocr", "/mistral"} {
		if _, _, served := provider.Match("POST", path); served {
			t.Errorf("%s is served", path)
		}
	}
}

// TestForwardUnsupported: an unsupported field is rejected by its name, or left out and
// listed. An invalid request is rejected with 400.
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
	a := f.NewResponseReader(200, "application/json", func() time.Time { return time.Unix(1_700_000_000, 0) }, func() string { return "chatcmpl-1" })
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
	want := provider.Usage{InputTokens: 9, OutputTokens: 2, Source: "provider", Billed: provider.Billed{Said: true, InputTokens: 3, OutputTokens: 2}}
	if u := a.Usage(); u != want || a.Model() != "" { // Cohere does not return the model
		t.Errorf("%+v %s", u, a.Model())
	}
}

// TestTranslatedUsage: usage is recorded and charged from the provider's format. The caller
// gets the same figures in its own format. This holds for every response in the tests of
// package translate, and for every split.
func TestTranslatedUsage(t *testing.T) {
	known := 0
	for _, kind := range []string{"anthropic", "gemini", "cohere", "mistral"} {
		files, err := filepath.Glob("translate/testdata/answers/" + kind + "/*.txt")
		if err != nil || len(files) == 0 {
			t.Fatalf("no vectors: %v", err)
		}
		for _, file := range files {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(ar.Files, func(f txtar.File) bool { return f.Name == "answer" })
			head, answer, _ := bytes.Cut(ar.Files[i].Data, []byte("\n\n"))
			status, contentType, _ := strings.Cut(strings.SplitN(string(head), "\n", 2)[0], " ")
			code, err := strconv.Atoi(status)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			path, body := chat, `{"model":"m","stream":`+strconv.FormatBool(strings.Contains(contentType, "event-stream"))+`,"messages":[{"role":"user","content":"hello"}]}`
			if strings.HasPrefix(filepath.Base(file), "embeddings") {
				path, body = embeddings, `{"model":"m","input":["a","b"]}`
			}
			f, e := prov("a", kind, "m").Forward(parsed(t, path, body), path, "")
			if e != nil {
				t.Fatalf("%s: %v", file, e)
			}
			for _, size := range []int{1, 7, len(answer) + 1} {
				a := f.NewResponseReader(code, contentType, time.Now, func() string { return "chatcmpl-1" })
				for piece := range slices.Chunk(answer, size) {
					a.Chunk(piece, false)
				}
				a.Chunk(nil, true)
				input, output, cached, written, reasoning, told := a.Translated().Usage()
				u := a.Usage()
				if told != (u.Source == "provider") {
					t.Errorf("%s: the caller is told of usage: %v; it is recorded: %+v", file, told, u)
				}
				if !told {
					continue
				}
				known++
				if got := [5]int64{u.InputTokens, u.OutputTokens, u.CachedTokens, u.CacheWriteTokens, u.ReasoningTokens}; got != [5]int64{input, output, cached, written, reasoning} {
					t.Errorf("%s: recorded %v, told %v", file, got, [5]int64{input, output, cached, written, reasoning})
				}
			}
		}
	}
	if known < 60 {
		t.Errorf("only %d answers had usage", known)
	}
}

// judgedAlike checks that a provider gets the evaluated content. The parser of the
// provider's endpoint must find the same model, stream, tools and tokens.
func judgedAlike(t *testing.T, path string, body []byte) {
	t.Helper()
	ep, params, _ := provider.Match("POST", path)
	call, e := provider.Parse(ep, params, "application/json", "", body)
	if e != nil {
		return
	}
	before := bytes.Clone(body)
	for _, kind := range []string{"anthropic", "gemini", "cohere", "mistral"} {
		for _, settings := range []string{`{}`, `{"drop_unsupported":true}`} {
			p := prov("a", kind, "*")
			p.BaseURL = "https://a.example"
			p.Cluster = provider.ClusterName(p)
			p.Settings = []byte(settings)
			f, e := p.Forward(call, path, "")
			if !bytes.Equal(body, before) {
				t.Fatal("the judged body was changed")
			}
			if e != nil {
				if e.Status != 400 && e.Status != 422 {
					t.Fatalf("%s: %v", kind, e)
				}
				if e.Code == "ambiguous_request" {
					t.Fatalf("%s: the two readers differ: %v\n%s", kind, e, body)
				}
				continue
			}
			to, query, _ := strings.Cut(f.Path, "?")
			own, params, ok := provider.Match("POST", to)
			if !ok {
				t.Fatalf("%s: nothing is at %s", kind, f.Path)
			}
			sent, e := provider.Parse(own, params, f.Set["content-type"], query, f.Body)
			if e != nil {
				t.Fatalf("%s: what is sent would be refused: %v\n%s\n%s", kind, e, body, f.Body)
			}
			if sent.Model != call.Model || sent.Stream != call.Stream {
				t.Fatalf("%s: %q %v was judged, %q %v is sent", kind, call.Model, call.Stream, sent.Model, sent.Stream)
			}
			if call.MaxTokens > 0 && sent.MaxTokens > call.MaxTokens {
				t.Fatalf("%s: up to %d tokens were judged, %d are asked for", kind, call.MaxTokens, sent.MaxTokens)
			}
			for _, tool := range sent.Tools {
				if tool != translate.JSONTool && !slices.Contains(call.Tools, tool) { // that tool is the gateway's own
					t.Fatalf("%s: the tools %q were judged, and %q are sent\n%s\n%s", kind, call.Tools, sent.Tools, body, f.Body)
				}
			}
			for _, host := range sent.Hosts {
				if !slices.Contains(call.Hosts, host) {
					t.Fatalf("%s: the hosts %q were judged, and %q are sent", kind, call.Hosts, sent.Hosts)
				}
			}
		}
	}
}

// TestForwardCovers: a translated request is rejected if it asks the provider for something
// that was not evaluated.
func TestForwardCovers(t *testing.T) {
	const file = `{"model":"m","max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"file","file":{"filename":"a.pdf","file_data":%q}}]}]}`
	for _, c := range []struct{ kind, url, hosts, code string }{
		{"anthropic", "https://evil.example/x.pdf", "[evil.example]", ""},
		{"mistral", "https://evil.example/x.pdf", "[evil.example]", ""},
		{"gemini", "https://evil.example/x.pdf", "[evil.example]", ""},
		{"anthropic", `https://good.example\@evil.example/`, "[unknown]", ""},
		{"gemini", `https://good.example\@evil.example/`, "[unknown]", "stored_object"},
		{"gemini", "https://generativelanguage.googleapis.com/v1beta/files/1", "", "stored_object"},
	} {
		ep, params, _ := provider.Match("POST", chat)
		call, e := provider.Parse(ep, params, "application/json", "", fmt.Appendf(nil, file, c.url))
		if e == nil {
			if got := fmt.Sprint(call.Hosts); got != c.hosts {
				t.Errorf("%s: judged %s", c.url, got)
			}
			p := prov("a", c.kind, "m")
			p.Settings = []byte(`{"drop_unsupported":true}`)
			_, e = p.Forward(call, chat, "")
		}
		if c.code == "" && e != nil || c.code != "" && (e == nil || e.Code != c.code) {
			t.Errorf("%s %s: %v", c.kind, c.url, e)
		}
		if e != nil {
			continue
		}
		// A request whose host was not evaluated is rejected.
		call.Hosts = nil
		p := prov("a", c.kind, "m")
		p.Settings = []byte(`{"drop_unsupported":true}`)
		if _, e := p.Forward(call, chat, ""); e == nil || e.Code != "ambiguous_request" {
			t.Errorf("%s %s: the host was not judged: %v", c.kind, c.url, e)
		}
	}
	const tools = `{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}`
	for _, kind := range []string{"anthropic", "gemini", "cohere", "mistral"} {
		for what, change := range map[string]func(*provider.Call){
			"tool": func(c *provider.Call) { c.Tools = nil }, "model": func(c *provider.Call) { c.Model = "other" },
			"stream": func(c *provider.Call) { c.Stream = true }, "tokens": func(c *provider.Call) { c.MaxTokens = 4 },
		} {
			call := parsed(t, chat, tools)
			change(&call)
			if _, e := prov("a", kind, "m").Forward(call, chat, ""); e == nil || e.Code != "ambiguous_request" {
				t.Errorf("%s: another %s: %v", kind, what, e)
			}
		}
	}
}

// requestsOf returns the requests in the tests of package translate.
func requestsOf(t testing.TB, folder string) [][]byte {
	t.Helper()
	files, err := filepath.Glob("translate/testdata/" + folder + "/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	var out [][]byte
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ar.Files {
			if f.Name == "request" {
				out = append(out, f.Data)
			}
		}
	}
	return out
}

func TestJudgedAlike(t *testing.T) {
	for _, body := range requestsOf(t, "chat") {
		judgedAlike(t, chat, body)
	}
	for _, body := range requestsOf(t, "embeddings") {
		judgedAlike(t, embeddings, body)
	}
}

// FuzzJudgedAlike searches for a request that is sent with other content than was
// evaluated.
func FuzzJudgedAlike(f *testing.F) {
	for _, body := range requestsOf(f, "chat") {
		f.Add(false, body)
	}
	for _, body := range requestsOf(f, "embeddings") {
		f.Add(true, body)
	}
	f.Fuzz(func(t *testing.T, embed bool, body []byte) {
		if embed {
			judgedAlike(t, embeddings, body)
		} else {
			judgedAlike(t, chat, body)
		}
	})
}
