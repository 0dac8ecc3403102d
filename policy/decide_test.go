package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ai-identity/ai-identity/policy"
)

// request is one that the baseline allows.
func request() policy.Input {
	return policy.Input{
		Agent: policy.AgentAttrs{
			ID: "ag_1", Name: "bot", Team: "support", Environment: "prod", Tier: "gold", Status: "active", AllowedModels: []string{"small", "big-*"},
			Metadata: map[string]any{"region": "eu", "level": json.Number("3"), "share": 0.5, "pii": true},
		},
		Request: policy.RequestAttrs{
			Operation: "chat.completions", Scope: "chat:completions", Provider: "one", Model: "small", Mode: "gateway", Host: "gateway.test",
			Path: "/v1/chat/completions", InputTokensEstimate: 12, Bytes: 400, Time: time.Date(2026, 7, 1, 14, 30, 0, 0, time.UTC), // a Wednesday
		},
		Caller: policy.CallerAttrs{KeyID: "key_1", KeyScopes: []string{"chat:completions", "models"}, KeyStatus: "active", IP: "203.0.113.9", UserAgent: "curl/8"},
		Org:    policy.OrgAttrs{ID: "org_1", Tier: "pro"},
	}
}

// bundle compiles documents. Their ids are pol_a, pol_b, … in the order given.
func bundle(t testing.TB, documents ...string) *policy.Bundle {
	t.Helper()
	ps := make([]policy.Policy, len(documents))
	for i, d := range documents {
		ps[i] = policy.Policy{ID: "pol_" + string(rune('a'+i)), OrgID: "org_1", Version: 1, Document: []byte(d)}
	}
	b, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// table is a Bundle and a request that each case changes.
type table struct {
	t *testing.T
	b *policy.Bundle
}

type change func(*policy.Input)

func (x table) decide(changes []change) policy.Decision {
	in := request()
	for _, c := range changes {
		c(&in)
	}
	return x.b.Decide(context.Background(), in)
}

func (x table) allow(changes ...change) policy.Decision {
	x.t.Helper()
	d := x.decide(changes)
	if d.Effect != policy.Allow || len(d.Reasons) != 0 || d.Err != nil {
		x.t.Errorf("denied: %+v", d)
	}
	return d
}

// deny requires the code as the first reason.
func (x table) deny(code string, changes ...change) policy.Decision {
	x.t.Helper()
	d := x.decide(changes)
	switch {
	case d.Effect != policy.Deny:
		x.t.Errorf("allowed, want %s", code)
	case len(d.Reasons) == 0 || d.Reasons[0].Code != code || d.Reasons[0].Message == "":
		x.t.Errorf("reasons %+v, want %s first", d.Reasons, code)
	case len(d.Limits) != 0:
		x.t.Errorf("limits of a denied request: %+v", d.Limits)
	}
	return d
}

func team(s string) change      { return func(in *policy.Input) { in.Agent.Team = s } }
func model(s string) change     { return func(in *policy.Input) { in.Request.Model = s } }
func tools(s ...string) change  { return func(in *policy.Input) { in.Request.Tools = s } }
func scopes(s ...string) change { return func(in *policy.Input) { in.Caller.KeyScopes = s } }
func hour(h int) change {
	return func(in *policy.Input) { in.Request.Time = time.Date(2026, 7, 1, h, 59, 59, 0, time.UTC) }
}
func day(d int) change {
	return func(in *policy.Input) { in.Request.Time = time.Date(2026, 7, d, 0, 0, 0, 0, time.UTC) }
}
func meta(k string, v any) change {
	return func(in *policy.Input) { in.Agent.Metadata = map[string]any{k: v} }
}
func operation(s, scope string) change {
	return func(in *policy.Input) { in.Request.Operation, in.Request.Scope = s, scope }
}

func TestBaseline(t *testing.T) {
	x := table{t, bundle(t)}
	x.allow()

	// Models.
	x.allow(model("big-7"))
	x.allow(model("big-"))
	x.deny("model_not_allowed", model("big"))
	x.deny("model_not_allowed", model("Small"))
	x.deny("model_not_allowed", model("secret"))
	x.deny("model_not_allowed", model(""))
	x.deny("model_not_allowed", func(in *policy.Input) { in.Agent.AllowedModels = nil })
	agentModels := func(s ...string) change { return func(in *policy.Input) { in.Agent.AllowedModels = s } }
	x.allow(agentModels("*"), model("anything/at.all:7"))
	x.deny("model_not_allowed", agentModels("*"), model(""))
	x.deny("model_not_allowed", agentModels("sm?ll", "[s]mall", "{small,x}", `\small`, "SMALL", "small ", ""))
	keyModels := func(s ...string) change { return func(in *policy.Input) { in.Caller.KeyAllowedModels = s } }
	x.allow(keyModels("small"))
	x.allow(keyModels("s*l", "other"))
	x.deny("model_not_allowed", keyModels("other"))
	x.deny("model_not_allowed", keyModels("secret"), model("secret")) // a key does not widen its agent
	x.deny("model_not_allowed", keyModels(""))

	// Scopes.
	x.allow(scopes("*"))
	x.deny("scope_missing", scopes("embeddings"))
	x.deny("scope_missing", scopes())
	x.deny("scope_missing", scopes("chat"))
	x.deny("scope_missing", scopes("*"), operation("chat.completions", "")) // no scope includes an unknown operation
	x.deny("scope_missing", operation("embeddings", "embeddings"))

	// The lists of models.
	x.allow(operation("models.list", "models"), model(""))
	x.allow(operation("models.get", "models"), model("secret")) // the response is 404 later
	x.deny("scope_missing", operation("models.list", "models"), scopes("chat:completions"))

	// State.
	status := func(s string) change { return func(in *policy.Input) { in.Agent.Status = s } }
	x.deny("agent_suspended", status("suspended"))
	x.deny("agent_inactive", status(""))
	x.deny("agent_inactive", status("Active"))
	keyStatus := func(s string) change { return func(in *policy.Input) { in.Caller.KeyStatus = s } }
	x.deny("key_revoked", keyStatus("revoked"))
	x.deny("key_inactive", keyStatus(""))
	expires := func(d time.Duration) change {
		return func(in *policy.Input) { in.Caller.KeyExpiresAt = in.Request.Time.Add(d) }
	}
	x.allow(expires(1))
	x.deny("key_expired", expires(0))
	x.deny("key_expired", expires(-1))
	x.allow(func(in *policy.Input) {
		// The same instants in another zone are the same.
		in.Caller.KeyExpiresAt = in.Request.Time.Add(time.Second).In(time.FixedZone("west", -8*3600))
		in.Request.Time = in.Request.Time.In(time.FixedZone("east", 8*3600))
	})
	x.allow(func(in *policy.Input) { in.Caller.KeyExpiresAt = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC) })
	x.deny("key_expired", func(in *policy.Input) { in.Request.Time = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC) })
	x.deny("key_expired", func(in *policy.Input) { in.Request.Time = time.Time{} }) // an unknown time may be after the expiry

	x.deny("agent_inactive", func(in *policy.Input) { *in = policy.Input{} })

	// Reasons are in this order: the agent, the key, the request.
	d := x.deny("agent_suspended", status("suspended"), keyStatus("revoked"), expires(0), scopes(), model("secret"), keyModels("other"))
	var codes []string
	for _, r := range d.Reasons {
		codes = append(codes, r.Code)
	}
	if want := []string{"agent_suspended", "key_revoked", "key_expired", "scope_missing", "model_not_allowed", "model_not_allowed"}; !slices.Equal(codes, want) {
		t.Errorf("reasons %q, want %q", codes, want)
	}
}

