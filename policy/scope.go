package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Scope counts the agents that a policy selects, and what its limits add up to for them. Make
// one with NewScope, and call Add for each agent with each of its keys.
type Scope struct {
	Agents int // that are selected

	engine *engine
	last   string // the last agent that was selected
	limits []limit
	counts []map[string]bool // of each limit: the subjects so far; nil: they depend on the requests
}

// ScopeLimit is what one limit of a policy adds up to.
type ScopeLimit struct {
	Name   string
	Per    string // as in Limit
	Value  int64  // requests, tokens, or the nano-dollars of a cap
	Counts int    // how many counts there are; 0 also if Open
	Open   bool   // the number of counts depends on the requests
	Most   int64  // Value for each count; 0 if Open
}

// NewScope returns the Scope of a document that Check accepts.
func NewScope(doc []byte) (*Scope, error) {
	d, err := parse(doc)
	if err != nil {
		return nil, err
	}
	var g generator
	var rego strings.Builder
	rego.WriteString("package aid.scope\n\ndecision := {\"effect\": effect}\n\ndefault effect := \"deny\"\n")
	rules(&rego, `effect := "allow"`, g.bodies(d.conditions.selecting(), Allow))
	c, err := compile(map[string]string{"scope.rego": rego.String() + g.helpers.String()})
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	s := &Scope{limits: d.limits}
	if s.engine, err = engineFor(c, "data.aid.scope.decision"); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	for _, l := range d.limits {
		if l.name == "max_tokens" || slices.ContainsFunc(l.per, func(per string) bool { return per == perSession || strings.HasPrefix(per, "request.") }) {
			s.counts = append(s.counts, nil)
		} else {
			s.counts = append(s.counts, map[string]bool{})
		}
	}
	return s, nil
}

// Add counts an agent with one of its keys. Calls for one agent follow each other.
func (s *Scope) Add(ctx context.Context, in Input) error {
	selected := false
	err := s.engine.eval(ctx, &in, func(allowed bool, _ ast.Value) error {
		selected = allowed
		return nil
	})
	if err != nil || !selected {
		return err
	}
	if s.last != in.Agent.ID {
		s.last = in.Agent.ID
		s.Agents++
	}
	var d Decision
	d.bind("", s.limits, &in)
	for i, subjects := range s.counts {
		if subjects != nil {
			subjects[d.Limits[i].Key] = true
		}
	}
	return nil
}

// Limits returns what each limit adds up to, in the order of the document.
func (s *Scope) Limits() (out []ScopeLimit) {
	for i, l := range s.limits {
		r := ScopeLimit{Name: l.name, Per: strings.Join(l.per, "+"), Value: l.max, Open: s.counts[i] == nil, Counts: len(s.counts[i])}
		if r.Counts > 0 {
			if r.Most = r.Value * int64(r.Counts); r.Most/int64(r.Counts) != r.Value {
				r.Most = 1<<63 - 1
			}
		}
		out = append(out, r)
	}
	return out
}
