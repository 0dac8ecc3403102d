package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// MaxPolicies is how many policies an org may have.
const MaxPolicies = 2000

// Bundle is an org's policies, compiled. It never changes and is safe for
// concurrent use. The zero value denies.
type Bundle struct {
	org     string // empty: there are no policies
	version string
	rego    string
	names   map[string]string // id → name
	numbers map[string]int64  // id → version
	limits  map[string][]limit
	engine  *engine
	raws    []rawPolicy     // in the order of ids
	shadow  *Bundle         // the same with the policies in shadow enforced; nil: there are none
	shadows map[string]bool // the ids of these
}

var idForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Compile makes a Bundle of all of an org's policies, in any order. If this build does not
// support one of the documents, the error wraps an *Invalid and names the policy. The
// caller must then keep the Bundle that it has, since a part of a set decides differently.
func Compile(ctx context.Context, ps []Policy) (*Bundle, error) {
	if len(ps) > MaxPolicies {
		return nil, fmt.Errorf("policy: %d policies are more than %d", len(ps), MaxPolicies)
	}
	ps = sorted(ps)
	b := &Bundle{version: versionOf(ps), names: make(map[string]string, len(ps)), numbers: make(map[string]int64, len(ps)), limits: map[string][]limit{}}
	ids, ds := make([]string, len(ps)), make([]document, len(ps))
	for i, p := range ps {
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("policy: compiling: %w", ctx.Err())
		case !idForm.MatchString(p.ID):
			return nil, fmt.Errorf("policy: %q is not the id of a policy", p.ID)
		case i > 0 && p.ID == ids[i-1]:
			return nil, fmt.Errorf("policy: %s is in the set twice", p.ID)
		case p.OrgID == "" || i > 0 && p.OrgID != b.org:
			return nil, fmt.Errorf("policy: %s belongs to org %q, and the set belongs to %q", p.ID, p.OrgID, b.org)
		}
		d, err := parse(p.Document)
		if err != nil {
			return nil, fmt.Errorf("policy: %s: %w", p.ID, err)
		}
		b.org, ids[i], ds[i] = p.OrgID, p.ID, d
		b.names[p.ID], b.numbers[p.ID] = d.name, p.Version
		if len(d.limits) > 0 {
			b.limits[p.ID] = d.limits
		}
		if d.state == Shadow {
			if b.shadows == nil {
				b.shadows = map[string]bool{}
			}
			b.shadows[p.ID] = true
		}
	}
	var err error
	if n := len(slices.DeleteFunc(slices.Clone(ds), func(d document) bool { return d.raw == nil })); n > MaxRego {
		return nil, fmt.Errorf("policy: %d policies in Rego are more than %d", n, MaxRego)
	}
	m := newMemo()
	if err = b.compile(ids, ds, m, 0, Enabled); err != nil {
		return nil, err
	}
	if len(b.shadows) > 0 {
		b.shadow = &Bundle{org: b.org, version: b.version, names: b.names, numbers: b.numbers, limits: b.limits}
		if err = b.shadow.compile(ids, ds, m, 1+len(b.raws), Enabled, Shadow); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// compile compiles the policies that are in one of the states. Its engines keep results in m,
// under numbers from first on.
func (b *Bundle) compile(ids []string, ds []document, m *memo, first int, states ...State) error {
	var some []string
	var of []document
	for i, d := range ds {
		if slices.Contains(states, d.state) {
			some, of = append(some, ids[i]), append(of, d)
		}
	}
	rego, all := generate(some, of)
	e, err := newEngine(rego)
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	if b.raws, err = rawsOf(some, of); err != nil {
		return err
	}
	e.remember(m, first, factsOf(all))
	for i, r := range b.raws {
		r.engine.remember(m, first+1+i, nil)
	}
	b.rego, b.engine = rego, e
	return nil
}

// Rego is one policy in Rego, whatever its state: what a Bundle has of it beside others. Of
// a policy that was written in Rego it is that module.
func Rego(p Policy) (string, error) {
	d, err := parse(p.Document)
	if err != nil {
		return "", fmt.Errorf("policy: %s: %w", p.ID, err)
	}
	if d.raw != nil {
		return d.raw.module, nil
	}
	module, _ := generate([]string{p.ID}, []document{d})
	return module, nil
}

// Of reports whether the Bundle was compiled from exactly these policies, in any order.
// The caller then need not compile them again. A nil Bundle returns false.
func (b *Bundle) Of(ps []Policy) bool {
	if b == nil || b.engine == nil {
		return false
	}
	for _, p := range ps {
		if p.OrgID != b.org {
			return false
		}
	}
	return (len(ps) > 0 || b.org == "") && versionOf(sorted(ps)) == b.version
}

// Version names the set of policies: "sha256:" + hex. It does not depend on their order.
func (b *Bundle) Version() string { return b.version }

// Rego returns the module that the enabled policies with conditions were compiled to.
func (b *Bundle) Rego() string { return b.rego }

// CountsEnds reports whether a limit depends on how requests end.
func (b *Bundle) CountsEnds() bool {
	for _, ls := range b.limits {
		for _, l := range ls {
			if l.name != "rpm" && l.name != "max_tokens" {
				return true
			}
		}
	}
	return false
}

// ReadsSpend reports whether a policy reads what the agent has spent.
func (b *Bundle) ReadsSpend() bool {
	if b == nil || b.engine == nil {
		return false
	}
	return b.engine.writer.spends() || slices.ContainsFunc(b.raws, func(r rawPolicy) bool { return r.engine.writer.spends() }) || b.shadow.ReadsSpend()
}

// InShadow reports whether a policy is in shadow, so that Shadow has a decision.
func (b *Bundle) InShadow() bool { return b != nil && b.shadow != nil }

// Shadow returns the decision that Decide would make if the policies in shadow were
// enabled. If no policy is in shadow, ok is false. Its Limits are only those of policies in
// shadow. They are counted separately: their Key begins with "shadow:".
func (b *Bundle) Shadow(ctx context.Context, in Input) (d Decision, ok bool) {
	if !b.InShadow() {
		return Decision{}, false
	}
	d = b.shadow.Decide(ctx, in)
	d.Limits = slices.DeleteFunc(d.Limits, func(l Limit) bool { return !b.shadows[l.Source] })
	for i := range d.Limits {
		d.Limits[i].Key = "shadow:" + d.Limits[i].Key
	}
	return d, true
}

func sorted(ps []Policy) []Policy {
	return slices.SortedFunc(slices.Values(ps), func(a, b Policy) int { return cmp.Compare(a.ID, b.ID) })
}

// versionOf returns a digest of what distinguishes policies. ps is sorted.
func versionOf(ps []Policy) string {
	h := sha256.New()
	var n [8]byte
	number := func(i uint64) {
		binary.BigEndian.PutUint64(n[:], i)
		h.Write(n[:])
	}
	for _, p := range ps {
		number(uint64(len(p.ID)))
		h.Write([]byte(p.ID))
		number(uint64(p.Version))
		number(uint64(len(p.Document)))
		h.Write(p.Document)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Decide decides about a request. An error denies, with the reason policy_error or
// policy_timeout, and is in Err.
func (b *Bundle) Decide(ctx context.Context, in Input) Decision {
	d := b.decide(ctx, in)
	if len(d.PolicyIDs) > 0 {
		d.Versions = make([]int64, len(d.PolicyIDs))
	}
	for i, id := range d.PolicyIDs {
		d.Versions[i] = b.numbers[id]
	}
	return d
}

func (b *Bundle) decide(ctx context.Context, in Input) Decision {
	if b == nil || b.engine == nil {
		return failed(errors.New("no policies"), "")
	}
	if b.org != "" && in.Org.ID != b.org {
		return failed(errors.New("the policies belong to another org"), b.version)
	}
	raw, id, err := b.denied(ctx, &in)
	if err != nil {
		d := failed(err, b.version)
		d.Reasons[0].PolicyID = id
		d.matters(id)
		return d
	}
	var d Decision
	o, err := b.engine.answer(ctx, &in, b)
	if err == nil {
		d, err = b.decision(o, &in, raw)
	}
	if err != nil {
		return failed(err, b.version)
	}
	d.PolicyVersion = b.version
	if len(d.Limits) > MaxLimits {
		// All of them would have to be counted in one step.
		d.Effect, d.Limits = Deny, nil
		d.Reasons = []Reason{{Code: "too_many_limits", Message: fmt.Sprintf("More than %d limits apply to this request, so it is rejected.", MaxLimits)}}
	}
	return d
}

// failed is the decision when the evaluation failed.
func failed(err error, version string) Decision {
	r := Reason{Code: "policy_error", Message: "The policies could not be evaluated, so the request is rejected."}
	if errors.Is(err, errTimeout) || errors.Is(err, errSteps) {
		r = Reason{Code: "policy_timeout", Message: "The policies could not be evaluated in time, so the request is rejected."}
	}
	return Decision{Reasons: []Reason{r}, PolicyVersion: version, Err: err}
}