func TestBaselineBindsWhatPoliciesAllow(t *testing.T) {
	x := table{t, bundle(t,
		`{"name": "all", "effect": "allow", "conditions": {}}`,
		`{"name": "named", "effect": "allow", "conditions": {"request.model": "secret", "caller.key_scopes": "chat:completions"}}`)}
	x.allow()
	x.deny("model_not_allowed", model("secret"))
	x.deny("scope_missing", scopes("embeddings"))
	x.deny("agent_suspended", func(in *policy.Input) { in.Agent.Status = "suspended" })
	x.deny("key_expired", func(in *policy.Input) { in.Caller.KeyExpiresAt = in.Request.Time })
}

func TestDenyWins(t *testing.T) {
	x := table{t, bundle(t,
		`{"name": "everything", "effect": "allow", "conditions": {}}`,
		`{"name": "no-small", "effect": "deny", "conditions": {"agent.environment": "prod", "request.model": "small"}}`,
		`{"name": "no-support \"at night\"", "effect": "deny", "conditions": {"agent.team": "support", "request.hour_utc": {"between": [0, 5]}}}`)}
	d := x.deny("policy_denied")
	want := []policy.Reason{{Code: "policy_denied", Message: `The policy "no-small" denies this request.`, PolicyID: "pol_b"}}
	if diff := cmp.Diff(want, d.Reasons); diff != "" {
		t.Error(diff)
	}
	if want := []string{"pol_b"}; !slices.Equal(d.PolicyIDs, want) {
		t.Errorf("policies %q, want %q", d.PolicyIDs, want)
	}
	x.allow(model("big-1"))
	x.allow(func(in *policy.Input) { in.Agent.Environment = "dev" })
	x.allow(func(in *policy.Input) { in.Agent.Environment = "" })

	// All policies that deny are reported, in the order of ids.
	d = x.deny("policy_denied", hour(3))
	if want := []string{"pol_b", "pol_c"}; !slices.Equal(d.PolicyIDs, want) || len(d.Reasons) != 2 || d.Reasons[1].Message != `The policy "no-support \"at night\"" denies this request.` {
		t.Errorf("%+v", d)
	}
	// The baseline's reasons come first.
	x.deny("scope_missing", scopes())
}

