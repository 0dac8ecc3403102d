package policy

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// facts finds the rules of a generated module that hold for an input, and what the baseline
// reads from it. Inputs with equal facts have equal decisions, because decision.rego reads
// nothing else. So OPA evaluates one input of each kind, and the memo has its result for the
// others. See docs/decisions/0016.
//
// Most rules require some attribute to have one of a few values. An index has these rules by
// the value, so rules for other agents, models or tools cost nothing.
type facts struct {
	rules   []native
	rest    []int32 // the rules that no index has
	indexes []factIndex
}

// native is the condition of a rule in Go. It is true exactly if the Rego of the rule is
// true. TestDecisionsAreTheContracts compares both with a third
// implementation.
type native func(*trial) bool

// trial counts the comparisons for one input.
type trial struct {
	in    *Input
	steps int
}

// maxTrial is the most comparisons for the facts of one input. With more, OPA evaluates the
// input. It counts its own steps.
const maxTrial = 100_000

// over counts a comparison and reports whether it is one too many.
func (t *trial) over() bool {
	t.steps++
	return t.steps > maxTrial
}

// fact is a scalar value that conditions compare. The kind of a missing value is 0.
type fact struct {
	kind kind    // text, number or truth
	str  string  // of a text or a truth
	num  float64 // of a number
}

func truthFact(b bool) fact { return fact{kind: truth, str: strconv.FormatBool(b)} }

func (v value) fact() fact {
	if v.kind == truth {
		return fact{kind: truth, str: v.rego}
	}
	return fact{kind: v.kind, str: v.str, num: v.num}
}

// mixedFact returns a value of agent.metadata. The empty string is missing. So is a value
// that is not a scalar, and a number that cannot be compared exactly.
func mixedFact(v any) fact {
	switch v := v.(type) {
	case string:
		if v != "" {
			return fact{kind: text, str: v}
		}
	case bool:
		return truthFact(v)
	case json.Number:
		if _, f, ok := canonical(string(v)); ok {
			return fact{kind: number, num: f}
		}
	case float64:
		return mixedFact(json.Number(strconv.FormatFloat(v, 'g', -1, 64)))
	case int:
		return mixedFact(int64(v))
	case int64:
		return mixedFact(json.Number(strconv.FormatInt(v, 10)))
	}
	return fact{}
}

