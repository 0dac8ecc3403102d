package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// ending passes on each completion entry to a test.
type ending struct {
	extproc.Recorder
	entries chan audit.Settled
}

func (r ending) Enqueue(org string, e audit.Entry) {
	if s, ok := e.(audit.Settled); ok {
		r.entries <- s
	}
	r.Recorder.Enqueue(org, e)
}

// Envoy closes the stream to extproc in the same way when the client leaves and when the
// provider breaks off. The audit log has the side that closed, and the status that the
// client got.
func TestEnds(t *testing.T) {
	const (
		head  = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
		chunk = `data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"h"},"finish_reason":null}]}` + "\n\n"
		jsons = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	)
	framed := fmt.Sprintf("%x\r\n%s\r\n", len(chunk), chunk)
	for _, usage := range []string{"stream", "envoy"} {
		entries := make(chan audit.Settled, 16)
		var serve func(c *net.TCPConn, gone <-chan struct{})
		left := make(chan struct{})
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			serve(c.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn), left)
		})
		ps := []provider.Provider{{Name: "one", Kind: "openai", Models: []string{"gpt-*"}}, {Name: "two", Kind: "anthropic", Models: []string{"claude-*"}}}
		x := inProcessWith(t, h, usage, ps, func(c *extproc.Config) {
			c.Recorder, c.EndTimeout = ending{c.Recorder, entries}, 20*time.Second
		}, nil)
		reset := func(text ...string) func(*net.TCPConn, <-chan struct{}) {
			return func(c *net.TCPConn, _ <-chan struct{}) {
				io.WriteString(c, strings.Join(text, ""))
				c.SetLinger(0)
			}
		}
		closed := func(text ...string) func(*net.TCPConn, <-chan struct{}) {
			return func(c *net.TCPConn, _ <-chan struct{}) { io.WriteString(c, strings.Join(text, "")) }
		}
		for _, c := range []struct {
			name, model string
			stream      bool
			serve       func(c *net.TCPConn, left <-chan struct{})
			reads       bool // the client reads a part first
			leaves      bool // and closes the connection then
			want        string
		}{
			{name: "reset before the response", model: "gpt-1", serve: reset(), want: verdict.OutcomeUpstreamReset},
			{name: "reset in a stream", model: "gpt-1", stream: true, serve: reset(head, "Transfer-Encoding: chunked\r\n\r\n", framed), want: verdict.OutcomeUpstreamReset},
			{name: "closed in a stream", model: "gpt-1", stream: true, serve: closed(head, "Transfer-Encoding: chunked\r\n\r\n", framed), want: verdict.OutcomeUpstreamReset},
			{name: "too few bytes", model: "gpt-1", serve: closed(jsons, "Content-Length: 1000\r\n\r\n", `{"id":`), want: verdict.OutcomeUpstreamReset},
			{name: "no bytes", model: "gpt-1", serve: closed(jsons, "Content-Length: 1000\r\n\r\n"), want: verdict.OutcomeUpstreamReset},
			{name: "not HTTP", model: "gpt-1", serve: closed(jsons, "Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), want: verdict.OutcomeUpstreamReset},
			{name: "too few bytes to translate", model: "claude-1", serve: closed(jsons, "Content-Length: 1000\r\n\r\n", `{"id":`), want: verdict.OutcomeUpstreamReset},
			{name: "reset in a translated stream", model: "claude-1", stream: true, serve: reset(head, "Transfer-Encoding: chunked\r\n\r\n6\r\n: hi\n\n\r\n"), want: verdict.OutcomeUpstreamReset},
			{name: "reset after the client has a part", model: "gpt-1", stream: true, reads: true, want: verdict.OutcomeUpstreamReset, serve: func(c *net.TCPConn, left <-chan struct{}) {
				io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n"+framed)
				<-left
				c.SetLinger(0)
			}},
			{name: "ended too early", model: "gpt-1", stream: true, serve: closed(head, "Connection: close\r\n\r\n", chunk), want: verdict.OutcomeBrokenOff},
			{name: "the client leaves", model: "gpt-1", stream: true, leaves: true, want: verdict.OutcomeClientClosed, serve: func(c *net.TCPConn, left <-chan struct{}) {
				io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n"+framed)
				<-left
			}},
		} {
			t.Run(usage+"/"+c.name, func(t *testing.T) {
				serve = c.serve
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "POST", x.gateway+"/v1/chat/completions",
					strings.NewReader(fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":"hi"}]}`, c.model, c.stream)))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+x.key)
				req.Header.Set("Content-Type", "application/json")
				status := 0
				if resp, err := http.DefaultClient.Do(req); err == nil {
					status = resp.StatusCode
					if c.reads || c.leaves {
						io.ReadFull(resp.Body, make([]byte, 8))
					}
					switch {
					case c.reads:
						left <- struct{}{}
					case c.leaves:
						cancel()
					}
					b, err := io.ReadAll(resp.Body)
					t.Logf("the client got %d %.200q %v", status, b, err)
					resp.Body.Close()
				} else {
					t.Logf("the client got %v", err)
				}
				e := <-entries
				if c.leaves {
					left <- struct{}{}
				}
				t.Logf("recorded: %s %d", e.Outcome, e.Status)
				if e.Outcome != c.want || status != 0 && e.Status != status {
					t.Errorf("the audit log has %s, status %d; want %s, status %d", e.Outcome, e.Status, c.want, status)
				}
			})
		}
	}
}

// Responses above Envoy's buffer and above the limit of a request pass whole, streamed
// or not, with their usage read, and are completed.
func TestLargeResponses(t *testing.T) {
	entries := make(chan audit.Settled, 16)
	var serve http.HandlerFunc
	ps := []provider.Provider{{Name: "one", Kind: "openai", Models: []string{"gpt-*"}}}
	x := inProcessWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serve(w, r) }), "stream", ps, func(c *extproc.Config) {
		c.Recorder, c.EndTimeout = ending{c.Recorder, entries}, 20*time.Second
	}, nil)
	for _, size := range []int{17<<20 + 1, 40 << 20} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d MiB, stream %t", size>>20, stream), func(t *testing.T) {
				text := strings.Repeat("x", 1<<20)
				var sent int
				hash := sha256.New()
				serve = func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					out := io.MultiWriter(w, hash)
					write := func(s string) {
						n, _ := io.WriteString(out, s)
						sent += n
					}
					if !stream {
						w.Header().Set("Content-Type", "application/json")
						write(`{"id":"c","object":"chat.completion","model":"gpt-1","choices":[{"index":0,"message":{"role":"assistant","content":"`)
						for sent < size {
							write(text)
						}
						write(`"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`)
						return
					}
					w.Header().Set("Content-Type", "text/event-stream")
					for sent < size {
						write(`data: {"id":"c","object":"chat.completion.chunk","model":"gpt-1","choices":[{"index":0,"delta":{"content":"` + text + `"},"finish_reason":null}]}` + "\n\n")
					}
					write(`data: {"id":"c","object":"chat.completion.chunk","model":"gpt-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}` + "\n\ndata: [DONE]\n\n")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				body := `{"model":"gpt-1","messages":[{"role":"user","content":"hi"}]}`
				if stream {
					body = `{"model":"gpt-1","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}`
				}
				req, err := http.NewRequestWithContext(ctx, "POST", x.gateway+"/v1/chat/completions", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+x.key)
				req.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				got := sha256.New()
				n, err := io.Copy(got, resp.Body)
				if err != nil || resp.StatusCode != 200 || n != int64(sent) || !bytes.Equal(got.Sum(nil), hash.Sum(nil)) {
					t.Errorf("got %d, %d bytes of %d, %v", resp.StatusCode, n, sent, err)
				}
				if e := <-entries; e.Outcome != verdict.OutcomeCompleted || e.Usage.InputTokens != 3 || e.Usage.OutputTokens != 4 || e.ResponseBytes != n {
					t.Errorf("the audit log has %s, %d tokens in, %d out, %d bytes", e.Outcome, e.Usage.InputTokens, e.Usage.OutputTokens, e.ResponseBytes)
				}
			})
		}
	}
}
