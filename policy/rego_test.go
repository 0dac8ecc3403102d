package policy

import (
	"context"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the wants of testdata")

// TestGenerated compares the generated Rego with testdata/generated.txt.
func TestGenerated(t *testing.T) {
	const file = "testdata/generated.txt"
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var ps []Policy
	want := ""
	for _, f := range ar.Files {
		if f.Name == "want" {
			want = string(f.Data)
			continue
		}
		ps = append(ps, Policy{ID: f.Name, OrgID: "org_1", Version: 1, Document: f.Data})
	}
	b, err := Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		ar.Files = append(ar.Files[:len(ps):len(ps)], txtar.File{Name: "want", Data: []byte(b.Rego())})
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, b.Rego()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for i := range len(b.Rego()) {
		if c := b.Rego()[i]; c >= 0x7f || c < ' ' && c != '\n' && c != '\t' {
			t.Errorf("byte %d is %#x", i, c)
		}
	}
	// An org without policies has the same sets, empty.
	b, err = Compile(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("package aid.policies\n\ndeny := set()\n\napproval := set()\n\nallow := set()\n\ngoverns := set()\n", b.Rego()); d != "" {
		t.Error(d)
	}
}

// TestRego runs the tests that are written in Rego. Each rule of the two modules must have
// been true in one of them.
func TestRego(t *testing.T) {
	tests, err := os.ReadFile("baseline_test.rego")
	if err != nil {
		t.Fatal(err)
	}
	// Tests may use all functions of OPA; the modules that they test may not.
	caps := ast.CapabilitiesForThisVersion()
	for _, f := range functions() {
		caps.Builtins = append(caps.Builtins, f.Decl)
	}
	modules := map[string]*ast.Module{}
	empty, _ := generate(nil, nil)
	for name, text := range map[string]string{"baseline.rego": baselineRego, "decision.rego": decisionRego, "policies.rego": empty, "baseline_test.rego": string(tests)} {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatal(err)
		}
		modules[name] = m
	}
	c := ast.NewCompiler().WithCapabilities(caps)
	if c.Compile(modules); c.Failed() {
		t.Fatal(c.Errors)
	}
	held := heldRules{}
	ctx := context.Background()
	ran := 0
	for _, r := range c.Modules["baseline_test.rego"].Rules {
		name := string(r.Head.Name)
		if !strings.HasPrefix(name, "test_") {
			continue
		}
		ran++
		t.Run(name, func(t *testing.T) {
			query, err := c.QueryCompiler().Compile(ast.MustParseBody("data.aid.baseline_test." + name))
			if err != nil {
				t.Fatal(err)
			}
			store := inmem.New()
			txn := storage.NewTransactionOrDie(ctx, store)
			defer store.Abort(ctx, txn)
			rs, err := topdown.NewQuery(query).WithCompiler(c).WithStore(store).WithTransaction(txn).
				WithBuiltins(functions()).WithStrictBuiltinErrors(true).WithQueryTracer(held).Run(ctx)
			if err != nil || len(rs) != 1 {
				t.Errorf("%s: %d results, %v", r.Location, len(rs), err)
			}
		})
	}
	if ran < 23 {
		t.Errorf("%d tests ran", ran)
	}
	for _, name := range []string{"baseline.rego", "decision.rego"} {
		for _, r := range c.Modules[name].Rules {
			if !held[r.Location.String()] && !r.Default {
				t.Errorf("%s: no test makes this rule true", r.Location)
			}
		}
	}
}

// heldRules are the places of rules that were true.
type heldRules map[string]bool

func (heldRules) Enabled() bool               { return true }
func (heldRules) Config() topdown.TraceConfig { return topdown.TraceConfig{} }
func (h heldRules) TraceEvent(e topdown.Event) {
	if r, ok := e.Node.(*ast.Rule); ok && e.Op == topdown.ExitOp {
		h[r.Location.String()] = true
	}
}

// TestRestrictedFunctions: the compiler rejects functions that reach outside, and functions
// with different results for the same arguments.
func TestRestrictedFunctions(t *testing.T) {
	for _, expr := range []string{
		`http.send({"method": "GET", "url": "http://169.254.169.254/"}).status_code == 200`,
		`net.lookup_ip_addr("example.com") == set()`,
		`net.cidr_contains("10.0.0.0/8", "10.0.0.1")`,
		`opa.runtime().env.HOME == "/root"`,
		`rand.intn("x", 2) == 1`,
		`uuid.rfc4122("x") == "x"`,
		`time.now_ns() > 0`,
		`regex.match("(a+)+$", "aaaa")`,
		`glob.match("*", null, "x")`,
		`io.jwt.decode("x")[0] == 1`,
		`crypto.sha256("x") == "x"`,
		`json.unmarshal("{}") == {}`,
		`walk(input, [_, 1])`,
		`trace("x")`,
		`rego.parse_module("a", "b") == 1`,
		`numbers.range(1, 1000000000)[_] == 1`,
		`some_new_function(input)`,
	} {
		if _, err := compile(map[string]string{"m.rego": "package m\n\np if " + expr + "\n"}); err == nil {
			t.Errorf("compiled: %s", expr)
		}
	}
	if _, err := compile(map[string]string{"m.rego": "package m\n\np if count(input.agent) == 0\n"}); err != nil {
		t.Errorf("the allowed functions: %v", err)
	}
	// OPA marks no allowed function as nondeterministic.
	for _, b := range capabilities(builtins()).Builtins {
		if b.Nondeterministic {
			t.Errorf("%s is not deterministic", b.Name)
		}
	}
	if c := capabilities(builtins()); len(c.Builtins) != len(builtins())+len(functions()) || c.AllowNet == nil || len(c.AllowNet) != 0 {
		t.Errorf("%d functions of %d, hosts %v", len(c.Builtins), len(builtins())+len(functions()), c.AllowNet)
	}
}

// broken is a Bundle whose policies are module.
func broken(t *testing.T, module string) *Bundle {
	t.Helper()
	e, err := newEngine(module)
	if err != nil {
		t.Fatal(err)
	}
	return &Bundle{engine: e, version: "sha256:x", names: map[string]string{"pol_a": "a"}}
}

func active() Input {
	return Input{
		Agent:   AgentAttrs{ID: "ag_1", Status: "active", AllowedModels: []string{"*"}},
		Request: RequestAttrs{Operation: "chat.completions", Scope: "chat:completions", Model: "small", Tools: []string{"a", "b", "c", "d", "e", "f", "g", "h"}, Time: time.Unix(1e9, 0)},
		Caller:  CallerAttrs{KeyID: "key_1", KeyStatus: "active", KeyScopes: []string{"*"}},
		Org:     OrgAttrs{ID: "org_1"},
	}
}

// An endless evaluation is stopped, and denies.
func TestDeadline(t *testing.T) {
	b := broken(t, `package aid.policies

deny contains "pol_a" if {
	some a in input.request.tools
	some b in input.request.tools
	some c in input.request.tools
	some d in input.request.tools
	some e in input.request.tools
	some f in input.request.tools
	some g in input.request.tools
	some h in input.request.tools
	some i in input.request.tools
	some j in input.request.tools
	count({a, b, c, d, e, f, g, h, i, j}) == 11
}

approval := set()

allow := set()

governs := set()
`)
	b.engine.deadline = time.Millisecond
	d := b.Decide(context.Background(), active())
	if d.Effect != Deny || d.Reasons[0].Code != "policy_timeout" || !errors.Is(d.Err, errTimeout) || d.PolicyVersion != "sha256:x" {
		t.Errorf("%+v", d)
	}
}

// A result that decision.rego cannot have denies, and a missing result denies.
func TestNoAnswerDenies(t *testing.T) {
	const none = "deny := set()\napproval := set()\nallow := set()\ngoverns := set()\n"
	for name, module := range map[string]string{
		"undefined sets":        "",
		"undefined approval":    "deny := set()\nallow := set()\ngoverns := set()\n",
		"undefined deny":        "approval := set()\nallow := set()\ngoverns := set()\n",
		"two answers":           "approval := set()\ndeny := set()\nallow := set() if true\nallow := {\"pol_a\"} if input.request.model\ngoverns := set()\n",
		"another type":          "approval := set()\ndeny := []\nallow := {}\ngoverns := [7]\n",
		"deny of numbers":       "approval := set()\ndeny := {7}\nallow := set()\ngoverns := set()\n",
		"deny of strangers":     "approval := set()\ndeny := {\"pol_x\"}\nallow := set()\ngoverns := set()\n",
		"allow of numbers":      "approval := set()\ndeny := set()\nallow := {7}\ngoverns := {[\"pol_a\"]}\n",
		"allow of strangers":    "approval := set()\ndeny := set()\nallow := {\"pol_x\"}\ngoverns := {[\"pol_x\"]}\n",
		"allow of pairs":        "approval := set()\ndeny := set()\nallow := {[\"pol_a\", {}]}\ngoverns := {[\"pol_a\"]}\n",
		"governs of numbers":    "approval := set()\ndeny := set()\nallow := set()\ngoverns := {7}\n",
		"approval of strangers": "deny := set()\napproval := {\"pol_x\"}\nallow := set()\ngoverns := set()\n",
	} {
		d := broken(t, "package aid.policies\n\n"+module).Decide(context.Background(), active())
		if d.Effect != Deny || len(d.Reasons) != 1 || d.Reasons[0].Code != "policy_error" || d.Err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if d := broken(t, "package aid.policies\n\n"+none).Decide(context.Background(), active()); d.Effect != Allow {
		t.Errorf("the module that is not broken: %+v", d)
	}
	for name, v := range map[string]string{
		"nothing":           `null`,
		"no effect":         `{"allow": set(), "key_rpm": 0}`,
		"another effect":    `{"effect": "permit", "allow": set(), "key_rpm": 0}`,
		"no allow":          `{"effect": "allow", "key_rpm": 0}`,
		"no rate":           `{"effect": "allow", "allow": set()}`,
		"rate of text":      `{"effect": "allow", "allow": set(), "key_rpm": "7"}`,
		"fractional rate":   `{"effect": "allow", "allow": set(), "key_rpm": 0.5}`,
		"deny of no reason": `{"effect": "deny", "refused": set(), "deny": set(), "governs": set(), "approval": set()}`,
		"refused of text":   `{"effect": "deny", "refused": {"x"}, "deny": set(), "governs": set(), "approval": set()}`,
		"refused of two":    `{"effect": "deny", "refused": {[1, "x"]}, "deny": set(), "governs": set(), "approval": set()}`,
		"no governs":        `{"effect": "deny", "refused": {[1, "x", "y"]}, "deny": set(), "approval": set()}`,
		"no approval":       `{"effect": "deny", "refused": {[1, "x", "y"]}, "deny": set(), "governs": set()}`,
	} {
		b := &Bundle{}
		for _, allowed := range []bool{true, false} {
			if o, err := b.outcome(allowed, ast.MustParseTerm(v).Value); err == nil {
				t.Errorf("%s was read: %+v", name, o)
			}
		}
	}
}

// The input has the fields that rules read. If they are not known, it has all fields.
func TestInputIsWhatIsRead(t *testing.T) {
	write := func(module string) string {
		c, err := compile(map[string]string{"m.rego": "package m\n\n" + module})
		if err != nil {
			t.Fatal(err)
		}
		in := active()
		return writerFor(c.Modules).document(&in).String()
	}
	if got, want := write(`p if input.agent.status == "active"`), `{"agent": {"status": "active"}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := write(`p if { input.request.model == "small"; not input.caller.key_id in {"x"} }`), `{"caller": {"key_id": "key_1"}, "request": {"model": "small"}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	whole := write(`p := input`)
	for _, module := range []string{`p := input.agent`, `p if { some k; input.agent[k] == 1 }`, `p := {k | some k, _ in input.request}`, `p if { x := input; x.agent.id == "y" }`, `p if { some s; input[s].id == "y" }`} {
		if got := write(module); got != whole {
			t.Errorf("%s: %s, want %s", module, got, whole)
		}
	}
	nano := int64(1)
	for _, f := range inputFields() {
		if f.name != "max_tokens" && f.name != "key_rate_limit" && f.value(&Input{Spend: SpendAttrs{Day: &nano, Month: &nano}, Agent: AgentAttrs{ID: "x", Name: "x", Team: "x", Environment: "x", Tier: "x", Status: "x"},
			Request: RequestAttrs{Operation: "x", Scope: "x", Provider: "x", Model: "x", Mode: "x", Host: "x", Path: "x", SessionID: "x", Time: time.Unix(1, 0)},
			Caller:  CallerAttrs{Kind: "x", KeyID: "x", KeyStatus: "x", IP: "x", UserAgent: "x"}, Org: OrgAttrs{ID: "x", Tier: "x"}}) == nil {
			t.Errorf("%s.%s is missing", f.section, f.name)
		}
	}
	// Every attribute for conditions is in the document.
	known := map[string]bool{}
	for _, f := range inputFields() {
		known[f.section+"."+f.name] = true
	}
	for _, name := range []string{"agent.id", "agent.metadata.x", "request.tool", "request.url_host", "caller.key_scopes", "org.tier", "request.weekday_utc", "tool.family", "request.time", "agent.allowed_models", "request.session_id"} {
		r := ast.MustParseRef(ref(name))
		if !known[string(r[1].Value.(ast.String))+"."+string(r[2].Value.(ast.String))] {
			t.Errorf("%s reads %s, which is not in the input", name, r)
		}
	}
}

// The documents in docs/policy.md pass Check, and its input is the real input.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	between := func(begin, end string) string {
		t.Helper()
		_, rest, ok := strings.Cut(string(page), begin)
		found, _, ok1 := strings.Cut(rest, end)
		if !ok || !ok1 {
			t.Fatalf("nothing between %q and %q", begin, end)
		}
		return found
	}
	for _, doc := range []string{between("-d '", "'\n"),
		`{"name": "x", "effect": "allow", "conditions": ` + between("stand in one another:\n\n```json\n", "```") + `}`,
		`{"name": "x", "effect": "allow", "conditions": ` + between("### Time\n\n```json\n", "```") + `}`,
		`{"name": "x", "effect": "require_approval", "conditions": {}, "approval": ` + between("`require_approval`: `", "`") + `}`,
	} {
		if err := Check([]byte(doc)); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
	c, err := compile(map[string]string{"m.rego": "package m\n\np := input\n"})
	if err != nil {
		t.Fatal(err)
	}
	day, month := int64(1_250_000_000), int64(20_000_000_000)
	got := writerFor(c.Modules).document(&Input{
		Spend: SpendAttrs{Day: &day, Month: &month},
		Agent: AgentAttrs{ID: "ag_1", Name: "bot", Team: "support", Environment: "prod", Tier: "gold", Status: "active",
			AllowedModels: []string{"small", "big-*"}, Metadata: map[string]any{"region": "eu", "level": 3, "missing": nil}},
		Request: RequestAttrs{Operation: "chat.completions", Scope: "chat:completions", Provider: "one", Model: "small", Mode: "gateway", Host: "gateway.example",
			Path: "/v1/chat/completions", MaxTokens: 1000, InputTokensEstimate: 12, Bytes: 400, Tools: []string{"crm.read"}, ToolsOther: true, SessionID: "sess-7", URLHosts: []string{"img.example"}, Time: time.Date(2026, 7, 1, 14, 30, 0, 0, time.UTC)},
		Caller: CallerAttrs{Kind: "key", KeyID: "key_1", KeyStatus: "active", KeyScopes: []string{"chat:completions"}, KeyRateLimit: 60, IP: "203.0.113.9", UserAgent: "OpenAI/Python"},
		Org:    OrgAttrs{ID: "org_1", Tier: "pro"},
	})
	if want := ast.MustParseTerm(between("Rego sees:\n\n```json\n", "```")); got.Value.Compare(want.Value) != 0 {
		t.Errorf("docs/policy.md has\n%s\nand the input is\n%s", want, got)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b.c\n", true}, {"**", "x", true},
		{"a", "a", true}, {"a", "A", false}, {"a*", "a", true}, {"a*", "ba", false}, {"*a", "ba", true}, {"*a", "ab", false},
		{"a*a", "a", false}, {"a*a", "aa", true}, {"ab*ba", "aba", false}, {"ab*ba", "abba", true},
		{"a*b*c", "abc", true}, {"a*b*c", "aXbYc", true}, {"a*b*c", "acb", false}, {"*b*b*", "b", false}, {"*b*b*", "bb", true},
		{"*ab", "aab", true}, {"*aab*", "aaab", true}, {"gpt-4*", "gpt-4o", true}, {"gpt-?", "gpt-4", false}, {"[a]", "a", false}, {"{a,b}", "a", false},
		{"gpt-4o*", "gpt-4o,claude-opus-4", false}, {"gpt-4o*", "gpt-4o:free", false}, {"*", "gpt-4o,claude-opus-4", true}, {"llama3:*", "llama3:8b", true}, {"llama3*", "llama3:8b", false},
		{"ft:gpt-4o:*", "ft:gpt-4o:acme::id", true}, {"ft:gpt-4o:*", "ft:gpt-4o:a,b", false}, {"a*", "a b", false}, {"a*", "a@1", false}, {"a*", "a|b", false}, {"a*", "a#b", false}, {"a*", "a?b", false}, {"a*", "a*", false},
		{`\*`, "*", false}, {`\*`, `\x`, true}, {"é*", "é1", true}, {"*\xff", "a\xff", true},
	} {
		if got := Matches(c.pattern, c.s); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// FuzzGlob compares Matches with its definition, which takes exponential time.
func FuzzGlob(f *testing.F) {
	f.Add("a*b*c", "aXbYc")
	f.Add("ab*ba", "aba")
	f.Add("a:*", "a:b:c")
	f.Add("a*", "a,b")
	var whole string
	var defined func(p, s string) bool
	defined = func(p, s string) bool {
		switch {
		case p == "":
			return s == ""
		case p[0] == '*':
			one := s != "" && (s[0] > ' ' && s[0] != 0x7f && !strings.Contains(",:@|#*?", s[:1]) || s[0] != '*' && strings.Contains(whole, s[:1]))
			return defined(p[1:], s) || one && defined(p, s[1:])
		default:
			return s != "" && s[0] == p[0] && defined(p[1:], s[1:])
		}
	}
	f.Fuzz(func(t *testing.T, p, s string) {
		if len(p) > 12 || len(s) > 16 || strings.Count(p, "*") > 5 {
			t.Skip()
		}
		whole = p
		if got, want := Matches(p, s), p == "*" || defined(p, s); got != want {
			t.Errorf("glob(%q, %q) = %v", p, s, got)
		}
	})
}
