package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"
)

// A policy in Rego can only deny. Which agents a Rego allow would govern cannot be derived
// from it. Each such policy has an engine of its own: it sees no other policy, and its steps
// are counted apart.

// Limits of policies in Rego. docs/policy.md has them.
const (
	// MaxRego is how many policies of an org may be in Rego. Each is one more evaluation.
	MaxRego = 50

	rawSteps     = 100_000  // of one evaluation
	maxRawModule = 16 << 10 // bytes
	maxRawTests  = 50
)

// rawRego is the field "rego" of a document.
type rawRego struct {
	module string
	tests  []rawTest
}

// rawTest is a test that must pass before the policy is stored.
type rawTest struct {
	name   string
	input  jsontext.Value
	denies bool
}

// rawBuiltins are the functions of OPA that a policy in Rego may use, beside those of
// builtins. Results depend on arguments only. No function is among them whose result is
// much larger than its arguments, such as concat and numbers.range: steps do not count bytes.
func rawBuiltins() []string {
	return append(builtins(),
		"internal.member_3", "and", "or", "minus", "plus", "abs", "ceil", "floor", "round", "sum", "max", "min", "sort",
		"contains", "indexof", "lower", "upper", "trim", "trim_left", "trim_prefix", "trim_right", "trim_space", "trim_suffix", "split", "substring",
		"is_array", "is_boolean", "is_null", "is_object", "is_set", "object.keys", "type_name",
	)
}

// rego reads the field "rego".
func (r *reader) rego() *rawRego {
	raw := &rawRego{}
	has := map[string]bool{}
	r.object("rego", func(name string) {
		has[name] = true
		field := "rego." + excerpt(name)
		switch name {
		case "module":
			raw.module = r.text(field, "a module of Rego, as text")
			if r.err == nil && len(raw.module) > maxRawModule {
				r.fail(field, fmt.Sprintf("has %d bytes", len(raw.module)), fmt.Sprintf("write at most %d", maxRawModule))
			}
		case "tests":
			if !r.enter(field, '[', "a list of tests") {
				return
			}
			for r.err == nil && r.dec.PeekKind() != ']' {
				raw.tests = append(raw.tests, r.rawTest(fmt.Sprintf("%s[%d]", field, len(raw.tests))))
				if len(raw.tests) > maxRawTests {
					r.fail(field, fmt.Sprintf("has more than %d tests", maxRawTests), "test fewer inputs")
				}
			}
			r.token()
		default:
			r.fail(field, "is not a field of rego", nearest(name, []string{"module", "tests"}, "the fields are module and tests"))
		}
	})
	for _, name := range [...]string{"module", "tests"} {
		if r.err == nil && !has[name] {
			r.fail("rego."+name, "is missing", `write {"module": "package policy\n\ndeny if …", "tests": [{"name": "…", "input": {…}, "denies": true}]}`)
		}
	}
	return raw
}

func (r *reader) rawTest(field string) (t rawTest) {
	has := map[string]bool{}
	r.object(field, func(name string) {
		has[name] = true
		at := field + "." + excerpt(name)
		switch name {
		case "name":
			t.name = r.text(at, "text")
			if r.err == nil && (strings.TrimSpace(t.name) == "" || len(t.name) > maxName) {
				r.fail(at, "is empty or too long", fmt.Sprintf("write 1 to %d bytes", maxName))
			}
		case "input":
			if got := r.dec.PeekKind(); r.err == nil && got != '{' && got != 0 {
				r.fail(at, "is "+spelled(got), "write an input document")
			}
			if r.err == nil {
				v, err := r.dec.ReadValue()
				if err != nil {
					r.syntax(err)
				}
				t.input = slices.Clone(v)
			}
		case "denies":
			if got := r.dec.PeekKind(); r.err == nil && got != 't' && got != 'f' && got != 0 {
				r.fail(at, "is "+spelled(got), "write true or false")
			}
			if tok, ok := r.token(); ok {
				t.denies = tok.Bool()
			}
		default:
			r.fail(at, "is not a field of a test", nearest(name, []string{"name", "input", "denies"}, "the fields are name, input and denies"))
		}
	})
	for _, name := range [...]string{"name", "input", "denies"} {
		if r.err == nil && !has[name] {
			r.fail(field+"."+name, "is missing", "a test has a name, an input, and denies: true or false")
		}
	}
	return t
}

