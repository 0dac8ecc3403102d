package e2e_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/e2e"
)

// Scripts of web pages may call models from the allowed origins only. They may never call
// the management API. A model's name may be written as SDKs write it, "org%2Fname".
func TestBrowsersAndEscapedNames(t *testing.T) {
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("one", credential, "org/name"), Args: []string{"--cors-origins", "https://app.example.com"}})
	agent := up.Agent(t, `{"name":"a","allowed_models":["org/name"]}`)
	_, key := up.Key(t, agent, `{"name":"one","scopes":["*"]}`)
	const body = `{"model":"org/name","messages":[{"role":"user","content":"hi"}]}`
	do := func(method, path, origin, body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, up.Gateway, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL = &url.URL{Scheme: "http", Host: req.URL.Host, Opaque: path} // unchanged
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		if method == http.MethodOptions {
			req.Header.Set("Access-Control-Request-Method", "POST")
			req.Header.Set("Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang")
		} else {
			req.Header.Set("Authorization", "Bearer "+key)
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	const good, bad, chat = "https://app.example.com", "https://app.example.com.evil.test", "/v1/chat/completions"
	for _, c := range []struct {
		method, path, origin string
		status               int
		allowed              bool
	}{
		{"OPTIONS", chat, good, 200, true}, {"OPTIONS", chat, bad, 405, false}, {"OPTIONS", chat, "", 405, false}, {"OPTIONS", chat, "null", 405, false},
		{"POST", chat, good, 200, true}, {"POST", chat, bad, 200, false}, {"POST", "/v1/nothing", good, 404, true},
		{"OPTIONS", "/v1/agents", good, 405, false}, {"GET", "/v1/agents", good, 401, false},
	} {
		resp, text := do(c.method, c.path, c.origin, body)
		allowed := resp.Header.Get("Access-Control-Allow-Origin")
		if resp.StatusCode != c.status && (c.path != "/v1/agents" || resp.StatusCode/100 != 4) || (allowed == c.origin && allowed != "") != c.allowed || !c.allowed && allowed != "" {
			t.Errorf("%s %s from %q: %d, allowed %q: %s", c.method, c.path, c.origin, resp.StatusCode, allowed, text)
		}
		if resp.Header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s %s: cookies are allowed", c.method, c.path)
		}
		if c.status == 405 && c.path == chat && !strings.Contains(text, "--cors-origins") {
			t.Errorf("%s: %s", c.path, text)
		}
	}

	sent := len(provider.Requests())
	for path, status := range map[string]int{
		"/v1/models/org%2Fname": 200, "/v1/models/org%2fname": 200, "/v1/models/other%2Fname": 404, "/v1/models/..%2Fagents": 0, "/v1/models/%2e%2e%2Fagents": 0,
		"/v1%2Fmodels": 0, "/v1/agents%2F" + agent: 0, "/v1/agents/..%2F..%2Fdocs": 0, "/docs/..%5Cv1": 0, "/docs%2f": 0, "/v1/models/org%252Fname": 0,
	} {
		if resp, text := do("GET", path, "", ""); status != 0 && resp.StatusCode != status || status == 0 && resp.StatusCode != 400 && resp.StatusCode != 404 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
		}
		if resp, text := do("POST", path, "", body); resp.StatusCode/100 != 4 {
			t.Errorf("POST %s: %d %s", path, resp.StatusCode, text)
		}
	}
	if n := len(provider.Requests()); n != sent {
		t.Errorf("%d requests with escaped slashes were forwarded", n-sent)
	}
}
