package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/policy"
)

func noFamilies([]string) ([]string, bool) { return nil, true }

// Each template, filled, is an ordinary policy: it governs the agents that it names, permits
// what its summary says, and denies the rest.
func TestTemplates(t *testing.T) {
	for _, c := range []struct{ id, tool, not string }{
		{"support", "crm.read", "crm.update"},
		{"back-office", "mail.draft", "mail.send"},
		{"research", "web_search_20250305", "mail.send"},
		{"coding-assistant", "apply_patch", "web_fetch"},
	} {
		i := slices.IndexFunc(policy.Templates(), func(t policy.Template) bool { return t.ID == c.id })
		if i < 0 {
			t.Fatalf("no template %s", c.id)
		}
		template := policy.Templates()[i]
		if len(template.Summary) < 40 {
			t.Errorf("%s has no summary", c.id)
		}
		doc, err := template.Fill(policy.Filling{Name: "p", Team: "t1", Models: []string{"small", "big-*"}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := policy.Compile(context.Background(), []policy.Policy{{ID: "pol_1", OrgID: "org_1", Version: 1, Document: doc}})
		if err != nil {
			t.Fatal(err)
		}
		decide := func(change func(*policy.Input)) string {
			in := policy.SampleInput()
			in.Org.ID, in.Agent.Team, in.Request.Model = "org_1", "t1", "small"
			change(&in)
			d := b.Decide(context.Background(), in)
			if len(d.Reasons) > 0 {
				return d.Reasons[0].Code
			}
			return fmt.Sprintf("%v%d", d.Effect, len(d.Limits))
		}
		for want, change := range map[string]func(*policy.Input){
			"allow1":              func(*policy.Input) {},
			"allow1 big":          func(in *policy.Input) { in.Request.Model = "big-2" },
			"allow1 tool":         func(in *policy.Input) { in.Request.Tools = []string{c.tool} },
			"allow1 list":         func(in *policy.Input) { in.Request.Operation, in.Request.Model = "models.list", "" },
			"allow0 other team":   func(in *policy.Input) { in.Agent.Team, in.Request.Tools = "t2", []string{c.not} },
			"not_permitted":       func(in *policy.Input) { in.Request.Tools = []string{c.tool, c.not} },
			"not_permitted model": func(in *policy.Input) { in.Request.Model = "other" },
			"not_permitted op":    func(in *policy.Input) { in.Request.Operation = "assistants" },
		} {
			if got := decide(change); got != strings.Fields(want)[0] {
				t.Errorf("%s, %s: %s", c.id, want, got)
			}
		}
	}
	if len(policy.Templates()) != 4 {
		t.Error("a template has no case")
	}
}

func TestFill(t *testing.T) {
	support := policy.Templates()[0]
	doc, err := support.Fill(policy.Filling{
		Name: "n", State: policy.Shadow, Agents: []string{"ag_1", "ag_2"}, Environment: "prod", Tools: []string{"kb.search"}, Limits: jsontext.Value(`{"rpm": 7}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Name, Effect, State string
		Conditions          map[string]json.RawMessage
		Limits              map[string]int
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		t.Fatal(err)
	}
	c := d.Conditions
	if d.Name != "n" || d.Effect != "allow" || d.State != "shadow" || d.Limits["rpm"] != 7 || len(c) != 4 ||
		string(c["agent.id"]) != `{"in":["ag_1","ag_2"]}` || string(c["agent.environment"]) != `"prod"` || string(c["request.tool"]) != `{"in":["kb.search"]}` {
		t.Errorf("%s", doc)
	}
	var bad *policy.Invalid
	if _, err := support.Fill(policy.Filling{Name: "n"}); !errors.As(err, &bad) || bad.Field != "agents" {
		t.Errorf("a policy for every agent: %v", err)
	}
	if _, err := support.Fill(policy.Filling{Team: "t"}); !errors.As(err, &bad) || bad.Field != "name" {
		t.Errorf("without a name: %v", err)
	}
	if _, err := support.Fill(policy.Filling{Name: "n", Team: "t", Tools: []string{"a", "b?"}}); !errors.As(err, &bad) || bad.Field != "tools.in[1]" {
		t.Errorf("a tool with ?: %v", err)
	}
	if _, err := support.Fill(policy.Filling{Name: "n", Team: "t", Limits: jsontext.Value(`{"rpn": 7}`)}); !errors.As(err, &bad) || bad.Field != "limits.rpn" {
		t.Errorf("an unknown limit: %v", err)
	}
}

func TestNearest(t *testing.T) {
	for _, c := range []struct {
		seen policy.Observed
		want string
	}{
		{policy.Observed{Operations: []string{"chat.completions"}, Tools: []string{"crm.read", "kb.search"}}, "support"},
		{policy.Observed{Operations: []string{"messages"}, Tools: []string{"Bash", "Read", "Edit"}}, "coding-assistant"},
		{policy.Observed{Operations: []string{"responses"}, Tools: []string{"web_search_preview", "code_interpreter"}}, "research"},
		{policy.Observed{Operations: []string{"messages"}, Tools: []string{"invoices.read", "mail.draft", "kb.search"}}, "back-office"},
		{policy.Observed{Operations: []string{"fim.completions"}}, "coding-assistant"},
		{policy.Observed{Operations: []string{"chat.completions"}, Models: []string{"gpt-5-codex"}}, "coding-assistant"},
		{policy.Observed{Models: []string{"o3-deep-research"}}, "research"},
		{policy.Observed{}, "support"}, // the narrowest
		{policy.Observed{Operations: []string{"videos"}, Tools: []string{"rm"}}, "support"},
	} {
		fits, err := policy.Nearest(context.Background(), c.seen, noFamilies)
		if err != nil || len(fits) != 4 {
			t.Fatal(fits, err)
		}
		if f := fits[0]; f.Template.ID != c.want || f.Permitted+len(f.Operations)+len(f.Tools) != len(c.seen.Operations)+len(c.seen.Tools) {
			t.Errorf("%+v: %s, %+v", c.seen, f.Template.ID, f)
		}
	}
}