const rawWrapper = `package aid.raw

decision := {"effect": "allow", "denies": denies}

default denies := false

denies if data.policy.deny
`

// compile makes the engine of a policy in Rego. An error is an *Invalid.
func (raw *rawRego) compile() (*engine, error) {
	invalid := func(at *ast.Location, problem, fix string) error {
		if at != nil {
			problem = fmt.Sprintf("in line %d %s", at.Row, problem)
		}
		return &Invalid{Field: "rego.module", Problem: problem, Fix: fix}
	}
	caps := capabilities(rawBuiltins())
	parsed, err := parseModules(caps, map[string]string{"module": raw.module, "decision": rawWrapper})
	if err != nil {
		return nil, rawError(err, invalid)
	}
	m := parsed["module"]
	if m.Package.Path.String() != "data.policy" {
		return nil, invalid(m.Package.Location, "is of another package", "begin it with: package policy")
	}
	for _, i := range m.Imports {
		if i.Path.String() != "rego.v1" {
			return nil, invalid(i.Location, "imports something", "only rego.v1 may be imported: the policy sees its input, and no other policy")
		}
	}
	denies := false
	for _, rule := range m.Rules {
		switch name := rule.Head.Name.String(); {
		case name == "allow":
			return nil, invalid(rule.Location, "has the rule allow", "policies in Rego can only deny; write an allow as a policy with conditions")
		case name != "deny":
		case len(rule.Head.Args) > 0 || rule.Head.Key != nil || len(rule.Head.Ref()) != 1 || !boolean(rule):
			return nil, invalid(rule.Location, "has a rule deny that is not true or false", "write: deny if { … }")
		default:
			denies = true
		}
	}
	if !denies {
		return nil, invalid(nil, "has no rule deny", "write: deny if { … }")
	}
	if err := rawFields(m, invalid); err != nil {
		return nil, err
	}
	c, err := compileParsed(caps, parsed)
	if err != nil {
		return nil, rawError(err, invalid)
	}
	e, err := engineFor(c, "data.aid.raw.decision")
	if err != nil {
		return nil, rawError(err, invalid)
	}
	e.steps = rawSteps
	return e, nil
}

// boolean reports whether each value that a rule may have is true or false.
func boolean(rule *ast.Rule) bool {
	for r := rule; r != nil; r = r.Else {
		if v := r.Head.Value; v != nil {
			if _, ok := v.Value.(ast.Boolean); !ok {
				return false
			}
		}
	}
	return true
}

// rawError is an error of OPA's parser or compiler as an *Invalid.
func rawError(err error, invalid func(*ast.Location, string, string) error) error {
	var all ast.Errors
	if !errors.As(err, &all) || len(all) == 0 {
		return invalid(nil, "is not valid Rego", "check it with opa check")
	}
	first := all[0]
	if name, ok := strings.CutPrefix(first.Message, "undefined function "); ok {
		return invalid(first.Location, "calls "+excerpt(name)+", which policies may not use", "docs/policy.md lists the functions")
	}
	return invalid(first.Location, "is not valid Rego: "+excerpt(first.Message), "check it with opa check --v1-compatible")
}

// rawFields rejects a field that the input document never has: a condition on it would never
// be true, and the policy would deny nothing.
func rawFields(m *ast.Module, invalid func(*ast.Location, string, string) error) (err error) {
	var names []string
	sections := map[string]bool{}
	for _, f := range inputFields() {
		names = append(names, f.id())
		sections[f.section] = true
	}
	ast.WalkRefs(m, func(r ast.Ref) bool {
		if !r.HasPrefix(ast.InputRootRef) || len(r) < 2 || err != nil {
			return false
		}
		section, ok := r[1].Value.(ast.String)
		if !ok {
			return false
		}
		at := string(section)
		if len(r) > 2 {
			name, ok := r[2].Value.(ast.String)
			if !ok && sections[at] {
				return false
			}
			at += "." + string(name)
		}
		if !sections[at] && !slices.Contains(names, at) {
			err = invalid(r[0].Location, "reads input."+excerpt(at)+", which the input document never has", nearest(at, names, "docs/schemas/policy-input-1.json has its fields"))
		}
		return false
	})
	return err
}

