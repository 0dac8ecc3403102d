package policy

import (
	stdjson "encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/open-policy-agent/opa/v1/ast"
)

// wholeInput writes every field of the input document.
var wholeInput = sync.OnceValue(func() *writer {
	return writerFor(map[string]*ast.Module{"m.rego": ast.MustParseModule("package m\n\np := input\n")})
})

// Document returns the input as docs/policy.md has it, with every field that is not
// missing. It is made by what makes the document that is evaluated.
func (in Input) Document() ([]byte, error) {
	v, err := ast.JSON(wholeInput().document(&in).Value)
	if err != nil {
		return nil, fmt.Errorf("policy: writing the input: %w", err)
	}
	return stdjson.Marshal(v) // it writes a json.Number as a number
}

// SampleInput is an input that the baseline permits, at noon of a Monday. ReadInput
// begins with it, so that a test states only what it is about.
func SampleInput() Input {
	return Input{
		Agent:   AgentAttrs{ID: "ag_test", Name: "test", Status: "active", AllowedModels: []string{"*"}},
		Request: RequestAttrs{Operation: "chat.completions", Scope: "chat:completions", Model: "model", Mode: "gateway", Time: time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)},
		Caller:  CallerAttrs{Kind: "key", KeyID: "key_test", KeyStatus: "active", KeyScopes: []string{"*"}},
		Org:     OrgAttrs{ID: "org_test"},
	}
}

