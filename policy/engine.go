package policy

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

//go:embed baseline.rego
var baselineRego string

//go:embed decision.rego
var decisionRego string

// Reasons for which an evaluation ends early. errSteps does not depend on the machine or
// its load: the same input to the same policies takes the same number of steps.
var (
	errSteps   = fmt.Errorf("no decision within %d steps", maxSteps)
	errTimeout = errors.New("no decision in time")
)

// builtins returns OPA's functions that Rego may use here. It is an allow list, so that a
// function of a new OPA is not in it: no network, no clock, no randomness, no environment.
// The result of each depends only on its arguments, which also bound its time.
func builtins() []string {
	return []string{
		"assign", "eq", "equal", "neq", "lt", "lte", "gt", "gte",
		"count", "internal.member_2", "is_number", "is_string", "object.get",
		"startswith", "endswith", "strings.any_prefix_match", "strings.any_suffix_match",
	}
}

// functions are this package's functions for Rego:
//
//	aid.glob(patterns, text)  whether a pattern matches, as in Matches
//	aid.wild(patterns, text)  the same, but "*" also stands for characters that join names
//	aid.cidr(ranges, text)    whether a range has the address; undefined if text is no address
//	aid.within(span, time)    whether a span of request.time has the time
func functions() map[string]*topdown.Builtin {
	lists := func(name string, f topdown.BuiltinFunc) *topdown.Builtin {
		decl := types.NewFunction(types.Args(types.NewArray(nil, types.A), types.A), types.B)
		return &topdown.Builtin{Decl: &ast.Builtin{Name: name, Decl: decl, CanSkipBctx: true}, Func: f}
	}
	fs := map[string]*topdown.Builtin{}
	for _, b := range []*topdown.Builtin{
		lists("aid.glob", anyOf(Matches)), lists("aid.wild", anyOf(matchesAll)), lists("aid.cidr", cidrOf), {Decl: withinDecl(), Func: withinOf},
	} {
		fs[b.Decl.Name] = b
	}
	return fs
}

// anyOf returns a function that reports whether one of a list of patterns matches a string.
// A value of another type does not match.
func anyOf(match func(pattern, s string) bool) topdown.BuiltinFunc {
	return func(_ topdown.BuiltinContext, args []*ast.Term, found func(*ast.Term) error) error {
		patterns, ok := args[0].Value.(*ast.Array)
		text, ok1 := args[1].Value.(ast.String)
		matches := ok && ok1 && patterns.Until(func(p *ast.Term) bool {
			pattern, ok := p.Value.(ast.String)
			return ok && match(string(pattern), string(text))
		})
		return found(ast.InternedTerm(matches))
	}
}

// cidrOf is aid.cidr.
func cidrOf(_ topdown.BuiltinContext, args []*ast.Term, found func(*ast.Term) error) error {
	ranges, ok := args[0].Value.(*ast.Array)
	text, ok1 := args[1].Value.(ast.String)
	if !ok || !ok1 {
		return nil
	}
	ip, ok := addressOf(string(text))
	if !ok {
		return nil
	}
	return found(ast.InternedTerm(ranges.Until(func(r *ast.Term) bool {
		s, ok := r.Value.(ast.String)
		p, err := netip.ParsePrefix(string(s))
		return ok && err == nil && p.Contains(ip)
	})))
}

// addressOf returns an address in the form in which it is compared with ranges.
func addressOf(text string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(text)
	return ip.Unmap().WithZone(""), err == nil
}

// capabilities returns the functions and the network access that modules may use.
func capabilities(allowed []string) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !slices.Contains(allowed, b.Name) })
	for _, f := range functions() {
		c.Builtins = append(c.Builtins, f.Decl)
	}
	slices.SortFunc(c.Builtins, func(a, b *ast.Builtin) int { return cmp.Compare(a.Name, b.Name) })
	c.AllowNet = []string{} // no host; nil would allow every host
	return c
}