func TestGoverned(t *testing.T) {
	x := table{t, bundle(t,
		`{"name": "support", "effect": "allow", "conditions": {"agent.team": "support", "request.model": "small"}}`,
		`{"name": "support-day", "effect": "allow", "conditions": {"agent.team": "support", "request.model": "big-1", "request.hour_utc": {"between": [8, 17]}}}`,
		`{"name": "research", "effect": "allow", "conditions": {"agent.team": {"in": ["research", "lab"]}, "request.model": "big-9"}}`)}
	if d := x.allow(); !slices.Equal(d.PolicyIDs, []string{"pol_a"}) {
		t.Errorf("policies %q", d.PolicyIDs)
	}
	x.allow(model("big-1"))
	x.deny("not_permitted", model("big-1"), hour(18))
	d := x.deny("not_permitted", model("big-2"))
	if !slices.Equal(d.PolicyIDs, []string{"pol_a", "pol_b"}) {
		t.Errorf("the policies that govern: %q", d.PolicyIDs)
	}
	// A policy for others does not permit, and does not govern.
	x.deny("not_permitted", model("big-9"))
	x.allow(team("lab"), model("big-9"))
	x.deny("not_permitted", team("lab"))
	// No policy governs the agent, so the baseline decides.
	x.allow(team("sales"))
	x.allow(team("sales"), model("big-9"))
	x.allow(team(""), model("big-9"))
	x.deny("model_not_allowed", team("sales"), model("secret"))
	// Every rejected model and tool is reported, in order.
	if d := x.deny("model_not_allowed", model("secret")); len(d.Reasons) != 2 || d.Reasons[1].Code != "not_permitted" {
		t.Errorf("%+v", d.Reasons)
	}
}

// An allow policy that selects no agent governs every agent.
func TestGovernsAll(t *testing.T) {
	x := table{t, bundle(t, `{"name": "small-only", "effect": "allow", "conditions": {"request.model": "small"}}`)}
	x.allow()
	x.allow(team("any"))
	x.deny("not_permitted", model("big-1"))
}

