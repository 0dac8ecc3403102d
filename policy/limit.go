package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxLimits is how many limits may apply to one request. With more it is rejected.
const MaxLimits = 64

// maxPers is how many limits of one name a policy may have.
const maxPers = 8

// limit is one limit of a document.
type limit struct {
	name string
	max  int64    // nano-dollars of a cap
	per  []string // one or two names of what it counts for
}

// limitForm is what a document may say of the limits of one name.
type limitForm struct {
	most int64  // the largest, as written
	usd  bool   // an amount of money
	per  string // what it counts for unless the document says
	what string
}

var limitForms = map[string]limitForm{
	"rpm":             {maxRPM, false, perAgent, "requests per minute"},
	"tpm":             {maxRPM, false, perAgent, "tokens per minute"},
	"concurrent":      {1_000_000, false, perAgent, "requests in progress"},
	"max_tokens":      {maxRPM, false, perAgent, "output tokens of one request"},
	"daily_usd_cap":   {MaxUSD, true, perPolicy, "US dollars a day"},
	"monthly_usd_cap": {MaxUSD, true, perPolicy, "US dollars a month"},

	"session_requests":  {1_000_000_000, false, perSession, "requests of a session"},
	"session_usd_cap":   {MaxUSD, true, perSession, "US dollars of a session"},
	"session_seconds":   {86_400, false, perSession, "seconds that a session may last"},
	"sessions_per_hour": {1_000_000, false, perAgent, "sessions that begin in an hour"},
}

// Money reports whether a limit of this name is a USD cap, in nano-dollars.
func Money(name string) bool { return limitForms[name].usd }

const (
	perAgent   = "agent"
	perKey     = "key"
	perPolicy  = "policy"
	perOrg     = "org"
	perSession = "session"
)

// pers is what a limit may count for, beside keys of agent.metadata.
var pers = []string{
	perAgent, perKey, perPolicy, perOrg, perSession, "agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier", "request.model", "request.provider",
}

