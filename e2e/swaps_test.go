package e2e_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

var (
	swaps     = flag.Int("swaps", 8, "how often TestPolicySwaps changes a policy")
	perSecond = flag.Int("swaprate", 500, "how many requests TestPolicySwaps sends in a second, at most")
)

// Policies change while up to 500 requests a second come in. Exactly one version of the set
// decides each request, and its audit entry names that version. All entries of a version
// have the effects of one document, and no two documents share a version.
func TestPolicySwaps(t *testing.T) {
	up := e2e.Shared(t)
	provider := e2e.Record(t, nil)
	up.Provider(t, provider.Body("swaps", "swaps-*"), credential)
	agent := up.Agent(t, `{"name":"swaps","allowed_models":["swaps-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	// Document i denies the model i, and its name is in the reason.
	document := func(i int) string {
		return fmt.Sprintf(`{"name":"swap-%d-%s","effect":"deny","conditions":{"agent.id":"%s","request.model":"swaps-%d"}}`, i, agent, agent, i)
	}
	var made struct{ ID string }
	up.Manage(t, http.MethodPost, "/v1/policies", document(0), 201, &made)
	t.Cleanup(func() { up.Manage(t, http.MethodDelete, "/v1/policies/"+made.ID, "", 204, nil) })
	body := func(model int) string {
		return fmt.Sprintf(`{"model":"swaps-%d","messages":[{"role":"user","content":"Hello there"}]}`, model)
	}
	e2e.Eventually(t, 10*time.Second, func() error {
		if a, b := up.Chat(t, key, body(0)).Status, up.Chat(t, key, body(1)).Status; a != 403 || b != 200 {
			return fmt.Errorf("%d and %d", a, b)
		}
		return nil
	})

	type answer struct {
		status int
		model  string
	}
	var mu sync.Mutex
	answers := map[string]answer{} // by request
	denied := map[string]bool{}    // models
	var swap atomic.Int64          // the document that is written last
	stop := make(chan struct{})
	var load sync.WaitGroup
	const workers = 16 // with fewer, the time of a request limits the rate
	every := workers * time.Second / time.Duration(*perSecond)
	for w := range workers {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: 30 * time.Second}
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := w; ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				model := max(0, int(swap.Load())-n%2)
				b := body(model)
				resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(b), int64(len(b)))
				if err != nil {
					t.Errorf("load: %v", err)
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Errorf("load: %v", err)
				}
				resp.Body.Close()
				a := answer{resp.StatusCode, fmt.Sprint("swaps-", model)}
				mu.Lock()
				answers[resp.Header.Get("X-Request-ID")] = a
				if a.status == 403 {
					denied[a.model] = true
				}
				mu.Unlock()
			}
		})
	}
	began := time.Now()
	for i := 1; i <= *swaps; i++ {
		swap.Store(int64(i))
		up.Manage(t, http.MethodPatch, "/v1/policies/"+made.ID, document(i), 200, nil)
		// The next change comes when this one has decided a request.
		e2e.Eventually(t, 10*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			if !denied[fmt.Sprint("swaps-", i)] {
				return fmt.Errorf("swap %d has denied no request", i)
			}
			return nil
		})
	}
	took := time.Since(began)
	close(stop)
	load.Wait()

	// The audit log, oldest first.
	type decided struct {
		Kind, Effect, Model string
		RequestID           string  `json:"request_id"`
		PolicyVersion       string  `json:"policy_version"`
		PolicyVersions      []int64 `json:"policy_versions"`
		Reasons             []struct{ Message string }
	}
	entries := map[string]decided{}
	e2e.Eventually(t, 30*time.Second, func() error {
		clear(entries)
		for after := ""; ; {
			var page struct {
				Data    []json.RawMessage
				HasMore bool `json:"has_more"`
				Next    *string
			}
			up.Manage(t, http.MethodGet, "/v1/agents/"+agent+"/logs?limit=100&kind=request.decided"+after, "", 200, &page)
			for _, raw := range page.Data {
				var d decided
				if err := json.Unmarshal(raw, &d); err != nil {
					t.Fatal(err)
				}
				if d.Kind != "request.decided" {
					continue
				}
				if _, twice := entries[d.RequestID]; twice {
					t.Fatalf("%s has two decisions", d.RequestID)
				}
				entries[d.RequestID] = d
			}
			if !page.HasMore || page.Next == nil {
				break
			}
			after = "&after=" + *page.Next
		}
		for id := range answers {
			if _, ok := entries[id]; !ok {
				return fmt.Errorf("%d entries of %d answers", len(entries), len(answers))
			}
		}
		return nil
	})
	documentOf, versionOf, denies := map[string]string{}, map[string]string{}, map[string]string{}
	named := regexp.MustCompile(`swap-\d+-`)
	for id, e := range entries {
		if a, ours := answers[id]; ours && (a.status == 200 != (e.Effect == "allow") || a.model != e.Model) {
			t.Errorf("%s: answered %d, recorded %s", id, a.status, e.Effect)
		}
		if e.Effect == "allow" {
			continue
		}
		name := named.FindString(e.Reasons[0].Message)
		if known := documentOf[e.PolicyVersion]; name == "" || known != "" && known != name {
			t.Fatalf("%s has decisions of %q and %q: %v", e.PolicyVersion, known, name, e.Reasons)
		}
		// The version of the policy itself: document 0 is its first, and each swap is one more.
		if want := fmt.Sprintf("swap-%d-", e.PolicyVersions[0]-1); len(e.PolicyVersions) != 1 || want != name {
			t.Fatalf("versions %v decided as %q", e.PolicyVersions, name)
		}
		if known := versionOf[name]; known != "" && known != e.PolicyVersion {
			t.Fatalf("%s decided as %s and as %s", name, known, e.PolicyVersion)
		}
		documentOf[e.PolicyVersion], versionOf[name], denies[e.PolicyVersion] = name, e.PolicyVersion, e.Model
	}
	for id, e := range entries {
		if e.Effect == "allow" && denies[e.PolicyVersion] == e.Model {
			t.Errorf("%s: the version %s denies %s, and allowed it", id, e.PolicyVersion, e.Model)
		}
	}
	if len(documentOf) != *swaps+1 {
		t.Errorf("%d versions decided requests, of %d", len(documentOf), *swaps+1)
	}
	t.Logf("%d swaps in %v, %d requests (%.0f a second), %d versions decided", *swaps, took.Round(time.Millisecond), len(answers), float64(len(answers))/took.Seconds(), len(documentOf))
}
