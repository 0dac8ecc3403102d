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

// canonical is a JSON number in the one form that we compare numbers in. ok is
// false for one that a float64 does not hold, or a whole one beyond 2^53.
func canonical(s string) (_ string, f float64, ok bool) {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil:
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

// header begins the generated module. Its rules are never true: they are there so
// that each set is empty, and not undefined, for an org that has no such policy.
const header = `package aid.policies

deny contains "" if false

allow contains {} if false

governed if false

governs contains "" if false
`

// generate writes an org's policies in Rego. ids[i] is the id of ds[i]; the same
// policies in the same order give the same text.
func generate(ids []string, ds []document) string {
	var b strings.Builder
	b.WriteString(header)
	selectors := map[string]bool{}
	for i, d := range ds {
		id := literal(ids[i])
		if d.effect == Deny {
			rule(&b, "deny contains "+id, body(d, false))
			continue
		}
		limits := "{}"
		if d.rpm > 0 {
			limits = `{"rpm": ` + strconv.FormatInt(d.rpm, 10) + `}`
		}
		rule(&b, `allow contains {"policy": `+id+`, "limits": `+limits+`}`, body(d, false))
		selector := body(d, true)
		rule(&b, "governs contains "+id, selector)
		// Whether there is any needs each selector only once.
		if s := strings.Join(selector, "\n"); !selectors[s] {
			selectors[s] = true
			rule(&b, "governed", selector)
		}
	}
	return b.String()
}

func rule(b *strings.Builder, head string, body []string) {
	b.WriteString("\n" + head)
	if len(body) == 0 {
		b.WriteString(" if true\n")
		return
	}
	b.WriteString(" if {\n")
	for _, line := range body {
		b.WriteString("\t" + line + "\n")
	}
	b.WriteString("}\n")
}

// body is the policy's conditions in Rego, or only those that select whom an
// allow policy governs.
func body(d document, selectors bool) (lines []string) {
	for _, c := range d.conditions {
		if !selectors || c.attribute.selects {
			lines = append(lines, c.rego(d.effect)...)
		}
	}
	return lines
}

// rego is the condition, true only if the attribute is there.
func (c condition) rego(effect Effect) []string {
	at := ref(c.name)
	switch {
	case c.between:
		lines := []string{at + " >= " + c.low.rego, at + " <= " + c.high.rego}
		if c.attribute.kind == any_ {
			// Rego orders values of different types, too.
			lines = append([]string{"is_number(" + at + ")"}, lines...)
		}
		return lines
	case c.attribute.kind == texts && effect == Allow:
		return []string{"every tool in " + at + " { " + is("tool", c.values) + " }"}
	case c.attribute.kind == texts:
		return []string{"some tool in " + at, is("tool", c.values)}
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
