package extproc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	logv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// A Directory finds callers and orgs. It must be safe for concurrent use. Its results must
// never change afterwards: an exchange uses one Org from its decision to its end.
type Directory interface {
	// Caller returns the caller with the key. The error wraps verdict.ErrUnknownCaller if
	// no caller has it. Any other error means that this is not known now (stale, unreachable),
	// and the response is 503. The peer is the other end of the connection, so that one
	// peer's lookups do not delay those of others.
	Caller(ctx context.Context, p identity.Presented, peer netip.Addr) (identity.Caller, error)
	// Org returns the policies and providers of the org. It returns an error if they were
	// never received, or are stale.
	Org(id string) (verdict.Org, error)
}

// A Recorder writes the audit log. It must be safe for concurrent use.
type Recorder interface {
	// Append returns nil only once e is durable.
	Append(ctx context.Context, org string, e audit.Entry) (audit.Receipt, error)
	// Enqueue writes e asynchronously.
	Enqueue(org string, e audit.Entry)
	// Deciding notes that a decision with a time is being made, until done is called.
	Deciding(at time.Time) (done func())
	// Sign signs the receipt of an entry of org, for its caller.
	Sign(org string, r audit.Receipt) audit.Receipt
}

// Workloads verifies tokens that other systems issue to workloads. *identity.Issuers is one. It
// must be safe for concurrent use, and must not wait.
type Workloads interface {
	// Ours reports whether a credential claims to be a token of a configured issuer.
	Ours(token string) bool
	// Verify returns the workload of a token. The error is identity.ErrNotWorkload, wraps
	// identity.ErrKeysUnavailable, or is an *identity.InvalidToken.
	Verify(token string, now time.Time) (identity.Token, error)
	// Find reports whether a token of a configured issuer is in a text, or inside its encodings.
	Find(b []byte) bool
}

// errCloseStream, returned by Config.fault, makes Process return nil at that phase. Envoy
// continues without ext_proc after such a clean close. With it tests show that even this
// forwards nothing.
var errCloseStream = errors.New("fault: close the stream cleanly")

// Config configures a Server.
type Config struct {
	Directory Directory
	Recorder  Recorder
	Limiter   verdict.Limiter
	Pricer    verdict.Pricer  // nil: no cost is known
	Spender   verdict.Spender // nil: policies do not see what agents have spent

	Now  func() time.Time // nil: time.Now
	Rand io.Reader        // for ids that must not collide; nil: crypto/rand
	Log  *slog.Logger     // nil: slog.Default()
	// Registerer registers the metrics. Nil: they are counted and not exported.
	Registerer prometheus.Registerer
	// Tracer makes one span for each exchange. Nil: no spans, and traceparent is still
	// continued.
	Tracer trace.TracerProvider

	// Unknown counts a request without a known caller. It is called for each such request,
	// so it must be fast. Nil: they are counted in the metrics only.
	Unknown func(cause string, peer netip.Addr)

	// Workloads verifies tokens of workloads. Nil: none are accepted.
	Workloads Workloads

	// Repeats counts equal rejections of one key that may not be used. Nil: each is
	// recorded.
	Repeats Repeats

	// Domains are the hosts by which clients call the gateway, in lower case and without a
	// port. "*.example.com" stands for every name below example.com. Requests for other
	// hosts are rejected with 421. Empty: every host is accepted, and policy gets no host.
	Domains []string
	// MaxBody bounds a request's body, encoded and decoded. 0: 16 MiB. Envoy's buffer and
	// the gRPC server's receive limit must be larger.
	MaxBody int64
	// MaxStreams bounds the live exchanges. A streamed response is one for its whole life.
	// Further exchanges are rejected with 503. 0: 20,000.
	MaxStreams int
	// MaxDeciding bounds the exchanges that parse and decide at the same time, which needs
	// CPU. The evaluation of policy has a deadline. So under load exchanges must wait here
	// and not inside an evaluation. 0: 4 for each CPU.
	MaxDeciding int
	// Waiting bounds the requests that wait for their bodies.
	Waiting WaitLimits
	// IdentifyTimeout bounds the lookup of a key that was not used before, and the wait for
	// a turn to decide. 0: 3 s.
	IdentifyTimeout time.Duration
	// RecordTimeout bounds the wait for the audit log, which continues when the client has
	// gone. 0: 5 s. The sum with IdentifyTimeout must be below Envoy's message_timeout.
	RecordTimeout time.Duration
	// EndTimeout bounds the wait for Envoy's access log of a request that ended
	// abnormally. The wait delays the completion entry only. 0: no wait.
	EndTimeout time.Duration

	// fault is set only by tests of this package. It is called on the exchange's goroutine
	// at the beginning of each phase. It may panic, block, or return an error, which ends
	// the exchange.
	fault func(phase string) error
}

