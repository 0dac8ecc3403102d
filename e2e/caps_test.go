package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// Limits of sessions hold through Envoy, in the memory of one sidecar. Then
// a sidecar is killed while a request under a USD cap is in flight. The request stays charged
// in full. Nothing under the cap passes before the sums have come from the control plane.
func TestCapSurvivesKill(t *testing.T) {
	file := filepath.Join(t.TempDir(), "prices.yaml")
	if err := os.WriteFile(file, []byte("prices:\n- {provider: ours, models: [\"*\"], input: 1, output: 10}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	came, release := make(chan struct{}, 8), make(chan struct{})
	provider := e2e.Record(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); strings.Contains(string(b), "wait") {
			came <- struct{}{}
			<-release
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"id":"c","object":"chat.completion","model":"capped","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":9}}`)
	}))
	defer close(release)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("ours", credential, "capped", "free", "s-*"), Env: []string{"AID_PRICES=" + file}})
	agent := up.Agent(t, `{"name":"spender","allowed_models":["*"]}`)
	_, key := up.Key(t, agent, `{"name":"one","scopes":["*"]}`)
	up.Ready(t)
	var capID struct{ ID string }
	up.Manage(t, http.MethodPost, "/v1/policies", `{"name":"cap","effect":"allow","conditions":{"request.model":"capped"},"limits":{"monthly_usd_cap":0.01}}`, 201, &capID)
	up.Manage(t, http.MethodPost, "/v1/policies", `{"name":"rest","effect":"allow","conditions":{"request.model":"free"}}`, 201, nil)
	ask := func(model string, tokens int, text string) e2e.Response {
		return up.Chat(t, key, fmt.Sprintf(`{"model":%q,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`, model, tokens, text))
	}
	passes := func(model string, tokens, status int, code string) {
		t.Helper()
		e2e.Eventually(t, 30*time.Second, func() error {
			got := ask(model, tokens, "Hello")
			if got.Status == status && strings.Contains(string(got.Body), code) {
				return nil
			}
			if got.Status == 200 {
				t.Fatalf("%s with %d tokens passed, want %d %s", model, tokens, status, code)
			}
			return fmt.Errorf("%s with %d tokens: %d %s", model, tokens, got.Status, got.Body)
		})
	}
	passes("free", 1, 200, "")
	e2e.Eventually(t, 10*time.Second, func() error { // until the cap has arrived
		if got := ask("capped", 5000, "Hello"); got.Status != 429 {
			return fmt.Errorf("a request above the cap: %d %s", got.Status, got.Body)
		}
		return nil
	})

	sessionLimits(t, up, key, 0.002, nil)

	// A request that may cost more than $0.006 and less than $0.007 is in flight.
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions",
			strings.NewReader(`{"model":"capped","max_tokens":600,"messages":[{"role":"user","content":"wait"}]}`))
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	<-came
	control, before := up.Child(t, "aid control"), up.Child(t, "aid extproc")
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	passes("free", 1, 200, "") // the next sidecar decides, and has this caller

	// Without the control plane, the sums are not known.
	if err := syscall.Kill(control, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	got := ask("capped", 1, "Hello")
	if err := syscall.Kill(control, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got.Status != 503 || !strings.Contains(string(got.Body), "budget_unavailable") {
		t.Errorf("without sums: %d %s", got.Status, got.Body)
	}
	passes("capped", 600, 429, "budget_too_large")
	passes("capped", 100, 200, "")

	// An administrator raises the cap. The next requests pass, and the policy stays as it is.
	raised := time.Now()
	up.Manage(t, http.MethodPost, "/v1/limits/raises", `{"policy_id":"`+capID.ID+`","limit":"monthly_usd_cap","add_usd":0.01,"reason":"the month is long"}`, 201, nil)
	passes("capped", 600, 200, "")
	t.Logf("a raise took effect within %v", time.Since(raised))

	charged := ""
	for _, e := range settled(t, up) {
		if e.Outcome == "unknown" {
			charged = string(e.Raw)
		}
	}
	if !strings.Contains(charged, `"charge_basis":"reservation"`) || !strings.Contains(charged, `"charged_nano_usd":6`) {
		t.Errorf("the request in flight is charged as %s", charged)
	}
}
