package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
)

// literal is s as a string of Rego. All of it is ASCII, so that nothing in a
// document can be anything but a string.
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

// canonical is a number in the one form that numbers are compared in, which is a
// float64's. ok is false for what is none, and for a whole one beyond maxInt.
func canonical(s string) (_ string, f float64, ok bool) {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsNaN(f) || math.IsInf(f, 0):
		return "", 0, false
	case f == 0:
		return "0", 0, true // and not -0
	case f == math.Trunc(f) && math.Abs(f) <= maxInt:
		return strconv.FormatFloat(f, 'f', -1, 64), f, true
	case f == math.Trunc(f):
		return "", 0, false
	}
	return strconv.FormatFloat(f, 'g', -1, 64), f, true
}

// generate writes an org's policies in Rego. ids[i] is the id of ds[i]; the same
// policies in the same order give the same text.
//
//	deny     ids of the policies that deny the request
//	allow    those that permit it, with their limits
//	governs  lists of ids of the allow policies that select the agent and its caller
//
// Policies that select alike share a rule of governs, since most orgs have many
// policies for few kinds of agents.
func generate(ids []string, ds []document) string {
	var deny, allow, governs strings.Builder
	var selectors []string // in the order of their first policies
	selected := map[string][]string{}
	for i, d := range ds {
		id := literal(ids[i])
		if d.effect == Deny {
			rule(&deny, "deny contains "+id, d.rego(false))
			continue
		}
		limits := "{}"
		if d.rpm > 0 {
			limits = `{"rpm": ` + strconv.FormatInt(d.rpm, 10) + `}`
		}
		rule(&allow, "allow contains ["+id+", "+limits+"]", d.rego(false))
		selector := d.rego(true)
		if selected[selector] == nil {
			selectors = append(selectors, selector)
		}
		selected[selector] = append(selected[selector], id)
	}
	for _, s := range selectors {
		rule(&governs, "governs contains ["+strings.Join(selected[s], ", ")+"]", s)
	}
	// A set without a rule would be undefined, and what is undefined denies.
	if deny.Len() == 0 {
		deny.WriteString("\ndeny := set()\n")
	}
	if allow.Len() == 0 {
		allow.WriteString("\nallow := set()\n\ngoverns := set()\n")
	}
	return "package aid.policies\n" + deny.String() + allow.String() + governs.String()
}

func rule(b *strings.Builder, head, body string) {
	if body == "" {
		b.WriteString("\n" + head + "\n")
		return
	}
	b.WriteString("\n" + head + " if {\n" + body + "}\n")
}

// rego is the policy's conditions in Rego, a line each, or only those that select
// whom an allow policy governs.
func (d document) rego(selectors bool) string {
	var b strings.Builder
	for _, c := range d.conditions {
		if selectors && !c.attribute.selects {
			continue
		}
		for _, line := range c.rego(d.effect) {
			b.WriteString("\t" + line + "\n")
		}
	}
	return b.String()
}

// member is a name for a member of the set that the condition is about: a rule may
// have conditions on several sets.
func (c condition) member() string { return c.name[strings.LastIndexAny(c.name, "._")+1:] }

// rego is the condition, true only if the attribute is there.
func (c condition) rego(effect Effect) []string {
	at := ref(c.name)
	switch {
	case c.between:
		lines := []string{at + " >= " + c.low.rego, at + " <= " + c.high.rego}
		if c.attribute.kind == mixed {
			// Rego orders values of different types, too.
			lines = append([]string{"is_number(" + at + ")"}, lines...)
		}
		return lines
	case c.attribute.kind == texts && effect == Allow:
		return []string{"every " + c.member() + " in " + at + " { " + is(c.member(), c.values) + " }"}
	case c.name == "request.tool":
		// A deny reaches each member of a family that it names.
		return []string{"some tool in input.request.tool_names", is("tool", c.values)}
	case c.name == urlHost:
		// A host that is not certain may be any: a deny must not be escaped by it.
		return []string{"some " + c.member() + " in " + at, is(c.member(), append([]value{{rego: literal(unknownHost)}}, c.values...))}
	case c.attribute.kind == texts:
		return []string{"some " + c.member() + " in " + at, is(c.member(), c.values)}
	case c.attribute.kind == scopes:
		return []string{"some scope in " + at, is("scope", append([]value{{rego: `"*"`}}, c.values...))}
	default:
		return []string{is(at, c.values)}
	}
}

func is(at string, vs []value) string {
	if len(vs) == 1 {
		return at + " == " + vs[0].rego
	}
	list := make([]string, len(vs))
	for i, v := range vs {
		list[i] = v.rego
	}
	return at + " in {" + strings.Join(list, ", ") + "}"
}
