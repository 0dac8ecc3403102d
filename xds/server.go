package xds

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
)

// Appender appends the records that a node ships; *audit.Chain is one.
type Appender interface {
	// Append returns the sequence number up to which records are committed.
	Append(ctx context.Context, b audit.Batch) (uint64, error)
}

// ServerConfig configures a Server.
type ServerConfig struct {
	DB       *store.DB
	Sealer   *provider.Sealer // decrypts the credentials that are pushed to nodes
	Appender Appender
	Ledger   Ledger // of sums of USD caps

	Gateway string           // host:port that Envoys listen on for applications
	Usage   string           // reader of usage in responses: "stream" or "envoy"
	MaxBody int64            // largest request body, in bytes
	Origins []string         // origins of web pages that may call the gateway
	Targets provider.Targets // the addresses that providers may use
	Tiers   policy.Tiers     // the limits of organizations by their tiers; nil: tiers have none
	CAFile  string           // PEM file on the Envoys' machines with the CAs of providers; empty: the system's
	Egress  Egress           // for nodes with the role egress; zero: nothing is intercepted
	Leaves  Leaves           // certificates of Egress; nil: none

	AccessLog string // file on the Envoys' machines for the tie-out; empty: none
	// DigestKey returns the key for digests of request bodies in the audit log. Reread calls
	// it again. Each org has its own key, which is derived from it. Empty: there are no
	// digests.
	DigestKey func() []byte

	// Heartbeat is the interval of heartbeats to nodes, sent while the database responds.
	// 0: 2 s.
	Heartbeat time.Duration
	Now       func() time.Time // nil: time.Now
	Log       *slog.Logger     // nil: slog.Default()
	// Registerer registers the metrics (aid_xds_…). Nil: they are not exported.
	Registerer prometheus.Registerer
}

// Leaves issues certificates for governed hosts; *identity.Authority does.
type Leaves interface {
	// Leaf returns the chain without the root and the key, as PEM, and the end of its life.
	Leaf(ctx context.Context, host string, now time.Time) (chain, key []byte, notAfter time.Time, err error)
}

// Server serves Envoys and sidecars over delta ADS, and accepts their audit records.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	aidv1.UnimplementedIngestServer
	aidv1.UnimplementedBudgetsServer

	c        ServerConfig
	metrics  *serverMetrics
	missing  missing       // cache of callers that do not exist
	turns    chan struct{} // has a token for each transaction that reads callers
	counting chan struct{} // has a token for each transaction that reads counts
	reading  sync.Mutex    // held while an org's configuration is read and published
	changes  *queue        // changes to read

	mu      sync.Mutex
	orgs    map[string]*orgState // orgs with a connected node
	joined  map[string]joined    // by the orgs' ids, and whether the node intercepts
	leaves  map[[2]string]leaf   // by node and host
	streams map[*stream]struct{}
	appends appendStreams
	synced  bool      // notifications of the database are received
	beat    time.Time // the last heartbeat
}

// orgState is the configuration of an org's nodes. Guarded by Server.mu.
type orgState struct {
	id       string
	loaded   bool
	view     view      // the resources of sidecars
	envoy    *Snapshot // the last valid one; nil: there was none yet
	unopened []string  // providers with a credential or header that could not be decrypted
	opened   int       // credentials and providers' headers that could
}

// NewServer returns a server. It serves only while Run runs.
func NewServer(c ServerConfig) (*Server, error) {
	if c.DB == nil || c.Sealer == nil || c.Appender == nil || c.Ledger == nil {
		return nil, errors.New("xds requires a DB, a Sealer, an Appender and a Ledger")
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
	s := &Server{c: c, orgs: make(map[string]*orgState), joined: make(map[string]joined), leaves: make(map[[2]string]leaf), streams: make(map[*stream]struct{}), appends: make(appendStreams), turns: make(chan struct{}, readsAtOnce), counting: make(chan struct{}, countsAtOnce), changes: newQueue()}
	var err error
	if s.metrics, err = newServerMetrics(c.Registerer, s.connected, s.unopenedCount); err != nil {
		return nil, fmt.Errorf("registering xds's metrics: %w", err)
	}
	return s, nil
}

// Register adds ADS, the audit ingest and the lookup of sums to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
	aidv1.RegisterIngestServer(r, s)
	aidv1.RegisterBudgetsServer(r, s)
}

// Ready is nil if changes in the database are received, and this server has the keys of
// the credentials. One that opens none of them has the wrong keys and serves no new node.
// Without a connected node there are no credentials to open. Then the keys must fit the
// proof that the installation's first control plane stored. Credentials that do not open
// beside others that do are in Unopened.
func (s *Server) Ready(ctx context.Context) error {
	s.mu.Lock()
	synced, opened, unopened := s.synced, 0, s.unopenedLocked()
	for _, o := range s.orgs {
		opened += o.opened
	}
	s.mu.Unlock()
	switch {
	case !synced:
		return errors.New("not listening to the database yet")
	case opened == 0 && unopened != nil:
		return fmt.Errorf("no credential can be opened: %w", unopened)
	}
	err := provider.CheckKeys(ctx, s.c.DB.Pool(), s.c.Sealer)
	if errors.Is(err, provider.ErrUnreadable) {
		if opened > 0 {
			return nil // The proof has a newer key than these credentials.
		}
		return fmt.Errorf("%w: --fernet-keys is not the file of this installation, so no credential can be opened. Copy the file of the other control planes. If the file is right, run aid keys reseal", err)
	}
	return err
}

