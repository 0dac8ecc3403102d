package provider_test

import (
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// filled returns a path of the endpoint.
func filled(ep provider.Endpoint) string {
	return strings.NewReplacer("{version}", "v1beta", "{model}", "some-model").Replace(ep.Path)
}

// TestTable: every row is found by its own path and is complete. No other path is found.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, want := range provider.Endpoints() {
		if seen[want.Method+want.Path] {
			t.Errorf("%s is there twice", want.Path)
		}
		seen[want.Method+want.Path] = true
		got, params, ok := provider.Match(want.Method, filled(want))
		if !ok || got.Path != want.Path {
			t.Errorf("%s: found %s", want.Path, got.Path)
		}
		if strings.Contains(want.Path, "{model}") != (params.Model == "some-model") || strings.Contains(want.Path, "{version}") != (params.Version == "v1beta") {
			t.Errorf("%s: %+v", want.Path, params)
		}
		if got.Operation == "" || got.Scope == "" || !slices.Contains(provider.Scopes(), got.Scope) {
			t.Errorf("%s: %+v", want.Path, got)
		}
		if local := strings.HasPrefix(got.Operation, "models."); local != (len(got.Kinds) == 0) || local && got.Bills {
			t.Errorf("%s: kinds %v", want.Path, got.Kinds)
		}
		for _, k := range got.Kinds {
			if !slices.Contains(provider.Kinds(), k) {
				t.Errorf("%s: kind %q", want.Path, k)
			}
		}
		if !local(got) && provider.FormatOf(filled(want)) != got.Format {
			t.Errorf("%s: an error before the match would be in another format: %s", want.Path, provider.FormatOf(filled(want)))
		}
	}
	want := []string{"chat:completions", "completions", "embeddings", "generate", "messages", "models", "moderations", "ocr", "rerank", "responses"}
	if got := provider.Scopes(); !slices.Equal(got, want) {
		t.Errorf("scopes are %v", got)
	}
}

func local(ep provider.Endpoint) bool { return len(ep.Kinds) == 0 }

func TestModelsInPaths(t *testing.T) {
	for p, model := range map[string]string{
		"/v1/models/gpt-4o": "gpt-4o", "/v1/models/ft:gpt-4o:acme::1": "ft:gpt-4o:acme::1", "/v1/models/meta-llama/Llama-3": "meta-llama/Llama-3", "/v1/models/models": "models",
		"/v1/models/meta-llama%2FLlama-3": "meta-llama/Llama-3", "/v1/models/meta-llama%2fLlama-3": "meta-llama/Llama-3", "/v1/models/ft%3Agpt-4o%3Aacme": "ft:gpt-4o:acme",
	} {
		ep, params, ok := provider.Match("GET", p)
		if !ok || params.Model != model || ep.Operation != "models.get" {
			t.Errorf("%s: %+v %v", p, params, ok)
		}
	}
	for _, version := range []string{"v1", "v1beta", "v1alpha"} {
		ep, params, ok := provider.Match("POST", "/"+version+"/models/gemini-2.5-pro:countTokens")
		if !ok || params.Model != "gemini-2.5-pro" || params.Version != version || ep.Operation != "count_tokens" {
			t.Errorf("%s: %+v %v", version, params, ok)
		}
	}
	for _, p := range []string{"/v1/models/a/b:generateContent", "/v2/models/a:generateContent", "/v1beta2/models/a:generateContent", "/v1beta/models/:generateContent",
		"/v1beta/models/a:generatecontent", "/v1beta/models/a:generateContent:generateContent/x", "/v1beta/models/a%3AgenerateContent", "/models/a:generateContent", "/v1beta/v1/models/a:generateContent"} {
		if ep, params, ok := provider.Match("POST", p); ok {
			t.Errorf("%s is %s %+v", p, ep.Path, params)
		}
	}
	for _, p := range []string{"/v1/models/a%252Fb", "/v1/models/a%2F..%2Fb", "/v1/models/%2e%2e", "/v1/models/a%2F", "/v1/models/%2Fa", "/v1/models/a%00", "/v1/models/a%", "/v1/models/a%0d%0a", "/v1/models/a%20b"} {
		if ep, params, ok := provider.Match("GET", p); ok {
			t.Errorf("%s is %s %+v", p, ep.Path, params)
		}
	}
	// The last colon counts: a name may have others.
	if _, params, ok := provider.Match("POST", "/v1beta/models/a:embedContent:generateContent"); !ok || params.Model != "a:embedContent" {
		t.Errorf("%+v", params)
	}
}