// Server implements Envoy's ext_proc service. Register it with a gRPC server, which runs
// it.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer
	logv3.UnimplementedAccessLogServiceServer

	c        Config
	metrics  *metrics
	tracer   trace.Tracer // nil: no spans
	live     *live
	workers  *workers
	guard    *guard
	ends     *ends
	sessions budget.Sessions
	shared   verdict.SharedSessions // nil: no other sidecar counts with this one
	deciding chan struct{}          // holds a token for each exchange that is being decided

	patterns sync.Map // *patterns by a provider's id

	mu       sync.Mutex
	canaries map[string]*canary
}

// CheckDomains returns what is wrong with Config.Domains, or nil.
func CheckDomains(domains []string) error {
	for _, d := range domains {
		if !hostForm(strings.TrimPrefix(d, "*.")) {
			return fmt.Errorf("domain %q is not valid. Use a host in lower case and without a port, such as ai.example.com or *.example.com", d)
		}
	}
	return nil
}

// New returns a server that is ready to be registered.
func New(c Config) (*Server, error) {
	if c.Directory == nil || c.Recorder == nil || c.Limiter == nil {
		return nil, errors.New("extproc needs a Directory, a Recorder and a Limiter")
	}
	if err := CheckDomains(c.Domains); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.MaxBody == 0 {
		c.MaxBody = 16 << 20
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 20_000
	}
	if c.MaxDeciding == 0 {
		c.MaxDeciding = 4 * runtime.GOMAXPROCS(0)
	}
	if c.IdentifyTimeout == 0 {
		c.IdentifyTimeout = 3 * time.Second
	}
	if c.RecordTimeout == 0 {
		c.RecordTimeout = 5 * time.Second
	}
	s := &Server{
		c:        c,
		live:     newLive(),
		ends:     newEnds(),
		workers:  newWorkers(),
		guard:    newGuard(c.Waiting),
		deciding: make(chan struct{}, c.MaxDeciding),
		canaries: make(map[string]*canary),
	}
	m, err := newMetrics(c.Registerer, s.live.size, s.guard.held)
	if err != nil {
		return nil, fmt.Errorf("registering extproc's metrics: %w", err)
	}
	s.metrics = m
	s.shared, _ = c.Limiter.(verdict.SharedSessions) // nil: limits are counted in memory
	if c.Tracer != nil {
		s.tracer = c.Tracer.Tracer("github.com/ai-identity/ai-identity/extproc")
	}
	return s, nil
}

// Process serves one exchange. It only waits: see the package comment.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	x := s.newExchange()
	if draining, full := s.live.enter(&x.handle, s.c.MaxStreams); draining {
		s.metrics.turnedAway.WithLabelValues("draining").Inc()
		return x.turnAway(stream, verdict.Revoked(reasonShutdown))
	} else if full {
		s.metrics.turnedAway.WithLabelValues("full").Inc()
		return x.turnAway(stream, verdict.Unavailable("gateway_overloaded", "The gateway has reached its limit of concurrent requests. Try again shortly."))
	}
	ended := make(chan error, 1)
	s.workers.do(func() { ended <- x.run(stream) })
	select {
	case err := <-ended:
		return err
	case <-x.handle.cutCh:
	}
	if x.handle.turn.CompareAndSwap(turnWaiting, turnProcess) {
		// It waits for a body, which may take minutes. It is rejected now.
		defer close(x.answeredCut)
		return x.answerWaiting(stream.Context(), stream)
	}
	if !x.handle.forwarded.Load() && x.handle.cutReason() != reasonShutdown {
		return <-ended // it is rejected with a reason when its decision is due
	}
	// In the middle of a response, Envoy cuts the response when it gets an error. run finds
	// its stream ended and completes the exchange.
	return status.Error(codes.Aborted, "ext_proc: cut: "+x.handle.cutReason())
}

