package policy_test

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

	"github.com/ai-identity/ai-identity/policy"
)

// ---- what the contract says, once more and without OPA ----

// oracle decides as docs/policy.md says, in the plainest Go.
func oracle(ps []policy.Policy, in policy.Input) (effect policy.Effect, codes, ids []string, limits []policy.Limit) {
	ps = slices.SortedFunc(slices.Values(ps), func(a, b policy.Policy) int { return strings.Compare(a.ID, b.ID) })
	codes = oracleBaseline(in)
	var denies, allows, governs []string
	if in.Caller.KeyRateLimit != 0 {
		limits = append(limits, policy.Limit{Source: "key", Name: "rpm", Value: in.Caller.KeyRateLimit, Key: "key:" + in.Caller.KeyID})
	}
	for _, p := range ps {
		var d struct {
			Effect     string
			Conditions map[string]any
			Limits     struct{ RPM int64 }
		}
		if err := json.Unmarshal(p.Document, &d); err != nil {
			panic(err)
		}
		matches, selects := true, true
		for name, c := range d.Conditions {
			if !oracleCondition(name, c, d.Effect, in) {
				matches = false
				if strings.HasPrefix(name, "agent.") || strings.HasPrefix(name, "caller.key_") {
					selects = false
				}
			}
		}
		switch {
		case d.Effect == "deny" && matches:
			denies = append(denies, p.ID)
			codes = append(codes, "policy_denied")
		case d.Effect == "allow":
			if selects {
				governs = append(governs, p.ID)
			}
			if matches {
				allows = append(allows, p.ID)
				if d.Limits.RPM != 0 {
					limits = append(limits, policy.Limit{Source: p.ID, Name: "rpm", Value: d.Limits.RPM, Key: "policy:" + p.ID + ":agent:" + in.Agent.ID})
				}
			}
		}
	}
	ids = denies
	if len(governs) > 0 && len(allows) == 0 {
		codes, ids = append(codes, "not_permitted"), append(ids, governs...)
	}
	if len(codes) > 0 {
		return policy.Deny, codes[:min(len(codes), 16)], ids[:min(len(ids), 32)], nil
	}
	return policy.Allow, nil, allows[:min(len(allows), 32)], limits
}

func oracleBaseline(in policy.Input) (codes []string) {
	refuse := func(code string, if_ bool) {
		if if_ {
			codes = append(codes, code)
		}
	}
	lists := in.Request.Operation == "models.list" || in.Request.Operation == "models.get"
	globbed := func(patterns []string) bool {
		return in.Request.Model != "" && slices.ContainsFunc(patterns, func(p string) bool { return oracleGlob(p, in.Request.Model) })
	}
	refuse("agent_suspended", in.Agent.Status == "suspended")
	refuse("agent_inactive", in.Agent.Status != "active" && in.Agent.Status != "suspended")
	refuse("key_revoked", in.Caller.KeyStatus == "revoked")
	refuse("key_inactive", in.Caller.KeyStatus != "active" && in.Caller.KeyStatus != "revoked")
	refuse("key_expired", in.Request.Time.IsZero() || !in.Caller.KeyExpiresAt.IsZero() && !in.Request.Time.Before(in.Caller.KeyExpiresAt))
	refuse("scope_missing", in.Request.Scope == "" || !slices.Contains(in.Caller.KeyScopes, in.Request.Scope) && !slices.Contains(in.Caller.KeyScopes, "*"))
	refuse("model_not_allowed", !lists && !globbed(in.Agent.AllowedModels))
	refuse("model_not_allowed", !lists && (in.Request.Model == "" || len(in.Caller.KeyAllowedModels) > 0 && !globbed(in.Caller.KeyAllowedModels)))
	return codes
}

func oracleGlob(p, s string) bool {
	if p == "*" {
		return true
	}
	return oracleGlobbed(p, s, p)
}

