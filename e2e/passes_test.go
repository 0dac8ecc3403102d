package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// Unknown parts of a request are rejected or dropped by their names. The settings that pass
// them take effect without a restart.
func TestPassSettings(t *testing.T) {
	up := e2e.Shared(t)
	provider := e2e.Record(t, nil)
	id := up.Provider(t, provider.Body("passes", "passes-*"), credential)
	agent := up.Agent(t, `{"name":"passes","allowed_models":["passes-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)

	ask := func(body string) (status int, text, dropped string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"Authorization": "Bearer " + key, "Content-Type": "application/json", "X-Routing-Hint": "other",
			"Private-Token": "other", "X-Title": "stays"} {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var e struct {
			Error struct{ Code, Param, Message string }
		}
		_ = json.NewDecoder(resp.Body).Decode(&e) // a response that is not an error has no code
		return resp.StatusCode, e.Error.Code + " " + e.Error.Param + " " + e.Error.Message, resp.Header.Get("X-Aid-Dropped")
	}
	const known = `{"model":"passes-1","messages":[{"role":"user","content":"hello"}],"top_k":3,"min_p":0.1}`
	const unknown = `{"model":"passes-1","messages":[{"role":"user","content":"hello"}],"my_sampler":{"a":1}}`
	e2e.Eventually(t, 10*time.Second, func() error {
		if status, text, _ := ask(known); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, text)
		}
		return nil
	})
	before := len(provider.Requests())
	status, text, _ := ask(unknown)
	if status != http.StatusBadRequest || !strings.HasPrefix(text, "unknown_field my_sampler ") || !strings.Contains(text, "settings.pass_fields") {
		t.Errorf("an unknown field: %d %s", status, text)
	}
	if n := len(provider.Requests()); n != before {
		t.Error("a rejected request reached the provider")
	}
	_, _, dropped := ask(known)
	named := strings.Split(dropped, ", ")
	slices.Sort(named)
	if !slices.Equal(named, []string{"header:private-token", "header:x-routing-hint"}) {
		t.Errorf("dropped is %q", dropped)
	}
	seen := provider.Requests()
	if h := seen[len(seen)-1].Header; h.Get("X-Routing-Hint") != "" || h.Get("Private-Token") != "" || h.Get("X-Title") != "stays" {
		t.Errorf("the provider got %v", h)
	}

	up.Manage(t, http.MethodPatch, "/v1/providers/"+id, `{"settings":{"pass_fields":["model"]}}`, http.StatusUnprocessableEntity, nil)
	up.Manage(t, http.MethodPatch, "/v1/providers/"+id, `{"settings":{"pass_headers":["private-token"]}}`, http.StatusUnprocessableEntity, nil)
	up.Manage(t, http.MethodPatch, "/v1/providers/"+id, `{"settings":{"pass_fields":["my_sampler"],"pass_headers":["x-routing-hint"]}}`, http.StatusOK, nil)
	e2e.Eventually(t, 10*time.Second, func() error {
		if status, text, dropped := ask(unknown); status != http.StatusOK || dropped != "header:private-token" {
			return fmt.Errorf("%d %s, dropped %q", status, text, dropped)
		}
		return nil
	})
	seen = provider.Requests()
	last := seen[len(seen)-1]
	if last.Header.Get("X-Routing-Hint") != "other" || last.Header.Get("Private-Token") != "" || string(last.Body) != unknown {
		t.Errorf("the provider got %v %s", last.Header, last.Body)
	}

	// A flavor excludes the others: fields that only another server documents are unknown.
	up.Manage(t, http.MethodPatch, "/v1/providers/"+id, `{"settings":{"flavor":"groq"}}`, http.StatusOK, nil)
	e2e.Eventually(t, 10*time.Second, func() error {
		if status, text, _ := ask(known); status != http.StatusBadRequest || !strings.Contains(text, "settings.flavor") {
			return fmt.Errorf("%d %s", status, text)
		}
		return nil
	})
}
