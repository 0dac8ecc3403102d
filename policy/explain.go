package policy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/open-policy-agent/opa/v1/ast"
)

// Explanation is a decision with what each policy that bears on it says.
type Explanation struct {
	Decision Decision
	Policies []Explained // those that govern or match, in the order of ids
}

// Explained is what a policy says of a request.
type Explained struct {
	ID      string
	Name    string
	Version int64
	Effect  string // "allow", "deny" or "require_approval"
	State   State
	Governs bool // an allow that selects the agent and its caller
	Matches bool // all of its conditions hold
	Failed  []FailedCondition
}

// FailedCondition is a condition that does not hold.
type FailedCondition struct {
	Path      string // "conditions.any[0].agent.team"
	Attribute string // "agent.team"
	Unknown   bool   // the attribute is missing, or of another type than it is compared with
	Value     any    // of the attribute; nil: missing
}

// Explain decides a request and evaluates each condition of the policies apart. OPA
// evaluates them, as it does for a decision. The conditions of a policy that matches are
// not listed.
func Explain(ctx context.Context, ps []Policy, in Input) (Explanation, error) {
	b, err := Compile(ctx, ps)
	if err != nil {
		return Explanation{}, err
	}
	x := Explanation{Decision: b.Decide(ctx, in)}
	ps = sorted(ps)
	var g generator
	var rego strings.Builder
	rego.WriteString("package aid.explain\n\ndecision := {\"effect\": \"allow\", \"matches\": matches, \"selects\": selects, \"holds\": holds, \"fails\": fails}\n")
	for _, rule := range []string{"matches", "selects", "holds", "fails"} {
		rego.WriteString("\n" + rule + " contains -1\n") // so that each is a set
	}
	docs := make([]document, len(ps))
	leaves := map[int]condition{} // by number
	of := map[int]int{}           // leaf → policy
	for i, p := range ps {
		d, err := parse(p.Document)
		if err != nil {
			return Explanation{}, fmt.Errorf("policy: %s: %w", p.ID, err)
		}
		docs[i] = d
		if d.state == Disabled || d.raw != nil {
			continue
		}
		effect := Deny
		if d.effect == Allow {
			effect = Allow
			rules(&rego, "selects contains "+strconv.Itoa(i), g.bodies(d.conditions.selecting(), Allow))
		}
		rules(&rego, "matches contains "+strconv.Itoa(i), g.bodies(d.conditions, effect))
		d.conditions.leaves(func(c condition) {
			n := len(leaves)
			leaves[n], of[n] = c, i
			rules(&rego, "holds contains "+strconv.Itoa(n), g.bodies(c, effect))
			c.negated = !c.negated
			rules(&rego, "fails contains "+strconv.Itoa(n), g.bodies(c, effect))
		})
	}
	c, err := compile(map[string]string{"explain.rego": rego.String() + g.helpers.String()})
	if err != nil {
		return Explanation{}, fmt.Errorf("policy: %w", err)
	}
	e, err := engineFor(c, "data.aid.explain.decision")
	if err != nil {
		return Explanation{}, fmt.Errorf("policy: %w", err)
	}
	e.steps = 4 * maxSteps // each condition is evaluated three times
	sets := map[string]map[int]bool{}
	err = e.eval(ctx, &in, func(_ bool, v ast.Value) error {
		doc, ok := v.(ast.Object)
		if !ok {
			return errors.New("not an explanation")
		}
		for _, rule := range []string{"matches", "selects", "holds", "fails"} {
			members, ok := doc.Get(ast.StringTerm(rule)).Value.(ast.Set)
			if !ok {
				return errors.New("not an explanation")
			}
			sets[rule] = map[int]bool{}
			members.Foreach(func(t *ast.Term) {
				if n, ok := t.Value.(ast.Number); ok {
					i, _ := n.Int()
					sets[rule][i] = true
				}
			})
		}
		return nil
	})
	if err != nil {
		return Explanation{}, fmt.Errorf("policy: explaining: %w", err)
	}
	values, err := in.attributes()
	if err != nil {
		return Explanation{}, err
	}
	for i, p := range ps {
		d := docs[i]
		e := Explained{ID: p.ID, Name: d.name, Version: p.Version, Effect: d.effectName(), State: d.state, Governs: sets["selects"][i], Matches: sets["matches"][i]}
		if d.raw != nil && d.state != Disabled {
			raw, err := d.raw.compile()
			if err != nil {
				return Explanation{}, fmt.Errorf("policy: %s: %w", p.ID, err)
			}
			if e.Matches, err = raw.denies(ctx, &in); err != nil { // which denies, too
				e.Failed = []FailedCondition{{Path: "rego.module", Unknown: true}}
			}
		}
		if !e.Governs && !e.Matches && e.Failed == nil {
			continue
		}
		for n := 0; n < len(leaves) && !e.Matches; n++ {
			if c := leaves[n]; of[n] == i && !sets["holds"][n] {
				f := FailedCondition{Path: c.path, Attribute: c.name, Value: values(c.name)}
				set := c.attribute.kind == texts || c.attribute.kind == scopes // some of its members may fail, and others not
				f.Unknown = c.op != opExists && (f.Value == nil || !set && !sets["fails"][n])
				e.Failed = append(e.Failed, f)
			}
		}
		x.Policies = append(x.Policies, e)
	}
	return x, nil
}

// leaves calls f for each comparison.
func (c condition) leaves(f func(condition)) {
	if c.join == leaf {
		f(c)
		return
	}
	for _, p := range c.parts {
		p.leaves(f)
	}
}

// effectName is the effect as documents spell it.
func (d document) effectName() string {
	if d.effect == requireApproval {
		return "require_approval"
	}
	return d.effect.String()
}

// attributes returns the values of attributes, by the names that conditions use.
func (in Input) attributes() (func(name string) any, error) {
	b, err := in.Document()
	if err != nil {
		return nil, err
	}
	var doc map[string]map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("policy: reading the input back: %w", err)
	}
	return func(name string) any {
		if key, ok := strings.CutPrefix(name, metadata); ok {
			m, _ := doc["agent"]["metadata"].(map[string]any)
			return m[key]
		}
		section, member, _ := strings.Cut(strings.TrimPrefix(ref(name), "input."), ".")
		return doc[section][member]
	}, nil
}
