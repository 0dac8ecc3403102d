package policy_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
)

// Of is true only for the policies that a Bundle was compiled from.
func TestOf(t *testing.T) {
	ps := set(3, func(i int) string { return fmt.Sprintf(`{"name": "p%d", "effect": "deny", "conditions": {}}`, i) })
	b, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	none, err := policy.Compile(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*policy.Policy)) []policy.Policy {
		ps := slices.Clone(ps)
		change(&ps[1])
		return ps
	}
	for what, c := range map[string]struct {
		b    *policy.Bundle
		ps   []policy.Policy
		want bool
	}{
		"the same":         {b, ps, true},
		"another order":    {b, []policy.Policy{ps[2], ps[0], ps[1]}, true},
		"fewer":            {b, ps[:2], false},
		"none":             {b, nil, false},
		"one twice":        {b, append(slices.Clone(ps), ps[0]), false},
		"another id":       {b, changed(func(p *policy.Policy) { p.ID = "pol_x" }), false},
		"another org":      {b, changed(func(p *policy.Policy) { p.OrgID = "org_2" }), false},
		"another version":  {b, changed(func(p *policy.Policy) { p.Version++ }), false},
		"another document": {b, changed(func(p *policy.Policy) { p.Document = append([]byte(" "), p.Document...) }), false},
		"none, of none":    {none, nil, true},
		"some, of none":    {none, ps, false},
		"no bundle":        {nil, nil, false},
		"zero bundle":      {new(policy.Bundle), nil, false},
	} {
		if got := c.b.Of(c.ps); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
	if ps[0].ID != "pol_00000" || ps[2].ID != "pol_00002" {
		t.Error("the caller's slice was sorted")
	}
}

// Many goroutines use a Bundle at once, and share its cache of subjects.
func TestDecideAtOnce(t *testing.T) {
	b := bundle(t,
		`{"name": "scopes", "effect": "allow", "conditions": {"caller.key_scopes": {"in": ["chat:completions", "other"]}, "agent.metadata.level": {"between": [1, 5]}}}`,
		`{"name": "tools", "effect": "deny", "conditions": {"request.tool": {"in": ["a", "b"]}, "agent.metadata.region": {"in": ["eu", "us"]}}}`)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				in := request()
				in.Caller.KeyID = fmt.Sprint("key_", i%3)
				want, by := policy.Allow, "[pol_a]"
				switch (w + i) % 4 {
				case 1:
					in.Request.Tools, want, by = []string{"c", "b"}, policy.Deny, "[pol_b]"
				case 2:
					in.Caller.KeyScopes, want, by = []string{"x", "y"}, policy.Deny, "[]"
				case 3:
					in.Agent.Metadata["level"], by = 6, "[]" // nothing governs it
				}
				if d := b.Decide(context.Background(), in); d.Effect != want || d.Err != nil || fmt.Sprint(d.PolicyIDs) != by {
					t.Errorf("%d, %d: %+v", w, i, d)
					return
				}
			}
		})
	}
	wg.Wait()
}
