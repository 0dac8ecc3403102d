package api

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/ai-identity/ai-identity/policy"
)

// by is the caller as the author of a policy's version.
func (x *call) by() policy.By {
	return policy.By{Kind: "org_key", ID: x.key.ID, Role: string(x.key.Role)}
}

// PolicyVersion is a version of a policy on the wire.
type PolicyVersion struct {
	PolicyID  string    `json:"policy_id" doc:"The policy's id." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Version   int64     `json:"version" doc:"Counts the changes, from 1." example:"2"`
	Change    string    `json:"change" enum:"created,updated,deleted,imported" doc:"What was done. imported: the policy was there before versions were kept."`
	ChangedAt time.Time `json:"changed_at" doc:"When, UTC." example:"2026-01-31T12:00:00Z"`
	ChangedBy *Author   `json:"changed_by" doc:"Who did it; null if that was not kept."`
	Name      string    `json:"name" doc:"What it was called." example:"support-agents-read-only-crm"`
	Document  rawObject `json:"document" doc:"The policy as it was written; of a deleted one, the last document."`
}

// Author is who changed a policy.
type Author struct {
	Kind string `json:"kind" doc:"org_key: an organization key." example:"org_key"`
	ID   string `json:"id" doc:"Its id." example:"okey_01k0000000abcdefghjkmnpqrs"`
	Role string `json:"role" doc:"The role that it had." example:"admin"`
}

func policyVersions(ctx context.Context, x *call, in *struct {
	ByID
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many at most."`
	After string `query:"after" pattern:"^[1-9][0-9]{0,8}$" patternDescription:"the next of the page before" doc:"The next of the page before: what follows it is listed." example:"12"`
}) (*paged[PolicyVersion], error) {
	if !isID(policyID, in.ID) {
		return nil, notFound("policy", in.ID)
	}
	before, _ := strconv.ParseInt(in.After, 10, 64) // its form was checked against the description
	vs, err := policy.Versions(ctx, x.tx, in.ID, before, in.Limit+1)
	if errors.Is(err, policy.ErrNotFound) {
		return nil, notFound("policy", in.ID)
	}
	if err != nil {
		return nil, err
	}
	shown := each(vs, func(v policy.Version) PolicyVersion {
		s := PolicyVersion{PolicyID: v.PolicyID, Version: v.Version, Change: v.Change, ChangedAt: v.At, Name: v.Name, Document: v.Document}
		if v.By.Kind != "" {
			s.ChangedBy = &Author{Kind: v.By.Kind, ID: v.By.ID, Role: v.By.Role}
		}
		return s
	})
	return listed(shown, in.Limit, func(v PolicyVersion) string { return itoa(v.Version) }), nil
}

// PolicyRego is what a policy is compiled to, on the wire.
type PolicyRego struct {
	PolicyID string `json:"policy_id" doc:"The policy's id." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Version  int64  `json:"version" doc:"The policy's version." example:"2"`
	Rego     string `json:"rego" doc:"The policy in Rego, as package aid.policies has it beside the org's others."`
}

func policyRego(ctx context.Context, x *call, in *ByID) (*one[PolicyRego], error) {
	p, err := x.policy(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	rego, err := policy.Rego(p)
	if err != nil {
		return nil, err
	}
	return &one[PolicyRego]{ETag: etag(p.Version), Body: PolicyRego{PolicyID: p.ID, Version: p.Version, Rego: rego}}, nil
}
