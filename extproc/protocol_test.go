package extproc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// The messages that a faulty or hostile Envoy may send, by letter.
func (w *world) messageOf(letter byte) *extprocv3.ProcessingRequest {
	req := w.chat("small")
	headers := func(eos bool) *extprocv3.ProcessingRequest {
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
			RequestHeaders: &extprocv3.HttpHeaders{Headers: headerMap(req.headers), EndOfStream: eos}}}
	}
	body := func(b string, eos bool) *extprocv3.ProcessingRequest {
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
			RequestBody: &extprocv3.HttpBody{Body: []byte(b), EndOfStream: eos}}}
	}
	answer := func(status string, eos bool) *extprocv3.ProcessingRequest {
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
			ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap([][2]string{{":status", status}, {"content-type", "application/json"}}), EndOfStream: eos}}}
	}
	piece := func(b string, eos bool) *extprocv3.ProcessingRequest {
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
			ResponseBody: &extprocv3.HttpBody{Body: []byte(b), EndOfStream: eos}}}
	}
	switch letter {
	case 'h':
		m := headers(false)
		m.ProtocolConfig = modes()
		return m
	case 'H':
		return headers(true)
	case 'g':
		return headers(false) // of an Envoy that does not declare its modes
	case 'o':
		m := headers(false)
		m.ProtocolConfig = modes()
		m.ObservabilityMode = true
		return m
	case 's':
		m := headers(false)
		m.ProtocolConfig = modes()
		m.ProtocolConfig.RequestBodyMode = 1 // STREAMED
		return m
	case 'b':
		return body(string(req.body), true)
	case 'B':
		return body(string(req.body), false)
	case 'e':
		return body("", true)
	case 't':
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
	case 'r':
		return answer("200", false)
	case 'R':
		return answer("204", true)
	case '5':
		return answer("503", false)
	case 'p':
		return piece(string(okBody[:50]), false)
	case 'P':
		return piece(string(okBody[50:]), true)
	case 'T':
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}}
	case 'n':
		return &extprocv3.ProcessingRequest{}
	case 'z':
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{}}
	}
	return nil
}

// converse sends the messages of word in order, as long as they get replies. It returns
// whether the request was allowed, and how the stream ended.
func (w *world) converse(ctx context.Context, word string) (allowed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.Process(ctx)
	if err != nil {
		return false, err
	}
	for i := range len(word) {
		m := w.messageOf(word[i])
		if m == nil {
			continue
		}
		if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
			return allowed, err
		}
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return allowed, nil // closed cleanly, before the end
		}
		if err != nil {
			return allowed, err
		}
		for _, c := range []*extprocv3.CommonResponse{resp.GetRequestHeaders().GetResponse(), resp.GetRequestBody().GetResponse()} {
			for _, h := range c.GetHeaderMutation().GetSetHeaders() {
				if h.GetHeader().GetKey() == "x-aid-route" {
					allowed = true
				}
			}
			if c.GetClearRouteCache() && !allowed {
				w.t.Errorf("%s: the route was cleared without a decision", word)
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		return allowed, err
	}
	_, err = stream.Recv()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return allowed, err
}

