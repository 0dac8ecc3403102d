package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// literal returns s as a string of Rego. It is all ASCII and escaped, so that text of a
// document is never Rego code.
func literal(s string) string {
	b := make([]byte, 0, len(s)+2)
	b = append(b, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c >= ' ' && c < 0x7f:
			b = append(b, byte(c))
		case c > 0xffff:
			hi, lo := utf16.EncodeRune(c)
			b = fmt.Appendf(b, `\u%04x\u%04x`, hi, lo)
		default:
			b = fmt.Appendf(b, `\u%04x`, c)
		}
	}
	return string(append(b, '"'))
}

// canonical returns a number in the form of a float64, in which all numbers are compared. ok
// is false for a string that is not a number, and for an integer beyond maxInt.
func canonical(s string) (_ string, f float64, ok bool) {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsNaN(f) || math.IsInf(f, 0):
		return "", 0, false
	case f == 0:
		return "0", 0, true // instead of -0
	case f == math.Trunc(f) && math.Abs(f) <= maxInt:
		return strconv.FormatFloat(f, 'f', -1, 64), f, true
	case f == math.Trunc(f):
		return "", 0, false
	}
	return strconv.FormatFloat(f, 'g', -1, 64), f, true
}

// maxBodies is the most bodies of a rule for the alternatives of "any". OPA indexes each
// body. With more alternatives, an "any" becomes a separate rule without an index.
const maxBodies = 16

// generator writes policies in Rego.
type generator struct {
	helpers strings.Builder // rules for conditions with more than maxBodies alternatives
	helper  int
}

// generate returns an org's policies in Rego. ids[i] is the id of ds[i]. The same policies
// in the same order give the same text.
//
//	deny      ids of the policies that deny the request
//	approval  ids of the policies that require approval of the request
//	allow     the policies that permit the request; their limits are bound to the decision
//	governs   lists of ids of the allow policies that select the agent and its caller
//
// all has the conditions of these rules.
//
// Policies with the same selection share a rule of governs, since most orgs have many
// policies for few groups of agents.
func generate(ids []string, ds []document) (module string, all []rule) {
	var g generator
	var deny, approval, allow, governs strings.Builder
	var selectors []string // in the order of their first policies
	selected := map[string][]string{}
	bodies := map[string][]string{}
	for i, d := range ds {
		id := literal(ids[i])
		if d.raw != nil {
			continue // it has an engine of its own
		}
		switch d.effect {
		case Deny:
			rules(&deny, "deny contains "+id, g.bodies(d.conditions, Deny))
			all = append(all, rule{d.conditions, Deny})
		case requireApproval:
			rules(&approval, "approval contains "+id, g.bodies(d.conditions, Deny))
			all = append(all, rule{d.conditions, Deny})
		case Allow:
			rules(&allow, "allow contains "+id, g.bodies(d.conditions, Allow))
			selecting := d.conditions.selecting()
			all = append(all, rule{d.conditions, Allow})
			selector := g.bodies(selecting, Allow)
			key := strings.Join(selector, "\x00")
			if selected[key] == nil {
				selectors = append(selectors, key)
				bodies[key] = selector
				all = append(all, rule{selecting, Allow})
			}
			selected[key] = append(selected[key], id)
		}
	}
	for _, s := range selectors {
		rules(&governs, "governs contains ["+strings.Join(selected[s], ", ")+"]", bodies[s])
	}
	// A set without a rule would be undefined, and an undefined set denies.
	if deny.Len() == 0 {
		deny.WriteString("\ndeny := set()\n")
	}
	if approval.Len() == 0 {
		approval.WriteString("\napproval := set()\n")
	}
	if allow.Len() == 0 {
		allow.WriteString("\nallow := set()\n\ngoverns := set()\n")
	}
	return "package aid.policies\n" + deny.String() + approval.String() + allow.String() + governs.String() + g.helpers.String(), all
}

// rules writes a rule for each body. Without a body it writes nothing, so the rule never holds.
func rules(b *strings.Builder, head string, bodies []string) {
	for _, body := range bodies {
		if body == "" {
			b.WriteString("\n" + head + "\n")
			continue
		}
		b.WriteString("\n" + head + " if {\n" + body + "}\n")
	}
}

// bodies returns the bodies of rules for the condition of a policy with this effect. An
// allow needs every member of a set, and a deny needs one.
func (g *generator) bodies(c condition, effect Effect) []string {
	vars := 0
	var out []string
	for _, lines := range g.alternatives(c, effect, &vars) {
		var b strings.Builder
		for _, line := range lines {
			b.WriteString("\t" + line + "\n")
		}
		out = append(out, b.String())
	}
	return out
}

// alternatives returns the condition as bodies of lines. One body must hold. vars counts
// the variables for members of sets.
func (g *generator) alternatives(c condition, effect Effect, vars *int) [][]string {
	switch c.join {
	case leaf:
		return c.alternatives(effect, vars)
	case some:
		var out [][]string
		for _, p := range c.parts {
			out = append(out, g.alternatives(p, effect, vars)...)
		}
		if len(out) > maxBodies {
			return [][]string{{g.named(out)}}
		}
		return out
	}
	out := [][]string{nil}
	for _, p := range c.parts {
		bodies := g.alternatives(p, effect, vars)
		if len(out)*len(bodies) > maxBodies {
			bodies = [][]string{{g.named(bodies)}}
		}
		next := make([][]string, 0, len(out)*len(bodies))
		for _, a := range out {
			for _, b := range bodies {
				next = append(next, slices.Concat(a, b))
			}
		}
		out = next
	}
	return out
}