func oracleGlobbed(p, s, whole string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		one := s != "" && (!strings.ContainsAny(s[:1], ",:@|#*? \t\n") || s[0] != '*' && strings.Contains(whole, s[:1]))
		return oracleGlobbed(p[1:], s, whole) || one && oracleGlobbed(p, s[1:], whole)
	default:
		return s != "" && s[0] == p[0] && oracleGlobbed(p[1:], s[1:], whole)
	}
}

// oracleCondition says whether one condition is true.
func oracleCondition(name string, c any, effect string, in policy.Input) bool {
	one := func(v any) bool {
		switch c := c.(type) {
		case map[string]any:
			if list, ok := c["in"].([]any); ok {
				return slices.Contains(list, v)
			}
			ends := c["between"].([]any)
			n, ok := v.(float64)
			return ok && ends[0].(float64) <= n && n <= ends[1].(float64)
		default:
			return c == v
		}
	}
	switch name {
	case "request.tool":
		if effect == "deny" {
			return slices.ContainsFunc(slices.Concat(in.Request.Tools, in.Request.ToolFamilies), func(s string) bool { return one(s) })
		}
		return !slices.ContainsFunc(in.Request.Tools, func(s string) bool { return !one(s) })
	case "request.url_host":
		if effect == "deny" {
			return slices.ContainsFunc(in.Request.URLHosts, func(s string) bool { return s == "unknown" || one(s) })
		}
		return !slices.ContainsFunc(in.Request.URLHosts, func(s string) bool { return !one(s) })
	case "caller.key_scopes":
		return slices.ContainsFunc(in.Caller.KeyScopes, func(s string) bool { return s == "*" || one(s) })
	}
	v := oracleAttribute(name, in)
	return v != nil && v != "" && one(v)
}

func oracleAttribute(name string, in policy.Input) any {
	if key, ok := strings.CutPrefix(name, "agent.metadata."); ok {
		switch v := in.Agent.Metadata[key].(type) {
		case string, bool, float64:
			return v
		case json.Number:
			f, err := v.Float64()
			if err != nil {
				panic(err)
			}
			return f
		default:
			return nil
		}
	}
	number := func(n int64, missing bool) any {
		if missing {
			return nil
		}
		return float64(n)
	}
	t := in.Request.Time.UTC()
	switch name {
	case "agent.id":
		return in.Agent.ID
	case "agent.name":
		return in.Agent.Name
	case "agent.team":
		return in.Agent.Team
	case "agent.environment":
		return in.Agent.Environment
	case "agent.tier":
		return in.Agent.Tier
	case "agent.status":
		return in.Agent.Status
	case "request.operation":
		return in.Request.Operation
	case "request.provider":
		return in.Request.Provider
	case "request.model":
		return in.Request.Model
	case "request.mode":
		return in.Request.Mode
	case "request.host":
		return in.Request.Host
	case "request.path":
		return in.Request.Path
	case "request.stream":
		return in.Request.Stream
	case "request.max_tokens":
		return number(in.Request.MaxTokens, in.Request.MaxTokens == 0)
	case "request.input_tokens_estimate":
		return number(in.Request.InputTokensEstimate, false)
	case "request.bytes":
		return number(in.Request.Bytes, false)
	case "request.hour_utc":
		return number(int64(t.Hour()), t.IsZero())
	case "request.weekday_utc":
		return number([]int64{7, 1, 2, 3, 4, 5, 6}[t.Weekday()], t.IsZero())
	case "caller.key_id":
		return in.Caller.KeyID
	case "caller.ip":
		return in.Caller.IP
	case "caller.user_agent":
		return in.Caller.UserAgent
	case "org.tier":
		return in.Org.Tier
	}
	panic("no attribute " + name)
}

// ---- policies and requests, from few words, so that they meet often ----

