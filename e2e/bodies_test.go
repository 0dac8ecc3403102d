package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// Large prompts pass byte for byte. Above the limit the response is 413 in the API's own
// format, with and without a declared length.
func TestLargeBodies(t *testing.T) {
	up := e2e.Shared(t)
	provider := e2e.Record(t, nil)
	up.Provider(t, provider.Body("large", "large-*"), credential)
	agent := up.Agent(t, `{"name":"large","allowed_models":["large-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	body := func(n int) string {
		const head, tail = `{"model":"large-1","messages":[{"role":"user","content":"`, `"}]}`
		return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
	}
	e2e.Eventually(t, 10*time.Second, func() error {
		if r := up.Chat(t, key, body(100)); r.Status != 200 {
			return fmt.Errorf("%d %s", r.Status, r.Body)
		}
		return nil
	})
	for name, client := range protocols() {
		for _, size := range []int{33 << 10, 2_000_000, e2e.MaxBody} {
			for _, length := range []int64{int64(size), -1} {
				if length < 0 && size == e2e.MaxBody {
					continue // it would only take time
				}
				sent := body(size)
				before := len(provider.Requests())
				resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(sent), length)
				if err != nil {
					t.Fatalf("%s, %d bytes: %v", name, size, err)
				}
				answer, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				seen := provider.Requests()
				if resp.StatusCode != 200 || len(seen) != before+1 || string(seen[before].Body) != sent {
					t.Errorf("%s, %d bytes, length %d: %d %s", name, size, length, resp.StatusCode, answer)
				}
			}
		}
		// With a declared length it is rejected at once.
		for _, size := range []int{e2e.MaxBody + 1, e2e.MaxBody + 4<<20} {
			// The first is rejected by the sidecar. The second is too large for Envoy.
			for _, length := range []int64{int64(size), -1} {
				before := len(provider.Bytes())
				resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(body(size)), length)
				if err != nil {
					t.Errorf("%s, %d bytes, length %d: %v", name, size, length, err)
					continue
				}
				answer, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				var e struct {
					Error struct{ Message, Type, Code string }
				}
				if resp.StatusCode != 413 || json.Unmarshal(answer, &e) != nil || e.Error.Message == "" {
					t.Errorf("%s, %d bytes, length %d: %d %s", name, size, length, resp.StatusCode, answer)
				}
				if n := len(provider.Bytes()) - before; n != 0 {
					t.Errorf("%s, %d bytes: %d of them reached the provider", name, size, n)
				}
			}
		}
	}
}

// Thousands of streamed responses are live at once, and each reaches its end: no default
// circuit breaker or limit applies to them.
func TestManyStreams(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 200
	}
	enough := make(chan struct{})
	up := e2e.Shared(t)
	provider := e2e.Record(t, e2e.Streaming(0, 2*time.Second, enough))
	up.Provider(t, provider.Body("many", "many-*"), credential)
	agent := up.Agent(t, `{"name":"many","allowed_models":["many-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	e2e.Eventually(t, 10*time.Second, func() error {
		if r := up.Chat(t, key, `{"model":"many-1","messages":[{"role":"user","content":"Hello there"}]}`); r.Status != 200 {
			return fmt.Errorf("%d %s", r.Status, r.Body)
		}
		return nil
	})
	began := time.Now()
	streams := openStreams(t, up.Gateway, key, `{"stream":true,"model":"many-1","messages":[{"role":"user","content":"Hello there"}]}`, n)
	open := time.Since(began)
	if live := up.Metric(t, "aid_extproc_live_exchanges"); live < float64(n) {
		t.Errorf("%v exchanges are live, want %d", live, n)
	}
	close(enough)
	for i, s := range streams {
		if err := s.toEnd(); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
	t.Logf("%d streams were open at once after %v, and all had ended after %v", n, open, time.Since(began))
	entries := settled(t, up)
	inspected(t, entries, provider)
	completed := 0
	for _, e := range entries {
		if e.AgentID == agent && e.Outcome == "completed" && e.Usage.InputTokens == 11 {
			completed++
		}
	}
	if completed != n+1 {
		t.Errorf("%d exchanges are recorded as completed with their usage, want %d", completed, n+1)
	}
}

// Usage is the same whether the sidecar or Envoy reads it from the response.
func TestUsage(t *testing.T) {
	answers := map[string]string{
		"/v1/chat/completions": `{"id":"c","object":"chat.completion","created":1,"model":"usage-2026","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1101,"completion_tokens":42,"total_tokens":1143,"prompt_tokens_details":{"cached_tokens":1024},"completion_tokens_details":{"reasoning_tokens":7}}}`,
		"/v1/responses":        `{"id":"r","object":"response","created_at":1,"status":"completed","model":"usage-2026","output":[],"usage":{"input_tokens":1102,"input_tokens_details":{"cached_tokens":1000},"output_tokens":43,"output_tokens_details":{"reasoning_tokens":8},"total_tokens":1145}}`,
	}
	streams := map[string]string{
		"/v1/chat/completions": "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"usage-2026\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}]}\n\n" +
			"data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"usage-2026\",\"choices\":[],\"usage\":{\"prompt_tokens\":1103,\"completion_tokens\":44,\"total_tokens\":1147,\"prompt_tokens_details\":{\"cached_tokens\":512},\"completion_tokens_details\":{\"reasoning_tokens\":9}}}\n\ndata: [DONE]\n\n",
		"/v1/responses": "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"object\":\"response\",\"status\":\"in_progress\",\"model\":\"usage-2026\",\"output\":[]}}\n\n" +
			"event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"object\":\"response\",\"status\":\"completed\",\"model\":\"usage-2026\",\"output\":[],\"usage\":{\"input_tokens\":1104,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":45,\"output_tokens_details\":{\"reasoning_tokens\":10},\"total_tokens\":1149}}}\n\n",
	}
	provider := e2e.Record(t, answering(answers, streams))
	requests := []struct{ path, body string }{
		{"/v1/chat/completions", `{"model":"usage-1","messages":[{"role":"user","content":"Hello there"}]}`},
		{"/v1/chat/completions", `{"stream":true,"stream_options":{"include_usage":true},"model":"usage-1","messages":[{"role":"user","content":"Hello there"}]}`},
		{"/v1/responses", `{"model":"usage-1","input":"Hello there"}`},
		{"/v1/responses", `{"stream":true,"model":"usage-1","input":"Hello there"}`},
	}
	ask := func(up *e2e.Up) []string {
		up.Provider(t, provider.Body("usage", "usage-*"), credential)
		agent := up.Agent(t, `{"name":"usage","allowed_models":["usage-*"]}`)
		_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions","responses"]}`)
		e2e.Eventually(t, 10*time.Second, func() error {
			if r := up.Do(t, up.Gateway, "GET", "/v1/models", key, ""); r.Status == 401 {
				return fmt.Errorf("%d %s", r.Status, r.Body)
			}
			if r := up.Do(t, up.Gateway, "POST", requests[0].path, key, requests[0].body); r.Status != 200 {
				return fmt.Errorf("%d %s", r.Status, r.Body)
			}
			return nil
		})
		var ids []string
		for _, r := range requests {
			got := up.Do(t, up.Gateway, "POST", r.path, key, r.body)
			if got.Status != 200 {
				t.Fatalf("%s: %d %s", r.path, got.Status, got.Body)
			}
			want := answers[r.path]
			if strings.Contains(r.body, `"stream":true`) {
				want = streams[r.path]
			}
			if !bytes.Equal(got.Body, []byte(want)) {
				t.Errorf("%s: the answer is not as the provider gave it: %s", r.path, got.Body)
			}
			ids = append(ids, got.Header.Get("X-Request-Id"))
		}
		by := map[string]entry{}
		for _, e := range settled(t, up) {
			if e.Kind == "request.settled" {
				by[e.RequestID] = e
			}
		}
		var out []string
		for i, id := range ids {
			u := by[id].Usage
			out = append(out, fmt.Sprintf("%s: input %d, output %d, cached %d, reasoning %d, source %s", requests[i].path, u.InputTokens, u.OutputTokens, u.CachedTokens, u.Reasoning, u.Source))
		}
		return out
	}
	read := ask(e2e.Shared(t))
	byEnvoy := ask(e2e.Start(t, e2e.Config{Args: []string{"--usage", "envoy"}}))
	// In an org with a provider that needs translation, the sidecar reads some responses in
	// any case. That must make no visible difference.
	mixed := e2e.Start(t, e2e.Config{Args: []string{"--usage", "envoy"}})
	mixed.Provider(t, `{"name":"other","kind":"anthropic","base_url":"http://127.0.0.1:1","models":["claude-*"]}`, credential)
	both := ask(mixed)
	want := []string{
		"/v1/chat/completions: input 1101, output 42, cached 1024, reasoning 7, source provider",
		"/v1/chat/completions: input 1103, output 44, cached 512, reasoning 9, source provider",
		"/v1/responses: input 1102, output 43, cached 1000, reasoning 8, source provider",
		"/v1/responses: input 1104, output 45, cached 0, reasoning 10, source provider",
	}
	for i, w := range want {
		if read[i] != w {
			t.Errorf("--usage stream: %s\nwant            %s", read[i], w)
		}
		if byEnvoy[i] != w {
			t.Errorf("--usage envoy:  %s\nwant            %s", byEnvoy[i], w)
		}
		if both[i] != w {
			t.Errorf("--usage envoy and a translated provider: %s\nwant            %s", both[i], w)
		}
	}
}

// answering returns a handler with the same bytes for each path, in JSON or as events.
func answering(answers, streams map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		text, kind := answers[r.URL.Path], "application/json"
		if bytes.Contains(body, []byte(`"stream":true`)) {
			text, kind = streams[r.URL.Path], "text/event-stream"
		}
		w.Header().Set("Content-Type", kind)
		for event := range strings.SplitAfterSeq(text, "\n\n") {
			io.WriteString(w, event)
			http.NewResponseController(w).Flush()
		}
	})
}
