package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of a document. They are documented: docs/policy.md.
const (
	maxDocument   = 64 << 10 // bytes
	maxName       = 128      // bytes
	maxConditions = 32
	maxList       = 256  // members of an "in"
	maxText       = 1024 // bytes of a literal, or of a metadata key
	maxRPM        = 1_000_000_000
)

// document is a policy that we understand, whole.
type document struct {
	name       string
	effect     Effect
	conditions []condition // sorted by attribute, each of another
	rpm        int64       // 0: none
	wildcard   *Invalid    // of reader
}

// condition is true if the attribute is one of values, or is from low to high.
type condition struct {
	name      string
	attribute attribute
	values    []value // sorted
	between   bool
	low, high value
}

// value is a literal of a condition.
type value struct {
	kind kind    // text, number or truth
	rego string  // as Rego spells it
	str  string  // of a text
	num  float64 // of a number
}

// Check returns nil if document is one that Compile takes, and else an *Invalid.
// Nothing in a document is ever ignored: what this version does not understand
// is refused.
//
// So is a literal with * or ?. In lists of models * stands for any text, but in a
// condition it stands for itself, and a deny would never match. Compile takes such a
// document: one may have been stored before.
func Check(document []byte) error {
	d, err := parse(document)
	if err == nil && d.wildcard != nil {
		return d.wildcard
	}
	return err
}

// reader reads a document strictly. Its first problem is in err, after which its
// methods do nothing.
type reader struct {
	dec      *jsontext.Decoder
	err      *Invalid
	wildcard *Invalid // the first literal that looks like a pattern; see Check
}

func (r *reader) fail(field, problem, fix string) {
	if r.err == nil {
		r.err = &Invalid{Field: field, Problem: problem, Fix: fix}
	}
}

func parse(b []byte) (document, error) {
	if len(b) > maxDocument {
		return document{}, &Invalid{Problem: fmt.Sprintf("has %d bytes", len(b)), Fix: fmt.Sprintf("at most %d are taken", maxDocument)}
	}
	r := &reader{dec: jsontext.NewDecoder(bytes.NewReader(b))}
	d := r.document()
	if r.err == nil {
		if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
			r.fail("", "has something after its end", "send one JSON object")
		}
	}
	if r.err != nil {
		return document{}, r.err
	}
	d.wildcard = r.wildcard
	return d, nil
}

func (r *reader) document() (d document) {
	seen := map[string]bool{}
	r.object("", func(name string) {
		seen[name] = true
		switch name {
		case "name":
			d.name = r.name()
		case "effect":
			d.effect = r.effect()
		case "conditions":
			d.conditions = r.conditions()
		case "limits":
			d.rpm = r.limits()
		case "approval":
			r.fail(name, "is not understood", "not built yet in this version; the effects are allow and deny")
		case "rego":
			r.fail(name, "is not understood", "not built yet in this version; write conditions")
		case "priority":
			r.fail(name, "is not understood", "leave it out: the order of policies never matters, any deny wins")
		default:
			r.fail(clip(name), "is not a field of a policy", "the fields are name, effect, conditions and limits")
		}
	})
	if r.err != nil {
		return d
	}
	for _, f := range [...][2]string{
		{"name", "give the policy a name"},
		{"effect", "write allow or deny"},
		{"conditions", "write {} if the policy is for every request"},
	} {
		if !seen[f[0]] {
			r.fail(f[0], "is missing", f[1])
		}
	}
	if i := slices.IndexFunc(d.conditions, func(c condition) bool { return c.name == urlHost }); i >= 0 && d.effect == Allow &&
		slices.ContainsFunc(d.conditions[i].values, func(v value) bool { return v.str == unknownHost }) {
		r.fail("conditions."+urlHost, "permits hosts that are unknown", "leave \"unknown\" out: such a URL may lead to any host")
	}
	if seen["limits"] && d.effect == Deny {
		r.fail("limits", "belong to what is allowed", "leave them out of a deny policy")
	}
	return d
}

// object calls member for each member's name, with the decoder before its value.
func (r *reader) object(field string, member func(name string)) {
	if !r.enter(field, '{', "a JSON object") {
		return
	}
	for r.err == nil && r.dec.PeekKind() != '}' {
		if t, ok := r.token(); ok {
			member(t.String())
		}
	}
	r.token()
}

// enter reads the token that opens a value of the kind.
func (r *reader) enter(field string, k jsontext.Kind, what string) bool {
	if got := r.dec.PeekKind(); r.err == nil && got != k && got != 0 {
		r.fail(field, "is "+spelled(got), "write "+what)
	}
	_, ok := r.token()
	return ok
}

