package api

import (
	"context"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// PolicyTemplate is a template on the wire.
type PolicyTemplate struct {
	ID      string       `json:"id" doc:"The template's id." example:"support"`
	Summary string       `json:"summary" doc:"What such an agent does, and what it does not."`
	Policy  rawObject    `json:"policy" doc:"The policy's effect, conditions and limits. The conditions that select agents are added."`
	Fit     *TemplateFit `json:"fit,omitzero" doc:"How well it fits what was observed; only with a filter."`
}

// TemplateFit is how well a template fits what was observed.
type TemplateFit struct {
	Nearest    bool     `json:"nearest" doc:"Whether this template is the nearest one." example:"true"`
	Permitted  int      `json:"permitted" doc:"How many of the operations and tools its policy permits." example:"3"`
	Operations []string `json:"operations_not_permitted" nullable:"false" doc:"The operations that its policy does not permit."`
	Tools      []string `json:"tools_not_permitted" nullable:"false" doc:"The tools that its policy does not permit."`
	Models     int      `json:"models_alike" doc:"How many of the models such agents often use." example:"1"`
}

func listTemplates(ctx context.Context, _ *call, in *struct {
	Operations []string `query:"operations" minItems:"1" maxItems:"100" minLength:"1" maxLength:"256" doc:"Operations that an agent used, separated by commas." example:"chat.completions"`
	Models     []string `query:"models" minItems:"1" maxItems:"100" minLength:"1" maxLength:"256" doc:"Models that it used, separated by commas." example:"gpt-4o-mini"`
	Tools      []string `query:"tools" minItems:"1" maxItems:"100" minLength:"1" maxLength:"256" doc:"Tools that its requests involved, separated by commas." example:"crm.read"`
}) (*paged[PolicyTemplate], error) {
	seen := policy.Observed{Operations: in.Operations, Models: in.Models, Tools: in.Tools}
	filtered := len(seen.Operations)+len(seen.Models)+len(seen.Tools) > 0
	fits, err := policy.Nearest(ctx, seen, provider.ToolFamilies)
	if err != nil {
		return nil, err
	}
	out := []PolicyTemplate{}
	for i, f := range fits {
		b, err := json.Marshal(f.Template.Policy, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		t := PolicyTemplate{ID: f.Template.ID, Summary: f.Template.Summary, Policy: b}
		if filtered {
			t.Fit = &TemplateFit{Nearest: i == 0, Permitted: f.Permitted, Operations: strs(f.Operations), Tools: strs(f.Tools), Models: f.Models}
		}
		out = append(out, t)
	}
	return &paged[PolicyTemplate]{Body: list[PolicyTemplate]{Data: out}}, nil
}

// FromTemplate is the body that creates a policy from a template.
type FromTemplate struct {
	Template    string    `json:"template" enum:"support,back-office,research,coding-assistant" doc:"The template's id." example:"support"`
	Name        string    `json:"name" minLength:"1" maxLength:"128" doc:"The policy's name, unique in the org." example:"support-defaults"`
	State       string    `json:"state,omitzero" enum:"enabled,disabled,shadow" doc:"Whether the policy is enforced; enabled if left out." example:"shadow"`
	Agents      []string  `json:"agents,omitzero" nullable:"false" maxItems:"256" doc:"The ids of the agents that it governs." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Team        string    `json:"team,omitzero" maxLength:"100" doc:"The team of the agents that it governs." example:"support"`
	Environment string    `json:"environment,omitzero" maxLength:"100" doc:"The environment of the agents that it governs." example:"prod"`
	Models      []string  `json:"models,omitzero" nullable:"false" maxItems:"256" doc:"The models that it permits: names, or patterns with *. Without them, each model that the agent may use." example:"gpt-4o-mini"`
	Tools       []string  `json:"tools,omitzero" nullable:"false" maxItems:"256" doc:"The tools that it permits: names, or patterns with *. They replace the template's." example:"crm.read"`
	Limits      rawObject `json:"limits,omitzero" doc:"The limits of the policy. They replace the template's."`
}

func createFromTemplate(ctx context.Context, x *call, in *struct{ Body FromTemplate }) (*made[Policy], error) {
	all := policy.Templates()
	i := slices.IndexFunc(all, func(t policy.Template) bool { return t.ID == in.Body.Template })
	if i < 0 {
		return nil, notFound("template", in.Body.Template) // validation has checked it
	}
	for _, id := range in.Body.Agents {
		if _, err := x.agent(ctx, id); err != nil {
			return nil, err
		}
	}
	b := in.Body
	document, err := all[i].Fill(policy.Filling{
		Name: b.Name, State: policy.State(b.State), Agents: b.Agents, Team: b.Team, Environment: b.Environment, Models: b.Models, Tools: b.Tools, Limits: jsontext.Value(b.Limits),
	})
	if err != nil {
		return nil, err
	}
	return x.createPolicy(ctx, document)
}
