package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
)

// Appender takes the records that a node ships; *audit.Chain is one.
type Appender interface {
	// Append returns the sequence number up to which records are committed.
	Append(ctx context.Context, org, writer string, recs []audit.Record) (uint64, error)
}

// ServerConfig is what a Server needs.
type ServerConfig struct {
	DB       *store.DB
	Sealer   *provider.Sealer // opens the credentials that are pushed to nodes
	Appender Appender

	Gateway string // host:port that Envoys listen on for applications
	Usage   string // "stream" or "envoy": who reads usage from answers
	MaxBody int64  // largest request body, in bytes
	CAFile  string // PEM file on the Envoys' machines that vouches for providers; empty: the system's
	// DigestKey keys the digests of request bodies in the record. Each org gets a
	// key of its own that is derived from it. Empty: the record has no digests.
	DigestKey []byte

	// Heartbeat is how often nodes are told that the database answers. 0: 2 s.
	Heartbeat time.Duration
	Now       func() time.Time // nil: time.Now
	Log       *slog.Logger     // nil: slog.Default()
	// Registerer takes the metrics (aid_xds_…). Nil: they are not shown.
	Registerer prometheus.Registerer
}

// Server serves Envoys and sidecars over delta ADS, and takes their audit records.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	aidv1.UnimplementedIngestServer

	c       ServerConfig
	metrics *serverMetrics
	reading sync.Mutex // held while an org's configuration is read and published

	mu      sync.Mutex
	orgs    map[string]*orgState // those that a node is connected for
	streams map[*stream]struct{}
	synced  bool      // the database's changes are heard of
	beat    time.Time // the last heartbeat
}

// orgState is what the nodes of an org are served. Guarded by Server.mu.
type orgState struct {
	id     string
	loaded bool
	whole  map[string]map[string]*discoveryv3.Resource // by type and name; never changed in place
}

// NewServer returns a server. Run must run for it to serve anything.
func NewServer(c ServerConfig) (*Server, error) {
	if c.DB == nil || c.Sealer == nil || c.Appender == nil {
		return nil, errors.New("xds needs a DB, a Sealer and an Appender")
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 2 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{c: c, orgs: make(map[string]*orgState), streams: make(map[*stream]struct{})}
	var err error
	if s.metrics, err = newServerMetrics(c.Registerer, s.connected); err != nil {
		return nil, fmt.Errorf("registering xds's metrics: %w", err)
	}
	return s, nil
}

// Register adds ADS and the audit ingest to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
	aidv1.RegisterIngestServer(r, s)
}

// Ready is nil if changes in the database are heard of.
func (s *Server) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced {
		return errors.New("not listening to the database yet")
	}
	return nil
}

func (s *Server) connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// Run hears of changes and pushes them until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := newQueue()
	var wg sync.WaitGroup
	wg.Go(func() { s.apply(ctx, changes) })
	wg.Go(func() { s.beats(ctx) })
	err := s.c.DB.Listen(ctx, "aid_changed", changes.add, func() { changes.add("*") })
	cancel()
	wg.Wait()
	return err
}

// queue holds changes, each once, until they are applied. Listen's callbacks must
// not take long, and a burst of changes to one thing is one change.
type queue struct {
	mu    sync.Mutex
	set   map[string]struct{}
	order []string
	more  chan struct{} // holds a token while there is something
}

func newQueue() *queue { return &queue{set: make(map[string]struct{}), more: make(chan struct{}, 1)} }

func (q *queue) add(change string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.set[change]; !ok {
		q.set[change] = struct{}{}
		q.order = append(q.order, change)
	}
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *queue) take() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.order
	q.order = nil
	clear(q.set)
	return all
}

// apply reads what has changed and hands it to the streams. What cannot be read
// now stays to be done, and is tried again.
func (s *Server) apply(ctx context.Context, changes *queue) {
	retry := time.NewTicker(s.c.Heartbeat)
	defer retry.Stop()
	var left []string
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes.more:
		case <-retry.C:
			if len(left) == 0 {
				continue
			}
		}
		todo := append(left, changes.take()...)
		left = nil
		for _, change := range merged(todo) {
			if err := s.changed(ctx, change); err != nil && ctx.Err() == nil {
				s.c.Log.WarnContext(ctx, "reading a change, trying again", "change", change, "err", err)
				left = append(left, change)
			}
		}
	}
}

