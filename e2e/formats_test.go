package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

// called is an API with its own path, and the errors that its SDK expects.
type called struct {
	format, kind, path, model string
	body                      string // with model in it, if the API has it in the body
	decode                    func(b []byte, status int) error
}

func formatsCalled() []called {
	const chat = `{"model":"MODEL","messages":[{"role":"user","content":"Hello there"}]}`
	return []called{
		{"openai", "openai", "/v1/chat/completions", "f-openai", chat, openAIShape},
		{"anthropic", "anthropic", "/v1/messages", "f-anthropic", `{"max_tokens":10,` + chat[1:], func(b []byte, _ int) error {
			var e struct {
				Type  string
				Error struct{ Type, Message string }
			}
			return shaped(b, &e, func() bool {
				return e.Type == "error" && strings.HasSuffix(e.Error.Type, "_error") || e.Error.Type == "request_too_large"
			}, func() string { return e.Error.Message })
		}},
		{"gemini", "gemini", "/v1beta/models/f-gemini:generateContent", "f-gemini", `{"contents":[{"role":"user","parts":[{"text":"Hello there"}]}]}`, func(b []byte, status int) error {
			var e struct {
				Error struct {
					Code            int
					Message, Status string
					Details         []map[string]any
				}
			}
			return shaped(b, &e, func() bool {
				return e.Error.Code == status && e.Error.Status == strings.ToUpper(e.Error.Status) && e.Error.Status != "" && len(e.Error.Details) > 0
			}, func() string { return e.Error.Message })
		}},
		{"cohere", "cohere", "/v2/chat", "f-cohere", chat, func(b []byte, _ int) error {
			var e struct {
				ID, Message string
				Error       any
			}
			return shaped(b, &e, func() bool { return e.Error == nil }, func() string { return e.Message })
		}},
		{"mistral", "mistral", "/v1/fim/completions", "f-mistral", `{"model":"MODEL","prompt":"Hello there"}`, func(b []byte, _ int) error {
			var e struct{ Object, Message, Type string }
			return shaped(b, &e, func() bool { return e.Object == "error" && e.Type != "" }, func() string { return e.Message })
		}},
	}
}

func openAIShape(b []byte, _ int) error {
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	return shaped(b, &e, func() bool { return e.Error.Type != "" && e.Error.Code != "" }, func() string { return e.Error.Message })
}

func shaped(b []byte, into any, good func() bool, message func() string) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w in %s", err, b)
	}
	if !good() || message() == "" {
		return fmt.Errorf("not of its form: %s", b)
	}
	return nil
}

// refuse sends a request and expects an error with the status, in the API's own format and
// with the request's id.
func (c called) refuse(ctx context.Context, t *testing.T, client *http.Client, gateway, key, path string, body io.Reader, status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway+path, body)
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Errorf("%s: %v", c.format, err)
		return
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: answered %d %v %s, want %d", c.format, resp.StatusCode, resp.Header, b, status)
	}
	if err := c.decode(b, status); err != nil {
		t.Errorf("%s, %d: %v", c.format, status, err)
	}
	if id := resp.Header.Get("X-Request-Id"); status != http.StatusBadRequest && (id == "" || !strings.Contains(string(b), id)) {
		t.Errorf("%s, %d: the id %q is not in %s", c.format, status, id, b)
	}
}

// Envoy's own responses, before and after the decision, have the format of the API that was
// called.
func TestRepliesInFormat(t *testing.T) {
	up := e2e.Shared(t)
	nobody := fmt.Sprintf("http://127.0.0.1:%d", envoytest.Port(t))
	for _, c := range formatsCalled() {
		// Behind prefixes that mean another format, or no format.
		up.Provider(t, fmt.Sprintf(`{"name":"f-%s","kind":%q,"base_url":"%s/v2/%s","models":[%q]}`, c.format, c.kind, nobody, c.format, c.model), credential)
	}
	up.Provider(t, fmt.Sprintf(`{"name":"f-custom","kind":"custom","base_url":%q,"models":["f-custom"],"settings":{"paths":{"/v1/chat/completions":"/v1/messages"}}}`, nobody), credential)
	agent := up.Agent(t, `{"name":"formats","allowed_models":["f-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["*"]}`)
	all := append(formatsCalled(), called{"openai", "custom", "/v1/chat/completions", "f-custom", formatsCalled()[0].body, openAIShape})
	for _, c := range formatsCalled()[1:] { // and those whose requests are translated
		all = append(all, called{"openai", c.kind, "/v1/chat/completions", c.model, formatsCalled()[0].body, openAIShape})
	}
	for _, c := range all {
		e2e.Eventually(t, 10*time.Second, func() error { // until all of it has arrived
			if r := up.Do(t, up.Gateway, "POST", c.path, key, c.withModel()); r.Status != 503 || r.Header.Get("X-Aid-Decision") != "allow" {
				return fmt.Errorf("%s to %s: %d %v %s", c.format, c.kind, r.Status, r.Header, r.Body)
			}
			return nil
		})
	}
	for name, client := range protocols() {
		for _, c := range all {
			// After the decision: the provider does not respond.
			c.refuse(t.Context(), t, client, up.Gateway, key, c.path, strings.NewReader(c.withModel()), 503)
			// Before it: the body is too large for Envoy's buffer, and its length was not
			// declared.
			c.refuse(t.Context(), t, client, up.Gateway, key, c.path, io.LimitReader(endless{}, e2e.MaxBody+4<<20), 413)
			// Before anything: the path is not in normal form.
			c.refuse(t.Context(), t, client, up.Gateway, key, c.path+"%2fx", strings.NewReader("{}"), 400)
			if t.Failed() {
				t.Fatalf("that was %s", name)
			}
		}
	}
}

func (c called) withModel() string { return strings.ReplaceAll(c.body, "MODEL", c.model) }

// endless is a body without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}
