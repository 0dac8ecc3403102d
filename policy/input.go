package policy

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// timeLayout gives every instant the same number of characters, so that times in UTC sort
// as text. never is the expiry of a key that does not expire.
const (
	timeLayout = "2006-01-02T15:04:05.000000000Z"
	never      = "9999-12-31T23:59:59.999999999Z"
)

// field is a member of the input document: its section, its name and its value. The value
// is nil if the member is missing.
type field struct {
	section, name string
	value         func(*Input) ast.Value
}

// inputFields are the fields of the input document in docs/policy.md.
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
		{"request", "tool_names", func(in *Input) ast.Value {
			return textsOf(append(slices.Clone(in.Request.Tools), in.Request.ToolFamilies...))
		}},
		{"request", "tool_families", func(in *Input) ast.Value { return textsOf(families(&in.Request)) }},
		{"request", "session_id", func(in *Input) ast.Value { return textOf(in.Request.SessionID) }},
		{"request", "url_hosts", func(in *Input) ast.Value { return textsOf(in.Request.URLHosts) }},
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

		{"spend", "day_usd", func(in *Input) ast.Value { return dollars(in.Spend.Day) }},
		{"spend", "month_usd", func(in *Input) ast.Value { return dollars(in.Spend.Month) }},

		{"org", "id", func(in *Input) ast.Value { return textOf(in.Org.ID) }},
		{"org", "tier", func(in *Input) ast.Value { return textOf(in.Org.Tier) }},
	}
}

// writer writes input documents with the fields that a rule reads. A field that no rule
// reads changes no decision, and would cost as much as another.
type writer struct {
	sections []section
	texts    int      // number of terms to allocate for fields and sections
	all      bool     // of reads
	metadata []string // the keys of agent.metadata that rules read; nil: all
	seed     maphash.Seed
	subjects [256]atomic.Pointer[subject]
}

// maxSections is how many sections the input document has.
const maxSections = 5

type section struct {
	key    *ast.Term
	fields []keyed
	fixed  bool // part of a subject
}

type keyed struct {
	id, name string // "agent.team", "team"
	key      *ast.Term
	value    func(*Input) ast.Value
}

func writerFor(modules map[string]*ast.Module) *writer {
	read, metadata, all := reads(modules)
	w := &writer{metadata: metadata, all: all, seed: maphash.MakeSeed()}
	fixed := func(section string) bool {
		switch section {
		case "agent", "org":
			return true
		case "caller":
			return !all && !read["caller.ip"] && !read["caller.user_agent"]
		}
		return false
	}
	for _, f := range inputFields() {
		if !all && !read[f.section+"."+f.name] {
			continue
		}
		n := len(w.sections)
		if n == 0 || w.sections[n-1].key.Value.Compare(ast.String(f.section)) != 0 {
			w.sections = append(w.sections, section{key: ast.StringTerm(f.section), fixed: fixed(f.section)})
			n++
			w.texts++
		}
		if f.name == "metadata" && metadata != nil {
			f.value = func(in *Input) ast.Value { return someMetadata(in.Agent.Metadata, metadata) }
		}
		s := &w.sections[n-1]
		s.fields = append(s.fields, keyed{f.section + "." + f.name, f.name, ast.StringTerm(f.name), f.value})
		w.texts++
	}
	return w
}

// spends reports whether a rule reads what agents have spent.
func (w *writer) spends() bool {
	return w.all || slices.ContainsFunc(w.sections, func(s section) bool { return s.key.Value.Compare(ast.String("spend")) == 0 })
}

// reads returns the fields that modules read, as "agent.team", and the keys of
// agent.metadata. The keys are nil if a rule may read any key. all is true if a rule reads
// a whole section, or a field whose name only evaluation computes. Modules may be parsed or
// compiled; compiled ones read more whole sections.
func reads(modules map[string]*ast.Module) (read map[string]bool, metadata []string, all bool) {
	read = map[string]bool{}
	whole := false // a rule reads all of metadata
	ref := func(r ast.Ref) {
		if len(r) < 3 {
			all = true
			return
		}
		section, ok := r[1].Value.(ast.String)
		name, ok1 := r[2].Value.(ast.String)
		if !ok || !ok1 {
			all = true
			return
		}
		field := string(section) + "." + string(name)
		read[field] = true
		if field != "agent.metadata" {
			return
		}
		if len(r) > 3 {
			if key, ok := r[3].Value.(ast.String); ok {
				metadata = append(metadata, string(key))
				return
			}
		}
		whole = true
	}
	var v *ast.GenericVisitor
	v = ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case ast.Call:
			// object.get(input.caller, "ip", …) reads a field, not the section.
			function, ok := x[0].Value.(ast.Ref)
			if !ok || len(x) != 4 || !function.Equal(ast.ObjectGet.Ref()) {
				return false
			}
			of, ok := x[1].Value.(ast.Ref)
			name, ok1 := x[2].Value.(ast.String)
			if !ok || !ok1 || len(of) != 2 {
				return false
			}
			v.Walk(of.Append(ast.NewTerm(name)))
			v.Walk(x[3])
			return true
		case ast.Ref:
			if !x.HasPrefix(ast.InputRootRef) {
				return false
			}
			ref(x)
			for _, t := range x[1:] {
				v.Walk(t)
			}
			return true
		case ast.Var:
			all = all || x.Equal(ast.InputRootDocument.Value) // the whole input, in parsed modules
		}
		return false
	})
	for _, m := range modules {
		v.Walk(m)
	}
	slices.Sort(metadata)
	metadata = slices.Compact(metadata)
	switch {
	case all || whole:
		metadata = nil
	case metadata == nil:
		metadata = []string{}
	}
	return read, metadata, all
}

