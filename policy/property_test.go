package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/policy"
)

// ---- the contract, implemented a second time and without OPA ----

// subjectName is a subject as it stands in the name of a count: docs/policy.md.
func subjectName(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./"
	out := ""
	for _, b := range []byte(s) {
		if strings.IndexByte(plain, b) >= 0 {
			out += string(rune(b))
		} else {
			out += fmt.Sprintf("%%%02X", b)
		}
	}
	return out
}

// plainPolicy is a policy for the oracle.
type plainPolicy struct {
	ID         string `json:"-"`
	Effect     string
	State      string
	Conditions map[string]any
	Limits     struct{ RPM int64 }
}

// plain parses policies for the oracle, in the order of their ids. It is called once for many
// inputs, since parsing JSON took most of the property test's time.
func plain(ps []policy.Policy) []plainPolicy {
	ps = slices.SortedFunc(slices.Values(ps), func(a, b policy.Policy) int { return strings.Compare(a.ID, b.ID) })
	out := make([]plainPolicy, len(ps))
	for i, p := range ps {
		if err := json.Unmarshal(p.Document, &out[i]); err != nil {
			panic(err)
		}
		out[i].ID = p.ID
	}
	return out
}

// oracle decides as docs/policy.md describes, in simple Go.
func oracle(ps []plainPolicy, in policy.Input) (effect policy.Effect, codes, ids []string, limits []policy.Limit) {
	codes = oracleBaseline(in)
	var denies, allows, governs, approvals []string
	if in.Caller.KeyRateLimit != 0 {
		limits = append(limits, policy.Limit{Source: "key", Name: "rpm", Value: in.Caller.KeyRateLimit, Per: "key", Subject: in.Caller.KeyID, Key: "key:" + in.Caller.KeyID})
	}
	for _, d := range ps {
		if d.State == "disabled" || d.State == "shadow" {
			continue
		}
		matches, selects := d.holds(in)
		switch {
		case d.Effect == "deny" && matches:
			denies = append(denies, d.ID)
			codes = append(codes, "policy_denied")
		case d.Effect == "require_approval" && matches:
			approvals = append(approvals, d.ID)
		case d.Effect == "allow":
			if selects {
				governs = append(governs, d.ID)
			}
			if matches {
				allows = append(allows, d.ID)
				if d.Limits.RPM != 0 {
					limits = append(limits, policy.Limit{Source: d.ID, Name: "rpm", Value: d.Limits.RPM, Per: "agent", Subject: in.Agent.ID, Key: "policy:" + d.ID + ":rpm:agent:" + subjectName(in.Agent.ID)})
				}
			}
		}
	}
	ids = denies
	if len(governs) > 0 && len(allows) == 0 {
		codes, ids = append(codes, "not_permitted"), append(ids, governs...)
	}
	if len(codes) == 0 {
		for _, id := range approvals {
			codes, ids = append(codes, "approval_required"), append(ids, id)
		}
	}
	if len(codes) > 0 {
		return policy.Deny, codes[:min(len(codes), 16)], ids[:min(len(ids), 32)], nil
	}
	return policy.Allow, nil, allows[:min(len(allows), 32)], limits
}

