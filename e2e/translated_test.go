package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ai-identity/ai-identity/e2e"
)

// translatedKinds are the kinds of provider that OpenAI's clients reach by translation.
var translatedKinds = []string{"anthropic", "gemini", "cohere", "mistral"}

// modelOf is a model of each kind without special rules.
var modelOf = map[string]string{"anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash", "cohere": "command-a-03-2025", "mistral": "mistral-large-latest"}

// behind puts the server at address behind a provider that records what it gets.
func behind(t *testing.T, address string) *e2e.Provider {
	t.Helper()
	u, err := url.Parse("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	return e2e.Record(t, &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }})
}

// OpenAI's own client works with models of every kind when only the model's name changes:
// complete, streamed, with tools, embeddings and errors. This also holds where Envoy reads
// usage. Upstream is an independent mock. Its requests are checked against the types of the
// providers' own SDKs.
func TestTranslated(t *testing.T) {
	dir := filepath.Join(e2e.Root(), "e2e", "sdk")
	python := sdkPython(t)
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".bin", "llmock")); err != nil {
		missing(t, err)
	}
	upstream := behind(t, standIn(t, node, dir, "translated.json"))
	base := strings.TrimSuffix(upstream.URL, "/v1")
	var models []string
	for _, kind := range translatedKinds {
		models = append(models, kind+"="+modelOf[kind])
	}
	for _, usage := range []string{"stream", "envoy"} {
		t.Run(usage, func(t *testing.T) {
			up := e2e.Shared(t)
			if usage == "envoy" {
				up = e2e.Start(t, e2e.Config{Args: []string{"--usage", "envoy", "--log-level", "debug"}})
			}
			addKinds(t, up, "", base, "{}")
			addKinds(t, up, "-lenient", base, `{"drop_unsupported":true}`)
			agent := up.Agent(t, `{"name":"translated","allowed_models":["*"]}`)
			_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions","embeddings"]}`)
			for _, kind := range translatedKinds {
				e2e.Eventually(t, 10*time.Second, func() error {
					for _, model := range []string{modelOf[kind], modelOf[kind] + "-lenient"} {
						if r := up.Chat(t, key, `{"model":"`+model+`","messages":[{"role":"user","content":"hello"}]}`); r.Status != 200 {
							return fmt.Errorf("%s: %d %s", model, r.Status, r.Body)
						}
					}
					return nil
				})
			}
			env := append(os.Environ(), "AID_GATEWAY="+up.Gateway, "AID_KEY="+key, "AID_TRANSLATED_MODELS="+strings.Join(models, ","),
				"AID_CHAT_MODELS=", "AID_NAMED_MODELS=", // conftest.py's, for the suites of TestSDKs
				"PYTHONDONTWRITEBYTECODE=1")
			play(t, dir, env, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_translated.py")
			translatedRecord(t, up, agent)
		})
	}
	validate(t, python, received(t, upstream))
}

// addKinds adds one provider of each kind at base, named after kind and suffix.
func addKinds(t *testing.T, up *e2e.Up, suffix, base, settings string) {
	t.Helper()
	for _, kind := range translatedKinds {
		up.Provider(t, fmt.Sprintf(`{"name":"%s%s","kind":%q,"base_url":%q,"models":["%s%s","embed-%s%s"],"settings":%s}`,
			kind, suffix, kind, base, modelOf[kind], suffix, kind, suffix, settings), credential)
	}
}

// translatedRecord checks the audit entries of translated exchanges. Each has two entries,
// with the digest of the sent bytes beside that of the evaluated bytes.
func translatedRecord(t *testing.T, up *e2e.Up, agent string) {
	t.Helper()
	allowed, dropped, counted := 0, 0, 0
	for _, e := range settled(t, up) {
		if e.AgentID != agent {
			continue
		}
		if bytes.Contains(e.Raw, []byte("Lisbon")) || bytes.Contains(e.Raw, []byte(credential)) {
			t.Errorf("a prompt or a credential is in the record: %s", e.Raw)
		}
		var d struct {
			BodyDigest      string `json:"body_digest"`
			ForwardedDigest string `json:"forwarded_digest"`
			Dropped         []string
		}
		if err := json.Unmarshal(e.Raw, &d); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Kind == "request.decided" && e.Effect == "allow":
			allowed++
			if d.BodyDigest == "" || d.ForwardedDigest == "" {
				t.Errorf("%s", e.Raw)
			}
			if len(d.Dropped) > 0 {
				dropped++
			}
		case e.Kind == "request.settled" && e.Usage.InputTokens == 11 && e.Usage.OutputTokens == 9:
			counted++
		}
	}
	if log := up.Stderr(); strings.Contains(log, "Lisbon") || strings.Contains(log, credential) {
		t.Error("a prompt or a credential is in the log")
	}
	if allowed < 50 || dropped != len(translatedKinds) || counted < 20 {
		t.Errorf("%d exchanges were allowed, %d dropped something, %d have their usage", allowed, dropped, counted)
	}
}

// received writes the provider's requests as vectors of package translate, for
// validate_translation.py.
func received(t *testing.T, p *e2e.Provider) string {
	t.Helper()
	dir := t.TempDir()
	kindOf := func(path string) (kind, folder string) {
		switch {
		case path == "/v1/messages":
			return "anthropic", "chat"
		case strings.HasSuffix(path, ":batchEmbedContents"):
			return "gemini", "embeddings"
		case strings.HasPrefix(path, "/v1beta/"):
			return "gemini", "chat"
		case path == "/v2/chat":
			return "cohere", "chat"
		case path == "/v2/embed":
			return "cohere", "embeddings"
		case path == "/v1/embeddings":
			return "mistral", "embeddings"
		case path == "/v1/chat/completions":
			return "mistral", "chat"
		}
		t.Fatalf("a request to %s", path)
		return "", ""
	}
	for i, r := range p.Requests() {
		kind, folder := kindOf(r.Path)
		head := r.Method + " " + r.Path
		if kind == "anthropic" {
			head += "\nanthropic-version: " + r.Header.Get("Anthropic-Version")
		}
		ar := &txtar.Archive{}
		add := func(name, text string) {
			ar.Files = append(ar.Files, txtar.File{Name: name, Data: []byte(text + "\n")})
		}
		add("request", map[string]string{
			"chat": `{"model":"m","messages":[{"role":"user","content":"hello"}]}`, "embeddings": `{"model":"m","input":"hello"}`,
		}[folder])
		for _, k := range translatedKinds {
			if k == kind {
				add("want "+k, head+"\n\n"+string(r.Body))
			} else {
				add("want "+k, "422 not sent there")
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, folder, fmt.Sprintf("%03d.txt", i)), txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The vectors of package translate match what the providers' own SDKs send and accept.
func TestTranslationByTheSDKs(t *testing.T) {
	validate(t, sdkPython(t), filepath.Join(e2e.Root(), "provider", "translate", "testdata"))
}

// validate has the SDKs validate vectors.
func validate(t *testing.T, python, vectors string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), python, "validate_translation.py", vectors)
	cmd.Dir = filepath.Join(e2e.Root(), "e2e", "sdk")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// sdkPython is the Python that has the SDKs.
func sdkPython(t *testing.T) string {
	t.Helper()
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = filepath.Join(e2e.Root(), ".tools", "sdk", "bin", "python")
	}
	if _, err := os.Stat(python); err != nil {
		missing(t, err)
	}
	return python
}
