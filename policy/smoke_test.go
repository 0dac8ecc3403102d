package policy_test

import (
	"context"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/policy"
)

// request is one that the baseline allows.
func request() policy.Input {
	return policy.Input{
		Agent:   policy.AgentAttrs{ID: "ag_1", Name: "bot", Team: "support", Environment: "prod", Status: "active", AllowedModels: []string{"small", "big-*"}},
		Request: policy.RequestAttrs{Operation: "chat.completions", Scope: "chat:completions", Provider: "one", Model: "small", Mode: "gateway", Path: "/v1/chat/completions", Time: time.Date(2026, 7, 1, 14, 30, 0, 0, time.UTC)},
		Caller:  policy.CallerAttrs{KeyID: "key_1", KeyScopes: []string{"chat:completions"}, KeyStatus: "active", IP: "203.0.113.9"},
		Org:     policy.OrgAttrs{ID: "org_1"},
	}
}

func compile(t testing.TB, documents ...string) *policy.Bundle {
	t.Helper()
	var ps []policy.Policy
	for i, d := range documents {
		ps = append(ps, policy.Policy{ID: "pol_" + string(rune('a'+i)), OrgID: "org_1", Version: 1, Document: []byte(d)})
	}
	b, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecide(t *testing.T) {
	d := compile(t).Decide(context.Background(), request())
	t.Logf("%+v", d)
	if d.Effect != policy.Allow {
		t.Error("denied")
	}
}