// holds reports whether the conditions hold, and whether the policy selects the caller.
func (d *plainPolicy) holds(in policy.Input) (matches, selects bool) {
	o := asked{in: in, allow: d.Effect == "allow"}
	matches = o.object(d.Conditions, false) == yes
	o.maybe = true
	return matches, o.allow && o.object(d.Conditions, false) == yes
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

// truth is a value of Kleene's logic.
type truth int

const (
	no truth = iota - 1
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// asked is a request for which conditions are evaluated.
type asked struct {
	in    policy.Input
	allow bool // the policy's effect
	maybe bool // the value of attributes other than agent.* and caller.key_* is open
}

// object returns the conjunction of an object's conditions. negated is true inside an odd
// number of negations.
func (o asked) object(conditions map[string]any, negated bool) truth {
	t := yes
	for name, c := range conditions {
		t = min(t, o.condition(name, c, negated))
	}
	return t
}

func (o asked) condition(name string, c any, negated bool) truth {
	switch name {
	case "not":
		return -o.object(c.(map[string]any), !negated)
	case "all":
		t := yes
		for _, part := range c.([]any) {
			t = min(t, o.object(part.(map[string]any), negated))
		}
		return t
	case "any":
		t := no
		for _, part := range c.([]any) {
			t = max(t, o.object(part.(map[string]any), negated))
		}
		return t
	}
	op, with := "eq", c
	if m, ok := c.(map[string]any); ok && name != "request.time" {
		for op, with = range m {
		}
	}
	if o.maybe && !strings.HasPrefix(name, "agent.") && !strings.HasPrefix(name, "caller.key_") {
		if negated {
			return no // its negation may hold
		}
		return yes
	}
	switch op {
	case "ne":
		return -o.leaf(name, "eq", with, !negated)
	case "not_in":
		return -o.leaf(name, "in", with, !negated)
	case "exists":
		return truthOf(o.there(name) == with.(bool))
	}
	return o.leaf(name, op, with, negated)
}

func (o asked) there(name string) bool {
	switch name {
	case "request.tool":
		return len(o.in.Request.Tools) > 0
	case "tool.family":
		return len(o.in.Request.ToolFamilies) > 0 || o.in.Request.ToolsOther
	case "request.url_host":
		return len(o.in.Request.URLHosts) > 0
	case "caller.key_scopes":
		return len(o.in.Caller.KeyScopes) > 0
	case "agent.allowed_models":
		return len(o.in.Agent.AllowedModels) > 0
	}
	v := oracleAttribute(name, o.in)
	return v != nil && v != ""
}

// leaf evaluates a comparison. An allow needs every member of a set, and a deny needs one.
// Inside "not" it is the reverse. For each invalid value the request is rejected.
func (o asked) leaf(name, op string, with any, negated bool) truth {
	every := o.allow != negated
	of := func(members []string, one func(string) truth) truth {
		t := no
		if every {
			t = yes
		}
		for _, m := range members {
			if every {
				t = min(t, one(m))
			} else {
				t = max(t, one(m))
			}
		}
		return t
	}
	one := func(v any) truth { return compared(op, with, v, every) }
	text := func(s string) truth { return one(s) }
	in := o.in
	switch name {
	case "request.tool":
		if every {
			return of(in.Request.Tools, text)
		}
		return of(slices.Concat(in.Request.Tools, in.Request.ToolFamilies), text)
	case "tool.family":
		families := in.Request.ToolFamilies
		if in.Request.ToolsOther {
			families = append(slices.Clone(families), "other")
		}
		return of(families, text)
	case "request.url_host":
		return of(in.Request.URLHosts, func(s string) truth {
			switch {
			case s == "unknown" && every:
				return no
			case s == "unknown":
				return yes
			}
			return text(s)
		})
	case "caller.key_scopes", "agent.allowed_models":
		members := in.Caller.KeyScopes
		if name == "agent.allowed_models" {
			members = in.Agent.AllowedModels
		}
		t := no
		for _, s := range members {
			if s == "*" {
				return yes
			}
			t = max(t, text(s))
		}
		return t
	case "request.time":
		return truthOf(oracleSpan(with.(map[string]any), in.Request.Time))
	}
	v := oracleAttribute(name, in)
	if v == nil || v == "" {
		return unknown
	}
	return one(v)
}

// compared compares one value, which is a string, a float64 or a bool. If strict is set, a
// "*" matches as in Matches; otherwise it matches any text.
func compared(op string, with, v any, strict bool) truth {
	list, isList := with.([]any)
	if !isList {
		list = []any{with}
	}
	n, isNumber := v.(float64)
	s, isText := v.(string)
	number := func(holds func(float64) bool) truth {
		if !isNumber {
			return unknown
		}
		return truthOf(holds(with.(float64)))
	}
	texts := func(holds func(string) bool) truth {
		if !isText {
			return unknown
		}
		return truthOf(slices.ContainsFunc(list, func(v any) bool { return holds(v.(string)) }))
	}
	switch op {
	case "eq", "in":
		return truthOf(slices.Contains(list, v))
	case "between":
		if !isNumber {
			return unknown
		}
		return truthOf(list[0].(float64) <= n && n <= list[1].(float64))
	case "gt":
		return number(func(w float64) bool { return n > w })
	case "gte":
		return number(func(w float64) bool { return n >= w })
	case "lt":
		return number(func(w float64) bool { return n < w })
	case "lte":
		return number(func(w float64) bool { return n <= w })
	case "prefix":
		return texts(func(w string) bool { return len(s) >= len(w) && s[:len(w)] == w })
	case "suffix":
		return texts(func(w string) bool { return len(s) >= len(w) && s[len(s)-len(w):] == w })
	case "glob":
		return texts(func(w string) bool {
			if strict {
				return oracleGlob(w, s)
			}
			return oraclePlainGlob(w, s)
		})
	case "cidr":
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return unknown
		}
		return texts(func(w string) bool { return netip.MustParsePrefix(w).Contains(ip) })
	}
	panic("no operator " + op)
}

func oraclePlainGlob(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return oraclePlainGlob(p[1:], s) || s != "" && oraclePlainGlob(p, s[1:])
	default:
		return s != "" && s[0] == p[0] && oraclePlainGlob(p[1:], s[1:])
	}
}

