package policy

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// timeLayout has as many characters for every instant, so that times in UTC are in
// order as text. never is when a key expires that does not.
const (
	timeLayout = "2006-01-02T15:04:05.000000000Z"
	never      = "9999-12-31T23:59:59.999999999Z"
)

// field is a member of the input document: where it stands, and its value, which is
// nil where it is missing.
type field struct {
	section, name string
	value         func(*Input) ast.Value
}

// inputFields is the input document of docs/policy.md.
func inputFields() []field {
	return []field{
		{"agent", "id", func(in *Input) ast.Value { return textOf(in.Agent.ID) }},
		{"agent", "name", func(in *Input) ast.Value { return textOf(in.Agent.Name) }},
		{"agent", "team", func(in *Input) ast.Value { return textOf(in.Agent.Team) }},
		{"agent", "environment", func(in *Input) ast.Value { return textOf(in.Agent.Environment) }},
		{"agent", "tier", func(in *Input) ast.Value { return textOf(in.Agent.Tier) }},
		{"agent", "status", func(in *Input) ast.Value { return textOf(in.Agent.Status) }},
		{"agent", "allowed_models", func(in *Input) ast.Value { return textsOf(in.Agent.AllowedModels) }},
		{"agent", "metadata", func(in *Input) ast.Value { return metadataOf(in.Agent.Metadata) }},

		{"request", "operation", func(in *Input) ast.Value { return textOf(in.Request.Operation) }},
		{"request", "scope", func(in *Input) ast.Value { return textOf(in.Request.Scope) }},
		{"request", "provider", func(in *Input) ast.Value { return textOf(in.Request.Provider) }},
		{"request", "model", func(in *Input) ast.Value { return textOf(in.Request.Model) }},
		{"request", "mode", func(in *Input) ast.Value { return textOf(in.Request.Mode) }},
		{"request", "host", func(in *Input) ast.Value { return textOf(in.Request.Host) }},
		{"request", "path", func(in *Input) ast.Value { return textOf(in.Request.Path) }},
		{"request", "stream", func(in *Input) ast.Value { return ast.InternedTerm(in.Request.Stream).Value }},
		{"request", "max_tokens", func(in *Input) ast.Value { return numberUnless0(amount(in.Request.MaxTokens)) }},
		{"request", "input_tokens_estimate", func(in *Input) ast.Value { return numberOf(amount(in.Request.InputTokensEstimate)) }},
		{"request", "bytes", func(in *Input) ast.Value { return numberOf(amount(in.Request.Bytes)) }},
		{"request", "tools", func(in *Input) ast.Value { return textsOf(in.Request.Tools) }},
		{"request", "time", func(in *Input) ast.Value { return timeOf(in.Request.Time) }},
		{"request", "hour_utc", func(in *Input) ast.Value {
			if in.Request.Time.IsZero() {
				return nil
			}
			return numberOf(int64(in.Request.Time.UTC().Hour()))
		}},
		{"request", "weekday_utc", func(in *Input) ast.Value {
			if in.Request.Time.IsZero() {
				return nil
			}
			// ISO 8601's: 1 is Monday, 7 is Sunday.
			return numberOf(int64(in.Request.Time.UTC().Weekday()+6)%7 + 1)
		}},

		{"caller", "key_id", func(in *Input) ast.Value { return textOf(in.Caller.KeyID) }},
		{"caller", "key_status", func(in *Input) ast.Value { return textOf(in.Caller.KeyStatus) }},
		{"caller", "key_scopes", func(in *Input) ast.Value { return textsOf(in.Caller.KeyScopes) }},
		{"caller", "key_allowed_models", func(in *Input) ast.Value {
			if len(in.Caller.KeyAllowedModels) == 0 {
				return textsOf([]string{"*"})
			}
			return textsOf(in.Caller.KeyAllowedModels)
		}},
		{"caller", "key_expires_at", func(in *Input) ast.Value {
			if in.Caller.KeyExpiresAt.IsZero() {
				return textOf(never)
			}
			return timeOf(in.Caller.KeyExpiresAt)
		}},
		{"caller", "key_rate_limit", func(in *Input) ast.Value { return numberUnless0(in.Caller.KeyRateLimit) }},
		{"caller", "ip", func(in *Input) ast.Value { return textOf(in.Caller.IP) }},
		{"caller", "user_agent", func(in *Input) ast.Value { return textOf(in.Caller.UserAgent) }},

		{"org", "id", func(in *Input) ast.Value { return textOf(in.Org.ID) }},
		{"org", "tier", func(in *Input) ast.Value { return textOf(in.Org.Tier) }},
	}
}