// Unopened names credentials and headers that cannot be opened, of the connected orgs;
// nil: there are none.
func (s *Server) Unopened() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unopenedLocked()
}

func (s *Server) unopenedLocked() error {
	const shown = 10
	var names []string
	n := 0
	for _, id := range slices.Sorted(maps.Keys(s.orgs)) {
		for _, p := range s.orgs[id].unopened {
			if n++; n <= shown {
				names = append(names, p+" ("+id+")")
			}
		}
	}
	if n == 0 {
		return nil
	}
	if n > shown {
		names = append(names, fmt.Sprintf("%d more", n-shown))
	}
	return fmt.Errorf("the credential or a header of %s cannot be decrypted. Nodes keep the last one. Add the key that encrypted it to --fernet-keys, or set it again",
		strings.Join(names, ", "))
}

func (s *Server) unopenedCount() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.orgs {
		n += len(o.unopened)
	}
	return n
}

// Nodes is how many nodes are connected. Envoys and sidecars count each.
func (s *Server) Nodes() int { return s.connected() }

func (s *Server) connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// Run receives changes of the database and pushes them until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { s.apply(ctx, s.changes) })
	wg.Go(func() { s.heartbeats(ctx) })
	err := s.c.DB.Listen(ctx, "aid_changed", s.changes.add, s.changes.all)
	cancel()
	wg.Wait()
	return err
}

// Reread makes Run read the configuration of all connected orgs again. Call it when
// ServerConfig.Sealer has new keys, which may decrypt more.
func (s *Server) Reread() { s.changes.all() }

// Any role of the database may send a notification. So it is only a hint of what to read,
// and what it can cost is bounded.
const (
	// maxQueued limits the queued changes. With more of them, everything is read again.
	maxQueued = 2_000
	// floodPause is the least time between two such readings.
	floodPause = 5 * time.Second
	// maxApplied bounds the changes that are remembered: one that is notified again is
	// not read again.
	maxApplied = 20_000
	// applyPause is the least time between two rounds of reading changes.
	applyPause = 50 * time.Millisecond
)

// queue holds what was notified, each once, until it is applied.
type queue struct {
	mu      sync.Mutex
	set     map[announced]struct{}
	order   []announced
	whole   bool          // read everything
	flooded bool          // there was more than maxQueued: read everything, but not too often
	more    chan struct{} // holds a token while there is something

	applied map[announced]struct{} // lately
	oldest  []announced            // of applied, in order
}

// announced is a row of the table changes: its number, and the tag of its org.
type announced struct {
	seq int64
	tag string
}

// parseAnnounced reads the payload that aid_changed() in the schema sends.
func parseAnnounced(payload string) (a announced, ok bool) {
	number, tag, ok := strings.Cut(payload, " ")
	seq, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || seq < 0 || strconv.FormatInt(seq, 10) != number || len(tag) != tagLength {
		return announced{}, false
	}
	return announced{seq, tag}, true
}

const tagLength = 16

// of reports whether the change may belong to the org.
func (a announced) of(org string) bool {
	sum := sha256.Sum256([]byte(strconv.FormatInt(a.seq, 10) + " " + org))
	return hex.EncodeToString(sum[:])[:tagLength] == a.tag
}

func newQueue() *queue {
	return &queue{set: make(map[announced]struct{}), applied: make(map[announced]struct{}), more: make(chan struct{}, 1)}
}

func (q *queue) add(payload string) {
	a, ok := parseAnnounced(payload)
	if !ok {
		return // not from the schema
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, again := q.applied[a]; again || q.whole || q.flooded {
		return
	}
	if _, ok := q.set[a]; !ok {
		q.set[a] = struct{}{}
		q.order = append(q.order, a)
	}
	if len(q.order) > maxQueued {
		q.flooded, q.order = true, nil
		clear(q.set)
	}
	q.wake()
}

// done remembers changes that were applied.
func (q *queue) done(all []announced) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range all {
		if _, ok := q.applied[a]; !ok {
			q.applied[a] = struct{}{}
			q.oldest = append(q.oldest, a)
		}
	}
	for len(q.oldest) > maxApplied {
		delete(q.applied, q.oldest[0])
		q.oldest = q.oldest[1:]
	}
}

// all queues reading everything.
func (q *queue) all() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wholeLocked()
	q.wake()
}

func (q *queue) wholeLocked() {
	q.whole, q.flooded, q.order, q.oldest = true, false, nil, nil
	clear(q.set)
	clear(q.applied) // the database may be another one, with the same numbers
}

