package api

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"

	"github.com/ai-identity/ai-identity/identity"
)

// Agent is an agent in requests and responses.
type Agent struct {
	ID            string    `json:"id" doc:"The agent's id. It never changes." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Name          string    `json:"name" doc:"The agent's name." example:"support-bot"`
	Description   string    `json:"description" doc:"The agent's purpose." example:"Customer support assistant"`
	AllowedModels []string  `json:"allowed_models" nullable:"false" doc:"The models that the agent may use: names, or patterns in which * stands for any characters. Empty: no model." example:"gpt-4o"`
	Team          string    `json:"team" doc:"The team that owns the agent. Policies read it as agent.team." example:"support"`
	Environment   string    `json:"environment" doc:"The environment that the agent runs in. Policies read it as agent.environment." example:"prod"`
	Tier          string    `json:"tier" doc:"The agent's tier. Policies read it as agent.tier." example:""`
	Required      []string  `json:"required_identities" nullable:"false" doc:"Kinds of credentials that each request must have, all at once. Empty: one of any kind suffices." example:"key,kubernetes"`
	Metadata      metadata  `json:"metadata" doc:"Your own attributes of the agent. Policies read them as agent.metadata.NAME."`
	Status        string    `json:"status" enum:"active,suspended" doc:"Requests of a suspended agent are rejected." example:"active"`
	Fingerprint   string    `json:"fingerprint" doc:"A digest of what never changes: the org, the id, the first name and the time of creation." example:"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	CreatedAt     time.Time `json:"created_at" doc:"Time of creation, UTC." example:"2026-01-31T12:00:00Z"`
	UpdatedAt     time.Time `json:"updated_at" doc:"Time of the last change, UTC." example:"2026-01-31T12:00:00Z"`
	Version       int64     `json:"version" doc:"Number of the version, from 1. It is also in the ETag." example:"1"`
	Warnings      []string  `json:"warnings,omitempty" nullable:"false" doc:"Warnings about this change."`
}

func agentShown(a identity.Agent) Agent {
	return Agent{
		ID: a.ID, Name: a.Name, Description: a.Description, AllowedModels: strs(a.AllowedModels), Team: a.Team, Environment: a.Environment,
		Tier: a.Tier, Required: kindsShown(a.RequiredIdentities), Metadata: metadata(a.Metadata), Status: string(a.Status), Fingerprint: a.Fingerprint,
		CreatedAt: a.CreatedAt.UTC(), UpdatedAt: a.UpdatedAt.UTC(), Version: a.Version,
	}
}

// NewAgent is the body that creates an agent.
type NewAgent struct {
	Name          string   `json:"name" minLength:"1" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The agent's name." example:"support-bot"`
	Description   string   `json:"description,omitzero" maxLength:"1000" doc:"The agent's purpose." example:"Customer support assistant"`
	AllowedModels []string `json:"allowed_models,omitzero" nullable:"false" maxItems:"200" minLength:"1" maxLength:"256" pattern:"^[!-~]*$" patternDescription:"a model's name or a pattern with * in it" doc:"The models that the agent may use: names, or patterns in which * stands for any characters. Empty: no model." example:"gpt-4o,claude-*"`
	Team          string   `json:"team,omitzero" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The team that owns the agent. Policies read it as agent.team." example:"support"`
	Environment   string   `json:"environment,omitzero" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The environment that the agent runs in. Policies read it as agent.environment." example:"prod"`
	Tier          string   `json:"tier,omitzero" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The agent's tier. Policies read it as agent.tier." example:"standard"`
	Required      []string `json:"required_identities,omitzero" nullable:"false" maxItems:"3" enum:"key,kubernetes,spiffe" doc:"Kinds of credentials that each request must have, all at once. Empty: one of any kind suffices." example:"key,kubernetes"`
	Metadata      metadata `json:"metadata,omitzero" doc:"Your own attributes of the agent: strings, numbers, true or false. Policies read them as agent.metadata.NAME."`
	Status        string   `json:"status,omitzero" enum:"active,suspended" default:"active" doc:"Requests of a suspended agent are rejected." example:"active"`
}

// put writes the fields of the body into the agent.
func (n NewAgent) put(a identity.Agent) identity.Agent {
	// Policies compare these byte by byte, so each is normalized.
	a.Name, a.Team, a.Environment, a.Tier = norm.NFC.String(n.Name), norm.NFC.String(n.Team), norm.NFC.String(n.Environment), norm.NFC.String(n.Tier)
	a.Description, a.AllowedModels = n.Description, n.AllowedModels
	a.Metadata = identity.Metadata(n.Metadata)
	// A kind that is there twice counts once. The schema cannot say uniqueItems: huma panics on items
	// that are objects before it rejects them for their type.
	a.RequiredIdentities = each(slices.Compact(slices.Sorted(slices.Values(n.Required))), func(s string) identity.CredentialKind { return identity.CredentialKind(s) })
	a.Status = identity.Status(n.Status)
	if n.Status == "" {
		a.Status = identity.Active
	}
	return a
}

func kindsShown(kinds []identity.CredentialKind) []string {
	return each(kinds, func(k identity.CredentialKind) string { return string(k) })
}

func agentSaid(a identity.Agent) NewAgent {
	return NewAgent{
		Name: a.Name, Description: a.Description, AllowedModels: a.AllowedModels, Team: a.Team, Environment: a.Environment, Tier: a.Tier, Required: kindsShown(a.RequiredIdentities),
		Metadata: metadata(a.Metadata), Status: string(a.Status),
	}
}

