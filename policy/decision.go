package policy

import (
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
)

// read turns what decision.rego answers into a Decision. ok is false for an answer
// that is not exactly of one of its forms:
//
//	{"effect": "allow", "allow": {[policy, {"rpm": n}]}, "key_rpm": n}
//	{"effect": "deny", "refused": {[order, code, message]}, "deny": {policy}, "governs": {[policy]}}
//
// OPA orders sets, refusals by their first element and policies by their id, so the
// same answer always gives the same Decision.
func (b *Bundle) read(v ast.Value, in *Input) (d Decision, ok bool) {
	doc, isObject := v.(ast.Object)
	if !isObject {
		return Decision{}, false
	}
	switch effect, _ := member[ast.String](doc, "effect"); effect {
	case "allow":
		ok = b.readAllow(&d, doc, in)
	case "deny":
		ok = b.readDeny(&d, doc)
	}
	return d, ok
}

func (b *Bundle) readAllow(d *Decision, doc ast.Object, in *Input) bool {
	allow, ok := member[ast.Set](doc, "allow")
	rpm, ok1 := member[ast.Number](doc, "key_rpm")
	if !ok || !ok1 || in.Agent.ID == "" || in.Caller.KeyID == "" {
		return false // nobody to count for, or nobody at all
	}
	d.Effect = Allow
	if rpm != "0" && !d.limit("key", "rpm", rpm, "key:"+in.Caller.KeyID) {
		return false
	}
	return each(allow, func(t *ast.Term) bool {
		a, ok := t.Value.(*ast.Array)
		if !ok || a.Len() != 2 {
			return false
		}
		id, ok := a.Elem(0).Value.(ast.String)
		limits, ok1 := a.Elem(1).Value.(ast.Object)
		if _, known := b.names[string(id)]; !ok || !ok1 || !known {
			return false
		}
		d.matters(string(id))
		return !limits.Until(func(name, v *ast.Term) bool {
			n, ok := name.Value.(ast.String)
			return !ok || !d.limit(string(id), string(n), v.Value, "policy:"+string(id)+":agent:"+in.Agent.ID)
		})
	})
}

func (b *Bundle) readDeny(d *Decision, doc ast.Object) bool {
	refused, ok := member[ast.Set](doc, "refused")
	deny, ok1 := member[ast.Set](doc, "deny")
	governs, ok2 := member[ast.Set](doc, "governs")
	if !ok || !ok1 || !ok2 {
		return false
	}
	read := each(refused, func(t *ast.Term) bool {
		a, ok := t.Value.(*ast.Array)
		if !ok || a.Len() != 3 {
			return false
		}
		code, ok := a.Elem(1).Value.(ast.String)
		message, ok1 := a.Elem(2).Value.(ast.String)
		d.because(string(code), string(message), "")
		return ok && ok1
	}) && each(deny, func(t *ast.Term) bool {
		id, ok := t.Value.(ast.String)
		name, known := b.names[string(id)]
		d.because("policy_denied", "The policy "+quote(name)+" denies this request.", string(id))
		d.matters(string(id))
		return ok && known
	})
	if !read {
		return false
	}
	if governs.Len() > 0 {
		d.because("not_permitted", "Policies govern this agent, and none of them permits this request.", "")
	}
	var ids []string
	read = each(governs, func(t *ast.Term) bool {
		list, ok := t.Value.(*ast.Array)
		return ok && !list.Until(func(t *ast.Term) bool {
			id, ok := t.Value.(ast.String)
			ids = append(ids, string(id))
			return !ok
		})
	})
	slices.Sort(ids)
	for _, id := range ids {
		d.matters(id)
	}
	return read && len(d.Reasons) > 0
}

func member[T ast.Value](o ast.Object, name string) (v T, ok bool) {
	if t := o.Get(ast.InternedTerm(name)); t != nil {
		v, ok = t.Value.(T)
	}
	return v, ok
}

// each calls f for each member, in order, until it returns false.
func each(s ast.Set, f func(*ast.Term) bool) bool {
	return !s.Until(func(t *ast.Term) bool { return !f(t) })
}

func (d *Decision) because(code, message, policy string) {
	if len(d.Reasons) < maxReasons {
		d.Reasons = append(d.Reasons, Reason{Code: code, Message: message, PolicyID: policy})
	}
}

func (d *Decision) matters(policy string) {
	if len(d.PolicyIDs) < maxPolicyIDs {
		d.PolicyIDs = append(d.PolicyIDs, policy)
	}
}

// limit adds a limit. One that this build could not enforce must not be lost.
func (d *Decision) limit(source, name string, v ast.Value, counted string) bool {
	n, ok := v.(ast.Number)
	if !ok || name != "rpm" {
		return false
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	d.Limits = append(d.Limits, Limit{Source: source, Name: name, Value: i, Key: counted})
	return err == nil
}
