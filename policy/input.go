package policy

import (
	"encoding/binary"
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

// field is a member of the input document. One of its functions reads the value from an
// Input. Documents, keys of the memo and facts all read values with it.
type field struct {
	section, name string

	text    func(*Input) string             // "": missing
	integer func(*Input) (n int64, ok bool) // from -maxInt to maxInt if conditions compare it
	truth   func(*Input) bool
	amount  func(*Input) *int64      // in nano-dollars, for a document in dollars; nil: missing
	list    func(*Input) [2][]string // its members are those of both lists
	mixed   bool                     // it is agent.metadata
	keys    []string                 // the keys of mixed that a document has; nil: all
}

// inputFields are the fields of the input document in docs/policy.md.
func inputFields() []field {
	text := func(section, name string, of func(*Input) string) field {
		return field{section: section, name: name, text: of}
	}
	list := func(section, name string, of func(*Input) [2][]string) field {
		return field{section: section, name: name, list: of}
	}
	integer := func(section, name string, of func(*Input) (int64, bool)) field {
		return field{section: section, name: name, integer: of}
	}
	return []field{
		text("agent", "id", func(in *Input) string { return in.Agent.ID }),
		text("agent", "name", func(in *Input) string { return in.Agent.Name }),
		text("agent", "team", func(in *Input) string { return in.Agent.Team }),
		text("agent", "environment", func(in *Input) string { return in.Agent.Environment }),
		text("agent", "tier", func(in *Input) string { return in.Agent.Tier }),
		text("agent", "status", func(in *Input) string { return in.Agent.Status }),
		list("agent", "allowed_models", func(in *Input) [2][]string { return [2][]string{in.Agent.AllowedModels} }),
		{section: "agent", name: "metadata", mixed: true},

		text("request", "operation", func(in *Input) string { return in.Request.Operation }),
		text("request", "scope", func(in *Input) string { return in.Request.Scope }),
		text("request", "provider", func(in *Input) string { return in.Request.Provider }),
		text("request", "model", func(in *Input) string { return in.Request.Model }),
		text("request", "mode", func(in *Input) string { return in.Request.Mode }),
		text("request", "host", func(in *Input) string { return in.Request.Host }),
		text("request", "path", func(in *Input) string { return in.Request.Path }),
		{section: "request", name: "stream", truth: func(in *Input) bool { return in.Request.Stream }},
		integer("request", "max_tokens", func(in *Input) (int64, bool) { return amount(in.Request.MaxTokens), in.Request.MaxTokens != 0 }),
		integer("request", "input_tokens_estimate", func(in *Input) (int64, bool) { return amount(in.Request.InputTokensEstimate), true }),
		integer("request", "bytes", func(in *Input) (int64, bool) { return amount(in.Request.Bytes), true }),
		list("request", "tools", func(in *Input) [2][]string { return [2][]string{in.Request.Tools} }),
		list("request", "tool_names", func(in *Input) [2][]string { return [2][]string{in.Request.Tools, in.Request.ToolFamilies} }),
		list("request", "tool_families", func(in *Input) [2][]string {
			if in.Request.ToolsOther {
				return [2][]string{in.Request.ToolFamilies, otherFamilies}
			}
			return [2][]string{in.Request.ToolFamilies}
		}),
		text("request", "session_id", func(in *Input) string { return in.Request.SessionID }),
		list("request", "url_hosts", func(in *Input) [2][]string { return [2][]string{in.Request.URLHosts} }),
		text("request", "time", func(in *Input) string { return timeOf(in.Request.Time) }),
		integer("request", "hour_utc", func(in *Input) (int64, bool) {
			return int64(in.Request.Time.UTC().Hour()), !in.Request.Time.IsZero()
		}),
		// ISO 8601's: 1 is Monday, 7 is Sunday.
		integer("request", "weekday_utc", func(in *Input) (int64, bool) {
			return int64(in.Request.Time.UTC().Weekday()+6)%7 + 1, !in.Request.Time.IsZero()
		}),

		text("caller", "kind", func(in *Input) string { return in.Caller.Kind }),
		text("caller", "credential_id", func(in *Input) string { return in.Caller.KeyID }),
		text("caller", "key_id", func(in *Input) string { return in.Caller.KeyID }),
		text("caller", "key_status", func(in *Input) string { return in.Caller.KeyStatus }),
		list("caller", "key_scopes", func(in *Input) [2][]string { return [2][]string{in.Caller.KeyScopes} }),
		list("caller", "key_allowed_models", func(in *Input) [2][]string {
			if len(in.Caller.KeyAllowedModels) == 0 {
				return [2][]string{everyModel}
			}
			return [2][]string{in.Caller.KeyAllowedModels}
		}),
		text("caller", "key_expires_at", func(in *Input) string {
			if in.Caller.KeyExpiresAt.IsZero() {
				return never
			}
			return timeOf(in.Caller.KeyExpiresAt)
		}),
		integer("caller", "key_rate_limit", func(in *Input) (int64, bool) { return in.Caller.KeyRateLimit, in.Caller.KeyRateLimit != 0 }),
		text("caller", "ip", func(in *Input) string { return in.Caller.IP }),
		text("caller", "user_agent", func(in *Input) string { return in.Caller.UserAgent }),

		{section: "spend", name: "day_usd", amount: func(in *Input) *int64 { return in.Spend.Day }},
		{section: "spend", name: "month_usd", amount: func(in *Input) *int64 { return in.Spend.Month }},

		text("org", "id", func(in *Input) string { return in.Org.ID }),
		text("org", "tier", func(in *Input) string { return in.Org.Tier }),
	}
}

var (
	otherFamilies = []string{otherFamily}
	everyModel    = []string{"*"}
)

func (f *field) id() string { return f.section + "." + f.name }

// value returns the value in the input document, or nil if it is missing.
func (f *field) value(in *Input) ast.Value {
	switch {
	case f.text != nil:
		return textOf(f.text(in))
	case f.integer != nil:
		if n, ok := f.integer(in); ok {
			return numberOf(n)
		}
		return nil
	case f.truth != nil:
		return ast.InternedTerm(f.truth(in)).Value
	case f.amount != nil:
		return dollars(f.amount(in))
	case f.list != nil:
		return textsOf(f.list(in))
	case f.keys != nil:
		return someMetadata(in.Agent.Metadata, f.keys)
	}
	return metadataOf(in.Agent.Metadata)
}

// fact returns the value of a field that is no list. Its kind is 0 if it is missing.
func (f *field) fact(in *Input) fact {
	switch {
	case f.text != nil:
		if s := f.text(in); s != "" {
			return fact{kind: text, str: s}
		}
	case f.integer != nil:
		if n, ok := f.integer(in); ok {
			return fact{kind: number, num: float64(n)}
		}
	case f.truth != nil:
		return truthFact(f.truth(in))
	case f.amount != nil:
		if nano := f.amount(in); nano != nil {
			return fact{kind: number, num: float64(*nano) / 1e9}
		}
	}
	return fact{}
}

// appendKey appends the value to the key of a memo.
func (f *field) appendKey(b []byte, in *Input) []byte {
	switch {
	case f.list != nil:
		l := f.list(in)
		b = binary.AppendUvarint(b, uint64(len(l[0])+len(l[1])))
		for _, part := range l {
			for _, s := range part {
				b = appendText(b, s)
			}
		}
		return b
	case f.mixed:
		for _, k := range f.keys {
			b = mixedFact(in.Agent.Metadata[k]).appendKey(b)
		}
		return b
	case f.integer != nil: // exactly: the limit of a key may be any number
		n, ok := f.integer(in)
		return binary.AppendVarint(truthFact(ok).appendKey(b), n)
	}
	return f.fact(in).appendKey(b)
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
	field
	key *ast.Term
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
		if !all && !read[f.id()] {
			continue
		}
		n := len(w.sections)
		if n == 0 || w.sections[n-1].key.Value.Compare(ast.String(f.section)) != 0 {
			w.sections = append(w.sections, section{key: ast.StringTerm(f.section), fixed: fixed(f.section)})
			n++
			w.texts++
		}
		if f.mixed {
			f.keys = metadata
		}
		s := &w.sections[n-1]
		s.fields = append(s.fields, keyed{f, ast.StringTerm(f.name)})
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
	for i := range s.fields {
		if v := s.fields[i].value(in); v != nil {
			members = append(members, [2]*ast.Term{s.fields[i].key, term(v)})
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
	return c.KeyID == d.KeyID && c.Kind == d.Kind && a.ID == b.ID && a.Name == b.Name && a.Team == b.Team && a.Environment == b.Environment && a.Tier == b.Tier && a.Status == b.Status &&
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

func textsOf(lists [2][]string) ast.Value {
	n := len(lists[0]) + len(lists[1])
	terms, list := make([]ast.Term, 0, n), make([]*ast.Term, 0, n)
	for _, ss := range lists {
		for _, s := range ss {
			terms = append(terms, ast.Term{Value: ast.String(s)})
			list = append(list, &terms[len(terms)-1])
		}
	}
	return ast.NewArray(list...)
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

// amount limits n to what conditions compare exactly.
func amount(n int64) int64 { return max(-maxInt, min(n, maxInt)) }

// timeOf returns t as text, and "" for the zero time, which is missing.
func timeOf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	switch t = t.UTC(); {
	case t.Year() > 9999:
		return never
	case t.Year() < 1:
		t = time.Time{}
	}
	return t.Format(timeLayout)
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
	switch f := mixedFact(v); f.kind {
	case text:
		return ast.String(f.str)
	case truth:
		return ast.InternedTerm(f == truthFact(true)).Value
	case number:
		s, _, _ := canonical(strconv.FormatFloat(f.num, 'g', -1, 64))
		return ast.Number(s)
	}
	return nil
}