// TestOrder has for each order of messages whether the request may be allowed, and whether
// the stream may end cleanly.
func TestOrder(t *testing.T) {
	const clean, unclean = true, false
	for _, c := range []struct {
		word    string
		allowed bool
		clean   bool
		record  string
	}{
		{"", false, unclean, ""},
		{"h", false, unclean, "decided:deny settled:client_closed"},
		{"hb", true, unclean, "decided:allow settled:client_closed"},
		{"gb", true, unclean, "decided:allow settled:unknown"}, // Envoy sends only the usage of the response, and closes when it is over
		{"hbr", true, unclean, "decided:allow settled:broken_off"},
		{"hbrp", true, unclean, "decided:allow settled:broken_off"},
		{"hbrpP", true, clean, "decided:allow settled:completed"},
		{"hbrpT", true, clean, "decided:allow settled:broken_off"}, // half of its JSON
		{"hbR", true, clean, "decided:allow settled:completed"},
		{"hbtrpP", true, clean, "decided:allow settled:completed"},
		{"hbrpPP", true, clean, "decided:allow settled:completed"},
		{"hb5P", true, clean, "decided:allow settled:provider_error"},

		{"hB", false, clean, "decided:deny settled:refused"},  // whole, with trailers
		{"gB", false, unclean, "decided:deny settled:failed"}, // one chunk
		{"he", false, clean, "decided:deny settled:refused"},
		{"H", false, clean, "decided:deny settled:refused"}, // POST without a body

		{"b", false, unclean, ""},
		{"t", false, unclean, ""},
		{"p", false, unclean, ""},
		{"T", false, unclean, ""},
		{"n", false, unclean, ""},
		{"z", false, clean, ""}, // headers without headers: 401
		{"o", false, unclean, ""},
		{"s", false, unclean, ""},
		{"hh", false, unclean, "decided:deny settled:failed"},
		{"ht", false, unclean, "decided:deny settled:failed"},
		{"hp", false, unclean, "decided:deny settled:failed"},
		{"hn", false, unclean, "decided:deny settled:failed"},
		{"hbb", true, unclean, "decided:allow settled:failed"},
		{"hbh", true, unclean, "decided:allow settled:failed"},
		{"hbp", true, unclean, "decided:allow settled:failed"},
		{"hbrr", true, unclean, "decided:allow settled:failed"},
		{"hbrb", true, unclean, "decided:allow settled:failed"},
		{"hbrpPb", true, unclean, "decided:allow settled:completed"},

		// Envoy answers before the decision: 413, or a failed upgrade. Nothing follows.
		{"h5P", false, unclean, "decided:deny settled:refused"},
		{"h5Pb", false, unclean, "decided:deny settled:refused"},
		{"5P", false, unclean, ""},
		{"5Ph", false, unclean, ""},
		{"rhb", false, unclean, ""},
	} {
		w := serve(t, options{config: func(c *extproc.Config) { c.Pricer = flat{} }})
		allowed, err := w.converse(context.Background(), c.word)
		if allowed != c.allowed {
			t.Errorf("%q: allowed is %v", c.word, allowed)
		}
		if (err == nil) != c.clean {
			t.Errorf("%q: ended with %v", c.word, err)
		}
		if got := kinds(w.entries()); got != c.record {
			t.Errorf("%q: record is %q, want %q", c.word, got, c.record)
		}
		// A response that broke off has a cost, which is not known.
		for _, e := range w.entries() {
			if got, want := strings.Contains(e.json, `"priced":true`), strings.Contains(e.json, `"outcome":"completed"`); got != want {
				t.Errorf("%q: %s", c.word, e.json)
			}
		}
	}
}

// flat has one price for everything.
type flat struct{}

func (flat) Worst(provider.Provider, string, provider.Bound, time.Time) (int64, string) { return 9, "" }
func (flat) MaxOutput(provider.Provider, string, time.Time) int64                       { return 0 }
func (flat) Lists(string) bool                                                          { return false }
func (flat) Version() string                                                            { return "flat" }

func (flat) Cost(provider.Provider, string, string, provider.Usage, time.Time) (int64, bool) {
	return 7, true
}

// FuzzOrder sends messages in any order. A request is allowed only after a recorded
// decision to allow it. Each decision has one completion entry, and nothing panics.
func FuzzOrder(f *testing.F) {
	for _, s := range []string{"hbrpP", "Hb", "hB", "rhb", "hbrb", "hhbb", "h5Pb", "zb", "hbTP", "gbr", "ohb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if len(word) > 12 {
			return
		}
		w := serve(t, options{})
		allowed, err := w.converse(context.Background(), word)
		record := kinds(w.entries())
		if allowed && !strings.Contains(record, "decided:allow") {
			t.Errorf("%q: let through without a record: %q", word, record)
		}
		if !strings.Contains("|decided:deny settled:client_closed|decided:deny settled:failed|decided:deny settled:refused"+
			"|decided:allow settled:client_closed|decided:allow settled:failed|decided:allow settled:completed|decided:allow settled:provider_error|decided:allow settled:broken_off|"+
			"|", "|"+record+"|") {
			t.Errorf("%q: record is %q", word, record)
		}
		if err == nil && record == "" && !strings.Contains(word, "z") && strings.ContainsAny(word, "hHgosbBetrR5pPTn") {
			t.Errorf("%q: the stream ended cleanly without a verdict", word)
		}
		if log := w.logs.String(); strings.Contains(log, "panicked") {
			t.Errorf("%q: %s", word, log)
		}
	})
}

