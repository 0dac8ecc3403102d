package e2e_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	logv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// harness is a real Envoy, configured as the control plane configures it. Its sidecar
// runs in this process, so that a test can break it from inside.
type harness struct {
	gateway, key string
	provider     *e2e.Provider
	server       *extproc.Server
	grpc         *grpc.Server
	socket       string
	fault        atomic.Pointer[func(point string) error]
}

const inOrg = "org_test"

// inProcess starts a harness. Its sidecar is handler, or the real server if handler is nil.
func inProcess(t *testing.T, h http.Handler, config func(*extproc.Config), handler extprocv3.ExternalProcessorServer) *harness {
	t.Helper()
	return inProcessWith(t, h, "stream", []provider.Provider{{Name: "one", Kind: "openai", Models: []string{"gpt-*"}}}, config, handler)
}

// inProcessWith is inProcess with other providers, which are all served by h, and with a
// value of usage.
func inProcessWith(t *testing.T, h http.Handler, usage string, providers []provider.Provider, config func(*extproc.Config), handler extprocv3.ExternalProcessorServer) *harness {
	t.Helper()
	x := &harness{provider: e2e.Record(t, h)}
	for i := range providers {
		p := &providers[i]
		p.ID, p.OrgID, p.Credential, p.HasCredential = "prov_"+p.Name, inOrg, provider.NewSecret(credential), true
		if p.BaseURL = x.provider.URL; slices.Contains(translatedKinds, p.Kind) {
			p.BaseURL = strings.TrimSuffix(p.BaseURL, "/v1") // theirs end before the version
		}
		p.Cluster = provider.ClusterName(*p)
	}
	dir := envoytest.SocketDir(t)
	x.socket = filepath.Join(dir, "extproc.sock")
	x.gateway = startEnvoy(t, dir, x.socket, usage, providers)

	key, hash, err := identity.Mint(identity.AgentKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x.key = key
	registry, err := provider.NewRegistry(providers, policy.Matches)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := policy.Compile(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	writer, err := audit.OpenWriter(audit.WriterConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	written := make(chan error, 1)
	go func() { written <- writer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-written, writer.Close()); err != nil {
			t.Error(err)
		}
	})
	c := extproc.Config{
		Directory: oneCaller{identity.PresentedKey(hash), identity.Caller{
			Agent: identity.Agent{ID: "ag_one", OrgID: inOrg, Name: "one", Status: identity.Active, AllowedModels: []string{"*"}, Fingerprint: "sha256:feed"},
			Key:   identity.Key{ID: "key_one", Kind: identity.KindKey, OrgID: inOrg, AgentID: "ag_one", Scopes: []string{"*"}},
		}, verdict.Org{ID: inOrg, DigestKey: []byte("digest key of a test"), Policies: bundle, Providers: registry}},
		Recorder: writer, Limiter: budget.NewMemory(time.Now, nil), Log: slog.New(slog.DiscardHandler),
	}
	if config != nil {
		config(&c)
	}
	if x.server, err = extproc.New(c); err != nil {
		t.Fatal(err)
	}
	if handler == nil {
		handler = breakable{x.server, &x.fault}
	}
	l, err := net.Listen("unix", x.socket)
	if err != nil {
		t.Fatal(err)
	}
	x.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(32 << 20))
	extprocv3.RegisterExternalProcessorServer(x.grpc, handler)
	logv3.RegisterAccessLogServiceServer(x.grpc, x.server)
	served := make(chan error, 1)
	go func() { served <- x.grpc.Serve(l) }()
	t.Cleanup(func() {
		x.grpc.Stop()
		<-served
	})
	return x
}

// breakable is a sidecar that a test breaks at a point of its conversation with Envoy. That
// is when a message arrives ("got headers") or before its reply ("answers headers").
type breakable struct {
	extprocv3.ExternalProcessorServer
	fault *atomic.Pointer[func(point string) error]
}

// errCleanClose makes Process return nil. After such a clean close Envoy continues without
// ext_proc.
var errCleanClose = errors.New("close the stream cleanly")

