package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a document. docs/policy.md has them.
const (
	maxDocument   = 64 << 10 // bytes
	maxName       = 128      // bytes
	maxConditions = 32       // comparisons, at all depths together
	maxDepth      = 8        // levels of any, all and not
	maxList       = 256      // members of an "in"
	maxText       = 1024     // bytes of a literal, or of a metadata key
	maxRPM        = 1_000_000_000
	maxApproval   = 86_400 // seconds
)

// document is a validated policy document.
type document struct {
	name       string
	effect     Effect
	state      State
	conditions condition // as normal returns them
	limits     []limit
	wildcard   *Invalid // from reader
	raw        *rawRego // instead of conditions; nil: none
}

// value is a literal of a condition.
type value struct {
	kind kind    // text, number or truth
	rego string  // as Rego spells it
	str  string  // of a text
	num  float64 // of a number
}

// Check validates a document that a client sends. An error is an *Invalid. Nothing in a
// document is ignored: a field that this version does not support is rejected.
//
// A literal with * or ? is also rejected. In lists of models * stands for any text, but in
// a condition it stands for itself, and a deny would never match. Compile accepts such a
// document, because an earlier version may have stored it. The tests of a policy in Rego
// must pass.
func Check(document []byte) error {
	d, err := parse(document)
	switch {
	case err != nil:
		return err
	case d.wildcard != nil:
		return d.wildcard
	case d.raw != nil:
		return d.raw.check()
	}
	return nil
}

// reader reads a document strictly. The first problem is in err. After a problem its
// methods do nothing.
type reader struct {
	dec         *jsontext.Decoder
	err         *Invalid
	wildcard    *Invalid // the first literal that looks like a pattern; see Check
	comparisons int      // so far; at most maxConditions
}

func (r *reader) fail(field, problem, fix string) {
	if r.err == nil {
		r.err = &Invalid{Field: field, Problem: problem, Fix: fix}
	}
}

func parse(b []byte) (document, error) {
	if len(b) > maxDocument {
		return document{}, &Invalid{Problem: fmt.Sprintf("has %d bytes", len(b)), Fix: fmt.Sprintf("send at most %d", maxDocument)}
	}
	r := &reader{dec: jsontext.NewDecoder(bytes.NewReader(b))}
	d := r.document()
	d.state = cmp.Or(d.state, Enabled)
	if r.err == nil {
		if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
			r.fail("", "continues after its end", "send one JSON object")
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
		case "state":
			d.state = r.state()
		case "conditions":
			d.conditions = r.conditions(name, 0).normal(false)
		case "limits":
			d.limits = r.limits()
		case "approval":
			r.approval()
		case "rego":
			d.raw = r.rego()
		case "priority":
			r.fail(name, "is not understood", "leave it out: the order of policies has no effect, and any deny wins")
		default:
			r.fail(excerpt(name), "is not a field of a policy", nearest(name, documentFields, "the fields are "+strings.Join(documentFields, ", ")))
		}
	})
	if r.err != nil {
		return d
	}
	if d.raw != nil {
		switch {
		case seen["conditions"]:
			r.fail("conditions", "is beside rego", "leave one of them out: a policy has conditions or Rego")
		case d.effect != Deny:
			r.fail("effect", "is not deny", "a policy in Rego can only deny; write an allow with conditions")
		}
		seen["conditions"] = true
	}
	for _, f := range [...][2]string{
		{"name", "give the policy a name"},
		{"effect", effects},
		{"conditions", "write {} for a policy that applies to every request"},
	} {
		if !seen[f[0]] {
			r.fail(f[0], "is missing", f[1])
		}
	}
	if d.effect == Allow && d.conditions.permitsUnknownHosts() {
		r.fail("conditions."+urlHost, "permits hosts that are unknown", "leave \"unknown\" out: such a URL may lead to any host")
	}
	switch {
	case seen["limits"] && d.effect != Allow:
		r.fail("limits", "are only for the effect allow", "leave them out of this policy")
	case seen["approval"] && d.effect != requireApproval:
		r.fail("approval", "is only for the effect require_approval", "leave it out, or write the effect require_approval")
	case !seen["approval"] && d.effect == requireApproval:
		r.fail("approval", "is missing", `write {"reviewer_team": "…", "timeout_seconds": 900, "on_timeout": "deny"}`)
	}
	return d
}

// object calls member with each member's name. The decoder is then before the value.
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

// enter reads the opening token of an object or a list.
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
		r.fail(excerpt(s.JSONPointer.LastToken()), "stands twice", "keep one")
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
		r.fail("name", fmt.Sprintf("has %d bytes", len(s)), fmt.Sprintf("write at most %d", maxName))
	case strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }):
		r.fail("name", "has characters that are not printable", "use printable ones")
	}
	return s
}

func (r *reader) effect() Effect {
	switch s := r.text("effect", "allow, deny or require_approval"); {
	case r.err != nil, s == "deny":
		return Deny
	case s == "allow":
		return Allow
	case s == "require_approval":
		return requireApproval
	default:
		r.fail("effect", "is "+quote(excerpt(s)), effects)
	}
	return Deny
}

const effects = "write allow, deny or require_approval"

var documentFields = []string{"name", "effect", "state", "conditions", "limits", "approval", "rego"}

func (r *reader) state() State {
	const states = "write enabled, disabled or shadow"
	s := State(r.text("state", "enabled, disabled or shadow"))
	if r.err == nil && s != Enabled && s != Disabled && s != Shadow {
		r.fail("state", "is "+quote(excerpt(string(s))), nearest(string(s), []string{"enabled", "disabled", "shadow"}, states))
	}
	return s
}

// approval reads the settings of require_approval. They are stored for a version that
// supports approvals; this version denies.
func (r *reader) approval() {
	team := false
	r.object("approval", func(name string) {
		field := "approval." + excerpt(name)
		switch name {
		case "reviewer_team":
			team = true
			switch s := r.text(field, "text"); {
			case r.err != nil:
			case strings.TrimSpace(s) == "", len(s) > maxName:
				r.fail(field, "is empty or too long", fmt.Sprintf("write 1 to %d bytes", maxName))
			}
		case "timeout_seconds":
			v := r.literal(field)
			if r.err == nil && (v.kind != number || v.num != math.Trunc(v.num) || v.num < 1 || v.num > maxApproval) {
				r.fail(field, "is not a number of seconds", fmt.Sprintf("write an integer from 1 to %d", maxApproval))
			}
		case "on_timeout":
			if s := r.text(field, "deny"); r.err == nil && s != "deny" {
				r.fail(field, "is "+quote(excerpt(s)), "write deny: a request is never allowed because it waited too long")
			}
		default:
			r.fail(field, "is not a field of an approval", nearest(name, []string{"reviewer_team", "timeout_seconds", "on_timeout"}, "the fields are reviewer_team, timeout_seconds and on_timeout"))
		}
	})
	if r.err == nil && !team {
		r.fail("approval.reviewer_team", "is missing", "name the team that approves")
	}
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
		r.fail(field, "is empty text", "leave the condition out: an empty attribute is missing, and no condition on it is true")
	case len(s) > maxText:
		r.fail(field, fmt.Sprintf("has %d bytes", len(s)), fmt.Sprintf("write at most %d", maxText))
	}
	return value{kind: text, rego: literal(s), str: s}
}

// excerpt shortens a part of a document for a message.
func excerpt(s string) string {
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