var (
	wordGen  = rapid.SampledFrom([]string{"a", "b", "c", "*", "a*", "a:*", "a\"b", "é"})
	textAttr = []string{"agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier", "request.operation", "request.provider",
		"request.model", "request.host", "request.path", "caller.key_id", "caller.key_scopes", "caller.user_agent", "org.tier", "request.tool", "request.url_host"}
	numberAttr = []string{"request.max_tokens", "request.input_tokens_estimate", "request.bytes", "request.hour_utc", "request.weekday_utc"}
	metaAttr   = []string{"agent.metadata.k", "agent.metadata.k.l", "agent.metadata.\"]"}
	documents  = rapid.Custom(func(t *rapid.T) string {
		conditions := map[string]any{}
		for range rapid.IntRange(0, 3).Draw(t, "conditions") {
			name, literal := drawLiteral(t)
			switch rapid.IntRange(0, 3).Draw(t, "operator") {
			case 0, 1:
				conditions[name] = literal()
			case 2:
				if name == "request.stream" {
					conditions[name] = literal()
					break
				}
				list := []any{}
				for range rapid.IntRange(1, 3).Draw(t, "members") {
					list = append(list, literal())
				}
				conditions[name] = map[string]any{"in": list}
			case 3:
				name := rapid.SampledFrom(append(slices.Clone(numberAttr), metaAttr...)).Draw(t, "number")
				a, b := rapid.IntRange(1, 7).Draw(t, "low"), rapid.IntRange(1, 7).Draw(t, "high")
				conditions[name] = map[string]any{"between": []int{min(a, b), max(a, b)}}
			}
		}
		doc := map[string]any{"name": "n", "effect": rapid.SampledFrom([]string{"allow", "allow", "deny"}).Draw(t, "effect"), "conditions": conditions}
		if doc["effect"] == "allow" && rapid.Bool().Draw(t, "limited") {
			doc["limits"] = map[string]any{"rpm": rapid.IntRange(1, 9).Draw(t, "rpm")}
		}
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	})
)

func drawLiteral(t *rapid.T) (name string, literal func() any) {
	word := func() any { return wordGen.Draw(t, "word") }
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return rapid.SampledFrom(numberAttr).Draw(t, "number"), func() any { return rapid.IntRange(1, 7).Draw(t, "n") }
	case 1:
		return "request.stream", func() any { return rapid.Bool().Draw(t, "stream") }
	case 2:
		return rapid.SampledFrom(metaAttr).Draw(t, "metadata"), func() any { return metaGen.Draw(t, "value") }
	default:
		name := rapid.SampledFrom(textAttr).Draw(t, "text")
		if name == "request.url_host" {
			return name, func() any { return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "host") }
		}
		return name, word
	}
}

var metaGen = rapid.Custom(func(t *rapid.T) any {
	switch rapid.IntRange(0, 3).Draw(t, "type") {
	case 0:
		return wordGen.Draw(t, "word")
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return json.Number(rapid.SampledFrom([]string{"1", "2", "1.0", "2.5", "-0", "3e0"}).Draw(t, "number"))
	default:
		return rapid.SampledFrom([]float64{1, 2, 2.5, 0}).Draw(t, "float")
	}
})

