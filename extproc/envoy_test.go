package extproc_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// providerKey is the credential of the provider in tests. Only the provider may receive it.
const providerKey = "sk-provider-0123456789abcdef"

// world is one org with one agent, one key and one provider, behind a real
// server on an in-memory connection.
type world struct {
	t      testing.TB
	key    string
	orgKey string
	hash   identity.Presented
	clock  *clock
	record *recorder
	dir    *directory
	server *extproc.Server
	client extprocv3.ExternalProcessorClient
	logs   *lockedBuffer
}

// options change the world before it starts.
type options struct {
	agent     func(*identity.Agent)
	caller    func(*identity.Key)
	providers []provider.Provider
	policies  []string // documents
	config    func(*extproc.Config)
}

func serve(t testing.TB, o options) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{now: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)}, record: &recorder{}, logs: &lockedBuffer{}}
	seed := rand.NewChaCha8(sha256.Sum256([]byte("extproc tests")))
	key, hash, err := identity.Mint(identity.AgentKey, seed)
	if err != nil {
		t.Fatal(err)
	}
	w.key, w.hash = key, identity.PresentedKey(hash)
	if w.orgKey, _, err = identity.Mint(identity.OrgKey, seed); err != nil {
		t.Fatal(err)
	}
	caller := identity.Caller{
		Agent: identity.Agent{
			ID: "ag_support", OrgID: "org_acme", Name: "support-bot", Team: "support", Environment: "prod", Status: "active",
			AllowedModels: []string{"small", "big-*"}, Fingerprint: "sha256:feed", CreatedAt: w.clock.Now().Add(-time.Hour),
		},
		Key: identity.Key{
			ID: "key_one", Kind: identity.KindKey, OrgID: "org_acme", AgentID: "ag_support", Name: "production",
			Scopes: []string{"chat:completions", "embeddings", "responses", "models"}, CreatedAt: w.clock.Now().Add(-time.Hour),
		},
	}
	if o.agent != nil {
		o.agent(&caller.Agent)
	}
	if o.caller != nil {
		o.caller(&caller.Key)
	}
	if o.providers == nil {
		o.providers = []provider.Provider{{
			ID: "prov_one", OrgID: "org_acme", Name: "one", Kind: "openai", BaseURL: "http://127.0.0.1:1/v1",
			Models: []string{"small", "big-*", "secret-model"}, Credential: provider.NewSecret(providerKey), HasCredential: true,
		}}
	}
	for i := range o.providers {
		o.providers[i].Cluster = provider.ClusterName(o.providers[i])
	}
	reg, err := provider.NewRegistry(o.providers, policy.Matches)
	if err != nil {
		t.Fatal(err)
	}
	var ps []policy.Policy
	for i, doc := range o.policies {
		ps = append(ps, policy.Policy{ID: fmt.Sprintf("pol_%d", i+1), OrgID: "org_acme", Version: 1, Document: []byte(doc)})
	}
	bundle, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	w.dir = &directory{
		callers: map[identity.Presented]identity.Caller{w.hash: caller},
		org:     verdict.Org{ID: "org_acme", Tier: "pro", DigestKey: []byte("digest key"), Policies: bundle, Providers: reg},
	}
	c := extproc.Config{
		Directory: w.dir, Recorder: w.record, Limiter: budget.NewMemory(w.clock.Now, nil), Now: w.clock.Now, Rand: &lockedReader{r: seed},
		Log: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if o.config != nil {
		o.config(&c)
	}
	if w.server, err = extproc.New(c); err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer(grpc.MaxRecvMsgSize(32 << 20))
	extprocv3.RegisterExternalProcessorServer(g, w.server)
	go g.Serve(l) //nolint:errcheck // it ends with Stop
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
	})
	w.client = extprocv3.NewExternalProcessorClient(conn)
	return w
}

// directory is a control plane that tests can change.
type directory struct {
	mu      sync.Mutex
	callers map[identity.Presented]identity.Caller
	org     verdict.Org
	err     error // of Caller
	orgErr  error
}

// edit changes every caller; mu is held.
func (d *directory) edit(change func(*identity.Caller)) {
	for hash, c := range d.callers {
		change(&c)
		d.callers[hash] = c
	}
}

func (d *directory) Caller(_ context.Context, hash identity.Presented, _ netip.Addr) (identity.Caller, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return identity.Caller{}, d.err
	}
	c, ok := d.callers[hash]
	if !ok {
		return identity.Caller{}, fmt.Errorf("looking up a caller: %w", verdict.ErrUnknownCaller)
	}
	return c, nil
}

func (d *directory) Org(id string) (verdict.Org, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.orgErr != nil {
		return verdict.Org{}, d.orgErr
	}
	if id != d.org.ID {
		return verdict.Org{}, errors.New("no such org")
	}
	return d.org, nil
}

// recorder keeps entries in memory. fail, if set, returns for each entry whether it is
// kept, and the error of Append.
type recorder struct {
	mu      sync.Mutex
	entries []entry
	fail    func(kind string) (keep bool, err error)
	settled chan struct{} // if not nil, receives once for each completion
}

