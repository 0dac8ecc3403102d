package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy"
)

// recorder stands in for providers, and records what reaches it.
type recorder struct {
	mu   sync.Mutex
	seen []seenRequest
}

type seenRequest struct {
	Host, Path string
	Header     http.Header
	Body       []byte
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	r.seen = append(r.seen, seenRequest{req.Host, req.URL.RequestURI(), req.Header.Clone(), body})
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case strings.HasSuffix(req.URL.Path, "/chat/completions") && bytes.Contains(body, []byte(`"stream":true`)):
		w.Header().Set("Content-Type", "text/event-stream")
		for _, text := range []string{"hel", "lo"} {
			fmt.Fprintf(w, "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":%q},\"finish_reason\":null}]}\n\n", text)
		}
		io.WriteString(w, "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	case strings.HasSuffix(req.URL.Path, "/chat/completions"):
		io.WriteString(w, `{"id":"c1","object":"chat.completion","created":1,"model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}`)
	case strings.HasSuffix(req.URL.Path, "/messages"):
		io.WriteString(w, `{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-20250514","content":[{"type":"text","text":"hello"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":1}}`)
	case strings.Contains(req.URL.Path, ":generateContent"):
		io.WriteString(w, `{"candidates":[{"content":{"role":"model","parts":[{"text":"hello"}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1,"totalTokenCount":4},"modelVersion":"gemini-2.5-pro"}`)
	default:
		http.NotFound(w, req)
	}
}

func (r *recorder) all() []seenRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]seenRequest(nil), r.seen...)
}

// The official SDKs work without any change of code: they keep their providers' URLs, and get
// an agent's key from the environment. `aid egress run` sets the rest. The real key goes to the
// provider, the decision is in the audit log, and nothing of the agent's key goes out.
func TestEgressSDKs(t *testing.T) {
	t.Parallel()
	python := installed("AID_SDK_PYTHON", "sdk")
	if _, err := os.Stat(python); err != nil {
		missing(t, err)
	}
	upstream := &recorder{}
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	up := e2e.Start(t, e2e.Config{Providers: fmt.Sprintf(`providers:
- {name: openai, kind: openai, base_url: "%[1]s/v1", models: ["gpt-*"], hosts: [api.openai.com], credential: {env: KEY_OPENAI}}
- {name: anthropic, kind: anthropic, base_url: "%[1]s", models: ["claude-*"], hosts: [api.anthropic.com], credential: {env: KEY_ANTHROPIC}}
- {name: gemini, kind: gemini, base_url: "%[1]s", models: ["gemini-*"], hosts: [generativelanguage.googleapis.com], credential: {env: KEY_GEMINI}}
`, server.URL), Env: []string{"KEY_OPENAI=sk-real-openai", "KEY_ANTHROPIC=sk-real-anthropic", "KEY_GEMINI=sk-real-gemini"}})
	agent := up.Agent(t, `{"name":"app","allowed_models":["*"]}`)
	_, key := up.Key(t, agent, `{"name":"one","scopes":["*"]}`)

	cmd := exec.CommandContext(t.Context(), e2e.Binary(t), "egress", "run", "--home", up.Home, "--", python, filepath.Join(e2e.Root(), "e2e", "testdata", "egress.py"))
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "OPENAI_API_KEY="+key, "ANTHROPIC_API_KEY="+key, "GEMINI_API_KEY="+key)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all right") {
		t.Fatalf("%v\n%s", err, out)
	}
	seen := upstream.all()
	if len(seen) != 4 {
		t.Errorf("%d requests reached the providers, want 4", len(seen))
	}
	for _, s := range seen {
		all, _ := json.Marshal(s)
		if bytes.Contains(all, []byte(key)) || bytes.Contains(all, []byte("aid_sk_")) || bytes.Contains(bytes.ToLower(all), []byte("x-aid-")) {
			t.Errorf("%s %s: the agent's key or a header of the gateway reached the provider", s.Host, s.Path)
		}
		if !bytes.Contains(all, []byte("sk-real-")) {
			t.Errorf("%s %s: the provider did not get its credential", s.Host, s.Path)
		}
	}
	recorded := decidedBy(t, up, agent, 4, "")
	hosts := map[string]string{"api.openai.com": "openai", "api.anthropic.com": "anthropic", "generativelanguage.googleapis.com": "gemini"}
	for _, e := range recorded {
		if e.Mode != "egress" || e.Effect != "allow" || hosts[e.Host] != e.Provider {
			t.Errorf("recorded: %+v", e)
		}
	}
}

