package xds

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ai-identity/ai-identity/identity"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
)

// Limits of one response. More data is sent in several responses.
const (
	maxAnswerResources = 1000
	maxAnswerBytes     = 2 << 20
	// callersAtOnce is how many callers one transaction reads. A node has one transaction
	// at a time. readsAtOnce nodes have one at the same time, in the order of their requests.
	callersAtOnce = 500
	readsAtOnce   = 4
	// maxTogether limits the messages that are handled before their callers are read.
	maxTogether = 256
	// maxAsked limits the waiting lookups of one node. A sidecar has at most lookupWindow.
	maxAsked = 10_000
	// maxSubscribed limits the callers that a node is subscribed to.
	maxSubscribed = 2_000_000
)

// stream is one node's connection. Other goroutines only set what is due and wake it. Only
// its loop uses the other fields.
type stream struct {
	s         *Server
	node      identity.Node
	orgs      []string // the node's orgs, sorted; used by the loop, and changed under Server.mu
	presented string
	woken     chan struct{} // has a token while something is due

	mu      sync.Mutex          // guards what is due
	dead    bool                // the node may have been revoked
	agents  map[string]struct{} // agents with due callers; "": all
	callers map[string]struct{} // due names

	g     discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	subs  map[string]*subscription // by type
	asked []string                 // callers that requests wait for, in the order of the lookups
	owner map[string]string        // the agent of each caller that was sent
	nonce uint64
}

// subscription is a stream's subscription to a type, and the sent versions.
type subscription struct {
	whole    bool
	names    map[string]struct{}
	sent     map[string]string // version by name
	answered bool
}

func (st *stream) wake() {
	select {
	case st.woken <- struct{}{}:
	default:
	}
}

func (st *stream) note(fn func()) {
	st.mu.Lock()
	fn()
	st.mu.Unlock()
	st.wake()
}

func (st *stream) recheck()                  { st.note(func() { st.dead = true }) }
func (st *stream) agentChanged(id string)    { st.note(func() { st.agents[id] = struct{}{} }) }
func (st *stream) callerChanged(name string) { st.note(func() { st.callers[name] = struct{}{} }) }

// DeltaAggregatedResources serves one node until it disconnects or is revoked.
func (s *Server) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx := g.Context()
	n, err := s.identify(ctx)
	if err != nil {
		return err
	}
	presented, _ := presentedBy(ctx)
	st := &stream{
		s: s, orgs: n.Orgs, node: n, presented: presented, woken: make(chan struct{}, 1), g: g,
		agents: make(map[string]struct{}), callers: make(map[string]struct{}),
		subs: make(map[string]*subscription), owner: make(map[string]string),
	}
	if err := s.join(ctx, st); err != nil {
		s.c.Log.WarnContext(ctx, "reading the configuration of a node's orgs", "node", n.ID, "err", err)
		return status.Error(codes.Unavailable, "the org's configuration cannot be read now")
	}
	defer s.leave(st)
	reqs, failed := make(chan *discoveryv3.DeltaDiscoveryRequest, maxTogether), make(chan error, 1)
	go func() {
		for {
			req, err := g.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case reqs <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-failed:
			return nil
		case req := <-reqs:
			// Lookups that arrived in the meantime share a transaction.
			for more := len(reqs); ; more-- {
				if err := st.request(ctx, req); err != nil {
					return err
				}
				if more == 0 {
					break
				}
				req = <-reqs
			}
		case <-st.woken:
		}
		if err := st.push(ctx); err != nil {
			return err
		}
	}
}