// TestPaths spells each path in every way that some server reads as the same path. None of
// them is served, and the error has the reason.
func TestPaths(t *testing.T) {
	n := 0
	refused := func(p string) {
		t.Helper()
		n++
		for _, method := range []string{"POST", "GET"} {
			if ep, _, ok := provider.Match(method, p); ok {
				t.Errorf("%s %q is %s", method, p, ep.Path)
			}
		}
		e := provider.Unserved("POST", p)
		if e.Status != 400 && e.Status != 404 || e.Message == "" || e.Code == "" {
			t.Errorf("%q: %+v", p, e)
		}
	}
	for _, p := range []string{"/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/models", "/v2/chat", "/v1beta/models/4:generateContent"} {
		last := p[strings.LastIndex(p, "/")+1:]
		head := strings.TrimSuffix(p, last)
		for _, q := range []string{
			p + "/", "/" + p, p + "//", strings.Replace(p, "/", "//", 2), head + "/" + last, "/." + p, head + "./" + last, head + "x/../" + last, p + "/.", p + "/..", "/x/.." + p,
			head + "%2e/" + last, head + "%2E%2E/" + last, strings.Replace(p, "/v", "%2fv", 1), head[:len(head)-1] + "%2f" + last, head[:len(head)-1] + "%2F" + last, head[:len(head)-1] + "%5c" + last,
			head[:len(head)-1] + "\\" + last, head[:len(head)-1] + "%252f" + last, p + "%00", p + "%20", p + " ", p + "\x00", p + "\t", p + "%0a", p + "\n", p + "%3f", p + "?", p + "#", p + "%23", p + "?x=1",
			p + ";", p + ";x=1", head[:len(head)-1] + ";x/" + last, p + ".", p + ".json", p + "/x", p + ",", p + "*", strings.ToUpper(p), strings.Replace(p, "v", "V", 1), head + strings.ToUpper(last[:1]) + last[1:],
			p[1:], "", "*", "http://gateway.test" + p, "//gateway.test" + p, "/gateway" + p, strings.Replace(p, "c", "%63", 1) + "%", p + "\u00a0", p + "\u200b", strings.Replace(p, "e", "е", 1) + "é", p + "\xff", head + last[:1] + "%" + last[1:],
		} {
			if q != p && !(strings.HasPrefix(q, "/v1/models/") && !strings.ContainsAny(q, "%?#;\\ \t\n\x00") && path.Clean(q) == q) { // these are names of models
				refused(q)
			}
		}
	}
	for _, p := range []string{"/", "/v1", "/v1/", "/v1/agents", "/v1/engines/gpt-4/completions", "/openai/deployments/gpt-4/chat/completions", "/chat/completions", "/v1/v1/chat/completions", "/v1beta/openai/chat/completions", "/mcp", "/sse", strings.Repeat("/a", 1000)} {
		refused(p)
	}
	if n < 150 {
		t.Errorf("%d cases", n)
	}
}