func (b breakable) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	err := b.ExternalProcessorServer.Process(&breakableStream{ExternalProcessor_ProcessServer: s, fault: b.fault})
	if errors.Is(err, errCleanClose) {
		return nil
	}
	return err
}

type breakableStream struct {
	extprocv3.ExternalProcessor_ProcessServer
	fault *atomic.Pointer[func(point string) error]
	got   string
}

func (s *breakableStream) Recv() (*extprocv3.ProcessingRequest, error) {
	m, err := s.ExternalProcessor_ProcessServer.Recv()
	if err != nil {
		return nil, err
	}
	switch m.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		s.got = "headers"
	case *extprocv3.ProcessingRequest_RequestBody:
		s.got = "body"
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		s.got = "response headers"
	case *extprocv3.ProcessingRequest_ResponseBody:
		s.got = "response body"
	}
	return m, s.at("got " + s.got)
}

func (s *breakableStream) Send(m *extprocv3.ProcessingResponse) error {
	if err := s.at("answers " + s.got); err != nil {
		return err
	}
	return s.ExternalProcessor_ProcessServer.Send(m)
}

func (s *breakableStream) at(point string) error {
	if f := s.fault.Load(); f != nil {
		return (*f)(point)
	}
	return nil
}

// oneCaller is a directory with one caller.
type oneCaller struct {
	hash   identity.Presented
	caller identity.Caller
	org    verdict.Org
}

func (d oneCaller) Caller(_ context.Context, hash identity.Presented, _ netip.Addr) (identity.Caller, error) {
	if hash != d.hash {
		return identity.Caller{}, verdict.ErrUnknownCaller
	}
	return d.caller, nil
}

func (d oneCaller) Org(string) (verdict.Org, error) { return d.org, nil }

// A sidecar that fails at any point, in any way, forwards nothing. (Package extproc tests
// the faults within each phase.) Even after a clean end of its stream the request finds no
// route, although Envoy continues without ext_proc.
func TestFaults(t *testing.T) {
	x := inProcess(t, e2e.Streaming(3, time.Millisecond, nil), nil, nil)
	streamed := strings.Replace(allowed, "{", `{"stream":true,`, 1)
	faults := map[string]func() error{
		"error":  func() error { return errors.New("broken on purpose") },
		"panic":  func() error { panic("broken on purpose") },
		"return": func() error { return errCleanClose },
	}
	// After the decision the request is forwarded. Before the decision it must not be.
	after := []string{"got response headers", "answers response headers", "got response body", "answers response body"}
	points := append([]string{"got headers", "answers headers", "got body", "answers body"}, after...)
	for protocol, client := range protocols() {
		for kind, fail := range faults {
			for _, point := range points {
				t.Run(protocol+"/"+kind+" at "+point, func(t *testing.T) {
					x.fault.Store(nil)
					if resp, err := send(t.Context(), client, x.gateway, x.key, strings.NewReader(allowed), int64(len(allowed))); err != nil || resp.StatusCode != 200 {
						b, _ := io.ReadAll(resp.Body)
						t.Fatalf("before: %v %v %s", resp, err, b)
					} else {
						resp.Body.Close()
					}
					e2e.Eventually(t, 10*time.Second, func() error {
						if n := x.server.Live(); n > 0 {
							return fmt.Errorf("%d exchanges are live", n)
						}
						return nil
					})
					before, requests := len(x.provider.Bytes()), len(x.provider.Requests())
					var hit atomic.Bool
					fault := func(at string) error {
						if at != point {
							return nil
						}
						hit.Store(true)
						return fail()
					}
					x.fault.Store(&fault)
					for _, body := range []string{allowed, streamed} {
						resp, err := send(t.Context(), client, x.gateway, x.key, strings.NewReader(body), int64(len(body)))
						if !slices.Contains(after, point) {
							refusedBy(t, resp, err)
						} else if err == nil {
							io.Copy(io.Discard, resp.Body)
							resp.Body.Close()
						}
					}
					x.fault.Store(nil)
					if !hit.Load() {
						t.Error("the point was never reached")
					}
					if !slices.Contains(after, point) {
						if n := len(x.provider.Bytes()) - before; n != 0 {
							t.Errorf("%d bytes reached the provider", n)
						}
						return
					}
					seen := x.provider.Requests()[requests:]
					if len(seen) != 2 || string(seen[0].Body) != allowed || string(seen[1].Body) != streamed {
						t.Errorf("the provider saw %d requests, want the two that were judged", len(seen))
					}
				})
			}
		}
	}
}

