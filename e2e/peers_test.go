package e2e_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/identity"
)

// A thousand requests without a known caller do not cost an fsync each. They leave one
// entry for each cause and minute, with the address of their connection. (C2 §2)
func TestUnknownCallersAreCounted(t *testing.T) {
	up := e2e.Start(t, e2e.Config{})
	backlog, syncs := up.Metric(t, "aid_audit_segment_bytes"), up.Metric(t, "aid_audit_sync_seconds_count")
	const each = 250
	causes := []string{"missing_api_key", "malformed_api_key", "unknown_api_key", "org_key_on_model_path"}
	began := time.Now()
	work := make(chan int, 4*each)
	for n := range 4 * each {
		work <- n
	}
	close(work)
	var clients sync.WaitGroup
	var wrong atomic.Int64
	for range 32 {
		clients.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for n := range work {
				req, err := http.NewRequest(http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(`{"model":"gpt-4o","messages":[]}`))
				if err != nil {
					t.Error(err)
					return
				}
				// The address that a client declares is ignored.
				req.Header.Set("X-Forwarded-For", fmt.Sprintf("198.51.%d.7", n%250))
				req.Header.Set("X-Aid-Peer", fmt.Sprintf("203.0.%d.7", n%250))
				switch n % 4 {
				case 1:
					req.Header.Set("Authorization", "Bearer sk-anything")
				case 2:
					key, _, err := identity.Mint(identity.AgentKey, rand.Reader)
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+key)
				case 3:
					req.Header.Set("Authorization", "Bearer "+up.OrgKey)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					wrong.Add(1)
				}
			}
		})
	}
	clients.Wait()
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d requests were not answered 401", n)
	}
	if n := up.Metric(t, "aid_audit_unknown_callers_total"); n < 4*each {
		t.Errorf("%.0f requests are counted", n)
	}
	minutes := int(time.Since(began)/time.Minute) + 2 // a minute that had begun, and the rest at the stop
	if n := up.Metric(t, "aid_audit_sync_seconds_count") - syncs; n > float64(minutes) {
		t.Errorf("%d requests cost %.0f fsyncs", 4*each, n)
	}
	if n := up.Metric(t, "aid_audit_segment_bytes") - backlog; n > 4096 {
		t.Errorf("they take %.0f bytes of the backlog", n)
	}
	up.Stop()

	up = e2e.Start(t, e2e.Config{Home: up.Home})
	count, entries := map[string]int64{}, map[string]int{}
	for _, e := range record(t, up) {
		if e.Kind != "callers.unknown" {
			continue
		}
		var c struct {
			Cause       string
			Count       int64
			First, Last time.Time
			Samples     []string
		}
		if err := json.Unmarshal(e.Raw, &c); err != nil {
			t.Fatal(err)
		}
		count[c.Cause] += c.Count
		entries[c.Cause]++
		if slices.Contains(causes, c.Cause) && !slices.Equal(c.Samples, []string{"127.0.0.0/24"}) {
			t.Errorf("%s comes from %v", c.Cause, c.Samples)
		}
	}
	for _, cause := range causes {
		if count[cause] < each || cause != "missing_api_key" && count[cause] != each || entries[cause] == 0 || entries[cause] > minutes {
			t.Errorf("%s: %d requests in %d entries, want %d in at most %d", cause, count[cause], entries[cause], each, minutes)
		}
	}
	t.Logf("%d requests: %v in %v entries, %d fsyncs", 4*each, count, entries, minutes)
}