// TestFaults breaks the handler at each phase in each way. Before the decision nothing is
// allowed, and only the deliberate clean close is clean. Each decision has exactly one
// completion entry.
func TestFaults(t *testing.T) {
	for _, phase := range extproc.Phases() {
		for _, what := range []string{"panics", "returns an error", "closes the stream"} {
			t.Run(phase+" "+what, func(t *testing.T) {
				w := serve(t, options{config: func(c *extproc.Config) { extproc.SetFault(c, faultOf(phase+" "+what)) }})
				allowed, err := w.converse(context.Background(), "hbtrpP")
				record := kinds(w.entries())
				switch phase {
				case "headers", "identify", "body", "parse", "decide", "record", "enforce":
					if allowed {
						t.Error("let through")
					}
				}
				if (what == "closes the stream") != (err == nil) && phase != "settle" {
					t.Errorf("ended with %v", err)
				}
				if n, m := strings.Count(record, "decided"), strings.Count(record, "settled"); n != m || n > 1 || allowed && n != 1 {
					t.Errorf("record is %q", record)
				}
				if strings.Contains(w.logs.String(), "a prompt, perhaps") {
					t.Error("the panic's value is in the log")
				}
			})
		}
	}
}

// TestRecordFirst blocks the recorder: nothing may be sent before it returns.
func TestRecordFirst(t *testing.T) {
	for _, word := range []string{"hb", "he"} { // allowed, and rejected
		w := serve(t, options{})
		entered, release := make(chan struct{}), make(chan struct{})
		w.record.fail = func(string) (bool, error) {
			close(entered)
			<-release
			return false, nil
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			stream, err := w.client.Process(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			for i := range len(word) {
				if err := stream.Send(w.messageOf(word[i])); err != nil {
					t.Error(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Error(err)
				}
			}
			_ = stream.CloseSend()
			_, _ = stream.Recv()
		}()
		<-entered
		select {
		case <-done:
			t.Errorf("%q: answered before the record", word)
		case <-time.After(20 * time.Millisecond):
		}
		close(release)
		<-done
		w.idle()
	}
}

// TestCurrentPermissionsDecide removes permissions of an agent between a request's headers and
// its body. The permissions at the time of the decision count.
func TestCurrentPermissionsDecide(t *testing.T) {
	for name, c := range map[string]struct {
		change func(d *directory)
		code   string
	}{
		"nothing":             {func(*directory) {}, ""},
		"the agent's models":  {func(d *directory) { d.edit(func(c *identity.Caller) { c.Agent.AllowedModels = []string{"other"} }) }, "model_not_allowed"},
		"the key's scopes":    {func(d *directory) { d.edit(func(c *identity.Caller) { c.Key.Scopes = []string{"embeddings"} }) }, "scope_missing"},
		"the org's providers": {func(d *directory) { d.org.Providers, _ = provider.NewRegistry(nil, policy.Matches) }, "model_not_found"},
		"the key":             {func(d *directory) { d.err = verdict.ErrUnknownCaller }, "invalid_api_key"},
		"all that is known":   {func(d *directory) { d.orgErr = errors.New("stale") }, "policy_unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			w := serve(t, options{})
			stream, err := w.client.Process(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			ask := func(letter byte) *extprocv3.ProcessingResponse {
				if err := stream.Send(w.messageOf(letter)); err != nil {
					t.Fatal(err)
				}
				resp, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				return resp
			}
			ask('h')
			w.dir.mu.Lock()
			c.change(w.dir)
			w.dir.mu.Unlock()
			refused := ask('b').GetImmediateResponse()
			if (refused == nil) != (c.code == "") || refused != nil && !strings.Contains(string(refused.GetBody()), `"code":"`+c.code+`"`) {
				t.Errorf("answered %s, want %q", refused.GetBody(), c.code)
			}
			_ = stream.CloseSend()
			_, _ = stream.Recv()
			w.idle()
			if got := kinds(w.entries()); !strings.HasPrefix(got, "decided:") {
				t.Errorf("recorded: %s", got)
			}
		})
	}
}

// TestRecordInDoubt stops waiting for a decision entry before it is known to be on disk.
// The request is rejected. If the entry is there, its completion entry is too.
func TestRecordInDoubt(t *testing.T) {
	w := serve(t, options{config: func(c *extproc.Config) { c.RecordTimeout = time.Nanosecond }})
	answer, pieces := ok()
	out := w.play(context.Background(), w.chat("small"), answer, pieces)
	if out.client == nil || out.client.get(":status") != "503" || out.upstream != nil {
		t.Errorf("client %+v, upstream %+v", out.client, out.upstream)
	}
	es := w.entries()
	if len(es) != 2 {
		t.Fatalf("%s", kinds(es))
	}
	if s, is := es[1].val.(audit.Settled); !is || s.Outcome != "refused" || s.Status != 503 {
		t.Errorf("settled as %+v, and nothing was forwarded", es[1].val)
	}
}

// TestCut revokes a key in the middle of a response.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *world, c identity.Caller)
		cut    bool
	}{
		{"revoked", func(w *world, c identity.Caller) {
			c.Key.RevokedAt = w.clock.Now()
			w.server.CallerChanged(w.hash, c, true)
		}, true},
		{"suspended", func(w *world, c identity.Caller) {
			c.Agent.Status = "suspended"
			w.server.CallerChanged(w.hash, c, true)
		}, true},
		{"removed", func(w *world, c identity.Caller) { w.server.CallerChanged(w.hash, identity.Caller{}, false) }, true},
		{"renamed", func(w *world, c identity.Caller) {
			c.Agent.Name = "other"
			w.server.CallerChanged(w.hash, c, true)
		}, false},
		{"another key", func(w *world, c identity.Caller) {
			w.server.CallerChanged(identity.PresentedKey([32]byte{1}), identity.Caller{}, false)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := serve(t, options{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			stream, err := w.client.Process(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range []byte("hbrp") {
				if err := stream.Send(w.messageOf(l)); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			if !w.server.InUse(w.hash) || w.server.InUse(identity.PresentedKey([32]byte{1})) {
				t.Error("it does not know which keys are in use")
			}
			c.change(w, w.dir.callers[w.hash])
			if !c.cut {
				if err := stream.Send(w.messageOf('P')); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
				_ = stream.CloseSend()
				if got := kinds(w.entries()); got != "decided:allow settled:completed" {
					t.Error(got)
				}
				return
			}
			if _, err := stream.Recv(); status.Code(err) != codes.Aborted {
				t.Errorf("stream ended with %v", err)
			}
			if got := kinds(w.entries()); got != "decided:allow settled:cut" {
				t.Error(got)
			}
		})
	}
}

// TestCutBeforeVerdict revokes a key while its request is decided. The cut is checked once
// more after the decision is recorded.
func TestCutBeforeVerdict(t *testing.T) {
	for _, phase := range []string{"identify", "body", "parse", "decide", "record", "enforce"} {
		var w *world
		w = serve(t, options{config: func(c *extproc.Config) {
			extproc.SetFault(c, func(p string) error {
				if p == phase {
					caller := w.dir.callers[w.hash]
					caller.Key.RevokedAt = w.clock.Now()
					w.dir.mu.Lock()
					w.dir.callers[w.hash] = caller
					w.dir.mu.Unlock()
					w.server.CallerChanged(w.hash, caller, true)
				}
				return nil
			})
		}})
		if allowed, _ := w.converse(context.Background(), "hbrpP"); allowed {
			t.Errorf("%s: let through", phase)
		}
		record := kinds(w.entries())
		if !strings.HasPrefix(record, "decided:") || strings.Count(record, "settled") != 1 {
			t.Errorf("%s: record is %q", phase, record)
		}
	}
}

// TestDrain ends a server with exchanges in every state.
func TestDrain(t *testing.T) {
	w := serve(t, options{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	open := func(word string) extprocv3.ExternalProcessor_ProcessClient {
		t.Helper()
		stream, err := w.client.Process(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(word) {
			if err := stream.Send(w.messageOf(word[i])); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		return stream
	}
	finishes, stays, waits := open("hbrp"), open("hbrp"), open("h")

	deadline, expire := context.WithCancel(context.Background())
	drained := make(chan error, 1)
	go func() { drained <- w.server.Drain(deadline) }()

	// A new exchange gets 503 with Retry-After, and never a clean close without a response.
	for {
		late, err := w.client.Process(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := late.Send(w.messageOf('h')); err != nil {
			t.Fatal(err)
		}
		resp, err := late.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := resp.GetImmediateResponse()
		if got == nil {
			continue // it came before Drain began
		}
		if got.GetStatus().GetCode() != 503 || !strings.Contains(string(got.GetBody()), "shutting_down") || !strings.Contains(got.GetHeaders().String(), "retry-after") {
			t.Errorf("newcomer got %v", got)
		}
		break
	}
	// An exchange in progress is answered to its end.
	if err := finishes.Send(w.messageOf('P')); err != nil {
		t.Fatal(err)
	}
	if _, err := finishes.Recv(); err != nil {
		t.Fatal(err)
	}
	_ = finishes.CloseSend()
	if _, err := finishes.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("finished with %v", err)
	}
	expire()
	if err := <-drained; err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("Drain returned %v", err)
	}
	if _, err := stays.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("cut with %v", err)
	}
	// An exchange that waits for its body is answered, since none of it was forwarded.
	resp, err := waits.Recv()
	if got := resp.GetImmediateResponse(); err != nil || got.GetStatus().GetCode() != 503 || !strings.Contains(string(got.GetBody()), "shutting_down") {
		t.Errorf("the one that waits got %v, %v", resp, err)
	}
	record := kinds(w.entries())
	for _, want := range []string{"settled:completed", "settled:cut"} {
		if !strings.Contains(record, want) {
			t.Errorf("no %s in %s", want, record)
		}
	}
	if strings.Count(record, "decided") != strings.Count(record, "settled") {
		t.Errorf("not all settled: %s", record)
	}
}

// TestFull rejects the exchange above the limit.
func TestFull(t *testing.T) {
	w := serve(t, options{config: func(c *extproc.Config) { c.MaxStreams = 1 }})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	first, err := w.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Send(w.messageOf('h')); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Recv(); err != nil {
		t.Fatal(err)
	}
	second, err := w.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Send(w.messageOf('h')); err != nil {
		t.Fatal(err)
	}
	resp, err := second.Recv()
	if got := resp.GetImmediateResponse(); err != nil || got.GetStatus().GetCode() != 503 || !strings.Contains(string(got.GetBody()), "gateway_overloaded") {
		t.Errorf("the second got %v, %v", resp, err)
	}
}

// TestBusy lets requests wait for their turn to decide, with a time limit.
func TestBusy(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w := serve(t, options{config: func(c *extproc.Config) {
		c.MaxDeciding, c.IdentifyTimeout = 1, 30*time.Millisecond
		extproc.SetFault(c, func(phase string) error {
			if phase == "decide" {
				once.Do(func() { close(entered); <-release })
			}
			return nil
		})
	}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if allowed, _ := w.converse(context.Background(), "hb"); !allowed {
			t.Error("the first was not let through")
		}
	}()
	<-entered
	answer, pieces := ok()
	if out := w.play(context.Background(), w.chat("small"), answer, pieces); out.client.get(":status") != "503" || out.upstream != nil {
		t.Errorf("the second got %+v", out)
	}
	close(release)
	<-done
}

// TestCanary: only a registered nonce gets 204.
func TestCanary(t *testing.T) {
	w := serve(t, options{})
	nonce, seen, forget, err := w.server.Canary()
	if err != nil {
		t.Fatal(err)
	}
	req := message{headers: [][2]string{{":method", "GET"}, {":path", "/v1/models"}, {"x-aid-canary", "0" + nonce[1:]}}}
	if out := w.play(context.Background(), req, nil, nil); out.client.get(":status") != "401" {
		t.Errorf("a wrong nonce got %+v", out.client)
	}
	req = req.with("x-aid-canary", nonce)
	out := w.play(context.Background(), req, nil, nil)
	if out.client.get(":status") != "204" || out.client.get("x-aid-canary") != nonce || out.err != nil {
		t.Errorf("the nonce got %+v", out)
	}
	select {
	case <-seen:
	default:
		t.Error("not seen")
	}
	forget()
	if out := w.play(context.Background(), req, nil, nil); out.client.get(":status") != "401" {
		t.Errorf("a forgotten nonce got %+v", out.client)
	}
	if es := w.entries(); len(es) != 0 {
		t.Errorf("canaries are in the record: %v", es)
	}
}

// TestClientGone closes the connection at every step. The audit log is always complete.
func TestClientGone(t *testing.T) {
	for _, word := range []string{"h", "hb", "hbr", "hbrp"} {
		w := serve(t, options{})
		ctx, cancel := context.WithCancel(context.Background())
		stream, err := w.client.Process(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(word) {
			if err := stream.Send(w.messageOf(word[i])); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		// After a response has begun, Envoy does not report which side closed the
		// connection.
		want := "settled:client_closed"
		if strings.Contains(word, "r") {
			want = "settled:broken_off"
		}
		if record := kinds(w.entries()); !strings.HasSuffix(record, want) || strings.Count(record, "decided") != 1 {
			t.Errorf("%s: record is %q", word, record)
		}
	}
}

// asking is a chat request for a response, streamed or not.
func asking(stream bool) *extprocv3.ProcessingRequest {
	body := fmt.Sprintf(`{"model":"small","stream":%t,"messages":[{"role":"user","content":"hello"}]}`, stream)
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true}}}
}

// TestTranslatedTrailers: a translated response ends with its body. If a translation has
// output left when trailers come, the response is cut, so that it does not look complete.
// Trailers pass the same filter as headers.
func TestTranslatedTrailers(t *testing.T) {
	const gemini = `data: {"candidates":[{"content":{"parts":[{"text":"hi"}]},"finishReason":"STOP","index":0}]}` + "\n\n"
	const anthropic = `{"id":"m","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}`
	for _, c := range []struct {
		kind, contentType, body string
		messages                string // after the headers: p a chunk, t trailers
		fails                   bool
	}{
		{"gemini", "text/event-stream", gemini, "pt", true},
		{"anthropic", "application/json", anthropic, "pt", false},
		{"anthropic", "application/json", anthropic, "pp", true},
		{"anthropic", "application/json", anthropic, "t", true},
	} {
		p := provider.Provider{ID: "prov_two", OrgID: "org_acme", Name: "two", Kind: c.kind, BaseURL: "http://127.0.0.1:1", Models: []string{"*"},
			Credential: provider.NewSecret(providerKey), HasCredential: true}
		w := serve(t, options{providers: []provider.Provider{p}})
		stream, err := w.client.Process(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ask := func(m *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
			return stream.Recv()
		}
		for _, m := range []*extprocv3.ProcessingRequest{w.messageOf('h'), asking(strings.HasPrefix(c.contentType, "text/event-stream"))} {
			if _, err := ask(m); err != nil {
				t.Fatal(err)
			}
		}
		if _, err = ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
			Headers: headerMap([][2]string{{":status", "200"}, {"content-type", c.contentType}})}}}); err != nil {
			t.Fatal(err)
		}
		var resp *extprocv3.ProcessingResponse
		for i, letter := range c.messages {
			m := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte(c.body)}}}
			if letter == 't' {
				m = &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{
					Trailers: headerMap([][2]string{{"x-after", "1"}, {"set-cookie", "a=b"}})}}}
			}
			if resp, err = ask(m); err != nil && i < len(c.messages)-1 {
				t.Fatal(err)
			}
		}
		if (err != nil) != c.fails {
			t.Errorf("%s %s: %v", c.kind, c.messages, err)
		}
		if !c.fails && !slices.Equal(resp.GetResponseTrailers().GetHeaderMutation().GetRemoveHeaders(), []string{"x-after", "set-cookie"}) {
			t.Errorf("%s %s: %v", c.kind, c.messages, resp)
		}
	}
}

