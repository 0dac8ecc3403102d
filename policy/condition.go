package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// join is how a condition combines its parts.
type join uint8

const (
	all  join = iota // every part holds; with no parts it always holds
	some             // "any": at least one part holds
	not              // its only part is false; an unknown part is not enough
	leaf             // it has no parts: it compares an attribute
)

// condition is a tree of comparisons. Its value is true, false or unknown (Kleene's logic):
//
//   - A comparison of a missing attribute is unknown.
//   - The negation of unknown is unknown.
//   - A policy applies only if its conditions are true.
type condition struct {
	join  join
	parts []condition

	// Of a leaf:
	comparison
	negated bool // it holds if the comparison is false; set by normal
}

// comparison compares an attribute.
type comparison struct {
	name      string
	path      string // in the document: "conditions.any[0].agent.team"
	attribute attribute
	op        operator
	values    []value // sorted; for between: the lowest, then the highest
	span      span    // for opWithin
}

// operator is an operator of a comparison. A literal alone is opIn with one value.
type operator uint8

const (
	opIn operator = iota + 1
	opBetween
	opGreater
	opGreaterEqual
	opLess
	opLessEqual
	opPrefix
	opSuffix
	opGlob
	opCIDR
	opExists
	opWithin // for request.time
)

// operators are the operators by their names in documents. An operator that negates another
// has that one's op, and negated.
var operators = map[string]struct {
	op      operator
	negated bool
	list    bool // takes a list
}{
	"eq": {opIn, false, false}, "ne": {opIn, true, false}, "in": {opIn, false, true}, "not_in": {opIn, true, true},
	"between": {opBetween, false, true}, "gt": {opGreater, false, false}, "gte": {opGreaterEqual, false, false},
	"lt": {opLess, false, false}, "lte": {opLessEqual, false, false},
	"prefix": {opPrefix, false, false}, "suffix": {opSuffix, false, false}, "glob": {opGlob, false, false}, "cidr": {opCIDR, false, false},
	"exists": {opExists, false, false},
}

// operatorNames lists the operators in error messages.
const operatorNames = "eq, ne, in, not_in, between, gt, gte, lt, lte, prefix, suffix, glob, cidr or exists"

// fits returns "" if the attribute can be compared with op, and else what to write.
func (a attribute) fits(op operator) (fix string) {
	switch {
	case a.kind == instant:
		return `write {"between": ["08:00", "18:00"], "zone": "Europe/Berlin", "weekdays": [1, 5], "dates": ["2026-12-01", "2026-12-31"]} with the parts that you need`
	case op == opIn || op == opExists:
		return ""
	case op == opBetween || op == opGreater || op == opGreaterEqual || op == opLess || op == opLessEqual:
		if a.kind != number && a.kind != mixed {
			return "it compares numbers, and this attribute is not a number; write a literal or in"
		}
	case op == opCIDR:
		if !a.address {
			return "use it with caller.ip or request.url_host, which are addresses"
		}
	case a.kind == number || a.kind == truth:
		return "it compares text, and this attribute is not text"
	case a.address && a.kind == text:
		return "write cidr for a range of addresses"
	}
	return ""
}

// normal returns c with negations only at its leaves, and with the leaves sorted. negated is
// true if c is inside an odd number of negations.
func (c condition) normal(negated bool) condition {
	switch c.join {
	case leaf:
		c.negated = c.negated != negated
		return c
	case not:
		return c.parts[0].normal(!negated)
	}
	n := condition{join: c.join}
	if negated {
		n.join = all + some - c.join
	}
	for _, p := range c.parts {
		p = p.normal(negated)
		if p.join == n.join || p.join != leaf && len(p.parts) == 1 {
			n.parts = append(n.parts, p.parts...)
		} else {
			n.parts = append(n.parts, p)
		}
	}
	slices.SortStableFunc(n.parts, func(a, b condition) int {
		if a.join != leaf || b.join != leaf {
			return cmp.Compare(b.join, a.join) // leaves first
		}
		return cmp.Compare(a.name, b.name)
	})
	return n
}

// selecting returns the part of c that selects the callers that an allow policy governs.
// A comparison of another attribute may hold for the next request, so it counts as true.
func (c condition) selecting() condition {
	if c.join == leaf {
		if c.attribute.selects {
			return c
		}
		return condition{}
	}
	n := condition{join: c.join}
	for _, p := range c.parts {
		switch p = p.selecting(); {
		case p.join == all && len(p.parts) == 0:
			if c.join == some {
				return condition{}
			}
		default:
			n.parts = append(n.parts, p)
		}
	}
	return n
}

