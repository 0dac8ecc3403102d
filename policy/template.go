package policy

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

//go:embed templates/*.json
var templateFiles embed.FS

// Template is an allow policy for a common kind of agent, without the agents that it
// governs. Filling a template makes an ordinary policy.
type Template struct {
	ID         string         // "support"
	Summary    string         // what such an agent does, and what it does not
	ModelsLike []string       // patterns of models that such agents often use; only Nearest reads them
	Policy     TemplatePolicy // its part of the document
}

// TemplatePolicy is a document without a name. Its conditions select no agent.
type TemplatePolicy struct {
	Effect     string                    `json:"effect"`
	Conditions map[string]jsontext.Value `json:"conditions"`
	Limits     jsontext.Value            `json:"limits"`
}

// Templates returns the templates, the narrowest one first. Nearest prefers the first of
// equal ones, so it prefers the one that permits less.
func Templates() []Template { return slices.Clone(templates()) }

var templates = sync.OnceValue(func() (ts []Template) {
	for _, id := range []string{"support", "back-office", "research", "coding-assistant"} {
		b, err := templateFiles.ReadFile("templates/" + id + ".json")
		if err != nil {
			panic(err) // a file of this package
		}
		var t struct {
			ID         string         `json:"id"`
			Summary    string         `json:"summary"`
			ModelsLike []string       `json:"models_like"`
			Policy     TemplatePolicy `json:"policy"`
		}
		if err := json.Unmarshal(b, &t, json.RejectUnknownMembers(true)); err != nil || t.ID != id {
			panic(fmt.Sprintf("templates/%s.json: id %q: %v", id, t.ID, err))
		}
		ts = append(ts, Template(t))
	}
	return ts
})

// Filling has the parameters of a template. A zero field leaves the template's value.
type Filling struct {
	Name        string
	State       State
	Agents      []string // ids
	Team        string
	Environment string
	Models      []string       // names, or patterns with "*"; empty: each model that the agent may use
	Tools       []string       // the same for tools; they replace the template's
	Limits      jsontext.Value // they replace the template's
}

// Fill returns the document of a policy. At least one of Agents, Team and Environment must
// select the agents: otherwise the policy would govern every agent of the org. An error is
// an *Invalid that names the field of the filling.
func (t Template) Fill(f Filling) ([]byte, error) {
	if len(f.Agents) == 0 && f.Team == "" && f.Environment == "" {
		return nil, &Invalid{Field: "agents", Problem: "is missing, and so are team and environment", Fix: "name the agents, their team or their environment: without them the policy would govern every agent"}
	}
	doc := struct {
		Name       string                    `json:"name"`
		Effect     string                    `json:"effect"`
		State      State                     `json:"state,omitempty"`
		Conditions map[string]jsontext.Value `json:"conditions"`
		Limits     jsontext.Value            `json:"limits,omitempty"`
	}{f.Name, t.Policy.Effect, f.State, map[string]jsontext.Value{}, t.Policy.Limits}
	for name, c := range t.Policy.Conditions {
		doc.Conditions[name] = c
	}
	var err error
	set := func(name string, condition any) {
		if b, e := json.Marshal(condition, json.Deterministic(true)); e != nil {
			err = errors.Join(err, e)
		} else {
			doc.Conditions[name] = b
		}
	}
	if len(f.Agents) > 0 {
		set("agent.id", map[string][]string{"in": f.Agents})
	}
	if f.Team != "" {
		set("agent.team", f.Team)
	}
	if f.Environment != "" {
		set("agent.environment", f.Environment)
	}
	if len(f.Models) > 0 {
		// A request for the list of models has no model.
		set("any", []any{map[string]any{"request.model": names(f.Models)}, map[string]any{"request.operation": names([]string{"models.list", "models.get"})}})
	}
	if len(f.Tools) > 0 {
		set("request.tool", names(f.Tools))
	}
	if len(f.Limits) > 0 {
		doc.Limits = f.Limits
	}
	if err != nil {
		return nil, fmt.Errorf("policy: filling the template %s: %w", t.ID, err)
	}
	b, err := json.Marshal(doc, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("policy: filling the template %s: %w", t.ID, err)
	}
	var bad *Invalid
	if err = Check(b); errors.As(err, &bad) {
		for _, m := range [...][2]string{{"conditions.any[0].request.model", "models"}, {"conditions.request.tool", "tools"}, {"conditions.agent.id", "agents"}, {"conditions.agent.", ""}} {
			if rest, ok := strings.CutPrefix(bad.Field, m[0]); ok {
				return nil, &Invalid{Field: m[1] + rest, Problem: bad.Problem, Fix: bad.Fix}
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// names returns the operator for names and patterns.
func names(ns []string) map[string][]string {
	if slices.ContainsFunc(ns, func(n string) bool { return strings.ContainsRune(n, '*') }) {
		return map[string][]string{"glob": ns}
	}
	return map[string][]string{"in": ns}
}

// Observed is what an agent was seen to use.
type Observed struct {
	Operations, Models, Tools []string
}

// Fit is how well a template fits what was observed.
type Fit struct {
	Template   Template
	Permitted  int      // operations and tools that its policy permits
	Operations []string // those that it does not permit
	Tools      []string // those that it does not permit
	Models     int      // models that such agents often use
}

// Nearest returns the templates with their fit, the nearest one first. That is the one whose
// policy permits the most of the operations and tools. Of equal ones, the one whose agents
// use such models is nearer, then the narrower one. Each operation and each tool is decided
// by the policy itself, with each part of the policy but the time.
func Nearest(ctx context.Context, seen Observed, families func(tools []string) ([]string, bool)) ([]Fit, error) {
	var fits []Fit
	for _, t := range templates() {
		f := Fit{Template: t}
		ask := t
		ask.Policy.Conditions = map[string]jsontext.Value{}
		for name, c := range t.Policy.Conditions {
			if name != "request.time" { // when it was observed is not known
				ask.Policy.Conditions[name] = c
			}
		}
		in := SampleInput()
		doc, err := ask.Fill(Filling{Name: t.ID, Agents: []string{in.Agent.ID}})
		if err != nil {
			return nil, err
		}
		b, err := Compile(ctx, []Policy{{ID: "pol_template", OrgID: in.Org.ID, Version: 1, Document: doc}})
		if err != nil {
			return nil, err
		}
		permits := func(in Input) bool {
			if b.Decide(ctx, in).Effect != Allow {
				return false
			}
			f.Permitted++
			return true
		}
		for _, operation := range seen.Operations {
			in := SampleInput()
			in.Request.Operation = operation
			if !permits(in) {
				f.Operations = append(f.Operations, operation)
			}
		}
		for _, tool := range seen.Tools {
			in := SampleInput()
			in.Request.Tools = []string{tool}
			in.Request.ToolFamilies, in.Request.ToolsOther = families(in.Request.Tools)
			if !permits(in) {
				f.Tools = append(f.Tools, tool)
			}
		}
		for _, model := range seen.Models {
			if slices.ContainsFunc(t.ModelsLike, func(p string) bool { return Matches(p, model) }) {
				f.Models++
			}
		}
		fits = append(fits, f)
	}
	slices.SortStableFunc(fits, func(a, b Fit) int {
		return cmp.Or(cmp.Compare(b.Permitted, a.Permitted), cmp.Compare(b.Models, a.Models))
	})
	return fits, nil
}
