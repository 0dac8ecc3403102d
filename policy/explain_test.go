package policy_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/policy"
)

// An explanation names each condition that fails, and whether it is false or unknown.
func TestExplain(t *testing.T) {
	ps := set(5, func(i int) string {
		return []string{
			`{"name":"support","effect":"allow","conditions":{"agent.team":"support","request.model":"small","any":[{"request.tool":{"in":["crm.read"]}},{"request.max_tokens":{"lt":10}}],"not":{"agent.metadata.pii":true}}}`,
			`{"name":"others","effect":"allow","conditions":{"agent.team":"sales","request.model":"small"}}`,
			`{"name":"shell","effect":"deny","conditions":{"request.tool":"shell"}}`,
			`{"name":"tried","effect":"allow","state":"shadow","conditions":{"agent.team":"support","request.model":"big"}}`,
			`{"name":"off","effect":"deny","state":"disabled","conditions":{}}`,
		}[i]
	})
	in := request()
	in.Agent.Team, in.Request.Model, in.Request.Tools, in.Request.MaxTokens = "support", "small", []string{"crm.read", "shell"}, 0
	in.Agent.Metadata = map[string]any{"pii": false}
	x, err := policy.Explain(t.Context(), ps, in)
	if err != nil {
		t.Fatal(err)
	}
	if x.Decision.Effect != policy.Deny || len(x.Decision.Reasons) != 2 {
		t.Errorf("%+v", x.Decision)
	}
	want := []policy.Explained{
		{ID: "pol_00000", Name: "support", Version: 1, Effect: "allow", State: policy.Enabled, Governs: true, Failed: []policy.FailedCondition{
			{Path: "conditions.any[1].request.max_tokens", Attribute: "request.max_tokens", Unknown: true},
			{Path: "conditions.any[0].request.tool", Attribute: "request.tool", Value: []any{"crm.read", "shell"}},
		}},
		{ID: "pol_00002", Name: "shell", Version: 1, Effect: "deny", State: policy.Enabled, Matches: true},
		{ID: "pol_00003", Name: "tried", Version: 1, Effect: "allow", State: policy.Shadow, Governs: true, Failed: []policy.FailedCondition{
			{Path: "conditions.request.model", Attribute: "request.model", Value: "small"},
		}},
	}
	for _, e := range x.Policies {
		slices.SortFunc(e.Failed, func(a, b policy.FailedCondition) int { return strings.Compare(a.Path, b.Path) })
	}
	for _, e := range want {
		slices.SortFunc(e.Failed, func(a, b policy.FailedCondition) int { return strings.Compare(a.Path, b.Path) })
	}
	if d := cmp.Diff(want, x.Policies); d != "" {
		t.Error(d)
	}
}

// What an explanation says agrees with the reference evaluator.
func TestExplanationsAreTheContracts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ps := draw(t, 4)
		in := inputs.Draw(t, "input")
		x, err := policy.Explain(context.Background(), ps, in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := same(plain(ps), in, x.Decision); diff != "" {
			t.Fatal(diff)
		}
		explained := map[string]policy.Explained{}
		for _, e := range x.Policies {
			explained[e.ID] = e
		}
		for _, p := range plain(ps) {
			o := asked{in: in, allow: p.Effect == "allow"}
			matches := o.object(p.Conditions, false) == yes && p.State != "disabled"
			o.maybe = true
			governs := p.Effect == "allow" && o.object(p.Conditions, false) == yes && p.State != "disabled"
			e, listed := explained[p.ID]
			if listed != (matches || governs) || e.Matches != matches || e.Governs != governs {
				t.Fatalf("%s %v: matches %v, governs %v, explained as %+v", p.ID, p.Conditions, matches, governs, e)
			}
			if listed && !matches && len(e.Failed) == 0 {
				t.Fatalf("%s %v does not match, and no condition fails", p.ID, p.Conditions)
			}
			for _, f := range e.Failed {
				if strings.Contains(f.Path, "not.") || strings.Contains(f.Path, "any[") || strings.Contains(f.Path, "all[") {
					continue // its meaning depends on what is around it
				}
				name := strings.TrimPrefix(f.Path, "conditions.")
				got := (asked{in: in, allow: p.Effect == "allow"}).condition(name, p.Conditions[name], false)
				if _, isSet := f.Value.([]any); got == yes || !isSet && (got == unknown) != f.Unknown {
					t.Fatalf("%s %v: %s is %v, explained as %+v", p.ID, p.Conditions, name, got, f)
				}
			}
		}
	})
}

// An input is read back as it was written.
func TestInputDocument(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := inputs.Draw(t, "input")
		in.Request.Mode, in.Agent.Status, in.Caller.KeyStatus = "gateway", "active", "active"
		b, err := in.Document()
		if err != nil {
			t.Fatal(err)
		}
		// What is missing in it is as in SampleInput, so it is stated here.
		got, err := policy.ReadInput(b, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		again, err := got.Document()
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{`"tools":`, `"url_hosts":`, `"metadata":`, `"time":`, `"bytes":`} {
			if a, b := after(string(b), part), after(string(again), part); a != b {
				t.Fatalf("%s: %s, and read back %s", part, a, b)
			}
		}
	})
	for doc, want := range map[string]string{
		`{"agent":{"colour":"red"}}`:            "colour",
		`{"request":{"hour_utc":3}}`:            "request.hour_utc is 3",
		`{"request":{"weekday_utc":2}}`:         "request.weekday_utc is 2",
		`{"request":{"time":"yesterday"}}`:      "request.time",
		`{"request":{"tool_names":["a"]}}`:      "request.tool_names",
		`{"caller":{"key_expires_at":"never"}}`: "caller.key_expires_at",
		`{"agent":{"id":7}}`:                    "not an input document",
	} {
		if _, err := policy.ReadInput([]byte(doc), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", doc, err)
		}
	}
	in, err := policy.ReadInput([]byte(`{"request":{"tools":["bash"]},"caller":{"key_scopes":["x"]}}`), func(tools []string) ([]string, bool) { return []string{"shell"}, false })
	if err != nil || fmt.Sprint(in.Request.ToolFamilies, in.Request.Tools, in.Caller.KeyScopes, in.Agent.AllowedModels) != "[shell] [bash] [x] [*]" {
		t.Errorf("%v %+v", err, in)
	}
}

// after is the JSON value behind a name, up to the next member.
func after(s, name string) string {
	_, rest, _ := strings.Cut(s, name)
	end := strings.Index(rest, `,"`)
	if end < 0 {
		return rest
	}
	return rest[:end]
}