// permitsUnknownHosts reports whether a comparison permits unknownHost.
func (c condition) permitsUnknownHosts() bool {
	if c.join == leaf {
		return c.name == urlHost && !c.negated && c.op == opIn && slices.ContainsFunc(c.values, func(v value) bool { return v.str == unknownHost })
	}
	return slices.ContainsFunc(c.parts, condition.permitsUnknownHosts)
}

// conditions reads an object of conditions. All of them must hold.
func (r *reader) conditions(field string, depth int) condition {
	c := condition{join: all}
	r.object(field, func(name string) {
		at := field + "." + excerpt(name)
		switch name {
		case "any", "all", "not":
			c.parts = append(c.parts, r.joined(at, name, depth+1))
			return
		}
		a, fix := attributeOf(name)
		switch {
		case a.kind == 0:
			r.fail(at, "is not an attribute for conditions", fix)
		case len(name) > len(metadata)+maxText:
			r.fail(at, fmt.Sprintf("has %d bytes", len(name)), fmt.Sprintf("write at most %d", len(metadata)+maxText))
		case r.comparisons == maxConditions:
			r.fail(at, fmt.Sprintf("is one condition more than %d", maxConditions), "use several policies")
		default:
			r.comparisons++
			c.parts = append(c.parts, r.comparison(at, name, a))
		}
	})
	if r.err == nil && depth > 0 && len(c.parts) == 0 {
		r.fail(field, "is empty", "write at least one condition, or leave it out")
	}
	return c
}

// joined reads the parts of any, all or not.
func (r *reader) joined(field, name string, depth int) condition {
	if depth > maxDepth {
		r.fail(field, fmt.Sprintf("is nested deeper than %d", maxDepth), "use several policies")
		return condition{}
	}
	if name == "not" {
		if r.dec.PeekKind() == '[' {
			r.fail(field, "is a list", `write {"not": {…}}; for several write {"not": {"any": [{…}, {…}]}}`)
		}
		return condition{join: not, parts: []condition{r.conditions(field, depth)}}
	}
	c := condition{join: all}
	if name == "any" {
		c.join = some
	}
	if !r.enter(field, '[', "a list of objects with conditions") {
		return c
	}
	for r.err == nil && r.dec.PeekKind() != ']' {
		c.parts = append(c.parts, r.conditions(field+"["+strconv.Itoa(len(c.parts))+"]", depth))
	}
	r.token()
	if r.err == nil && len(c.parts) == 0 {
		r.fail(field, "is empty", "write at least one object with conditions")
	}
	return c
}

func (r *reader) comparison(field, name string, a attribute) condition {
	c := condition{join: leaf, comparison: comparison{name: name, path: field, attribute: a, op: opIn}}
	if a.kind == instant {
		r.instant(field, &c)
		return c
	}
	switch k := r.dec.PeekKind(); k {
	case '{':
		operators := 0
		r.object(field, func(op string) {
			if operators++; operators > 1 {
				r.fail(field, "has more than one operator", `write one; for a second write {"all": [{…}, {…}]}`)
				return
			}
			r.operator(field, op, &c)
		})
		if operators == 0 {
			r.fail(field, "has no operator", "write a literal, or one of "+operatorNames)
		}
	case '[':
		r.fail(field, "is a list", `write {"in": […]}`)
	default:
		c.values = []value{r.of(field, a)}
	}
	return c
}