// denies evaluates the policy.
func (e *engine) denies(ctx context.Context, in *Input) (denies bool, err error) {
	o, err := e.answer(ctx, in, rawReading{})
	return err == nil && o.denies, err
}

type rawReading struct{}

func (rawReading) outcome(_ bool, v ast.Value) (*outcome, error) {
	doc, ok := v.(ast.Object)
	if !ok {
		return nil, errNoDecision
	}
	denies, ok := doc.Get(ast.StringTerm("denies")).Value.(ast.Boolean)
	if !ok {
		return nil, errNoDecision
	}
	return &outcome{denies: bool(denies)}, nil
}

// check compiles the module and runs its tests. At least one test must be denied and at
// least one must not: a policy that never denies, or always does, is a mistake.
func (raw *rawRego) check() error {
	e, err := raw.compile()
	if err != nil {
		return err
	}
	seen := map[bool]bool{}
	for i, t := range raw.tests {
		field := fmt.Sprintf("rego.tests[%d]", i)
		of := "of the test " + quote(t.name)
		derived := false
		in, err := ReadInput(t.input, func(tools []string) ([]string, bool) { derived = len(tools) > 0; return nil, derived })
		if err != nil {
			return &Invalid{Field: field + ".input", Problem: of + " is not an input document", Fix: "docs/schemas/policy-input-1.json has its fields"}
		}
		if derived && (e.writer.writes("request", "tool_names") || e.writer.writes("request", "tool_families")) {
			return &Invalid{Field: field + ".input", Problem: of + " has tools and no tool_families, which the module reads", Fix: `add "tool_families", such as ["shell"] or ["other"]`}
		}
		denies, err := e.denies(context.Background(), &in)
		said := map[bool]string{true: "denies", false: "does not deny"}
		switch {
		case errors.Is(err, errSteps):
			return &Invalid{Field: field, Problem: fmt.Sprintf("%s needs more than %d steps", quote(t.name), rawSteps), Fix: "evaluate less: every expression is a step, each time that it is evaluated"}
		case err != nil:
			return &Invalid{Field: field, Problem: quote(t.name) + " fails: the module cannot be evaluated on its input", Fix: "check the types of what its functions take"}
		case denies != t.denies:
			return &Invalid{Field: field, Problem: fmt.Sprintf("%s fails: the module %s its input", quote(t.name), said[denies]), Fix: "change the module or the test"}
		}
		seen[denies] = true
	}
	if !seen[true] || !seen[false] {
		return &Invalid{Field: "rego.tests", Problem: "do not show both results", Fix: "write at least one test with denies true, and one with false"}
	}
	return nil
}

// writes reports whether the writer writes a field.
func (w *writer) writes(of, name string) bool {
	return w.all || slices.ContainsFunc(w.sections, func(s section) bool {
		return slices.ContainsFunc(s.fields, func(f keyed) bool { return f.id() == of+"."+name })
	})
}

// rawPolicy is a policy in Rego, compiled.
type rawPolicy struct {
	id     string
	engine *engine
}

// rawsOf compiles the policies in Rego.
func rawsOf(ids []string, ds []document) (raws []rawPolicy, err error) {
	for i, d := range ds {
		if d.raw == nil {
			continue
		}
		e, err := d.raw.compile()
		if err != nil {
			return nil, fmt.Errorf("policy: %s: %w", ids[i], err)
		}
		raws = append(raws, rawPolicy{ids[i], e})
	}
	return raws, nil
}

// denied returns the ids of the policies in Rego that deny, in order. If one of them cannot
// be evaluated, it returns its id and the error.
func (b *Bundle) denied(ctx context.Context, in *Input) (ids []string, failed string, err error) {
	for _, r := range b.raws {
		denies, err := r.engine.denies(ctx, in)
		if err != nil {
			return nil, r.id, fmt.Errorf("%s: %w", r.id, err)
		}
		if denies {
			ids = append(ids, r.id)
		}
	}
	return ids, "", nil
}

// InRego counts the policies in Rego. One whose document is not understood is not counted.
func InRego(ps []Policy) (n int) {
	for _, p := range ps {
		if d, err := parse(p.Document); err == nil && d.raw != nil {
			n++
		}
	}
	return n
}