// A policy can govern a key and not its agent.
func TestGovernedByCaller(t *testing.T) {
	x := table{t, bundle(t, `{"name": "ci-key", "effect": "allow", "conditions": {"caller.key_id": "key_ci", "request.model": "small"}}`)}
	ci := func(in *policy.Input) { in.Caller.KeyID = "key_ci" }
	x.allow(ci)
	x.deny("not_permitted", ci, model("big-1"))
	x.allow(model("big-1"))

	x = table{t, bundle(t, `{"name": "embedders", "effect": "allow", "conditions": {"caller.key_scopes": "embeddings", "request.model": "small"}}`)}
	x.deny("not_permitted", scopes("chat:completions", "embeddings"), model("big-1"))
	x.deny("not_permitted", scopes("*"), model("big-1")) // "*" is every scope
	x.allow(scopes("*"))
	x.allow(scopes("chat:completions"), model("big-1"))
}

// An address and a user agent are attributes of the request. A client that changes them must
// not avoid a policy.
func TestClientCannotLeaveGovernance(t *testing.T) {
	x := table{t, bundle(t, `{"name": "from-the-office", "effect": "allow", "conditions": {"caller.ip": "203.0.113.9", "caller.user_agent": "curl/8"}}`)}
	x.allow()
	x.deny("not_permitted", func(in *policy.Input) { in.Caller.IP = "198.51.100.7" })
	x.deny("not_permitted", func(in *policy.Input) { in.Caller.UserAgent = "evil/1" })
	x.deny("not_permitted", func(in *policy.Input) { in.Caller.UserAgent = "" })
}

// The hosts that a provider would fetch or call are a set, as tools are.
func TestURLHosts(t *testing.T) {
	both := table{t, bundle(t, `{"name": "tools-and-hosts", "effect": "deny", "conditions": {"request.tool": "fetch", "request.url_host": "img.example"}}`)}
	hosts := func(s ...string) change { return func(in *policy.Input) { in.Request.URLHosts = s } }
	both.allow(tools("fetch"))
	both.allow(hosts("img.example"))
	both.deny("policy_denied", tools("fetch"), hosts("img.example"))
	x := table{t, bundle(t, `{"name": "our-images", "effect": "allow", "conditions": {"agent.team": "support", "request.url_host": {"in": ["img.example", "mcp.example"]}}}`)}
	x.allow()
	x.allow(hosts("img.example"))
	x.allow(hosts("img.example", "mcp.example"))
	x.deny("not_permitted", hosts("img.example", "169.254.169.254"))
	x.deny("not_permitted", hosts("unknown"))

	x = table{t, bundle(t, `{"name": "no-metadata", "effect": "deny", "conditions": {"request.url_host": "169.254.169.254"}}`)}
	x.allow()
	x.allow(hosts("img.example"))
	x.deny("policy_denied", hosts("img.example", "169.254.169.254"))
	x.deny("policy_denied", hosts("unknown"))
}

func TestTools(t *testing.T) {
	x := table{t, bundle(t, `{"name": "read-only", "effect": "allow", "conditions": {"agent.team": "support", "request.tool": {"in": ["crm.read", "kb.search"]}}}`)}
	x.allow()
	x.allow(tools("crm.read"))
	x.allow(tools("crm.read", "kb.search", "crm.read"))
	x.deny("not_permitted", tools("crm.write"))
	x.deny("not_permitted", tools("crm.read", "crm.write"))
	x.deny("not_permitted", tools("crm.read", ""))

	// Two policies do not permit together: one policy must permit the whole request.
	x = table{t, bundle(t,
		`{"name": "a", "effect": "allow", "conditions": {"request.tool": "a"}}`,
		`{"name": "b", "effect": "allow", "conditions": {"request.tool": "b"}}`)}
	x.allow(tools("a"))
	x.deny("not_permitted", tools("a", "b"))

	x = table{t, bundle(t,
		`{"name": "no-refunds", "effect": "deny", "conditions": {"request.tool": "billing.refund"}}`,
		`{"name": "no-mail", "effect": "deny", "conditions": {"request.tool": {"in": ["mail.send", "mail.draft"]}}}`)}
	x.allow()
	x.allow(tools("crm.read"))
	x.deny("policy_denied", tools("crm.read", "billing.refund"))
	x.deny("policy_denied", tools("mail.draft"))
	x.allow(tools("billing.refunds"))
}

