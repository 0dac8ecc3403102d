package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

//go:embed baseline.rego
var baselineRego string

//go:embed decision.rego
var decisionRego string

// MaxPolicies is how many policies an org may have.
const MaxPolicies = 5000

// deadline is how long a decision may take: ten thousand times what one takes. It is
// for a policy that does not end, and must not be reached by a machine that is busy.
const deadline = 500 * time.Millisecond

// Bundle is an org's policies, compiled. It never changes and is safe for
// concurrent use. The zero value denies.
type Bundle struct {
	org     string // empty: there are no policies
	version string
	rego    string
	names   map[string]string // id → name
	query   *rego.PreparedEvalQuery
}

var idForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Compile makes a Bundle of an org's policies, in whatever order they come. All of
// them are taken or none: a document that this build does not understand is an
// error that wraps an *Invalid and names the policy. Who gets it must go on with
// the Bundle it has; a part of a set would decide as nobody wrote it.
func Compile(ctx context.Context, ps []Policy) (*Bundle, error) {
	if len(ps) > MaxPolicies {
		return nil, fmt.Errorf("policy: %d policies are more than %d", len(ps), MaxPolicies)
	}
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b Policy) int { return cmp.Compare(a.ID, b.ID) })
	b := &Bundle{version: versionOf(ps), names: make(map[string]string, len(ps))}
	ids, ds := make([]string, len(ps)), make([]document, len(ps))
	for i, p := range ps {
		switch {
		case !idForm.MatchString(p.ID):
			return nil, fmt.Errorf("policy: %q is not a policy's id", p.ID)
		case i > 0 && p.ID == ids[i-1]:
			return nil, fmt.Errorf("policy: %s stands twice", p.ID)
		case p.OrgID == "" || i > 0 && p.OrgID != b.org:
			return nil, fmt.Errorf("policy: %s is of org %q, among those of %q", p.ID, p.OrgID, b.org)
		}
		d, err := parse(p.Document)
		if err != nil {
			return nil, fmt.Errorf("policy: %s: %w", p.ID, err)
		}
		b.org, ids[i], ds[i] = p.OrgID, p.ID, d
		b.names[p.ID] = d.name
	}
	b.rego = generate(ids, ds)
	q, err := prepare(ctx, b.rego)
	if err != nil {
		return nil, err
	}
	b.query = q
	return b, nil
}

// Version names the set of policies: "sha256:" + hex. The same policies, in
// whatever order, give the same.
func (b *Bundle) Version() string { return b.version }

// Rego is what the policies were compiled to.
func (b *Bundle) Rego() string { return b.rego }

// versionOf is a digest of what tells policies apart; ps is sorted.
func versionOf(ps []Policy) string {
	h := sha256.New()
	var n [8]byte
	field := func(b []byte) {
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	for _, p := range ps {
		field([]byte(p.ID))
		binary.BigEndian.PutUint64(n[:], uint64(p.Version))
		h.Write(n[:])
		field(p.Document)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// builtins are the functions that policies may use. It is a list of what is
// allowed and not of what is not, so that what a new OPA brings is not in it: no
// network, no clock, no randomness, no environment.
var builtins = []string{
	"assign", "eq", "equal", "neq", "lt", "lte", "gt", "gte",
	"count", "internal.member_2", "is_number", "object.get",
}

var globFunction = &rego.Function{
	Name:             "aid.glob",
	Description:      `Says whether one of patterns, in which "*" stands for anything, matches text.`,
	Decl:             types.NewFunction(types.Args(types.NewArray(nil, types.S), types.S), types.B),
	Memoize:          false,
	Nondeterministic: false,
}

// capabilities is what the compiler lets modules do.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !slices.Contains(builtins, b.Name) })
	c.Builtins = append(c.Builtins, &ast.Builtin{Name: globFunction.Name, Description: globFunction.Description, Decl: globFunction.Decl})
	c.AllowNet = []string{} // no host
	return c
}

// compiler compiles modules, by name, under our capabilities.
func compiler(modules map[string]string) (*ast.Compiler, error) {
	caps := capabilities()
	parsed := make(map[string]*ast.Module, len(modules))
	for name, text := range modules {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, fmt.Errorf("policy: parsing Rego: %w", err)
		}
		parsed[name] = m
	}
	c := ast.NewCompiler().WithCapabilities(caps).WithDefaultRegoVersion(ast.RegoV1)
	if c.Compile(parsed); c.Failed() {
		return nil, fmt.Errorf("policy: compiling Rego: %w", c.Errors)
	}
	return c, nil
}

func prepare(ctx context.Context, policies string) (*rego.PreparedEvalQuery, error) {
	c, err := compiler(map[string]string{"baseline.rego": baselineRego, "decision.rego": decisionRego, "policies.rego": policies})
	if err != nil {
		return nil, err
	}
	q, err := rego.New(
		rego.Compiler(c),
		rego.Query("data.aid.decision.decision"),
		rego.Function2(globFunction, globBuiltin),
		rego.StrictBuiltinErrors(true),
		rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil }),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("policy: preparing Rego: %w", err)
	}
	return &q, nil
}

func globBuiltin(_ rego.BuiltinContext, patterns, s *ast.Term) (*ast.Term, error) {
	list, ok := patterns.Value.(*ast.Array)
	str, isText := s.Value.(ast.String)
	if !ok || !isText {
		return nil, errors.New("aid.glob: patterns and text are expected")
	}
	found := list.Until(func(p *ast.Term) bool {
		pattern, ok := p.Value.(ast.String)
		return ok && glob(string(pattern), string(str))
	})
	return ast.InternedTerm(found), nil
}

// Decide says whether the request may be made. Whatever goes wrong on the way
// denies, with the reason policy_error or policy_timeout.
func (b *Bundle) Decide(ctx context.Context, in Input) Decision {
	if b == nil || b.query == nil {
		return failed("policy_error", "")
	}
	if b.org != "" && in.Org.ID != b.org {
		return failed("policy_error", b.version) // another org's policies
	}
	if ctx.Err() != nil {
		return failed("policy_timeout", b.version)
	}
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(deadline, cancel.Cancel)
	defer timer.Stop()
	rs, err := b.query.Eval(ctx, rego.EvalParsedInput(in.document()), rego.EvalExternalCancel(cancel), rego.EvalMetrics(metrics.NoOp()))
	switch {
	case cancel.Cancelled():
		return failed("policy_timeout", b.version)
	case err != nil || len(rs) != 1 || len(rs[0].Expressions) != 1:
		return failed("policy_error", b.version)
	}
	d, ok := b.read(rs[0].Expressions[0].Value, &in)
	if !ok {
		return failed("policy_error", b.version)
	}
	d.PolicyVersion = b.version
	return d
}

func failed(code, version string) Decision {
	message := "The policies could not be evaluated, so the request is refused."
	if code == "policy_timeout" {
		message = "The policies could not be evaluated in time, so the request is refused."
	}
	return Decision{Reasons: []Reason{{Code: code, Message: message}}, PolicyVersion: version}
}