// oracleSpan compares the local time in the zone.
func oracleSpan(span map[string]any, at time.Time) bool {
	zone, _ := span["zone"].(string)
	l, err := time.LoadLocation(zone)
	if err != nil {
		panic(err)
	}
	wall := at.In(l).Format("2006-01-02 15:04")
	if hours, ok := span["between"].([]any); ok {
		from, to, clock := hours[0].(string), hours[1].(string), wall[11:]
		if from < to && (clock < from || to <= clock) || to < from && to <= clock && clock < from {
			return false
		}
	}
	if days, ok := span["weekdays"].([]any); ok {
		d := float64(at.In(l).Weekday())
		if d == 0 {
			d = 7
		}
		if d < days[0].(float64) || days[1].(float64) < d {
			return false
		}
	}
	if dates, ok := span["dates"].([]any); ok && (wall[:10] < dates[0].(string) || dates[1].(string) < wall[:10]) {
		return false
	}
	return true
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
	case "spend.day_usd", "spend.month_usd":
		nano := in.Spend.Day
		if name == "spend.month_usd" {
			nano = in.Spend.Month
		}
		if nano == nil {
			return nil
		}
		return float64(*nano) / 1e9
	case "caller.key_id":
		return in.Caller.KeyID
	case "caller.ip":
		return in.Caller.IP
	case "caller.user_agent":
		return in.Caller.UserAgent
	case "request.session_id":
		return in.Request.SessionID
	case "org.id":
		return in.Org.ID
	case "org.tier":
		return in.Org.Tier
	}
	panic("no attribute " + name)
}

// ---- policies and requests of few different words, so that they match often ----

var (
	wordGen  = rapid.SampledFrom([]string{"a", "b", "c", "*", "a*", "a:*", "a\"b", "é"})
	textAttr = []string{"agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier", "request.operation", "request.provider",
		"request.model", "request.host", "request.path", "request.session_id", "caller.key_id", "caller.key_scopes", "caller.user_agent", "org.id", "org.tier",
		"agent.allowed_models", "request.tool", "request.url_host", "tool.family"}
	numberAttr = []string{"request.max_tokens", "request.input_tokens_estimate", "request.bytes", "request.hour_utc", "request.weekday_utc", "spend.day_usd", "spend.month_usd"}
	metaAttr   = []string{"agent.metadata.k", "agent.metadata.k.l", "agent.metadata.\"]"}
	documents  = rapid.Custom(func(t *rapid.T) string {
		doc := map[string]any{"name": "n", "effect": rapid.SampledFrom([]string{"allow", "allow", "allow", "deny", "deny", "require_approval"}).Draw(t, "effect")}
		doc["conditions"] = drawConditions(t, 0, 3)
		if rapid.IntRange(0, 5).Draw(t, "state?") == 0 {
			doc["state"] = rapid.SampledFrom([]string{"enabled", "disabled", "shadow"}).Draw(t, "state")
		}
		switch doc["effect"] {
		case "allow":
			if rapid.Bool().Draw(t, "limited") {
				doc["limits"] = map[string]any{"rpm": rapid.IntRange(1, 9).Draw(t, "rpm")}
			}
		case "require_approval":
			doc["approval"] = map[string]any{"reviewer_team": "ops"}
		}
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}).Filter(func(s string) bool { return policy.Check([]byte(s)) == nil || hasWildcard(s) })
)

// hasWildcard reports whether Check rejects a document only for a literal with a "*".
func hasWildcard(doc string) bool {
	var invalid *policy.Invalid
	return errors.As(policy.Check([]byte(doc)), &invalid) && strings.Contains(invalid.Problem, "* or ?")
}

