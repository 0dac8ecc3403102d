package e2e_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// An agent's key is never forwarded, for every place where a client puts it. The provider's
// credential is never returned, for every way in which the provider echoes it. (B50, B52.)
func TestTaint(t *testing.T) {
	const secret = "sk-provider-taint-0123456789abcdef"
	// A provider that echoes everything it receives, in headers, body and trailers.
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Echo-Trailer")
		w.Header().Set("Content-Type", "application/json")
		for name, values := range r.Header {
			w.Header()["X-Echo-"+name] = values
		}
		w.Header().Set("X-Api-Key", secret)
		w.Header().Set("Location", "http://127.0.0.1/?key="+secret)
		fmt.Fprintf(w, `{"id":"c","object":"chat.completion","model":"taint-1","choices":[{"index":0,"message":{"role":"assistant","content":"%s and %s"},"finish_reason":"stop"}],"request":%q}`,
			secret, r.Header.Get("Authorization"), body)
		w.Header().Set("X-Echo-Trailer", secret)
	})
	provider := e2e.Record(t, echo)
	up := e2e.Start(t, e2e.Config{Args: []string{"--log-level", "debug"}, Providers: provider.File("taint", secret, "taint-*")})
	agent := up.Agent(t, `{"name":"a","allowed_models":["taint-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["*"]}`)
	_, canary := up.Key(t, agent, `{"name":"canary","scopes":["*"]}`)
	const body = `{"model":"taint-1","messages":[{"role":"user","content":"Hello there"}]}`
	up.Ready(t)

	type carrier struct {
		name    string
		passes  bool // it is a valid way to send the key, and gets 200
		request func(r *http.Request)
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	also := func(f func(*http.Request)) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+key)
			f(r)
		}
	}
	send := func(text, kind string) func(*http.Request) {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
			r.Header.Set("Content-Type", kind)
		}
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+canary))
	carriers := []carrier{
		{"Authorization", true, header("Authorization", "Bearer "+canary)},
		{"Authorization, no scheme", true, header("Authorization", canary)},
		{"x-api-key", true, header("X-Api-Key", canary)},
		{"api-key", true, header("Api-Key", canary)},
		{"x-goog-api-key", true, header("X-Goog-Api-Key", canary)},
		{"two that agree", true, func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+canary)
			r.Header.Set("X-Api-Key", canary)
		}},
		{"two that differ", false, also(header("X-Api-Key", canary))},
		{"Authorization twice", false, func(r *http.Request) {
			r.Header["Authorization"] = []string{"Bearer " + key, "Bearer " + canary}
		}},
		{"Basic", false, header("Authorization", basic)},
		{"xi-api-key alone", false, header("Xi-Api-Key", canary)},
		{"xi-api-key", false, also(header("Xi-Api-Key", canary))},
		{"Proxy-Authorization", false, also(header("Proxy-Authorization", "Bearer "+canary))},
		{"x-auth-token", false, also(header("X-Auth-Token", canary))},
		{"a header of its own", false, also(header("X-Whatever", "key="+canary+";"))},
		{"User-Agent", false, also(header("User-Agent", "agent/1 "+canary))},
		{"Cookie", false, also(header("Cookie", "session=1; key="+canary))},
		{"Referer", false, also(header("Referer", "https://example.com/?key="+canary))},
		{"Sec-WebSocket-Protocol", false, also(header("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key."+canary))},
		{"a WebSocket handshake", false, also(func(r *http.Request) {
			r.Method = http.MethodGet
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
			r.Header.Set("Sec-WebSocket-Version", "13")
			r.Header.Set("Sec-WebSocket-Protocol", "openai-insecure-api-key."+canary)
		})},
		{"?key=", false, also(func(r *http.Request) { r.URL.RawQuery = "key=" + canary })},
		{"?key= alone", false, func(r *http.Request) { r.URL.RawQuery = "key=" + canary }},
		{"?api_key=, encoded", false, also(func(r *http.Request) { r.URL.RawQuery = "api_key=" + strings.ReplaceAll(canary, "_", "%5F") })},
		{"the path", false, also(func(r *http.Request) { r.URL.Path = "/v1/models/" + canary })},
		{"an unknown path", false, also(func(r *http.Request) { r.URL.Path = "/v1/" + canary + "/chat/completions" })},
		{"a body field", false, also(send(`{"model":"taint-1","api_key":"`+canary+`","messages":[]}`, "application/json"))},
		{"a message", false, also(send(`{"model":"taint-1","messages":[{"role":"user","content":"my key is `+canary+`"}]}`, "application/json"))},
		{"a body of another type", false, also(send("key="+url.QueryEscape(canary), "application/x-www-form-urlencoded"))},
		{"a multipart part", false, also(send("--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n"+canary+"\r\n--b--\r\n", "multipart/form-data; boundary=b"))},
		{"the model", false, also(send(`{"model":"`+canary+`","messages":[]}`, "application/json"))},
		{"a trailer", false, also(func(r *http.Request) {
			r.ContentLength = -1
			r.Trailer = http.Header{"X-Api-Key": {canary}}
		})},
		{"traceparent", false, also(header("Traceparent", "00-"+canary+"-01"))},
	}
	for name, client := range protocols() {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, c := range carriers {
			if name == "http2" && strings.Contains(c.name, "handshake") {
				continue // HTTP/2 does not have this
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions", io.NopCloser(strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = int64(len(body))
			req.Header.Set("Content-Type", "application/json")
			c.request(req)
			before := len(provider.Requests())
			resp, err := client.Do(req)
			if err != nil {
				t.Errorf("%s, %s: %v", name, c.name, err)
				continue
			}
			answer, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if passed := resp.StatusCode == 200; passed != c.passes {
				t.Errorf("%s, %s: answered %d %s", name, c.name, resp.StatusCode, answer)
			}
			if n := len(provider.Requests()) - before; n > 0 && !c.passes {
				t.Errorf("%s, %s: %d requests reached the provider", name, c.name, n)
			}
			all := fmt.Sprint(resp.Header, resp.Trailer, string(answer))
			for _, word := range []string{secret, canary, key, basic} {
				if strings.Contains(all, word) {
					t.Errorf("%s, %s: the answer holds %s…: %s", name, c.name, word[:10], all)
				}
			}
		}
	}
	userinfo(t, up, key, canary)
	if len(provider.Requests()) == 0 {
		t.Error("the provider saw nothing at all")
	}
	for _, r := range provider.Requests() {
		var credentials []string
		for _, name := range []string{"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Xi-Api-Key"} {
			credentials = append(credentials, r.Header[name]...)
		}
		if len(credentials) != 1 || credentials[0] != "Bearer "+secret {
			t.Errorf("the provider was sent %d credentials", len(credentials))
		}
	}

	entries := settled(t, up)
	check(t, up, entries)
	inspected(t, entries, provider)
	metrics := up.Do(t, up.Metrics, http.MethodGet, "/metrics", "", "")
	var recorded bytes.Buffer
	for _, e := range entries {
		recorded.Write(e.Raw)
	}
	logs := up.Do(t, up.API, http.MethodGet, "/v1/agents/"+agent+"/logs?limit=100", up.OrgKey, "")
	e2e.Eventually(t, 10*time.Second, func() error { // the log has the output of the children
		if !strings.Contains(up.Stderr(), "process=extproc") {
			return fmt.Errorf("nothing of the sidecar is in the log")
		}
		return nil
	})
	places := map[string]string{
		"the provider": string(provider.Bytes()), "the log": up.Stderr(), "the metrics": string(metrics.Body),
		"the record": recorded.String(), "the API's logs": string(logs.Body), "the folder": folder(t, up.Home),
	}
	for place, text := range places {
		for what, word := range map[string]string{"the agent's key": key, "the canary": canary, "the canary in Basic": basic, "the org's key": up.OrgKey} {
			if strings.Contains(text, word) && !(place == "the folder" && word == up.OrgKey) {
				t.Errorf("%s holds %s", place, what)
			}
		}
		if place != "the provider" && place != "the folder" && strings.Contains(text, secret) {
			t.Errorf("%s holds the provider's credential", place)
		}
	}
}

// userinfo sends a key in the authority of an absolute request target, which client
// libraries do not do.
func userinfo(t *testing.T, up *e2e.Up, key, canary string) {
	t.Helper()
	address := strings.TrimPrefix(up.Gateway, "http://")
	for _, line := range []string{
		"POST http://" + canary + "@" + address + "/v1/chat/completions HTTP/1.1\r\nHost: " + address,
		"POST /v1/chat/completions HTTP/1.1\r\nHost: " + canary + "@" + address,
		"POST /v1/chat/completions HTTP/1.1\r\nHost: " + canary,
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "%s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", line, key)
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) || bytes.Contains(answer, []byte(canary)) {
			t.Errorf("%.60s: %s", line, answer)
		}
	}
}

// folder is the content of the files in a home. It excludes the database's files, which are
// read as the audit log, and the two files that store a secret.
func folder(t *testing.T, home string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(home, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // a file that was deleted meanwhile
		case d.IsDir() && d.Name() == "postgres":
			return filepath.SkipDir
		case d.Type().IsRegular() && d.Name() != "providers.yaml":
			b, _ := os.ReadFile(path)
			all.Write(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