// turnAway rejects an exchange that was not admitted, with 503 and Retry-After in the
// caller's format. Nothing was evaluated, so nothing is recorded.
func (x *exchange) turnAway(stream extprocv3.ExternalProcessor_ProcessServer, e *provider.Error) error {
	first, err := stream.Recv()
	if err != nil {
		return errClosedEarly
	}
	head := first.GetRequestHeaders()
	if head == nil {
		return x.outOfOrder("not_admitted")
	}
	x.req = readRequest(head, x.s.findToken())
	if err := stream.Send(x.reject(e)); err != nil {
		return fmt.Errorf("answering Envoy: %w", err)
	}
	return nil
}

// run owns the exchange from its first message to its completion. It returns nil only for
// an exchange that was answered to its end.
func (x *exchange) run(stream extprocv3.ExternalProcessor_ProcessServer) (err error) {
	ctx := stream.Context()
	defer x.s.live.leave(&x.handle) // last, since Drain waits for the completion
	defer func() {
		if p := recover(); p != nil {
			err = x.panicked(ctx, p, debug.Stack())
		}
		// The client may be gone. The completion is recorded in any case.
		x.settle(context.WithoutCancel(ctx), err)
		switch {
		case errors.Is(err, errCloseStream):
			err = nil
		case err == nil && x.state != ended:
			err = status.Error(codes.Internal, "ext_proc: ended without a response")
		}
	}()
	for {
		if x.state == waiting {
			x.handle.turn.Store(turnWaiting)
			if x.handle.cutReason() != "" && x.handle.turn.CompareAndSwap(turnWaiting, turnOwner) {
				// The cut came before it was visible that this exchange waits.
				if err := x.answerWaiting(ctx, stream); err != nil {
					return err
				}
			}
		}
		req, err := stream.Recv()
		if x.handle.turn.Load() != turnOwner && !x.handle.turn.CompareAndSwap(turnWaiting, turnOwner) {
			<-x.answeredCut // Process owns the exchange, and returns it ended
			x.handle.turn.Store(turnOwner)
		}
		if err != nil {
			if errors.Is(err, io.EOF) && x.state == ended {
				return nil
			}
			if errors.Is(err, io.EOF) {
				// Never nil, which is a clean close for Envoy.
				return errClosedEarly
			}
			return err
		}
		resp, err := x.answer(ctx, req)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return fmt.Errorf("answering Envoy: %w", err)
		}
	}
}

// answerWaiting rejects an exchange that waits for its body, with the reason of its cut.
// Envoy accepts an immediate response at any time before the decision.
func (x *exchange) answerWaiting(ctx context.Context, stream extprocv3.ExternalProcessor_ProcessServer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = x.panicked(ctx, p, debug.Stack())
		}
	}()
	resp, err := x.decide(ctx, nil, verdict.Revoked(x.handle.cutReason()))
	if err != nil {
		return err
	}
	if err := stream.Send(resp); err != nil {
		return fmt.Errorf("answering Envoy: %w", err)
	}
	return nil
}

// errClosedEarly is the end of an exchange whose stream Envoy closed before its response.
var errClosedEarly = status.Error(codes.Aborted, "ext_proc: stream closed before the exchange ended")

