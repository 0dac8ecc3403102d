package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

// protocols are the two protocols of the gateway's clients.
func protocols() map[string]*http.Client {
	h1 := &http.Transport{MaxIdleConnsPerHost: 64}
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	return map[string]*http.Client{
		"http1": {Transport: h1, Timeout: 60 * time.Second},
		"http2": {Transport: h2, Timeout: 60 * time.Second},
	}
}

// send sends one chat completion with a body from the test.
func send(ctx context.Context, client *http.Client, gateway, key string, body io.Reader, length int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway+"/v1/chat/completions", body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = length
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	return client.Do(req)
}

// refusedBy fails the test unless the client got an error that did not come from the
// provider.
func refusedBy(t *testing.T, resp *http.Response, err error) {
	t.Helper()
	if err != nil {
		return // the connection broke without a response
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode < 500 {
		t.Errorf("answered %d %s", resp.StatusCode, b)
	}
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal(b, &e); err != nil || e.Error.Message == "" {
		t.Errorf("%d is not in the API's error format: %q", resp.StatusCode, b)
	}
}

// For every failure of the sidecar, on both protocols: the provider gets nothing without a
// decision, and everything it gets is in the audit log.
func TestFailClosed(t *testing.T) {
	enough := make(chan struct{})
	defer close(enough)
	provider := e2e.Record(t, e2e.Streaming(0, 20*time.Millisecond, enough))
	up := e2e.Start(t, e2e.Config{
		Providers: provider.File("openai", credential, "gpt-*"), Args: []string{"--drain", "2s", "--log-level", "info"},
	})
	agent := up.Agent(t, `{"name":"a","allowed_models":["gpt-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	streamed := strings.Replace(allowed, "{", `{"stream":true,`, 1)
	extproc := func() int {
		var pid int
		e2e.Eventually(t, 20*time.Second, func() error {
			if pid = up.Child(t, "aid extproc"); pid == 0 {
				return errors.New("no extproc")
			}
			return nil
		})
		return pid
	}
	signal := func(pid int, s syscall.Signal) {
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	live := func(n float64) {
		t.Helper()
		e2e.Eventually(t, 20*time.Second, func() error {
			if got := up.Metric(t, "aid_extproc_live_exchanges"); got < n {
				return fmt.Errorf("%v exchanges are live, want %v", got, n)
			}
			return nil
		})
	}
	active := func(n int64) {
		t.Helper()
		admin := envoy.Admin(filepath.Join(up.Home, "run", "envoy.sock"))
		e2e.Eventually(t, 20*time.Second, func() error {
			got, err := admin.ActiveRequests(t.Context())
			if err == nil && got < n {
				err = fmt.Errorf("%v requests are active in Envoy, want %v", got, n)
			}
			return err
		})
	}

	for name, client := range protocols() {
		// unseen runs f. The provider must have received nothing by then.
		unseen := func(t *testing.T, f func()) {
			t.Helper()
			up.Ready(t)
			before := len(provider.Bytes())
			f()
			if n := len(provider.Bytes()) - before; n != 0 {
				t.Errorf("%d bytes reached the provider", n)
			}
			up.Ready(t)
			if n := len(provider.Bytes()) - before; n != 0 {
				t.Errorf("%d bytes reached the provider afterwards", n)
			}
		}

		t.Run(name+"/killed while the body is on its way", func(t *testing.T) {
			unseen(t, func() {
				r, w := io.Pipe()
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					resp, err := send(t.Context(), client, up.Gateway, key, r, int64(len(allowed)))
					refusedBy(t, resp, err)
				}()
				w.Write([]byte(allowed[:20]))
				live(1)
				signal(extproc(), syscall.SIGKILL)
				w.Write([]byte(allowed[20:]))
				w.Close()
				<-answered
			})
		})

		t.Run(name+"/killed while it decides", func(t *testing.T) {
			unseen(t, func() {
				pid := extproc()
				signal(pid, syscall.SIGSTOP)
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(allowed), int64(len(allowed)))
					refusedBy(t, resp, err)
				}()
				active(1)
				signal(pid, syscall.SIGKILL)
				<-answered
			})
		})

		t.Run(name+"/killed while the answer is on its way", func(t *testing.T) {
			up.Ready(t)
			before := len(provider.Requests())
			resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(streamed), int64(len(streamed)))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v %v", resp, err)
			}
			defer resp.Body.Close()
			if _, err := resp.Body.Read(make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			signal(extproc(), syscall.SIGKILL)
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("the answer ended as if it were whole")
			}
			up.Ready(t)
			if n := len(provider.Requests()) - before; n != 1 {
				t.Errorf("the provider saw %d requests, want 1", n)
			}
			e2e.Eventually(t, 20*time.Second, func() error {
				for _, e := range record(t, up) {
					if e.RequestID == resp.Header.Get("X-Request-Id") && e.Outcome == "unknown" {
						return nil
					}
				}
				return errors.New("the record does not say that the end is unknown")
			})
		})
	}

	t.Run("killed while it decides, in every format", func(t *testing.T) {
		up.Ready(t)
		before := len(provider.Bytes())
		pid := extproc()
		signal(pid, syscall.SIGSTOP)
		var wg sync.WaitGroup
		for _, c := range formatsCalled() {
			for _, client := range protocols() {
				wg.Go(func() {
					c.refuse(t.Context(), t, client, up.Gateway, key, c.path, strings.NewReader(c.withModel()), http.StatusServiceUnavailable)
				})
			}
		}
		active(int64(2 * len(formatsCalled())))
		signal(pid, syscall.SIGKILL)
		wg.Wait()
		up.Ready(t)
		if n := len(provider.Bytes()) - before; n != 0 {
			t.Errorf("%d bytes reached the provider", n)
		}
	})

	// Both protocols wait for the same timeout.
	t.Run("hung past the timeout", func(t *testing.T) {
		up.Ready(t)
		before := len(provider.Bytes())
		pid := extproc()
		signal(pid, syscall.SIGSTOP)
		var wg sync.WaitGroup
		for name, client := range protocols() {
			wg.Go(func() {
				resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(allowed), int64(len(allowed)))
				if err == nil && resp.StatusCode != http.StatusGatewayTimeout && resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s: answered %d", name, resp.StatusCode)
				}
				refusedBy(t, resp, err)
			})
		}
		wg.Wait()
		signal(pid, syscall.SIGCONT)
		up.Ready(t)
		if n := len(provider.Bytes()) - before; n != 0 {
			t.Errorf("%d bytes reached the provider", n)
		}
	})

	t.Run("SIGTERM with live streams", func(t *testing.T) {
		n := 500
		if testing.Short() {
			n = 50
		}
		up.Ready(t)
		pid := extproc()
		streams := openStreams(t, up.Gateway, key, streamed, n)
		live(float64(n))
		before := len(provider.Requests())
		signal(pid, syscall.SIGTERM)
		e2e.Eventually(t, 10*time.Second, func() error {
			// It drains: new requests are rejected, and do not bypass it.
			resp, err := send(t.Context(), protocols()["http1"], up.Gateway, key, strings.NewReader(allowed), int64(len(allowed)))
			if err != nil {
				return nil
			}
			defer resp.Body.Close()
			if resp.StatusCode == 200 && resp.Header.Get("X-Aid-Receipt") == "" {
				t.Error("a request passed without a decision")
			}
			if resp.StatusCode < 500 {
				return fmt.Errorf("still answered %d", resp.StatusCode)
			}
			return nil
		})
		for i, s := range streams {
			if s.toEnd() == nil {
				t.Errorf("stream %d ended as if it were whole", i)
			}
		}
		up.Ready(t)
		entries := settled(t, up)
		inspected(t, entries, provider)
		cut := 0
		for _, e := range entries {
			if e.Outcome == "cut" {
				cut++
			}
		}
		if cut < n {
			t.Errorf("%d exchanges are recorded as cut, want %d", cut, n)
		}
		t.Logf("%d requests reached the provider while the sidecar drained", len(provider.Requests())-before)
	})

	t.Run("cold Envoy, control plane hung", func(t *testing.T) {
		up.Ready(t)
		before := len(provider.Bytes())
		control := up.Child(t, "aid control")
		signal(control, syscall.SIGSTOP)
		cold := up.Child(t, "envoy")
		signal(cold, syscall.SIGKILL)
		e2e.Eventually(t, 20*time.Second, func() error {
			if pid := up.Child(t, "envoy"); pid == 0 || pid == cold {
				return errors.New("Envoy is not back")
			}
			return nil
		})
		deadline := time.Now().Add(2 * time.Second)
		for time.Now().Before(deadline) {
			resp, err := send(t.Context(), protocols()["http1"], up.Gateway, key, strings.NewReader(allowed), int64(len(allowed)))
			refusedBy(t, resp, err)
		}
		signal(control, syscall.SIGCONT)
		if n := len(provider.Bytes()) - before; n != 0 {
			t.Errorf("%d bytes reached the provider", n)
		}
		up.Ready(t)
		if r := up.Chat(t, key, allowed); r.Status != 200 {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})

	entries := settled(t, up)
	inspected(t, entries, provider)
	check(t, up, entries)
	for _, counter := range []string{"failure_mode_allowed", "spurious_msgs_received", "rejected_header_mutations"} {
		r := up.Do(t, up.Metrics, http.MethodGet, "/metrics", "", "")
		for line := range strings.Lines(string(r.Body)) {
			if strings.Contains(line, counter) && strings.HasPrefix(line, "envoy") && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
				t.Errorf("must stay 0: %s", line)
			}
		}
	}
}

// stream is a streamed response over a separate connection, read with little code, since
// there are thousands of them.
type stream struct {
	conn net.Conn
	r    *bufio.Reader
	sum  atomic.Int64
}

// openStreams starts n streamed responses and returns when each has begun.
func openStreams(t *testing.T, gateway, key, body string, n int) []*stream {
	t.Helper()
	address := strings.TrimPrefix(gateway, "http://")
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: " + address + "\r\nAuthorization: Bearer " + key +
		"\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
	streams := make([]*stream, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	turn := make(chan struct{}, 64) // a limit of parallel connections, so that no accept queue overflows
	for i := range n {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			streams[i], errs[i] = openStream(address, head)
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, s := range streams {
			if s != nil {
				s.conn.Close()
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return streams
}

func openStream(address, request string) (*stream, error) {
	conn, err := net.DialTimeout("tcp", address, 20*time.Second)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, r: bufio.NewReaderSize(conn, 1024)}
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := io.WriteString(conn, request); err != nil {
		return s, err
	}
	line, err := s.r.ReadString('\n')
	if err != nil {
		return s, err
	}
	if !strings.Contains(line, " 200 ") {
		rest := make([]byte, s.r.Buffered())
		io.ReadFull(s.r, rest)
		return s, fmt.Errorf("answered %s%s", line, rest)
	}
	for { // until the first event
		line, err := s.r.ReadString('\n')
		if err != nil {
			return s, err
		}
		if strings.HasPrefix(line, "data: ") {
			return s, nil
		}
	}
}

// toEnd reads to the end and returns nil only if the response was complete.
func (s *stream) toEnd() error {
	for done := false; ; {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		s.sum.Add(1)
		switch {
		case bytes.HasPrefix(line, []byte("data: [DONE]")):
			done = true
		case done && string(line) == "0\r\n": // the last chunk
			return nil
		}
	}
}

// A sidecar without contact to the control plane for too long makes no decisions. It
// rejects unknown requests at once.
func TestStaleness(t *testing.T) {
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*"), Args: []string{"--max-staleness", "5s"}})
	agent := up.Agent(t, `{"name":"a","allowed_models":["gpt-*"]}`)
	_, known := up.Key(t, agent, `{"name":"known","scopes":["chat:completions"]}`)
	_, fresh := up.Key(t, agent, `{"name":"fresh","scopes":["chat:completions"]}`)
	if r := up.Chat(t, known, allowed); r.Status != 200 {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	control := up.Child(t, "aid control")
	if err := syscall.Kill(control, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hung := time.Now()
	if r := up.Chat(t, known, allowed); r.Status != 200 {
		t.Errorf("a known key, just after: %d %s", r.Status, r.Body)
	}
	before := len(provider.Bytes())
	if r := up.Chat(t, fresh, allowed); r.Status != 503 {
		t.Errorf("an unknown key without the control plane: %d %s", r.Status, r.Body)
	}
	if n := len(provider.Bytes()) - before; n != 0 {
		t.Errorf("%d bytes of an unknown key reached the provider", n)
	}
	e2e.Eventually(t, 30*time.Second, func() error {
		if r := up.Chat(t, known, allowed); r.Status != 503 {
			return fmt.Errorf("after %v: %d", time.Since(hung), r.Status)
		}
		return nil
	})
	if took := time.Since(hung); took < 3*time.Second {
		t.Errorf("stale after %v already", took)
	}
	before = len(provider.Bytes())
	for range 20 {
		if r := up.Chat(t, known, allowed); r.Status != 503 {
			t.Errorf("stale: %d %s", r.Status, r.Body)
		}
	}
	if n := len(provider.Bytes()) - before; n != 0 {
		t.Errorf("stale: %d bytes reached the provider", n)
	}
	if err := syscall.Kill(control, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 40*time.Second, func() error {
		for _, key := range []string{known, fresh} {
			if r := up.Chat(t, key, allowed); r.Status != 200 {
				return fmt.Errorf("%d %s", r.Status, r.Body)
			}
		}
		return nil
	})
	entries := settled(t, up)
	inspected(t, entries, provider)
	check(t, up, entries)
}

// An Envoy that never had a control plane has no listener.
func TestColdEnvoy(t *testing.T) {
	dir := envoytest.SocketDir(t)
	bootstrap, err := envoy.Bootstrap(envoy.Config{
		NodeID: "cold", XDS: envoy.Endpoint{Address: "unix:" + filepath.Join(dir, "absent.sock")},
		ExtProc: filepath.Join(dir, "extproc.sock"), Admin: filepath.Join(dir, "admin.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	e := envoytest.Start(t, envoytest.Config{Bootstrap: bootstrap, Admin: filepath.Join(dir, "admin.sock")})
	listeners, err := e.Admin.Get(t.Context(), "/listeners")
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(string(listeners)); s != "" {
		t.Errorf("it listens: %s", s)
	}
	if err := e.Admin.Live(t.Context()); err == nil {
		t.Error("it says that it is ready")
	}
}
