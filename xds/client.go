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

// ErrUnavailable means that a lookup is not possible now: there is no control plane, the
// configuration is too old, or there are too many lookups.
var ErrUnavailable = errors.New("the control plane is not available")

// ErrDenied means that the control plane denied this node definitely. The node is revoked,
// expired or unknown, or does not have the role. Requests are not decided then. It wraps
// ErrUnavailable.
var ErrDenied = fmt.Errorf("%w: it denies this node; give the node a valid token or certificate (`aid node create`)", ErrUnavailable)

// ClientConfig configures a Client.
type ClientConfig struct {
	Conn   grpc.ClientConnInterface // to the control plane
	NodeID string                   // the node's own name, for logs
	Token  string                   // join token; "" with a client certificate

	// MaxStaleness is how long to decide without a heartbeat, which means that the control
	// plane's database responds. 0: 10 min.
	MaxStaleness time.Duration
	// NegativeTTL is how long an unknown key is cached as unknown. 0: 5 s.
	NegativeTTL time.Duration
	// MaxCallers limits the callers in memory that are not InUse. The longest unused ones
	// are evicted. 0: 100,000.
	MaxCallers int
	// InUse, if not nil, reports whether a request with the key is in flight. Such a key is
	// kept even above MaxCallers, so that its revocation is received. InUse must not block,
	// and must not call the client.
	InUse func(p identity.Presented) bool
	// Changed, if not nil, is called when the control plane sends a change of a known key.
	// It must not block.
	Changed func(p identity.Presented, c identity.Caller, known bool)

	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: slog.Default()
	Registerer prometheus.Registerer
}

// maxNegative limits the keys that are cached as unknown.
const maxNegative = 10_000

// Client has the configuration of orgs and their callers. It is safe for concurrent use. A
// known caller costs one lookup in a map.
type Client struct {
	c       ClientConfig
	metrics *clientMetrics
	orgs    atomic.Pointer[map[string]verdict.Org]
	home    atomic.Pointer[string]
	began   time.Time                 // what caller.used counts from
	beat    atomic.Pointer[time.Time] // the last heartbeat; nil: never

	mu      sync.RWMutex
	callers map[identity.Presented]*caller
	unknown map[identity.Presented]time.Time // unknown keys, and until when they are cached
	lookups lookups
	changes map[identity.Presented]bool // to subscribe (true) or unsubscribe, not sent yet
	speak   chan struct{}               // has a token while there are changes
	up      bool                        // there is a stream
	denied  atomic.Bool                 // the control plane's last response denied this node
	held    held                        // used only by the loop
}

type caller struct {
	identity.Caller
	version string
	used    atomic.Int64 // by Client.since
}

// NewClient returns a client. It has no configuration until Run has received it.
func NewClient(c ClientConfig) (*Client, error) {
	if c.Conn == nil {
		return nil, errors.New("xds: a client requires a connection")
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
		changes: make(map[identity.Presented]bool), speak: make(chan struct{}, 1), held: newHeld(), began: c.Now(),
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

// since returns the nanoseconds from the start of the client. It is monotonic.
func (x *Client) since() int64 { return int64(x.c.Now().Sub(x.began)) }

// age returns the time since the last heartbeat: the longer one of the monotonic time and the
// wall time. The monotonic time stands still while the machine is suspended. The wall time is
// too short after the machine's clock was set back.
func (x *Client) age() time.Duration {
	beat := x.beat.Load()
	if beat == nil {
		return x.c.MaxStaleness + 1 // never
	}
	now := x.c.Now()
	return max(now.Sub(*beat), now.Round(0).Sub(beat.Round(0)))
}

// Staleness returns the time since the last heartbeat of the control plane. ok is false if
// there was none.
func (x *Client) Staleness() (age time.Duration, ok bool) {
	if x.beat.Load() == nil {
		return 0, false
	}
	return x.age(), true
}

func (x *Client) fresh() error {
	if x.denied.Load() {
		return ErrDenied
	}
	if age := x.age(); age > x.c.MaxStaleness {
		if x.beat.Load() == nil {
			return fmt.Errorf("%w: it has not responded yet", ErrUnavailable)
		}
		return fmt.Errorf("%w: its last heartbeat is %v old, and --max-staleness is %v", ErrUnavailable, age.Round(time.Second), x.c.MaxStaleness)
	}
	return nil
}

// Org returns the org's configuration, or an error if it is missing or too old.
func (x *Client) Org(id string) (verdict.Org, error) {
	if err := x.fresh(); err != nil {
		return verdict.Org{}, err
	}
	o, ok := (*x.orgs.Load())[id]
	if !ok {
		return verdict.Org{}, fmt.Errorf("%w: the configuration of %s was not received yet", ErrUnavailable, id)
	}
	return o, nil
}

// Orgs is how many organizations have a configuration here.
func (x *Client) Orgs() int { return len(*x.orgs.Load()) }

// Home returns the organization with the audit log that counts requests without a known
// caller. It returns "" if it does not exist or was not received yet.
func (x *Client) Home() string { return *x.home.Load() }

// Ready returns nil if requests can be decided.
func (x *Client) Ready() error {
	if err := x.fresh(); err != nil {
		return err
	}
	if len(*x.orgs.Load()) == 0 {
		return fmt.Errorf("%w: no configuration was received yet", ErrUnavailable)
	}
	return nil
}

// Caller returns the caller that presents p. A known caller comes from memory. Another one is
// looked up, once for all requests that wait for it. The error wraps
// verdict.ErrUnknownCaller or ErrUnavailable.
func (x *Client) Caller(ctx context.Context, p identity.Presented, peer netip.Addr) (identity.Caller, error) {
	if err := x.fresh(); err != nil {
		x.metrics.lookups.WithLabelValues("stale").Inc()
		return identity.Caller{}, err
	}
	x.mu.RLock()
	c := x.callers[p]
	x.mu.RUnlock()
	if c != nil {
		c.used.Store(x.since())
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

// requestLocked queues a change of the subscription to a name.
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
		level := slog.LevelDebug // log each change of the state, not each attempt
		if heard || !said || denied != x.denied.Load() {
			level, said = slog.LevelWarn, true
		}
		x.c.Log.Log(ctx, level, "no stream to the control plane; opening it again", "err", err)
		if heard && x.c.Now().Sub(began) > last {
			pause = first // only a stream that has received something resets the pause
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// disconnected ends the lookups that wait for a response, with an error.
func (x *Client) disconnected() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.up = false
	for _, l := range x.lookups.byKey {
		x.lookups.end(l, fmt.Errorf("%w: the connection broke", ErrUnavailable))
	}
	clear(x.changes)
}

// deny deletes the whole configuration, since a denied node must not continue with it.
// Requests in flight end as if each key had been deleted. The stream is opened again as
// after an outage, in case the operator permits the node again.
func (x *Client) deny() {
	x.denied.Store(true) // first, so that no lookup starts in between
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

// stream runs one stream to the control plane until it ends.
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
			return heard, ctx.Err() // the goroutine that receives may end without an error
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
				x.c.Log.ErrorContext(ctx, "rejecting a response of the control plane; the last accepted one stays", "type", short(resp.GetTypeUrl()), "err", err)
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

// subscribe subscribes to every type of this role and to the known callers, with their
// current versions.
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
		node = nil // only the first message has the node's name
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

// sendChanges sends the queued changes of subscriptions to callers.
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