func TestConditions(t *testing.T) {
	// Each condition is alone in a deny policy, and requests that match are denied.
	only := func(condition string) table {
		return table{t, bundle(t, `{"name": "it", "effect": "deny", "conditions": {`+condition+`}}`)}
	}
	denies := func(condition string, changes ...change) {
		t.Helper()
		only(condition).deny("policy_denied", changes...)
	}
	allows := func(condition string, changes ...change) {
		t.Helper()
		only(condition).allow(changes...)
	}

	// Every attribute of text.
	for attribute, value := range map[string]string{
		"agent.id": "ag_1", "agent.name": "bot", "agent.team": "support", "agent.environment": "prod", "agent.tier": "gold", "agent.status": "active",
		"agent.metadata.region": "eu", "request.operation": "chat.completions", "request.provider": "one", "request.model": "small",
		"request.mode": "gateway", "request.host": "gateway.test", "request.path": "/v1/chat/completions", "caller.key_id": "key_1",
		"caller.key_scopes": "models", "caller.ip": "203.0.113.9", "caller.user_agent": "curl/8", "org.tier": "pro",
	} {
		other := "other"
		switch attribute {
		case "agent.status":
			other = "suspended"
		case "request.mode":
			other = "egress"
		case "caller.ip":
			other = "::1"
		}
		denies(fmt.Sprintf(`%q: %q`, attribute, value))
		allows(fmt.Sprintf(`%q: %q`, attribute, other))
		denies(fmt.Sprintf(`%q: {"in": [%q, %q]}`, attribute, other, value))
		allows(fmt.Sprintf(`%q: {"in": [%q]}`, attribute, other))
	}

	// Numbers.
	denies(`"request.bytes": 400`)
	denies(`"request.bytes": 4e2`)
	denies(`"request.bytes": {"in": [1, 400.0]}`)
	allows(`"request.bytes": 401`)
	denies(`"request.input_tokens_estimate": {"between": [12, 12]}`)
	allows(`"request.input_tokens_estimate": {"between": [13, 99]}`)
	allows(`"request.max_tokens": {"between": [0, 9007199254740991]}`) // the request sets none: missing
	denies(`"request.max_tokens": {"between": [1001, 9007199254740991]}`, func(in *policy.Input) { in.Request.MaxTokens = 1001 })
	denies(`"request.max_tokens": {"between": [1001, 9007199254740991]}`, func(in *policy.Input) { in.Request.MaxTokens = math.MaxInt64 })

	// Both ends are included, the last hour until its end.
	for h, in := range map[int]bool{0: false, 12: false, 13: true, 20: true, 23: true} {
		if in {
			denies(`"request.hour_utc": {"between": [13, 23]}`, hour(h))
		} else {
			allows(`"request.hour_utc": {"between": [13, 23]}`, hour(h))
		}
	}
	denies(`"request.hour_utc": {"in": [22, 23, 0, 1]}`, hour(0))
	denies(`"request.weekday_utc": 3`)                           // Wednesday, 1 July 2026
	denies(`"request.weekday_utc": {"between": [6, 7]}`, day(4)) // Saturday
	denies(`"request.weekday_utc": 7`, day(5))                   // Sunday
	allows(`"request.weekday_utc": {"between": [6, 7]}`, day(6)) // Monday
	denies(`"request.hour_utc": 23`, func(in *policy.Input) {    // in UTC, in every time zone
		in.Request.Time = time.Date(2026, 7, 2, 1, 0, 0, 0, time.FixedZone("east", 2*3600))
	})

	// Booleans are never missing.
	denies(`"request.stream": false`)
	allows(`"request.stream": true`)
	denies(`"request.stream": true`, func(in *policy.Input) { in.Request.Stream = true })

	// Metadata: the type must match as well.
	denies(`"agent.metadata.level": 3`)
	denies(`"agent.metadata.level": 3.0`)
	allows(`"agent.metadata.level": "3"`)
	allows(`"agent.metadata.region": true`)
	denies(`"agent.metadata.pii": true`)
	allows(`"agent.metadata.pii": false`)
	allows(`"agent.metadata.pii": 1`)
	denies(`"agent.metadata.share": 0.5`)
	denies(`"agent.metadata.share": {"between": [0.25, 0.75]}`)
	denies(`"agent.metadata.level": {"in": ["a", 3, true]}`)
	allows(`"agent.metadata.region": {"between": [-1000, 1000]}`) // text is not a number
	allows(`"agent.metadata.pii": {"between": [-1000, 1000]}`)
	allows(`"agent.metadata.nothing": {"between": [-1000, 1000]}`)
	allows(`"agent.metadata.nothing": "x"`)
	denies(`"agent.metadata.a.b": "x"`, meta("a.b", "x"))
	allows(`"agent.metadata.a.b": "x"`, meta("a", map[string]any{"b": "x"}))
	denies(`"agent.metadata.a\"]\n": "x"`, meta("a\"]\n", "x"))
	for _, v := range []any{7, int64(7), 7.0, json.Number("7"), json.Number("7.0"), json.Number("70e-1")} {
		denies(`"agent.metadata.n": 7`, meta("n", v))
		denies(`"agent.metadata.n": {"between": [7, 7]}`, meta("n", v))
	}
	for _, v := range []any{nil, "", []string{"7"}, math.NaN(), math.Inf(1), json.Number("Inf"), json.Number("NaN"), json.Number(""), json.Number("1e999"), json.Number("9007199254740993"), uint(7)} {
		allows(`"agent.metadata.n": {"between": [-9007199254740991, 9007199254740991]}`, meta("n", v))
	}

	// All conditions of a policy must hold.
	denies(`"agent.team": "support", "request.model": "small", "request.stream": false`)
	allows(`"agent.team": "support", "request.model": "small", "request.stream": true`)
	denies(``)

	// Text is compared byte by byte.
	for _, s := range []string{`"`, `\`, "a\nb", "`", "x\" == \"x", "\u0000", "\ufeff", "é", "e\u0301", "\u2028", "😀", "*", "input.agent.team", `","b`, "${x}", "{x}", "%s"} {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		denies(`"agent.team": `+string(b), team(s))
		allows(`"agent.team": `+string(b), team(s+"x"))
		denies(`"agent.team": {"in": ["z", `+string(b)+`]}`, team(s))
	}
	allows(`"agent.team": "é"`, team("e\u0301"))
	allows(`"agent.team": "x"`, team("\xff"))
}