type agentsIn struct {
	Pages
	Name        string `query:"name" maxLength:"100" doc:"Return only agents with this name."`
	Team        string `query:"team" maxLength:"100" doc:"Return only agents of this team."`
	Environment string `query:"environment" maxLength:"100" doc:"Return only agents in this environment."`
	Status      string `query:"status" enum:"active,suspended" doc:"Return only agents with this status."`
}

func listAgents(ctx context.Context, x *call, in *agentsIn) (*paged[Agent], error) {
	after := in.after()
	agents, err := identity.ListAgents(ctx, x.tx, after.at, after.id, in.Limit+1, identity.AgentFilter{
		Name: in.Name, Team: in.Team, Environment: in.Environment, Status: identity.Status(in.Status),
	})
	if err != nil {
		return nil, err
	}
	return pageOf(in.Pages, agents, func(a identity.Agent) place { return place{a.Place, a.ID} }, agentShown), nil
}

func createAgent(ctx context.Context, x *call, in *struct{ Body NewAgent }) (*made[Agent], error) {
	id, err := x.newID(identity.AgentID)
	if err != nil {
		return nil, err
	}
	a := in.Body.put(identity.Agent{ID: id, OrgID: x.org, CreatedAt: x.now, UpdatedAt: x.now, Version: 1})
	a.Fingerprint = identity.Fingerprint(x.org, a.ID, a.Name, a.CreatedAt)
	if err := identity.InsertAgent(ctx, x.tx, a); err != nil {
		return nil, err
	}
	shown := agentShown(a)
	if err := x.record(ctx, "agent.created", "agent", a.ID, a.ID, nil, shown); err != nil {
		return nil, err
	}
	if shown.Warnings, err = sameName(ctx, x, a); err != nil {
		return nil, err
	}
	return &made[Agent]{Location: "/v1/agents/" + a.ID, ETag: etag(a.Version), Body: shown}, nil
}

// sameName warns if other agents have the agent's name. Names are not unique: the id
// identifies an agent. But a policy can select by name, and then applies to all of them.
func sameName(ctx context.Context, x *call, a identity.Agent) (warnings []string, err error) {
	const most = 3
	all, err := identity.ListAgents(ctx, x.tx, 0, "", most+1, identity.AgentFilter{Name: a.Name})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, other := range all {
		if other.ID != a.ID && len(ids) < most {
			ids = append(ids, other.ID)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	return []string{"Other agents have the name " + strconv.Quote(a.Name) + " too: " + strings.Join(ids, ", ") + ". A policy that selects agents by name applies to all of them. Choose another name, or select by id."}, nil
}

// agent returns the agent with the id, or a 404 with the id.
func (x *call) agent(ctx context.Context, id string) (identity.Agent, error) {
	if !isID(identity.AgentID, id) {
		return identity.Agent{}, notFound("agent", id)
	}
	a, err := identity.AgentByID(ctx, x.tx, id)
	if errors.Is(err, identity.ErrNotFound) {
		return a, notFound("agent", id)
	}
	return a, err
}

func getAgent(ctx context.Context, x *call, in *ByID) (*one[Agent], error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &one[Agent]{ETag: etag(a.Version), Body: agentShown(a)}, nil
}

func updateAgent(ctx context.Context, x *call, in *struct {
	ByID
	Conditional
	Body patch[NewAgent]
}) (*one[Agent], error) {
	var out *one[Agent]
	err := freshly(func() error {
		before, err := x.agent(ctx, in.ID)
		if err != nil {
			return err
		}
		if err := x.matches(before.Version); err != nil {
			return err
		}
		said, err := in.Body.onto(x.Server, agentSaid(before))
		if err != nil {
			return err
		}
		after := said.put(before)
		fields, err := changed(agentShown(before), agentShown(after))
		if err != nil {
			return err
		}
		if len(fields) == 0 {
			out = &one[Agent]{ETag: etag(before.Version), Body: agentShown(before)}
			return nil
		}
		after.UpdatedAt = x.now
		if after, err = identity.UpdateAgent(ctx, x.tx, after); err != nil {
			return err
		}
		out = &one[Agent]{ETag: etag(after.Version), Body: agentShown(after)}
		if err := x.record(ctx, "agent.updated", "agent", after.ID, after.ID, agentShown(before), out.Body); err != nil || after.Name == before.Name {
			return err
		}
		out.Body.Warnings, err = sameName(ctx, x, after)
		return err
	})
	return out, err
}

// freshly runs change, which reads and writes an object, until no other change interferes.
// With If-Match the second run returns 412.
func freshly(change func() error) error {
	for try := 0; ; try++ {
		err := change()
		if try == 4 || !errors.Is(err, identity.ErrConflict) && !conflict(err) {
			return err
		}
	}
}

func deleteAgent(ctx context.Context, x *call, in *struct {
	ByID
	Conditional
}) (*nothing, error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := x.matches(a.Version); err != nil {
		return nil, err
	}
	if err := identity.DeleteAgent(ctx, x.tx, a.ID); err != nil {
		return nil, err
	}
	return nil, x.record(ctx, "agent.deleted", "agent", a.ID, a.ID, agentShown(a), nil)
}

// each returns f of every element.
func each[A, B any](as []A, f func(A) B) []B {
	bs := make([]B, len(as))
	for i, a := range as {
		bs[i] = f(a)
	}
	return bs
}
