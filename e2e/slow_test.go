package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// Clients that do not read their long streams slow down the provider, and do not use
// Envoy's memory. Another client is served as before. (FAULTS P3.)
func TestSlowReaders(t *testing.T) {
	const readers, stream = 200, 50 << 20
	chunk := []byte("data: {\"choices\":[{\"delta\":{\"content\":\"" + strings.Repeat("x", 16<<10) + "\"}}]}\n\n")
	var written atomic.Int64
	provider := e2e.Record(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); !bytes.Contains(b, []byte(`"stream":true`)) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"id":"c","object":"chat.completion","choices":[]}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for sent := 0; sent < stream; sent += len(chunk) {
			n, err := w.Write(chunk)
			if written.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	up := e2e.Start(t, e2e.Config{Providers: provider.File("one", credential, "gpt-*")})
	_, slowKey := up.Key(t, up.Agent(t, `{"name":"slow","allowed_models":["gpt-*"]}`), `{"name":"one","scopes":["chat:completions"]}`)
	_, otherKey := up.Key(t, up.Agent(t, `{"name":"other","allowed_models":["gpt-*"]}`), `{"name":"two","scopes":["chat:completions"]}`)
	const body, streamed = `{"model":"gpt-4o","messages":[]}`, `{"model":"gpt-4o","messages":[],"stream":true}`
	quiet := percentile(ask(t, up.Gateway, otherKey, body, 100), 99)
	envoy, extproc := up.Child(t, "envoy"), up.Child(t, "aid extproc")
	before, beforeExtproc := rss(t, envoy), rss(t, extproc)

	conns := make([]net.Conn, readers)
	var opened sync.WaitGroup
	for i := range conns {
		opened.Go(func() {
			conn, err := net.Dial("tcp", strings.TrimPrefix(up.Gateway, "http://"))
			if err != nil {
				t.Error(err)
				return
			}
			conns[i] = conn
			_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer %s\r\n"+
				"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", slowKey, len(streamed), streamed)
			line := make([]byte, 12)
			if _, err := io.ReadFull(conn, line); err != nil || string(line[9:]) != "200" {
				t.Errorf("a reader got %q, %v", line, err)
			}
		})
	}
	opened.Wait()
	// The streams are full when the provider cannot write more.
	last := int64(-1)
	e2e.Eventually(t, 60*time.Second, func() error {
		if ask(t, up.Gateway, otherKey, body, 50); t.Failed() {
			t.Fatalf("the provider wrote %d MB, Envoy has %.0f MB, extproc %.0f MB", written.Load()>>20, rss(t, envoy), rss(t, extproc))
		}
		now := written.Load()
		defer func() { last = now }()
		if now != last {
			return fmt.Errorf("the provider still writes: %d MB", now>>20)
		}
		return nil
	})
	loaded := percentile(ask(t, up.Gateway, otherKey, body, 100), 99)
	grown, grownExtproc := rss(t, envoy)-before, rss(t, extproc)-beforeExtproc
	t.Logf("p99 of another client: %v quiet, %v loaded; the provider wrote %d of %d MB; Envoy grew by %.0f MB, extproc by %.0f MB",
		quiet, loaded, last>>20, readers*stream>>20, grown, grownExtproc)
	// Envoy buffers 256 KiB of a connection on each side, and may exceed each limit by one
	// read.
	if grown > 300 {
		t.Errorf("Envoy grew by %.0f MB", grown)
	}
	if grownExtproc > 100 {
		t.Errorf("extproc grew by %.0f MB", grownExtproc)
	}
	if last > readers*stream/2 {
		t.Errorf("the provider wrote %d MB: it is not held back", last>>20)
	}
	for _, action := range []string{"stop_accepting_requests", "reset_high_memory_stream"} {
		name := "envoy_overload_envoy_overload_actions_" + action + "_active"
		if text := up.Do(t, up.Metrics, http.MethodGet, "/metrics", "", "").Body; !bytes.Contains([]byte(text), []byte(name)) {
			t.Errorf("the metric %s, which docs/operations.md has an alert for, does not exist", name)
		} else if up.Metric(t, name) != 0 {
			t.Errorf("%s is active", action)
		}
	}
	for _, conn := range conns {
		if conn != nil {
			conn.Close()
		}
	}
}