// writer writes input documents with the fields that some rule reads. A field that
// no rule reads changes no decision, and costs as much as one that is read.
type writer struct {
	sections []section
	texts    int // fields and sections, to make room for
}

type section struct {
	key    *ast.Term
	fields []keyed
}

type keyed struct {
	key   *ast.Term
	value func(*Input) ast.Value
}

func writerFor(modules map[string]*ast.Module) *writer {
	read, all := reads(modules)
	w := &writer{}
	for _, f := range inputFields() {
		if !all && !read[f.section+"."+f.name] {
			continue
		}
		n := len(w.sections)
		if n == 0 || w.sections[n-1].key.Value.Compare(ast.String(f.section)) != 0 {
			w.sections = append(w.sections, section{key: ast.StringTerm(f.section)})
			n++
		}
		s := &w.sections[n-1]
		s.fields = append(s.fields, keyed{ast.StringTerm(f.name), f.value})
		w.texts++
	}
	w.texts += len(w.sections)
	return w
}

// reads finds the fields that modules read, as "agent.team". all means that some
// rule reads a section as a whole, or a field that only evaluation can name.
func reads(modules map[string]*ast.Module) (read map[string]bool, all bool) {
	read = map[string]bool{}
	for _, m := range modules {
		ast.WalkRefs(m, func(r ast.Ref) bool {
			if !r.HasPrefix(ast.InputRootRef) {
				return false
			}
			if len(r) < 3 {
				all = true
				return false
			}
			section, ok := r[1].Value.(ast.String)
			name, ok1 := r[2].Value.(ast.String)
			if !ok || !ok1 {
				all = true
				return false
			}
			read[string(section)+"."+string(name)] = true
			return false
		})
	}
	return read, all
}

func (w *writer) document(in *Input) *ast.Term {
	terms := make([]ast.Term, 0, w.texts+1) // one piece of memory for all
	term := func(v ast.Value) *ast.Term {
		terms = append(terms, ast.Term{Value: v})
		return &terms[len(terms)-1]
	}
	var room [32][2]*ast.Term
	var all [4][2]*ast.Term
	for i, s := range w.sections {
		members := room[:0]
		for _, f := range s.fields {
			if v := f.value(in); v != nil {
				members = append(members, [2]*ast.Term{f.key, term(v)})
			}
		}
		all[i] = [2]*ast.Term{s.key, term(ast.NewObject(members...))}
	}
	return term(ast.NewObject(all[:len(w.sections)]...))
}

func textOf(s string) ast.Value {
	if s == "" {
		return nil
	}
	return ast.String(s)
}

func textsOf(ss []string) ast.Value {
	terms, list := make([]ast.Term, len(ss)), make([]*ast.Term, len(ss))
	for i, s := range ss {
		terms[i].Value = ast.String(s)
		list[i] = &terms[i]
	}
	return ast.NewArray(list...)
}

func numberOf(n int64) ast.Value { return ast.InternedTerm(n).Value }

// amount keeps an absurd one within reach of conditions, which end at maxInt.
func amount(n int64) int64 { return min(n, maxInt) }

func numberUnless0(n int64) ast.Value {
	if n == 0 {
		return nil
	}
	return numberOf(n)
}

func timeOf(t time.Time) ast.Value {
	if t.IsZero() {
		return nil
	}
	switch t = t.UTC(); {
	case t.Year() > 9999:
		return ast.String(never)
	case t.Year() < 1:
		t = time.Time{}
	}
	return ast.String(t.Format(timeLayout))
}

// metadataOf takes strings, numbers and bools. Whatever else there is, is missing.
func metadataOf(m map[string]any) ast.Value {
	members := make([][2]*ast.Term, 0, len(m))
	for k, v := range m {
		if v := scalarOf(v); v != nil {
			members = append(members, [2]*ast.Term{ast.StringTerm(k), ast.NewTerm(v)})
		}
	}
	return ast.NewObject(members...)
}

// scalarOf is nil for what is none, for the empty text, and for a number that
// cannot be compared exactly.
func scalarOf(v any) ast.Value {
	switch v := v.(type) {
	case string:
		return textOf(v)
	case bool:
		return ast.InternedTerm(v).Value
	case json.Number:
		if s, _, ok := canonical(string(v)); ok {
			return ast.Number(s)
		}
	case float64:
		return scalarOf(json.Number(strconv.FormatFloat(v, 'g', -1, 64)))
	case int:
		return scalarOf(int64(v))
	case int64:
		return scalarOf(json.Number(strconv.FormatInt(v, 10)))
	}
	return nil
}