// drawConditions draws an object of conditions with at least one comparison.
func drawConditions(t *rapid.T, depth, most int) map[string]any {
	conditions := map[string]any{}
	for range rapid.IntRange(min(depth, 1), most).Draw(t, "conditions") {
		join := rapid.IntRange(0, 5+3*depth).Draw(t, "join")
		parts := func() (list []any) {
			for range rapid.IntRange(1, 3).Draw(t, "parts") {
				list = append(list, drawConditions(t, depth+1, 2))
			}
			return list
		}
		switch join {
		case 0:
			conditions["any"] = parts()
		case 1:
			conditions["all"] = parts()
		case 2:
			conditions["not"] = drawConditions(t, depth+1, 2)
		default:
			name, c := drawComparison(t)
			conditions[name] = c
		}
	}
	return conditions
}

// drawComparison draws an attribute, an operator and values.
func drawComparison(t *rapid.T) (string, any) {
	list := func(literal func() any) (list []any) {
		for range rapid.IntRange(1, 3).Draw(t, "members") {
			list = append(list, literal())
		}
		return list
	}
	some := func(literal func() any) any {
		if rapid.Bool().Draw(t, "list?") {
			return list(literal)
		}
		return literal()
	}
	switch op := rapid.SampledFrom([]string{"", "", "in", "eq", "ne", "not_in", "exists", "between", "gt", "gte", "lt", "lte", "prefix", "suffix", "glob", "cidr", "time"}).Draw(t, "operator"); op {
	case "between", "gt", "gte", "lt", "lte":
		name := rapid.SampledFrom(append(slices.Clone(numberAttr), metaAttr...)).Draw(t, "number")
		a, b := rapid.IntRange(1, 7).Draw(t, "low"), rapid.IntRange(1, 7).Draw(t, "high")
		if op == "between" {
			return name, map[string]any{op: []int{min(a, b), max(a, b)}}
		}
		return name, map[string]any{op: a}
	case "prefix", "suffix", "glob":
		name := rapid.SampledFrom(append(slices.Clone(textAttr), metaAttr...)).Draw(t, "text")
		return name, map[string]any{op: some(func() any { return wordGen.Draw(t, "pattern") })}
	case "cidr":
		name := rapid.SampledFrom([]string{"caller.ip", "request.url_host"}).Draw(t, "address")
		return name, map[string]any{op: some(func() any {
			return rapid.SampledFrom([]string{"10.0.0.0/8", "10.0.0.1/32", "2001:db8::/32", "0.0.0.0/0"}).Draw(t, "range")
		})}
	case "exists":
		name := rapid.SampledFrom(slices.Concat(textAttr, numberAttr, metaAttr, []string{"request.stream", "caller.ip"})).Draw(t, "attribute")
		return name, map[string]any{op: rapid.Bool().Draw(t, "exists")}
	case "time":
		span := map[string]any{}
		if rapid.Bool().Draw(t, "hours?") {
			from, to := rapid.IntRange(0, 7).Draw(t, "from"), rapid.IntRange(0, 7).Draw(t, "to")
			span["between"] = []string{fmt.Sprintf("%02d:00", from), fmt.Sprintf("%02d:30", to)}
		}
		if rapid.Bool().Draw(t, "days?") {
			a, b := rapid.IntRange(1, 7).Draw(t, "first"), rapid.IntRange(1, 7).Draw(t, "last")
			span["weekdays"] = []int{min(a, b), max(a, b)}
		}
		if len(span) == 0 || rapid.Bool().Draw(t, "dates?") {
			a, b := rapid.IntRange(1, 7).Draw(t, "first"), rapid.IntRange(1, 7).Draw(t, "last")
			span["dates"] = []string{fmt.Sprintf("2026-07-%02d", min(a, b)), fmt.Sprintf("2026-07-%02d", max(a, b))}
		}
		if rapid.Bool().Draw(t, "zone?") {
			span["zone"] = rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kathmandu"}).Draw(t, "zone")
		}
		return "request.time", span
	default:
		name, literal := drawLiteral(t)
		switch {
		case op == "":
			return name, literal()
		case op == "in" || op == "not_in":
			if name == "request.stream" {
				return name, literal()
			}
			return name, map[string]any{op: list(literal)}
		}
		return name, map[string]any{op: literal()}
	}
}

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
			Tools: words.Draw(t, "tools"), ToolFamilies: words.Draw(t, "families"), URLHosts: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "unknown", "10.0.0.1", "2001:db8::1"}), 0, 3).Draw(t, "hosts"), ToolsOther: rapid.Bool().Draw(t, "other"), SessionID: w("session"),
			Time: time.Date(2026, 7, rapid.IntRange(1, 7).Draw(t, "day"), rapid.IntRange(0, 7).Draw(t, "hour"), rapid.SampledFrom([]int{0, 29, 30}).Draw(t, "minute"), 0, 0, time.UTC)},
		Caller: policy.CallerAttrs{KeyID: wordGen.Draw(t, "key"), KeyScopes: append(words.Draw(t, "scopes"), mostly("scope of key", "a", "c")),
			KeyStatus: mostly("key status", "active", "revoked", "", "x"), KeyRateLimit: rapid.Int64Range(0, 3).Draw(t, "rate"), UserAgent: w("agent"), IP: rapid.SampledFrom([]string{"10.0.0.1", "192.0.2.1", "2001:db8::1", ""}).Draw(t, "ip")},
		Org: policy.OrgAttrs{ID: "org_1", Tier: w("org tier")},
	}
	for _, into := range []**int64{&in.Spend.Day, &in.Spend.Month} {
		if n := rapid.Int64Range(-2, 7).Draw(t, "spend") * 1e9; n >= 0 {
			*into = &n
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "expires?") == 0 {
		in.Caller.KeyExpiresAt = in.Request.Time.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "expires")))
	}
	if rapid.IntRange(0, 5).Draw(t, "key lists?") == 0 {
		in.Caller.KeyAllowedModels = words.Draw(t, "models of key")
	}
	return in
})