type entry struct {
	org  string
	kind string
	json string
	val  audit.Entry
}

func (r *recorder) Append(ctx context.Context, org string, e audit.Entry) (audit.Receipt, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		if keep, err := r.fail("decided"); err != nil {
			if keep {
				r.keep(org, e)
			}
			return audit.Receipt{}, err
		}
	}
	return r.keep(org, e), ctx.Err()
}

func (*recorder) Deciding(time.Time) func() { return func() {} }

func (r *recorder) Sign(_ string, receipt audit.Receipt) audit.Receipt { return receipt }

func (r *recorder) Enqueue(org string, e audit.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(org, e)
	if r.settled != nil {
		r.settled <- struct{}{}
	}
}

func (r *recorder) keep(org string, e audit.Entry) audit.Receipt {
	b := encode(e, org, "w_test")
	var k struct{ Kind string }
	if err := json.Unmarshal(b, &k); err != nil {
		panic(err)
	}
	r.entries = append(r.entries, entry{org: org, kind: k.Kind, json: string(b), val: e})
	return audit.Receipt{Writer: "w_test", Seq: uint64(len(r.entries)), Leaf: sha256.Sum256(append([]byte{0}, b...))}
}

func (r *recorder) all() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

// clock advances by a millisecond with each reading.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Millisecond)
	return c.now
}

type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(b)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// ---- Envoy's side ----

// message is a request or a response, as a test writes it.
type message struct {
	headers [][2]string // pseudo-headers included
	body    []byte
	hasBody bool
}

func (m message) get(name string) string {
	for _, h := range m.headers {
		if h[0] == name {
			return h[1]
		}
	}
	return ""
}

// outcome is the result of a play.
type outcome struct {
	upstream *message // what the provider gets; nil: nothing
	client   *message // what the client gets
	err      error    // how the stream ended; nil: cleanly
}

// play does what Envoy does with one request, by the protocol and with the processing mode
// that xds configures. answer is the provider's response, and pieces are its chunks. If
// answer is nil the provider never responds, and the client leaves.
func (w *world) play(ctx context.Context, req message, answer *message, pieces [][]byte) outcome {
	w.t.Helper()
	var out outcome
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.Process(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	ask := func(r *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
			out.err = err
			return nil
		}
		resp, err := stream.Recv()
		if err != nil {
			out.err = err
			return nil
		}
		return resp
	}
	finish := func() outcome {
		if out.err == nil {
			stream.CloseSend()
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				out.err = err
			}
		}
		return out
	}

	resp := ask(&extprocv3.ProcessingRequest{ProtocolConfig: modes(), Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: headerMap(req.headers), EndOfStream: !req.hasBody},
	}})
	if resp == nil {
		return finish()
	}
	common := resp.GetRequestHeaders().GetResponse()
	if resp.GetImmediateResponse() == nil && req.hasBody {
		if common.GetHeaderMutation() != nil || common.GetClearRouteCache() {
			w.t.Errorf("the headers were enforced before the body was judged: %v", resp)
		}
		if resp = ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
			RequestBody: &extprocv3.HttpBody{Body: req.body, EndOfStream: true},
		}}); resp == nil {
			return finish()
		}
		common = resp.GetRequestBody().GetResponse()
	}
	if i := resp.GetImmediateResponse(); i != nil {
		out.client = immediate(w.t, i)
		return finish()
	}

	up := message{headers: mutate(w.t, req.headers, common.GetHeaderMutation()), body: req.body, hasBody: req.hasBody}
	if b, ok := common.GetBodyMutation().GetMutation().(*extprocv3.BodyMutation_Body); ok {
		up.body = b.Body
		if got := up.get("content-length"); got != strconv.Itoa(len(up.body)) {
			w.t.Errorf("a changed body of %d bytes has content-length %q", len(up.body), got)
		}
	}
	if up.get("x-aid-route") == "" || !common.GetClearRouteCache() {
		// Without a decision there is no route: this is Envoy's own 503.
		out.client = &message{headers: [][2]string{{":status", "503"}}, body: []byte("no route")}
		return finish()
	}
	out.upstream = &up
	if answer == nil {
		cancel()
		_, out.err = stream.Recv()
		return out
	}

	resp = ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(answer.headers), EndOfStream: !answer.hasBody},
	}})
	if resp == nil {
		return finish()
	}
	if i := resp.GetImmediateResponse(); i != nil {
		out.client = immediate(w.t, i)
		return finish()
	}
	out.client = &message{headers: mutate(w.t, answer.headers, resp.GetResponseHeaders().GetResponse().GetHeaderMutation())}
	if !answer.hasBody {
		return finish()
	}
	whole := resp.GetModeOverride().GetResponseBodyMode() == filterv3.ProcessingMode_BUFFERED
	if whole {
		pieces = [][]byte{bytes.Join(pieces, nil)}
	}
	for i, p := range pieces {
		resp = ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
			ResponseBody: &extprocv3.HttpBody{Body: p, EndOfStream: i == len(pieces)-1},
		}})
		if resp == nil {
			return finish()
		}
		if b, ok := resp.GetResponseBody().GetResponse().GetBodyMutation().GetMutation().(*extprocv3.BodyMutation_Body); ok {
			p = b.Body
		}
		out.client.body = append(out.client.body, p...)
		switch change := resp.GetResponseBody().GetResponse().GetHeaderMutation(); {
		case whole:
			out.client.headers = mutate(w.t, out.client.headers, change)
			if got := out.client.get("content-length"); got != strconv.Itoa(len(p)) {
				w.t.Errorf("an answer of %d bytes has content-length %q", len(p), got)
			}
		case change != nil:
			w.t.Errorf("headers change that are with the client already: %v", change)
		}
	}
	return finish()
}

