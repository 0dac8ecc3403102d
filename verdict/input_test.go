package verdict_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/verdict"
)

// readBack is the entry of a decision as the audit log gives it back.
func readBack(t interface{ Fatal(...any) }, w *world, v verdict.Verdict) audit.Decided {
	d := v.Decided(&w.org, w.caller, &w.request)
	e, err := audit.Parse(audit.Stamp(d, w.org.ID, "w_1", noon).Encode())
	if err != nil {
		t.Fatal(err)
	}
	return e.(audit.Decided)
}

// What is recorded and read back decides alike, whatever policies read.
func TestRecordedInputDecidesAlike(t *testing.T) {
	var conditions []string
	for _, c := range []string{
		`"agent.team": "support"`, `"agent.environment": "prod"`, `"agent.tier": "gold"`, `"agent.name": "b\u00f6t"`, `"agent.id": "ag_1"`,
		`"agent.metadata.level": 3`, `"agent.metadata.level": {"between": [2.5, 1e2]}`, `"agent.metadata.pii": true`, `"agent.metadata.region": "e\u0301u"`,
		`"request.operation": "chat.completions"`, `"request.model": "small"`, `"request.provider": "one"`, `"request.mode": "gateway"`,
		`"request.host": "gateway.test"`, `"request.path": "/v1/chat/completions"`, `"request.stream": true`, `"request.tool": {"in": ["shell", "search"]}`,
		`"request.url_host": "files.example"`, `"request.max_tokens": {"between": [1, 100]}`, `"request.bytes": {"between": [0, 150]}`,
		`"request.input_tokens_estimate": {"between": [0, 40]}`, `"request.hour_utc": {"between": [9, 12]}`, `"request.weekday_utc": {"in": [3, 4]}`,
		`"caller.key_id": "key_1"`, `"caller.key_scopes": "models"`, `"caller.ip": "203.0.113.9"`, `"caller.user_agent": "curl/8"`, `"org.tier": "pro"`, `"org.id": "org_1"`,
		`"request.session_id": "sess-1"`, `"request.session_id": {"exists": false}`, `"tool.family": "shell"`, `"not": {"tool.family": {"in": ["shell"]}}`,
		`"request.time": {"between": ["22:00", "06:00"], "zone": "Europe/Berlin", "weekdays": [1, 5]}`, `"agent.allowed_models": {"glob": "big-*"}`,
		`"any": [{"caller.ip": {"cidr": "203.0.113.0/24"}}, {"agent.team": {"ne": "support"}}]`, `"agent.metadata.region": {"prefix": ["e", "x"]}`,
	} {
		for _, effect := range []string{"allow", "deny"} {
			conditions = append(conditions, fmt.Sprintf(`{"name":"p","effect":%q,"conditions":{%s},"limits":{"rpm":3}}`, effect, c))
		}
	}
	for i, doc := range conditions {
		if strings.Contains(doc, `"deny"`) {
			conditions[i] = strings.Replace(doc, `,"limits":{"rpm":3}`, "", 1)
		}
	}
	base := newWorld(t)
	bundles := map[string]*policy.Bundle{}
	rapid.Check(t, func(t *rapid.T) {
		w := *base
		pick := func(name string, options ...string) string { return rapid.SampledFrom(options).Draw(t, name) }
		a, k, r := &w.caller.Agent, &w.caller.Key, &w.request
		a.Name = pick("name", "b\u00f6t", "bot", "bo\u0308t", "<&>\"\\")
		a.Team, a.Environment, a.Tier = pick("team", "support", "", "ops"), pick("environment", "prod", ""), pick("tier", "gold", "")
		a.Metadata = identity.Metadata{}
		for _, m := range []struct {
			key     string
			options []any
		}{
			{"level", []any{3, int64(3), 3.0, json.Number("3"), json.Number("3.00"), json.Number("30e-1"), json.Number("9007199254740993"), "3", 7.25}},
			{"pii", []any{true, false, "true"}}, {"region", []any{"e\u0301u", "\u00e9u", "eu", strings.Repeat("x", 900)}},
		} {
			if rapid.Bool().Draw(t, "has "+m.key) {
				a.Metadata[m.key] = rapid.SampledFrom(m.options).Draw(t, m.key)
			}
		}
		a.AllowedModels = strings.Fields(pick("models", "small", "*", "small big-* other", ""))
		k.AllowedModels = strings.Fields(pick("key's models", "", "small", "big-*"))
		k.Scopes = strings.Fields(pick("scopes", "chat:completions models", "*", "models", ""))
		k.RateLimit = rapid.SampledFrom([]int64{0, 5}).Draw(t, "rate")
		k.ExpiresAt = rapid.SampledFrom([]time.Time{{}, noon.Add(time.Nanosecond), noon.Add(time.Hour + time.Nanosecond)}).Draw(t, "expiry")
		w.org.Tier = pick("org's tier", "pro", "")
		r.Time = verdict.Instant(noon.Add(time.Duration(rapid.Int64Range(0, int64(7*24*time.Hour)).Draw(t, "time"))))
		r.UserAgent = pick("user agent", "curl/8", "", "x\ty", strings.Repeat("x", 300), "\xff")
		r.ClientIP = pick("address", "203.0.113.9", "2001:db8::1", "")
		r.Host = pick("host", "gateway.test", "other.test")
		r.Session = pick("session", "sess-1", "", "sess-2")
		r.HostVerified = pick("host_verified", "true", "") != ""
		if rapid.Bool().Draw(t, "encoded") {
			r.Encodings = []string{"identity"}
		}
		r.Body = []byte(fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":[%s]}]%s}`, pick("model", "small", "big-1"),
			pick("content", `{"type":"text","text":"hi"}`, `{"type":"image_url","image_url":{"url":"https://files.example/x.png"}}`),
			pick("more", "", `,"stream":true`, `,"max_tokens":50`, `,"tools":[{"type":"function","function":{"name":"shell"}}]`,
				`,"tools":[{"type":"function","function":{"name":"search"}},{"type":"function","function":{"name":"other"}}]`)))
		docs := rapid.SliceOfN(rapid.SampledFrom(conditions), 0, 3).Draw(t, "policies")
		key := strings.Join(docs, "\n")
		if bundles[key] == nil {
			ps := make([]policy.Policy, len(docs))
			for i, doc := range docs {
				ps[i] = policy.Policy{ID: "pol_" + string(rune('a'+i)), OrgID: "org_1", Version: 1, Document: []byte(doc)}
			}
			b, err := policy.Compile(context.Background(), ps)
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			bundles[key] = b
		}
		w.org.Policies = bundles[key]

		v := w.org.Judge(context.Background(), w.caller, w.request)
		d := readBack(t, &w, v)
		if !d.Time.Equal(r.Time) {
			t.Fatalf("the entry says %v, policy saw %v", d.Time, r.Time)
		}
		in, unknown, ok := verdict.InputOf(d)
		if asked := v.Decision.PolicyVersion != ""; ok != asked {
			t.Fatalf("can be evaluated again: %v, policy was asked: %v", ok, asked)
		}
		if !ok {
			return
		}
		if long := len(r.UserAgent) > 256 || r.UserAgent == "\xff"; long != slices.Contains(unknown, "caller.user_agent") {
			t.Fatalf("unknown is %q with the user agent %q", unknown, r.UserAgent)
		}
		if len(unknown) > 0 {
			return
		}
		want := v.Decision
		if want.Effect == policy.Deny && len(want.Limits) > 0 {
			t.Fatalf("limits of a denied request: %+v", want)
		}
		got := w.org.Policies.Decide(context.Background(), in)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("decided again (-then +now):\n%s\nentry %+v", diff, d)
		}
	})
}

// An entry of an earlier build, or of a request that policy did not evaluate, lacks
// attributes. They are not evaluated as if they were empty.
func TestInputOfIncomplete(t *testing.T) {
	w := newWorld(t)
	if _, _, ok := verdict.InputOf(audit.Decided{Effect: "allow", AgentID: "ag_1", KeyID: "key_1"}); ok {
		t.Error("an entry without an input version is evaluated")
	}
	v := w.deny(401, "key_revoked", func(w *world) { w.caller.Key.RevokedAt = noon })
	if _, _, ok := verdict.InputOf(readBack(t, w, v)); ok {
		t.Error("a request that policy was not asked about is evaluated")
	}
	secret, _, err := identity.Mint(identity.AgentKey, strings.NewReader(strings.Repeat("x", 100)))
	if err != nil {
		t.Fatal(err)
	}
	w.request.UserAgent = "agent " + secret
	d := readBack(t, w, w.allow())
	if _, unknown, ok := verdict.InputOf(d); !ok || !slices.Contains(unknown, "caller.user_agent") || strings.Contains(string(d.Encode()), secret) {
		t.Errorf("%v %q: %s", ok, unknown, d.Encode())
	}
}
