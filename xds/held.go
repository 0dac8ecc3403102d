package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// held has the resources that a client received by wildcard subscription, with their
// versions. Only the loop uses it.
type held struct {
	orgs        map[string]versioned[*aidv1.Org]
	policies    map[string]versioned[*aidv1.Policy]
	providers   map[string]versioned[provider.Provider]
	credentials map[string]versioned[*aidv1.Credential]
	nodes       map[string]versioned[*aidv1.Node]
}

type versioned[T any] struct {
	version string
	value   T
}

func newHeld() held {
	return held{
		orgs: make(map[string]versioned[*aidv1.Org]), policies: make(map[string]versioned[*aidv1.Policy]),
		providers: make(map[string]versioned[provider.Provider]), credentials: make(map[string]versioned[*aidv1.Credential]),
		nodes: make(map[string]versioned[*aidv1.Node]),
	}
}

// received has the resources of one type.
type received interface {
	versions() map[string]string
	// receive applies a response. A resource that cannot be parsed keeps its old value. The
	// others are applied. The error names those that were not applied.
	receive(*discoveryv3.DeltaDiscoveryResponse) error
}

// of returns the resources of a type, or nil if the client does not keep the type.
func (h held) of(t string) received {
	switch t {
	case OrgType:
		return table[*aidv1.Org, *aidv1.Org]{h.orgs, same[*aidv1.Org]}
	case NodeType:
		return table[*aidv1.Node, *aidv1.Node]{h.nodes, same[*aidv1.Node]}
	case PolicyType:
		return table[*aidv1.Policy, *aidv1.Policy]{h.policies, same[*aidv1.Policy]}
	case ProviderType:
		return table[*aidv1.Provider, provider.Provider]{h.providers, unpackProvider}
	case CredentialType:
		return table[*aidv1.Credential, *aidv1.Credential]{h.credentials, same[*aidv1.Credential]}
	}
	return nil
}

func (h held) versions(t string) map[string]string {
	if r := h.of(t); r != nil {
		return r.versions()
	}
	return nil
}

func (h held) clone() held {
	return held{orgs: maps.Clone(h.orgs), policies: maps.Clone(h.policies), providers: maps.Clone(h.providers), credentials: maps.Clone(h.credentials),
		nodes: maps.Clone(h.nodes)}
}

// table has the resources of one type. They are received as M and stored as T.
type table[M proto.Message, T any] struct {
	into   map[string]versioned[T]
	unpack func(M) (T, error)
}

func (t table[M, T]) versions() map[string]string {
	out := make(map[string]string, len(t.into))
	for name, v := range t.into {
		out[name] = v.version
	}
	return out
}

func (t table[M, T]) receive(resp *discoveryv3.DeltaDiscoveryResponse) error {
	var bad []error
	for _, r := range resp.GetResources() {
		var none M
		m, ok := none.ProtoReflect().New().Interface().(M)
		if err := r.GetResource().UnmarshalTo(m); !ok || err != nil {
			bad = append(bad, fmt.Errorf("%s: the resource has another type", r.GetName()))
			continue
		}
		v, err := t.unpack(m)
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", r.GetName(), err))
			continue
		}
		t.into[r.GetName()] = versioned[T]{r.GetVersion(), v}
	}
	for _, name := range resp.GetRemovedResources() {
		delete(t.into, name)
	}
	return errors.Join(bad...)
}

