package audit

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// An Entry is one event. Decided, Settled and Changed are entries. Other is an entry of a newer
// build.
//
// Entries only ever gain optional fields, and an absent field means what it meant
// before the field existed.
type Entry interface {
	// Encode returns the bytes that are stored, hashed and chained: one line of
	// ASCII JSON with its fields in a fixed order. Equal values give equal bytes.
	Encode() []byte
	// Head returns the fields that every entry has.
	Head() Head

	// stamped returns the entry with writer and org, and with now if it has no time.
	stamped(org, writer string, now time.Time) Entry
}

// Head has the fields that every entry has.
type Head struct {
	Kind      string
	Time      time.Time
	Org       string
	Writer    string
	RequestID string
	AgentID   string // empty if the entry has no agent
}

// The kinds of the two entries of a request.
const (
	KindDecided = "request.decided"
	KindSettled = "request.settled"
)

// OutcomeUnknown is the outcome of a request with an unknown end: the process died between the
// decision and the end.
const OutcomeUnknown = "unknown"

// Limits, in bytes of UTF-8 before escaping, and in elements. Longer text is cut and ends in
// "…". Elements beyond the limit are counted in "omitted".
const (
	maxWord    = 64
	maxID      = 128
	maxName    = 256
	maxMessage = 512
	maxPath    = 1024

	maxTools   = 512 // the parser's limit, so that no tool is left out
	maxHosts   = 256 // the same
	maxDropped = 128 // fields that were left out have no effect
	maxReasons = 32
	maxIDs     = 64
	maxLimits  = 64 // a request with more is rejected
	maxCounter = 1024
	maxFields  = 128
	maxModels  = 200 // the limit of an agent or a key

	maxScalars = 16 << 10 // bytes of one object's names and strings
	maxClipped = 64

	// MaxEntryBytes is the largest size of an encoded entry. With the limits above, every
	// entry is well below it.
	MaxEntryBytes = 512 << 10
)

// Stamp returns e with writer and org, and with now if e has no time. An Other stays
// unchanged. Writer and Chain stamp every entry. A fake of one of them in a test uses Stamp.
func Stamp(e Entry, org, writer string, now time.Time) Entry {
	return e.stamped(org, writer, now)
}

// timeLayout has the same number of characters for every instant: UTC, in microseconds.
const timeLayout = evidence.TimeLayout

func or(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t
}

// object writes one entry. Most methods leave out a field with its zero value.
type object struct {
	b     []byte
	comma bool // there is a value before
	depth int
	name  string   // the name of the current member
	cut   []string // the members that are not complete
}

func begin(size int, kind string, t time.Time, org, writer, request string) *object {
	o := &object{b: make([]byte, 0, size)}
	o.b = append(o.b, `{"v":1`...)
	o.comma = true
	o.must("kind", kind, maxWord)
	o.key("time")
	o.b = append(o.b, '"')
	o.b = clampYear(t.UTC()).AppendFormat(o.b, timeLayout)
	o.b = append(o.b, '"')
	o.must("org", org, maxID)
	o.must("writer", writer, maxID)
	o.must("request_id", request, maxID)
	return o
}

// clampYear keeps a broken clock from changing the width of a time.
func clampYear(t time.Time) time.Time {
	switch y := t.Year(); {
	case y < 1:
		return time.Time{}.UTC()
	case y > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
	}
	return t
}

func (o *object) end() []byte { return append(o.b, '}') }

func (o *object) next() {
	if o.comma {
		o.b = append(o.b, ',')
	}
	o.comma = true
}

func (o *object) key(name string) {
	o.next()
	if o.depth == 0 {
		o.name = name
	}
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *object) open(c byte) {
	if last := o.b[len(o.b)-1]; last != ':' {
		o.next()
	}
	o.b = append(o.b, c)
	o.comma = false
	o.depth++
}

func (o *object) close(c byte) {
	o.b = append(o.b, c)
	o.comma = true
	o.depth--
}

// actor appends who made a change.
func (o *object) actor(a Actor) {
	o.key("actor")
	o.open('{')
	o.must("kind", a.Kind, maxWord)
	o.str("id", a.ID, maxID)
	o.str("role", a.Role, maxWord)
	o.close('}')
}

// must writes the field, also if it is empty.
func (o *object) must(name, s string, limit int) {
	o.key(name)
	o.text(s, limit)
}

// text writes s, and adds the member to cut if s was shortened.
func (o *object) text(s string, limit int) {
	if len(s) > limit || !utf8.ValidString(s) {
		o.incomplete()
	}
	o.b = appendString(o.b, s, limit)
}

// incomplete adds the current member to cut.
func (o *object) incomplete() {
	if !slices.Contains(o.cut, o.name) {
		o.cut = append(o.cut, o.name)
	}
}