func modes() *extprocv3.ProtocolConfiguration {
	return &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED, ResponseBodyMode: filterv3.ProcessingMode_STREAMED}
}

func headerMap(hs [][2]string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for _, h := range hs {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])})
	}
	return m
}

func immediate(t testing.TB, i *extprocv3.ImmediateResponse) *message {
	hs := [][2]string{{":status", strconv.Itoa(int(i.GetStatus().GetCode()))}}
	return &message{headers: mutate(t, hs, i.GetHeaders()), body: i.GetBody()}
}

// mutate changes headers as Envoy does with mutation_rules of disallow_is_error: it
// removes, then sets.
func mutate(t testing.TB, hs [][2]string, m *extprocv3.HeaderMutation) [][2]string {
	t.Helper()
	hs = slices.Clone(hs)
	for _, name := range m.GetRemoveHeaders() {
		if strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, ":") || name == "host" {
			t.Errorf("Envoy would refuse to remove %s", name)
		}
		hs = slices.DeleteFunc(hs, func(h [2]string) bool { return h[0] == name })
	}
	for _, o := range m.GetSetHeaders() {
		name := o.GetHeader().GetKey()
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("%s is set with %s", name, o.GetAppendAction())
		}
		if strings.HasPrefix(name, "x-envoy-") || name == ":method" || name == ":authority" || name == ":scheme" || name == "host" {
			t.Errorf("Envoy would refuse to set %s", name)
		}
		hs = slices.DeleteFunc(hs, func(h [2]string) bool { return h[0] == name })
		hs = append(hs, [2]string{name, string(o.GetHeader().GetRawValue())})
	}
	return hs
}

// chat is an ordinary request.
func (w *world) chat(model string) message {
	return w.post("/v1/chat/completions", `{"model":"`+model+`","messages":[{"role":"user","content":"hello"}]}`)
}

func (w *world) post(path, body string) message {
	return message{
		headers: [][2]string{
			{":method", "POST"}, {":path", path}, {":authority", "gateway.test"}, {":scheme", "http"},
			{"authorization", "Bearer " + w.key}, {"content-type", "application/json"}, {"content-length", strconv.Itoa(len(body))},
			{"x-request-id", "req-1"}, {"x-forwarded-for", "198.51.100.1"}, {"x-aid-peer", "203.0.113.9"},
		},
		body: []byte(body), hasBody: true,
	}
}

// with replaces or adds headers.
func (m message) with(kv ...string) message {
	m.headers = slices.Clone(m.headers)
	for i := 0; i < len(kv); i += 2 {
		m.headers = slices.DeleteFunc(m.headers, func(h [2]string) bool { return h[0] == kv[i] })
	}
	return m.and(kv...)
}

// and adds headers beside those of the same name.
func (m message) and(kv ...string) message {
	m.headers = slices.Clone(m.headers)
	for i := 0; i < len(kv); i += 2 {
		m.headers = append(m.headers, [2]string{kv[i], kv[i+1]})
	}
	return m
}

var okBody = []byte(`{"id":"c1","object":"chat.completion","model":"small-2026","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}`)

// ok is an ordinary response in one chunk.
func ok() (*message, [][]byte) {
	return &message{headers: [][2]string{{":status", "200"}, {"content-type", "application/json"}}, hasBody: true}, [][]byte{okBody}
}

// entries waits for all exchanges to complete and returns the audit log.
func (w *world) entries() []entry {
	w.t.Helper()
	w.idle()
	return w.record.all()
}

// idle waits until every exchange has completed.
func (w *world) idle() {
	w.t.Helper()
	for deadline := time.After(10 * time.Second); w.server.Live() > 0; {
		select {
		case <-deadline:
			w.t.Fatalf("%d exchanges do not end", w.server.Live())
		case <-time.After(time.Millisecond):
		}
	}
}

func kinds(es []entry) string {
	var ks []string
	for _, e := range es {
		var f struct{ Effect, Outcome string }
		_ = json.Unmarshal([]byte(e.json), &f)
		ks = append(ks, strings.TrimPrefix(e.kind, "request.")+":"+f.Effect+f.Outcome)
	}
	return strings.Join(ks, " ")
}

func sorted(hs [][2]string) [][2]string {
	hs = slices.Clone(hs)
	slices.SortStableFunc(hs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return hs
}

var _ = maps.Keys[map[string]string]