// receive applies a response. An error names the resources that were not applied. For these
// the old values stay, and the control plane receives the error. An error in one org does
// not affect the others.
func (x *Client) receive(ctx context.Context, resp *discoveryv3.DeltaDiscoveryResponse) error {
	x.metrics.received.WithLabelValues(short(resp.GetTypeUrl())).Add(float64(len(resp.GetResources()) + len(resp.GetRemovedResources())))
	switch k, _ := kindOf(resp.GetTypeUrl()); {
	case k.url == HeartbeatType:
		if len(resp.GetResources()) > 0 {
			now := x.c.Now() // the local clock, so that clocks need not agree
			x.beat.Store(&now)
		}
		return nil
	case k.named:
		return x.receiveCallers(resp)
	}
	next := x.held.clone()
	of := next.of(resp.GetTypeUrl())
	if of == nil {
		return errors.New("the client did not subscribe to this type")
	}
	bad := of.receive(resp)
	home := next.nodes[nodeName].value.GetHomeOrgId()
	x.home.Store(&home)
	orgs, err := next.build(ctx, *x.orgs.Load())
	x.held = next
	x.orgs.Store(&orgs)
	return errors.Join(bad, err)
}

func same[M proto.Message](m M) (M, error) { return m, nil }

// build builds the configuration for decisions. An org is complete once its own resource has
// arrived, since it is sent last. Policies are compiled only if they have changed, since
// compiling is slow and most changes are others. An org that cannot be built keeps its old
// configuration, and the error names it.
func (h held) build(ctx context.Context, before map[string]verdict.Org) (map[string]verdict.Org, error) {
	orgs := make(map[string]verdict.Org, len(h.orgs))
	var bad []error
	for id := range h.orgs {
		o, err := h.org(ctx, id, before[id])
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", id, err))
			var had bool
			if o, had = before[id]; !had {
				continue
			}
		}
		orgs[id] = o
	}
	return orgs, errors.Join(bad...)
}

func (h held) org(ctx context.Context, id string, before verdict.Org) (verdict.Org, error) {
	o := h.orgs[id]
	var ps []policy.Policy
	for _, p := range h.policies {
		if p.value.GetOrgId() == id {
			ps = append(ps, unpackPolicy(p.value))
		}
	}
	bundle := before.Policies
	if !bundle.Of(ps) {
		var err error
		if bundle, err = policy.Compile(ctx, ps); err != nil {
			return verdict.Org{}, err
		}
	}
	var providers []provider.Provider
	for _, name := range slices.Sorted(maps.Keys(h.providers)) {
		p := h.providers[name].value
		if p.OrgID != id {
			continue
		}
		// A credential is used only for the cluster that it was set for.
		if c := h.credentials[name].value; c.GetOrgId() == id && c.GetProviderId() == p.ID && c.GetCluster() == p.Cluster {
			p.Credential = provider.NewSecret(string(c.GetSecret()))
		}
		providers = append(providers, p)
	}
	registry, err := provider.NewRegistry(providers, policy.Matches)
	if err != nil {
		return verdict.Org{}, err
	}
	calendar, err := unpackCalendar(o.value)
	if err != nil {
		return verdict.Org{}, err
	}
	var tier *policy.Tier
	if text := o.value.GetTierLimitsJson(); len(text) > 0 {
		if tier, err = policy.ParseTier(o.value.GetTier(), text); err != nil {
			return verdict.Org{}, err
		}
	}
	raises, err := unpackRaises(o.value.GetRaises())
	if err != nil {
		return verdict.Org{}, err
	}
	return verdict.Org{ID: id, Raises: raises, Tier: o.value.GetTier(), TierLimits: tier, DigestKey: o.value.GetDigestKey(), Policies: bundle, Providers: registry, Calendar: calendar}, nil
}

// unpackRaises returns the raises by the names of their counts.
func unpackRaises(rs []*aidv1.Raise) (map[string][]verdict.Raise, error) {
	if len(rs) == 0 {
		return nil, nil
	}
	out := make(map[string][]verdict.Raise, len(rs))
	for _, r := range rs {
		if r.GetCounter() == "" || r.GetPeriod() == "" || r.GetNanoUsd() <= 0 || r.GetEndsAt() == nil {
			return nil, errors.New("a raise of a cap is not whole")
		}
		out[r.GetCounter()] = append(out[r.GetCounter()], verdict.Raise{Period: r.GetPeriod(), NanoUSD: r.GetNanoUsd(), Ends: r.GetEndsAt().AsTime()})
	}
	return out, nil
}

