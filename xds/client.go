package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// ErrUnavailable says that it cannot be said now: there is no control plane, what
// is known is too old, or too many ask at once.
var ErrUnavailable = errors.New("the control plane cannot be asked")

// ErrDenied says that the control plane denied this node with a definite answer. The node
// is revoked, expired or unknown, or lacks the role. Nothing is decided then. It is
// ErrUnavailable too.
var ErrDenied = fmt.Errorf("%w: it denies this node; give the node a valid token or certificate (`aid node create`)", ErrUnavailable)

// ClientConfig is what a Client needs.
type ClientConfig struct {
	Conn   grpc.ClientConnInterface // to the control plane
	NodeID string                   // what the node calls itself, for people
	Token  string                   // join token; "" with a client certificate

	// MaxStaleness is how long to go on without hearing that the control plane's
	// database answers. 0: 10 min.
	MaxStaleness time.Duration
	// NegativeTTL is how long an unknown key is known to be unknown. 0: 5 s.
	NegativeTTL time.Duration
	// MaxCallers bounds the callers in memory that are not InUse; the longest unused
	// go first. 0: 100,000.
	MaxCallers int
	// InUse, if not nil, reports whether a request that began with the key is in flight.
	// Then the key is kept, whatever MaxCallers is, so that its revocation is received. It
	// must not block, nor call the client.
	InUse func(p identity.Presented) bool
	// Changed, if not nil, is called with what the control plane now returns for a key that
	// was known. It must not block.
	Changed func(p identity.Presented, c identity.Caller, known bool)

	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: slog.Default()
	Registerer prometheus.Registerer
}

// maxNegative bounds the keys that are known to be unknown.
const maxNegative = 10_000

// Client knows what an org decides by and who its callers are. It is safe for
// concurrent use; a known caller costs one look into a map.
type Client struct {
	c       ClientConfig
	metrics *clientMetrics
	orgs    atomic.Pointer[map[string]verdict.Org]
	home    atomic.Pointer[string]
	beat    atomic.Int64 // when the last heartbeat came, Unix nanoseconds; 0: never

	mu      sync.RWMutex
	callers map[identity.Presented]*caller
	unknown map[identity.Presented]time.Time // until when
	lookups lookups
	changes map[identity.Presented]bool // to subscribe (true) or unsubscribe, not said yet
	speak   chan struct{}               // holds a token while there are changes
	up      bool                        // there is a stream
	denied  atomic.Bool                 // by the control plane's last answer
	held    held                        // the loop's own
}

type caller struct {
	identity.Caller
	version string
	used    atomic.Int64 // Unix nanoseconds
}

// NewClient returns a client that knows nothing until Run has run for a while.
func NewClient(c ClientConfig) (*Client, error) {
	if c.Conn == nil {
		return nil, errors.New("xds: a client needs a connection")
	}
	if c.MaxStaleness == 0 {
		c.MaxStaleness = 10 * time.Minute
	}
	if c.NegativeTTL == 0 {
		c.NegativeTTL = 5 * time.Second
	}
	if c.MaxCallers == 0 {
		c.MaxCallers = 100_000
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	x := &Client{
		c: c, callers: make(map[identity.Presented]*caller), unknown: make(map[identity.Presented]time.Time), lookups: newLookups(),
		changes: make(map[identity.Presented]bool), speak: make(chan struct{}, 1), held: newHeld(),
	}
	x.orgs.Store(&map[string]verdict.Org{})
	x.home.Store(new(string))
	var err error
	if x.metrics, err = newClientMetrics(c.Registerer, x.size, x.waiting, x.age, x.connected); err != nil {
		return nil, fmt.Errorf("registering the xds client's metrics: %w", err)
	}
	return x, nil
}

func (x *Client) size() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.callers)
}

func (x *Client) waiting() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.lookups.byKey)
}

func (x *Client) connected() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.up
}

// age is how long ago the control plane's database answered.
func (x *Client) age() time.Duration {
	beat := x.beat.Load()
	if beat == 0 {
		return x.c.MaxStaleness + 1 // never
	}
	return x.c.Now().Sub(time.Unix(0, beat))
}

