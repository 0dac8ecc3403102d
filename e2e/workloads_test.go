package e2e_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// workloadIssuer signs tokens as a cluster does, without a library of ours.
type workloadIssuer struct{ key *ecdsa.PrivateKey }

const (
	clusterIssuer = "https://kubernetes.default.svc.cluster.local"
	workloadAud   = "https://ai.example.com"
)

func (i workloadIssuer) file(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	coordinate := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.FillBytes(make([]byte, 32))) }
	write := func(name string, v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keys := write("jwks.json", map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": "one", "x": coordinate(i.key.X), "y": coordinate(i.key.Y),
	}}})
	return write("issuers.json", []any{map[string]string{"kind": "kubernetes", "issuer": clusterIssuer, "audience": workloadAud, "jwks_file": keys}})
}

func (i workloadIssuer) token(t *testing.T, account, audience string, life time.Duration) string {
	t.Helper()
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": clusterIssuer, "sub": "system:serviceaccount:ai:" + account, "aud": []string{audience}, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
		"kubernetes.io": map[string]any{"namespace": "ai", "serviceaccount": map[string]string{"name": account, "uid": "u"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"one"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	der, err := i.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(rawSignature(t, der))
}

// rawSignature is an ASN.1 signature as JWS has it.
func rawSignature(t *testing.T, der []byte) []byte {
	t.Helper()
	integer := func(b []byte) (value, rest []byte) {
		n := int(b[1])
		return b[2 : 2+n], b[2+n:]
	}
	r, rest := integer(der[2:])
	s, _ := integer(rest)
	out := make([]byte, 64)
	new(big.Int).SetBytes(r).FillBytes(out[:32])
	new(big.Int).SetBytes(s).FillBytes(out[32:])
	return out
}

// A program with a service account is an agent, without a key. Its token is never forwarded,
// for every place where a client puts it. Key and workload of two agents are rejected.
func TestWorkloads(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := workloadIssuer{key}
	upstream := &recorder{}
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	up := e2e.Start(t, e2e.Config{
		Args: []string{"--workload-issuers", issuer.file(t), "--log-level", "debug"}, Env: []string{"KEY_OPENAI=sk-real-openai"},
		Providers: fmt.Sprintf("providers:\n- {name: openai, kind: openai, base_url: \"%s/v1\", models: [\"gpt-*\"], credential: {env: KEY_OPENAI}}\n", server.URL),
	})
	grant := exec.CommandContext(t.Context(), e2e.Binary(t), "org", "grant", "--home", up.Home, "--issuer", clusterIssuer, "--namespace", "ai")
	if out, err := grant.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bind := func(agent, account string) (id string) {
		t.Helper()
		var made struct{ ID string }
		up.Manage(t, http.MethodPost, "/v1/agents/"+agent+"/identities", `{"name":"n","scopes":["*"],"kubernetes":{"issuer":"`+clusterIssuer+`","namespace":"ai","service_account":"`+account+`"}}`, http.StatusCreated, &made)
		return made.ID
	}
	agent, other := up.Agent(t, `{"name":"bot","allowed_models":["gpt-*"]}`), up.Agent(t, `{"name":"other","allowed_models":["gpt-*"]}`)
	id := bind(agent, "bot")
	_, own := up.Key(t, agent, `{"name":"k","scopes":["*"]}`)
	_, foreign := up.Key(t, other, `{"name":"k","scopes":["*"]}`)
	token := issuer.token(t, "bot", workloadAud, time.Hour)
	parts := strings.Split(token, ".")
	up.Ready(t)

	const body = `{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}`
	ask := func(change func(*http.Request)) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		change(req)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	header := func(pairs ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(pairs); i += 2 {
				r.Header.Set(pairs[i], pairs[i+1])
			}
		}
	}
	text := func(s string) func(*http.Request) {
		return func(r *http.Request) {
			header("Authorization", "Bearer "+token)(r)
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(s)), int64(len(s))
		}
	}
	// The identity may be a moment on its way to the sidecar.
	e2e.Eventually(t, 10*time.Second, func() error {
		if status, answer := ask(header("Authorization", "Bearer "+token)); status != 200 {
			return fmt.Errorf("%d %s", status, answer)
		}
		return nil
	})
	with := "Bearer " + token
	double := base64.StdEncoding.EncodeToString([]byte("x:" + token))
	for _, c := range []struct {
		name    string
		status  int
		code    string
		request func(*http.Request)
	}{
		{"x-api-key", 200, "", header("X-Api-Key", token)},
		{"its own header", 200, "", header("X-Aid-Workload-Token", token)},
		{"beside a provider's key", 200, "", header("X-Aid-Workload-Token", token, "Authorization", "Bearer sk-placeholder")},
		{"beside the agent's key", 200, "", header("X-Aid-Workload-Token", token, "Authorization", "Bearer "+own)},
		{"both headers", 200, "", header("X-Aid-Workload-Token", token, "Authorization", with)},
		{"unbound, beside a key", 200, "", header("X-Aid-Workload-Token", issuer.token(t, "unbound", workloadAud, time.Hour), "Authorization", "Bearer "+own)},
		{"beside another agent's key", 403, "conflicting_identities", header("X-Aid-Workload-Token", token, "Authorization", "Bearer "+foreign)},
		{"unbound", 401, "workload_not_bound", header("Authorization", "Bearer "+issuer.token(t, "unbound", workloadAud, time.Hour))},
		{"another audience", 401, "invalid_workload_token", header("Authorization", "Bearer "+issuer.token(t, "bot", "https://other", time.Hour))},
		{"a long life", 401, "invalid_workload_token", header("X-Aid-Workload-Token", issuer.token(t, "bot", workloadAud, 2*time.Hour))},
		{"expired", 401, "invalid_workload_token", header("X-Aid-Workload-Token", issuer.token(t, "bot", workloadAud, 0))},
		{"another signature", 401, "invalid_workload_token", header("Authorization", "Bearer "+parts[0]+"."+parts[1]+"."+strings.Repeat("A", len(parts[2])))},
		{"invalid, beside a valid key", 401, "invalid_workload_token", header("X-Aid-Workload-Token", parts[0]+"."+parts[1]+".AAAA", "Authorization", "Bearer "+own)},
		{"no token", 401, "invalid_workload_token", header("X-Aid-Workload-Token", "x", "Authorization", "Bearer "+own)},
		{"a key as the token", 401, "invalid_workload_token", header("X-Aid-Workload-Token", own)},
		{"an organization's key beside it", 401, "org_key_on_model_path", header("X-Aid-Workload-Token", token, "Authorization", "Bearer "+up.OrgKey)},
		{"two tokens", 400, "ambiguous_credentials", header("X-Aid-Workload-Token", token, "Authorization", "Bearer "+issuer.token(t, "bot", workloadAud, time.Minute))},
		{"the header twice", 400, "ambiguous_credentials", func(r *http.Request) { r.Header["X-Aid-Workload-Token"] = []string{token, token} }},
		{"two carriers", 400, "ambiguous_credentials", header("X-Api-Key", token, "Authorization", "Bearer sk-placeholder")},
		{"User-Agent", 400, "misplaced_credential", header("Authorization", with, "User-Agent", "agent/1 "+token)},
		{"User-Agent, in base64", 400, "misplaced_credential", header("Authorization", with, "User-Agent", double)},
		{"Cookie", 400, "misplaced_credential", header("Authorization", with, "Cookie", "t="+token)},
		{"a header of its own", 400, "misplaced_credential", header("Authorization", with, "X-Whatever", token)},
		{"Proxy-Authorization", 400, "misplaced_credential", header("Authorization", with, "Proxy-Authorization", "Bearer "+token)},
		{"X-Aid-Route", 400, "misplaced_credential", header("Authorization", with, "X-Aid-Else", token)},
		{"?token=", 400, "misplaced_credential", func(r *http.Request) { header("Authorization", with)(r); r.URL.RawQuery = "token=" + token }},
		{"?token=, encoded", 400, "misplaced_credential", func(r *http.Request) {
			header("Authorization", with)(r)
			r.URL.RawQuery = "token=" + strings.ReplaceAll(url.QueryEscape(token), ".", "%2E")
		}},
		{"a message", 400, "misplaced_credential", text(`{"model":"gpt-4o","messages":[{"role":"user","content":"` + token + `"}]}`)},
		{"a message, escaped", 400, "misplaced_credential", text(`{"model":"gpt-4o","messages":[{"role":"user","content":"` + strings.ReplaceAll(token, ".", `\u002e`) + `"}]}`)},
		{"a message, in base64", 400, "misplaced_credential", text(`{"model":"gpt-4o","messages":[{"role":"user","content":"` + double + `"}]}`)},
		{"the model", 400, "misplaced_credential", text(`{"model":"` + token + `","messages":[]}`)},
	} {
		before := len(upstream.all())
		status, answer := ask(c.request)
		if status != c.status || c.code != "" && !strings.Contains(answer, `"`+c.code+`"`) {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, answer, c.status, c.code)
		}
		if n := len(upstream.all()) - before; (n > 0) != (c.status == 200) {
			t.Errorf("%s: %d requests reached the provider", c.name, n)
		}
		if strings.Contains(answer, parts[1]) {
			t.Errorf("%s: the response has the token", c.name)
		}
	}
	for _, r := range upstream.all() {
		all, _ := json.Marshal(r)
		if strings.Contains(string(all), parts[1]) || strings.Contains(strings.ToLower(string(all)), "x-aid-") || r.Header.Get("Authorization") != "Bearer sk-real-openai" {
			t.Errorf("the provider received %s", all)
		}
	}

	// An agent may require its key and its workload at once.
	up.Manage(t, http.MethodPatch, "/v1/agents/"+agent, `{"required_identities":["key","kubernetes"]}`, http.StatusOK, nil)
	e2e.Eventually(t, 10*time.Second, func() error {
		for _, c := range []struct {
			status  int
			request func(*http.Request)
		}{
			{403, header("Authorization", with)}, {403, header("Authorization", "Bearer "+own)},
			{403, header("X-Aid-Workload-Token", issuer.token(t, "unbound", workloadAud, time.Hour), "Authorization", "Bearer "+own)},
			{200, header("X-Aid-Workload-Token", token, "Authorization", "Bearer "+own)},
		} {
			if status, answer := ask(c.request); status != c.status || status == 403 && !strings.Contains(answer, "identity_required") {
				return fmt.Errorf("%d %s, want %d", status, answer, c.status)
			}
		}
		return nil
	})
	up.Manage(t, http.MethodPatch, "/v1/agents/"+agent, `{"required_identities":[]}`, http.StatusOK, nil)

	// Revoked, it is rejected within seconds.
	up.Manage(t, http.MethodDelete, "/v1/agents/"+agent+"/identities/"+id, "", http.StatusNoContent, nil)
	e2e.Eventually(t, 10*time.Second, func() error {
		if status, answer := ask(header("Authorization", with)); status != 401 || !strings.Contains(answer, "identity_revoked") {
			return fmt.Errorf("%d %s", status, answer)
		}
		return nil
	})
	// The audit log has the kind and the name, also of the unbound one, and no token.
	log := up.Do(t, up.API, http.MethodGet, "/v1/agents/"+agent+"/logs?limit=100", up.OrgKey, "")
	for _, want := range []string{`"credential_kind":"kubernetes"`, `"key_id":"` + id, clusterIssuer + "#ai/bot", clusterIssuer + "#ai/unbound", "conflicting_identities"} {
		if want == "conflicting_identities" {
			log = up.Do(t, up.API, http.MethodGet, "/v1/agents/"+other+"/logs?limit=100", up.OrgKey, "")
		}
		if !strings.Contains(string(log.Body), want) {
			t.Errorf("the audit log lacks %s: %.2000s", want, log.Body)
		}
	}
	whole := up.Do(t, up.API, http.MethodGet, "/v1/audit/entries?limit=100", up.OrgKey, "")
	if strings.Contains(string(whole.Body), parts[1]) || strings.Contains(string(whole.Body), parts[2]) || strings.Contains(up.Stderr(), parts[1]) {
		t.Error("a token is in the audit log or in a log")
	}
}