// TestTranslatedClientGone: a client closes its connection in the middle of a translated
// stream. The completion entry has the usage that the provider had sent.
func TestTranslatedClientGone(t *testing.T) {
	p := provider.Provider{ID: "prov_two", OrgID: "org_acme", Name: "two", Kind: "anthropic", BaseURL: "http://127.0.0.1:1", Models: []string{"*"},
		Credential: provider.NewSecret(providerKey), HasCredential: true}
	w := serve(t, options{providers: []provider.Provider{p}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := w.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*extprocv3.ProcessingRequest{
		w.messageOf('h'), asking(true),
		{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
			Headers: headerMap([][2]string{{":status", "200"}, {"content-type", "text/event-stream"}})}}},
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{
			Body: []byte(`data: {"type":"message_start","message":{"id":"m","role":"assistant","model":"m-7","usage":{"input_tokens":7,"output_tokens":1}}}` + "\n\ndata: {\"type\":\"content")}}},
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	w.idle()
	es := w.entries()
	s, ok := es[len(es)-1].val.(audit.Settled)
	if !ok || s.Outcome != "broken_off" || s.Usage.InputTokens != 7 || s.Usage.Source != "provider" || s.ResponseModel != "m-7" {
		t.Errorf("%+v", es[len(es)-1].val)
	}
}