// compiled has modules in their compiled and in their parsed form.
type compiled struct {
	*ast.Compiler
	parsed map[string]*ast.Module
}

// ours returns the modules that are the same for each org. They are parsed once.
var ours = sync.OnceValues(func() (map[string]*ast.Module, error) {
	return parseModules(capabilities(builtins()), map[string]string{"baseline.rego": baselineRego, "decision.rego": decisionRego})
})

func parseModules(caps *ast.Capabilities, modules map[string]string) (map[string]*ast.Module, error) {
	parsed := make(map[string]*ast.Module, len(modules)+2)
	for name, text := range modules {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, fmt.Errorf("parsing Rego: %w", err)
		}
		parsed[name] = m
	}
	return parsed, nil
}

// compile compiles modules, by name, with capabilities.
func compile(modules map[string]string) (*compiled, error) {
	caps := capabilities(builtins())
	parsed, err := parseModules(caps, modules)
	if err != nil {
		return nil, err
	}
	return compileParsed(caps, parsed)
}

// compileWithOurs compiles an org's policies with the modules that are the same for each org.
func compileWithOurs(policies string) (*compiled, error) {
	caps := capabilities(builtins())
	parsed, err := parseModules(caps, map[string]string{"policies.rego": policies})
	if err != nil {
		return nil, err
	}
	fixed, err := ours()
	if err != nil {
		return nil, err
	}
	for name, m := range fixed {
		parsed[name] = m.Copy() // compiling changes a module
	}
	return compileParsed(caps, parsed)
}

func compileParsed(caps *ast.Capabilities, parsed map[string]*ast.Module) (*compiled, error) {
	if err := inline(parsed["decision.rego"], "policies", parsed["policies.rego"]); err != nil {
		return nil, fmt.Errorf("compiling Rego: %w", err)
	}
	c := ast.NewCompiler().WithCapabilities(caps).WithDefaultRegoVersion(ast.RegoV1)
	if c.Compile(parsed); c.Failed() {
		return nil, fmt.Errorf("compiling Rego: %w", c.Errors)
	}
	return &compiled{c, parsed}, nil
}

// inline replaces each reference name.rule in module by the rule's value, if that rule of
// other is a constant. Most orgs have no deny policy, or no allow policy. Without inline,
// each "deny := set()" would cost as much as a rule with conditions.
func inline(module *ast.Module, name ast.Var, other *ast.Module) error {
	if module == nil || other == nil {
		return nil
	}
	rules := map[string]int{}
	for _, r := range other.Rules {
		rules[string(r.Head.Name)]++
	}
	values := map[ast.String]ast.Value{}
	always := ast.NewBody(ast.NewExpr(ast.BooleanTerm(true)))
	for _, r := range other.Rules {
		h := r.Head
		if rules[string(h.Name)] == 1 && len(h.Ref()) == 1 && len(h.Args) == 0 && h.Key == nil && h.Value != nil && ast.IsConstant(h.Value.Value) &&
			!r.Default && r.Else == nil && r.Body.Equal(always) {
			values[ast.String(h.Name)] = h.Value.Value
		}
	}
	_, err := ast.TransformRefs(module, func(r ast.Ref) (ast.Value, error) {
		if len(r) == 2 && r[0].Value.Compare(name) == 0 {
			if rule, ok := r[1].Value.(ast.String); ok && values[rule] != nil {
				return values[rule], nil
			}
		}
		return r, nil
	})
	return err
}

// engine evaluates compiled modules. It never changes and is safe for concurrent use.
type engine struct {
	compiler *ast.Compiler
	query    ast.Body
	decision ast.Ref // the rule that decides
	writer   *writer
	builtins map[string]*topdown.Builtin
	steps    int           // maxSteps
	deadline time.Duration // deadline
	now      func() time.Time
	idle     sync.Pool // of *evaluation
	memo     *memo     // nil: each input is evaluated
	number   uint64    // of the engine in the memo
	facts    *facts    // of a generated module
}

