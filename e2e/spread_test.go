package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ai-identity/ai-identity/budget/valkeytest"
	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy"
)

var (
	spread = flag.Bool("spread", false, "run TestSpread with 20 sidecars, 1,000 streams and $10")
	lease  = flag.Bool("lease", false, "run the part of TestSpread that waits for the end of a lease, up to 30 s")
)

// spreading is an `aid up` whose sidecars share a Valkey. Further sidecars have no Envoy: a
// test is their client by gRPC.
type spreading struct {
	*e2e.Up
	valkey *valkeytest.Server
	url    string
	prices string
}

func startSpreading(t *testing.T, providers string) *spreading {
	t.Helper()
	s := &spreading{valkey: valkeytest.Start(t), prices: filepath.Join(t.TempDir(), "prices.yaml")}
	s.url = "redis://" + s.valkey.Address()
	if err := os.WriteFile(s.prices, []byte("prices:\n- {provider: ours, models: [\"*\"], input: 0, output: 50}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Up = e2e.Start(t, e2e.Config{Providers: providers, Args: []string{"--redis", s.url}, Env: []string{"AID_PRICES=" + s.prices}})
	return s
}

// alone is a sidecar without an Envoy.
type alone struct {
	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	client extprocv3.ExternalProcessorClient
	ended  chan struct{}
	status string
}

// sidecar starts a further sidecar, and returns when it is ready.
func (s *spreading) sidecar(t *testing.T) *alone {
	t.Helper()
	dir := e2e.Home(t)
	a := &alone{ended: make(chan struct{}), status: filepath.Join(dir, "status.sock")}
	socket := filepath.Join(dir, "extproc.sock")
	a.cmd = exec.Command(e2e.Binary(t), "extproc", "--listen", "unix:"+socket, "--listen-status", "unix:"+a.status, "--xds", "unix:"+filepath.Join(s.Home, "run", "xds.sock"),
		"--token-file", filepath.Join(s.Home, "secrets", "node.token"), "--segments", filepath.Join(dir, "segments"), "--redis", s.url, "--prices", s.prices, "--lame-duck", "0s")
	said := &lines{}
	a.cmd.Stderr = said
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(a.ended)
		_ = a.cmd.Wait()
	}()
	t.Cleanup(func() {
		a.kill()
		if t.Failed() {
			t.Logf("a sidecar said:\n%s", said)
		}
	})
	var err error
	if a.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.conn.Close() })
	a.client = extprocv3.NewExternalProcessorClient(a.conn)
	return a
}

func (a *alone) kill() {
	_ = a.cmd.Process.Kill()
	<-a.ended
}

// asked is a request that the test sends to a sidecar as Envoy does.
type asked struct {
	stream extprocv3.ExternalProcessor_ProcessClient
	status int // of a rejection; 0: it is to be forwarded
	code   string
	after  time.Duration // Retry-After
}

func headerMap(pairs ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return m
}

// ask sends a chat completion. more are further headers.
func (a *alone) ask(ctx context.Context, key, model string, tokens int, more ...string) (*asked, error) {
	stream, err := a.client.Process(ctx)
	if err != nil {
		return nil, err
	}
	x := &asked{stream: stream}
	body := fmt.Sprintf(`{"model":%q,"max_tokens":%d,"messages":[{"role":"user","content":"Hello"}]}`, model, tokens)
	headers := headerMap(append([]string{":method", "POST", ":path", "/v1/chat/completions", ":authority", "gateway", ":scheme", "http",
		"authorization", "Bearer " + key, "content-type", "application/json", "content-length", strconv.Itoa(len(body))}, more...)...)
	reply, err := x.send(&extprocv3.ProcessingRequest{
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED, ResponseBodyMode: filterv3.ProcessingMode_STREAMED},
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headers}},
	})
	if err == nil && reply.GetImmediateResponse() == nil {
		reply, err = x.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true}}})
	}
	if err != nil {
		return nil, err
	}
	if i := reply.GetImmediateResponse(); i != nil {
		x.status = int(i.GetStatus().GetCode())
		var e struct{ Error struct{ Code string } }
		if err := json.Unmarshal(i.GetBody(), &e); err != nil {
			return nil, fmt.Errorf("%w: %s", err, i.GetBody())
		}
		x.code = e.Error.Code
		for _, h := range i.GetHeaders().GetSetHeaders() {
			if strings.EqualFold(h.GetHeader().GetKey(), "retry-after") {
				n, _ := strconv.Atoi(string(h.GetHeader().GetRawValue()))
				x.after = time.Duration(n) * time.Second
			}
		}
		_ = stream.CloseSend()
		return x, nil
	}
	for _, h := range reply.GetRequestBody().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == envoy.HeaderRoute {
			return x, nil
		}
	}
	return nil, fmt.Errorf("a reply without a route: %v", reply)
}

func (x *asked) send(m *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	if err := x.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return x.stream.Recv()
}

