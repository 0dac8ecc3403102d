package policy

import (
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
)

// read turns what decision.rego answers into a Decision. ok is false for an answer
// that is not as decision.rego makes them.
//
//	effect   "allow" or "deny"
//	refused  {[order, code, message]}
//	deny     {policy}            those that deny
//	allow    {{policy, limits}}  those that permit
//	governs  {policy}            if none permits: those that govern the agent
//	limits   {{source, name, value}}
//
// OPA iterates over sets in their order, so the same answer is always read alike.
func (b *Bundle) read(v any, in *Input) (d Decision, ok bool) {
	doc, isObject := v.(ast.Object)
	if !isObject {
		return Decision{}, false
	}
	effect, ok0 := member[ast.String](doc, "effect")
	refused, ok1 := member[ast.Set](doc, "refused")
	deny, ok2 := member[ast.Set](doc, "deny")
	allow, ok3 := member[ast.Set](doc, "allow")
	governs, ok4 := member[ast.Set](doc, "governs")
	limits, ok5 := member[ast.Set](doc, "limits")
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return Decision{}, false
	}
	if effect == "allow" && refused.Len() == 0 && deny.Len() == 0 {
		d.Effect = Allow
		ok = each(allow, func(t *ast.Term) bool { return b.permit(&d, t, in) }) &&
			each(limits, func(t *ast.Term) bool { return limitOfKey(&d, t, in) })
		return d, ok
	}
	ok = each(refused, func(t *ast.Term) bool { return refuse(&d, t) }) &&
		each(deny, func(t *ast.Term) bool { return b.deny(&d, t) }) &&
		each(governs, func(t *ast.Term) bool { return b.govern(&d, t) })
	return d, ok && len(d.Reasons) > 0
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

func refuse(d *Decision, t *ast.Term) bool {
	a, ok := t.Value.(*ast.Array)
	if !ok || a.Len() != 3 {
		return false
	}
	code, ok := a.Elem(1).Value.(ast.String)
	message, ok1 := a.Elem(2).Value.(ast.String)
	d.because(string(code), string(message), "")
	return ok && ok1
}

func (b *Bundle) deny(d *Decision, t *ast.Term) bool {
	id, ok := t.Value.(ast.String)
	d.because("policy_denied", "Policy "+quote(b.names[string(id)])+" denies this request.", string(id))
	d.matters(string(id))
	return ok
}

func (b *Bundle) govern(d *Decision, t *ast.Term) bool {
	id, ok := t.Value.(ast.String)
	d.matters(string(id))
	return ok
}

// permit takes a policy's limits. They count for each agent apart.
func (b *Bundle) permit(d *Decision, t *ast.Term, in *Input) bool {
	o, ok := t.Value.(ast.Object)
	if !ok {
		return false
	}
	id, ok := member[ast.String](o, "policy")
	limits, ok1 := member[ast.Object](o, "limits")
	if !ok || !ok1 {
		return false
	}
	d.matters(string(id))
	return !limits.Until(func(name, v *ast.Term) bool {
		n, ok := name.Value.(ast.String)
		return !ok || !d.limit(string(id), string(n), v, "policy:"+string(id)+":agent:"+in.Agent.ID)
	})
}

func limitOfKey(d *Decision, t *ast.Term, in *Input) bool {
	o, ok := t.Value.(ast.Object)
	if !ok {
		return false
	}
	source, ok := member[ast.String](o, "source")
	name, ok1 := member[ast.String](o, "name")
	return ok && ok1 && d.limit(string(source), string(name), o.Get(ast.InternedTerm("value")), "key:"+in.Caller.KeyID)
}

func (d *Decision) limit(source, name string, v *ast.Term, counted string) bool {
	if v == nil {
		return false
	}
	n, ok := v.Value.(ast.Number)
	if !ok {
		return false
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	d.Limits = append(d.Limits, Limit{Source: source, Name: name, Value: i, Key: counted})
	return err == nil
}