// ReadInput reads an input document over SampleInput: what the document has replaces what
// is there. A field that it does not know is an error. families returns the families of
// tools, and whether some tool has none; it is called if the document does not state them.
func ReadInput(b []byte, families func(tools []string) ([]string, bool)) (Input, error) {
	in := SampleInput()
	r, c := &in.Request, &in.Caller
	var at, expires, credential string
	var toolNames, toolFamilies []string
	var hour, weekday *int64
	type agent struct {
		ID            *string         `json:"id"`
		Name          *string         `json:"name"`
		Team          *string         `json:"team"`
		Environment   *string         `json:"environment"`
		Tier          *string         `json:"tier"`
		Status        *string         `json:"status"`
		AllowedModels *[]string       `json:"allowed_models"`
		Metadata      *map[string]any `json:"metadata"`
	}
	type request struct {
		Operation           *string   `json:"operation"`
		Scope               *string   `json:"scope"`
		Provider            *string   `json:"provider"`
		Model               *string   `json:"model"`
		Mode                *string   `json:"mode"`
		Host                *string   `json:"host"`
		Path                *string   `json:"path"`
		Stream              *bool     `json:"stream"`
		MaxTokens           *int64    `json:"max_tokens"`
		InputTokensEstimate *int64    `json:"input_tokens_estimate"`
		Bytes               *int64    `json:"bytes"`
		Tools               *[]string `json:"tools"`
		ToolNames           *[]string `json:"tool_names"`
		ToolFamilies        *[]string `json:"tool_families"`
		SessionID           *string   `json:"session_id"`
		URLHosts            *[]string `json:"url_hosts"`
		Time                *string   `json:"time"`
		Hour                **int64   `json:"hour_utc"`
		Weekday             **int64   `json:"weekday_utc"`
	}
	type caller struct {
		Kind             *string   `json:"kind"`
		CredentialID     *string   `json:"credential_id"`
		KeyID            *string   `json:"key_id"`
		KeyStatus        *string   `json:"key_status"`
		KeyScopes        *[]string `json:"key_scopes"`
		KeyAllowedModels *[]string `json:"key_allowed_models"`
		KeyExpiresAt     *string   `json:"key_expires_at"`
		KeyRateLimit     *int64    `json:"key_rate_limit"`
		IP               *string   `json:"ip"`
		UserAgent        *string   `json:"user_agent"`
	}
	type spend struct {
		Day   *float64 `json:"day_usd"`
		Month *float64 `json:"month_usd"`
	}
	type org struct {
		ID   *string `json:"id"`
		Tier *string `json:"tier"`
	}
	a := &in.Agent
	doc := struct {
		Agent   agent   `json:"agent"`
		Request request `json:"request"`
		Caller  caller  `json:"caller"`
		Spend   spend   `json:"spend"`
		Org     org     `json:"org"`
	}{
		agent{&a.ID, &a.Name, &a.Team, &a.Environment, &a.Tier, &a.Status, &a.AllowedModels, &a.Metadata},
		request{&r.Operation, &r.Scope, &r.Provider, &r.Model, &r.Mode, &r.Host, &r.Path, &r.Stream, &r.MaxTokens, &r.InputTokensEstimate, &r.Bytes,
			&r.Tools, &toolNames, &toolFamilies, &r.SessionID, &r.URLHosts, &at, &hour, &weekday},
		caller{&c.Kind, &credential, &c.KeyID, &c.KeyStatus, &c.KeyScopes, &c.KeyAllowedModels, &expires, &c.KeyRateLimit, &c.IP, &c.UserAgent},
		spend{},
		org{&in.Org.ID, &in.Org.Tier},
	}
	in.Agent.AllowedModels, in.Caller.KeyScopes = nil, nil // a list replaces, and is not written into
	if err := json.Unmarshal(b, &doc, json.RejectUnknownMembers(true)); err != nil {
		return Input{}, fmt.Errorf("the input is not an input document: %w", err)
	}
	if in.Agent.AllowedModels == nil {
		in.Agent.AllowedModels = []string{"*"}
	}
	if in.Caller.KeyScopes == nil {
		in.Caller.KeyScopes = []string{"*"}
	}
	if len(in.Caller.KeyAllowedModels) == 1 && in.Caller.KeyAllowedModels[0] == "*" {
		in.Caller.KeyAllowedModels = nil // as the document has a key that lists none
	}
	var err error
	for _, s := range []struct {
		name string
		usd  *float64
		into **int64
	}{{spendDay, doc.Spend.Day, &in.Spend.Day}, {spendMonth, doc.Spend.Month, &in.Spend.Month}} {
		if s.usd == nil {
			continue
		}
		if *s.usd < 0 || *s.usd*1e9 > math.MaxInt64/2 {
			return Input{}, fmt.Errorf("%s is %v: write a number of US dollars", s.name, *s.usd)
		}
		nano := int64(math.Round(*s.usd * 1e9))
		*s.into = &nano
	}
	if at != "" {
		if r.Time, err = time.Parse(time.RFC3339Nano, at); err != nil {
			return Input{}, fmt.Errorf("request.time is %q: write a time like 2026-01-05T12:00:00Z", at)
		}
	}
	if expires != "" && expires != never {
		if c.KeyExpiresAt, err = time.Parse(time.RFC3339Nano, expires); err != nil {
			return Input{}, fmt.Errorf("caller.key_expires_at is %q: write a time like 2026-01-05T12:00:00Z", expires)
		}
	}
	switch {
	case toolFamilies != nil:
		r.ToolsOther = slices.Contains(toolFamilies, otherFamily)
		r.ToolFamilies = slices.DeleteFunc(toolFamilies, func(f string) bool { return f == otherFamily })
	case families != nil:
		r.ToolFamilies, r.ToolsOther = families(r.Tools)
	}
	switch {
	case credential == "" || credential == c.KeyID:
	case c.KeyID != SampleInput().Caller.KeyID:
		return Input{}, fmt.Errorf("caller.credential_id is %q, and caller.key_id is %q: leave one out", credential, c.KeyID)
	default:
		c.KeyID = credential
	}
	// What is derived may be stated, and must then be what it is.
	t := r.Time.UTC()
	if names := append(slices.Clone(r.Tools), r.ToolFamilies...); toolNames != nil && !slices.Equal(toolNames, names) {
		return Input{}, fmt.Errorf("request.tool_names is not tools and their families (%s): leave it out", strings.Join(names, ", "))
	}
	if derived := int64(t.Hour()); hour != nil && *hour != derived {
		return Input{}, fmt.Errorf("request.hour_utc is %d, and request.time has hour %d: leave it out", *hour, derived)
	}
	if derived := int64(t.Weekday()+6)%7 + 1; weekday != nil && *weekday != derived {
		return Input{}, fmt.Errorf("request.weekday_utc is %d, and request.time has weekday %d: leave it out", *weekday, derived)
	}
	return in, nil
}