// merged leaves out what is said twice: a "*" stands for everything before it,
// and all that makes an org's whole configuration is one change.
func merged(changes []string) (out []string) {
	seen := map[string]bool{}
	for _, c := range changes {
		f := strings.Fields(c)
		if len(f) > 2 {
			switch f[0] {
			case "orgs", "policies", "providers", "provider_credentials":
				c = "org " + f[1]
			}
		}
		if c == "*" {
			out, seen = nil, map[string]bool{}
		}
		if !seen[c] {
			seen[c] = true
			out = append(out, c)
		}
	}
	return out
}

// changed applies one change, as aid_changed() in the schema words it.
func (s *Server) changed(ctx context.Context, change string) error {
	began := s.c.Now()
	f := strings.Fields(change)
	var err error
	switch {
	case change == "*":
		err = s.resync(ctx)
	case len(f) >= 2 && f[0] == "org":
		err = s.reload(ctx, f[1])
	case len(f) >= 3 && f[0] == "nodes":
		s.each(f[1], func(st *stream) { st.recheck() })
	case len(f) >= 3 && f[0] == "agents":
		s.each(f[1], func(st *stream) { st.agentChanged(f[2]) })
	case len(f) >= 5 && f[0] == "agent_keys":
		s.each(f[1], func(st *stream) { st.callerChanged("key:" + f[4]) })
	}
	s.metrics.apply.Observe(s.c.Now().Sub(began).Seconds())
	return err
}

// each calls fn for the streams of an org, "" for all.
func (s *Server) each(org string, fn func(*stream)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		if org == "" || st.org == org {
			fn(st)
		}
	}
}

// resync reads everything that somebody is connected for anew: what was said while
// nobody listened is lost.
func (s *Server) resync(ctx context.Context) error {
	s.mu.Lock()
	var orgs []string
	for id := range s.orgs {
		orgs = append(orgs, id)
	}
	s.mu.Unlock()
	for _, id := range orgs {
		if err := s.reload(ctx, id); err != nil {
			return err
		}
	}
	s.each("", func(st *stream) {
		st.recheck()
		st.agentChanged("")
	})
	s.mu.Lock()
	s.synced = true
	s.mu.Unlock()
	return nil
}

// beats tells nodes that the database answers.
func (s *Server) beats(ctx context.Context) {
	tick := time.NewTicker(s.c.Heartbeat)
	defer tick.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, s.c.Heartbeat)
		err := s.c.DB.Ping(ask)
		cancel()
		if err == nil {
			s.mu.Lock()
			s.beat = s.c.Now()
			s.mu.Unlock()
			s.each("", (*stream).wake)
		} else if ctx.Err() == nil {
			s.metrics.silent.Inc()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// identify finds the node that a stream is of, or says why there is none.
func (s *Server) identify(ctx context.Context) (identity.Node, error) {
	presented, err := presentedBy(ctx)
	if err != nil {
		s.metrics.refused.Inc()
		return identity.Node{}, status.Error(codes.Unauthenticated, err.Error())
	}
	n, err := s.node(ctx, presented)
	switch {
	case errors.Is(err, identity.ErrNotFound):
		s.metrics.refused.Inc()
		return n, status.Error(codes.Unauthenticated, "this token or certificate is of no node; make one with `aid node create`")
	case err != nil:
		s.c.Log.WarnContext(ctx, "looking up a node", "err", err)
		return n, status.Error(codes.Unavailable, "nodes cannot be looked up now")
	}
	if err := n.ActiveAt(s.c.Now()); err != nil {
		s.metrics.refused.Inc()
		return n, status.Error(codes.Unauthenticated, "this node was revoked or has expired")
	}
	return n, nil
}
