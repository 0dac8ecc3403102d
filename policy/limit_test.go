package policy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/policy"
)

func limitsOf(t *testing.T, in policy.Input, documents ...string) policy.Decision {
	t.Helper()
	var ps []policy.Policy
	for i, d := range documents {
		ps = append(ps, policy.Policy{ID: fmt.Sprintf("pol_%03d", i), OrgID: "org_1", Version: 1, Document: []byte(d)})
	}
	b, err := policy.Compile(t.Context(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return b.Decide(t.Context(), in)
}

// Money is exact, and each limit counts for what its document says.
func TestLimitsBound(t *testing.T) {
	in := request()
	in.Agent.Metadata = map[string]any{"cost": "a+b:c", "level": json.Number("1.50")}
	in.Caller.KeyLine, in.Request.Counted = "key_0", in.Request.Model
	got := limitsOf(t, in, `{"name": "x", "effect": "allow", "conditions": {}, "limits": {
		"monthly_usd_cap": [500, {"limit": 0.1, "per": ["agent.metadata.cost", "request.model"]}, {"limit": 1e-09, "per": "agent.metadata.none"}],
		"daily_usd_cap": 123456.789012345, "tpm": {"limit": 1e6, "per": "key"}, "concurrent": {"limit": 3, "per": "org"}, "max_tokens": 100}}`)
	want := []policy.Limit{
		{Source: "pol_000", Name: "monthly_usd_cap", Value: 500_000_000_000, Per: "policy", Key: "policy:pol_000:monthly_usd_cap:policy:"},
		{Source: "pol_000", Name: "monthly_usd_cap", Value: 100_000_000, Per: "agent.metadata.cost+request.model", Subject: "a+b:c+" + in.Request.Model,
			Key: "policy:pol_000:monthly_usd_cap:agent.metadata.cost:a%2Bb%3Ac+request.model:" + in.Request.Model},
		{Source: "pol_000", Name: "monthly_usd_cap", Value: 1, Per: "agent.metadata.none", Key: "policy:pol_000:monthly_usd_cap:agent.metadata.none:"},
		{Source: "pol_000", Name: "daily_usd_cap", Value: 123_456_789_012_345, Per: "policy", Key: "policy:pol_000:daily_usd_cap:policy:"},
		{Source: "pol_000", Name: "tpm", Value: 1_000_000, Per: "key", Subject: "key_0", Key: "policy:pol_000:tpm:key:key_0"},
		{Source: "pol_000", Name: "concurrent", Value: 3, Per: "org", Subject: "org_1", Key: "policy:pol_000:concurrent:org:org_1"},
		{Source: "pol_000", Name: "max_tokens", Value: 100, Per: "agent", Subject: in.Agent.ID, Key: "policy:pol_000:max_tokens:agent:" + in.Agent.ID},
	}
	if d := cmp.Diff(want, got.Limits); d != "" || got.Effect != policy.Allow {
		t.Errorf("%v %v (-want +got)\n%s", got.Effect, got.Err, d)
	}
	for _, l := range got.Limits {
		if policy.Money(l.Name) != strings.HasSuffix(l.Name, "usd_cap") {
			t.Errorf("%s: money?", l.Name)
		}
	}
}

// No two subjects share a count, whatever is in them.
func TestSubjectsApart(t *testing.T) {
	seen := map[string]string{}
	for _, s := range []string{"", "a", "a:b", "a%3Ab", "a+b", "é", "\u00e9\u0301", strings.Repeat("é", 100), strings.Repeat("x", 300), strings.Repeat("x", 301), "%sha256-"} {
		for _, model := range []string{"m", "b", "m:b"} {
			in := request()
			in.Agent.Metadata = map[string]any{"k": s}
			in.Request.Model, in.Request.Counted = model, model
			in.Agent.AllowedModels = []string{"*"}
			d := limitsOf(t, in, `{"name": "x", "effect": "allow", "conditions": {}, "limits": {"rpm": {"limit": 1, "per": ["agent.metadata.k", "request.model"]}}}`)
			if len(d.Limits) != 1 {
				t.Fatalf("%+v", d)
			}
			key, of := d.Limits[0].Key, s+"\x00"+model
			if other, taken := seen[key]; taken || len(key) > 512 {
				t.Errorf("%q and %q share %s", of, other, key)
			}
			seen[key] = of
		}
	}
}

// A request to which more limits apply than can be counted in one step is rejected.
func TestTooManyLimits(t *testing.T) {
	var documents []string
	for i := range policy.MaxLimits / 4 {
		documents = append(documents, fmt.Sprintf(`{"name": "p%d", "effect": "allow", "conditions": {}, "limits": {"rpm": 1, "tpm": 1, "concurrent": 1, "daily_usd_cap": 1}}`, i))
	}
	in := request()
	in.Caller.KeyRateLimit = 0
	if d := limitsOf(t, in, documents...); d.Effect != policy.Allow || len(d.Limits) != policy.MaxLimits {
		t.Errorf("%v, %d limits", d.Effect, len(d.Limits))
	}
	in.Caller.KeyRateLimit = 5
	if d := limitsOf(t, in, documents...); d.Effect != policy.Deny || d.Reasons[0].Code != "too_many_limits" || d.Limits != nil {
		t.Errorf("%+v", d)
	}
}