// TestUnserved checks the reasons for endpoints that callers often expect.
func TestUnserved(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
		word         string
	}{
		{"POST", "/v1/batches", 404, "Batches"}, {"GET", "/v1/batches/batch_1", 404, "Batches"}, {"POST", "/v1/messages/batches", 404, "Batches"}, {"POST", "/v1beta/models/m:batchGenerateContent", 404, "Batches"},
		{"POST", "/v1/files", 404, "Files"}, {"GET", "/v1beta/files/1", 404, "Files"}, {"POST", "/v1/uploads", 404, "Files"},
		{"GET", "/v1/realtime", 404, "Realtime"}, {"POST", "/v1/realtime/sessions", 404, "Realtime"}, {"POST", "/v1beta/models/m:bidiGenerateContent", 404, "Realtime"},
		{"POST", "/v1/assistants", 404, "stored"}, {"POST", "/v1/threads/t/runs", 404, "stored"}, {"GET", "/v1/responses/resp_1", 404, "stored"}, {"POST", "/v1/responses/resp_1/cancel", 404, "stored"},
		{"GET", "/v1/chat/completions/chatcmpl_1", 404, "stored"}, {"POST", "/v1/vector_stores", 404, "stored"}, {"POST", "/v1/conversations", 404, "stored"}, {"POST", "/v1beta/cachedContents", 404, "stored"},
		{"POST", "/v1/fine_tuning/jobs", 404, "Fine-tuning"}, {"POST", "/v1/audio/speech", 404, "Audio"}, {"POST", "/v1/images/edits", 404, "image"},
		{"POST", "/v1/responses/input_tokens", 404, "Counting tokens"}, {"POST", "/v1/responses/compact", 404, "compacting"},
		{"POST", "/v1/whatever", 404, "not available here"}, {"GET", "/", 404, "not available here"}, {"OPTIONS", "/v1/nothing", 404, "--cors-origins"}, {"OPTIONS", "/v1/messages", 405, "--cors-origins"},
		{"GET", "/v1/chat/completions", 405, "POST"}, {"PUT", "/v1/messages", 405, "POST"}, {"POST", "/v1/models", 405, "GET"}, {"DELETE", "/v1/models/ft:x", 405, "GET"}, {"HEAD", "/v1/models", 405, "GET"}, {"OPTIONS", "/v1/chat/completions", 405, "POST"},
		{"POST", "/v1//chat/completions", 400, "empty segment"}, {"POST", "/v1/%63hat/completions", 400, "percent-encoded"}, {"POST", "/v1/chat/completions/", 400, "end with a slash"}, {"POST", "/v1/../v1/chat", 400, "dot segment"}, {"POST", "/v1/chat;x/completions", 400, "character"},
	} {
		e := provider.Unserved(c.method, c.path)
		if c.status != 404 && !strings.Contains(e.Message, strconv.Quote(c.path)) {
			t.Errorf("%s is not named: %s", c.path, e.Message)
		}
		if _, _, ok := provider.Match(c.method, c.path); ok || e.Status != c.status || !strings.Contains(e.Message, c.word) || e.Type == "" {
			t.Errorf("%s %s: %v %+v", c.method, c.path, ok, e)
		}
	}
}

// After a mistake of an SDK user, the error ends with the endpoint that the user meant.
func TestNearestEndpoint(t *testing.T) {
	for path, want := range map[string]string{
		"/chat/completions": "POST /v1/chat/completions", "/v1/v1/chat/completions": "POST /v1/chat/completions", "/v1/v1/messages": "POST /v1/messages",
		"/messages": "POST /v1/messages", "/models": "GET /v1/models", "/v1/v1/models/gpt-4o": "GET /v1/models/gpt-4o", "/api/v1/chat/completions": "POST /v1/chat/completions",
		"/openai/deployments/gpt-4/chat/completions": "POST /v1/chat/completions", "/v1beta/openai/chat/completions": "POST /v1/chat/completions",
		"/models/gemini-2.5-pro:generateContent": "POST /v1/models/gemini-2.5-pro:generateContent", "/v1beta/v1beta/models/g:countTokens": "POST /v1beta/models/g:countTokens",
		"/chat": "POST /v2/chat", "/v1/rerank": "POST /v2/rerank", "/v1/chat/completion": "POST /v1/chat/completions", "/v1/message": "POST /v1/messages",
		"/v1/fim": "POST /v1/fim/completions", "/v1//chat/completions": "POST /v1/chat/completions", "/v1/chat/completions/": "POST /v1/chat/completions",
		"/v1/completiens": "POST /v1/completions", "/openai/v1/responses": "POST /v1/responses",
		"/": "", "/v1": "", "/v1/whatever": "", "/mcp": "", "/v1/%63hat/completions": "", strings.Repeat("/v1", 400) + "/chat/completions": "",
	} {
		e := provider.Unserved("POST", path)
		_, got, _ := strings.Cut(e.Message, " Use ")
		got, _, _ = strings.Cut(got, ": check")
		if got != want || len(e.Message) > 512 {
			t.Errorf("%s: nearest %q, want %q (%s)", path, got, want, e.Message)
		}
		if len(path) < 100 && !strings.Contains(e.Message, strconv.Quote(path)) {
			t.Errorf("%s is not named: %s", path, e.Message)
		}
	}
	// A path in a message has no byte with an effect in a terminal or a log.
	for _, path := range []string{"/\x1b[31m", "/\u202e/x", "/\xff\x00", "/" + strings.Repeat("é", 300)} {
		e := provider.Unserved("POST", path)
		for _, r := range e.Message {
			if r < ' ' || r > '~' && r != '…' {
				t.Errorf("%q: %q", path, e.Message)
			}
		}
	}
}