type egressEntry struct{ Mode, Host, Effect, Provider string }

// decidedBy waits until n decisions of an agent are in its log: all, or those of one request.
func decidedBy(t *testing.T, up *e2e.Up, agent string, n int, request string) []egressEntry {
	t.Helper()
	var page struct{ Data []egressEntry }
	query := "?kind=request.decided&limit=100"
	if request != "" {
		query += "&request_id=" + request
	}
	e2e.Eventually(t, 30*time.Second, func() error {
		up.Manage(t, http.MethodGet, "/v1/agents/"+agent+"/logs"+query, "", http.StatusOK, &page)
		if len(page.Data) != n {
			return fmt.Errorf("%d decisions are recorded, want %d: %+v", len(page.Data), n, page.Data)
		}
		return nil
	})
	return page.Data
}

// What is not a request to a governed host by a known agent is rejected, by name. Nothing of it
// reaches a provider.
func TestEgressRefusals(t *testing.T) {
	t.Parallel()
	upstream := &recorder{}
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	up := e2e.Start(t, e2e.Config{Providers: fmt.Sprintf(`providers:
- {name: openai, kind: openai, base_url: "%[1]s/v1", models: ["gpt-*"], hosts: [api.openai.com], credential: {env: KEY}}
- {name: anthropic, kind: anthropic, base_url: "%[1]s", models: ["claude-*"], hosts: [api.anthropic.com], credential: {env: KEY}}
- {name: azure, kind: openai, base_url: "%[1]s/v1", models: ["o3"], hosts: [mine.openai.azure.com], credential: {env: KEY}}
`, server.URL), Env: []string{"KEY=sk-real"}})
	agent := up.Agent(t, `{"name":"app","allowed_models":["gpt-4o"]}`)
	_, key := up.Key(t, agent, `{"name":"one","scopes":["*"]}`)
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(up.Home, "egress-ca.pem"))
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no roots", err)
	}
	body := `{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}`
	request := func(host, path, authorization, extra string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			path, host, authorization, extra, len(body), body)
	}
	// tunnel opens a connection by CONNECT, or directly to the egress listener, and sends text in it.
	tunnel := func(t *testing.T, connect, sni, text string) (string, error) {
		t.Helper()
		address := strings.TrimPrefix(up.Proxy, "http://")
		if connect == "" {
			address = strings.TrimPrefix(up.Egress, "https://")
		}
		c, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if connect != "" {
			fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", connect)
			resp, err := http.ReadResponse(bufio.NewReader(unbuffered{c}), &http.Request{Method: http.MethodConnect})
			if err != nil {
				return "", err
			}
			if resp.StatusCode != 200 {
				return resp.Status, nil
			}
		}
		s := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: roots})
		if err := s.Handshake(); err != nil {
			return "", err
		}
		io.WriteString(s, text)
		b, err := io.ReadAll(s)
		if len(b) > 0 {
			err = nil
		}
		return string(b), err
	}
	openai := "api.openai.com"
	for _, c := range []struct{ name, connect, sni, text, want string }{
		{"by the listener", "", openai, request(openai, "/v1/chat/completions", key, ""), "HTTP/1.1 200"},
		{"by the proxy", openai + ":443", openai, request(openai, "/v1/chat/completions", key, ""), "HTTP/1.1 200"},
		{"a port and a dot in the host", openai + ":443", openai, request(openai+".:443", "/v1/chat/completions", key, ""), "HTTP/1.1 200"},
		{"another governed host", "", openai, request("api.anthropic.com", "/v1/messages", key, ""), "HTTP/1.1 421"},
		{"another host", "", openai, request("evil.example", "/v1/chat/completions", key, ""), "HTTP/1.1 421"},
		{"the gateway's host", "", openai, request("localhost", "/v1/chat/completions", key, ""), "HTTP/1.1 421"},
		{"another host in CONNECT", "api.anthropic.com:443", openai, request(openai, "/v1/chat/completions", key, ""), "HTTP/1.1 421"},
		{"CONNECT elsewhere", "example.com:443", openai, "", "403 Forbidden"},
		{"CONNECT to a governed host's other port", openai + ":8443", openai, "", "403 Forbidden"},
		{"CONNECT to a governed host that the operator does not decrypt", "mine.openai.azure.com:443", openai, "", "403 Forbidden"},
		{"a provider's own key", "", openai, request(openai, "/v1/chat/completions", "sk-proj-0123456789", ""), "HTTP/1.1 401"},
		{"a path of another provider", "", openai, request(openai, "/v1/messages", key, ""), "HTTP/1.1 404"},
		{"a path that is not judged", "", openai, request(openai, "/v1/files", key, ""), "HTTP/1.1 404"},
		{"the management API", "", openai, request(openai, "/v1/agents", up.OrgKey, ""), "HTTP/1.1 401"},
		{"forged facts", "", openai, request(openai, "/v1/chat/completions", key, "x-aid-egress: api.anthropic.com\r\nx-aid-connect: api.anthropic.com:443\r\nx-aid-peer: 10.9.9.9\r\nx-aid-route: provider-x\r\n"), "HTTP/1.1 200"},
		{"an upgrade", "", openai, strings.Replace(request(openai, "/v1/chat/completions", key, "Upgrade: websocket\r\n"), "Connection: close", "Connection: Upgrade", 1), "HTTP/1.1 403"},
		{"an absolute target", "", openai, strings.Replace(request(openai, "/v1/chat/completions", key, ""), "POST /", "POST https://api.anthropic.com/", 1), "HTTP/1.1 421"},
		{"a model that the agent may not use", "", openai, strings.Replace(request(openai, "/v1/chat/completions", key, ""), `"gpt-4o"`, `"gpt-5x"`, 1), "HTTP/1.1 403"},
		{"a model of another provider", "", openai, strings.Replace(request(openai, "/v1/chat/completions", key, ""), `"gpt-4o"`, `"claude"`, 1), "HTTP/1.1 403"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(upstream.all())
			got, err := tunnel(t, c.connect, c.sni, c.text)
			if err != nil || !strings.HasPrefix(got, c.want) {
				t.Fatalf("%v\n%s", err, got)
			}
			after := upstream.all()
			if forwarded := len(after) - before; forwarded != map[bool]int{true: 1}[c.want == "HTTP/1.1 200"] {
				t.Errorf("%d requests reached the provider", forwarded)
			}
			for _, s := range after[before:] {
				if b, _ := json.Marshal(s.Header); bytes.Contains(bytes.ToLower(b), []byte("x-aid-")) || bytes.Contains(b, []byte("10.9.9.9")) {
					t.Errorf("the provider received %s", b)
				}
			}
			if strings.HasPrefix(c.want, "HTTP/1.1 4") && !strings.Contains(got, "x-should-retry: false") {
				t.Errorf("clients may try again:\n%s", got)
			}
		})
	}
	for _, sni := range []string{"", "evil.example", "mine.openai.azure.com", "API.OPENAI.COM.evil.example"} {
		t.Run("server name "+sni, func(t *testing.T) {
			c, err := net.Dial("tcp", strings.TrimPrefix(up.Egress, "https://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if err := tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake(); err == nil {
				t.Error("the handshake succeeds")
			}
		})
	}
	t.Run("the gateway ignores forged facts", func(t *testing.T) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(body))
		for name, value := range map[string]string{"Authorization": "Bearer " + key, "Content-Type": "application/json", "X-AID-Egress": openai, "X-AID-Connect": openai + ":443"} {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got := decidedBy(t, up, agent, 1, resp.Header.Get("X-Request-Id")); resp.StatusCode != 200 || got[0].Mode != "gateway" {
			t.Errorf("%d %+v", resp.StatusCode, got)
		}
	})
	t.Run("a plain request to the proxy", func(t *testing.T) {
		proxy, _ := url.Parse(up.Proxy)
		client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
		resp, err := client.Get("http://api.openai.com/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !bytes.Contains(b, []byte("https://")) {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
	})
	// Envoy's own view shows no key, and no file has one.
	admin, err := envoy.Admin(filepath.Join(up.Home, "run", "envoy.sock")).Get(t.Context(), "/config_dump?include_eds")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(admin, []byte("PRIVATE KEY")) || !bytes.Contains(admin, []byte("aid_leaf/"+openai)) {
		t.Error("/config_dump shows a private key, or no certificate")
	}
}

// unbuffered reads one byte at a time, so that a bufio.Reader takes nothing of what follows.
type unbuffered struct{ io.Reader }

func (r unbuffered) Read(b []byte) (int, error) {
	if len(b) > 1 {
		b = b[:1]
	}
	return r.Reader.Read(b)
}