func draw(t *rapid.T, most int) []policy.Policy {
	docs := rapid.SliceOfN(documents, most/2, most).Draw(t, "documents")
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

// same compares a decision with the oracle's.
func same(ps []plainPolicy, in policy.Input, d policy.Decision) string {
	effect, codes, ids, limits := oracle(ps, in)
	var got []string
	for _, r := range d.Reasons {
		got = append(got, r.Code)
	}
	if effect == d.Effect && slices.Equal(codes, got) && slices.Equal(ids, d.PolicyIDs) && slices.Equal(limits, d.Limits) {
		return "" // almost always, and without reflection
	}
	type said struct {
		Effect     policy.Effect
		Codes, IDs []string
		Limits     []policy.Limit
	}
	return cmp.Diff(said{effect, codes, ids, limits}, said{d.Effect, got, d.PolicyIDs, d.Limits}, cmpopts.EquateEmpty())
}

// The race detector makes these tests ten times as slow, and each uses one goroutine. With
// it a tenth of the cases runs. `make test` runs all of them without it.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	if racing {
		if err := flag.Set("rapid.checks", "10"); err != nil { // the command line still prevails
			panic(err)
		}
	}
	m.Run()
}

// With -rapid.checks=100, the default, about 200,000 pairs of a policy and a request are evaluated.
func TestDecisionsAreTheContracts(t *testing.T) {
	allowed, refused, pairs, remembered := 0, 0, 0, uint64(0)
	rapid.Check(t, func(rt *rapid.T) {
		ps := draw(rt, rapid.SampledFrom([]int{1, 8, 40}).Draw(rt, "most"))
		b, err := policy.Compile(context.Background(), ps)
		if err != nil {
			rt.Fatal(err)
		}
		enabled := slices.Clone(ps)
		for i := range enabled {
			enabled[i].Document = bytes.Replace(enabled[i].Document, []byte(`"state":"shadow"`), []byte(`"state":"enabled"`), 1)
		}
		read, readEnabled := plain(ps), plain(enabled)
		natives := make([]func(policy.Input) (bool, bool), len(ps))
		for i, p := range ps {
			if natives[i], err = policy.Facts(p.Document); err != nil {
				rt.Fatal(err)
			}
		}
		for range 200 {
			pairs += len(ps)
			in := inputs.Draw(rt, "input")
			d := b.Decide(context.Background(), in)
			if diff := same(read, in, d); diff != "" {
				rt.Fatalf("(-contract +OPA, or what is remembered of an input with the same facts):\n%s\n%s", diff, b.Rego())
			}
			evaluating := b.WithoutMemo()
			if diff := same(read, in, b.Decide(context.Background(), in)); diff != "" {
				rt.Fatalf("(-contract +OPA):\n%s\n%s", diff, b.Rego())
			}
			evaluating()
			if s, ok := b.Shadow(context.Background(), in); ok {
				s.Limits = nil // of those in shadow only, and counted apart
				if effect, codes, ids, _ := oracle(readEnabled, in); effect != s.Effect || !slices.Equal(ids, s.PolicyIDs) || len(codes) != len(s.Reasons) {
					rt.Fatalf("in shadow: %v %v %v, and not %+v", effect, codes, ids, s)
				}
			}
			// What is remembered of it decides the same, for others and at other times.
			in.Agent.ID, in.Caller.KeyID = wordGen.Draw(rt, "another agent"), wordGen.Draw(rt, "another key")
			for range 2 {
				if diff := same(read, in, b.Decide(context.Background(), in)); diff != "" {
					rt.Fatalf("remembered (-contract +memo):\n%s\n%s", diff, b.Rego())
				}
				in.Request.Time = in.Request.Time.Add(time.Duration(rapid.IntRange(-90, 90).Draw(rt, "minutes"))*time.Minute + time.Duration(rapid.IntRange(-1, 1).Draw(rt, "ns")))
			}
			for i, native := range natives {
				matches, selects := native(in)
				if want, want1 := read[i].holds(in); matches != want || selects != want1 {
					rt.Fatalf("in Go it matches: %v, selects: %v. By the contract: %v, %v\n%s", matches, selects, want, want1, ps[i].Document)
				}
			}
			if d.Effect == policy.Allow {
				allowed++
			} else {
				refused++
			}
		}
		remembered += b.Remembered()
	})
	t.Logf("%d policies met requests: %d allowed, %d rejected; %d results of the memo were used", pairs, allowed, refused, remembered)
	if !racing && (allowed < 100 || refused < 100 || pairs < 100_000 || remembered < 10_000) {
		t.Errorf("%d allowed, %d rejected, %d policies, %d remembered: there are too few of one kind", allowed, refused, pairs, remembered)
	}
}

