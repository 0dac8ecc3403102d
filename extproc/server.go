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
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// A Directory knows callers and orgs. It must be safe for concurrent use, and
// what it returns must never change afterwards: an exchange decides from one
// Org to its end.
type Directory interface {
	// Caller returns who presents that. The error wraps verdict.ErrUnknownCaller if
	// no caller does. Any other error means that it is not known now (stale,
	// unreachable), and the request is answered 503. The peer is the other end of
	// the connection, so that one peer's lookups do not delay those of others.
	Caller(ctx context.Context, p identity.Presented, peer netip.Addr) (identity.Caller, error)
	// Org returns what decides for the org, or an error if that is not known
	// well enough to decide (never received, or stale).
	Org(id string) (verdict.Org, error)
}

// A Recorder keeps the record. It must be safe for concurrent use.
type Recorder interface {
	// Append returns nil only once e is durable.
	Append(ctx context.Context, org string, e audit.Entry) (audit.Receipt, error)
	// Enqueue keeps e without anybody waiting for it.
	Enqueue(org string, e audit.Entry)
}

// errCloseStream, returned by Config.fault, makes Process return nil at that phase:
// the clean close that Envoy takes for "go on without me". Tests show with it that
// even this forwards nothing.
var errCloseStream = errors.New("fault: close the stream cleanly")

// Config is what a Server needs.
type Config struct {
	Directory Directory
	Recorder  Recorder
	Limiter   verdict.Limiter
	Pricer    verdict.Pricer // nil: no cost is known

	Now  func() time.Time // nil: time.Now
	Rand io.Reader        // of ids that must not collide; nil: crypto/rand
	Log  *slog.Logger     // nil: slog.Default()
	// Registerer takes the metrics. Nil: they are counted and not shown.
	Registerer prometheus.Registerer
	// Tracer makes one span for each exchange. Nil: none, and traceparent is
	// continued all the same.
	Tracer trace.TracerProvider

	// Unknown counts a request that named no known caller. It is called for every such
	// request, so it must be quick. Nil: they are counted in the metrics only.
	Unknown func(cause string, peer netip.Addr)

	// Domains are the hosts by which clients call the gateway, in lower case and without
	// a port; "*.example.com" stands for every name below example.com. Requests for other
	// hosts are rejected with 421. Empty: every host is accepted, and policy sees none.
	Domains []string
	// MaxBody bounds a request's body, encoded and decoded. 0: 16 MiB. Envoy's
	// buffer and the gRPC server's receive limit must be above it.
	MaxBody int64
	// MaxStreams bounds the live exchanges; a streamed answer is one for its whole
	// life. More are refused with an error, which Envoy answers 500. 0: 20,000.
	MaxStreams int
	// MaxDeciding bounds the exchanges that parse and decide at the same moment:
	// it is work for the CPU, and policy has a deadline, so that a crowd must wait
	// here and not inside an evaluation. 0: 4 for each CPU.
	MaxDeciding int
	// Waiting bounds the requests that wait for their bodies.
	Waiting WaitLimits
	// IdentifyTimeout bounds the look-up of a key that was not seen before, and the
	// wait for a turn to decide. 0: 3 s.
	IdentifyTimeout time.Duration
	// RecordTimeout bounds the wait for the record, which goes on when the
	// client has hung up. 0: 5 s. With IdentifyTimeout it must stay under
	// Envoy's message_timeout.
	RecordTimeout time.Duration
	// EndTimeout bounds the wait for Envoy's access log of a request that ended
	// abnormally. The wait delays the completion entry only. 0: no wait.
	EndTimeout time.Duration

	// fault is set by tests of this package only. It is called on the exchange's
	// goroutine as each phase begins: it may return an error, which ends the
	// exchange, panic, or block.
	fault func(phase string) error
}

// Server answers Envoy. Register it with a gRPC server; it has no life of its own.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer
	logv3.UnimplementedAccessLogServiceServer

	c        Config
	metrics  *metrics
	tracer   trace.Tracer // nil: no spans
	live     *live
	crew     *crew
	guard    *guard
	ends     *ends
	deciding chan struct{} // holds a token for each exchange that decides

	patterns sync.Map // of a provider's id: *patterns

	mu       sync.Mutex
	canaries map[string]*canary
}