func (r *reader) token() (jsontext.Token, bool) {
	if r.err != nil {
		return jsontext.Token{}, false
	}
	t, err := r.dec.ReadToken()
	if err != nil {
		r.syntax(err)
		return jsontext.Token{}, false
	}
	return t.Clone(), true
}

func (r *reader) syntax(err error) {
	var s *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		errors.As(err, &s)
		r.fail(clip(s.JSONPointer.LastToken()), "stands twice", "keep one")
	case errors.As(err, &s):
		r.fail("", fmt.Sprintf("is not strict JSON at byte %d", s.ByteOffset), "send UTF-8 JSON without comments, trailing commas or repeated names")
	default:
		r.fail("", "ends too early", "send one whole JSON object")
	}
}

func spelled(k jsontext.Kind) string {
	switch k {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "text"
	case '0':
		return "a number"
	case 'n':
		return "null"
	default:
		return "true or false"
	}
}

func (r *reader) text(field, what string) string {
	if got := r.dec.PeekKind(); r.err == nil && got != '"' && got != 0 {
		r.fail(field, "is "+spelled(got), "write "+what)
	}
	t, ok := r.token()
	if !ok {
		return ""
	}
	return t.String()
}

func (r *reader) name() string {
	s := r.text("name", "text")
	switch {
	case r.err != nil:
	case strings.TrimSpace(s) == "":
		r.fail("name", "is empty", "give the policy a name")
	case len(s) > maxName:
		r.fail("name", fmt.Sprintf("has %d bytes", len(s)), fmt.Sprintf("at most %d are taken", maxName))
	case strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }):
		r.fail("name", "has characters that cannot be shown", "use printable ones")
	}
	return s
}

func (r *reader) effect() Effect {
	switch s := r.text("effect", "allow or deny"); {
	case r.err != nil, s == "deny":
		return Deny
	case s == "allow":
		return Allow
	case s == "require_approval":
		r.fail("effect", "is not understood", "not built yet in this version; write allow or deny")
	default:
		r.fail("effect", "is "+quote(clip(s)), "write allow or deny")
	}
	return Deny
}

func (r *reader) limits() (rpm int64) {
	r.object("limits", func(name string) {
		field := "limits." + clip(name)
		switch name {
		case "rpm":
			v := r.literal(field)
			if r.err == nil && (v.kind != number || v.num != math.Trunc(v.num) || v.num < 1 || v.num > maxRPM) {
				r.fail(field, "is not a number of requests per minute", fmt.Sprintf("write an integer from 1 to %d; to permit nothing, use effect deny", maxRPM))
			}
			rpm = int64(v.num)
		case "tpm", "concurrent", "daily_usd_cap", "monthly_usd_cap", "max_tokens":
			r.fail(field, "is not enforced by this version", "not built yet in this version; the one limit is rpm")
		default:
			r.fail(field, "is not a limit", "the one limit of this version is rpm")
		}
	})
	return rpm
}

func (r *reader) conditions() (cs []condition) {
	r.object("conditions", func(name string) {
		field := "conditions." + clip(name)
		a, fix := attributeOf(name)
		switch {
		case a.kind == 0:
			r.fail(field, "is not an attribute that conditions can be about", fix)
		case len(name) > len(metadata)+maxText:
			r.fail(field, fmt.Sprintf("has %d bytes", len(name)), fmt.Sprintf("at most %d are taken", len(metadata)+maxText))
		case len(cs) == maxConditions:
			r.fail(field, fmt.Sprintf("is one condition more than %d", maxConditions), "use several policies")
		default:
			cs = append(cs, r.condition(field, name, a))
		}
	})
	slices.SortFunc(cs, func(a, b condition) int { return cmp.Compare(a.name, b.name) })
	return cs
}

func (r *reader) condition(field, name string, a attribute) condition {
	c := condition{name: name, attribute: a}
	switch k := r.dec.PeekKind(); k {
	case '{':
		operators := 0
		r.object(field, func(op string) {
			operators++
			switch {
			case operators > 1:
				r.fail(field, "has more than one operator", "write one")
			case op == "in":
				c.values = r.list(field+".in", a)
			case op == "between":
				r.between(field+".between", a, &c)
			case slices.Contains([]string{"eq", "ne", "not_in", "gt", "gte", "lt", "lte", "prefix", "suffix", "glob", "exists"}, op):
				r.fail(field+"."+op, "is not understood", "not built yet in this version; write a literal, in or between")
			default:
				r.fail(field+"."+clip(op), "is not an operator", "write a literal, in or between")
			}
		})
		if operators == 0 {
			r.fail(field, "has no operator", "write a literal, in or between")
		}
	case '[':
		r.fail(field, "is a list", `write {"in": […]}`)
	default:
		c.values = []value{r.of(field, a)}
	}
	return c
}