// A request that waits for its body is rejected at once when its caller loses access. It
// does not wait for the body.
func TestWaitingIsAnswered(t *testing.T) {
	for code, change := range map[string]func(*identity.Caller){
		"key_revoked":     func(c *identity.Caller) { c.Key.RevokedAt = c.Key.CreatedAt },
		"agent_suspended": func(c *identity.Caller) { c.Agent.Status = identity.Suspended },
	} {
		t.Run(code, func(t *testing.T) {
			w := serve(t, options{})
			stream, err := w.client.Process(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(w.messageOf('h')); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			caller := w.dir.callers[w.hash]
			change(&caller)
			w.server.CallerChanged(w.hash, caller, true)
			resp, err := stream.Recv() // nothing was sent before it
			if err != nil || !strings.Contains(string(resp.GetImmediateResponse().GetBody()), code) {
				t.Fatalf("%v, %v", resp, err)
			}
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("the stream ended with %v", err)
			}
			w.idle()
			if got := kinds(w.entries()); got != "decided:deny settled:refused" {
				t.Errorf("record is %q", got)
			}
		})
	}
}

// A cut may come at the same time as a body. There is one decision and one completion, and
// a request is not allowed after its key was revoked.
func TestCutMeetsBody(t *testing.T) {
	for range 100 {
		w := serve(t, options{})
		caller := w.dir.callers[w.hash]
		caller.Key.RevokedAt = caller.Key.CreatedAt
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.server.CallerChanged(w.hash, caller, true)
		}()
		_, _ = w.converse(context.Background(), "hbrpP")
		<-done
		w.idle()
		record := kinds(w.entries())
		if strings.Count(record, "decided") != 1 || strings.Count(record, "settled") != 1 {
			t.Fatalf("record is %q", record)
		}
	}
}

// A place is reserved before its body is received, and released with the decision.
func TestWaitLimits(t *testing.T) {
	w := serve(t, options{config: func(c *extproc.Config) { c.Waiting = extproc.WaitLimits{PerKey: 2} }})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hold := func() (extprocv3.ExternalProcessor_ProcessClient, *extprocv3.ProcessingResponse) {
		stream, err := w.client.Process(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(w.messageOf('h')); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return stream, resp
	}
	first, _ := hold()
	hold()
	_, resp := hold()
	if got := resp.GetImmediateResponse(); got.GetStatus().GetCode() != 429 || !strings.Contains(string(got.GetBody()), "too_many_waiting") {
		t.Fatalf("the third got %v", resp)
	}
	if err := first.Send(w.messageOf('b')); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, resp := hold(); resp.GetImmediateResponse() != nil {
		t.Errorf("after one verdict: %v", resp)
	}
}