func TestLimits(t *testing.T) {
	x := table{t, bundle(t,
		`{"name": "support", "effect": "allow", "conditions": {"agent.team": "support"}, "limits": {"rpm": 60}}`,
		`{"name": "small", "effect": "allow", "conditions": {"request.model": "small"}, "limits": {"rpm": 10}}`,
		`{"name": "unlimited", "effect": "allow", "conditions": {"agent.team": "support"}, "limits": {}}`,
		`{"name": "lab", "effect": "allow", "conditions": {"agent.team": "lab"}, "limits": {"rpm": 5}}`)}
	rate := func(n int64) change { return func(in *policy.Input) { in.Caller.KeyRateLimit = n } }
	want := []policy.Limit{
		{Source: "key", Name: "rpm", Value: 7, Per: "key", Subject: "key_1", Key: "key:key_1"},
		{Source: "pol_a", Name: "rpm", Value: 60, Per: "agent", Subject: "ag_1", Key: "policy:pol_a:rpm:agent:ag_1"},
		{Source: "pol_b", Name: "rpm", Value: 10, Per: "agent", Subject: "ag_1", Key: "policy:pol_b:rpm:agent:ag_1"},
	}
	d := x.allow(rate(7))
	if diff := cmp.Diff(want, d.Limits); diff != "" {
		t.Error(diff)
	}
	if want := []string{"pol_a", "pol_b", "pol_c"}; !slices.Equal(d.PolicyIDs, want) {
		t.Errorf("policies %q, want %q", d.PolicyIDs, want)
	}
	if diff := cmp.Diff(want[1:2], x.allow(model("big-1")).Limits); diff != "" {
		t.Error(diff)
	}
	if d := (table{t, bundle(t)}).allow(); len(d.Limits) != 0 || len(d.PolicyIDs) != 0 {
		t.Errorf("%+v", d)
	}
	// A negative limit is passed on, and permits no request.
	if d := x.allow(rate(-1)); d.Limits[0].Value != -1 {
		t.Errorf("%+v", d.Limits)
	}
}

