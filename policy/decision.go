package policy

import (
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
)

// read converts the result of decision.rego to a Decision. ok is false for a result that
// does not have exactly one of these forms:
//
//	{"effect": "allow", "allow": {policy}, "key_rpm": n}
//	{"effect": "deny", "refused": {[order, code, message]}, "deny": {policy}, "governs": {[policy]}, "approval": {policy}}
//
// OPA sorts sets: rejections by their first element and policies by their id. So the same
// result always gives the same Decision. raw are the policies in Rego that deny.
func (b *Bundle) read(v ast.Value, in *Input, raw []string) (d Decision, ok bool) {
	doc, isObject := v.(ast.Object)
	if !isObject {
		return Decision{}, false
	}
	var a answered
	for keys, n := doc.KeysIterator(), doc.Len(); n > 0; n-- {
		k, _ := keys.Next()
		a.set(k, doc.Get(k).Value)
	}
	switch a.effect {
	case ast.String("allow"):
		if ok = b.readAllow(&d, &a, in); ok && len(raw) > 0 {
			d = Decision{}
			b.deny(&d, raw)
		}
	case ast.String("deny"):
		ok = b.readDeny(&d, &a, raw)
	}
	return d, ok
}

// answered holds the members of a result. A missing member is nil.
type answered struct{ effect, allow, rpm, refused, deny, governs, approval ast.Value }

func (a *answered) set(k *ast.Term, v ast.Value) {
	switch k.Value {
	case ast.String("effect"):
		a.effect = v
	case ast.String("allow"):
		a.allow = v
	case ast.String("key_rpm"):
		a.rpm = v
	case ast.String("refused"):
		a.refused = v
	case ast.String("deny"):
		a.deny = v
	case ast.String("governs"):
		a.governs = v
	case ast.String("approval"):
		a.approval = v
	}
}

func (b *Bundle) readAllow(d *Decision, a *answered, in *Input) bool {
	allow, ok := a.allow.(ast.Set)
	rpm, ok1 := a.rpm.(ast.Number)
	if !ok || !ok1 || in.Agent.ID == "" || in.Caller.KeyID == "" {
		return false // there is no agent or no key to count for
	}
	d.Effect = Allow
	if rpm != "0" {
		n, err := strconv.ParseInt(string(rpm), 10, 64)
		if err != nil {
			return false
		}
		d.Limits = append(d.Limits, KeyRate(in.Caller.KeyID, n))
	}
	return each(allow, func(t *ast.Term) bool {
		id, ok := t.Value.(ast.String)
		if _, known := b.names[string(id)]; !ok || !known {
			return false
		}
		d.matters(string(id))
		d.bind(string(id), b.limits[string(id)], in)
		return true
	})
}

// KeyRate is the limit of a key's own.
func KeyRate(keyID string, perMinute int64) Limit {
	return Limit{Source: "key", Name: "rpm", Value: perMinute, Per: "key", Subject: keyID, Key: "key:" + keyID}
}

// deny adds a reason for each policy that denies.
func (b *Bundle) deny(d *Decision, ids []string) {
	for _, id := range ids {
		d.because("policy_denied", "The policy "+quote(b.names[id])+" denies this request.", id)
		d.matters(id)
	}
}

func (b *Bundle) readDeny(d *Decision, a *answered, raw []string) bool {
	refused, ok := a.refused.(ast.Set)
	deny, ok1 := a.deny.(ast.Set)
	governs, ok2 := a.governs.(ast.Set)
	approval, ok3 := a.approval.(ast.Set)
	if !ok || !ok1 || !ok2 || !ok3 {
		return false
	}
	denied := slices.Clone(raw)
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
		_, known := b.names[string(id)]
		denied = append(denied, string(id))
		return ok && known
	})
	if !read {
		return false
	}
	slices.Sort(denied)
	b.deny(d, denied)
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
	if len(raw) > 0 {
		return read // an approval would not help
	}
	read = read && each(approval, func(t *ast.Term) bool {
		id, ok := t.Value.(ast.String)
		name, known := b.names[string(id)]
		d.because("approval_required", "The policy "+quote(name)+" requires a person's approval for this request, and this version cannot ask for one.", string(id))
		d.matters(string(id))
		return ok && known
	})
	return read && len(d.Reasons) > 0
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