// request handles a node's request: changes of subscriptions, and the ACK or NACK of a
// response.
func (st *stream) request(ctx context.Context, req *discoveryv3.DeltaDiscoveryRequest) error {
	t := req.GetTypeUrl()
	if d := req.GetErrorDetail(); d != nil {
		st.s.metrics.nacks.WithLabelValues(short(t)).Inc()
		st.s.c.Log.ErrorContext(ctx, "a node rejects a response", "node", st.node.ID, "type", short(t), "err", provider.Clip(d.GetMessage(), 500))
	} else if req.GetResponseNonce() != "" {
		st.s.metrics.acks.WithLabelValues(short(t)).Inc()
	}
	k, known := kindOf(t)
	if known && !st.node.Has(k.role) {
		st.s.metrics.refused.Inc()
		return status.Errorf(codes.PermissionDenied, "this node does not have the role %s, which fetching %s requires: create a node with `aid node create --role %s`", k.role, k.short, k.role)
	}
	if !known {
		if st.subs[t] == nil && len(st.subs) < 64 {
			st.subs[t] = &subscription{} // this type never has resources; see missing
		}
		return nil
	}
	sub := st.subs[t]
	first := sub == nil
	if first {
		sub = &subscription{names: make(map[string]struct{}), sent: make(map[string]string)}
		// A first request without names is a wildcard subscription.
		sub.whole = !k.named && len(req.GetResourceNamesSubscribe()) == 0
		maps.Copy(sub.sent, req.GetInitialResourceVersions())
		st.subs[t] = sub
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == "*" {
			sub.whole = !k.named
			continue
		}
		if len(sub.names) >= maxSubscribed {
			return status.Error(codes.ResourceExhausted, "this node has too many subscriptions")
		}
		sub.names[name] = struct{}{}
		if !first {
			delete(sub.sent, name) // a node that subscribes again receives it again
		}
		switch {
		case t != CallerType:
		case first:
			st.callerChanged(name) // the node has it, so lookups of unknown callers come first
		case len(st.asked) >= maxAsked:
			st.s.metrics.refused.Inc()
			return status.Errorf(codes.ResourceExhausted, "this node has %d waiting lookups already", maxAsked)
		default:
			st.asked = append(st.asked, name)
			st.wake()
		}
		sub.answered = false
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == "*" {
			sub.whole = false
		}
		delete(sub.names, name)
		delete(sub.sent, name)
		delete(st.owner, name)
	}
	return nil
}

// push sends the resources that the node should have and does not have.
func (st *stream) push(ctx context.Context) error {
	st.mu.Lock()
	recheck, agents, callers := st.dead, st.agents, st.callers
	st.dead, st.agents, st.callers = false, make(map[string]struct{}), make(map[string]struct{})
	st.mu.Unlock()
	if expires := st.node.ExpiresAt; recheck || !expires.IsZero() && !st.s.c.Now().Before(expires) {
		if err := st.lookAgain(ctx); err != nil {
			return err
		}
	}
	if err := st.pushWholeTypes(ctx); err != nil {
		return err
	}
	return st.pushCallers(ctx, agents, callers)
}

// lookAgain reads the node again. If its orgs have changed, the difference is sent. If its
// roles have changed, the stream ends and the node opens a new one.
func (st *stream) lookAgain(ctx context.Context) error {
	n, err := st.s.node(ctx, st.presented)
	switch {
	case errors.Is(err, identity.ErrNotFound), err == nil && n.ActiveAt(st.s.c.Now()) != nil:
		return status.Error(codes.Unauthenticated, "this node was revoked or has expired")
	case err != nil:
		st.mu.Lock()
		st.dead = true // without a wake: the heartbeat wakes the loop when the database responds again
		st.mu.Unlock()
		return nil
	case n.ID != st.node.ID || !slices.Equal(n.Roles, st.node.Roles):
		return status.Error(codes.Aborted, "this node has changed: open the stream again")
	}
	st.node = n
	if slices.Equal(n.Orgs, st.orgs) {
		return nil
	}
	st.s.mu.Lock()
	st.orgs = n.Orgs
	st.s.forgetLocked()
	st.s.mu.Unlock()
	st.agentChanged("")
	if err := st.s.join(ctx, st); err != nil {
		st.s.c.Log.WarnContext(ctx, "reading the configuration of a node's orgs", "node", n.ID, "err", err)
		return status.Error(codes.Unavailable, "the configuration of an org cannot be read now")
	}
	return nil
}

// pushWholeTypes sends the types with a wildcard subscription.
func (st *stream) pushWholeTypes(ctx context.Context) error {
	egress := st.node.Has(identity.NodeEgress) && st.node.Has(identity.NodeEnvoy)
	v, loaded := st.s.viewOf(ctx, st.orgs, egress)
	if !loaded {
		return nil
	}
	if egress && st.subs[SecretType] != nil {
		if err := st.s.certify(ctx, v, st.node.ID); err != nil {
			return err
		}
	}
	if err := v.put(NodeType, nodeName, &aidv1.Node{Id: st.node.ID, HomeOrgId: st.node.HomeID}); err != nil {
		return err
	}
	whole := v.resources
	for _, k := range kinds {
		t := k.url
		sub := st.subs[t]
		if sub == nil || k.named || v.keeps(t, "") {
			continue
		}
		var add []*discoveryv3.Resource
		var missing []string
		for _, name := range slices.Sorted(maps.Keys(whole[t])) {
			r := whole[t][name]
			if sub.wants(name) && sub.sent[name] != r.GetVersion() {
				add = append(add, r)
			}
		}
		if !sub.answered {
			for name := range sub.names {
				if whole[t][name] == nil && !v.keeps(t, name) {
					missing = append(missing, name)
				}
			}
		}
		if err := st.send(t, sub, add, missing); err != nil {
			return err
		}
	}
	for _, k := range slices.Backward(kinds) {
		t := k.url
		sub := st.subs[t]
		if sub == nil || k.named || v.keeps(t, "") {
			continue
		}
		var gone []string
		for name := range sub.sent {
			if whole[t][name] == nil && !v.keeps(t, name) {
				gone = append(gone, name)
			}
		}
		if err := st.send(t, sub, nil, gone); err != nil {
			return err
		}
	}
	return nil
}

