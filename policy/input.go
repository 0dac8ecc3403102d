package policy

import (
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// timeLayout has as many characters for every instant, so that times in UTC are in
// order as text.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// fields makes an object of what is there: what is missing has no member.
type fields struct{ members [][2]*ast.Term }

func (f *fields) put(name string, v *ast.Term) {
	f.members = append(f.members, [2]*ast.Term{ast.InternedTerm(name), v})
}

func (f *fields) text(name, s string) {
	if s != "" {
		f.put(name, ast.StringTerm(s))
	}
}

func (f *fields) texts(name string, ss []string) {
	ts := make([]*ast.Term, len(ss))
	for i, s := range ss {
		ts[i] = ast.StringTerm(s)
	}
	f.put(name, ast.ArrayTerm(ts...))
}

func (f *fields) num(name string, n int64) {
	f.put(name, ast.NumberTerm(json.Number(strconv.FormatInt(n, 10))))
}

func (f *fields) time(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	t = t.UTC()
	if y := t.Year(); y > 9999 {
		t = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)
	} else if y < 1 {
		t = time.Time{}
	}
	f.put(name, ast.StringTerm(t.Format(timeLayout)))
}

func (f *fields) term() *ast.Term { return ast.ObjectTerm(f.members...) }

// document is the input document of docs/policy.md.
func (in *Input) document() ast.Value {
	var a, r, c, o, all fields

	a.text("id", in.Agent.ID)
	a.text("name", in.Agent.Name)
	a.text("team", in.Agent.Team)
	a.text("environment", in.Agent.Environment)
	a.text("tier", in.Agent.Tier)
	a.text("status", in.Agent.Status)
	a.texts("allowed_models", in.Agent.AllowedModels)
	a.put("metadata", metadataOf(in.Agent.Metadata))

	r.text("operation", in.Request.Operation)
	r.text("scope", in.Request.Scope)
	r.text("provider", in.Request.Provider)
	r.text("model", in.Request.Model)
	r.text("mode", in.Request.Mode)
	r.text("host", in.Request.Host)
	r.text("path", in.Request.Path)
	r.put("stream", ast.InternedTerm(in.Request.Stream))
	if in.Request.MaxTokens != 0 {
		r.num("max_tokens", in.Request.MaxTokens)
	}
	r.num("input_tokens_estimate", in.Request.InputTokensEstimate)
	r.num("bytes", in.Request.Bytes)
	r.texts("tools", in.Request.Tools)
	if t := in.Request.Time; !t.IsZero() {
		t = t.UTC()
		r.time("time", t)
		r.put("hour_utc", ast.InternedTerm(t.Hour()))
		r.put("weekday_utc", ast.InternedTerm(weekday(t)))
	}

	c.text("key_id", in.Caller.KeyID)
	c.texts("key_scopes", in.Caller.KeyScopes)
	if len(in.Caller.KeyAllowedModels) > 0 {
		c.texts("key_allowed_models", in.Caller.KeyAllowedModels)
	}
	c.time("key_expires_at", in.Caller.KeyExpiresAt)
	c.text("key_status", in.Caller.KeyStatus)
	c.num("key_rate_limit", in.Caller.KeyRateLimit)
	c.text("ip", in.Caller.IP)
	c.text("user_agent", in.Caller.UserAgent)

	o.text("id", in.Org.ID)
	o.text("tier", in.Org.Tier)

	all.put("agent", a.term())
	all.put("request", r.term())
	all.put("caller", c.term())
	all.put("org", o.term())
	return all.term().Value
}

// weekday is ISO 8601's: 1 is Monday, 7 is Sunday.
func weekday(t time.Time) int { return (int(t.Weekday())+6)%7 + 1 }

// metadataOf takes strings, numbers and bools. Whatever else there is, is missing.
func metadataOf(m map[string]any) *ast.Term {
	var f fields
	for k, v := range m {
		if t := scalar(v); t != nil {
			f.put(k, t)
		}
	}
	return f.term()
}

func scalar(v any) *ast.Term {
	switch v := v.(type) {
	case string:
		if v != "" {
			return ast.StringTerm(v)
		}
	case bool:
		return ast.InternedTerm(v)
	case json.Number:
		if s, _, ok := canonical(string(v)); ok {
			return ast.NumberTerm(json.Number(s))
		}
	case float64:
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			if s, _, ok := canonical(strconv.FormatFloat(v, 'g', -1, 64)); ok {
				return ast.NumberTerm(json.Number(s))
			}
		}
	case int:
		return scalar(int64(v))
	case int64:
		if s, _, ok := canonical(strconv.FormatInt(v, 10)); ok {
			return ast.NumberTerm(json.Number(s))
		}
	}
	return nil
}
