package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy"
)

// Every request that Envoy counts is in one class of the tie-out, with traffic of each class, a
// killed sidecar and a killed Envoy. A client's own request id enters nothing.
func TestTieOut(t *testing.T) {
	t.Parallel()
	upstream := &recorder{}
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	up := e2e.Start(t, e2e.Config{Providers: fmt.Sprintf(`providers:
- {name: good, kind: openai, base_url: "%s/v1", models: ["gpt-*"], credential: {env: KEY}}
- {name: dead, kind: openai, base_url: "http://127.0.0.1:1/v1", models: ["dead-*"], credential: {env: KEY}}
`, server.URL), Env: []string{"KEY=sk-real"}, Args: []string{"--max-body", "100000"}})
	agent := up.Agent(t, `{"name":"app","allowed_models":["gpt-4o","dead-1"]}`)
	_, key := up.Key(t, agent, `{"name":"one","scopes":["*"]}`)
	admin := envoy.Admin(filepath.Join(up.Home, "run", "envoy.sock"))
	address := strings.TrimPrefix(up.Gateway, "http://")

	class := func(name string) float64 { return up.Metric(t, `aid_tieout_requests_total{class="`+name+`"`) }
	// compared waits until the classes add up to Envoy's own counter.
	compared := func() {
		t.Helper()
		e2e.Eventually(t, 60*time.Second, func() error {
			c, err := admin.Counters(t.Context())
			if err != nil {
				return err
			}
			sum := 0.0
			for _, name := range []string{"decided", "unrecorded", "own", "management", "tunnel", "unknown", "missing"} {
				sum += class(name)
			}
			if want := float64(c.Requests - c.Active); sum != want {
				return fmt.Errorf("%v requests are in a class, and Envoy has had %v", sum, want)
			}
			return nil
		})
	}
	same := func() {
		t.Helper()
		if n := up.Metric(t, "aid_tieout_differences_total"); n != 0 {
			t.Errorf("%v differences\n%s", n, up.Stderr())
		}
	}
	dial := func(text string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_, err = io.WriteString(c, text)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// raw sends a request of its own form, and waits for Envoy's response or its end.
	raw := func(text string) {
		t.Helper()
		c := dial(text)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			resp.Body.Close()
		}
	}
	chat := func(model string) string {
		return `{"model":"` + model + `","messages":[{"role":"user","content":"hi"}]}`
	}
	const post = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

	var id string
	for range 5 {
		r := up.Chat(t, key, chat("gpt-4o"))
		if r.Status != http.StatusOK {
			t.Fatal(r)
		}
		id = r.Header.Get("X-Request-Id")
	}
	forged := "X-Request-Id: " + id + "\r\n"
	for range 3 {
		up.Chat(t, key, chat("gpt-3.5"))                                  // denied
		up.Chat(t, "aid_sk_wrong", chat("gpt-4o"))                        // 401
		up.Do(t, up.Gateway, http.MethodGet, "/v1/nowhere", "", "")       // 404
		up.Do(t, up.Gateway, http.MethodGet, "/v1/models", key, "")       // a local response
		up.Manage(t, http.MethodGet, "/v1/agents", "", 200, nil)          // by the API's own address
		up.Do(t, up.Gateway, http.MethodGet, "/v1/agents", up.OrgKey, "") // by the gateway
	}
	up.Chat(t, key, chat("dead-1")) // 503, after retries
	up.Chat(t, key, chat(strings.Repeat("x", 120_000)))
	bearer := "Authorization: Bearer " + key + "\r\n"
	for _, text := range []string{
		post + forged + bearer + "Content-Length: 3000000\r\n\r\n" + strings.Repeat("x", 2_500_000), // 413 of the sidecar or of Envoy
		"GET /v1/models HTTP/1.1\r\n" + forged + bearer + "\r\n",                                    // no host
		"GET /%00 HTTP/1.1\r\nHost: x\r\n" + forged + "\r\n",
		"GET http://x HTTP/1.1 x\r\n" + forged + "\r\n",
		"GET /v1/models HTTP/1.0\r\n" + forged + bearer + "\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: x\r\nA_b: c\r\n" + forged + "\r\n",
		"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n" + forged + bearer + "\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + forged + bearer + "\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: x provider-x 200 -,via_upstream " + id + "\r\n" + bearer + "\r\n",
		"GET /a%2fb HTTP/1.1\r\nHost: x\r\n" + forged + bearer + "\r\n",
	} {
		raw(text)
	}
	for range 3 {
		dial("GET /v1/mod").Close()
		dial(post + bearer + "Content-Length: 100\r\n\r\n{").Close()
		dial(post + "Content-Length: 100\r\n\r\n{").Close()
	}
	compared()
	same()
	if d, o, u, m := class("decided"), class("own"), class("unrecorded"), class("management"); d < 5+3+3+1 || o < 5 || u < 7 || m < 3 || class("missing") != 0 {
		t.Errorf("decided %v, own %v, unrecorded %v, management %v", d, o, u, m)
	}
	if n := upstreamSent(t, admin); n != int64(len(upstream.all())) || n != 5 {
		t.Errorf("Envoy sent %d requests, the provider got %d, 5 were allowed", n, len(upstream.all()))
	}

	// The sidecar is killed: Envoy rejects requests, and the next sidecar compares them.
	pid := up.Child(t, "aid extproc")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		up.Chat(t, key, chat("gpt-4o"))
	}
	up.Ready(t)
	up.Chat(t, key, chat("gpt-4o"))
	e2e.Eventually(t, 60*time.Second, func() error { // its metrics begin again
		if n := class("decided") + class("own"); n < 6 {
			return fmt.Errorf("%v are compared", n)
		}
		return nil
	})
	same()

	// Envoy is killed with lines in its memory. That is a time for which nothing is known.
	for range 3 {
		up.Chat(t, key, chat("gpt-4o"))
	}
	if err := syscall.Kill(up.Child(t, "envoy"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 60*time.Second, func() error {
		resp, err := http.Get(up.Gateway + "/v1/models")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	e2e.Eventually(t, 60*time.Second, func() error {
		if n := up.Metric(t, "aid_tieout_unknown_total"); n != 1 {
			return fmt.Errorf("%v processes have ended", n)
		}
		return nil
	})
	same()

	// A sidecar that stops writes what it has, and people can read it.
	if err := syscall.Kill(up.Child(t, "aid extproc"), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 60*time.Second, func() error {
		out, err := exec.CommandContext(t.Context(), e2e.Binary(t), "audit", "tieout", "--home", up.Home).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "process_ended") || strings.Count(string(out), "\n") < 4 {
			return fmt.Errorf("%v %s", err, out)
		}
		return nil
	})
	up.Ready(t)
}

// Each step of the rotation of the egress CA is in the audit log, in the transaction of the step.
func TestEgressRotationRecorded(t *testing.T) {
	t.Parallel()
	up := e2e.Shared(t)
	rotate := func(step string) (string, error) {
		out, err := exec.CommandContext(t.Context(), e2e.Binary(t), "egress", "rotate", step, "--home", up.Home).CombinedOutput()
		return string(out), err
	}
	if out, err := rotate("sign"); err == nil {
		t.Fatalf("signing without a new root: %s", out)
	}
	for _, step := range []string{"spread", "sign"} {
		if out, err := rotate(step); err != nil {
			t.Fatalf("%s: %v %s", step, err, out)
		}
	}
	if out, err := rotate("withdraw"); err == nil {
		t.Fatalf("withdrawing at once: %s", out)
	}
	for kind, want := range map[string]int{"egress_ca.spread": 1, "egress_ca.sign": 1, "egress_ca.withdraw": 0} {
		var page struct {
			Data []struct{ Kind string }
		}
		up.Manage(t, http.MethodGet, "/v1/audit/entries?kind="+kind, "", http.StatusOK, &page)
		if len(page.Data) != want || want > 0 && page.Data[0].Kind != kind {
			t.Errorf("%s: %+v", kind, page.Data)
		}
	}
}

// upstreamSent is what Envoy sent to the providers that it reached, without retries.
func upstreamSent(t *testing.T, admin envoy.AdminClient) (n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := admin.Get(ctx, `/stats?filter=^cluster\.provider-.*\.upstream_rq_total$`)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var v int64
		if _, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			fmt.Sscan(value, &v)
			n += v
		}
	}
	return n
}