func (sub *subscription) wants(name string) bool {
	_, named := sub.names[name]
	return sub.whole || named
}

// send sends resources in as many responses as needed. The first response of a subscription
// is sent even if it is empty.
func (st *stream) send(t string, sub *subscription, add []*discoveryv3.Resource, gone []string) error {
	slices.Sort(gone)
	for first := true; len(add) > 0 || len(gone) > 0 || first && !sub.answered; first = false {
		n, size := 0, 0
		for n < len(add) && n < maxAnswerResources && (n == 0 || size < maxAnswerBytes) {
			size += proto.Size(add[n])
			n++
		}
		m := min(len(gone), maxAnswerResources)
		st.nonce++
		resp := &discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: t, Resources: add[:n], RemovedResources: gone[:m], Nonce: strconv.FormatUint(st.nonce, 10),
		}
		if err := st.g.Send(resp); err != nil {
			return err
		}
		st.s.metrics.pushed.WithLabelValues(short(t)).Add(float64(n + m))
		for _, r := range add[:n] {
			sub.sent[r.GetName()] = r.GetVersion()
		}
		for _, name := range gone[:m] {
			delete(sub.sent, name)
		}
		add, gone, sub.answered = add[n:], gone[m:], true
	}
	return nil
}

// pushCallers reads due callers and sends those that have changed. A caller that does not
// exist is sent as removed. It uses one transaction. The rest is read after the node's other
// messages. Callers that requests wait for come first.
func (st *stream) pushCallers(ctx context.Context, agents, due map[string]struct{}) error {
	sub := st.subs[CallerType]
	if sub == nil {
		return nil
	}
	_, everyone := agents[""]
	if everyone {
		maps.Copy(due, sub.names)
	} else if len(agents) > 0 {
		for name, agent := range st.owner {
			if _, ok := agents[agent]; ok {
				due[name] = struct{}{}
			}
		}
	}
	names := make([]string, 0, min(len(st.asked)+len(due), callersAtOnce))
	part := make(map[string]struct{}, cap(names))
	take := func(name string) {
		if _, again := part[name]; !again && sub.wants(name) {
			part[name] = struct{}{}
			names = append(names, name)
		}
		delete(due, name)
	}
	for len(st.asked) > 0 && len(names) < callersAtOnce {
		take(st.asked[0])
		st.asked = st.asked[1:]
	}
	for name := range due {
		if len(names) == callersAtOnce {
			break
		}
		take(name)
	}
	if len(due) > 0 {
		st.note(func() {
			maps.Copy(due, st.callers)
			st.callers = due
		})
	} else if len(st.asked) > 0 {
		st.wake()
	}
	if len(names) == 0 {
		return nil
	}
	found, err := st.s.callersInTurn(ctx, st.orgs, names)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		st.s.c.Log.WarnContext(ctx, "reading callers failed; trying again", "node", st.node.ID, "callers", len(names), "err", err)
		st.asked = append(names, st.asked...)
		// Not at once: the heartbeat wakes the loop when the database responds again.
		select {
		case <-st.woken:
		default:
		}
		return nil
	}
	var add []*discoveryv3.Resource
	var gone []string
	for _, name := range names {
		c, ok := found[name]
		if !ok {
			gone = append(gone, name)
			delete(st.owner, name)
			continue
		}
		st.owner[name] = c.agent
		if sub.sent[name] != c.resource.GetVersion() {
			add = append(add, c.resource)
		}
	}
	sub.answered = true // no empty response is needed
	return st.send(CallerType, sub, add, gone)
}

// callersInTurn is readCallers, for a few nodes at the same time, so that lookups never use
// all connections of the database.
func (s *Server) callersInTurn(ctx context.Context, orgs, names []string) (map[string]callerRead, error) {
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.readCallers(ctx, orgs, names)
}