var inputs = rapid.Custom(func(t *rapid.T) policy.Input {
	word := rapid.OneOf(wordGen, rapid.Just(""))
	words := rapid.SliceOfN(word, 0, 3)
	w := func(label string) string { return word.Draw(t, label) }
	mostly := func(label, usual string, others ...string) string {
		if rapid.IntRange(0, 9).Draw(t, label+"?") > 0 {
			return usual
		}
		return rapid.SampledFrom(others).Draw(t, label)
	}
	in := policy.Input{
		Agent: policy.AgentAttrs{ID: wordGen.Draw(t, "id"), Name: w("name"), Team: w("team"), Environment: w("environment"), Tier: w("tier"),
			Status: mostly("status", "active", "suspended", "", "x"), AllowedModels: append(words.Draw(t, "models"), mostly("models", "*", "a")),
			Metadata: rapid.MapOfN(rapid.SampledFrom([]string{"k", "k.l", "\"]"}), rapid.OneOf(metaGen, rapid.Just(any("")), rapid.Just(any(nil))), 0, 3).Draw(t, "metadata")},
		Request: policy.RequestAttrs{Operation: mostly("operation", "a", "models.list", "models.get", "b"), Scope: mostly("scope", "a", "", "b"),
			Provider: w("provider"), Model: mostly("model", "a", "", "b", "*", "a,b", "a:b"), Mode: "gateway", Host: w("host"), Path: w("path"), Stream: rapid.Bool().Draw(t, "stream"),
			MaxTokens: rapid.Int64Range(0, 7).Draw(t, "max"), InputTokensEstimate: rapid.Int64Range(0, 7).Draw(t, "estimate"), Bytes: rapid.Int64Range(0, 7).Draw(t, "bytes"),
			Tools: words.Draw(t, "tools"), ToolFamilies: words.Draw(t, "families"), URLHosts: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "unknown"}), 0, 3).Draw(t, "hosts"), Time: time.Date(2026, 7, rapid.IntRange(1, 7).Draw(t, "day"), rapid.IntRange(0, 7).Draw(t, "hour"), 0, 0, 0, time.UTC)},
		Caller: policy.CallerAttrs{KeyID: wordGen.Draw(t, "key"), KeyScopes: append(words.Draw(t, "scopes"), mostly("scope of key", "a", "c")),
			KeyStatus: mostly("key status", "active", "revoked", "", "x"), KeyRateLimit: rapid.Int64Range(0, 3).Draw(t, "rate"), UserAgent: w("agent")},
		Org: policy.OrgAttrs{ID: "org_1", Tier: w("org tier")},
	}
	if rapid.IntRange(0, 9).Draw(t, "expires?") == 0 {
		in.Caller.KeyExpiresAt = in.Request.Time.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "expires")))
	}
	if rapid.IntRange(0, 5).Draw(t, "key lists?") == 0 {
		in.Caller.KeyAllowedModels = words.Draw(t, "models of key")
	}
	return in
})

func draw(t *rapid.T) []policy.Policy {
	docs := rapid.SliceOfN(documents, 0, 8).Draw(t, "documents")
	return set(len(docs), func(i int) string { return docs[i] })
}

func compiled(t testing.TB, ps []policy.Policy) *policy.Bundle {
	t.Helper()
	b, err := policy.Compile(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// same holds a decision against the oracle's.
func same(ps []policy.Policy, in policy.Input, d policy.Decision) string {
	effect, codes, ids, limits := oracle(ps, in)
	var got []string
	for _, r := range d.Reasons {
		got = append(got, r.Code)
	}
	type said struct {
		Effect     policy.Effect
		Codes, IDs []string
		Limits     []policy.Limit
	}
	return cmp.Diff(said{effect, codes, ids, limits}, said{d.Effect, got, d.PolicyIDs, d.Limits}, cmpopts.EquateEmpty())
}

func TestDecisionsAreTheContracts(t *testing.T) {
	allowed, refused := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		ps := draw(rt)
		b, err := policy.Compile(context.Background(), ps)
		if err != nil {
			rt.Fatal(err)
		}
		for range 8 {
			in := inputs.Draw(rt, "input")
			d := b.Decide(context.Background(), in)
			if diff := same(ps, in, d); diff != "" {
				rt.Fatalf("(-contract +OPA):\n%s\n%s", diff, b.Rego())
			}
			if d.Effect == policy.Allow {
				allowed++
			} else {
				refused++
			}
		}
	})
	if allowed < 100 || refused < 100 {
		t.Errorf("%d allowed, %d refused: the requests drawn show too little", allowed, refused)
	}
}

