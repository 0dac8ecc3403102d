package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// rawProvider responds to each model with that model's bytes.
type rawProvider struct {
	URL string

	mu      sync.Mutex
	answers map[string]rawCase
	conns   int
}

func newRawProvider(t *testing.T) *rawProvider {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &rawProvider{URL: "http://" + l.Addr().String() + "/v1", answers: map[string]rawCase{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns++
			p.mu.Unlock()
			go p.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return p
}

func (p *rawProvider) serve(c net.Conn) {
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		var body struct{ Model string }
		if err := json.NewDecoder(req.Body).Decode(&body); err != nil {
			return
		}
		io.Copy(io.Discard, req.Body)
		p.mu.Lock()
		answer, ok := p.answers[body.Model]
		p.mu.Unlock()
		if !ok {
			text := rawAnswer(body.Model)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			continue
		}
		io.WriteString(c, strings.Join(answer.lines, ""))
		if answer.closes {
			return
		}
	}
}

func rawAnswer(model string) string {
	return `{"id":"c","object":"chat.completion","created":1,"model":"` + model + `","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":9,"total_tokens":20}}`
}

// TestRawAnswers has a provider send invalid responses. A client gets its own complete
// response, or detects that it is incomplete. It never gets another client's response, and
// no response contains the provider's credential.
func TestRawAnswers(t *testing.T) { playAnswers(t, e2e.Shared(t), true) }

// Where Envoy reads usage, the sidecar does not read responses that are not translated. The
// client still gets its own complete response. The audit log has no outcome "completed" for
// an incomplete response. A credential in the response, and a 101, are not filtered.
func TestRawAnswersReadByEnvoy(t *testing.T) {
	playAnswers(t, e2e.Start(t, e2e.Config{Args: []string{"--usage", "envoy"}}), false)
}

// playAnswers plays the cases. With read, the sidecar reads the provider's responses.
func playAnswers(t *testing.T, up *e2e.Up, read bool) {
	t.Helper()
	p := newRawProvider(t)
	up.Provider(t, fmt.Sprintf(`{"name":"rawanswers","kind":"openai","base_url":%q,"models":["rawanswers-*"]}`, p.URL), credential)
	agent := up.Agent(t, `{"name":"rawanswers","allowed_models":["rawanswers-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["*"]}`)
	_, innocent := up.Key(t, agent, `{"name":"innocent","scopes":["*"]}`)
	w := &rawWorld{prefix: "rawanswers-", up: up, key: key}
	cases := w.cases(t, "testdata/raw/answers.txt")
	if len(cases) < 80 {
		t.Errorf("there are only %d cases", len(cases))
	}
	p.mu.Lock()
	for _, c := range cases {
		p.answers[c.model] = c
	}
	p.mu.Unlock()
	client := &http.Client{Timeout: 30 * time.Second}
	// ask returns the body and, if the response is not complete, the reason.
	ask := func(key, model string) (status int, all, id string, err error) {
		body := rawBody(model)
		resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(body), int64(len(body)))
		if err != nil {
			return 0, "", "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if text := fmt.Sprint(resp.Status, resp.Header, resp.Trailer); read && strings.Contains(text+string(b), credential) {
			t.Errorf("%s: the provider's credential comes back: %s %s", model, text, b)
		}
		if d := resp.Header.Values("X-Aid-Decision"); len(d) != 1 || d[0] != "allow" || len(resp.Header.Values("X-Aid-Receipt")) != 1 || resp.Header.Get("X-Aid-Receipt") == "forged" {
			if resp.StatusCode < 500 {
				t.Errorf("%s: %d says %v", model, resp.StatusCode, resp.Header)
			}
		}
		for _, name := range []string{"Set-Cookie", "Alt-Svc", "Www-Authenticate", "Upgrade"} {
			if v := resp.Header.Get(name); v != "" {
				t.Errorf("%s: %s: %s is passed on", model, name, v)
			}
		}
		return resp.StatusCode, string(b), resp.Header.Get("X-Request-Id"), err
	}
	e2e.Eventually(t, 10*time.Second, func() error {
		for _, k := range []string{key, innocent} {
			if status, all, _, err := ask(k, "rawanswers-first"); status != 200 || err != nil {
				return fmt.Errorf("%d %s %v", status, all, err)
			}
		}
		return nil
	})
	ids := map[string]rawCase{}
	for i, c := range cases {
		if !read && strings.Contains(c.name, "another protocol") {
			continue
		}
		status, all, id, err := ask(key, c.model)
		whole := err == nil && status < 300 && all == rawAnswer(c.model)
		switch c.want {
		case "whole":
			if !whole {
				t.Errorf("%s: answered %d %.200q, %v", c.name, status, all, err)
			}
		case "empty":
			if err != nil || status >= 400 || all != "" {
				t.Errorf("%s: answered %d %.200q, %v", c.name, status, all, err)
			}
		case "broken":
			if err == nil && status < 400 {
				t.Errorf("%s: answered %d %.200q as if it were whole", c.name, status, all)
			}
			if strings.Contains(all, "stray") {
				t.Errorf("%s: got what nobody asked for: %d %q", c.name, status, all)
			}
		}
		if id != "" {
			ids[id] = c
		}
		model := fmt.Sprintf("rawanswers-innocent-%d", i)
		if status, all, _, err := ask(innocent, model); status != 200 || err != nil || all != rawAnswer(model) {
			t.Errorf("%s: after it another was answered %d %.200q, %v", c.name, status, all, err)
		}
	}
	for _, e := range settled(t, up) {
		c, ok := ids[e.RequestID]
		if !ok || e.Kind != "request.settled" {
			continue
		}
		good := e.Outcome == "completed"
		if !read && !good && e.Outcome == "unknown" {
			continue // Envoy found no usage, and sends nothing else
		}
		if good == (c.want == "broken") && c.want != "empty" {
			t.Errorf("%s: the record says %s", c.name, e.Outcome)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Logf("%d answers, over %d connections", len(cases), p.conns)
	w.up.Ready(t)
}
