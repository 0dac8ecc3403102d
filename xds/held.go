package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// held is what a client was sent of the types that come whole, with its version.
// Only the loop touches it.
type held struct {
	orgs        map[string]versioned[*aidv1.Org]
	policies    map[string]versioned[*aidv1.Policy]
	providers   map[string]versioned[provider.Provider]
	credentials map[string]versioned[*aidv1.Credential]
}

type versioned[T any] struct {
	version string
	value   T
}

func newHeld() held {
	return held{
		orgs: make(map[string]versioned[*aidv1.Org]), policies: make(map[string]versioned[*aidv1.Policy]),
		providers: make(map[string]versioned[provider.Provider]), credentials: make(map[string]versioned[*aidv1.Credential]),
	}
}

func (h held) versions(t string) map[string]string {
	switch t {
	case OrgType:
		return versionsOf(h.orgs)
	case PolicyType:
		return versionsOf(h.policies)
	case ProviderType:
		return versionsOf(h.providers)
	case CredentialType:
		return versionsOf(h.credentials)
	}
	return nil
}

func versionsOf[T any](m map[string]versioned[T]) map[string]string {
	out := make(map[string]string, len(m))
	for name, v := range m {
		out[name] = v.version
	}
	return out
}

// take applies an answer. An error means that nothing of it was applied: what was
// known before stays, and the control plane is told.
func (x *Client) take(ctx context.Context, resp *discoveryv3.DeltaDiscoveryResponse) error {
	x.metrics.received.WithLabelValues(short(resp.GetTypeUrl())).Add(float64(len(resp.GetResources()) + len(resp.GetRemovedResources())))
	switch resp.GetTypeUrl() {
	case HeartbeatType:
		if len(resp.GetResources()) > 0 {
			x.beat.Store(x.c.Now().UnixNano()) // our own clock, so that the two need not agree
		}
		return nil
	case CallerType:
		return x.takeCallers(resp)
	}
	next := held{orgs: maps.Clone(x.held.orgs), policies: maps.Clone(x.held.policies), providers: maps.Clone(x.held.providers), credentials: maps.Clone(x.held.credentials)}
	var err error
	switch resp.GetTypeUrl() {
	case OrgType:
		err = merge(next.orgs, resp, func() *aidv1.Org { return new(aidv1.Org) }, same)
	case PolicyType:
		err = merge(next.policies, resp, func() *aidv1.Policy { return new(aidv1.Policy) }, same)
	case CredentialType:
		err = merge(next.credentials, resp, func() *aidv1.Credential { return new(aidv1.Credential) }, same)
	case ProviderType:
		err = merge(next.providers, resp, func() *aidv1.Provider { return new(aidv1.Provider) }, unpackProvider)
	default:
		return errors.New("not asked for")
	}
	if err != nil {
		return err
	}
	orgs, err := next.build(ctx, *x.orgs.Load())
	if err != nil {
		return err
	}
	x.held = next
	x.orgs.Store(&orgs)
	return nil
}

func same[M proto.Message](m M) (M, error) { return m, nil }

// merge applies an answer to a map of what is held.
func merge[M proto.Message, T any](into map[string]versioned[T], resp *discoveryv3.DeltaDiscoveryResponse, empty func() M, unpack func(M) (T, error)) error {
	for _, r := range resp.GetResources() {
		m := empty()
		if err := r.GetResource().UnmarshalTo(m); err != nil {
			return fmt.Errorf("%s: not of its type", r.GetName())
		}
		v, err := unpack(m)
		if err != nil {
			return fmt.Errorf("%s: %w", r.GetName(), err)
		}
		into[r.GetName()] = versioned[T]{r.GetVersion(), v}
	}
	for _, name := range resp.GetRemovedResources() {
		delete(into, name)
	}
	return nil
}

// build makes what exchanges decide by. An org is whole once its own resource has
// come, since it is sent last. Policies are compiled only if they are not those of
// before: it takes longer than all else, and what changes is mostly something else.
func (h held) build(ctx context.Context, before map[string]verdict.Org) (map[string]verdict.Org, error) {
	orgs := make(map[string]verdict.Org, len(h.orgs))
	for id, o := range h.orgs {
		var ps []policy.Policy
		for _, p := range h.policies {
			if p.value.GetOrgId() == id {
				ps = append(ps, unpackPolicy(p.value))
			}
		}
		bundle := before[id].Policies
		if !bundle.Of(ps) {
			var err error
			if bundle, err = policy.Compile(ctx, ps); err != nil {
				return nil, err
			}
		}
		var providers []provider.Provider
		for _, name := range slices.Sorted(maps.Keys(h.providers)) {
			p := h.providers[name].value
			if p.OrgID != id {
				continue
			}
			// A credential is sent only where it was meant to be sent.
			if c := h.credentials[p.ID].value; c.GetOrgId() == id && c.GetProviderId() == p.ID && c.GetCluster() == p.Cluster {
				p.Credential = provider.NewSecret(string(c.GetSecret()))
			}
			providers = append(providers, p)
		}
		registry, err := provider.NewRegistry(providers)
		if err != nil {
			return nil, err
		}
		orgs[id] = verdict.Org{ID: id, Tier: o.value.GetTier(), DigestKey: o.value.GetDigestKey(), Policies: bundle, Providers: registry}
	}
	return orgs, nil
}

// change is what Changed is told, after the lock is given back.
type change struct {
	p      identity.Presented
	caller identity.Caller
	known  bool
}

// takeCallers applies what came of callers, and wakes those who wait for it. One
// that cannot be read is unknown, whatever it was before: it denies.
func (x *Client) takeCallers(resp *discoveryv3.DeltaDiscoveryResponse) error {
	var bad error
	var changes []change
	now := x.c.Now()
	x.mu.Lock()
	for _, r := range resp.GetResources() {
		p, ok := parseCallerName(r.GetName())
		if !ok {
			bad = errors.New("a caller by another name")
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
		_, asked := x.lookups[p]
		if !had && !asked {
			x.sayLocked(p, false) // forgotten in the meantime
			continue
		}
		next := &caller{Caller: c, version: r.GetVersion()}
		next.used.Store(now.UnixNano())
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

func (x *Client) answerLocked(p identity.Presented) {
	if l := x.lookups[p]; l != nil {
		close(l.done)
		delete(x.lookups, p)
	}
}

// forgetLocked notes that nobody has the key, for a while, and unsubscribes from
// it: junk must not be held at either end.
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
			delete(x.unknown, other) // any: it will be asked for again
		}
	}
	x.unknown[p] = now.Add(x.c.NegativeTTL)
	x.sayLocked(p, false)
	x.answerLocked(p)
	return told
}

// makeRoomLocked forgets callers that were not used for long, of a few taken at
// random each time: near enough to the longest unused, and no list to keep. Who is
// in use stays: forgotten, nobody would be told that its key was revoked. If all
// of the few are, the next one to come makes room.
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
		x.sayLocked(oldest, false)
		x.metrics.evicted.Inc()
	}
}
