package policy

import (
	"cmp"
	"fmt"
	"sync"
	"time"
	_ "time/tzdata" // time zones come from the binary, not from the machine

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

// span is a set of instants. An instant is in it if its local time of day, weekday and date
// in zone are within the span's parts. A missing part has no effect.
type span struct {
	zone               string // an IANA name; "" is UTC
	hours              bool
	from, to           int // minutes of the day; from is included, to is not; to ≤ from: across midnight
	weekdays           bool
	firstDay, lastDay  int    // 1 is Monday, 7 is Sunday; both are included
	firstDate, endDate string // "2026-12-31"; both are included; "": no dates
}

const spanFix = `write like {"between": ["08:00", "18:00"], "zone": "Europe/Berlin", "weekdays": [1, 5], "dates": ["2026-12-01", "2026-12-31"]}`

// instant reads the condition on request.time.
func (r *reader) instant(field string, c *condition) {
	c.op = opWithin
	s := &c.span
	r.object(field, func(name string) {
		at := field + "." + excerpt(name)
		switch name {
		case "between":
			from, to := r.pair(at, `["08:00", "18:00"]`)
			var ok, ok1 bool
			s.hours = true
			if s.from, ok = minutes(from.str); r.err == nil && (!ok || s.from == 24*60) {
				r.fail(at+"[0]", "is not a time of day", `write one from "00:00" to "23:59"`)
			}
			if s.to, ok1 = minutes(to.str); r.err == nil && !ok1 {
				r.fail(at+"[1]", "is not a time of day", `write one from "00:00" to "24:00"`)
			}
			if r.err == nil && s.from == s.to {
				r.fail(at, "begins and ends at the same time", `write ["00:00", "24:00"] for a whole day, or leave it out`)
			}
		case "zone":
			v := r.literal(at)
			if r.err != nil {
				return
			}
			if _, err := zone(v.str); v.kind != text || err != nil {
				r.fail(at, "is not a time zone", `write an IANA name like "Europe/Berlin" or "UTC"`)
			}
			s.zone = v.str
		case "weekdays":
			first, last := r.pair(at, "[first, last], where 1 is Monday and 7 is Sunday")
			for i, v := range []value{first, last} {
				if r.err == nil && (v.kind != number || v.num != float64(int(v.num)) || v.num < 1 || v.num > 7) {
					r.fail(fmt.Sprintf("%s[%d]", at, i), "is not a weekday", "write an integer from 1 (Monday) to 7 (Sunday)")
				}
			}
			s.weekdays, s.firstDay, s.lastDay = true, int(first.num), int(last.num)
			if r.err == nil && s.firstDay > s.lastDay {
				r.fail(at, "has the later day first", `only hours may wrap around; write {"any": [{…}, {…}]} with two spans`)
			}
		case "dates":
			first, last := r.pair(at, `["2026-12-01", "2026-12-31"]`)
			for i, v := range []value{first, last} {
				if t, err := time.Parse(time.DateOnly, v.str); r.err == nil && (err != nil || t.Year() < 1 || v.kind != text) {
					r.fail(fmt.Sprintf("%s[%d]", at, i), "is not a date", `write one like "2026-12-31"`)
				}
			}
			s.firstDate, s.endDate = first.str, last.str
			if r.err == nil && s.firstDate > s.endDate {
				r.fail(at, "has the later date first", "write the earlier date first")
			}
		default:
			r.fail(at, "is not a part of a time", nearest(name, []string{"between", "zone", "weekdays", "dates"}, spanFix))
		}
	})
	if r.err == nil && !s.hours && !s.weekdays && s.firstDate == "" {
		r.fail(field, "has no hours, weekdays or dates", spanFix)
	}
}

// pair reads a list of two literals.
func (r *reader) pair(field, what string) (a, b value) {
	if !r.enter(field, '[', what) {
		return a, b
	}
	var vs []value
	for r.err == nil && r.dec.PeekKind() != ']' && len(vs) < 3 {
		vs = append(vs, r.literal(fmt.Sprintf("%s[%d]", field, len(vs))))
	}
	if r.err == nil && len(vs) != 2 {
		r.fail(field, "does not have two values", "write "+what)
		return a, b
	}
	r.token()
	if r.err != nil {
		return a, b
	}
	return vs[0], vs[1]
}

// minutes returns the minutes of the day for "15:04", up to "24:00".
func minutes(s string) (int, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	for i, top := range [...]byte{'2', '9', ':', '5', '9'} {
		if i != 2 && (s[i] < '0' || s[i] > top) {
			return 0, false
		}
	}
	n := (int(s[0]-'0')*10+int(s[1]-'0'))*60 + int(s[3]-'0')*10 + int(s[4]-'0')
	return n, n <= 24*60
}

// zones caches the few time zones that policies name, since loading one is slow.
var zones sync.Map // name → *time.Location

// zone returns the time zone with an IANA name. "Local" is rejected: it depends on the machine.
func zone(name string) (*time.Location, error) {
	if l, ok := zones.Load(name); ok {
		return l.(*time.Location), nil
	}
	if name == "Local" {
		return nil, fmt.Errorf("no time zone has the name %q", name)
	}
	l, err := time.LoadLocation(name)
	if err != nil {
		return nil, err
	}
	zones.Store(name, l)
	return l, nil
}

// holds reports whether t is in the span.
func (s *span) holds(t time.Time) bool {
	l, err := zone(s.zone)
	if err != nil {
		return false
	}
	t = t.In(l)
	if s.hours {
		m := t.Hour()*60 + t.Minute()
		if s.from < s.to && (m < s.from || m >= s.to) || s.from > s.to && m < s.from && m >= s.to {
			return false
		}
	}
	if s.weekdays {
		if d := (int(t.Weekday())+6)%7 + 1; d < s.firstDay || d > s.lastDay {
			return false
		}
	}
	if s.firstDate != "" {
		if d := t.Format(time.DateOnly); d < s.firstDate || d > s.endDate {
			return false
		}
	}
	return true
}

// rego returns the span as the first argument of aid.within.
func (s *span) rego() string {
	b := `{"zone": ` + literal(cmp.Or(s.zone, "UTC"))
	if s.hours {
		b += fmt.Sprintf(`, "between": ["%02d:%02d", "%02d:%02d"]`, s.from/60, s.from%60, s.to/60, s.to%60)
	}
	if s.weekdays {
		b += fmt.Sprintf(`, "weekdays": [%d, %d]`, s.firstDay, s.lastDay)
	}
	if s.firstDate != "" {
		b += `, "dates": [` + literal(s.firstDate) + ", " + literal(s.endDate) + "]"
	}
	return b + "}"
}

// withinDecl declares aid.within(span, time). It reports whether a span, written as in a
// document, contains the time.
func withinDecl() *ast.Builtin {
	return &ast.Builtin{Name: "aid.within", Decl: types.NewFunction(types.Args(types.A, types.A), types.B), CanSkipBctx: true}
}

func withinOf(_ topdown.BuiltinContext, args []*ast.Term, found func(*ast.Term) error) error {
	o, ok := args[0].Value.(ast.Object)
	at, ok1 := args[1].Value.(ast.String)
	if !ok || !ok1 {
		return nil
	}
	t, err := time.Parse(timeLayout, string(at))
	s, ok := spanOf(o)
	if err != nil || !ok {
		return nil // undefined: neither the condition nor its negation holds
	}
	return found(ast.InternedTerm(s.holds(t)))
}

func spanOf(o ast.Object) (s span, ok bool) {
	pair := func(name string) (a, b ast.Value) {
		list, ok := o.Get(ast.InternedTerm(name)).Value.(*ast.Array)
		if !ok || list.Len() != 2 {
			return nil, nil
		}
		return list.Elem(0).Value, list.Elem(1).Value
	}
	ok = true
	o.Until(func(k, v *ast.Term) bool {
		name, _ := k.Value.(ast.String)
		switch name {
		case "zone":
			z, isText := v.Value.(ast.String)
			s.zone, ok = string(z), isText
		case "between":
			a, b := pair("between")
			from, isText := a.(ast.String)
			to, isText1 := b.(ast.String)
			var isTime, isTime1 bool
			s.hours = true
			s.from, isTime = minutes(string(from))
			s.to, isTime1 = minutes(string(to))
			ok = isText && isText1 && isTime && isTime1
		case "weekdays":
			a, b := pair("weekdays")
			first, isNumber := a.(ast.Number)
			last, isNumber1 := b.(ast.Number)
			s.weekdays = true
			s.firstDay, _ = first.Int()
			s.lastDay, _ = last.Int()
			ok = isNumber && isNumber1
		case "dates":
			a, b := pair("dates")
			first, isText := a.(ast.String)
			last, isText1 := b.(ast.String)
			s.firstDate, s.endDate, ok = string(first), string(last), isText && isText1
		default:
			ok = false
		}
		return !ok
	})
	return s, ok
}
