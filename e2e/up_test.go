package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/e2e"
)

const (
	credential = "sk-provider-canary-0123456789"
	allowed    = `{"model":"gpt-4o","messages":[{"role":"user","content":"Hello there"}]}`
	refused    = `{"model":"o1-pro","messages":[{"role":"user","content":"Hello there"}]}`
)

// A new user's first minute, through a real Envoy. A request is identified, decided,
// recorded and forwarded. Another is rejected. Both are read in the audit log.
func TestUp(t *testing.T) {
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*", "o1-*")})
	agent := up.Agent(t, `{"name":"support-bot","allowed_models":["gpt-4o"]}`)
	keyID, key := up.Key(t, agent, `{"name":"production","scopes":["chat:completions"]}`)

	got := up.Chat(t, key, allowed)
	if got.Status != 200 || !bytes.Contains(got.Body, []byte("Hello!")) {
		t.Fatalf("allowed: %d %s", got.Status, got.Body)
	}
	requestID := got.Header.Get("X-Request-ID")
	if requestID == "" || got.Header.Get("X-AID-Decision") != "allow" || got.Header.Get("X-AID-Receipt") == "" {
		t.Errorf("answer's headers: %v", got.Header)
	}
	seen := provider.Requests()
	if len(seen) != 1 {
		t.Fatalf("the provider saw %d requests, want 1", len(seen))
	}
	if seen[0].Path != "/v1/chat/completions" || string(seen[0].Body) != allowed {
		t.Errorf("the provider saw %s %s", seen[0].Path, seen[0].Body)
	}
	if a := seen[0].Header.Get("Authorization"); a != "Bearer "+credential {
		t.Errorf("the provider saw the credential %q", a)
	}
	if seen[0].Header.Get("X-Agent-Id") != agent || seen[0].Header.Get("X-Request-Id") != requestID {
		t.Errorf("the provider saw the headers %v", seen[0].Header)
	}

	before := len(provider.Bytes())
	got = up.Chat(t, key, refused)
	if got.Status != 403 {
		t.Fatalf("refused: %d %s", got.Status, got.Body)
	}
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal(got.Body, &e); err != nil || e.Error.Message == "" || e.Error.Code == "" {
		t.Errorf("not OpenAI's error format: %v: %s", err, got.Body)
	}
	if got = up.Chat(t, "aid_sk_nobody", allowed); got.Status != 401 {
		t.Errorf("unknown key: %d %s", got.Status, got.Body)
	}
	if n := len(provider.Bytes()) - before; n != 0 {
		t.Errorf("%d bytes of refused requests reached the provider", n)
	}
	if bytes.Contains(provider.Bytes(), []byte("aid_sk_")) {
		t.Error("the agent's key reached the provider")
	}

	// The gateway's URL serves the management API too.
	if r := up.Do(t, up.Gateway, http.MethodGet, "/v1/agents/"+agent, up.OrgKey, ""); r.Status != 200 {
		t.Errorf("management through the gateway: %d %s", r.Status, r.Body)
	}

	var logs struct{ Data []map[string]any }
	e2e.Eventually(t, 10*time.Second, func() error {
		up.Manage(t, http.MethodGet, "/v1/agents/"+agent+"/logs", "", 200, &logs)
		text := fmt.Sprint(logs.Data)
		for _, outcome := range []string{"outcome:completed", "outcome:refused"} {
			if !strings.Contains(text, outcome) {
				return fmt.Errorf("no %s yet: %s", outcome, text)
			}
		}
		return nil
	})
	text := fmt.Sprint(logs.Data)
	for _, want := range []string{"allow", "deny", requestID, keyID, "gpt-4o", "o1-pro"} {
		if !strings.Contains(text, want) {
			t.Errorf("the record does not say %q: %v", want, text)
		}
	}
	for _, secret := range []string{"Hello there", key, credential, up.OrgKey} {
		if strings.Contains(text, secret) {
			t.Errorf("the record holds %q", secret)
		}
		if strings.Contains(up.Stderr(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}

	checkEndpoints(t, up)
	checkOperations(t, up)

	took, err := up.Stop()
	if err != nil {
		t.Errorf("stopping: %v", err)
	}
	if took > 20*time.Second {
		t.Errorf("stopping took %v", took)
	}

	// All data is still there, and the key still works.
	again := e2e.Start(t, e2e.Config{Home: up.Home})
	if again.OrgKey != up.OrgKey {
		t.Error("the org key changed")
	}
	if got := again.Chat(t, key, allowed); got.Status != 200 {
		t.Errorf("after a restart: %d %s", got.Status, got.Body)
	}
}

func checkEndpoints(t *testing.T, up *e2e.Up) {
	t.Helper()
	info, err := os.Stat(filepath.Join(up.Home, "org.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("org.key: %v %v", info.Mode(), err)
	}
	secrets, err := filepath.Glob(filepath.Join(up.Home, "secrets", "*"))
	if err != nil || len(secrets) == 0 {
		t.Errorf("secrets: %v %v", secrets, err)
	}
	for _, s := range secrets {
		if info, err := os.Stat(s); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", s, info.Mode(), err)
		}
	}
}

func checkOperations(t *testing.T, up *e2e.Up) {
	t.Helper()
	for _, path := range []string{"/healthz", "/readyz"} {
		if r := up.Do(t, up.Metrics, http.MethodGet, path, "", ""); r.Status != 200 {
			t.Errorf("%s: %d %s", path, r.Status, r.Body)
		}
	}
	r := up.Do(t, up.Metrics, http.MethodGet, "/metrics", "", "")
	for _, want := range []string{
		`aid_up_scrape_ok{process="control"} 1`, `aid_up_scrape_ok{process="extproc"} 1`, `aid_up_scrape_ok{process="envoy"} 1`,
		`process="extproc"`, `process="control"`, "aid_extproc_", "aid_audit_", "aid_xds_", "envoy_http_downstream_rq",
	} {
		if !strings.Contains(string(r.Body), want) {
			t.Errorf("/metrics does not have %q", want)
		}
	}
	if strings.Contains(string(r.Body), "aid_sk_") || strings.Contains(string(r.Body), credential) {
		t.Error("/metrics holds a secret")
	}
}

func TestSecondUpOnTheSameHome(t *testing.T) {
	up := e2e.Start(t, e2e.Config{})
	second, err := e2e.TryStart(t, e2e.Config{Home: up.Home})
	if err == nil {
		t.Fatal("it runs")
	}
	if s := second.Stderr(); !strings.Contains(s, "another `aid up`") || !strings.Contains(s, "--home") {
		t.Errorf("it says %q", s)
	}
	if r := up.Do(t, up.API, http.MethodGet, "/v1/agents", up.OrgKey, ""); r.Status != 200 {
		t.Errorf("the first was disturbed: %d %s", r.Status, r.Body)
	}
}

func TestBusyPortNamesTheFlag(t *testing.T) {
	for _, flag := range []string{"--gateway", "--api", "--metrics", "--egress", "--proxy"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		up, err := e2e.TryStart(t, e2e.Config{Args: []string{flag, l.Addr().String()}})
		if err == nil {
			t.Fatalf("%s: it runs", flag)
		}
		if s := up.Stderr(); !strings.Contains(s, flag) || !strings.Contains(s, l.Addr().String()) {
			t.Errorf("%s: it says %q", flag, s)
		}
	}
}

// A supervisor that is killed stops all its children. The files on disk are enough to start
// again.
func TestKilledLeavesNoOrphans(t *testing.T) {
	up := e2e.Start(t, e2e.Config{})
	children := up.Children(t)
	kinds := map[string]bool{}
	for _, name := range children {
		kinds[strings.TrimSuffix(name, ":")] = true
	}
	for _, want := range []string{"envoy", "aid control", "aid extproc", "postgres"} {
		if !kinds[want] {
			t.Errorf("no %s among %v", want, children)
		}
	}
	up.Kill()
	e2e.Eventually(t, 15*time.Second, func() error {
		for pid, name := range children {
			if e2e.Alive(pid) {
				return fmt.Errorf("%s (%d) lives on", name, pid)
			}
		}
		return nil
	})
	e2e.Start(t, e2e.Config{Home: up.Home})
}

// Each child that ends is started again, and the gateway serves again.
func TestChildrenComeBack(t *testing.T) {
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*")})
	agent := up.Agent(t, `{"name":"a","allowed_models":["gpt-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	for _, victim := range []string{"envoy", "aid extproc", "aid control", "postgres"} {
		for pid, name := range up.Children(t) {
			if name == victim {
				p, err := os.FindProcess(pid)
				if err != nil {
					t.Fatal(err)
				}
				p.Kill()
			}
		}
		e2e.Eventually(t, 40*time.Second, func() error {
			resp, err := http.Get(up.Metrics + "/readyz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != 200 {
				return fmt.Errorf("after killing %s: not ready", victim)
			}
			if r := up.Chat(t, key, allowed); r.Status != 200 {
				return fmt.Errorf("after killing %s: %d %s", victim, r.Status, r.Body)
			}
			return nil
		})
	}
}

// One base URL is enough: the gateway passes each path of the management API on to it. A
// path that is missing from xds.ManagementPaths would be answered as a model's path.
func TestGatewayServesTheManagementAPI(t *testing.T) {
	up := e2e.Shared(t)
	var spec struct {
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal(up.Do(t, up.API, http.MethodGet, "/openapi.json", "", "").Body, &spec); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for path, operations := range spec.Paths {
		if path == "/v1/models" || !strings.HasPrefix(path, "/v1/") { // with an agent's key it lists the agent's models
			continue
		}
		for method := range operations {
			asked++
			r := up.Do(t, up.Gateway, strings.ToUpper(method), strings.NewReplacer("{", "", "}", "").Replace(path), "", "")
			var e struct{ Error struct{ Code, Fix string } }
			if json.Unmarshal(r.Body, &e) != nil || r.Status != 401 || e.Error.Code != "unauthenticated" || !strings.Contains(e.Error.Fix, "aid_org_") {
				t.Errorf("%s %s: %d %s", method, path, r.Status, r.Body)
			}
		}
	}
	if asked < 40 {
		t.Errorf("only %d operations were asked for", asked)
	}
	// Anyone may read the public keys, at both addresses.
	for _, at := range []string{up.API, up.Gateway} {
		r := up.Do(t, at, http.MethodGet, "/.well-known/jwks.json", "", "")
		set, err := evidence.ParseJWKS(r.Body)
		if err != nil || r.Status != 200 || len(set.Keys) != 2 || r.Header.Get("Cache-Control") != "public, max-age=300" {
			t.Errorf("%s: %d %s %v %v", at, r.Status, r.Body, r.Header, err)
		}
		// And the directory, which both keys have signed.
		e2e.Eventually(t, 20*time.Second, func() error {
			r := up.Do(t, at, http.MethodGet, "/log/checkpoint", "", "")
			if r.Status != 200 {
				return fmt.Errorf("%s/log/checkpoint: %d %s", at, r.Status, r.Body)
			}
			origin, _, _ := strings.Cut(string(r.Body), "\n")
			_, err := set.Open(r.Body, origin)
			return err
		})
	}
}