// clipped writes the names of the members that are not complete: known ones, and those in
// cut.
func (o *object) clipped(known []string) {
	names := slices.Clone(known)
	for _, name := range o.cut {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	o.strs("clipped", names, maxClipped, maxWord)
}

// instant writes a time with nanoseconds, since a decision may depend on them. The zero time is
// left out.
func (o *object) instant(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	o.key(name)
	o.b = append(o.b, '"')
	o.b = clampYear(t.UTC()).AppendFormat(o.b, time.RFC3339Nano)
	o.b = append(o.b, '"')
}

// scalars writes an object of strings, numbers and booleans, sorted by name. Values of other
// types, and values beyond maxScalars, are left out, and the member is added to cut.
func (o *object) scalars(name string, m Scalars) {
	room, begun := maxScalars, false
	if len(m) > 0 {
		o.name = name
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v, ok := scalar(m[k])
		s, isText := v.(string)
		if room -= len(k) + len(s); !ok || room < 0 || len(k) > maxID || !utf8.ValidString(k) {
			o.incomplete()
			continue
		}
		if !begun {
			begun = true
			o.key(name)
			o.open('{')
		}
		o.next()
		o.b = appendString(o.b, k, maxID)
		o.b = append(o.b, ':')
		if isText {
			o.text(s, maxScalars)
		} else {
			o.b = fmt.Append(o.b, v)
		}
	}
	if begun {
		o.close('}')
	}
}

// scalar returns v for encoding: a string, a bool, or a number as a json.Number value.
func scalar(v any) (_ any, ok bool) {
	switch v := v.(type) {
	case string, bool:
		return v, true
	case int:
		return stdjson.Number(strconv.Itoa(v)), true
	case int64:
		return stdjson.Number(strconv.FormatInt(v, 10)), true
	case float64:
		return stdjson.Number(strconv.FormatFloat(v, 'g', -1, 64)), !math.IsNaN(v) && !math.IsInf(v, 0)
	case stdjson.Number:
		return v, len(v) <= maxWord && stdjson.Valid([]byte(v)) && v != "" && v[0] != '"' && strings.Trim(string(v), "+-.0123456789eE") == ""
	}
	return nil, false
}

func (o *object) str(name, s string, limit int) {
	if s != "" {
		o.must(name, s, limit)
	}
}

func (o *object) always(name string, n int64) {
	o.key(name)
	o.b = strconv.AppendInt(o.b, n, 10)
}

func (o *object) num(name string, n int64) {
	if n != 0 {
		o.always(name, n)
	}
}

func (o *object) flag(name string, v bool) {
	if v {
		o.key(name)
		o.b = append(o.b, "true"...)
	}
}

// strs writes a list of strings, and returns how many it left out.
func (o *object) strs(name string, ss []string, count, limit int) (omitted int64) {
	if len(ss) == 0 {
		return 0
	}
	o.key(name)
	o.open('[')
	for _, s := range ss[:min(len(ss), count)] {
		o.next()
		o.text(s, limit)
	}
	o.close(']')
	if len(ss) > count {
		o.incomplete()
	}
	return int64(max(0, len(ss)-count))
}

// nums writes a list of integers. Those beyond count are left out.
func (o *object) nums(name string, ns []int64, count int) {
	if len(ns) == 0 {
		return
	}
	o.key(name)
	o.open('[')
	for _, n := range ns[:min(len(ns), count)] {
		o.next()
		o.b = strconv.AppendInt(o.b, n, 10)
	}
	o.close(']')
}

const hexDigits = "0123456789abcdef"

// appendString writes s as an ASCII JSON string. Every character that is not printable ASCII is
// escaped as \u. So a record is safe to show on a terminal or in a page, and looks the same in
// every editor. Any JSON library that escapes non-ASCII writes the same bytes. Invalid UTF-8
// becomes U+FFFD.
func appendString(b []byte, s string, limit int) []byte {
	s = bounded(s, limit)
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < 0x20 || c == 0x7f || c == '<' || c == '>' || c == '&':
				b = appendUnit(b, rune(c))
			default:
				b = append(b, c)
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		if r > 0xffff { // a surrogate pair, RFC 8259 section 7
			r -= 0x10000
			b = appendUnit(b, 0xd800+r>>10)
			r = 0xdc00 + r&0x3ff
		}
		b = appendUnit(b, r)
	}
	return append(b, '"')
}

