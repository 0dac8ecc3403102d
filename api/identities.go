package api

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
)

// ServiceAccount is a Kubernetes service account in requests and responses.
type ServiceAccount struct {
	Issuer         string `json:"issuer" maxLength:"512" pattern:"^https://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$" patternDescription:"an https:// URL as the claim iss has it" doc:"The issuer of the cluster's tokens, as their claim iss has it." example:"https://kubernetes.default.svc.cluster.local"`
	Namespace      string `json:"namespace" maxLength:"63" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" patternDescription:"the name of a namespace" doc:"Its namespace. The operator must have granted it to this organization (aid org grant)." example:"ai"`
	ServiceAccount string `json:"service_account" maxLength:"253" pattern:"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$" patternDescription:"the name of a service account" doc:"Its name." example:"support-bot"`
}

// Identity is an agent's identity without a key in responses.
type Identity struct {
	ID            string          `json:"id" doc:"The identity's id." example:"idn_01k0000000abcdefghjkmnpqrs"`
	AgentID       string          `json:"agent_id" doc:"The id of the identity's agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Name          string          `json:"name" doc:"The identity's name." example:"production"`
	Kind          string          `json:"kind" enum:"kubernetes,spiffe" doc:"What the program presents: the token of a Kubernetes service account, or a SPIFFE document (SVID)." example:"kubernetes"`
	SPIFFEID      *string         `json:"spiffe_id" doc:"The SPIFFE id; null: it is of another kind." example:"spiffe://corp.example/ns/ai/sa/support-bot"`
	Kubernetes    *ServiceAccount `json:"kubernetes" doc:"The service account; null: it is of another kind."`
	Status        string          `json:"status" enum:"active,expired,revoked" doc:"Only an active identity is accepted." example:"active"`
	Scopes        []string        `json:"scopes" nullable:"false" doc:"The operations that the identity permits." example:"chat:completions"`
	AllowedModels []string        `json:"allowed_models" nullable:"false" doc:"The models that the identity permits, out of the agent's models. Empty: all of them." example:"gpt-4o"`
	RateLimit     int64           `json:"rate_limit" doc:"Requests per minute; 0: the identity sets no limit." example:"100"`
	CreatedAt     time.Time       `json:"created_at" doc:"Time of creation, UTC." example:"2026-01-31T12:00:00Z"`
	ExpiresAt     *time.Time      `json:"expires_at" doc:"Time of expiry, UTC; null: the identity does not expire." example:"2026-05-01T12:00:00Z"`
	RevokedAt     *time.Time      `json:"revoked_at" doc:"Time of revocation, UTC; null: the identity is not revoked." example:"2026-03-01T12:00:00Z"`
}

// NewIdentity is the body that binds an identity to an agent. It has exactly one of SPIFFEID
// and Kubernetes.
type NewIdentity struct {
	Name          string          `json:"name" minLength:"1" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The identity's name." example:"production"`
	SPIFFEID      string          `json:"spiffe_id,omitzero" maxLength:"2048" pattern:"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$" patternDescription:"a SPIFFE id with a path, such as spiffe://corp.example/ns/ai/sa/bot" doc:"The SPIFFE id. The operator must have granted its prefix to this organization (aid org trust)." example:"spiffe://corp.example/ns/ai/sa/support-bot"`
	Kubernetes    *ServiceAccount `json:"kubernetes,omitzero" doc:"The Kubernetes service account."`
	Scopes        []string        `json:"scopes" nullable:"false" minItems:"1" maxItems:"50" maxLength:"64" doc:"The operations that the identity permits; \"*\" is all of them." example:"chat:completions,embeddings"`
	AllowedModels []string        `json:"allowed_models,omitzero" nullable:"false" maxItems:"200" minLength:"1" maxLength:"256" pattern:"^[!-~]*$" patternDescription:"a model's name or a pattern with * in it" doc:"The models that the identity permits, out of the agent's models. Empty: all of them." example:"gpt-4o"`
	RateLimit     int64           `json:"rate_limit,omitzero" minimum:"0" maximum:"1000000000" doc:"Requests per minute. The default 0 means that the identity sets no limit." example:"100"`
	ExpiresInDays int64           `json:"expires_in_days,omitzero" minimum:"1" maximum:"3650" doc:"Days until the identity expires. Leave it out for an identity that does not expire." example:"90"`
}

// TransformSchema adds the valid scopes, and that exactly one kind is required.
func (NewIdentity) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.Properties["scopes"].Items.Enum = []any{"*"}
	for _, scope := range provider.Scopes() {
		s.Properties["scopes"].Items.Enum = append(s.Properties["scopes"].Items.Enum, scope)
	}
	for _, name := range []string{"kubernetes", "spiffe_id"} {
		s.OneOf = append(s.OneOf, &huma.Schema{Type: huma.TypeObject, Required: []string{name}, Properties: map[string]*huma.Schema{name: {}}})
	}
	return s
}