// document returns the input document.
func (w *writer) document(in *Input) *ast.Term {
	x := w.subject(in)
	var all [maxSections][2]*ast.Term
	var room [32][2]*ast.Term
	terms := make([]ast.Term, 0, w.texts) // one allocation for all of them
	for i := range w.sections {
		s := &w.sections[i]
		all[i] = [2]*ast.Term{s.key, x.sections[i]}
		if !s.fixed {
			all[i][1] = s.write(in, room[:0], &terms)
		}
	}
	return ast.ObjectTerm(all[:len(w.sections)]...)
}

// write appends the section to terms, which has the capacity.
func (s *section) write(in *Input, members [][2]*ast.Term, terms *[]ast.Term) *ast.Term {
	term := func(v ast.Value) *ast.Term {
		*terms = append(*terms, ast.Term{Value: v})
		return &(*terms)[len(*terms)-1]
	}
	for _, f := range s.fields {
		if v := f.value(in); v != nil {
			members = append(members, [2]*ast.Term{f.key, term(v)})
		}
	}
	return term(ast.NewObject(members...))
}

// subject is the part of the input that is the same for an agent's next request with the
// same key. It has the attributes and the sections that were written from them.
type subject struct {
	agent    AgentAttrs
	caller   CallerAttrs
	org      OrgAttrs
	sections [maxSections]*ast.Term // the fixed sections
}

// subject returns the subject of in, either new or from the cache. A cached subject is used
// only if all of its attributes are equal, so the cache needs no invalidation.
func (w *writer) subject(in *Input) *subject {
	place := &w.subjects[maphash.String(w.seed, in.Caller.KeyID)%uint64(len(w.subjects))]
	if x := place.Load(); x != nil && x.is(in, w) {
		return x
	}
	x := &subject{agent: in.Agent, caller: in.Caller, org: in.Org}
	x.agent.AllowedModels = slices.Clone(in.Agent.AllowedModels)
	if w.metadata == nil {
		x.agent.Metadata = maps.Clone(in.Agent.Metadata)
	} else {
		x.agent.Metadata = make(map[string]any, len(w.metadata))
		for _, k := range w.metadata {
			x.agent.Metadata[k] = in.Agent.Metadata[k]
		}
	}
	x.caller.KeyScopes = slices.Clone(in.Caller.KeyScopes)
	x.caller.KeyAllowedModels = slices.Clone(in.Caller.KeyAllowedModels)
	terms := make([]ast.Term, 0, w.texts)
	for i := range w.sections {
		if s := &w.sections[i]; s.fixed {
			x.sections[i] = s.write(in, nil, &terms)
		}
	}
	place.Store(x)
	return x
}

// is reports whether x was written from the attributes that in has.
func (x *subject) is(in *Input, w *writer) bool {
	a, b := &x.agent, &in.Agent
	c, d := &x.caller, &in.Caller
	return c.KeyID == d.KeyID && a.ID == b.ID && a.Name == b.Name && a.Team == b.Team && a.Environment == b.Environment && a.Tier == b.Tier && a.Status == b.Status &&
		c.KeyStatus == d.KeyStatus && c.KeyRateLimit == d.KeyRateLimit && c.KeyExpiresAt.Equal(d.KeyExpiresAt) && x.org == in.Org &&
		slices.Equal(a.AllowedModels, b.AllowedModels) && slices.Equal(c.KeyScopes, d.KeyScopes) && slices.Equal(c.KeyAllowedModels, d.KeyAllowedModels) &&
		w.sameMetadata(a.Metadata, b.Metadata)
}

func (w *writer) sameMetadata(a, b map[string]any) bool {
	if w.metadata != nil { // rules read no key or only these
		for _, k := range w.metadata {
			if !sameScalar(a[k], b[k]) {
				return false
			}
		}
		return true
	}
	return maps.EqualFunc(a, b, sameScalar)
}

// sameScalar is false for what cannot be compared, and for NaN.
func sameScalar(a, b any) bool {
	switch a.(type) {
	case nil, string, bool, json.Number, float64, int, int64:
		return a == b
	}
	return false
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

// families returns the families of the tools. It includes otherFamily if a tool has none.
func families(r *RequestAttrs) []string {
	if !r.ToolsOther {
		return r.ToolFamilies
	}
	return append(slices.Clone(r.ToolFamilies), otherFamily)
}

// dollars returns nano-dollars as a number of US dollars, and nil for an unknown amount.
func dollars(nano *int64) ast.Value {
	if nano == nil {
		return nil
	}
	s, _, _ := canonical(strconv.FormatFloat(float64(*nano)/1e9, 'g', -1, 64))
	return ast.Number(s)
}

func numberOf(n int64) ast.Value { return ast.InternedTerm(n).Value }

// amount limits n to maxInt, the highest value that conditions compare.
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

// metadataOf returns the strings, numbers and booleans of m. Other values are left out.
func metadataOf(m map[string]any) ast.Value {
	members := make([][2]*ast.Term, 0, len(m))
	for k, v := range m {
		if v := scalarOf(v); v != nil {
			members = append(members, [2]*ast.Term{ast.StringTerm(k), ast.NewTerm(v)})
		}
	}
	return ast.NewObject(members...)
}

// someMetadata is metadataOf with those keys only.
func someMetadata(m map[string]any, keys []string) ast.Value {
	members := make([][2]*ast.Term, 0, len(keys))
	for _, k := range keys {
		if v := scalarOf(m[k]); v != nil {
			members = append(members, [2]*ast.Term{ast.StringTerm(k), ast.NewTerm(v)})
		}
	}
	return ast.NewObject(members...)
}

// scalarOf returns nil for a value that is not a scalar, for the empty string, and for a
// number that cannot be compared exactly.
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