// Staleness is how long ago the control plane last said that its database answers.
// Not ok: it never did.
func (x *Client) Staleness() (age time.Duration, ok bool) {
	if x.beat.Load() == 0 {
		return 0, false
	}
	return x.age(), true
}

func (x *Client) fresh() error {
	if x.denied.Load() {
		return ErrDenied
	}
	if age := x.age(); age > x.c.MaxStaleness {
		if x.beat.Load() == 0 {
			return fmt.Errorf("%w: it has not answered yet", ErrUnavailable)
		}
		return fmt.Errorf("%w: its last answer is %v old, and --max-staleness is %v", ErrUnavailable, age.Round(time.Second), x.c.MaxStaleness)
	}
	return nil
}

// Org returns what the org decides by, or why that is not known well enough.
func (x *Client) Org(id string) (verdict.Org, error) {
	if err := x.fresh(); err != nil {
		return verdict.Org{}, err
	}
	o, ok := (*x.orgs.Load())[id]
	if !ok {
		return verdict.Org{}, fmt.Errorf("%w: nothing is known of %s yet", ErrUnavailable, id)
	}
	return o, nil
}

// Orgs is how many organizations have a configuration here.
func (x *Client) Orgs() int { return len(*x.orgs.Load()) }

// Home is the organization whose audit log counts requests of no known caller, or ""
// if it does not exist or was not received yet.
func (x *Client) Home() string { return *x.home.Load() }

// Ready is nil if requests can be decided.
func (x *Client) Ready() error {
	if err := x.fresh(); err != nil {
		return err
	}
	if len(*x.orgs.Load()) == 0 {
		return fmt.Errorf("%w: no org's configuration has come yet", ErrUnavailable)
	}
	return nil
}

