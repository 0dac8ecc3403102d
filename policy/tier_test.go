package policy_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/policy"
)

func TestTiers(t *testing.T) {
	example, err := os.ReadFile("../docs/tiers.json")
	if err != nil {
		t.Fatal(err)
	}
	tiers, err := policy.ParseTiers(example)
	if err != nil || len(tiers) != 3 || tiers["free"] == nil || tiers["pro"] == nil || tiers["enterprise"] == nil {
		t.Fatalf("%v: %v", tiers, err)
	}
	tiers, err = policy.ParseTiers([]byte(`{"a": {"rpm": 60, "monthly_usd_cap": 0.5, "tpm": {"limit": 7, "per": "org"}}, "b" : {}}`))
	if err != nil {
		t.Fatal(err)
	}
	again, err := policy.ParseTier("a", tiers["a"].Text())
	if err != nil {
		t.Fatalf("%s: %v", tiers["a"].Text(), err)
	}
	want := []policy.Limit{
		{Source: "tier", Name: "rpm", Value: 60, Per: "org", Subject: "org_1", Key: "tier:rpm:org_1"},
		{Source: "tier", Name: "monthly_usd_cap", Value: 500_000_000, Per: "org", Subject: "org_1", Key: "tier:monthly_usd_cap:org_1"},
		{Source: "tier", Name: "tpm", Value: 7, Per: "org", Subject: "org_1", Key: "tier:tpm:org_1"},
	}
	if d := cmp.Diff(want, again.Bind("org_1")); d != "" || len(tiers["b"].Bind("org_1")) != 0 {
		t.Error(d)
	}
	for text, problem := range map[string]string{
		`{"a": {"rpm": {"limit": 1, "per": "agent.team"}}}`: "has a per",
		`{"a": {"rpm": [1, {"limit": 2, "per": "org"}]}}`:   "",
		`{"a": {"session_requests": 1}}`:                    "does not count for an organization",
		`{"a": {"max_tokens": 1}}`:                          "does not count for an organization",
		`{"a": {"rmp": 1}}`:                                 "is not a limit",
		`{"a": {"rpm": 0}}`:                                 "is not a number of requests",
		`{"a": {}, "a": {}}`:                                "",
		`{"": {}}`:                                          "is not the name of a tier",
		`{"a": {}} {}`:                                      "after its end",
		`[]`:                                                "",
		``:                                                  "",
		`{"a": {}`:                                          "",
	} {
		_, err := policy.ParseTiers([]byte(text))
		var invalid *policy.Invalid
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %v, want %q", text, err, problem)
		}
	}
}
