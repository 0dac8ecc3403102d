package policy_test

import (
	"fmt"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
)

// A cap on a team of 50 is that cap once. Per agent it is 50 times as much.
func TestScope(t *testing.T) {
	for _, c := range []struct {
		document, want string
		agents         int
	}{
		{`{"name":"p","effect":"allow","conditions":{"agent.team":"support"},"limits":{"rpm":60,"monthly_usd_cap":500}}`,
			"[{rpm agent 60 50 false 3000} {monthly_usd_cap policy 500000000000 1 false 500000000000}]", 50},
		{`{"name":"p","effect":"allow","conditions":{"agent.team":"support","request.model":"m"},"limits":{"monthly_usd_cap":[{"limit":1,"per":"agent"},{"limit":2,"per":"agent.environment"},{"limit":3,"per":"request.model"},{"limit":4,"per":"key"}]}}`,
			"[{monthly_usd_cap agent 1000000000 50 false 50000000000} {monthly_usd_cap agent.environment 2000000000 2 false 4000000000} " +
				"{monthly_usd_cap request.model 3000000000 0 true 0} {monthly_usd_cap key 4000000000 100 false 400000000000}]", 50},
		{`{"name":"p","effect":"allow","conditions":{"caller.key_id":"key_7_0"},"limits":{"daily_usd_cap":1000000000}}`, "[{daily_usd_cap policy 1000000000000000000 1 false 1000000000000000000}]", 1},
		{`{"name":"p","effect":"allow","conditions":{"caller.key_scopes":"none"},"limits":{"rpm":1}}`, "[{rpm agent 1 0 false 0}]", 0},
		{`{"name":"p","effect":"deny","conditions":{"request.model":"m"}}`, "[]", 100},
		{`{"name":"p","effect":"allow","conditions":{"agent.tier":{"exists":false}},"limits":{"daily_usd_cap":{"limit":1000000000,"per":"agent"}}}`,
			"[{daily_usd_cap agent 1000000000000000000 100 false 9223372036854775807}]", 100},
	} {
		s, err := policy.NewScope([]byte(c.document))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			for k := range 2 {
				in := policy.Input{
					Agent:  policy.AgentAttrs{ID: fmt.Sprint("ag_", i), Team: []string{"support", "sales"}[i%2], Environment: fmt.Sprint("e", i/2%2), Status: "active"},
					Caller: policy.CallerAttrs{KeyID: fmt.Sprint("key_", i, "_", k), KeyLine: fmt.Sprint("key_", i, "_", k), KeyScopes: []string{"chat:completions"}},
				}
				if err := s.Add(t.Context(), in); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := fmt.Sprint(s.Limits()); s.Agents != c.agents || got != c.want {
			t.Errorf("%s:\n%d agents, %s\nwant %d, %s", c.document, s.Agents, got, c.agents, c.want)
		}
	}
}