// limits reads the limits of a document.
func (r *reader) limits() (out []limit) {
	r.object("limits", func(name string) {
		field := "limits." + excerpt(name)
		form, ok := limitForms[name]
		if !ok {
			names := slices.Sorted(maps.Keys(limitForms))
			r.fail(field, "is not a limit", nearest(name, names, "the limits are "+strings.Join(names, ", ")))
			return
		}
		if r.dec.PeekKind() != '[' {
			out = append(out, r.limit(field, name, form))
			return
		}
		r.enter(field, '[', "a list")
		n := 0
		for r.err == nil && r.dec.PeekKind() != ']' {
			at := field + "[" + strconv.Itoa(n) + "]"
			if n++; n > maxPers {
				r.fail(at, fmt.Sprintf("is one limit more than %d", maxPers), "use several policies")
				return
			}
			l := r.limit(at, name, form)
			if slices.ContainsFunc(out, func(o limit) bool { return o.name == name && sameSet(o.per, l.per) }) {
				r.fail(at, "counts for the same as another", "keep one of them")
			}
			out = append(out, l)
		}
		r.token()
		if r.err == nil && n == 0 {
			r.fail(field, "is empty", "write at least one limit, or leave it out")
		}
	})
	return out
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// limit reads a number, or an object with limit and per.
func (r *reader) limit(field, name string, form limitForm) limit {
	l := limit{name: name, per: []string{form.per}}
	if r.dec.PeekKind() != '{' {
		l.max = r.amount(field, form)
		return l
	}
	said := false
	r.object(field, func(member string) {
		at := field + "." + excerpt(member)
		switch member {
		case "limit":
			said = true
			l.max = r.amount(at, form)
		case "per":
			l.per = r.per(at)
			switch {
			case r.err != nil:
			case name == "max_tokens" && !slices.Equal(l.per, []string{perAgent}):
				r.fail(at, "is for limits that count", "leave it out: max_tokens looks at each request alone")
			case form.per == perSession && !slices.Equal(l.per, []string{perSession}):
				r.fail(at, "is not for a limit of a session", "leave it out: "+name+" counts for each session")
			case name == "sessions_per_hour" && slices.ContainsFunc(l.per, func(per string) bool { return per == perSession || strings.HasPrefix(per, "request.") }):
				r.fail(at, "is not for the number of sessions", "count for agent, key, policy, org or an attribute of the agent")
			}
		default:
			r.fail(at, "is not a field of a limit", nearest(member, []string{"limit", "per"}, "the fields are limit and per"))
		}
	})
	if r.err == nil && !said {
		r.fail(field+".limit", "is missing", "write how much is allowed")
	}
	return l
}

// amount reads how much a limit allows.
func (r *reader) amount(field string, form limitForm) int64 {
	if k := r.dec.PeekKind(); r.err == nil && k != '0' && k != 0 {
		r.fail(field, "is "+spelled(k), fmt.Sprintf("write a number of %s, or {\"limit\": …, \"per\": …}", form.what))
	}
	t, ok := r.token()
	if !ok {
		return 0
	}
	if form.usd {
		n, problem := nanoUSD(t.String(), form.most)
		if problem != "" {
			r.fail(field, problem, "write a number such as 500 or 0.25; to permit nothing, use effect deny")
		}
		return n
	}
	n, whole := wholeNumber(t)
	if !whole || n < 1 || n > form.most {
		r.fail(field, "is not a number of "+form.what, fmt.Sprintf("write an integer from 1 to %d; to permit nothing, use effect deny", form.most))
	}
	return n
}

// wholeNumber is a number that is an integer, however it is written.
func wholeNumber(t jsontext.Token) (int64, bool) {
	s, f, ok := canonical(t.String())
	if !ok || f != float64(int64(f)) {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// MaxUSD is the largest USD cap, in dollars.
const MaxUSD = 1_000_000_000

// NanoUSD reads a number of US dollars as nano-dollars, exactly. problem is not empty for an
// amount that cannot be a cap.
func NanoUSD(s string) (nano int64, problem string) { return nanoUSD(s, MaxUSD) }

// nanoUSD reads a number of US dollars as nano-dollars, exactly, or says what is wrong.
func nanoUSD(s string, most int64) (int64, string) {
	const longest = 40 // of a number that can be exact and in range
	mantissa, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	if e := strings.TrimLeft(strings.TrimLeft(exponent, "+-"), "0"); len(mantissa) > longest || len(e) > 2 {
		return 0, "is not an amount that is exact"
	}
	v, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, "is not a number of US dollars"
	}
	v.Mul(v, big.NewRat(1_000_000_000, 1))
	switch {
	case v.Sign() <= 0:
		return 0, "is not above 0"
	case v.Cmp(new(big.Rat).SetInt64(most*1_000_000_000)) > 0:
		return 0, fmt.Sprintf("is above %d US dollars", most)
	case !v.IsInt():
		return 0, "has more than 9 digits after the point, which is less than a nano-dollar"
	}
	return v.Num().Int64(), ""
}

// per reads what a limit counts for: a name, or a list of two.
func (r *reader) per(field string) []string {
	if r.dec.PeekKind() != '[' {
		return []string{r.perName(field, false)}
	}
	r.enter(field, '[', "a list")
	var out []string
	for r.err == nil && r.dec.PeekKind() != ']' {
		at := field + "[" + strconv.Itoa(len(out)) + "]"
		if out = append(out, r.perName(at, true)); len(out) > 2 {
			r.fail(at, "is a third name", "write one or two")
		}
	}
	r.token()
	switch {
	case r.err != nil:
	case len(out) == 0:
		r.fail(field, "is empty", "write one or two names")
	case len(out) == 2 && out[0] == out[1]:
		r.fail(field, "has a name twice", "write it once")
	}
	return out
}

func (r *reader) perName(field string, pair bool) string {
	s := r.text(field, "text")
	if r.err != nil {
		return s
	}
	key, isMetadata := strings.CutPrefix(s, metadata)
	_, fix := attributeOf(s)
	switch {
	case pair && (s == perPolicy || s == perOrg):
		r.fail(field, "adds nothing to a pair", "leave it out")
	case slices.Contains(pers, s), isMetadata && key != "" && len(key) <= maxText:
	case fix == "" && (strings.HasPrefix(s, "request.") || strings.HasPrefix(s, "caller.") || s == "tool.family"):
		r.fail(field, "is something that the client chooses freely, so the limit would not hold", "count for "+strings.Join(pers, ", ")+" or agent.metadata.KEY")
	default:
		r.fail(field, "is not something that a limit can count for", nearest(s, pers, "the names are "+strings.Join(pers, ", ")+" and agent.metadata.KEY"))
	}
	return s
}

// bind adds the limits of a policy, for one request. Agents without an attribute share one
// count.
func (d *Decision) bind(id string, ls []limit, in *Input) {
	for _, l := range ls {
		d.Limits = append(d.Limits, l.count(id, func(per string) string { return subjectOf(per, in) }))
	}
}

// count is the limit of a policy as it counts for subjects.
func (l limit) count(id string, subjectOf func(per string) string) Limit {
	out := Limit{Source: id, Name: l.name, Value: l.max, Per: l.per[0]}
	var room [160]byte // most keys are shorter
	key := append(room[:0], "policy:"...)
	key = append(key, id...)
	key = append(key, ':')
	key = append(key, l.name...)
	for i, per := range l.per {
		subject := subjectOf(per)
		if i == 0 {
			out.Subject = subject
			key = append(key, ':')
		} else {
			out.Subject += "+" + subject
			out.Per += "+" + per
			key = append(key, '+')
		}
		key = appendEscaped(key, per)
		key = append(key, ':')
		key = appendEscaped(key, subject)
	}
	out.Key = string(key)
	return out
}

// Unlisted is the model that limits and usage count for a name that is in no list. Clients
// choose names, so a count for each name would have no bound.
const Unlisted = "(other)"

// subjectOf is the value of what a limit counts for, or "" if it is missing.
func subjectOf(per string, in *Input) string {
	switch per {
	case perAgent, "agent.id":
		return in.Agent.ID
	case perKey:
		return in.Caller.KeyLine
	case perPolicy:
		return ""
	case perOrg:
		return in.Org.ID
	case perSession:
		return in.Caller.Session
	case "agent.name":
		return in.Agent.Name
	case "agent.team":
		return in.Agent.Team
	case "agent.environment":
		return in.Agent.Environment
	case "agent.tier":
		return in.Agent.Tier
	case "request.model":
		if in.Request.Counted == "" && in.Request.Model != "" {
			return Unlisted
		}
		return in.Request.Counted
	case "request.provider":
		return in.Request.Provider
	}
	switch v := in.Agent.Metadata[strings.TrimPrefix(per, metadata)].(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case json.Number:
		s, _, _ := canonical(string(v))
		return s
	case float64:
		s, _, _ := canonical(strconv.FormatFloat(v, 'g', -1, 64))
		return s
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return ""
}

// appendEscaped writes s so that no two texts give one name and the parts of a name stay
// apart. A long one is replaced by its digest.
func appendEscaped(b []byte, s string) []byte {
	const most = 128
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = isPlain(s[i])
	}
	switch {
	case plain && len(s) <= most:
		return append(b, s...)
	case len(s) <= most/4:
		for i := range len(s) {
			if isPlain(s[i]) {
				b = append(b, s[i])
			} else {
				b = fmt.Appendf(b, "%%%02X", s[i])
			}
		}
		return b
	}
	sum := sha256.Sum256([]byte(s))
	return hex.AppendEncode(append(b, "%sha256-"...), sum[:16])
}

func isPlain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.' || c == '/'
}