// Caller returns the caller that presents p. A known caller is returned from memory.
// Another one is requested, once for all who wait. The error wraps verdict.ErrUnknownCaller
// or ErrUnavailable.
func (x *Client) Caller(ctx context.Context, p identity.Presented, peer netip.Addr) (identity.Caller, error) {
	if err := x.fresh(); err != nil {
		x.metrics.lookups.WithLabelValues("stale").Inc()
		return identity.Caller{}, err
	}
	x.mu.RLock()
	c := x.callers[p]
	x.mu.RUnlock()
	if c != nil {
		c.used.Store(x.c.Now().UnixNano())
		return c.Caller, nil
	}
	began := x.c.Now()
	l, err := x.ask(p, peer)
	if err != nil {
		return identity.Caller{}, err
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		x.mu.Lock()
		x.lookups.leave(l)
		x.mu.Unlock()
		x.metrics.lookups.WithLabelValues("timeout").Inc()
		return identity.Caller{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	x.metrics.first.Observe(x.c.Now().Sub(began).Seconds())
	x.mu.RLock()
	c = x.callers[p]
	x.mu.RUnlock()
	switch {
	case l.err != nil:
		x.metrics.lookups.WithLabelValues("failed").Inc()
		return identity.Caller{}, l.err
	case c == nil:
		x.metrics.lookups.WithLabelValues("unknown").Inc()
		return identity.Caller{}, verdict.ErrUnknownCaller
	}
	x.metrics.lookups.WithLabelValues("found").Inc()
	return c.Caller, nil
}

// requestLocked notes that the control plane is to be told about a name.
func (x *Client) requestLocked(p identity.Presented, subscribe bool) {
	x.changes[p] = subscribe
	select {
	case x.speak <- struct{}{}:
	default:
	}
}

// Run keeps the configuration up to date until ctx is done. A stream that breaks is opened
// again after pauses that grow up to 3 s, with a random part. Meanwhile the last
// configuration stays.
func (x *Client) Run(ctx context.Context) error {
	const first, last = 50 * time.Millisecond, 3 * time.Second
	said := false
	for pause := first; ; pause = min(2*pause, last) {
		began := x.c.Now()
		heard, err := x.stream(ctx)
		x.disconnected()
		denied := x.denied.Load()
		if code := grpcstatus.Code(err); code == codes.Unauthenticated || code == codes.PermissionDenied {
			x.deny()
		}
		if ctx.Err() != nil {
			return nil
		}
		level := slog.LevelDebug // one line for each change, not for each attempt
		if heard || !said || denied != x.denied.Load() {
			level, said = slog.LevelWarn, true
		}
		x.c.Log.Log(ctx, level, "no stream to the control plane, opening it again", "err", err)
		if heard && x.c.Now().Sub(began) > last {
			pause = first // one that breaks at once again is not opened ever faster
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// disconnected fails who waits for a response that will not come.
func (x *Client) disconnected() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.up = false
	for _, l := range x.lookups.byKey {
		x.lookups.end(l, fmt.Errorf("%w: the connection broke", ErrUnavailable))
	}
	clear(x.changes)
}

// deny drops all that is known: who is denied must not go on with what it was sent
// before. In-flight requests are ended as if each key had been deleted. The stream is
// opened again as after an outage, in case the operator lets the node in again.
func (x *Client) deny() {
	x.denied.Store(true) // first, so that nothing is looked up in between
	x.held = newHeld()
	x.orgs.Store(&map[string]verdict.Org{})
	x.home.Store(new(string))
	x.mu.Lock()
	dropped := x.callers
	x.callers = make(map[identity.Presented]*caller)
	clear(x.unknown)
	x.mu.Unlock()
	if x.c.Changed != nil {
		for p := range dropped {
			x.c.Changed(p, identity.Caller{}, false)
		}
	}
}

// stream is one connection, from its first word to its end.
func (x *Client) stream(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancel(bearer(ctx, x.c.Token))
	defer cancel()
	g, err := discoveryv3.NewAggregatedDiscoveryServiceClient(x.c.Conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	if err := x.subscribe(g); err != nil {
		return false, err
	}
	answers, failed := make(chan *discoveryv3.DeltaDiscoveryResponse), make(chan error, 1)
	go func() {
		for {
			resp, err := g.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case answers <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return heard, ctx.Err() // the one who reads may end without a word
		case err := <-failed:
			return heard, err
		case resp := <-answers:
			if !heard {
				heard = true
				x.mu.Lock()
				x.up = true
				x.mu.Unlock()
				x.denied.Store(false)
				x.c.Log.InfoContext(ctx, "connected to the control plane")
			}
			ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
			if err := x.receive(ctx, resp); err != nil {
				x.metrics.rejected.WithLabelValues(short(resp.GetTypeUrl())).Inc()
				x.c.Log.ErrorContext(ctx, "refusing what the control plane sent; what was known stays", "type", short(resp.GetTypeUrl()), "err", err)
				ack.ErrorDetail = &status.Status{Code: 3, Message: provider.Clip(err.Error(), 500)}
			}
			if err := g.Send(ack); err != nil {
				return heard, err
			}
		case <-x.speak:
			if err := x.sendChanges(g); err != nil {
				return heard, err
			}
		}
	}
}

type deltaClient = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// subscribe asks for every type of this role, and again for the callers that are
// known, with the versions that are held.
func (x *Client) subscribe(g deltaClient) error {
	node := &corev3.Node{Id: x.c.NodeID, Cluster: "aid-extproc"}
	for _, k := range kinds {
		if k.role != identity.NodeExtproc || k.named {
			continue
		}
		req := &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: k.url, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: x.held.versions(k.url)}
		if err := g.Send(req); err != nil {
			return err
		}
		node = nil // the first message says who we are
	}
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: CallerType, InitialResourceVersions: map[string]string{}}
	x.mu.RLock()
	for p, c := range x.callers {
		name := callerName(p)
		req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		req.InitialResourceVersions[name] = c.version
	}
	x.mu.RUnlock()
	if len(req.GetResourceNamesSubscribe()) == 0 {
		return nil
	}
	return g.Send(req)
}

// sendChanges subscribes to the callers that are wanted, and unsubscribes from others.
func (x *Client) sendChanges(g deltaClient) error {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: CallerType}
	x.mu.Lock()
	for p, subscribe := range x.changes {
		if name := callerName(p); subscribe {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		} else {
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
		}
	}
	clear(x.changes)
	x.mu.Unlock()
	if len(req.GetResourceNamesSubscribe())+len(req.GetResourceNamesUnsubscribe()) == 0 {
		return nil
	}
	return g.Send(req)
}