// workload returns the name that the body binds.
func (n NewIdentity) workload() (identity.Workload, *problem) {
	if k := n.Kubernetes; k != nil {
		for _, c := range []struct {
			field string
			err   error
		}{
			{"kubernetes.issuer", identity.CheckIssuer(k.Issuer)},
			{"kubernetes.namespace", identity.CheckNamespace(k.Namespace)},
			{"kubernetes.service_account", identity.CheckServiceAccount(k.ServiceAccount)},
		} {
			if c.err != nil {
				return identity.Workload{}, invalid(fieldProblem{c.field, "It is not valid: " + c.err.Error() + ".", "Correct it."})
			}
		}
		return identity.Workload{Kind: identity.KindKubernetes, Issuer: k.Issuer, Namespace: k.Namespace, ServiceAccount: k.ServiceAccount}, nil
	}
	if err := identity.CheckSPIFFEID(n.SPIFFEID); err != nil {
		return identity.Workload{}, invalid(fieldProblem{"spiffe_id", "It is not valid: " + err.Error() + ".", "Correct it."})
	}
	return identity.Workload{Kind: identity.KindSPIFFE, SPIFFEID: n.SPIFFEID}, nil
}

func identityShown(now time.Time) func(identity.Identity) Identity {
	return func(i identity.Identity) Identity {
		out := Identity{
			ID: i.ID, AgentID: i.AgentID, Name: i.Name, Kind: string(i.Workload.Kind), Status: lifeOf(i.ExpiresAt, i.RevokedAt, now), Scopes: strs(i.Scopes),
			AllowedModels: strs(i.AllowedModels), RateLimit: i.RateLimit, CreatedAt: i.CreatedAt.UTC(), ExpiresAt: at(i.ExpiresAt), RevokedAt: at(i.RevokedAt),
		}
		switch w := i.Workload; w.Kind {
		case identity.KindSPIFFE:
			out.SPIFFEID = &w.SPIFFEID
		case identity.KindKubernetes:
			out.Kubernetes = &ServiceAccount{w.Issuer, w.Namespace, w.ServiceAccount}
		}
		return out
	}
}

func listIdentities(ctx context.Context, x *call, in *struct {
	ByID
	Pages
}) (*paged[Identity], error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	all, err := identity.Identities(ctx, x.tx, a.ID)
	if err != nil {
		return nil, err
	}
	return pageOf(in.Pages, all, func(i identity.Identity) place { return place{i.Place, i.ID} }, identityShown(x.now)), nil
}

func bindIdentity(ctx context.Context, x *call, in *struct {
	ByID
	Body NewIdentity
}) (*made[Identity], error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	w, wrong := in.Body.workload()
	if wrong != nil {
		return nil, wrong
	}
	id, err := x.newID(identity.IdentityID)
	if err != nil {
		return nil, err
	}
	i := identity.Identity{Workload: w, Key: identity.Key{
		ID: id, Kind: w.Kind, OrgID: x.org, AgentID: a.ID, Name: in.Body.Name, Scopes: in.Body.Scopes, AllowedModels: in.Body.AllowedModels, RateLimit: in.Body.RateLimit,
		CreatedAt: x.now, ExpiresAt: x.expiry(in.Body.ExpiresInDays),
	}}
	switch err := identity.InsertIdentity(ctx, x.tx, i); {
	case errors.Is(err, identity.ErrNotGranted):
		// The response is the same whether another organization has it or not.
		return nil, &problem{Status: 403, Code: "identity_not_granted", Message: "This organization may not bind this identity.",
			Fix: "Ask the operator to grant the namespace (aid org grant), or the prefix of the SPIFFE id (aid org trust), to this organization."}
	case errors.Is(err, identity.ErrConflict):
		return nil, &problem{Status: 409, Code: "identity_bound", Message: "An agent of this organization has this identity.", Fix: "Revoke it at that agent first: an identity belongs to one agent."}
	case err != nil:
		return nil, err
	}
	shown := identityShown(x.now)(i)
	if err := x.record(ctx, "identity.created", "identity", i.ID, i.AgentID, nil, shown); err != nil {
		return nil, err
	}
	return &made[Identity]{Location: "/v1/agents/" + i.AgentID + "/identities/" + i.ID, Body: shown}, nil
}

type IdentityIn struct {
	ByID
	IdentityID string `path:"identity_id" maxLength:"128" doc:"The identity's id."`
}

// identityOf returns the agent's identity with the id, or a 404 with the id.
func (x *call) identityOf(ctx context.Context, in IdentityIn) (identity.Identity, error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return identity.Identity{}, err
	}
	all, err := identity.Identities(ctx, x.tx, a.ID)
	if err != nil {
		return identity.Identity{}, err
	}
	for _, i := range all {
		if i.ID == in.IdentityID {
			return i, nil
		}
	}
	return identity.Identity{}, notFound("identity", in.IdentityID)
}

func getIdentity(ctx context.Context, x *call, in *IdentityIn) (*one[Identity], error) {
	i, err := x.identityOf(ctx, *in)
	if err != nil {
		return nil, err
	}
	return &one[Identity]{Body: identityShown(x.now)(i)}, nil
}

func revokeIdentity(ctx context.Context, x *call, in *IdentityIn) (*nothing, error) {
	i, err := x.identityOf(ctx, *in)
	if err != nil || !i.RevokedAt.IsZero() {
		return nil, err
	}
	if err := identity.RevokeIdentity(ctx, x.tx, i.AgentID, i.ID, x.now); err != nil {
		return nil, err
	}
	before := identityShown(x.now)(i)
	i.RevokedAt = x.now
	return nil, x.record(ctx, "identity.revoked", "identity", i.ID, i.AgentID, before, identityShown(x.now)(i))
}
