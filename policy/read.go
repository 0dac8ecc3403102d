package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// errShape is a decision document that is not as decision.rego makes it. It denies.
var errShape = errors.New("policy: the decision is not of its form")

// read turns the decision document into a Decision. What is not exactly of its
// form is an error, and an error denies.
func (b *Bundle) read(v any, in *Input) (d Decision, err error) {
	doc, ok := v.(ast.Object)
	if !ok {
		return d, errShape
	}
	effect, err := textAt(doc, "effect")
	if err != nil {
		return d, err
	}
	refused, err := refusals(doc)
	if err != nil {
		return d, err
	}
	denies, err := idsAt(doc, "deny")
	if err != nil {
		return d, err
	}
	permits, limits, err := permitsAt(doc, in)
	if err != nil {
		return d, err
	}
	switch effect {
	case "allow":
		if len(refused) != 0 || len(denies) != 0 {
			return d, errShape // two halves of one answer contradict each other
		}
		if d.Limits, err = baselineLimits(doc, in); err != nil {
			return d, err
		}
		d.Limits = append(d.Limits, limits...)
		d.Effect, d.PolicyIDs = Allow, bounded(permits)
		return d, nil
	case "deny":
	default:
		return d, errShape
	}
	d.Reasons, d.PolicyIDs = refused, bounded(denies)
	for _, id := range denies {
		d.Reasons = append(d.Reasons, Reason{Code: "policy_denied", Message: "The policy " + quote(b.names[id]) + " denies this request.", PolicyID: id})
	}
	if len(d.Reasons) == 0 {
		governs, err := idsAt(doc, "governs")
		if err != nil || len(governs) == 0 {
			return Decision{}, errShape
		}
		d.PolicyIDs = bounded(governs)
		d.Reasons = []Reason{{Code: "not_permitted", Message: "Policies govern this agent, and none of them permits this request.", PolicyID: governs[0]}}
	}
	d.Reasons = d.Reasons[:min(len(d.Reasons), maxReasons)]
	return d, nil
}

func bounded(ids []string) []string { return ids[:min(len(ids), maxPolicyIDs)] }

// refusals are the baseline's reasons in the order in which they are to be told.
func refusals(doc ast.Object) ([]Reason, error) {
	set, err := setAt(doc, "refused")
	if err != nil {
		return nil, err
	}
	type ranked struct {
		rank int
		Reason
	}
	var rs []ranked
	for _, t := range set {
		a, ok := t.Value.(*ast.Array)
		if !ok || a.Len() != 3 {
			return nil, errShape
		}
		n, isNumber := a.Elem(0).Value.(ast.Number)
		code, isText := a.Elem(1).Value.(ast.String)
		message, isText2 := a.Elem(2).Value.(ast.String)
		rank, isInt := n.Int()
		if !isNumber || !isText || !isText2 || !isInt {
			return nil, errShape
		}
		rs = append(rs, ranked{rank, Reason{Code: string(code), Message: string(message)}})
	}
	slices.SortFunc(rs, func(a, b ranked) int { return a.rank - b.rank })
	out := make([]Reason, len(rs))
	for i, r := range rs {
		out[i] = r.Reason
	}
	return out, nil
}

// permitsAt are the allow policies that permit the request, in order, and their
// limits. A policy's rpm is counted for each agent.
func permitsAt(doc ast.Object, in *Input) (ids []string, limits []Limit, err error) {
	set, err := setAt(doc, "allow")
	if err != nil {
		return nil, nil, err
	}
	for _, t := range set {
		o, ok := t.Value.(ast.Object)
		if !ok {
			return nil, nil, errShape
		}
		id, err := textAt(o, "policy")
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, id)
		l, ok := at(o, "limits").(ast.Object)
		if !ok {
			return nil, nil, errShape
		}
		if l.Len() == 0 {
			continue
		}
		n, err := integerAt(l, "rpm")
		if err != nil || l.Len() != 1 || n <= 0 || in.Agent.ID == "" {
			return nil, nil, errShape // a limit that is not understood is not left out
		}
		limits = append(limits, Limit{Source: id, Name: "rpm", Value: n, Key: "policy:" + id + ":agent:" + in.Agent.ID})
	}
	slices.Sort(ids)
	slices.SortFunc(limits, func(a, b Limit) int { return strings.Compare(a.Source, b.Source) })
	return ids, limits, nil
}

func baselineLimits(doc ast.Object, in *Input) ([]Limit, error) {
	set, err := setAt(doc, "limits")
	if err != nil {
		return nil, err
	}
	var out []Limit
	for _, t := range set {
		o, ok := t.Value.(ast.Object)
		if !ok {
			return nil, errShape
		}
		source, err1 := textAt(o, "source")
		name, err2 := textAt(o, "name")
		n, err3 := integerAt(o, "value")
		if errors.Join(err1, err2, err3) != nil || source != "key" || name != "rpm" || in.Caller.KeyID == "" {
			return nil, errShape
		}
		out = append(out, Limit{Source: source, Name: name, Value: n, Key: "key:" + in.Caller.KeyID})
	}
	return out, nil
}

func at(o ast.Object, name string) ast.Value {
	if t := o.Get(ast.InternedTerm(name)); t != nil {
		return t.Value
	}
	return nil
}

func textAt(o ast.Object, name string) (string, error) {
	s, ok := at(o, name).(ast.String)
	if !ok || s == "" {
		return "", fmt.Errorf("%w: %s", errShape, name)
	}
	return string(s), nil
}

func integerAt(o ast.Object, name string) (int64, error) {
	n, ok := at(o, name).(ast.Number)
	if !ok {
		return 0, fmt.Errorf("%w: %s", errShape, name)
	}
	i, ok := n.Int64()
	if !ok {
		return 0, fmt.Errorf("%w: %s", errShape, name)
	}
	return i, nil
}

func setAt(o ast.Object, name string) ([]*ast.Term, error) {
	s, ok := at(o, name).(ast.Set)
	if !ok {
		return nil, fmt.Errorf("%w: %s", errShape, name)
	}
	return s.Slice(), nil
}

func idsAt(o ast.Object, name string) ([]string, error) {
	set, err := setAt(o, name)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range set {
		s, ok := t.Value.(ast.String)
		if !ok || s == "" {
			return nil, errShape
		}
		ids = append(ids, string(s))
	}
	slices.Sort(ids)
	return ids, nil
}

// clip bounds what of a document goes into a message.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
