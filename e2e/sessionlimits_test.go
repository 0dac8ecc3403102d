package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// sessionLimits tests the limits of sessions through a real Envoy: requests, USD, seconds and
// sessions per hour. The models s-* cost something, and a request for 100 tokens may cost more
// than a third of usd. elsewhere sends a request to another sidecar that shares the counts, and
// returns "200" or the error's code. It is nil without another sidecar.
func sessionLimits(t *testing.T, up *e2e.Up, key string, usd float64, elsewhere func(model, session string) string) {
	t.Helper()
	for model, limits := range map[string]string{
		"s-requests": `{"session_requests":2}`, "s-usd": fmt.Sprintf(`{"session_usd_cap":%.9f}`, usd), "s-seconds": `{"session_seconds":1}`, "s-rate": `{"sessions_per_hour":3}`,
	} {
		up.Manage(t, http.MethodPost, "/v1/policies", fmt.Sprintf(`{"name":%q,"effect":"allow","conditions":{"request.model":%q},"limits":%s}`, model, model, limits), 201, nil)
	}
	ask := func(model, session string) (code string, again bool) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions",
			strings.NewReader(fmt.Sprintf(`{"model":%q,"max_tokens":100,"messages":[{"role":"user","content":"Hello"}]}`, model)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Session-ID", session)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == 200 {
			return "200", false
		}
		_, code, _ = strings.Cut(string(b), `"code":"`)
		code, _, _ = strings.Cut(code, `"`)
		return code, resp.Header.Get("Retry-After") != ""
	}
	want := func(model, session, code string) {
		t.Helper()
		if got, _ := ask(model, session); got != code {
			t.Errorf("%s in session %s: %s, want %s", model, session, got, code)
		}
	}
	wantElsewhere := func(model, session, code string) {
		t.Helper()
		if elsewhere == nil {
			return
		}
		if got := elsewhere(model, session); got != code {
			t.Errorf("%s in session %s on another sidecar: %s, want %s", model, session, got, code)
		}
	}
	for _, model := range []string{"s-requests", "s-usd", "s-seconds", "s-rate"} { // until the policies are there
		e2e.Eventually(t, 30*time.Second, func() error {
			if got, _ := ask(model, "warm"); got != "200" && got != "session_limit_exceeded" {
				return fmt.Errorf("%s: %s", model, got)
			}
			return nil
		})
		if elsewhere != nil {
			e2e.Eventually(t, 30*time.Second, func() error {
				if got := elsewhere(model, "warm"); got != "200" && got != "session_limit_exceeded" {
					return fmt.Errorf("%s on another sidecar: %s", model, got)
				}
				return nil
			})
		}
	}

	want("s-requests", "a", "200")
	want("s-requests", "a", "200")
	want("s-requests", "a", "session_limit_exceeded")
	wantElsewhere("s-requests", "a", "session_limit_exceeded")
	want("s-requests", "b", "200")

	passed, got := 0, ""
	e2e.Eventually(t, 30*time.Second, func() error { // charges may follow a response
		if got, _ = ask("s-usd", "a"); got == "200" {
			passed++
		}
		if got == "budget_too_large" {
			return nil
		}
		return fmt.Errorf("after %d requests: %s", passed, got)
	})
	if passed < 1 || passed > 20 {
		t.Errorf("%d requests passed a session's cap", passed)
	}
	wantElsewhere("s-usd", "a", "budget_too_large")
	want("s-usd", "b", "200")

	e2e.Eventually(t, 10*time.Second, func() error {
		if got, _ := ask("s-seconds", "a"); got != "session_limit_exceeded" {
			return fmt.Errorf("in its first second: %s", got)
		}
		return nil
	})
	wantElsewhere("s-seconds", "a", "session_limit_exceeded") // it began here

	want("s-rate", "a", "200") // the second session
	wantElsewhere("s-rate", "a", "200")
	want("s-rate", "b", "200")
	want("s-rate", "a", "200")
	if got, again := ask("s-rate", "c"); got != "rate_limit_exceeded" || !again {
		t.Errorf("a fourth session in an hour: %s, to be tried again: %v", got, again)
	}
	wantElsewhere("s-rate", "c", "rate_limit_exceeded")
	wantElsewhere("s-rate", "b", "200") // it has begun
}
