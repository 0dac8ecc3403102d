package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The commands of policies work on files, and CI can tell their exit codes apart.
func TestPolicyCommands(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	support := file("support.json", `{"name":"support","effect":"allow","conditions":{"agent.team":"support","request.tool":{"in":["crm.read"]}}}`)
	denies := file("denies.json", `[{"name":"no-shell","effect":"deny","conditions":{"request.tool":"shell"}},{"name":"no-night","effect":"deny","conditions":{"request.hour_utc":{"between":[0,5]}}}]`)
	reads := file("reads.json", `{"agent":{"team":"support"},"request":{"tools":["crm.read"]}}`)
	bash := file("bash.json", `{"agent":{"team":"support"},"request":{"tools":["bash"]}}`)
	tests := file("support_test.json", `{"policies":["support.json","denies.json"],"tests":[
		{"name":"reads","input":{"agent":{"team":"support"},"request":{"tools":["crm.read"]}},"want":{"effect":"allow","policies":["support"]}},
		{"name":"bash is a shell","input":{"request":{"tools":["bash"]}},"want":{"effect":"deny","reasons":["policy_denied"],"policies":["no-shell"]}}]}`)
	failing := file("failing_test.json", `{"policies":["support.json"],"tests":[{"name":"refunds","input":{"agent":{"team":"support"},"request":{"tools":["billing.refund"]}},"want":{"effect":"allow"}}]}`)

	for _, c := range []struct {
		args string
		exit int
		want []string // in the output
	}{
		{"eval --policies " + support + " --input " + reads, 0, []string{"allow", "policies: support"}},
		{"eval --policies " + support + "," + denies + " --input " + bash, 1, []string{"deny", "policy_denied", "not_permitted", "policies: no-shell, support"}},
		{"eval --policies " + support + " --input " + bash + " --json", 1, []string{`"effect": "deny"`, `"code": "not_permitted"`}},
		{"eval --policies " + support + " --input -", 0, []string{"allow"}}, // stdin has the input that reads
		{"explain --policies " + support + "," + denies + " --input " + bash, 0, []string{
			"support (allow) governs, and does not match", `conditions.request.tool is false: the value is ["bash"]`, "no-shell (deny) matches"}},
		{"explain --policies " + support + " --input " + bash + " --json", 0, []string{`"condition": "conditions.request.tool"`, `"governs": true`}},
		{"test " + tests, 0, []string{"ok    reads", "ok    bash is a shell", "2 tests, 0 failed"}},
		{"test " + tests + " " + failing, 1, []string{"FAIL  refunds: the effect is deny, not allow (not_permitted)", "3 tests, 1 failed"}},
		{"test " + failing + " --json", 1, []string{`"pass": false`}},
		{"eval --policies " + file("bad.json", `{"name":"x","effect":"allow","conditions":{"agent.teem":"a"}}`) + " --input " + reads, 2, []string{`did you mean "agent.team"?`}},
		{"eval --policies " + support + " --input " + file("odd.json", `{"agent":{"colour":"red"}}`), 2, []string{"colour"}},
		{"eval --policies " + support + " --input " + filepath.Join(dir, "none.json"), 2, []string{"none.json"}},
		{"eval --policies " + support, 2, []string{"--input"}},
		{"test " + file("odd_test.json", `{"policies":["support.json"],"tests":[{"name":"x","want":{"effect":"maybe"}}]}`), 2, []string{"want.effect"}},
		{"test " + file("unknown_test.json", `{"policies":["support.json"],"tests":[{"name":"x","wants":{}}]}`), 2, []string{"wants"}},
	} {
		stdin, err := os.ReadFile(reads)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		exit := run(t.Context(), append([]string{"policy"}, strings.Fields(c.args)...), bytes.NewReader(stdin), &out, &out)
		if exit != c.exit {
			t.Errorf("aid policy %s: exit %d, want %d\n%s", c.args, exit, c.exit, out.String())
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("aid policy %s: no %q in\n%s", c.args, want, out.String())
			}
		}
	}
}

// Each recipe of the policy author's guide passes its own tests, as `aid policy test` runs
// them. With every expectation turned round, every test fails.
func TestPolicyGuide(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "policy-guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	recipes := strings.Split(string(page), "\n## ")[1:]
	if len(recipes) != 10 {
		t.Errorf("%d recipes", len(recipes))
	}
	for _, recipe := range recipes {
		title, _, _ := strings.Cut(recipe, "\n")
		blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(recipe, -1)
		if len(blocks) != 2 {
			t.Errorf("%s has %d blocks, and not a policy and its tests", title, len(blocks))
			continue
		}
		dir := t.TempDir()
		test := func(tests string) (int, string) {
			for name, text := range map[string]string{"policy.json": blocks[0][1], "policy_test.json": tests} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			return run(t.Context(), []string{"policy", "test", filepath.Join(dir, "policy_test.json")}, nil, &out, &out), out.String()
		}
		tests := blocks[1][1]
		if exit, out := test(tests); exit != 0 || strings.Count(out, "ok    ") < 2 || !strings.Contains(tests, `"effect": "deny"`) {
			t.Errorf("%s: exit %d\n%s", title, exit, out)
		}
		turned := strings.NewReplacer(`"effect": "deny"`, `"effect": "allow"`, `"effect": "allow"`, `"effect": "deny"`).Replace(tests)
		if exit, out := test(turned); exit != 1 || strings.Contains(out, "ok    ") {
			t.Errorf("%s, turned round: exit %d\n%s", title, exit, out)
		}
	}
}