// Exchanges above the sidecar's limit are rejected, and do not bypass it.
func TestFull(t *testing.T) {
	enough := make(chan struct{})
	x := inProcess(t, e2e.Streaming(0, 10*time.Millisecond, enough), func(c *extproc.Config) { c.MaxStreams = 1 }, nil)
	open := openStreams(t, x.gateway, x.key, strings.Replace(allowed, "{", `{"stream":true,`, 1), 1)
	before := len(x.provider.Bytes())
	for _, client := range protocols() {
		resp, err := send(t.Context(), client, x.gateway, x.key, strings.NewReader(allowed), int64(len(allowed)))
		refusedBy(t, resp, err)
	}
	if n := len(x.provider.Bytes()) - before; n != 0 {
		t.Errorf("%d bytes reached the provider", n)
	}
	close(enough)
	if err := open[0].toEnd(); err != nil {
		t.Errorf("the stream that was there: %v", err)
	}
}

// Without a sidecar on the socket nothing passes, and the error is in JSON.
func TestSidecarAbsent(t *testing.T) {
	x := inProcess(t, nil, nil, nil)
	x.grpc.Stop() // closing the listener removes the socket
	for name, client := range protocols() {
		for range 3 {
			resp, err := send(t.Context(), client, x.gateway, x.key, strings.NewReader(allowed), int64(len(allowed)))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			refusedBy(t, resp, err)
		}
	}
	if n := len(x.provider.Bytes()); n != 0 {
		t.Errorf("%d bytes reached the provider", n)
	}
}

// faulty is a sidecar that replies with the test's messages.
type faulty struct {
	extprocv3.UnimplementedExternalProcessorServer
	answer atomic.Pointer[func(req *extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse]
}

func (f *faulty) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		req, err := s.Recv()
		if err != nil {
			return nil // the simplest possible server
		}
		for _, resp := range (*f.answer.Load())(req) {
			if err := s.Send(resp); err != nil {
				return nil
			}
		}
	}
}

// For every reply of a sidecar that is not a decision, Envoy forwards nothing and continues
// to run. (B08.)
func TestFaultyAnswers(t *testing.T) {
	f := &faulty{}
	x := inProcess(t, nil, nil, f)
	headers := func(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: c}}}
	}
	body := func() *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}
	}
	answers := map[string]func(req *extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse{
		"continue to everything": func(req *extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse {
			if req.GetRequestHeaders() != nil {
				return []*extprocv3.ProcessingResponse{headers(nil)}
			}
			return []*extprocv3.ProcessingResponse{body()}
		},
		"two answers at once": func(req *extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse {
			return []*extprocv3.ProcessingResponse{headers(nil), headers(nil), body(), body()}
		},
		"the answer to another message": func(*extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse {
			return []*extprocv3.ProcessingResponse{{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}}
		},
		"an empty answer": func(*extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse {
			return []*extprocv3.ProcessingResponse{{}}
		},
		"continue and replace": func(*extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse {
			return []*extprocv3.ProcessingResponse{headers(&extprocv3.CommonResponse{Status: extprocv3.CommonResponse_CONTINUE_AND_REPLACE, ClearRouteCache: true,
				BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte(allowed)}}})}
		},
	}
	for name, answer := range answers {
		f.answer.Store(&answer)
		for protocol, client := range protocols() {
			resp, err := send(t.Context(), client, x.gateway, x.key, strings.NewReader(allowed), int64(len(allowed)))
			if err == nil {
				if resp.StatusCode < 500 {
					t.Errorf("%s, %s: answered %d", protocol, name, resp.StatusCode)
				}
				resp.Body.Close()
			}
		}
	}
	if n := len(x.provider.Bytes()); n != 0 {
		t.Errorf("%d bytes reached the provider", n)
	}
}