// answer ends a forwarded request with the provider's response.
func (x *asked) answer(tokens int) error {
	if _, err := x.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(":status", "200", "content-type", "application/json")}}}); err != nil {
		return err
	}
	body := fmt.Sprintf(`{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":%d}}`, tokens)
	if _, err := x.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true}}}); err != nil {
		return err
	}
	if err := x.stream.CloseSend(); err != nil {
		return err
	}
	if _, err := x.stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the end: %w", err)
	}
	return nil
}

// org is the id of the org.
func (s *spreading) org(t *testing.T) string {
	t.Helper()
	var me struct {
		OrgID string `json:"org_id"`
	}
	s.Manage(t, http.MethodGet, "/v1/me", "", http.StatusOK, &me)
	return me.OrgID
}

// counted is what the store has of a cap of a policy in this month, in nano-dollars.
func (s *spreading) counted(org, policy string) (charged, reserved int64, err error) {
	key := "aid:{" + org + "}:usd:policy:" + policy + ":monthly_usd_cap:policy:@" + time.Now().UTC().Format("2006-01")
	text, err := s.valkey.Send(`EVAL "return (redis.call('HGET', KEYS[1], 'charged') or '0') .. '-' .. (redis.call('HGET', KEYS[1], 'reserved') or '0')" 1 ` + key)
	if err != nil {
		return 0, 0, err
	}
	a, b, _ := strings.Cut(text, "-")
	charged, err = strconv.ParseInt(a, 10, 64)
	reserved, err2 := strconv.ParseInt(b, 10, 64)
	return charged, reserved, errors.Join(err, err2)
}

// asksUntil asks until a request gets a status, and returns the last one.
func asksUntil(t *testing.T, a *alone, key, model string, tokens, status int, code string) *asked {
	t.Helper()
	var x *asked
	e2e.Eventually(t, 60*time.Second, func() (err error) {
		if x, err = a.ask(t.Context(), key, model, tokens); err != nil {
			return err
		}
		if x.status == status && strings.Contains(x.code, code) {
			return nil
		}
		if x.status == 0 {
			t.Fatalf("%s with %d tokens passes, want %d %s", model, tokens, status, code)
		}
		return fmt.Errorf("%d %s", x.status, x.code)
	})
	return x
}

// TestSpread is $02: sidecars that are processes of their own share a cap in a Valkey. They get
// all streams at one barrier, by gRPC and without Envoys.
//
//	go test ./e2e -run TestSpread -spread -lease -v
func TestSpread(t *testing.T) {
	const each = 50_000_000 // nano-dollars that a request may cost
	sidecars, streams, usd := 3, 60, 1
	if *spread {
		sidecars, streams, usd = 20, 1000, 10
	}
	most := int64(usd) * 1_000_000_000
	provider := e2e.Record(t, nil)
	s := startSpreading(t, provider.File("ours", credential, "*"))
	org := s.org(t)
	agent := s.Agent(t, `{"name":"spender","allowed_models":["*"]}`)
	var keys []string
	for i := range 4 {
		_, key := s.Key(t, agent, fmt.Sprintf(`{"name":"k%d","scopes":["*"]}`, i))
		keys = append(keys, key)
	}
	policies := map[string]string{}
	for _, model := range []string{"same", "tenth", "killed"} {
		var p struct{ ID string }
		s.Manage(t, http.MethodPost, "/v1/policies", fmt.Sprintf(`{"name":%q,"effect":"allow","conditions":{"request.model":%q},"limits":{"monthly_usd_cap":%d}}`, model, model, usd), 201, &p)
		policies[model] = p.ID
	}
	all := make([]*alone, sidecars)
	for i := range all {
		all[i] = s.sidecar(t)
	}
	for _, a := range all {
		for _, model := range []string{"same", "tenth"} {
			asksUntil(t, a, keys[0], model, 2_000_000, 429, "budget_too_large") // it has the policies and has joined
		}
	}

	// run sends requests from all streams until the cap is spent. Each charges a number of tokens.
	run := func(model string, tokens int) (passed int64) {
		t.Helper()
		barrier, done := make(chan struct{}), make(chan struct{})
		var wg, watch sync.WaitGroup
		var n, held atomic.Int64
		for i := range streams {
			wg.Go(func() {
				<-barrier
				for {
					x, err := all[i%sidecars].ask(t.Context(), keys[i%len(keys)], model, 1000)
					switch {
					case err != nil:
						t.Error(err)
						return
					case x.status == 0:
						n.Add(1)
						if err := x.answer(tokens); err != nil {
							t.Error(err)
							return
						}
					case x.after > 0: // it follows Retry-After
						held.Add(1)
						time.Sleep(x.after)
					case x.code == "insufficient_quota" || x.code == "budget_too_large":
						return
					default:
						t.Errorf("%d %s", x.status, x.code)
						return
					}
				}
			})
		}
		var looks int
		watch.Go(func() { // at no instant more than the cap
			for {
				select {
				case <-done:
					return
				default:
				}
				charged, reserved, err := s.counted(org, policies[model])
				if looks++; err != nil || charged+reserved > most {
					t.Errorf("at one instant %d are charged and %d reserved: %v", charged, reserved, err)
					return
				}
			}
		})
		began := time.Now()
		close(barrier)
		wg.Wait()
		close(done)
		watch.Wait()
		t.Logf("%s: %d passed in %v, %d waited; the store was looked at %d times", model, n.Load(), time.Since(began), held.Load(), looks)
		return n.Load()
	}
	if n := run("same", 1000); n != most/each {
		t.Errorf("%d passed, want %d", n, most/each)
	}
	run("tenth", 100)
	for model, want := range map[string]int64{"same": most, "tenth": most * 95 / 100} {
		var charged int64
		e2e.Eventually(t, 20*time.Second, func() (err error) {
			var reserved int64
			if charged, reserved, err = s.counted(org, policies[model]); err == nil && reserved != 0 {
				err = fmt.Errorf("at rest %d are reserved", reserved)
			}
			return err
		})
		if charged < want || charged > most {
			t.Errorf("%s: %d of %d are charged, want at least %d", model, charged, most, want)
		}
		t.Logf("%s: %d of %d nano-dollars are charged", model, charged, most)
	}
	t.Run("sessions", func(t *testing.T) {
		sessionLimits(t, s.Up, keys[0], 0.008, func(model, session string) string {
			x, err := all[0].ask(t.Context(), keys[0], model, 100, "x-session-id", session)
			switch {
			case err != nil:
				return err.Error()
			case x.status != 0:
				return x.code
			}
			if err := x.answer(9); err != nil {
				return err.Error()
			}
			return "200"
		})
	})
	// A raise holds on each sidecar, also where the cap was spent before.
	s.Manage(t, http.MethodPost, "/v1/limits/raises", fmt.Sprintf(`{"policy_id":%q,"limit":"monthly_usd_cap","add_usd":0.05,"reason":"the month is long"}`, policies["same"]), 201, nil)
	e2e.Eventually(t, 20*time.Second, func() error {
		got := s.Chat(t, keys[0], `{"model":"same","max_tokens":500,"messages":[{"role":"user","content":"Hello"}]}`)
		if got.Status != 200 {
			return fmt.Errorf("%d %s", got.Status, got.Body)
		}
		return nil
	})
	e2e.Eventually(t, 20*time.Second, func() error {
		x, err := all[1].ask(t.Context(), keys[0], "same", 900)
		if err != nil {
			return err
		}
		if x.status != 0 {
			return fmt.Errorf("%d %s", x.status, x.code)
		}
		return x.answer(900)
	})
	asksUntil(t, all[1], keys[0], "same", 1000, 429, "budget_too_large")
	if *lease {
		t.Run("lease", func(t *testing.T) { s.lost(t, all, keys[0], org, policies["killed"], most) })
	}
}