// operator reads the values of an operator.
func (r *reader) operator(field, name string, c *condition) {
	at := field + "." + excerpt(name)
	o, ok := operators[name]
	if !ok {
		r.fail(at, "is not an operator", nearest(name, slices.Sorted(maps.Keys(operators)), "write a literal, or one of "+operatorNames))
		return
	}
	if fix := c.attribute.fits(o.op); fix != "" {
		r.fail(at, "does not fit the attribute", fix)
		return
	}
	c.op, c.negated = o.op, o.negated
	switch {
	case c.op == opBetween:
		r.between(at, c)
	case c.op == opExists:
		v := r.literal(at)
		if r.err == nil && v.kind != truth {
			r.fail(at, "is not true or false", "write true if the attribute must be present, false if it must be missing")
		}
		c.negated = v.rego == "false"
	case o.list:
		c.values = r.list(at, c.attribute, func(at string) value { return r.of(at, c.attribute) })
	case c.op == opPrefix || c.op == opSuffix || c.op == opGlob || c.op == opCIDR:
		one := func(at string) value { return r.pattern(at, c.op) }
		if r.dec.PeekKind() == '[' {
			c.values = r.list(at, c.attribute, one)
		} else {
			c.values = []value{one(at)}
		}
	case c.op == opIn:
		c.values = []value{r.of(at, c.attribute)}
	default: // gt, gte, lt, lte
		v := r.of(at, c.attribute)
		if r.err == nil && v.kind != number {
			r.fail(at, "is not a number", "write a number")
		}
		c.values = []value{v}
	}
}

// pattern reads a value of prefix, suffix, glob or cidr.
func (r *reader) pattern(field string, op operator) value {
	v := r.literal(field)
	if r.err != nil {
		return v
	}
	if v.kind != text {
		r.fail(field, "is not text", "write text")
		return v
	}
	if op != opCIDR {
		return v
	}
	p, err := netip.ParsePrefix(v.str)
	switch {
	case err != nil:
		r.fail(field, "is not a range of addresses", `write one like "10.0.0.0/8" or "2001:db8::/32"; a single address is /32 or /128`)
	case p.Addr().Is4In6():
		r.fail(field, "is a range of IPv4 addresses in IPv6 form", "write it in IPv4 form")
	case p.Masked().String() != v.str:
		r.fail(field, "is not the range's canonical form", "write "+quote(p.Masked().String()))
	}
	return v
}

func (r *reader) list(field string, a attribute, one func(at string) value) (vs []value) {
	if a.kind == truth {
		r.fail(field, "compares true or false with a list", "write true or false, or leave the condition out")
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
		vs = append(vs, one(at))
	}
	r.token()
	if len(vs) == 0 {
		r.fail(field, "is empty, so the condition is never true", "list at least one value")
	}
	slices.SortFunc(vs, func(a, b value) int { return cmp.Compare(a.rego, b.rego) })
	return slices.CompactFunc(vs, func(a, b value) bool { return a.rego == b.rego })
}

func (r *reader) between(field string, c *condition) {
	if !r.enter(field, '[', "[lowest, highest]") {
		return
	}
	var vs []value
	for r.err == nil && r.dec.PeekKind() != ']' {
		at := field + "[" + strconv.Itoa(len(vs)) + "]"
		v := r.of(at, c.attribute)
		if r.err == nil && v.kind != number {
			r.fail(at, "is not a number", "write a number")
		}
		if vs = append(vs, v); len(vs) > 2 {
			break
		}
	}
	if r.err == nil && len(vs) != 2 {
		r.fail(field, "does not have two values", "write [lowest, highest]; both are included")
		return
	}
	r.token()
	if r.err != nil {
		return
	}
	if vs[0].num > vs[1].num {
		fix := "write the lower one first"
		switch c.name {
		case "request.hour_utc":
			fix += `; for hours across midnight write "request.time": {"between": ["22:00", "02:00"]}, or list the values: {"in": [22, 23, 0, 1]}`
		case "request.weekday_utc":
			fix += `; for days across Sunday list the values: {"in": [6, 7, 1]}`
		}
		r.fail(field, "has the higher value first", fix)
	}
	c.values = vs
}

// of reads a literal that is a valid value of the attribute.
func (r *reader) of(field string, a attribute) value {
	v := r.literal(field)
	if r.err != nil {
		return v
	}
	if v.kind == text && a.kind != scopes && r.wildcard == nil && strings.ContainsAny(v.str, "*?") {
		r.wildcard = &Invalid{field, "has * or ?, which match only themselves here", `write the exact value, or a pattern: {"glob": "…"}, in which * is any text`}
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
	if v.kind == number && (v.num != math.Trunc(v.num) && !a.fraction || v.num < float64(a.min) || v.num > float64(a.max)) {
		what := "an integer"
		if a.fraction {
			what = "a number"
		}
		r.fail(field, "is a value that the attribute never has", fmt.Sprintf("write %s from %d to %d", what, a.min, a.max))
	}
	if a.one != nil && v.kind == text {
		if problem, fix := a.one(v.str); problem != "" {
			r.fail(field, problem, fix)
		}
	}
	return v
}