// callerRead is the resource of a caller that was found, and the id of its agent.
type callerRead struct {
	resource *discoveryv3.Resource
	agent    string
}

// readCallers looks up callers by name, only in the orgs. Callers that do not exist are left
// out, and are cached as missing for a while.
func (s *Server) readCallers(ctx context.Context, orgs, names []string) (map[string]callerRead, error) {
	since := s.missing.now()
	out := make(map[string]callerRead, len(names))
	var asked []string // names that are looked up
	var all presentedHashes
	for _, name := range names {
		p, ok := parseCallerName(name)
		if ok && !s.missing.has(name, orgs, s.c.Now()) {
			asked = append(asked, name)
			all.add(p)
		}
	}
	if len(asked) == 0 {
		return out, nil
	}
	byOrg := map[string]*presentedHashes{}
	if len(orgs) == 1 {
		byOrg[orgs[0]] = &all
	} else {
		// A transaction for each org would be too expensive for one unknown key.
		err := s.c.DB.Presenting(ctx, strings.Join(slices.Concat(all.keys, all.workloads), ","), func(tx pgx.Tx) (err error) {
			byOrg, err = all.byOrg(ctx, tx, orgs)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for org, hashes := range byOrg {
		var found map[identity.Presented]identity.Caller
		err := s.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			found, err = hashes.callers(ctx, tx)
			return err
		})
		if err != nil {
			return nil, err
		}
		for p, c := range found {
			name := callerName(p)
			m, err := packCaller(c)
			if err != nil {
				return nil, err
			}
			r, err := resource(name, m)
			if err != nil {
				return nil, err
			}
			out[name] = callerRead{r, c.Agent.ID}
		}
	}
	var gone []string
	for _, name := range asked {
		if out[name].resource == nil {
			gone = append(gone, name)
		}
	}
	s.missing.note(since, gone, orgs, s.c.Now())
	return out, nil
}

// presentedHashes are hashes in hexadecimal, of keys and of workloads.
type presentedHashes struct{ keys, workloads []string }

func (h *presentedHashes) add(p identity.Presented) {
	if hash, is := p.WorkloadHash(); is {
		h.workloads = append(h.workloads, hash)
	} else {
		h.keys = append(h.keys, string(p))
	}
}

// byOrg returns the hashes of each of the orgs. The transaction was opened by Presenting all of
// them.
func (h *presentedHashes) byOrg(ctx context.Context, tx pgx.Tx, orgs []string) (map[string]*presentedHashes, error) {
	out := map[string]*presentedHashes{}
	put := func(of map[string]string, as func(hash string) identity.Presented) {
		for hash, org := range of {
			if !slices.Contains(orgs, org) {
				continue
			}
			if out[org] == nil {
				out[org] = &presentedHashes{}
			}
			out[org].add(as(hash))
		}
	}
	if len(h.keys) > 0 {
		of, err := identity.OrgsOfKeys(ctx, tx, h.keys)
		if err != nil {
			return nil, err
		}
		put(of, func(hash string) identity.Presented { return identity.Presented(hash) })
	}
	if len(h.workloads) > 0 {
		of, err := identity.OrgsOfWorkloads(ctx, tx, h.workloads)
		if err != nil {
			return nil, err
		}
		put(of, identity.PresentedHash)
	}
	return out, nil
}

// callers returns the callers of the transaction's org. Unknown hashes are left out.
func (h *presentedHashes) callers(ctx context.Context, tx pgx.Tx) (map[identity.Presented]identity.Caller, error) {
	out := make(map[identity.Presented]identity.Caller, len(h.keys)+len(h.workloads))
	if len(h.keys) > 0 {
		found, err := identity.CallersByHash(ctx, tx, h.keys)
		if err != nil {
			return nil, err
		}
		for hash, c := range found {
			out[identity.Presented(hash)] = c
		}
	}
	if len(h.workloads) > 0 {
		found, err := identity.CallersByWorkload(ctx, tx, h.workloads)
		if err != nil {
			return nil, err
		}
		for hash, c := range found {
			out[identity.PresentedHash(hash)] = c
		}
	}
	return out, nil
}

// heartbeatLocked returns the resource with the time of the database's last response.
func (s *Server) heartbeatLocked() *discoveryv3.Resource {
	if s.beat.IsZero() {
		return nil
	}
	r, err := resource(heartbeatName, &aidv1.Heartbeat{Time: timestamppb.New(s.beat)})
	if err != nil {
		return nil // not reached: a timestamp can be packed
	}
	return r
}
