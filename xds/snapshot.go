package xds

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
)

// join subscribes a stream to the changes of its orgs. It first reads the configuration of
// orgs without another connected node.
func (s *Server) join(ctx context.Context, st *stream) error {
	s.mu.Lock()
	s.streams[st] = struct{}{} // before reading, so that no change is missed
	var missing []string
	for _, org := range st.orgs {
		o := s.orgs[org]
		if o == nil {
			o = &orgState{id: org}
			s.orgs[org] = o
		}
		if !o.loaded {
			missing = append(missing, org)
		}
	}
	s.mu.Unlock()
	for _, org := range missing {
		if err := s.reload(ctx, org); err != nil {
			s.leave(st)
			return err
		}
	}
	return nil
}

// leave ends a stream. It removes the state of orgs without a connected node.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.forgetLocked()
}

func (s *Server) forgetLocked() {
	wanted := map[string]bool{}
	for st := range s.streams {
		for _, org := range st.orgs {
			wanted[org] = true
		}
	}
	maps.DeleteFunc(s.orgs, func(org string, _ *orgState) bool { return !wanted[org] })
}

// view has the resources that a node should have. Resources in kept cannot be read now. They
// are not removed from a node that has them.
type view struct {
	resources map[string]map[string]*discoveryv3.Resource // by type and name; never changed in place
	kept      map[string][]string                         // by type: a name, an org with "/", or "" for the whole type
	hosts     []string                                    // governed hosts, whose certificates the node needs
}

func newView() view {
	return view{resources: map[string]map[string]*discoveryv3.Resource{}, kept: map[string][]string{}}
}

func (v view) keep(t, what string) { v.kept[t] = append(v.kept[t], what) }

func (v view) keeps(t, name string) bool {
	return slices.ContainsFunc(v.kept[t], func(k string) bool {
		return k == "" || k == name || strings.HasSuffix(k, "/") && strings.HasPrefix(name, k)
	})
}

func (v view) put(t, name string, m proto.Message) error {
	r, err := resource(name, m)
	if err != nil {
		return err
	}
	if v.resources[t] == nil {
		v.resources[t] = map[string]*discoveryv3.Resource{}
	}
	v.resources[t][name] = r
	return nil
}

// add adds the resources of another view to v.
func (v view) add(other view) {
	for t, rs := range other.resources {
		if v.resources[t] == nil {
			v.resources[t] = make(map[string]*discoveryv3.Resource, len(rs))
		}
		maps.Copy(v.resources[t], rs)
	}
	for t, kept := range other.kept {
		v.kept[t] = append(v.kept[t], kept...)
	}
}

// viewOf returns the view of a node of these orgs. ok is false if not everything is read yet.
func (s *Server) viewOf(ctx context.Context, orgs []string, egress bool) (v view, ok bool) {
	if len(orgs) == 0 {
		return view{}, false
	}
	v = newView()
	var envoys []*orgState
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, org := range orgs {
		o := s.orgs[org]
		if o == nil || !o.loaded {
			return v, false
		}
		v.add(o.view)
		envoys = append(envoys, o)
	}
	config := s.envoyLocked(ctx, envoys, egress)
	v.add(config)
	v.hosts = config.hosts
	if hb := s.heartbeatLocked(); hb != nil {
		v.resources[HeartbeatType] = map[string]*discoveryv3.Resource{heartbeatName: hb}
	}
	return v, true
}

// joined is the Envoy configuration of some orgs, and the snapshots that it is made from.
type joined struct {
	from []*Snapshot
	view view
}

