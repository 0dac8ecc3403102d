package policy

import (
	"errors"
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
)

// outcome is the result of decision.rego, or of a policy in Rego. It has nothing of the
// request, and never changes.
type outcome struct {
	effect   Effect
	rpm      int64 // the key's own limit; 0: none
	refused  []Reason
	allow    []string // ids of policies, in order, as are the others
	deny     []string
	governs  []string
	approval []string
	denies   bool // of a policy in Rego
}

var errNoDecision = errors.New("the result is not a decision")

// outcome reads the result of decision.rego. A result that does not have exactly one of these
// forms is an error:
//
//	{"effect": "allow", "allow": {policy}, "key_rpm": n}
//	{"effect": "deny", "refused": {[order, code, message]}, "deny": {policy}, "governs": {[policy]}, "approval": {policy}}
//
// OPA sorts sets: rejections by their first element and policies by their id. So the same
// result always gives the same Decision.
func (b *Bundle) outcome(allowed bool, v ast.Value) (*outcome, error) {
	doc, isObject := v.(ast.Object)
	if !isObject {
		return nil, errNoDecision
	}
	var a answered
	for keys, n := doc.KeysIterator(), doc.Len(); n > 0; n-- {
		k, _ := keys.Next()
		a.set(k, doc.Get(k).Value)
	}
	var o outcome
	ok := false
	switch a.effect {
	case ast.String("allow"):
		ok = b.readAllow(&o, &a)
	case ast.String("deny"):
		ok = b.readDeny(&o, &a)
	}
	if !ok || allowed != (o.effect == Allow) {
		return nil, errNoDecision
	}
	return &o, nil
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

func (b *Bundle) readAllow(o *outcome, a *answered) bool {
	rpm, ok := a.rpm.(ast.Number)
	if !ok {
		return false
	}
	n, err := strconv.ParseInt(string(rpm), 10, 64)
	if err != nil {
		return false
	}
	o.effect, o.rpm = Allow, n
	o.allow, ok = b.ids(a.allow)
	return ok
}

func (b *Bundle) readDeny(o *outcome, a *answered) bool {
	refused, ok := a.refused.(ast.Set)
	governs, ok1 := a.governs.(ast.Set)
	var ok2, ok3 bool
	o.deny, ok2 = b.ids(a.deny)
	o.approval, ok3 = b.ids(a.approval)
	defer func() { slices.Sort(o.governs) }()
	return ok && ok1 && ok2 && ok3 && each(refused, func(t *ast.Term) bool {
		a, ok := t.Value.(*ast.Array)
		if !ok || a.Len() != 3 {
			return false
		}
		code, ok := a.Elem(1).Value.(ast.String)
		message, ok1 := a.Elem(2).Value.(ast.String)
		o.refused = append(o.refused, Reason{Code: string(code), Message: string(message)})
		return ok && ok1
	}) && each(governs, func(t *ast.Term) bool {
		list, ok := t.Value.(*ast.Array)
		if !ok {
			return false
		}
		return !list.Until(func(t *ast.Term) bool {
			id, ok := b.id(t)
			o.governs = append(o.governs, id)
			return !ok
		})
	}) && len(o.refused)+len(o.deny)+len(o.governs)+len(o.approval) > 0
}

// ids returns the members of a set of ids.
func (b *Bundle) ids(v ast.Value) (ids []string, ok bool) {
	set, ok := v.(ast.Set)
	if !ok {
		return nil, false
	}
	ok = each(set, func(t *ast.Term) bool {
		id, ok := b.id(t)
		ids = append(ids, id)
		return ok
	})
	return ids, ok
}

// id returns the id of a policy of the bundle.
func (b *Bundle) id(t *ast.Term) (id string, ok bool) {
	s, ok := t.Value.(ast.String)
	_, known := b.names[string(s)]
	return string(s), ok && known
}

// each calls f for each member, in order, until it returns false.
func each(s ast.Set, f func(*ast.Term) bool) bool {
	return !s.Until(func(t *ast.Term) bool { return !f(t) })
}

// decision returns the Decision for one request. raw are the policies in Rego that deny.
func (b *Bundle) decision(o *outcome, in *Input, raw []string) (d Decision, err error) {
	switch {
	case o.effect != Allow:
		b.deny(&d, o, raw)
	case in.Agent.ID == "" || in.Caller.KeyID == "":
		return Decision{}, errNoDecision // there is no agent or no key to count for
	case len(raw) > 0:
		b.deny(&d, &outcome{}, raw)
	default:
		d.Effect = Allow
		d.PolicyIDs = slices.Clone(o.allow[:min(len(o.allow), maxPolicyIDs)])
		b.bind(&d, o, in)
	}
	return d, nil
}

// bind adds the limits that hold for an allowed request.
func (b *Bundle) bind(d *Decision, o *outcome, in *Input) {
	n := 0
	for _, id := range o.allow {
		n += len(b.limits[id])
	}
	if o.rpm != 0 {
		n++
	}
	if n == 0 {
		return
	}
	d.Limits = make([]Limit, 0, n)
	if o.rpm != 0 {
		d.Limits = append(d.Limits, KeyRate(in.Caller.KeyID, o.rpm))
	}
	for _, id := range o.allow {
		d.bind(id, b.limits[id], in)
	}
}

// KeyRate is the limit of a key's own.
func KeyRate(keyID string, perMinute int64) Limit {
	return Limit{Source: "key", Name: "rpm", Value: perMinute, Per: "key", Subject: keyID, Key: "key:" + keyID}
}

// deny adds the reasons of a denied request.
func (b *Bundle) deny(d *Decision, o *outcome, raw []string) {
	for _, r := range o.refused {
		d.because(r.Code, r.Message, "")
	}
	denied := o.deny
	if len(raw) > 0 {
		denied = slices.Sorted(slices.Values(slices.Concat(raw, o.deny)))
	}
	for _, id := range denied {
		d.because("policy_denied", "The policy "+quote(b.names[id])+" denies this request.", id)
		d.matters(id)
	}
	if len(o.governs) > 0 {
		d.because("not_permitted", "Policies govern this agent, and none of them permits this request.", "")
	}
	for _, id := range o.governs {
		d.matters(id)
	}
	if len(raw) > 0 {
		return // an approval would not help
	}
	for _, id := range o.approval {
		d.because("approval_required", "The policy "+quote(b.names[id])+" requires a person's approval for this request, and this version cannot ask for one.", id)
		d.matters(id)
	}
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
