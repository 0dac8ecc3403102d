package verdict_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/verdict"
)

// BenchmarkReplay reads and evaluates recorded requests, as a dry-run does after it has read
// them from Postgres.
func BenchmarkReplay(b *testing.B) {
	entries := make([][]byte, 10_000)
	began := time.Date(2026, 7, 1, 9, 0, 0, 0, time.UTC)
	for i := range entries {
		entries[i] = audit.Decided{
			Time: began.Add(time.Duration(i) * time.Millisecond), Org: "org_1", Writer: "node_1", RequestID: fmt.Sprintf("018f-%08d", i),
			AgentID: fmt.Sprint("ag_", i%200), AgentName: fmt.Sprint("bot", i%200), AgentTeam: fmt.Sprint("team-", i%20), AgentAllowedModels: []string{"*"},
			KeyID: fmt.Sprint("key_", i%400), KeyScopes: []string{"chat:completions"}, Mode: "gateway", Method: "POST", Host: "gateway.example", HostVerified: true,
			Path: "/v1/chat/completions", Operation: "chat.completions", Model: []string{"small", "big"}[i%2], Provider: "openai", ProviderID: "prv_1", Cluster: "provider_prv_1",
			MaxTokens: 1000, InputTokensEstimate: int64(i % 4000), RequestBytes: int64(i), BodyBytes: int64(i), BodyDigest: "hmac-sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			ClientIP: fmt.Sprintf("10.0.%d.%d", i/250%250, i%250), UserAgent: "OpenAI/Python 1.99.9", SessionID: fmt.Sprint("sess_", i/10), Tools: [][]string{nil, {"crm.read"}, {"kb.search", "crm.read"}}[i%3],
			Effect: "allow", PolicyVersion: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", InputVersion: 1,
		}.Encode()
	}
	compile := func(documents ...string) *policy.Bundle {
		ps := make([]policy.Policy, len(documents))
		for i, d := range documents {
			ps[i] = policy.Policy{ID: fmt.Sprint("pol_", i), OrgID: "org_1", Version: 1, Document: []byte(d)}
		}
		bundle, err := policy.Compile(context.Background(), ps)
		if err != nil {
			b.Fatal(err)
		}
		return bundle
	}
	calendar, err := budget.NewCalendar("UTC", "UTC", time.Time{})
	if err != nil {
		b.Fatal(err)
	}
	limited := `{"name": "all", "effect": "allow", "conditions": {}, "limits": {"rpm": 1000000, "monthly_usd_cap": 1000000}}`
	deny := `{"name": "no-big", "effect": "deny", "conditions": {"request.model": "big"}}`
	parse := func(b *testing.B, i int) audit.Decided {
		e, err := audit.Parse(entries[i%len(entries)])
		if err != nil {
			b.Fatal(err)
		}
		return e.(audit.Decided)
	}
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			parse(b, i)
		}
	})
	for name, replay := range map[string]*verdict.Replay{
		"deny": verdict.NewReplay(compile(deny), compile(), began, calendar, nil), "limits": verdict.NewReplay(compile(limited, deny), compile(limited), began, calendar, nil),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := replay.Next(context.Background(), parse(b, i)); !ok {
					b.Fatal("an entry is not evaluated")
				}
			}
		})
	}
}