func TestNoDecisionDenies(t *testing.T) {
	check := func(b *policy.Bundle, ctx context.Context, in policy.Input, code string) {
		t.Helper()
		d := b.Decide(ctx, in)
		if d.Effect != policy.Deny || len(d.Reasons) != 1 || d.Reasons[0].Code != code || d.Err == nil {
			t.Errorf("%+v, want %s", d, code)
		}
	}
	check(nil, context.Background(), request(), "policy_error")
	check(new(policy.Bundle), context.Background(), request(), "policy_error")
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	check(bundle(t), cancelled, request(), "policy_timeout")
	other := request()
	other.Org.ID = "org_2"
	check(bundle(t, `{"name": "x", "effect": "allow", "conditions": {}}`), context.Background(), other, "policy_error")
	nobody := request()
	nobody.Agent.ID = ""
	check(bundle(t), context.Background(), nobody, "policy_error")
	nobody = request()
	nobody.Caller.KeyID = ""
	check(bundle(t), context.Background(), nobody, "policy_error")

	if d := (policy.Decision{}); d.Effect != policy.Deny || d.Effect.String() != "deny" || policy.Effect(7).String() != "deny" {
		t.Error("the zero value must deny")
	}
}

func TestReasonsAndPoliciesAreBounded(t *testing.T) {
	ps := set(100, func(i int) string { return fmt.Sprintf(`{"name": "p%d", "effect": "deny", "conditions": {}}`, i) })
	b, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	d := b.Decide(context.Background(), request())
	if len(d.Reasons) != 16 || len(d.PolicyIDs) != 32 || d.Reasons[0].PolicyID != "pol_00000" || d.PolicyIDs[31] != "pol_00031" {
		t.Errorf("%d reasons, %d policies", len(d.Reasons), len(d.PolicyIDs))
	}
}

func TestVersion(t *testing.T) {
	ps := set(3, func(i int) string { return fmt.Sprintf(`{"name": "p%d", "effect": "deny", "conditions": {}}`, i) })
	version := func(ps ...policy.Policy) string {
		t.Helper()
		b, err := policy.Compile(context.Background(), ps)
		if err != nil {
			t.Fatal(err)
		}
		if d := b.Decide(context.Background(), request()); d.PolicyVersion != b.Version() {
			t.Errorf("decided by %s, want %s", d.PolicyVersion, b.Version())
		}
		return b.Version()
	}
	v := version(ps...)
	if got := version(ps[2], ps[0], ps[1]); got != v {
		t.Error("order matters")
	}
	if !strings.HasPrefix(v, "sha256:") || len(v) != len("sha256:")+64 {
		t.Errorf("version %q", v)
	}
	seen := map[string]bool{v: true}
	differs := func(what string, got string) {
		t.Helper()
		if seen[got] {
			t.Errorf("%s changes nothing", what)
		}
		seen[got] = true
	}
	changed := slices.Clone(ps)
	changed[1].Version++
	differs("version", version(changed...))
	changed = slices.Clone(ps)
	changed[1].Document = append([]byte(" "), changed[1].Document...)
	differs("document", version(changed...))
	changed = slices.Clone(ps)
	changed[1].ID = "pol_x"
	differs("id", version(changed...))
	differs("one fewer", version(ps[:2]...))
	differs("none", version())
}