// unpackCalendar returns nil, which is UTC, for the org of a control plane without zones.
func unpackCalendar(o *aidv1.Org) (*budget.Calendar, error) {
	if o.GetTimezone() == "" {
		return nil, nil
	}
	var from time.Time
	if t := o.GetTimezoneFrom(); t != nil {
		from = t.AsTime()
	}
	return budget.NewCalendar(o.GetTimezone(), cmp.Or(o.GetTimezoneBefore(), o.GetTimezone()), from)
}

// change has the arguments of Changed, which is called after the lock is released.
type change struct {
	p      identity.Presented
	caller identity.Caller
	known  bool
}

// receiveCallers applies received callers, and wakes the requests that wait for them. A
// caller that cannot be parsed becomes unknown, so its requests are denied.
func (x *Client) receiveCallers(resp *discoveryv3.DeltaDiscoveryResponse) error {
	var bad error
	var changes []change
	now := x.c.Now()
	x.mu.Lock()
	for _, r := range resp.GetResources() {
		p, ok := parseCallerName(r.GetName())
		if !ok {
			bad = errors.New("a caller with another name than its resource")
			continue
		}
		var m aidv1.Caller
		err := r.GetResource().UnmarshalTo(&m)
		var c identity.Caller
		if err == nil {
			c, err = unpackCaller(p, &m)
		}
		if err != nil {
			bad = err
			changes = append(changes, x.forgetLocked(p, now)...)
			continue
		}
		_, had := x.callers[p]
		_, asked := x.lookups.byKey[p]
		if !had && !asked {
			x.requestLocked(p, false) // evicted in the meantime
			continue
		}
		next := &caller{Caller: c, version: r.GetVersion()}
		next.used.Store(x.since())
		x.callers[p] = next
		if had {
			changes = append(changes, change{p, c, true})
		}
		x.answerLocked(p)
	}
	for _, name := range resp.GetRemovedResources() {
		if p, ok := parseCallerName(name); ok {
			changes = append(changes, x.forgetLocked(p, now)...)
		}
	}
	x.makeRoomLocked()
	x.mu.Unlock()
	if x.c.Changed != nil {
		for _, c := range changes {
			x.c.Changed(c.p, c.caller, c.known)
		}
	}
	return bad
}

// forgetLocked caches for a while that the key does not exist, and unsubscribes from it, so
// that unknown keys use no memory at either end.
func (x *Client) forgetLocked(p identity.Presented, now time.Time) (told []change) {
	if _, had := x.callers[p]; had {
		delete(x.callers, p)
		told = []change{{p: p}}
	}
	for other, until := range x.unknown {
		if len(x.unknown) < maxNegative {
			break
		}
		if !now.Before(until) || len(x.unknown) >= maxNegative {
			delete(x.unknown, other) // any one; it will be looked up again
		}
	}
	x.unknown[p] = now.Add(x.c.NegativeTTL)
	x.requestLocked(p, false)
	x.answerLocked(p)
	return told
}

// makeRoomLocked evicts a caller: out of a few random ones, the one that was not used for the
// longest time. That approximates least recently used, without a list. A caller in use
// stays, since the revocation of its key must be received. If all of the few are in use, the
// next call makes room.
func (x *Client) makeRoomLocked() {
	const sample = 32
	for len(x.callers) > x.c.MaxCallers {
		var oldest identity.Presented
		var used int64
		found, n := false, 0
		for p, c := range x.callers { // in random order
			if at := c.used.Load(); (!found || at < used) && (x.c.InUse == nil || !x.c.InUse(p)) {
				oldest, used, found = p, at, true
			}
			if n++; n == sample {
				break
			}
		}
		if !found {
			return
		}
		delete(x.callers, oldest)
		x.requestLocked(oldest, false)
		x.metrics.evicted.Inc()
	}
}