func (q *queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take returns what is to be read. With flood, it may be everything because too much was
// notified; else that stays to be done.
func (q *queue) take(flood bool) (all []announced, whole, flooded bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	all, whole, flooded = q.order, q.whole, flood && q.flooded
	q.order, q.whole, q.flooded = nil, false, q.flooded && !flooded && !q.whole
	clear(q.set)
	return all, whole, flooded
}

// waits is true if too much was notified and everything is to be read.
func (q *queue) waits() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.flooded
}

// apply reads the changes and passes them to the streams. A change that cannot be read now is
// tried again.
func (s *Server) apply(ctx context.Context, changes *queue) {
	retry := time.NewTicker(s.c.Heartbeat)
	defer retry.Stop()
	var left []string
	var unread []announced
	var flooded, began time.Time
	for {
		rest(ctx, applyPause-s.c.Now().Sub(began))
		select {
		case <-ctx.Done():
			return
		case <-changes.more:
		case <-retry.C:
			if len(left)+len(unread) == 0 && !changes.waits() {
				continue
			}
		}
		began = s.c.Now()
		todo := left
		left = nil
		fresh, whole, flood := changes.take(began.Sub(flooded).Abs() >= floodPause)
		if flood {
			s.metrics.flooded.Inc()
			s.c.Log.WarnContext(ctx, "too many notifications of changes: everything is read again", "limit", maxQueued, "pause", floodPause)
			whole, flooded = true, began
		}
		if whole {
			todo, unread, fresh = []string{"*"}, nil, nil
		}
		waiting := append(unread, fresh...)
		read, err := s.read(ctx, waiting)
		if unread = nil; err != nil && ctx.Err() == nil {
			s.c.Log.WarnContext(ctx, "reading changes failed; trying again", "err", err)
			if unread = waiting; len(unread) > maxQueued {
				todo, unread = []string{"*"}, nil
			}
		}
		if err == nil {
			changes.done(waiting)
		}
		for _, change := range merged(append(todo, read...)) {
			if err := s.changed(ctx, change); err != nil && ctx.Err() == nil {
				s.c.Log.WarnContext(ctx, "reading a change failed; trying again", "change", change, "err", err)
				left = append(left, change)
			}
		}
	}
}

// rest waits for d, or until ctx is done.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// read reads the announced changes of the orgs with a connected node. Each org's changes are
// read in a transaction of that org.
func (s *Server) read(ctx context.Context, all []announced) (changes []string, err error) {
	s.mu.Lock()
	connected := maps.Clone(s.orgs)
	for st := range s.appends {
		for _, org := range st.orgs {
			connected[org] = nil
		}
	}
	s.mu.Unlock()
	for _, org := range slices.Sorted(maps.Keys(connected)) {
		var seqs []int64
		for _, a := range all {
			if a.of(org) {
				seqs = append(seqs, a.seq)
			}
		}
		if len(seqs) == 0 {
			continue
		}
		var of []string
		err := s.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `SELECT what FROM changes WHERE org_id = $1 AND seq = ANY ($2) ORDER BY seq`, org, seqs)
			if err != nil {
				return err
			}
			of, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("the changes of %s: %w", org, err)
		}
		changes = append(changes, of...)
	}
	return changes, nil
}

// merged removes duplicates. A "*" replaces all changes before it. Changes that reload an
// org's whole configuration become one.
func merged(changes []string) (out []string) {
	seen := map[string]bool{}
	for _, c := range changes {
		f := strings.Fields(c)
		if len(f) > 2 {
			switch f[0] {
			case "orgs", "policies", "limit_raises", "providers", "provider_credentials":
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

// changed applies one change: "*" for everything, or a row of the table changes.
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
		s.recheckAppends(f[1])
	case len(f) >= 3 && f[0] == "agents":
		s.each(f[1], func(st *stream) { st.agentChanged(f[2]) })
	case len(f) >= 5 && (f[0] == "agent_keys" || f[0] == "agent_identities"):
		p := identity.Presented(f[4])
		if f[0] == "agent_identities" {
			p = identity.PresentedHash(f[4])
		}
		s.missing.forget(callerName(p))
		s.each(f[1], func(st *stream) { st.callerChanged(callerName(p)) })
	}
	s.metrics.apply.Observe(s.c.Now().Sub(began).Seconds())
	return err
}

// each calls fn for the streams of an org, "" for all.
func (s *Server) each(org string, fn func(*stream)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		if org == "" || slices.Contains(st.orgs, org) {
			fn(st)
		}
	}
}

// resync reads the whole configuration of connected nodes again, because notifications were
// lost while the connection was down.
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
	s.missing.forgetAll()
	s.recheckAppends("")
	s.each("", func(st *stream) {
		st.recheck()
		st.agentChanged("")
	})
	s.mu.Lock()
	s.synced = true
	s.mu.Unlock()
	return nil
}

// heartbeats sends heartbeats to nodes while the database responds.
func (s *Server) heartbeats(ctx context.Context) {
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
			s.dueAppends()
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

// identify returns the node of a stream, or an error if it is not known.
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
		return n, status.Error(codes.Unauthenticated, "no node has this token or certificate; create a node with `aid node create`")
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