// CheckDomains returns what is wrong with Config.Domains, or nil.
func CheckDomains(domains []string) error {
	for _, d := range domains {
		if !hostForm(strings.TrimPrefix(d, "*.")) {
			return fmt.Errorf("domain %q: want a host in lower case and without a port, such as ai.example.com or *.example.com", d)
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
		crew:     newCrew(),
		guard:    newGuard(c.Waiting),
		deciding: make(chan struct{}, c.MaxDeciding),
		canaries: make(map[string]*canary),
	}
	m, err := newMetrics(c.Registerer, s.live.size, s.guard.held)
	if err != nil {
		return nil, fmt.Errorf("registering extproc's metrics: %w", err)
	}
	s.metrics = m
	if c.Tracer != nil {
		s.tracer = c.Tracer.Tracer("github.com/ai-identity/ai-identity/extproc")
	}
	return s, nil
}

// Process serves one exchange. It only waits; see the package comment.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	x := s.newExchange()
	if draining, full := s.live.enter(&x.handle, s.c.MaxStreams); draining {
		s.metrics.turnedAway.WithLabelValues("draining").Inc()
		return x.turnAway(stream, verdict.Revoked(reasonShutdown))
	} else if full {
		s.metrics.turnedAway.WithLabelValues("full").Inc()
		return x.turnAway(stream, verdict.Unavailable("gateway_overloaded", "The gateway has as many requests as it takes. Try again shortly."))
	}
	ended := make(chan error, 1)
	s.crew.do(func() { ended <- x.run(stream) })
	select {
	case err := <-ended:
		return err
	case <-x.handle.cutCh:
	}
	if x.handle.turn.CompareAndSwap(turnWaiting, turnProcess) {
		// It waits for a body, which may take minutes. It is answered now.
		defer close(x.answeredCut)
		return x.answerWaiting(stream.Context(), stream)
	}
	if !x.handle.forwarded.Load() && x.handle.cutReason() != reasonShutdown {
		return <-ended // it is refused, in words, when its verdict is due
	}
	// Envoy answers an error in the middle of an answer by cutting it off. run sees
	// its stream end and settles.
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
		return x.disorder("not_admitted")
	}
	x.req = readRequest(head)
	if err := stream.Send(x.refuse(e)); err != nil {
		return fmt.Errorf("answering Envoy: %w", err)
	}
	return nil
}

// run owns the exchange from its first message to its settlement. It returns
// nil only for an exchange that was answered to its end.
func (x *exchange) run(stream extprocv3.ExternalProcessor_ProcessServer) (err error) {
	ctx := stream.Context()
	defer x.s.live.leave(&x.handle) // last: whoever drains waits for the settlement
	defer func() {
		if p := recover(); p != nil {
			err = x.panicked(ctx, p, debug.Stack())
		}
		// The client may be gone; its record must not be.
		x.settle(context.WithoutCancel(ctx), err)
		switch {
		case errors.Is(err, errCloseStream):
			err = nil
		case err == nil && x.state != ended:
			err = status.Error(codes.Internal, "ext_proc: ended without an answer")
		}
	}()
	for {
		if x.state == waiting {
			x.handle.turn.Store(turnWaiting)
			if x.handle.cutReason() != "" && x.handle.turn.CompareAndSwap(turnWaiting, turnOwner) {
				// The order came before it could be seen that this exchange waits.
				if err := x.answerWaiting(ctx, stream); err != nil {
					return err
				}
			}
		}
		req, err := stream.Recv()
		if x.handle.turn.Load() != turnOwner && !x.handle.turn.CompareAndSwap(turnWaiting, turnOwner) {
			<-x.answeredCut // Process has the exchange, and gives it back ended
			x.handle.turn.Store(turnOwner)
		}
		if err != nil {
			if errors.Is(err, io.EOF) && x.state == ended {
				return nil
			}
			if errors.Is(err, io.EOF) {
				// Never nil: that is what a clean close means to Envoy.
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

// answerWaiting rejects an exchange that waits for its body, for the reason that it
// was cut for. Envoy takes an immediate response at any time before the verdict.
func (x *exchange) answerWaiting(ctx context.Context, stream extprocv3.ExternalProcessor_ProcessServer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = x.panicked(ctx, p, debug.Stack())
		}
	}()
	resp, err := x.judge(ctx, nil, verdict.Revoked(x.handle.cutReason()))
	if err != nil {
		return err
	}
	if err := stream.Send(resp); err != nil {
		return fmt.Errorf("answering Envoy: %w", err)
	}
	return nil
}

// errClosedEarly is how an exchange ends whose stream Envoy closed half way.
var errClosedEarly = status.Error(codes.Aborted, "ext_proc: stream closed before the exchange ended")

// panicked turns a panic into the error that it is to Envoy. The value may hold
// anything, a prompt included, so only what the runtime says is logged.
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

// CallerChanged tells what a Directory now says of a key: a caller, or with
// known false, nobody. If the key may no longer be used, its exchanges in
// progress are cut.
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

// InUse says whether an exchange of the key is in progress. It is so from before
// the Directory is asked for the key to after the exchange has settled: a Directory
// that keeps what is in use hears of every end of it.
func (s *Server) InUse(p identity.Presented) bool { return s.live.has(p) }

// Drain rejects new exchanges with 503 and waits for those in progress to
// end and settle. Those that are left when ctx is done are cut, and waited for
// until their settlement is handed to the recorder. Stop the gRPC server, and
// then the recorder, after it.
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
		return fmt.Errorf("draining: %d exchanges did not settle", s.live.size())
	}
	return fmt.Errorf("draining: %d exchanges were cut: %w", n, err)
}

// reasonShutdown is why exchanges are cut that did not end in time.
const reasonShutdown = "shutdown"

// Live says how many exchanges are in progress.
func (s *Server) Live() int { return s.live.size() }

type canary struct {
	once sync.Once
	seen chan struct{}
}

// Canary registers a nonce and returns it with a channel that is closed once an
// exchange has carried it here. Forget must be called when nobody waits any more.
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

// sawCanary says whether nonce is registered, and if so that it came.
func (s *Server) sawCanary(nonce string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Every registered nonce is compared in constant time; there are one or two.
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