// named writes a helper rule with these bodies and returns its name.
func (g *generator) named(bodies [][]string) string {
	g.helper++
	name := "any_" + strconv.Itoa(g.helper)
	for _, lines := range bodies {
		g.helpers.WriteString("\n" + name + " if {\n")
		for _, line := range lines {
			g.helpers.WriteString("\t" + line + "\n")
		}
		g.helpers.WriteString("}\n")
	}
	return name
}

// alternatives returns a leaf in Rego. It holds only if the attribute is present; exists is
// the exception. A negated leaf holds if the comparison is false.
func (c condition) alternatives(effect Effect, vars *int) [][]string {
	at := ref(c.name)
	one := func(lines ...string) [][]string { return [][]string{lines} }
	set := c.attribute.kind == texts || c.attribute.kind == scopes
	switch {
	case c.op == opExists && set && c.negated:
		return one("count(" + at + ") == 0")
	case c.op == opExists && set:
		return one("count(" + at + ") > 0")
	case c.op == opExists && c.negated:
		section, name := sectionOf(c.name)
		return one("object.get(" + section + ", " + name + ", null) == null")
	case c.op == opExists:
		return one(at + " != null")
	case !set:
		return c.compare(at, effect)
	}
	*vars++
	member := c.name[strings.LastIndexAny(c.name, "._")+1:]
	if *vars > 1 {
		member += "_" + strconv.Itoa(*vars)
	}
	lines := c.compare(member, effect)[0] // only between has more bodies, and it is not for sets
	every := func(more ...string) [][]string {
		return one("every " + member + " in " + at + " { " + strings.Join(append(more, lines...), "; ") + " }")
	}
	switch {
	case c.attribute.kind == scopes && c.negated:
		return every(member + ` != "*"`)
	case c.attribute.kind == scopes && c.op == opIn:
		return one("some "+member+" in "+at, is(member, append([]value{{rego: `"*"`}}, c.values...)))
	case c.attribute.kind == scopes:
		return [][]string{{`"*" in ` + at}, append([]string{"some " + member + " in " + at}, lines...)}
	case c.name == "request.tool" && c.negated == (effect == Allow):
		// A denied tool must not be used by another name, so families count as tools.
		at = "input.request.tool_names"
	}
	switch {
	case effect == Allow && c.name == urlHost:
		return every(member + " != " + literal(unknownHost))
	case effect == Allow:
		return every()
	case c.name == urlHost && c.op == opIn && !c.negated:
		// A host that is not certain may be any host, so a deny applies to it.
		return one("some "+member+" in "+at, is(member, append([]value{{rego: literal(unknownHost)}}, c.values...)))
	case c.name == urlHost:
		return [][]string{{literal(unknownHost) + " in " + at}, append([]string{"some " + member + " in " + at}, lines...)}
	default:
		return one(append([]string{"some " + member + " in " + at}, lines...)...)
	}
}

// compare returns bodies of lines that compare the value at at. One body must hold. For a
// value of a type that the operator does not compare, no body holds.
func (c condition) compare(at string, effect Effect) [][]string {
	one := func(lines ...string) [][]string {
		if c.attribute.kind == mixed && c.op != opIn {
			is := "is_string"
			if c.op >= opBetween && c.op <= opLessEqual {
				is = "is_number" // Rego also orders values of different types
			}
			lines = append([]string{is + "(" + at + ")"}, lines...)
		}
		return [][]string{lines}
	}
	call := func(s string) [][]string {
		if c.negated {
			s += " == false"
		}
		return one(s)
	}
	order := func(holds, negated string) [][]string {
		if c.negated {
			holds = negated
		}
		return one(at + " " + holds + " " + c.values[0].rego)
	}
	switch c.op {
	case opIn:
		switch {
		case !c.negated:
			return one(is(at, c.values))
		case len(c.values) == 1:
			return one(at + " != " + c.values[0].rego)
		default:
			return one(at+" != null", "not "+is(at, c.values))
		}
	case opBetween:
		low, high := c.values[0].rego, c.values[1].rego
		if c.negated {
			return append(one(at+" < "+low), one(at+" > "+high)...)
		}
		return one(at+" >= "+low, at+" <= "+high)
	case opGreater:
		return order(">", "<=")
	case opGreaterEqual:
		return order(">=", "<")
	case opLess:
		return order("<", ">=")
	case opLessEqual:
		return order("<=", ">")
	case opPrefix, opSuffix:
		function, many := "startswith", "strings.any_prefix_match"
		if c.op == opSuffix {
			function, many = "endswith", "strings.any_suffix_match"
		}
		if len(c.values) == 1 {
			return call(function + "(" + at + ", " + c.values[0].rego + ")")
		}
		return call(many + "(" + at + ", " + listOf(c.values) + ")")
	case opGlob:
		// A "*" could stand for a character that joins names. Of the two functions, the
		// one that rejects more is called.
		if c.negated == (effect == Allow) {
			return call("aid.wild(" + listOf(c.values) + ", " + at + ")")
		}
		return call("aid.glob(" + listOf(c.values) + ", " + at + ")")
	case opCIDR:
		return call("aid.cidr(" + listOf(c.values) + ", " + at + ")")
	case opWithin:
		return call("aid.within(" + c.span.rego() + ", " + at + ")")
	}
	return nil // without a body the condition never holds
}

func is(at string, vs []value) string {
	if len(vs) == 1 {
		return at + " == " + vs[0].rego
	}
	list := listOf(vs)
	return at + " in {" + list[1:len(list)-1] + "}"
}

func listOf(vs []value) string {
	list := make([]string, len(vs))
	for i, v := range vs {
		list[i] = v.rego
	}
	return "[" + strings.Join(list, ", ") + "]"
}
