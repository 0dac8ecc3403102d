package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/policy"
)

// regoDoc is a policy in Rego with tests.
func regoDoc(t testing.TB, module string, tests ...string) string {
	t.Helper()
	m, err := json.Marshal(module)
	if err != nil {
		t.Fatal(err)
	}
	return `{"name": "raw", "effect": "deny", "rego": {"module": ` + string(m) + `, "tests": [` + strings.Join(tests, ", ") + `]}}`
}

const (
	dbInProd = `package policy

deny if {
	input.agent.environment == "prod"
	some tool in input.request.tools
	startswith(tool, "db.")
	not exempt
}

exempt if input.agent.team == "dba"
`
	deniesDB   = `{"name": "db in prod", "input": {"agent": {"environment": "prod"}, "request": {"tools": ["db.write"]}}, "denies": true}`
	permitsDev = `{"name": "db in dev", "input": {"agent": {"environment": "dev"}, "request": {"tools": ["db.write"]}}, "denies": false}`
	permitsDBA = `{"name": "dba", "input": {"agent": {"environment": "prod", "team": "dba"}, "request": {"tools": ["db.write"]}}, "denies": false}`
)

func compileAll(t testing.TB, docs ...string) *policy.Bundle {
	t.Helper()
	b, err := policy.Compile(context.Background(), inSet(docs...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func inSet(docs ...string) (ps []policy.Policy) {
	for i, d := range docs {
		ps = append(ps, policy.Policy{ID: fmt.Sprint("pol_", i), OrgID: "org_1", Version: 1, Document: []byte(d)})
	}
	return ps
}

func ask(change func(*policy.Input)) policy.Input {
	in := policy.SampleInput()
	in.Org.ID = "org_1"
	change(&in)
	return in
}

// A policy in Rego denies beside policies with conditions, and composes with them as a deny.
func TestRegoPolicyDenies(t *testing.T) {
	raw := regoDoc(t, dbInProd, deniesDB, permitsDev, permitsDBA)
	if err := policy.Check([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	b := compileAll(t,
		`{"name": "no rm", "effect": "deny", "conditions": {"request.tool": "rm"}}`, raw,
		`{"name": "prod", "effect": "allow", "conditions": {"agent.environment": "prod", "request.model": "model"}, "limits": {"rpm": 5}}`,
		`{"name": "asks", "effect": "require_approval", "conditions": {"request.model": "model"}, "approval": {"reviewer_team": "x"}}`,
		`{"name": "no model x", "effect": "deny", "conditions": {"request.model": "x"}}`)
	for _, c := range []struct {
		name        string
		change      func(*policy.Input)
		codes, rest string
	}{
		{"no tool", func(in *policy.Input) {}, "[approval_required]", "[pol_3]"},
		{"denied, and an approval would not help", func(in *policy.Input) { in.Agent.Environment, in.Request.Tools = "prod", []string{"db.read"} }, "[policy_denied]", "[pol_1]"},
		{"exempt", func(in *policy.Input) {
			in.Agent.Environment, in.Agent.Team, in.Request.Tools = "prod", "dba", []string{"db.read"}
		}, "[approval_required]", "[pol_3]"},
		{"three deny, in the order of ids", func(in *policy.Input) {
			in.Agent.Environment, in.Request.Tools, in.Request.Model = "prod", []string{"rm", "db.read"}, "x"
		}, "[policy_denied policy_denied policy_denied not_permitted]", "[pol_0 pol_1 pol_4 pol_2]"},
		{"the baseline comes first", func(in *policy.Input) {
			in.Agent.Status, in.Agent.Environment, in.Request.Tools = "suspended", "prod", []string{"db.read"}
		}, "[agent_suspended policy_denied]", "[pol_1]"},
	} {
		for range 2 { // the second one from the memo
			d := b.Decide(context.Background(), ask(c.change))
			var codes []string
			for _, r := range d.Reasons {
				codes = append(codes, r.Code)
			}
			if fmt.Sprint(codes) != c.codes || fmt.Sprint(d.PolicyIDs) != c.rest || d.Effect != policy.Deny || len(d.Limits) != 0 || d.PolicyVersion != b.Version() {
				t.Errorf("%s: %v %v %+v", c.name, codes, d.PolicyIDs, d)
			}
		}
	}
	// Alone it governs no agent, and what it does not deny is allowed.
	b = compileAll(t, raw)
	if d := b.Decide(context.Background(), ask(func(*policy.Input) {})); d.Effect != policy.Allow || len(d.PolicyIDs) != 0 {
		t.Errorf("%+v", d)
	}
	if r, err := policy.Rego(inSet(raw)[0]); err != nil || r != dbInProd {
		t.Errorf("%q %v", r, err)
	}
}

func TestRegoPolicyInShadowAndExplained(t *testing.T) {
	raw := strings.Replace(regoDoc(t, dbInProd, deniesDB, permitsDev), `"effect"`, `"state": "shadow", "effect"`, 1)
	in := ask(func(in *policy.Input) { in.Agent.Environment, in.Request.Tools = "prod", []string{"db.read"} })
	b := compileAll(t, raw)
	if d := b.Decide(context.Background(), in); d.Effect != policy.Allow {
		t.Errorf("%+v", d)
	}
	if d, ok := b.Shadow(context.Background(), in); !ok || d.Effect != policy.Deny || d.PolicyIDs[0] != "pol_0" {
		t.Errorf("%v %+v", ok, d)
	}
	x, err := policy.Explain(context.Background(), inSet(raw, `{"name": "any", "effect": "allow", "conditions": {}}`), in)
	if err != nil || len(x.Policies) != 2 || !x.Policies[0].Matches || x.Policies[0].Governs || x.Policies[0].Effect != "deny" {
		t.Errorf("%v %+v", err, x)
	}
	disabled := strings.Replace(raw, "shadow", "disabled", 1)
	if d := compileAll(t, disabled).Decide(context.Background(), in); d.Effect != policy.Allow {
		t.Errorf("disabled: %+v", d)
	}
	if n := policy.InRego(inSet(raw, disabled, `{}`, `{"name": "any", "effect": "allow", "conditions": {}}`)); n != 2 {
		t.Error(n)
	}
}

// An error, a conflict and an evaluation without an end deny, by the name of the policy.
func TestRegoPolicyThatFails(t *testing.T) {
	endless := `package policy

deny if {
	input.agent.team == "t"
	some a in input.request.tools
	some b in input.request.tools
	some c in input.request.tools
	a == b
	b == c
	a == "none"
}
`
	error_ := `package policy

deny if {
	input.agent.team == "t"
	lower(input.request.bytes) == "x"
}
`
	conflict := `package policy

deny := true if input.agent.team == "t"

deny := false if input.request.bytes == 0
`
	none := `{"name": "n", "input": {"agent": {"team": "other"}}, "denies": false}`
	for name, c := range map[string]struct{ module, code string }{
		"endless": {endless, "policy_timeout"}, "error": {error_, "policy_error"}, "conflict": {conflict, "policy_error"},
	} {
		doc := regoDoc(t, c.module, none)
		for _, team := range []string{"t", "other"} {
			in := ask(func(in *policy.Input) { in.Agent.Team = team })
			for i := range 300 {
				in.Request.Tools = append(in.Request.Tools, fmt.Sprint("tool", i))
			}
			d := compileAll(t, doc).Decide(context.Background(), in)
			want, code := policy.Allow, ""
			if team == "t" {
				want, code = policy.Deny, c.code
			}
			if d.Effect != want || code != "" && (d.Reasons[0].Code != code || d.Reasons[0].PolicyID != "pol_0" || d.Err == nil || d.PolicyIDs[0] != "pol_0") {
				t.Errorf("%s, team %s: %+v", name, team, d)
			}
			if team == "t" {
				x, err := policy.Explain(context.Background(), inSet(doc), in)
				if err != nil || len(x.Policies) != 1 || x.Policies[0].Matches || x.Policies[0].Failed[0].Path != "rego.module" {
					t.Errorf("%s: explained %v %+v", name, err, x)
				}
			}
		}
	}
}

// What Rego reads in ways that only evaluation can name is not remembered.
func TestRegoPolicyAndTheMemo(t *testing.T) {
	noon := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	for name, module := range map[string]string{
		"time":     "package policy\n\ndeny if input.request.time >= \"2026-01-05T12:00:01\"\n",
		"computed": "package policy\n\ndeny if {\n\tname := lower(\"TIME\")\n\tinput.request[name] >= \"2026-01-05T12:00:01\"\n}\n",
		"section":  "package policy\n\ndeny if {\n\tr := input.request\n\tr.time >= \"2026-01-05T12:00:01\"\n}\n",
		"all":      "package policy\n\ndeny if {\n\tx := input\n\tx.request.time >= \"2026-01-05T12:00:01\"\n}\n",
		"hours":    "package policy\n\ndeny if input.request.hour_utc >= 13\n",
		"weekday":  "package policy\n\ndeny if input.request.weekday_utc == 2\n",
	} {
		b := compileAll(t, regoDoc(t, module))
		for _, c := range []struct {
			after  time.Duration
			denies bool
		}{{0, false}, {0, false}, {25 * time.Hour, true}, {0, false}, {25 * time.Hour, true}} {
			in := ask(func(in *policy.Input) { in.Request.Time = noon.Add(c.after) })
			if d := b.Decide(context.Background(), in); (d.Effect == policy.Deny) != c.denies {
				t.Errorf("%s, %v later: %+v", name, c.after, d)
			}
		}
	}
	// Fields that differ are different keys, also keys of metadata.
	b := compileAll(t, regoDoc(t, "package policy\n\ndeny if {\n\tsome k\n\tinput.agent.metadata[k] == \"secret\"\n}\n"))
	for i, want := range []policy.Effect{policy.Allow, policy.Deny, policy.Allow} {
		in := ask(func(in *policy.Input) { in.Agent.Metadata = map[string]any{"a": []string{"x", "secret", "y"}[i]} })
		if d := b.Decide(context.Background(), in); d.Effect != want {
			t.Errorf("%d: %+v", i, d)
		}
	}
}

func TestRegoPolicyIsRefused(t *testing.T) {
	both := []string{`{"name": "a", "input": {"agent": {"team": "x"}}, "denies": true}`, `{"name": "b", "input": {"agent": {"team": "y"}}, "denies": false}`}
	deny := func(body string) string { return "package policy\n\ndeny if {\n" + body + "\n}\n" }
	const ok = `input.agent.team == "x"`
	module := func(m string) string { return regoDoc(t, m, both...) }
	for _, c := range []struct{ name, doc, field, says string }{
		{"allow", strings.Replace(module(deny(ok)), `"deny"`, `"allow"`, 1), "effect", "can only deny"},
		{"approval", strings.Replace(module(deny(ok)), `"deny"`, `"require_approval"`, 1), "effect", "can only deny"},
		{"conditions", strings.Replace(module(deny(ok)), `"rego"`, `"conditions": {}, "rego"`, 1), "conditions", "beside rego"},
		{"no module", `{"name": "x", "effect": "deny", "rego": {"tests": []}}`, "rego.module", "missing"},
		{"no tests", `{"name": "x", "effect": "deny", "rego": {"module": "package policy"}}`, "rego.tests", "missing"},
		{"text", `{"name": "x", "effect": "deny", "rego": "package policy"}`, "rego", "is text"},
		{"field", `{"name": "x", "effect": "deny", "rego": {"modul": "x"}}`, "rego.modul", `"module"`},
		{"not Rego", module("package policy\n\ndeny if {"), "rego.module", "in line 3"},
		{"package", module("package aid.policies\n\ndeny := true"), "rego.module", "package policy"},
		{"rule allow", module(deny(ok) + "\nallow := true\n"), "rego.module", "only deny"},
		{"no rule", module("package policy\n\ndenies := true\n"), "rego.module", "no rule deny"},
		{"a set", module("package policy\n\ndeny contains \"x\" if input.agent.team\n"), "rego.module", "true or false"},
		{"a text", module("package policy\n\ndeny := \"no\" if input.agent.team\n"), "rego.module", "true or false"},
		{"else", module("package policy\n\ndeny if input.agent.team else := \"x\"\n"), "rego.module", "true or false"},
		{"import", module("package policy\n\nimport data.aid.policies\n\ndeny if policies.deny\n"), "rego.module", "rego.v1"},
		{"input under another name", module("package policy\n\nimport input.agent as a\n\ndeny if a.team\n"), "rego.module", "rego.v1"},
		{"field of no input", module(deny(`input.agent.teem == "x"`)), "rego.module", `did you mean \"agent.team\"?`},
		{"section of no input", module(deny(`input.agents.team == "x"`)), "rego.module", "agents.team"},
		{"unknown field of a test", regoDoc(t, deny(ok), `{"name": "a", "input": {"agent": {"teem": "x"}}, "denies": true}`), "rego.tests[0].input", "not an input document"},
		{"a test that fails", regoDoc(t, deny(ok), both[0], `{"name": "the second", "input": {"agent": {"team": "x"}}, "denies": false}`), "rego.tests[1]", `"the second" fails: the module denies`},
		{"another", regoDoc(t, deny(ok), both[1], `{"name": "the third", "input": {}, "denies": true}`), "rego.tests[1]", `"the third" fails: the module does not deny`},
		{"only denied", regoDoc(t, deny(ok), both[0]), "rego.tests", "both results"},
		{"only permitted", regoDoc(t, deny(ok), both[1]), "rego.tests", "both results"},
		{"no test at all", regoDoc(t, deny(ok)), "rego.tests", "both results"},
		{"a test without denies", regoDoc(t, deny(ok), `{"name": "a", "input": {}}`), "rego.tests[0].denies", "missing"},
		{"a test that is no object", regoDoc(t, deny(ok), `1`), "rego.tests[0]", "is a number"},
		{"an error in a test", regoDoc(t, deny(`lower(input.request.bytes) == "x"`), both[0]), "rego.tests[0]", `"a" fails`},
		{"families that are not stated", regoDoc(t, deny(`"shell" in input.request.tool_families`), `{"name": "a", "input": {"request": {"tools": ["bash"]}}, "denies": true}`), "rego.tests[0].input", "tool_families"},
		{"too many steps", regoDoc(t, deny(`some a in input.request.tools; some b in input.request.tools; a == "x"; b == "y"`),
			`{"name": "long", "input": {"request": {"tools": [`+strings.TrimSuffix(strings.Repeat(`"x",`, 400), ",")+`]}}, "denies": true}`), "rego.tests[0]", "100000 steps"},
	} {
		var bad *policy.Invalid
		if err := policy.Check([]byte(c.doc)); !errors.As(err, &bad) || bad.Field != c.field || !strings.Contains(strings.ReplaceAll(bad.Error(), `"`, `\"`), strings.ReplaceAll(strings.ReplaceAll(c.says, `\"`, `"`), `"`, `\"`)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// No network, clock, randomness or environment, and nothing that makes much of little.
	for _, call := range []string{
		`http.send({"method": "GET", "url": "https://x"})`, `time.now_ns() > 0`, `rand.intn("x", 5) == 1`, `net.lookup_ip_addr("x")`, `opa.runtime().env`,
		`uuid.rfc4122("x")`, `concat("", ["a", "b"]) == "ab"`, `numbers.range(1, 1000000000)[_] == 1`, `sprintf("%s", ["x"]) == "x"`, `array.concat([1], [2]) == [1, 2]`,
		`replace("a", "a", "bb") == "bb"`, `2 * 3 == 6`, `walk(input, [p, v])`, `io.jwt.decode("x")`, `trace("x")`, `rego.metadata.rule()`, `regex.match("a", "a")`,
	} {
		var bad *policy.Invalid
		if err := policy.Check([]byte(module(deny(ok + "\n" + call)))); !errors.As(err, &bad) || bad.Field != "rego.module" || !strings.Contains(bad.Problem, "which policies may not use") {
			t.Errorf("%s: %v", call, err)
		}
	}
	if _, err := policy.Compile(context.Background(), inSet(slices.Repeat([]string{module(deny(ok))}, policy.MaxRego+1)...)); err == nil || !strings.Contains(err.Error(), "more than 50") {
		t.Error(err)
	}
}