func TestComposition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ps := draw(t)
		in := inputs.Draw(t, "input")
		decide := func(ps []policy.Policy) policy.Decision {
			b, err := policy.Compile(context.Background(), ps)
			if err != nil {
				t.Fatal(err)
			}
			return b.Decide(context.Background(), in)
		}
		before := decide(ps)

		// In whatever order they come.
		if diff := cmp.Diff(before, decide(rapid.Permutation(ps).Draw(t, "order"))); diff != "" {
			t.Fatalf("order matters:\n%s", diff)
		}
		// Another deny allows nothing.
		another := func(document string) []policy.Policy {
			return append(slices.Clone(ps), policy.Policy{ID: rapid.SampledFrom([]string{"pol_", "pol_z"}).Draw(t, "id"), OrgID: "org_1", Document: []byte(document)})
		}
		deny := rapid.Custom(func(t *rapid.T) string {
			return strings.Replace(strings.Replace(documents.Draw(t, "document"), `"effect":"allow"`, `"effect":"deny"`, 1), `"limits"`, `"_"`, 1)
		}).Filter(func(s string) bool { return policy.Check([]byte(s)) == nil }).Draw(t, "deny")
		if d := decide(another(deny)); before.Effect == policy.Deny && d.Effect == policy.Allow {
			t.Fatalf("a deny policy allows: %s", deny)
		}
		// A policy for other agents and callers changes nothing for this one.
		for _, condition := range []string{`"agent.id": "another"`, `"caller.key_id": "another"`, `"agent.metadata.none": true`} {
			for _, effect := range []string{"allow", "deny"} {
				doc := fmt.Sprintf(`{"name": "others", "effect": %q, "conditions": {%s}}`, effect, condition)
				if d := decide(another(doc)); cmp.Diff(before.Effect, d.Effect)+cmp.Diff(before.Reasons, d.Reasons)+cmp.Diff(before.Limits, d.Limits) != "" {
					t.Fatalf("%s\nwas %+v\nis  %+v", doc, before, d)
				}
			}
		}
		// No policy allows what the baseline refuses.
		if d := decide(another(`{"name": "all", "effect": "allow", "conditions": {}}`)); d.Effect == policy.Allow && len(oracleBaseline(in)) > 0 {
			t.Fatal("a policy allows what the baseline refuses")
		}
	})
}

// FuzzCheck: Check never panics, what it takes compiles, and what compiles decides
// as the contract says.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{
		`{"name": "x", "effect": "allow", "conditions": {}}`,
		`{"name": "x", "effect": "deny", "conditions": {"agent.team": "\" == \"x", "request.model": {"in": ["a", "b"]}}}`,
		`{"name": "x", "effect": "allow", "conditions": {"request.hour_utc": {"between": [13, 23]}, "request.tool": "a"}, "limits": {"rpm": 60}}`,
		`{"name": "x", "effect": "deny", "conditions": {"agent.metadata.k": {"in": [1, 2.5, true, "a"]}}}`,
		`{"name": "x", "effect": "allow", "conditions": {"caller.key_scopes": "*", "caller.ip": "::1"}}`,
		`{"name": "x", "effect": "allow", "conditions": {"agent.metadata.]": {"between": [-1e300, 0.1]}}}`,
	} {
		f.Add([]byte(s), "support", "small", 7.0)
	}
	f.Fuzz(func(t *testing.T, doc []byte, team, model string, n float64) {
		if policy.Check(doc) != nil {
			return
		}
		ps := []policy.Policy{{ID: "pol_1", OrgID: "org_1", Document: doc}}
		b := compiled(t, ps)
		in := request()
		in.Agent.Team, in.Request.Model, in.Request.Tools = team, model, []string{model}
		in.Agent.Metadata = map[string]any{"k": n, team: model}
		if n != n || n-n != 0 || n > 1<<52 || n < -1<<52 {
			delete(in.Agent.Metadata, "k") // the oracle is too plain for it
		}
		if diff := same(ps, in, b.Decide(context.Background(), in)); diff != "" {
			t.Errorf("%s (-contract +OPA):\n%s\n%s", doc, diff, b.Rego())
		}
	})
}