// Thirty requests meet each set that is compiled, because compiling is what takes the time.
func TestComposition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ps := draw(t, 8)
		ins := rapid.SliceOfN(inputs, 30, 30).Draw(t, "inputs")
		decide := func(ps []policy.Policy) (ds []policy.Decision) {
			b, err := policy.Compile(context.Background(), ps)
			if err != nil {
				t.Fatal(err)
			}
			for _, in := range ins {
				ds = append(ds, b.Decide(context.Background(), in))
			}
			return ds
		}
		before := decide(ps)

		// In every order.
		if diff := cmp.Diff(before, decide(rapid.Permutation(ps).Draw(t, "order"))); diff != "" {
			t.Fatalf("order matters:\n%s", diff)
		}
		another := func(document string) []policy.Decision {
			return decide(append(slices.Clone(ps), policy.Policy{ID: rapid.SampledFrom([]string{"pol_", "pol_z"}).Draw(t, "id"), OrgID: "org_1", Document: []byte(document)}))
		}
		switch rapid.IntRange(0, 2).Draw(t, "another") {
		case 0: // One more deny policy does not allow a request.
			deny := rapid.Custom(func(t *rapid.T) string {
				return strings.Replace(strings.Replace(documents.Draw(t, "document"), `"effect":"allow"`, `"effect":"deny"`, 1), `"limits"`, `"_"`, 1)
			}).Filter(func(s string) bool { return policy.Check([]byte(s)) == nil }).Draw(t, "deny")
			for i, d := range another(deny) {
				if before[i].Effect == policy.Deny && d.Effect == policy.Allow {
					t.Fatalf("a deny policy allows: %s", deny)
				}
			}
		case 1: // A policy for other agents and callers changes nothing for these.
			condition := rapid.SampledFrom([]string{`"agent.id": "another"`, `"caller.key_id": "another"`, `"agent.metadata.none": true`}).Draw(t, "condition")
			others := fmt.Sprintf(`{"name": "others", "effect": %q, "conditions": {%s}}`, rapid.SampledFrom([]string{"allow", "deny"}).Draw(t, "effect"), condition)
			for i, d := range another(others) {
				was := before[i]
				if was.Effect != d.Effect || !slices.Equal(was.Reasons, d.Reasons) || !slices.Equal(was.Limits, d.Limits) {
					t.Fatalf("%s\nwas %+v\nis  %+v", others, was, d)
				}
			}
		case 2: // No policy allows what the baseline rejects.
			for i, d := range another(`{"name": "all", "effect": "allow", "conditions": {}}`) {
				if d.Effect == policy.Allow && len(oracleBaseline(ins[i])) > 0 {
					t.Fatal("a policy allows what the baseline denies")
				}
			}
		}
	})
}

// FuzzCheck: Check never panics. A document that passes Check compiles and decides as the
// contract describes.
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
			delete(in.Agent.Metadata, "k") // the oracle does not support it
		}
		if diff := same(plain(ps), in, b.Decide(context.Background(), in)); diff != "" {
			t.Errorf("%s (-contract +OPA):\n%s\n%s", doc, diff, b.Rego())
		}
	})
}