func newEngine(policies string) (*engine, error) {
	c, err := compileWithOurs(policies)
	if err != nil {
		return nil, err
	}
	return engineFor(c, "data.aid.decision.decision")
}

// engineFor is an engine that evaluates a rule. Its value is an object with an effect.
func engineFor(c *compiled, rule string) (*engine, error) {
	e := &engine{
		compiler: c.Compiler, writer: writerFor(c.parsed), steps: maxSteps, deadline: deadline, now: time.Now,
		builtins: functions(),
	}
	query, err := ast.ParseBodyWithOpts(rule+`.effect = "allow"`, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err == nil {
		e.query, err = c.QueryCompiler().Compile(query)
	}
	if err == nil {
		e.decision, err = ast.ParseRef(rule)
	}
	if err != nil {
		return nil, fmt.Errorf("compiling the query: %w", err)
	}
	e.idle.New = func() any { return e.evaluation() }
	lean(c.Compiler)
	return e, nil
}

// lean removes the data of a compiler that evaluation does not use, about a quarter. The
// locations of rules and expressions stay, because errors name them.
func lean(c *ast.Compiler) {
	for _, m := range c.Modules {
		ast.WalkTerms(m, func(t *ast.Term) bool {
			if t.Location != nil { // terms that OPA shares have none, and must not be written to
				t.Location = nil
			}
			return false
		})
	}
	c.Modules, c.ModuleTree, c.Graph, c.RewrittenVars = nil, nil, nil, nil
}

// evaluation has the memory of one evaluation, which the next one uses again. It belongs to
// one goroutine at a time.
//
// The query is whether the request is allowed. Reasons and limits are in the decision
// document, which OPA evaluates for the query. Returning it from the query would copy it.
type evaluation struct {
	query   *topdown.Query
	allowed func(topdown.QueryResult) error
	bound   bound
	results results
	answers int // results that allow the request
}

func (e *engine) evaluation() *evaluation {
	ev := &evaluation{}
	ev.allowed = func(topdown.QueryResult) error { ev.answers++; return nil }
	ev.query = topdown.NewQuery(e.query).
		WithCompiler(e.compiler).
		WithStore(noData{}).
		WithBaseCache(noData{}).
		WithVirtualCache(&ev.results).
		WithBuiltins(e.builtins).
		WithStrictBuiltinErrors(true).
		WithMetrics(metrics.NoOp()).
		WithRequestMetadata(map[string]any{}).
		WithTime(time.Unix(0, 1)). // no allowed builtin returns it
		WithCancel(&ev.bound)
	return ev
}

// eval calls read with whether the request is allowed and with the decision document. The
// document is only valid until read returns. An undefined decision and the error of a
// function are errors, as is every other failure of an evaluation.
func (e *engine) eval(ctx context.Context, in *Input, read func(allowed bool, doc ast.Value) error) error {
	if ctx.Err() != nil {
		return errTimeout
	}
	ev := e.idle.Get().(*evaluation)
	ev.bound = bound{ctx: ctx, e: e}
	err := ev.query.WithInput(e.writer.document(in)).Iter(ctx, ev.allowed)
	doc, _ := ev.results.Get(e.decision)
	switch {
	case ev.bound.err != nil:
		err = ev.bound.err // also if the evaluation ended at that moment
	case err != nil:
		err = fmt.Errorf("evaluating: %w", err)
	case doc == nil || ev.answers > 1:
		err = fmt.Errorf("evaluating: no decision, %d results", ev.answers)
	default:
		err = read(ev.answers == 1, doc.Value)
	}
	// After a panic it is not used again, since its state is unknown.
	ev.results.reset()
	ev.bound, ev.answers = bound{}, 0
	e.idle.Put(ev)
	return err
}