// envoyLocked returns the configuration of an Envoy that serves the orgs. It has one
// listener, and the routes and clusters of each org.
func (s *Server) envoyLocked(ctx context.Context, orgs []*orgState, egress bool) view {
	var ids []string
	var from []*Snapshot
	for _, o := range orgs {
		ids, from = append(ids, o.id), append(from, o.envoy)
	}
	key := strings.Join(ids, " ")
	if egress {
		key += " egress"
	}
	if last, ok := s.joined[key]; ok && slices.Equal(last.from, from) {
		return last.view
	}
	v := newView()
	snap, err := Join(from)
	if err == nil {
		if !egress {
			snap = snap.withoutEgress()
		}
		err = Lint(snap)
	}
	if err == nil {
		v.hosts = snap.leaves()
	}
	for _, k := range kinds {
		if err == nil && k.role == identity.NodeEnvoy {
			for name, m := range snap.Resources(k.url) {
				err = errors.Join(err, v.put(k.url, name, m))
			}
		}
	}
	if err != nil {
		s.metrics.unpublished.WithLabelValues("envoy").Inc()
		s.c.Log.ErrorContext(ctx, "not published; the last valid one stays", "what", "envoy", "orgs", key, "err", err)
		v = newView()
		if last, ok := s.joined[key]; ok {
			v = last.view
		} else {
			for _, k := range kinds {
				if k.role == identity.NodeEnvoy {
					v.keep(k.url, "")
				}
			}
		}
	}
	s.joined[key] = joined{from, v}
	return v
}

// content is an org's configuration in the database.
type content struct {
	org         identity.Org
	policies    []policy.Policy
	providers   []provider.Provider
	credentials []provider.Credential
	raises      []policy.Raise
}

// reload reads an org's configuration and publishes the valid parts. Only one runs at a time,
// so that an older state never replaces a newer one.
func (s *Server) reload(ctx context.Context, org string) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	o := s.orgs[org]
	before := orgState{view: newView()}
	if o != nil && o.loaded {
		before = *o
	}
	s.mu.Unlock()
	if o == nil {
		return nil // the org has no connected node
	}
	var c content
	err := s.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		if c.org, err = identity.OrgByID(ctx, tx, org); err != nil {
			return err
		}
		if c.policies, err = policy.All(ctx, tx); err != nil {
			return err
		}
		if c.providers, err = provider.List(ctx, tx); err != nil {
			return err
		}
		if c.raises, err = policy.RaisesAt(ctx, tx, s.c.Now()); err != nil {
			return err
		}
		c.credentials, err = provider.Credentials(ctx, tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the configuration of %s: %w", org, err)
	}
	next, err := s.resources(ctx, c, before)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.orgs[org] == o {
		next.id, next.loaded = org, true
		*o = next
	}
	s.mu.Unlock()
	for t, rs := range next.view.resources {
		s.metrics.size.WithLabelValues(short(t)).Set(float64(len(rs)))
	}
	s.each(org, (*stream).wake)
	return nil
}