func (f fact) appendKey(b []byte) []byte {
	b = append(b, byte(f.kind))
	switch f.kind {
	case text, truth:
		b = appendText(b, f.str)
	case number:
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(f.num))
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// rule is a condition that generate writes as a rule, for a policy with this effect.
type rule struct {
	when   condition
	effect Effect
}

// want is a value that an attribute must have for a rule to hold. of is a field of the input,
// or "agent.metadata.KEY".
type want struct {
	of string
	fact
}

// factIndex has the rules that want values of one field.
type factIndex struct {
	read  func(*Input) fact        // of a scalar
	list  func(*Input) [2][]string // of a list: one of its members is wanted
	rules map[fact][]int32
}

func factsOf(rules []rule) *facts {
	c := factCompiler{fields: map[string]*field{}, spans: map[span]*spanFact{}, wanted: map[want]int{}}
	fields := inputFields()
	for i := range fields {
		c.fields[fields[i].id()] = &fields[i]
	}
	for _, r := range rules {
		r.when.leaves(func(l condition) {
			for _, w := range c.wants(l, r.effect) {
				c.wanted[w]++
			}
		})
	}
	fs := &facts{rules: make([]native, len(rules))}
	indexes := map[string]int{}
	for i, r := range rules {
		fs.rules[i] = c.native(r.when, r.effect)
		wants, _ := c.best(r.when, r.effect)
		if wants == nil {
			fs.rest = append(fs.rest, int32(i))
		}
		for _, w := range wants {
			n, ok := indexes[w.of]
			if !ok {
				n = len(fs.indexes)
				indexes[w.of] = n
				x := factIndex{rules: map[fact][]int32{}}
				if f := c.fields[w.of]; f != nil && f.list != nil {
					x.list = f.list
				} else {
					x.read = c.reader(w.of)
				}
				fs.indexes = append(fs.indexes, x)
			}
			of := fs.indexes[n].rules
			if found := of[w.fact]; len(found) == 0 || found[len(found)-1] != int32(i) {
				of[w.fact] = append(found, int32(i))
			}
		}
	}
	return fs
}

// room is the memory for one lookup, which the next one uses again.
type room struct {
	trial
	key  []byte
	hold []int32
}

// appendKey appends the facts of an input to the key in r. ok is false if they have none.
func (fs *facts) appendKey(r *room, in *Input) (ok bool) {
	if !ordinary(in.Request.Time) || !in.Caller.KeyExpiresAt.IsZero() && !ordinary(in.Caller.KeyExpiresAt) {
		return false
	}
	r.trial = trial{in: in}
	r.hold = r.hold[:0]
	r.try(fs, fs.rest)
	for i := range fs.indexes {
		x := &fs.indexes[i]
		if x.list == nil {
			if v := x.read(in); v.kind != 0 {
				r.try(fs, x.rules[v])
			}
			continue
		}
		for _, members := range x.list(in) {
			for _, m := range members {
				if r.over() {
					break
				}
				r.try(fs, x.rules[fact{kind: text, str: m}])
			}
		}
	}
	if r.steps > maxTrial {
		return false
	}
	slices.Sort(r.hold)
	r.hold = slices.Compact(r.hold) // lists can have a member twice
	r.key = appendBaseline(r.key, in)
	for _, n := range r.hold {
		r.key = binary.AppendUvarint(r.key, uint64(n))
	}
	return true
}

// try adds those of the rules that hold.
func (r *room) try(fs *facts, rules []int32) {
	for _, n := range rules {
		if fs.rules[n](&r.trial) {
			r.hold = append(r.hold, n)
		}
	}
}

// appendBaseline appends what baseline.rego and decision.rego read. Its parts are the rules of
// the baseline, and have their names.
func appendBaseline(b []byte, in *Input) []byte {
	r, c := &in.Request, &in.Caller
	in1 := func(s string, of ...string) byte { return byte(slices.Index(of, s) + 1) }
	bit := func(n int, holds bool) byte {
		if holds {
			return 1 << n
		}
		return 0
	}
	matches := func(patterns []string) bool {
		return r.Model != "" && slices.ContainsFunc(patterns, func(p string) bool { return Matches(p, r.Model) })
	}
	unexpired := c.KeyExpiresAt.IsZero() || r.Time.Before(c.KeyExpiresAt)
	scoped := r.Scope != "" && (slices.Contains(c.KeyScopes, r.Scope) || slices.Contains(c.KeyScopes, "*"))
	agentModel := matches(in.Agent.AllowedModels)
	keyModel := r.Model != "" && len(c.KeyAllowedModels) == 0 || matches(c.KeyAllowedModels)
	lists := r.Operation == "models.list" || r.Operation == "models.get"
	b = append(b, in1(in.Agent.Status, "active", "suspended"), in1(c.KeyStatus, "active", "revoked"),
		bit(0, unexpired)|bit(1, scoped)|bit(2, agentModel)|bit(3, keyModel)|bit(4, lists))
	return binary.AppendVarint(b, c.KeyRateLimit)
}

// ordinary reports whether a time is one whose order as text is that of the calendar, in
// every zone. For other times there are no facts.
func ordinary(t time.Time) bool { y := t.UTC().Year(); return y > 1 && y < 9999 }

// factCompiler makes facts.
type factCompiler struct {
	fields map[string]*field
	spans  map[span]*spanFact
	wanted map[want]int // how many comparisons want a value
}

// reader returns how a scalar attribute is read.
func (c *factCompiler) reader(name string) func(*Input) fact {
	if key, ok := strings.CutPrefix(name, metadata); ok {
		return func(in *Input) fact { return mixedFact(in.Agent.Metadata[key]) }
	}
	return c.fields[name].fact
}

// native returns a condition in Go: the cheap parts first, and the joined parts last.
func (c *factCompiler) native(when condition, effect Effect) native {
	if when.join == leaf {
		return c.leaf(when, effect)
	}
	parts := make([]native, len(when.parts))
	for i, p := range slices.SortedStableFunc(slices.Values(when.parts), func(a, b condition) int { return a.cost() - b.cost() }) {
		parts[i] = c.native(p, effect)
	}
	some := when.join == some
	return func(t *trial) bool {
		for _, p := range parts {
			if p(t) == some {
				return some
			}
		}
		return !some
	}
}

// cost orders the parts of a condition. It changes no result.
func (c condition) cost() int {
	switch {
	case c.join != leaf:
		return 4
	case c.attribute.kind == texts || c.attribute.kind == scopes || c.op == opCIDR:
		return 3
	case c.op == opGlob || c.op == opWithin:
		return 2
	case c.op != opIn:
		return 1
	}
	return 0
}

// set returns the list that the leaf reads, and whether every member must pass. If not, one
// member is enough. The member wild can stand for any: it passes if one is enough, and fails
// if every member must pass.
func (c condition) set(effect Effect) (of string, every bool, wild string) {
	of = strings.TrimPrefix(ref(c.name), "input.")
	switch {
	case c.attribute.kind == scopes:
		return of, c.negated, "*"
	case c.name == "request.tool" && c.negated == (effect == Allow):
		of = "request.tool_names"
	case c.name == urlHost:
		wild = unknownHost
	}
	return of, effect == Allow, wild
}

// leaf returns a leaf in Go.
func (c *factCompiler) leaf(l condition, effect Effect) native {
	negated := l.negated
	if l.attribute.kind != texts && l.attribute.kind != scopes {
		if l.op == opWithin {
			s := c.span(l.span)
			return func(t *trial) bool { return !t.over() && s.holds(t.in.Request.Time) != negated }
		}
		read, passes := c.reader(l.name), l.passes(effect)
		if l.op == opExists {
			return func(t *trial) bool { return !t.over() && (read(t.in).kind != 0) != negated }
		}
		return func(t *trial) bool {
			v := read(t.in)
			return !t.over() && v.kind != 0 && passes(v)
		}
	}
	if l.op == opExists {
		list := c.fields[strings.TrimPrefix(ref(l.name), "input.")].list
		return func(t *trial) bool { m := list(t.in); return !t.over() && (len(m[0])+len(m[1]) > 0) != negated }
	}
	of, every, wild := l.set(effect)
	list, passes := c.fields[of].list, l.passes(effect)
	return func(t *trial) bool {
		for _, members := range list(t.in) {
			for _, m := range members {
				if t.over() {
					return false
				}
				pass := !every
				if wild == "" || m != wild {
					pass = passes(fact{kind: text, str: m})
				}
				if pass != every {
					return !every
				}
			}
		}
		return every
	}
}

// passes returns how the leaf compares a value that is present.
func (c condition) passes(effect Effect) func(fact) bool {
	negated := c.negated
	numbers := func(holds func(float64) bool) func(fact) bool {
		return func(v fact) bool { return v.kind == number && holds(v.num) != negated }
	}
	texts := func(holds func(with, s string) bool) func(fact) bool {
		with := make([]string, len(c.values))
		for i, v := range c.values {
			with[i] = v.str
		}
		return func(v fact) bool {
			return v.kind == text && slices.ContainsFunc(with, func(w string) bool { return holds(w, v.str) }) != negated
		}
	}
	var low float64
	if len(c.values) > 0 {
		low = c.values[0].num
	}
	switch c.op {
	case opIn:
		if len(c.values) == 1 {
			one := c.values[0].fact()
			return func(v fact) bool { return (v == one) != negated }
		}
		in := make(map[fact]bool, len(c.values))
		for _, v := range c.values {
			in[v.fact()] = true
		}
		return func(v fact) bool { return in[v] != negated }
	case opBetween:
		high := c.values[1].num
		return numbers(func(n float64) bool { return low <= n && n <= high })
	case opGreater:
		return numbers(func(n float64) bool { return n > low })
	case opGreaterEqual:
		return numbers(func(n float64) bool { return n >= low })
	case opLess:
		return numbers(func(n float64) bool { return n < low })
	case opLessEqual:
		return numbers(func(n float64) bool { return n <= low })
	case opPrefix:
		return texts(func(with, s string) bool { return strings.HasPrefix(s, with) })
	case opSuffix:
		return texts(func(with, s string) bool { return strings.HasSuffix(s, with) })
	case opGlob:
		if negated == (effect == Allow) {
			return texts(matchesAll)
		}
		return texts(Matches)
	case opCIDR:
		ranges := make([]netip.Prefix, len(c.values))
		for i, v := range c.values {
			ranges[i], _ = netip.ParsePrefix(v.str) // an invalid one has no address
		}
		return func(v fact) bool {
			ip, ok := addressOf(v.str)
			return ok && slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(ip) }) != negated
		}
	}
	return func(fact) bool { return false }
}