// An error before the match has the caller's format. A colon in a model's name does not
// make the path Google's.
func TestFormatOfModels(t *testing.T) {
	for p, want := range map[string]provider.Format{
		"/v1/models/ft:gpt-4o:acme::7p4lURel": provider.FormatOpenAI, "/v1/models/ft:gpt-4o:acme::predictX": provider.FormatOpenAI, "/v1/models/llama3:8b": provider.FormatOpenAI,
		"/v1/models/llama3:latest": provider.FormatOpenAI, "/v1/models/gemini-2.5-pro:generateContent": provider.FormatGemini, "/v1/models/x:predictLongRunning": provider.FormatGemini,
		"/v1beta/models/x": provider.FormatGemini, "/v1/messages/x": provider.FormatAnthropic, "/v2/x": provider.FormatCohere, "/v1/ocr": provider.FormatMistral,
	} {
		if got := provider.FormatOf(p); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}

// FuzzMatch: a path that is served has one spelling only.
func FuzzMatch(f *testing.F) {
	for _, ep := range provider.Endpoints() {
		f.Add(ep.Method, filled(ep))
	}
	f.Add("POST", "/v1/%63hat/completions")
	f.Add("GET", "/v1/models/a/../b")
	f.Add("GET", "/v1/models/a%2Fb")
	f.Fuzz(func(t *testing.T, method, p string) {
		_ = provider.FormatOf(p).Encode(provider.Unserved(method, p), "", "")
		ep, params, ok := provider.Match(method, p)
		if !ok {
			return
		}
		if ep.Method != method {
			t.Fatal(ep.Method)
		}
		if local(ep) && strings.Contains(p, "%") { // a model's name, encoded; the name has one spelling
			if p = strings.NewReplacer("{model}", params.Model).Replace(ep.Path); strings.Contains(p, "%") {
				t.Fatalf("%q is encoded twice", p)
			}
		}
		if got := strings.NewReplacer("{version}", params.Version, "{model}", params.Model).Replace(ep.Path); got != p {
			t.Fatalf("%q is not %q of its parts", p, got)
		}
		u, err := url.ParseRequestURI(p)
		if err != nil || u.Path != p || u.RawQuery != "" || u.RawPath != "" || path.Clean(p) != p {
			t.Fatalf("%q is read otherwise by others: %+v %v", p, u, err)
		}
		if r, err := http.NewRequest(method, "http://h"+p, nil); err != nil || r.URL.EscapedPath() != p || strings.ContainsAny(p, ";%\\?# ") {
			t.Fatalf("%q: %v", p, err)
		}
	})
}

func TestCharges(t *testing.T) {
	for _, c := range []struct {
		path, kind string
		want       bool
	}{
		{"/v1/chat/completions", provider.KindOpenAI, true}, {"/v1/moderations", provider.KindOpenAI, false},
		{"/v1/moderations", provider.KindMistral, true}, {"/v1/moderations", provider.KindCustom, true},
		{"/v1/messages/count_tokens", provider.KindAnthropic, false}, {"/v1beta/models/g:countTokens", provider.KindGemini, false},
	} {
		ep, _, ok := provider.Match("POST", c.path)
		if !ok || ep.Charges(c.kind) != c.want {
			t.Errorf("%s of %s: charges %v", c.path, c.kind, !c.want)
		}
	}
}

// An operation needs the same scope at every endpoint.
func TestOneScopeForAnOperation(t *testing.T) {
	for _, e := range provider.Endpoints() {
		if got := provider.ScopeOf(e.Operation); got != e.Scope {
			t.Errorf("%s %s: scope %q, and %q for %s elsewhere", e.Method, e.Path, e.Scope, got, e.Operation)
		}
	}
}
