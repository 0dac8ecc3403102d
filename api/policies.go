package api

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
)

const policyID = "pol_"

// Policy is a policy in responses.
type Policy struct {
	ID         string    `json:"id" doc:"The policy's id." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Name       string    `json:"name" doc:"The policy's name, unique in the org." example:"support-agents-read-only-crm"`
	Effect     string    `json:"effect" enum:"allow,deny,require_approval" doc:"The effect on requests for which the conditions hold." example:"allow"`
	State      string    `json:"state" enum:"enabled,disabled,shadow" doc:"Whether the policy is enforced. In shadow it is only evaluated and recorded." example:"enabled"`
	Conditions rawObject `json:"conditions" doc:"Attributes and their required values. All must hold."`
	Limits     rawObject `json:"limits" doc:"Limits of the requests that the policy allows."`
	Approval   rawObject `json:"approval,omitempty" doc:"Who approves, for the effect require_approval."`
	Rego       rawObject `json:"rego,omitempty" doc:"The module and its tests, for a policy in Rego. Its conditions are empty."`
	CreatedAt  time.Time `json:"created_at" doc:"Time of creation, UTC." example:"2026-01-31T12:00:00Z"`
	UpdatedAt  time.Time `json:"updated_at" doc:"Time of the last change, UTC." example:"2026-01-31T12:00:00Z"`
	Version    int64     `json:"version" doc:"Number of the version, from 1. It is also in the ETag." example:"1"`

	Scope *PolicyScope `json:"scope,omitempty" doc:"After a POST or PATCH: the agents that the policy selects now, and what its limits add up to."`
}

// PolicyScope is what a policy applies to now.
type PolicyScope struct {
	Agents int           `json:"agents" doc:"The agents that the policy selects now, by its conditions on agents and keys." example:"50"`
	More   bool          `json:"more" doc:"Only the first 10,000 agents and 20,000 keys were counted." example:"false"`
	Limits []PolicyLimit `json:"limits" nullable:"false" doc:"The limits of the policy."`
}

// PolicyLimit is what a limit of a policy adds up to.
type PolicyLimit struct {
	Limit  string `json:"limit" doc:"The limit." example:"monthly_usd_cap"`
	Per    string `json:"per" doc:"What it counts for; two names are joined with +." example:"policy"`
	Unit   string `json:"unit" enum:"requests,tokens,nano_usd" doc:"The unit of value and most." example:"nano_usd"`
	Value  int64  `json:"value" doc:"What each count allows." example:"500000000000"`
	Counts *int   `json:"counts" doc:"How many counts there are now. null: it depends on the requests." example:"1"`
	Most   *int64 `json:"most" doc:"What all counts allow together. null: it depends on the requests." example:"500000000000"`
}

const (
	scopeAgents = 10_000
	scopeKeys   = 20_000
)

// scope is what a document applies to now.
func (x *call) scope(ctx context.Context, document []byte) (*PolicyScope, error) {
	s, err := policy.NewScope(document)
	if err != nil {
		return nil, err
	}
	agents, err := identity.ListAgents(ctx, x.tx, 0, "", scopeAgents+1, identity.AgentFilter{})
	if err != nil {
		return nil, err
	}
	keys, err := identity.LiveKeys(ctx, x.tx, x.now, scopeKeys+1)
	if err != nil {
		return nil, err
	}
	identities, err := identity.LiveIdentities(ctx, x.tx, x.now, scopeKeys+1)
	if err != nil {
		return nil, err
	}
	for agent, is := range identities {
		keys[agent] = append(keys[agent], is...)
	}
	n := 0
	for _, ks := range keys {
		n += len(ks)
	}
	out := &PolicyScope{More: len(agents) > scopeAgents || n > scopeKeys, Limits: []PolicyLimit{}}
	for _, a := range agents[:min(len(agents), scopeAgents)] {
		in := policy.Input{
			Agent: policy.AgentAttrs{
				ID: a.ID, Name: a.Name, Team: a.Team, Environment: a.Environment, Tier: a.Tier, Status: string(a.Status), AllowedModels: a.AllowedModels, Metadata: a.Metadata,
			},
			Org: policy.OrgAttrs{ID: x.org},
		}
		for _, k := range append(keys[a.ID], identity.Key{})[:max(1, len(keys[a.ID]))] { // an agent without a key, too
			in.Caller = policy.CallerAttrs{Kind: string(k.Kind), KeyID: k.ID, KeyScopes: k.Scopes, KeyAllowedModels: k.AllowedModels, KeyLine: cmp.Or(k.Line, k.ID)}
			if err := s.Add(ctx, in); err != nil {
				return nil, err
			}
		}
	}
	out.Agents = s.Agents
	for _, l := range s.Limits() {
		shown := PolicyLimit{Limit: l.Name, Per: l.Per, Unit: "requests", Value: l.Value}
		switch {
		case policy.Money(l.Name):
			shown.Unit = "nano_usd"
		case l.Name == "tpm" || l.Name == "max_tokens":
			shown.Unit = "tokens"
		}
		if !l.Open {
			shown.Counts, shown.Most = &l.Counts, &l.Most
		}
		out.Limits = append(out.Limits, shown)
	}
	return out, nil
}

// rawObject is a JSON object that is passed on unchanged.
type rawObject jsontext.Value

func (r rawObject) MarshalJSON() ([]byte, error) {
	if len(r) == 0 {
		return []byte("{}"), nil
	}
	return r, nil
}

func (r *rawObject) UnmarshalJSON(b []byte) error {
	*r = slices.Clone(b)
	return nil
}

func (r rawObject) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

// policyBody is the body of a policy. Package policy validates it, with better messages.
type policyBody struct{ rawObject }

func (p policyBody) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: true, Description: "A policy. docs/policy.md has every attribute and operator.",
		Properties: map[string]*huma.Schema{
			"name":       {Type: huma.TypeString, Description: "The policy's name, unique in the org."},
			"effect":     {Type: huma.TypeString, Enum: []any{"allow", "deny", "require_approval"}, Description: "The effect on requests for which the conditions hold."},
			"state":      {Type: huma.TypeString, Enum: []any{"enabled", "disabled", "shadow"}, Description: "Whether the policy is enforced; the default is enabled. In shadow it is only evaluated and recorded."},
			"conditions": {Type: huma.TypeObject, AdditionalProperties: true, Description: `Attributes with a literal or an operator, such as {"in": […]} or {"between": [lowest, highest]}; and any, all and not. All must hold; {} is every request.`},
			"approval": {Type: huma.TypeObject, AdditionalProperties: true, Description: `For the effect require_approval: {"reviewer_team": "ops", "timeout_seconds": 900, "on_timeout": "deny"}. ` +
				"This version does not support approvals, so such a policy denies the requests that it applies to."},
			"rego": {Type: huma.TypeObject, AdditionalProperties: true, Description: `For the effect deny, instead of conditions: {"module": "package policy …", "tests": [{"name": "…", "input": {…}, "denies": true}]}. The tests must pass.`},
			"limits": {Type: huma.TypeObject, AdditionalProperties: true, Description: `For the effect allow: rpm, tpm, concurrent, max_tokens, daily_usd_cap, monthly_usd_cap, session_requests, session_usd_cap, session_seconds and sessions_per_hour. ` +
				`Each is a number, {"limit": 500, "per": "agent"}, or a list of these. A cap counts for the policy as a whole, any other for each agent, unless per differs.`},
		},
	}
}

func policyShown(p policy.Policy) (Policy, error) {
	var d struct {
		Effect     string    `json:"effect"`
		State      string    `json:"state"`
		Conditions rawObject `json:"conditions"`
		Limits     rawObject `json:"limits"`
		Approval   rawObject `json:"approval"`
		Rego       rawObject `json:"rego"`
	}
	if err := json.Unmarshal(p.Document, &d); err != nil {
		return Policy{}, err
	}
	return Policy{ID: p.ID, Name: p.Name, Effect: d.Effect, State: cmp.Or(d.State, string(policy.Enabled)), Conditions: d.Conditions, Limits: d.Limits, Approval: d.Approval, Rego: d.Rego,
		CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC(), Version: p.Version}, nil
}

// checked returns the document's name, or what is wrong with the document.
func checked(document []byte) (string, error) {
	if err := policy.Check(document); err != nil {
		return "", err
	}
	var d struct {
		Name string `json:"name"`
	}
	err := json.Unmarshal(document, &d)
	return d.Name, err
}

func listPolicies(ctx context.Context, x *call, in *Pages) (*paged[Policy], error) {
	after := in.after()
	ps, err := policy.List(ctx, x.tx, after.at, after.id, in.Limit+1)
	if err != nil {
		return nil, err
	}
	rows := pageOf(*in, ps, func(p policy.Policy) place { return place{p.Place, p.ID} }, func(p policy.Policy) (shown Policy) {
		if err == nil {
			shown, err = policyShown(p)
		}
		return shown
	})
	return rows, err
}

func createPolicy(ctx context.Context, x *call, in *struct{ Body policyBody }) (*made[Policy], error) {
	return x.createPolicy(ctx, in.Body.rawObject)
}

// createPolicy stores a new policy with the document.
func (x *call) createPolicy(ctx context.Context, document []byte) (*made[Policy], error) {
	name, err := checked(document)
	if err != nil {
		return nil, err
	}
	if err := x.inTurn(ctx, "policies"); err != nil {
		return nil, err
	}
	all, err := policy.All(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	if len(all) >= policy.MaxPolicies {
		return nil, &problem{Status: 409, Code: "too_many", Message: "The org has " + itoa(policy.MaxPolicies) + " policies, which is the limit.", Fix: "Delete a policy, or combine several into one."}
	}
	id, err := x.newID(policyID)
	if err != nil {
		return nil, err
	}
	p := policy.Policy{ID: id, OrgID: x.org, Name: name, Version: 1, Document: document, CreatedAt: x.now, UpdatedAt: x.now}
	if err := regoFits(append(all, p)); err != nil {
		return nil, err
	}
	if err := policy.Insert(ctx, x.tx, p, x.by()); err != nil {
		return nil, err
	}
	shown, err := policyShown(p)
	if err != nil {
		return nil, err
	}
	if err := x.record(ctx, "policy.created", "policy", p.ID, "", nil, shown); err != nil {
		return nil, err
	}
	if shown.Scope, err = x.scope(ctx, p.Document); err != nil {
		return nil, err
	}
	return &made[Policy]{Location: "/v1/policies/" + p.ID, ETag: etag(p.Version), Body: shown}, nil
}

// regoFits returns an error if a set has more policies in Rego than sidecars accept.
func regoFits(ps []policy.Policy) error {
	if policy.InRego(ps) <= policy.MaxRego {
		return nil
	}
	return &problem{Status: 409, Code: "too_many", Message: "The org has " + itoa(policy.MaxRego) + " policies in Rego, which is the limit.", Fix: "Delete one of them, or write this one with conditions."}
}

func (x *call) policy(ctx context.Context, id string) (policy.Policy, error) {
	if !isID(policyID, id) {
		return policy.Policy{}, notFound("policy", id)
	}
	p, err := policy.ByID(ctx, x.tx, id)
	if err == policy.ErrNotFound {
		return p, notFound("policy", id)
	}
	return p, err
}

func getPolicy(ctx context.Context, x *call, in *ByID) (*one[Policy], error) {
	p, err := x.policy(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	shown, err := policyShown(p)
	return &one[Policy]{ETag: etag(p.Version), Body: shown}, err
}

func updatePolicy(ctx context.Context, x *call, in *struct {
	ByID
	Conditional
	Body policyBody
}) (*one[Policy], error) {
	var out *one[Policy]
	err := freshly(func() error {
		before, err := x.policy(ctx, in.ID)
		if err != nil {
			return err
		}
		if err := x.matches(before.Version); err != nil {
			return err
		}
		after := before
		document, err := merge(jsontext.Value(before.Document), jsontext.Value(in.Body.rawObject))
		if err != nil {
			return err
		}
		after.Document = document
		if after.Name, err = checked(document); err != nil {
			return err
		}
		if policy.InRego([]policy.Policy{after}) > policy.InRego([]policy.Policy{before}) {
			if err := x.inTurn(ctx, "policies"); err != nil {
				return err
			}
			all, err := policy.All(ctx, x.tx)
			if err != nil {
				return err
			}
			if err := regoFits(append(all, after)); err != nil {
				return err
			}
		}
		shownBefore, err := policyShown(before)
		if err != nil {
			return err
		}
		after.UpdatedAt = x.now
		shown, err := policyShown(after)
		if err != nil {
			return err
		}
		fields, err := changed(shownBefore, shown)
		if err != nil {
			return err
		}
		scope, err := x.scope(ctx, after.Document)
		if err != nil {
			return err
		}
		if len(fields) == 0 {
			shownBefore.Scope = scope
			out = &one[Policy]{ETag: etag(before.Version), Body: shownBefore}
			return nil
		}
		if after, err = policy.Update(ctx, x.tx, after, x.by()); err != nil {
			return err
		}
		if shown, err = policyShown(after); err != nil {
			return err
		}
		if err := x.record(ctx, "policy.updated", "policy", after.ID, "", shownBefore, shown); err != nil {
			return err
		}
		shown.Scope = scope
		out = &one[Policy]{ETag: etag(after.Version), Body: shown}
		return nil
	})
	return out, err
}

func deletePolicy(ctx context.Context, x *call, in *struct {
	ByID
	Conditional
}) (*nothing, error) {
	p, err := x.policy(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := x.matches(p.Version); err != nil {
		return nil, err
	}
	shown, err := policyShown(p)
	if err != nil {
		return nil, err
	}
	if err := policy.Delete(ctx, x.tx, p.ID, x.now, x.by()); err != nil {
		return nil, err
	}
	return nil, x.record(ctx, "policy.deleted", "policy", p.ID, "", shown, nil)
}
