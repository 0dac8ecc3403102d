package e2e_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/e2e"
)

// TestSessionAttested: the requests of a session through a real Envoy are attested once the
// session is closed. The receipts lead to the entries, and both verifiers accept the result.
func TestSessionAttested(t *testing.T) {
	t.Parallel() // it waits for a checkpoint
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*", "o1-*")})
	agent := up.Agent(t, `{"name":"session-bot","allowed_models":["gpt-4o"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	const session = "sess_8f2a4c71b9"
	var receipts []string
	for _, body := range []string{allowed, allowed, refused} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Session-ID", session)
		got, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got.Body.Close()
		if got.StatusCode != 200 && got.StatusCode != 403 {
			t.Fatalf("%d", got.StatusCode)
		}
		receipts = append(receipts, got.Header.Get("X-AID-Receipt"))
	}
	for _, r := range provider.Requests() {
		if r.Header.Get("X-Session-ID") != "" {
			t.Error("the provider saw the session's id")
		}
	}
	get := func(path, key string) e2e.Response {
		t.Helper()
		return up.Do(t, up.Gateway, http.MethodGet, path, key, "")
	}
	deadline := time.Now().Add(90 * time.Second)
	wait := func(what string, ok func() bool) {
		t.Helper()
		e2e.Eventually(t, time.Until(deadline), func() error {
			if !ok() {
				return errors.New(what)
			}
			return nil
		})
	}
	wait("the session is not in the log", func() bool {
		return up.Do(t, up.Gateway, http.MethodPost, "/v1/sessions/"+session+"/close", key, "").Status == 200
	})
	var envelope []byte
	wait("the session is not attested", func() bool {
		r := get("/v1/attestations/"+session, up.OrgKey)
		envelope = r.Body
		return r.Status == 200
	})
	jwks := get("/.well-known/jwks.json", "").Body
	keys, err := evidence.ParseJWKS(jwks)
	if err != nil {
		t.Fatalf("%v: %s", err, jwks)
	}
	payload, _, err := keys.OpenEnvelope(envelope, evidence.InTotoType)
	if err != nil {
		t.Fatalf("%v: %s", err, envelope)
	}
	var st struct {
		Predicate struct {
			Complete          bool
			Entries, Requests int64
			Effects, Outcomes map[string]int64
		}
	}
	if err := json.Unmarshal(payload, &st); err != nil {
		t.Fatal(err)
	}
	if p := st.Predicate; !p.Complete || p.Requests != 3 || p.Entries != 6 || p.Effects["allow"] != 2 || p.Effects["deny"] != 1 || p.Outcomes["completed"] != 2 {
		t.Errorf("%s", payload)
	}
	for _, r := range receipts {
		got := get("/v1/audit/proof?receipt="+url.QueryEscape(r), key)
		if got.Status != 200 || !strings.Contains(string(got.Body), `"status":"included"`) || !strings.Contains(string(got.Body), `"signature":"valid"`) {
			t.Errorf("%s: %d %s", r, got.Status, got.Body)
		}
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"attestation.json": envelope, "jwks.json": jwks} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := exec.Command("python3", filepath.Join(e2e.Root(), "cli", "ai_identity_verify.py"), "attestation", "attestation.json", "--jwks", "jwks.json")
	verify.Dir = dir
	if out, err := verify.CombinedOutput(); err != nil {
		t.Errorf("ai_identity_verify attestation: %v\n%s", err, out)
	}
}
