package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// translatedKinds are the kinds of provider that OpenAI's clients reach by translation.
var translatedKinds = []string{"anthropic", "gemini", "cohere", "mistral"}

// modelOf is a model of a kind's that has no peculiarities.
var modelOf = map[string]string{"anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash", "cohere": "command-a-03-2025", "mistral": "mistral-large-latest"}

// behind puts what is at address behind a provider that writes down what it gets.
func behind(t *testing.T, address string) *e2e.Provider {
	t.Helper()
	u, err := url.Parse("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	return e2e.Record(t, &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }})
}

// addKinds adds one provider of each kind at url, named after kind and suffix, and
// returns a key for their models. settings is JSON, or empty.
func addKinds(t *testing.T, up *e2e.Up, suffix, base, settings string) string {
	t.Helper()
	if settings == "" {
		settings = "{}"
	}
	var models []string
	for _, kind := range translatedKinds {
		model := modelOf[kind] + suffix
		models = append(models, model, "embed-"+kind+suffix)
		up.Provider(t, fmt.Sprintf(`{"name":"%s%s","kind":%q,"base_url":%q,"models":[%q,%q],"settings":%s}`, kind, suffix, kind, base, model, "embed-"+kind+suffix, settings), credential)
	}
	quoted, _ := json.Marshal(models)
	agent := up.Agent(t, fmt.Sprintf(`{"name":"translated%s","allowed_models":%s}`, suffix, quoted))
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions","embeddings"]}`)
	return key
}

// askFor waits until the providers have arrived and answers the request.
func askFor(t *testing.T, up *e2e.Up, key, path, body string) e2e.Response {
	t.Helper()
	var r e2e.Response
	e2e.Eventually(t, 10*time.Second, func() error {
		r = up.Do(t, up.Gateway, "POST", path, key, body)
		if r.Status == 401 && !strings.Contains(string(r.Body), "provider") || r.Status == 404 && strings.Contains(string(r.Body), "model_not_found") ||
			strings.Contains(string(r.Body), "provider_misconfigured") || r.Status == 503 && strings.Contains(string(r.Body), `"unavailable"`) {
			return fmt.Errorf("%d %s", r.Status, r.Body)
		}
		return nil
	})
	return r
}

// OpenAI's own clients talk to models of every kind when only the model's name is
// another: whole, streamed, with tools. Upstream is a stand-in that nobody here wrote,
// and what it got is checked by the providers' own SDKs.
func TestTranslated(t *testing.T) {
	dir := filepath.Join(e2e.Root(), "e2e", "sdk")
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".bin", "llmock")); err != nil {
		missing(t, err)
	}
	upstream := behind(t, standIn(t, node, dir, "fixtures.json"))
	for _, usage := range []string{"stream", "envoy"} {
		t.Run(usage, func(t *testing.T) {
			up := e2e.Shared(t)
			if usage == "envoy" {
				up = e2e.Start(t, e2e.Config{Args: []string{"--usage", "envoy"}})
			}
			key := addKinds(t, up, "", strings.TrimSuffix(upstream.URL, "/v1"), "")
			for _, kind := range translatedKinds {
				body := `{"model":"` + modelOf[kind] + `",%s"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"hello"}]}`
				r := askFor(t, up, key, "/v1/chat/completions", fmt.Sprintf(body, ""))
				t.Logf("%s: %d %v\n%s", kind, r.Status, r.Header, r.Body)
				r = askFor(t, up, key, "/v1/chat/completions", fmt.Sprintf(body, `"stream":true,"stream_options":{"include_usage":true},`))
				t.Logf("%s: %d %v\n%s", kind, r.Status, r.Header, r.Body)
			}
		})
	}
	for _, r := range upstream.Requests() {
		t.Logf("%s %s %v\n%s", r.Method, r.Path, r.Header, r.Body)
	}
	_ = io.Discard
	_ = http.StatusOK
}