// panicked turns a panic into an error for Envoy. The panic's value may contain anything,
// even a prompt, so only the runtime's texts are logged.
func (x *exchange) panicked(ctx context.Context, p any, stack []byte) error {
	what := fmt.Sprintf("%T", p)
	if re, ok := p.(runtime.Error); ok {
		what = re.Error()
	}
	x.s.metrics.panics.Inc()
	x.logged = true
	x.s.c.Log.ErrorContext(ctx, "exchange panicked", "exchange", x.req.ID, "agent", x.caller.Agent.ID, "err", what, "stack", string(stack[:min(len(stack), 16<<10)]))
	return status.Error(codes.Internal, "ext_proc: internal error")
}

// CallerChanged is called when a Directory has a new state of a key: its caller, or with
// known false that it has none. If the key may no longer be used, its exchanges in progress
// are cut.
func (s *Server) CallerChanged(p identity.Presented, caller identity.Caller, known bool) {
	reason := "key_unknown"
	if known {
		err := caller.ActiveAt(s.c.Now())
		if err == nil {
			return
		}
		reason = verdict.InactiveReason(err)
	}
	if n := s.live.cutKey(p, reason); n > 0 {
		s.metrics.cuts.WithLabelValues(reason).Add(float64(n))
		s.c.Log.Info("cut exchanges in progress", "reason", reason, "exchanges", n, "agent", caller.Agent.ID)
	}
}

// findToken finds tokens of workloads. It is nil if none are accepted.
func (s *Server) findToken() func([]byte) bool {
	if s.c.Workloads == nil {
		return nil
	}
	return s.c.Workloads.Find
}

// InUse reports whether an exchange of the key is in progress. It is true from before the
// Directory is asked for the key until the exchange is complete. So a Directory that keeps
// the keys in use receives every revocation of them.
func (s *Server) InUse(p identity.Presented) bool { return s.live.has(p) }

// Drain rejects new exchanges with 503 and waits for those in progress to complete. When
// ctx is done it cuts the rest, and waits until their completion entries are passed to the
// recorder. Stop the gRPC server after it, and then the recorder.
func (s *Server) Drain(ctx context.Context) error {
	err := s.live.drain(ctx)
	if err == nil {
		return nil
	}
	n := s.live.size()
	s.live.cutAll(reasonShutdown)
	s.metrics.cuts.WithLabelValues(reasonShutdown).Add(float64(n))
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.c.RecordTimeout+time.Second)
	defer cancel()
	if s.live.drain(last) != nil {
		return fmt.Errorf("draining: %d exchanges did not complete", s.live.size())
	}
	return fmt.Errorf("draining: %d exchanges were cut: %w", n, err)
}

// reasonShutdown is the reason of a cut for exchanges that did not end in time.
const reasonShutdown = "shutdown"

// Live returns the number of exchanges in progress.
func (s *Server) Live() int { return s.live.size() }

type canary struct {
	once sync.Once
	seen chan struct{}
}

// Canary registers a nonce. It returns the nonce, and a channel that is closed once an
// exchange had the nonce. Forget must be called when the wait is over.
func (s *Server) Canary() (nonce string, seen <-chan struct{}, forget func(), err error) {
	var b [16]byte
	if _, err := io.ReadFull(s.c.Rand, b[:]); err != nil {
		return "", nil, nil, fmt.Errorf("making a canary's nonce: %w", err)
	}
	nonce = hex.EncodeToString(b[:])
	c := &canary{seen: make(chan struct{})}
	s.mu.Lock()
	s.canaries[nonce] = c
	s.mu.Unlock()
	return nonce, c.seen, func() {
		s.mu.Lock()
		delete(s.canaries, nonce)
		s.mu.Unlock()
	}, nil
}

// sawCanary reports whether nonce is registered, and if so closes its channel.
func (s *Server) sawCanary(nonce string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Every registered nonce is compared in constant time. There are one or two.
	var found *canary
	for n, c := range s.canaries {
		if subtle.ConstantTimeCompare([]byte(n), []byte(nonce)) == 1 {
			found = c
		}
	}
	if found == nil {
		return false
	}
	found.once.Do(func() { close(found.seen) })
	return true
}
