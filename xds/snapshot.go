package xds

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"maps"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
)

// join lets a stream hear of its org, whose configuration is read first if nobody
// was connected for it.
func (s *Server) join(ctx context.Context, st *stream) error {
	s.mu.Lock()
	o := s.orgs[st.org]
	if o == nil {
		o = &orgState{id: st.org}
		s.orgs[st.org] = o
	}
	s.streams[st] = struct{}{} // before anything is read, so that no change falls between
	loaded := o.loaded
	s.mu.Unlock()
	if loaded {
		return nil
	}
	if err := s.reload(ctx, st.org); err != nil {
		s.leave(st)
		return err
	}
	return nil
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	for other := range s.streams {
		if other.org == st.org {
			return
		}
	}
	delete(s.orgs, st.org)
}

// wholeOf is what an org's nodes should have of the types that come whole.
func (s *Server) wholeOf(org string) (map[string]map[string]*discoveryv3.Resource, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.orgs[org]
	if o == nil || !o.loaded {
		return nil, false
	}
	whole := maps.Clone(o.whole)
	if hb := s.heartbeatLocked(); hb != nil {
		whole[HeartbeatType] = map[string]*discoveryv3.Resource{heartbeatName: hb}
	}
	return whole, true
}

// content is an org's configuration as the database has it.
type content struct {
	org         identity.Org
	policies    []policy.Policy
	providers   []provider.Provider
	credentials []provider.Credential
}

// reload reads an org's configuration and publishes what may be published of it.
// One at a time, so that an older reading never replaces a newer one.
func (s *Server) reload(ctx context.Context, org string) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	o := s.orgs[org]
	var before map[string]map[string]*discoveryv3.Resource
	if o != nil {
		before = o.whole
	}
	s.mu.Unlock()
	if o == nil {
		return nil // nobody is connected for it
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
		c.credentials, err = provider.Credentials(ctx, tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the configuration of %s: %w", org, err)
	}
	whole, err := s.resources(ctx, c, before)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.orgs[org] == o {
		o.whole, o.loaded = whole, true
	}
	s.mu.Unlock()
	for t, rs := range whole {
		s.metrics.size.WithLabelValues(short(t)).Set(float64(len(rs)))
	}
	s.each(org, (*stream).wake)
	return nil
}

// resources makes an org's configuration into resources. What must not be
// published stays as it was before.
func (s *Server) resources(ctx context.Context, c content, before map[string]map[string]*discoveryv3.Resource) (map[string]map[string]*discoveryv3.Resource, error) {
	whole := map[string]map[string]*discoveryv3.Resource{}
	put := func(t, name string, m proto.Message) error {
		r, err := resource(name, m)
		if err != nil {
			return err
		}
		if whole[t] == nil {
			whole[t] = map[string]*discoveryv3.Resource{}
		}
		whole[t][name] = r
		return nil
	}
	keep := func(what string, err error, types ...string) {
		s.metrics.unpublished.WithLabelValues(what).Inc()
		s.c.Log.ErrorContext(ctx, "not published, the last good one stays", "what", what, "org", c.org.ID, "err", err)
		for _, t := range types {
			whole[t] = before[t]
		}
	}

	for i := range c.providers {
		p := &c.providers[i]
		p.Cluster = provider.ClusterName(*p)
		for _, cred := range c.credentials {
			if cred.ProviderID == p.ID {
				p.HasCredential = true
				if cred.Cluster != p.Cluster {
					continue // it was given for another address
				}
				secret, err := s.c.Sealer.Open(cred.Sealed)
				if err != nil {
					s.metrics.unpublished.WithLabelValues("credential").Inc()
					s.c.Log.ErrorContext(ctx, "a provider's credential cannot be opened: is its key missing from --fernet-keys?", "provider", p.ID, "org", c.org.ID)
					continue
				}
				if err := put(CredentialType, p.ID, &aidv1.Credential{ProviderId: p.ID, OrgId: c.org.ID, Cluster: p.Cluster, Secret: secret}); err != nil {
					return nil, err
				}
			}
		}
		if err := put(ProviderType, p.ID, packProvider(*p)); err != nil {
			return nil, err
		}
	}

	for _, p := range c.policies {
		if err := put(PolicyType, p.ID, packPolicy(p)); err != nil {
			return nil, err
		}
	}
	// What is published was compiled once, and need not be again.
	if !maps.EqualFunc(whole[PolicyType], before[PolicyType], func(a, b *discoveryv3.Resource) bool { return a.GetVersion() == b.GetVersion() }) {
		if _, err := policy.Compile(ctx, c.policies); err != nil {
			keep("policies", err, PolicyType)
		}
	}

	snap, err := Build(Input{OrgID: c.org.ID, Providers: c.providers, Gateway: s.c.Gateway, Usage: s.c.Usage, MaxBody: s.c.MaxBody, CAFile: s.c.CAFile})
	if err == nil {
		err = Lint(snap)
	}
	if err != nil {
		keep("envoy", err, ListenerType, RouteType, ClusterType)
	} else {
		for id, problem := range snap.Left {
			s.metrics.unpublished.WithLabelValues("provider").Inc()
			s.c.Log.ErrorContext(ctx, "a provider is left out of Envoy's configuration", "provider", id, "org", c.org.ID, "err", problem)
		}
		for _, t := range []string{ListenerType, RouteType, ClusterType} {
			for name, m := range snap.Resources(t) {
				if err := put(t, name, m); err != nil {
					return nil, err
				}
			}
		}
	}
	return whole, put(OrgType, c.org.ID, &aidv1.Org{Id: c.org.ID, Name: c.org.Name, Tier: c.org.Tier, DigestKey: s.digestKey(c.org.ID)})
}

// digestKey is the org's own, so that two orgs' digests of one body differ.
func (s *Server) digestKey(org string) []byte {
	if len(s.c.DigestKey) == 0 {
		return nil
	}
	h := hmac.New(sha256.New, s.c.DigestKey)
	h.Write([]byte("ai-identity digest key 1\x00" + org))
	return h.Sum(nil)
}

// short is a type's last word, for labels and logs.
func short(t string) string {
	t = t[strings.LastIndexByte(t, '.')+1:]
	switch t {
	case "Listener", "RouteConfiguration", "Cluster", "Org", "Caller", "Policy", "Provider", "Credential", "Heartbeat":
		return t
	}
	return "other" // a node may ask for anything
}