// wants returns values. A leaf holds only for one of them. It returns nil for other leaves.
func (c *factCompiler) wants(l condition, effect Effect) []want {
	if l.op != opIn || l.negated {
		return nil
	}
	of := l.name
	var wants []want
	if l.attribute.kind == texts || l.attribute.kind == scopes {
		list, every, wild := l.set(effect)
		if every {
			return nil // it holds for an empty list
		}
		if of = list; wild != "" {
			wants = append(wants, want{of, fact{kind: text, str: wild}})
		}
	}
	for _, v := range l.values {
		wants = append(wants, want{of, v.fact()})
	}
	return wants
}

// best returns the values that find a rule with the fewest other rules. It returns nil and a
// large number for a condition that may hold without one of a few values.
func (c *factCompiler) best(when condition, effect Effect) (wants []want, shared int) {
	switch when.join {
	case leaf:
		for _, w := range c.wants(when, effect) {
			wants, shared = append(wants, w), max(shared, c.wanted[w])
		}
	case some:
		for _, p := range when.parts {
			part, n := c.best(p, effect)
			if part == nil {
				return nil, math.MaxInt
			}
			wants, shared = append(wants, part...), max(shared, n)
		}
	default:
		shared = math.MaxInt
		for _, p := range when.parts {
			if part, n := c.best(p, effect); part != nil && n < shared {
				wants, shared = part, n
			}
		}
	}
	if wants == nil {
		shared = math.MaxInt
	}
	return wants, shared
}

// span returns the fact of a span. Equal spans share it.
func (c *factCompiler) span(s span) *spanFact {
	if c.spans[s] == nil {
		c.spans[s] = &spanFact{span: s}
	}
	return c.spans[s]
}

// spanFact remembers whether a span has the present time, until the next edge that could
// change it.
type spanFact struct {
	span
	last atomic.Pointer[steadySpan]
}

type steadySpan struct {
	from, until time.Time // from belongs to it, until does not
	holds       bool
}

func (s *spanFact) holds(t time.Time) bool {
	if x := s.last.Load(); x != nil && !t.Before(x.from) && t.Before(x.until) {
		return x.holds
	}
	holds := s.span.holds(t)
	if from, until, ok := s.steady(t); ok {
		s.last.Store(&steadySpan{from, until, holds})
	}
	return holds
}