// resources converts an org's configuration to resources. A part that must not be published
// keeps its last valid state, or the state of the nodes.
func (s *Server) resources(ctx context.Context, c content, before orgState) (next orgState, err error) {
	v, org := newView(), c.org.ID
	next.view = v
	for i := range c.providers {
		p := &c.providers[i]
		p.Cluster = provider.ClusterName(*p)
		for _, cred := range c.credentials {
			if cred.ProviderID != p.ID {
				continue
			}
			p.HasCredential = true
			if cred.Cluster != p.Cluster {
				continue // the credential was set for another address
			}
			name := inOrg(org, p.ID)
			secret, err := s.c.Sealer.Open(cred.Sealed)
			if err != nil {
				next.unopened = append(next.unopened, p.ID)
				s.unopened(ctx, v, before, CredentialType, name, err)
				continue
			}
			next.opened++
			if err := v.put(CredentialType, name, &aidv1.Credential{ProviderId: p.ID, OrgId: org, Cluster: p.Cluster, Secret: secret}); err != nil {
				return next, err
			}
		}
		open, err := p.OpenHeaders(s.c.Sealer)
		if err != nil {
			next.unopened = append(next.unopened, p.ID)
			s.unopened(ctx, v, before, ProviderType, inOrg(org, p.ID), err)
			continue
		}
		if len(p.Headers) > 0 {
			next.opened++
		}
		if err := v.put(ProviderType, inOrg(org, p.ID), packProvider(open)); err != nil {
			return next, err
		}
	}

	for _, p := range c.policies {
		if err := v.put(PolicyType, inOrg(org, p.ID), packPolicy(p)); err != nil {
			return next, err
		}
	}
	// Policies are compiled again only if they have changed.
	if !maps.EqualFunc(v.resources[PolicyType], before.view.resources[PolicyType], func(a, b *discoveryv3.Resource) bool { return a.GetVersion() == b.GetVersion() }) {
		if _, err := policy.Compile(ctx, c.policies); err != nil {
			s.metrics.unpublished.WithLabelValues("policies").Inc()
			s.c.Log.ErrorContext(ctx, "not published; the last valid one stays", "what", "policies", "org", org, "err", err)
			v.resources[PolicyType] = before.view.resources[PolicyType]
			if !before.loaded || before.view.keeps(PolicyType, org+"/") {
				// Nodes keep their policies. A new node does not receive the org, since it
				// must not decide without policies.
				delete(v.resources, PolicyType)
				v.keep(PolicyType, org+"/")
				v.keep(OrgType, org)
			}
		}
	}

	snap, err := Build(Input{OrgID: org, Providers: c.providers, Gateway: s.c.Gateway, Usage: s.c.Usage, MaxBody: s.c.MaxBody, CAFile: s.c.CAFile, Targets: s.c.Targets, Origins: s.c.Origins,
		Egress: s.c.Egress, AccessLog: s.c.AccessLog})
	if err == nil {
		err = Lint(snap)
	}
	if err != nil {
		s.metrics.unpublished.WithLabelValues("envoy").Inc()
		s.c.Log.ErrorContext(ctx, "not published; the last valid one stays", "what", "envoy", "org", org, "err", err)
		snap = before.envoy
	} else {
		for id, problem := range snap.Left {
			s.metrics.unpublished.WithLabelValues("provider").Inc()
			s.c.Log.ErrorContext(ctx, "a provider is left out of Envoy's configuration", "provider", id, "org", org, "err", problem)
		}
	}
	next.envoy = snap
	if v.keeps(OrgType, org) {
		return next, nil
	}
	var limits []byte
	if s.c.Tiers != nil && c.org.Tier != "" {
		tier := s.c.Tiers[c.org.Tier]
		if tier == nil {
			// Nodes keep the org as it is. A new node does not receive it.
			s.metrics.unpublished.WithLabelValues("tier").Inc()
			s.c.Log.ErrorContext(ctx, "not published: the tier of the organization is not in the file of --tiers", "org", org, "tier", c.org.Tier)
			if last := before.view.resources[OrgType][org]; last != nil {
				v.resources[OrgType] = map[string]*discoveryv3.Resource{org: last}
			} else {
				v.keep(OrgType, org)
			}
			return next, nil
		}
		limits = tier.Text()
	}
	var raises []*aidv1.Raise
	for _, r := range c.raises {
		raises = append(raises, &aidv1.Raise{Counter: r.Counter, Period: r.Period, NanoUsd: r.NanoUSD, EndsAt: stamp(r.EndsAt)})
	}
	return next, v.put(OrgType, org, &aidv1.Org{
		Raises: raises,
		Id:     org, Name: c.org.Name, Tier: c.org.Tier, DigestKey: s.digestKey(org), TierLimitsJson: limits,
		Timezone: c.org.Timezone, TimezoneBefore: c.org.TimezoneBefore, TimezoneFrom: stamp(c.org.TimezoneFrom),
	})
}

// unopened keeps the last state of a resource with a secret that cannot be decrypted. A key
// that is missing here does not mean that the secret is wrong.
func (s *Server) unopened(ctx context.Context, v view, before orgState, t, name string, err error) {
	s.metrics.unpublished.WithLabelValues("credential").Inc()
	s.c.Log.ErrorContext(ctx, "a provider's credential or header cannot be decrypted; the last one stays: check that --fernet-keys has its key",
		"resource", name, "type", short(t), "err", err)
	last := before.view.resources[t][name]
	if last == nil {
		v.keep(t, name)
		return
	}
	if v.resources[t] == nil {
		v.resources[t] = map[string]*discoveryv3.Resource{}
	}
	v.resources[t][name] = last
}

// digestKey returns the org's own key, so that two orgs have different digests of a body.
func (s *Server) digestKey(org string) []byte {
	if s.c.DigestKey == nil {
		return nil
	}
	key := s.c.DigestKey()
	if len(key) == 0 {
		return nil
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte("ai-identity digest key 1\x00" + org))
	return h.Sum(nil)
}