// A set with one policy that this build does not support is rejected as a whole. The
// caller keeps its Bundle.
func TestCompileTakesAllOrNothing(t *testing.T) {
	good := policy.Policy{ID: "pol_1", OrgID: "org_1", Version: 1, Document: []byte(`{"name": "x", "effect": "allow", "conditions": {}}`)}
	newer := policy.Policy{ID: "pol_2", OrgID: "org_1", Version: 1, Document: []byte(`{"name": "y", "effect": "allow", "conditions": {"request.model": {"like": "a*"}}}`)}
	b, err := policy.Compile(context.Background(), []policy.Policy{good, newer})
	var invalid *policy.Invalid
	if b != nil || !errors.As(err, &invalid) || !strings.Contains(err.Error(), "pol_2") || invalid.Field != "conditions.request.model.like" {
		t.Errorf("%v, %v", b, err)
	}
	with := func(change func(*policy.Policy)) []policy.Policy {
		p := good
		p.ID = "pol_3"
		change(&p)
		return []policy.Policy{good, p}
	}
	for name, ps := range map[string][]policy.Policy{
		"id twice":         with(func(p *policy.Policy) { p.ID = "pol_1" }),
		"no id":            with(func(p *policy.Policy) { p.ID = "" }),
		"id of other form": with(func(p *policy.Policy) { p.ID = "pol_3\"\n}" }),
		"id with newline":  with(func(p *policy.Policy) { p.ID = "pol_3\n" }),
		"another org":      with(func(p *policy.Policy) { p.OrgID = "org_2" }),
		"no org":           with(func(p *policy.Policy) { p.OrgID = "" }),
		"too many":         set(policy.MaxPolicies+1, func(int) string { return string(good.Document) }),
	} {
		if b, err := policy.Compile(context.Background(), ps); b != nil || err == nil {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := policy.Compile(cancelled, []policy.Policy{good}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Compile keeps no reference to its argument.
func TestCompileCopies(t *testing.T) {
	doc := []byte(`{"name": "x", "effect": "deny", "conditions": {"request.model": "small"}}`)
	ps := []policy.Policy{{ID: "pol_2", OrgID: "org_1", Document: doc}, {ID: "pol_1", OrgID: "org_1", Document: []byte(`{"name": "y", "effect": "allow", "conditions": {}}`)}}
	b, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	before := b.Decide(context.Background(), request())
	for i := range doc {
		doc[i] = 'x'
	}
	if ps[0].ID != "pol_2" {
		t.Error("the caller's slice was sorted")
	}
	if diff := cmp.Diff(before, b.Decide(context.Background(), request()), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// TestDocumentedExample is the example of docs/policy.md.
func TestDocumentedExample(t *testing.T) {
	x := table{t, bundle(t,
		`{"name": "A", "effect": "allow", "conditions": {"agent.team": "support", "request.model": "small"}, "limits": {"rpm": 60}}`,
		`{"name": "B", "effect": "allow", "conditions": {"agent.team": "support", "request.model": "big-1", "request.hour_utc": {"between": [8, 17]}}}`,
		`{"name": "C", "effect": "deny", "conditions": {"agent.environment": "prod", "request.tool": "billing.refund"}}`)}
	dev := func(in *policy.Input) { in.Agent.Environment = "dev" }
	limited := func(d policy.Decision) {
		t.Helper()
		if len(d.Limits) != 1 || d.Limits[0].Value != 60 {
			t.Errorf("limits %+v", d.Limits)
		}
	}
	limited(x.allow())
	x.allow(model("big-1"), hour(9))
	x.deny("not_permitted", model("big-1"), hour(18))
	x.deny("not_permitted", model("big-2"))
	if d := x.deny("policy_denied", tools("billing.refund")); d.Reasons[0].PolicyID != "pol_c" {
		t.Errorf("%+v", d.Reasons)
	}
	limited(x.allow(dev, tools("billing.refund")))
	x.allow(team("research"), model("big-2"))
	x.deny("model_not_allowed", team("research"), model("secret-model"))
}
