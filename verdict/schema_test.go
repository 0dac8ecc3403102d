package verdict_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/policy"
)

// schema is the part of JSON Schema that docs/schemas uses.
type schema struct {
	Type       any               `json:"type"`
	Properties map[string]schema `json:"properties"`
	Additional any               `json:"additionalProperties"`
	Required   []string          `json:"required"`
	Items      *schema           `json:"items"`
	Enum       []any             `json:"enum"`
	Pattern    string            `json:"pattern"`
	Minimum    *float64          `json:"minimum"`
	Maximum    *float64          `json:"maximum"`
	MinLength  int               `json:"minLength"`
	MaxItems   *int              `json:"maxItems"`
	Doc        string            `json:"description"`
	Title      string            `json:"title"`
	Schema     string            `json:"$schema"`
	ID         string            `json:"$id"`
}

func schemaOf(t *testing.T, name string) schema {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "docs", "schemas", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields() // what this test does not check must not be promised
	var s schema
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(s.ID, "/"+name) {
		t.Errorf("%s has the id %s", name, s.ID)
	}
	return s
}

// check returns what a value has that the schema does not permit. seen gets the path of each
// member that the value has.
func (s schema) check(at string, v any, seen map[string]bool) error {
	seen[at] = true
	kind := map[bool]string{true: "integer", false: "number"}
	is := "null"
	switch v := v.(type) {
	case map[string]any:
		is = "object"
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				return fmt.Errorf("%s has no %s", at, name)
			}
		}
		for name, m := range v {
			inner, ok := s.Properties[name]
			if !ok {
				if s.Additional == false {
					return fmt.Errorf("%s.%s is not in the schema", at, name)
				}
				continue
			}
			if err := inner.check(at+"."+name, m, seen); err != nil {
				return err
			}
		}
	case []any:
		is = "array"
		if s.MaxItems != nil && len(v) > *s.MaxItems {
			return fmt.Errorf("%s has %d items", at, len(v))
		}
		for _, m := range v {
			if err := s.Items.check(at+"[]", m, seen); err != nil {
				return err
			}
		}
	case string:
		is = "string"
		if len(v) < s.MinLength || s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(v) {
			return fmt.Errorf("%s is %q", at, v)
		}
	case bool:
		is = "boolean"
	case float64:
		is = kind[v == float64(int64(v))]
		if s.Minimum != nil && v < *s.Minimum || s.Maximum != nil && v > *s.Maximum {
			return fmt.Errorf("%s is %v", at, v)
		}
	}
	if types, ok := s.Type.([]any); ok && !slices.Contains(types, any(is)) || !ok && s.Type != is {
		return fmt.Errorf("%s is %s, and not %v", at, is, s.Type)
	}
	if len(s.Enum) > 0 && !slices.Contains(s.Enum, v) {
		return fmt.Errorf("%s is %v", at, v)
	}
	return nil
}

// paths returns the members that the schema has.
func (s schema) paths(at string) (out []string) {
	out = append(out, at)
	for name, p := range s.Properties {
		out = append(out, p.paths(at+"."+name)...)
	}
	if s.Items != nil {
		out = append(out, s.Items.paths(at+"[]")...)
	}
	return out
}

// The published schemas are those of what is evaluated and recorded. Each value conforms to
// its schema, and each member of a schema occurs.
func TestSchemas(t *testing.T) {
	both := func(name string, values ...[]byte) {
		s, seen := schemaOf(t, name), map[string]bool{}
		for _, b := range values {
			var v any
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
			if err := s.check("", v, seen); err != nil {
				t.Errorf("%s: %v\n%s", name, err, b)
			}
		}
		for _, p := range s.paths("") {
			if !seen[p] {
				t.Errorf("%s: %s never occurs", name, p)
			}
		}
		for p := range seen { // of the root, names are checked; a schema that permits all would pass
			if !slices.Contains(s.paths(""), p) {
				t.Errorf("%s: %s is not a member", name, p)
			}
		}
		// An unknown member fails, in each object.
		if err := s.check("", map[string]any{"surprise": true}, seen); err == nil {
			t.Errorf("%s permits an unknown member", name)
		}
	}

	day, month := int64(1_500_000_000), int64(2_000_000_000)
	full := policy.Input{
		Spend: policy.SpendAttrs{Day: &day, Month: &month},
		Agent: policy.AgentAttrs{ID: "ag", Name: "n", Team: "t", Environment: "e", Tier: "r", Status: "active", AllowedModels: []string{"m"}, Metadata: map[string]any{"k": "v", "n": 1.5, "b": true}},
		Request: policy.RequestAttrs{Operation: "o", Scope: "s", Provider: "p", Model: "m", Mode: "gateway", Host: "h", Path: "/p", Stream: true, MaxTokens: 1 << 62, InputTokensEstimate: 1 << 62,
			Bytes: 1 << 62, Tools: []string{"t"}, ToolFamilies: []string{"f"}, ToolsOther: true, SessionID: "s", URLHosts: []string{"h"}, Time: time.Date(2026, 7, 5, 23, 0, 0, 1, time.UTC)},
		Caller: policy.CallerAttrs{Kind: "key", KeyID: "k", KeyScopes: []string{"s"}, KeyAllowedModels: []string{"m"}, KeyExpiresAt: noon, KeyStatus: "active", KeyRateLimit: 5, IP: "::1", UserAgent: "u"},
		Org:    policy.OrgAttrs{ID: "org", Tier: "t"},
	}
	var inputs [][]byte
	for _, in := range []policy.Input{full, {}, policy.SampleInput()} {
		b, err := in.Document()
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, b)
	}
	both("policy-input-1.json", inputs...)

	// Decisions as their entries have them.
	var decisions [][]byte
	for _, w := range []*world{
		newWorld(t, `{"name":"a","effect":"allow","conditions":{"agent.team":"support"},"limits":{"rpm":5}}`),
		newWorld(t, `{"name":"d","effect":"deny","conditions":{}}`),
		newWorld(t),
	} {
		v := w.judge()
		var whole map[string]json.RawMessage
		if err := json.Unmarshal(v.Decided(&w.org, w.caller, &w.request).Encode(), &whole); err != nil {
			t.Fatal(err)
		}
		part := map[string]json.RawMessage{}
		for _, name := range []string{"effect", "reasons", "policy_ids", "policy_version", "policy_versions", "limits"} {
			part[name] = whole[name]
		}
		b, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		decisions = append(decisions, b)
	}
	// A limit of money has a period, too.
	capped := audit.Decided{Limits: []audit.Limit{{Source: "pol_a", Name: "monthly_usd_cap", PolicyID: "pol_a", Limit: "monthly_usd_cap", Per: "policy", Subject: "pol_a", Counter: "c", Period: "2026-11", Raised: 7}}}
	var limited map[string]json.RawMessage
	if err := json.Unmarshal(capped.Encode(), &limited); err != nil {
		t.Fatal(err)
	}
	decisions = append(decisions, []byte(`{"effect":"allow","reasons":null,"policy_ids":null,"policy_version":"","limits":`+string(limited["limits"])+`}`))
	both("policy-decision-1.json", decisions...)
}
