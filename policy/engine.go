package policy

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

//go:embed baseline.rego
var baselineRego string

//go:embed decision.rego
var decisionRego string

// Why an evaluation was ended. errSteps does not depend on the machine or on what else
// it does: the same question to the same policies takes as many steps everywhere.
var (
	errSteps   = fmt.Errorf("not decided in %d steps", maxSteps)
	errTimeout = errors.New("not decided in time")
)

// builtins are OPA's functions that Rego may use here. It is a list of what is
// allowed and not of what is not, so that what a new OPA brings is not in it: no
// network, no clock, no randomness, no environment. All of them give the same
// answer to the same question, in a time that their arguments bound.
func builtins() []string {
	return []string{
		"assign", "eq", "equal", "neq", "lt", "lte", "gt", "gte",
		"count", "internal.member_2", "is_number", "object.get",
	}
}

// globDecl is the one function of our own: aid.glob(patterns, text) says whether one
// of the patterns, in which "*" stands for anything, matches the text.
func globDecl() *ast.Builtin {
	return &ast.Builtin{Name: "aid.glob", Decl: types.NewFunction(types.Args(types.NewArray(nil, types.A), types.A), types.B), CanSkipBctx: true}
}

// globOf is aid.glob. What is not text is matched by nothing and matches nothing.
func globOf(_ topdown.BuiltinContext, args []*ast.Term, found func(*ast.Term) error) error {
	patterns, ok := args[0].Value.(*ast.Array)
	text, ok1 := args[1].Value.(ast.String)
	matches := ok && ok1 && patterns.Until(func(p *ast.Term) bool {
		pattern, ok := p.Value.(ast.String)
		return ok && glob(string(pattern), string(text))
	})
	return found(ast.InternedTerm(matches))
}

// capabilities is what the compiler lets modules do.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	allowed := builtins()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !slices.Contains(allowed, b.Name) })
	c.Builtins = append(c.Builtins, globDecl())
	c.AllowNet = []string{} // no host, which is not the same as nil
	return c
}

// compile compiles modules, by name, under our capabilities.
func compile(modules map[string]string) (*ast.Compiler, error) {
	caps := capabilities()
	parsed := make(map[string]*ast.Module, len(modules))
	for name, text := range modules {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, fmt.Errorf("parsing Rego: %w", err)
		}
		parsed[name] = m
	}
	c := ast.NewCompiler().WithCapabilities(caps).WithDefaultRegoVersion(ast.RegoV1)
	if c.Compile(parsed); c.Failed() {
		return nil, fmt.Errorf("compiling Rego: %w", c.Errors)
	}
	return c, nil
}

// engine evaluates compiled modules. It never changes and is safe for concurrent use.
type engine struct {
	compiler *ast.Compiler
	query    ast.Body
	answer   ast.Var // the query's variable that holds the decision
	writer   *writer
	store    storage.Store // empty: OPA wants one
	builtins map[string]*topdown.Builtin
	steps    int           // maxSteps
	deadline time.Duration // deadline
	now      func() time.Time
}

func newEngine(policies string) (*engine, error) {
	c, err := compile(map[string]string{"baseline.rego": baselineRego, "decision.rego": decisionRego, "policies.rego": policies})
	if err != nil {
		return nil, err
	}
	e := &engine{
		compiler: c, answer: "decision", writer: writerFor(c.Modules), store: inmem.New(), steps: maxSteps, deadline: deadline, now: time.Now,
		builtins: map[string]*topdown.Builtin{"aid.glob": {Decl: globDecl(), Func: globOf}},
	}
	query, err := ast.ParseBodyWithOpts("data.aid.decision.decision = decision", ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err == nil {
		e.query, err = c.QueryCompiler().Compile(query)
	}
	if err != nil {
		return nil, fmt.Errorf("compiling the query: %w", err)
	}
	return e, nil
}

// eval returns the decision document. Undefined is an error, like any other failure
// of an evaluation; errors of functions are, too, and not merely undefined.
func (e *engine) eval(ctx context.Context, in *Input) (ast.Value, error) {
	if ctx.Err() != nil {
		return nil, errTimeout
	}
	end := &bound{ctx: ctx, e: e}
	txn, err := e.store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("evaluating: %w", err)
	}
	defer e.store.Abort(ctx, txn)
	var answers []ast.Value
	err = topdown.NewQuery(e.query).
		WithCompiler(e.compiler).
		WithStore(e.store).
		WithTransaction(txn).
		WithBuiltins(e.builtins).
		WithStrictBuiltinErrors(true).
		WithMetrics(metrics.NoOp()).
		WithCancel(end).
		WithInput(e.writer.document(in)).
		Iter(ctx, func(r topdown.QueryResult) error {
			if t := r[e.answer]; t != nil {
				answers = append(answers, t.Value)
			}
			return nil
		})
	switch {
	case end.err != nil:
		return nil, end.err // even if it ended just then
	case err != nil:
		return nil, fmt.Errorf("evaluating: %w", err)
	case len(answers) != 1:
		return nil, fmt.Errorf("evaluating: %d decisions", len(answers))
	}
	return answers[0], nil
}