func appendUnit(b []byte, u rune) []byte {
	return append(b, '\\', 'u', hexDigits[u>>12&15], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// bounded returns s as valid UTF-8 of at most limit bytes. It is idempotent.
func bounded(s string, limit int) string {
	if !utf8.ValidString(s) {
		// Shortened first, so that the cost does not depend on the length of s.
		s = string([]rune(s[:min(len(s), limit)]))
		if len(s) > limit {
			s += "…" // s is longer than limit now, and is cut below
		}
	}
	if len(s) <= limit {
		return s
	}
	cut := limit - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// Scalars is an object of strings, booleans and numbers. Parsed numbers are
// encoding/json.Number, which keeps their text.
type Scalars map[string]any

// UnmarshalJSON keeps numbers exact. Parse has checked the syntax.
func (m *Scalars) UnmarshalJSON(b []byte) error {
	d := stdjson.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	raw := map[string]any{}
	if err := d.Decode(&raw); err != nil {
		return err
	}
	for k, v := range raw {
		if _, ok := scalar(v); !ok {
			return fmt.Errorf("%q is not a string, a number or a boolean", k)
		}
	}
	*m = raw
	return nil
}

// ErrMalformed is wrapped by Parse's errors.
var ErrMalformed = errors.New("malformed audit entry")

// Parse reads an encoded entry. It is strict: one JSON object, valid UTF-8, no name twice,
// types as written, version 1. Unknown fields are allowed, since a newer build may add
// some. An entry of an unknown kind becomes a Changed if it has an actor, and otherwise an
// Other.
func Parse(b []byte) (Entry, error) {
	if len(b) > MaxEntryBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), MaxEntryBytes)
	}
	// Nearly all entries are of requests, and begin as Encode writes them. One pass reads these.
	switch {
	case bytes.HasPrefix(b, decidedBegins):
		var e struct {
			Decided
			At string `json:"time"` // instead of Decided's
		}
		err := malformed(json.Unmarshal(b, &e))
		if err == nil {
			e.Time, err = timeOf(e.At, KindDecided, e.Org, e.Writer)
		}
		return e.Decided, err
	case bytes.HasPrefix(b, settledBegins):
		var e struct {
			Settled
			At string `json:"time"`
		}
		err := malformed(json.Unmarshal(b, &e))
		if err == nil {
			e.Time, err = timeOf(e.At, KindSettled, e.Org, e.Writer)
		}
		return e.Settled, err
	}
	var h struct {
		V         *int      `json:"v"`
		Kind      string    `json:"kind"`
		Time      string    `json:"time"`
		Org       string    `json:"org"`
		Writer    string    `json:"writer"`
		RequestID string    `json:"request_id"`
		AgentID   string    `json:"agent_id"`
		Actor     *struct{} `json:"actor"`
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, malformed(err)
	}
	if h.V == nil {
		return nil, fmt.Errorf("%w: it has no version", ErrMalformed)
	}
	if *h.V != 1 {
		return nil, fmt.Errorf("%w: version %d; this build reads version 1", ErrMalformed, *h.V)
	}
	at, err := timeOf(h.Time, h.Kind, h.Org, h.Writer)
	if err != nil {
		return nil, err
	}
	switch {
	case h.Kind == KindDecided:
		var e Decided
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindSettled:
		var e Settled
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindStarted:
		var e Started
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindGap:
		var e Gap
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindUnknownCallers:
		var e UnknownCallers
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindThreshold:
		var e Threshold
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindRepeated:
		var e RepeatedRejections
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindTieOutHour:
		var e TieOutHour
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindTieOutUnknown:
		var e TieOutUnknown
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindRefusedConnections:
		var e RefusedConnections
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == evidence.KindReopened:
		var e Reopened
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindClock:
		var e ClockRegressed
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindTrimmed:
		var e Trimmed
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == evidence.KindKeysChanged:
		var e KeysChanged
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Actor != nil:
		var e Changed
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	}
	return Other{
		head: Head{Kind: h.Kind, Time: at, Org: h.Org, Writer: h.Writer, RequestID: h.RequestID, AgentID: h.AgentID},
		raw:  append([]byte(nil), b...),
	}, nil
}

var (
	decidedBegins = []byte(`{"v":1,"kind":"` + KindDecided + `",`)
	settledBegins = []byte(`{"v":1,"kind":"` + KindSettled + `",`)
)

// timeOf checks what each entry must have, and returns its time.
func timeOf(text, kind, org, writer string) (time.Time, error) {
	if kind == "" || org == "" || writer == "" {
		return time.Time{}, fmt.Errorf("%w: kind, org and writer must not be empty", ErrMalformed)
	}
	at, err := time.Parse(timeLayout, text)
	if err != nil || at.Format(timeLayout) != text {
		return time.Time{}, fmt.Errorf("%w: the time does not have the form %s", ErrMalformed, timeLayout)
	}
	return at, nil
}

// malformed wraps ErrMalformed without quoting the entry, since the error is logged.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	var s *json.SemanticError
	if errors.As(err, &s) {
		return fmt.Errorf("%w: wrong type at %q", ErrMalformed, string(s.JSONPointer))
	}
	return fmt.Errorf("%w: it is not one strict JSON object", ErrMalformed)
}
