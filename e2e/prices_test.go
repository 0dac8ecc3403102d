package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// The audit log and an agent's usage have the cost of its requests as integers. It comes
// from the built-in list if a file selects that list, or from the file's own rates. An
// unknown cost is not 0.
func TestPrices(t *testing.T) {
	file := filepath.Join(t.TempDir(), "prices.yaml")
	if err := os.WriteFile(file, []byte(`
prices:
- {provider: like-openai, list: openai}
- {provider: ours, models: ["house-*"], input: 0.5, output: "2.000000001"}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	provider := e2e.Record(t, nil) // 11 tokens in, 9 out, of gpt-4o-2024-08-06, for every request
	up := e2e.Start(t, e2e.Config{Env: []string{"AID_PRICES=" + file}})
	up.Provider(t, provider.Body("like-openai", "gpt-4o"), credential)
	up.Provider(t, provider.Body("ours", "house-1"), credential)
	up.Provider(t, provider.Body("another", "unlisted"), credential)
	agent := up.Agent(t, `{"name":"spender","allowed_models":["*"]}`)
	_, key := up.Key(t, agent, `{"name":"one","scopes":["*"]}`)

	costs := []struct {
		model string
		nano  int64
		known bool
	}{
		{"gpt-4o", 11*2500 + 9*10_000, true}, // https://openai.com/api/pricing: $2.50 and $10 a million
		{"house-1", 11*500 + 9*2000, true},   // and 9 millionths of a nano-dollar
		{"unlisted", 0, false},               // although the response has gpt-4o-2024-08-06
	}
	var sum int64
	for _, c := range costs {
		if got := up.Chat(t, key, fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"Hello there"}]}`, c.model)); got.Status != 200 {
			t.Fatalf("%s: %d %s", c.model, got.Status, got.Body)
		}
		sum += c.nano
	}
	if got := up.Chat(t, key, `{"model":"nobody-has-it","messages":[]}`); got.Status != 404 {
		t.Fatalf("%d %s", got.Status, got.Body)
	}

	entries := settled(t, up)
	check(t, up, entries)
	for _, c := range costs {
		found := false
		for _, e := range entries {
			if e.Kind != "request.settled" || e.Model != c.model {
				continue
			}
			found = true
			var s struct {
				Cost   json.Number `json:"cost_nano_usd"` // left out if it is 0
				Priced *bool
			}
			if err := json.Unmarshal(e.Raw, &s); err != nil || s.Priced == nil {
				t.Fatalf("%s: %v", e.Raw, err)
			}
			want := json.Number(fmt.Sprint(c.nano))
			if c.nano == 0 {
				want = ""
			}
			if *s.Priced != c.known || s.Cost != want {
				t.Errorf("%s: %s", c.model, e.Raw)
			}
		}
		if !found {
			t.Errorf("%s is not in the record", c.model)
		}
	}

	// Sums are made as entries arrive, and all entries have arrived here.
	type counts struct {
		Requests, Refused, Unpriced int64
		Cost                        int64 `json:"cost_nano_usd"`
	}
	var usage struct{ Total counts }
	want := counts{Requests: 4, Refused: 1, Unpriced: 1, Cost: sum}
	e2e.Eventually(t, 10*time.Second, func() error {
		up.Manage(t, http.MethodGet, "/v1/agents/"+agent+"/usage", "", 200, &usage)
		if usage.Total != want {
			return fmt.Errorf("usage is %+v, want %+v", usage.Total, want)
		}
		return nil
	})

	// A cap of $0.01 for the model of ours: a request reserves at most 500 tokens of output and
	// is charged what it used.
	up.Manage(t, http.MethodPost, "/v1/policies", `{"name":"cap","effect":"allow","conditions":{"request.model":"house-1"},"limits":{"monthly_usd_cap":0.01}}`, 201, nil)
	ask := func(tokens int) e2e.Response {
		return up.Chat(t, key, fmt.Sprintf(`{"model":"house-1","max_tokens":%d,"messages":[{"role":"user","content":"Hello"}]}`, tokens))
	}
	e2e.Eventually(t, 10*time.Second, func() error {
		if got := ask(100_000); got.Status != 429 || !strings.Contains(string(got.Body), "budget_too_large") {
			return fmt.Errorf("a request above the cap: %d %s", got.Status, got.Body)
		}
		return nil
	})
	if got := ask(500); got.Status != 200 {
		t.Fatalf("a request below the cap: %d %s", got.Status, got.Body)
	}
	charged := false
	for _, e := range settled(t, up) {
		charged = charged || strings.Contains(string(e.Raw), `"charged_nano_usd":23500,"charge_basis":"usage"`)
	}
	if !charged {
		t.Error("no entry has the charge")
	}
}