func (r *reader) list(field string, a attribute) (vs []value) {
	if a.kind == truth {
		r.fail(field, "is about true or false", "write true or false, or leave the condition out")
	}
	if !r.enter(field, '[', "a list") {
		return nil
	}
	for r.err == nil && r.dec.PeekKind() != ']' {
		at := field + "[" + strconv.Itoa(len(vs)) + "]"
		if len(vs) == maxList {
			r.fail(at, fmt.Sprintf("is one value more than %d", maxList), "use several policies")
			return nil
		}
		vs = append(vs, r.of(at, a))
	}
	r.token()
	if len(vs) == 0 {
		r.fail(field, "is empty, so the condition is never true", "list at least one value")
	}
	slices.SortFunc(vs, func(a, b value) int { return cmp.Compare(a.rego, b.rego) })
	return slices.CompactFunc(vs, func(a, b value) bool { return a.rego == b.rego })
}

func (r *reader) between(field string, a attribute, c *condition) {
	if a.kind != number && a.kind != mixed {
		r.fail(field, "is about numbers, and the attribute is none", "write a literal or in")
	}
	if !r.enter(field, '[', "[lowest, highest]") {
		return
	}
	var vs []value
	for r.err == nil && r.dec.PeekKind() != ']' {
		at := field + "[" + strconv.Itoa(len(vs)) + "]"
		v := r.of(at, a)
		if r.err == nil && v.kind != number {
			r.fail(at, "is not a number", "write a number")
		}
		if vs = append(vs, v); len(vs) > 2 {
			break
		}
	}
	if r.err == nil && len(vs) != 2 {
		r.fail(field, "has not two values", "write [lowest, highest]; both belong to it")
		return
	}
	r.token()
	if r.err != nil {
		return
	}
	if vs[0].num > vs[1].num {
		fix := "write the lower one first"
		if c.name == "request.hour_utc" || c.name == "request.weekday_utc" {
			fix += `; for a span over its end list the values: {"in": [22, 23, 0, 1]}`
		}
		r.fail(field, "goes from the higher to the lower", fix)
	}
	c.between, c.low, c.high = true, vs[0], vs[1]
}

// of reads a literal that the attribute can have.
func (r *reader) of(field string, a attribute) value {
	v := r.literal(field)
	if r.err != nil {
		return v
	}
	if v.kind == text && a.kind != scopes && r.wildcard == nil && strings.ContainsAny(v.str, "*?") {
		r.wildcard = &Invalid{field, "has * or ?, which match only themselves here", "write the exact value; the operator glob is not built yet in this version"}
	}
	want, what := a.kind, "text"
	switch a.kind {
	case texts, scopes:
		want = text
	case number:
		what = "a number"
	case truth:
		what = "true or false"
	case mixed:
		return v
	}
	if v.kind != want {
		r.fail(field, "is not of the attribute's type", "write "+what)
		return v
	}
	if v.kind == number && (v.num != math.Trunc(v.num) || v.num < float64(a.min) || v.num > float64(a.max)) {
		r.fail(field, "is a value that the attribute never has", fmt.Sprintf("write an integer from %d to %d", a.min, a.max))
	}
	if a.one != nil && v.kind == text {
		if problem, fix := a.one(v.str); problem != "" {
			r.fail(field, problem, fix)
		}
	}
	return v
}

// literal reads text, a number, true or false.
func (r *reader) literal(field string) value {
	switch k := r.dec.PeekKind(); k {
	case '{', '[', 'n':
		r.fail(field, "is "+spelled(k), "write text, a number, true or false")
	}
	t, ok := r.token()
	if !ok {
		return value{}
	}
	switch t.Kind() {
	case 't', 'f':
		return value{kind: truth, rego: strconv.FormatBool(t.Bool())}
	case '0':
		s, f, ok := canonical(t.String())
		if !ok {
			r.fail(field, "is a number that cannot be compared exactly", "use at most 15 digits")
		}
		return value{kind: number, rego: s, num: f}
	}
	s := t.String()
	switch {
	case s == "":
		r.fail(field, "is empty text", "an attribute that is empty is missing, and no condition on it is true; leave the condition out")
	case len(s) > maxText:
		r.fail(field, fmt.Sprintf("has %d bytes", len(s)), fmt.Sprintf("at most %d are taken", maxText))
	}
	return value{kind: text, rego: literal(s), str: s}
}

// clip bounds what of a document goes into a message.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