// lost: the store loses its state while a sidecar is killed that has open decisions. The cap
// rejects until the lease of that sidecar has ended, at most 30 s. Then its open decisions count
// in full.
func (s *spreading) lost(t *testing.T, all []*alone, key, org, policy string, most int64) {
	const open, each, perToken = 3, 50_000_000, 50_000
	dies, lives := all[0], all[1]
	asksUntil(t, dies, key, "killed", 2_000_000, 429, "budget_too_large")
	asksUntil(t, lives, key, "killed", 2_000_000, 429, "budget_too_large")
	for range open {
		if x, err := dies.ask(t.Context(), key, "killed", 1000); err != nil || x.status != 0 {
			t.Fatal(x, err)
		}
	}
	e2e.Eventually(t, 3*time.Minute, func() error { // the audit log has the decisions, after all before them
		n := 0
		all, err := readRecord(s.Up)
		for _, e := range all {
			if e.Kind == "request.decided" && strings.Contains(string(e.Raw), `"model":"killed"`) && strings.Contains(string(e.Raw), `"effect":"allow"`) {
				n++
			}
		}
		if err != nil {
			return err
		}
		if n != open {
			return fmt.Errorf("%d of %d decisions are recorded", n, open)
		}
		return nil
	})
	dies.kill()
	s.valkey.Do("FLUSHALL")
	began := time.Now()
	x, err := lives.ask(t.Context(), key, "killed", 1000)
	for ; err == nil && x.status != 503 && time.Since(began) < 2*time.Second; x, err = lives.ask(t.Context(), key, "killed", 1000) {
		if x.status == 0 { // the loss is noticed with the next heartbeat
			if err := x.answer(0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err != nil || x.status != 503 || x.code != "budget_unavailable" {
		t.Fatalf("while not all have joined: %+v %v", x, err)
	}
	asksUntil(t, lives, key, "killed", int((most-open*each)/perToken)+1, 429, "budget_too_large")
	took := time.Since(began)
	if x, err := lives.ask(t.Context(), key, "killed", int((most-open*each)/perToken)); err != nil || x.status != 0 {
		t.Errorf("what is left does not pass: %+v %v", x, err)
	}
	if took > 40*time.Second { // 30 s, and a slow machine
		t.Errorf("the cap rejected for %v", took)
	}
	charged, reserved, err := s.counted(org, policy)
	t.Logf("the cap rejected for %v; the store has %d charged and %d reserved: %v", took, charged, reserved, err)
}
