package policy

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// memo keeps the results of rules for inputs, so that equal inputs are evaluated once. A key
// has every field that some rule reads, except the time. A result is kept with the span of
// time in which it cannot change.
//
// It holds the decision document, not a Decision. Each hit reads the document again. So two
// Decisions share no memory. The keys of limits are those of the current agent and its key,
// although no rule reads these.
//
// It has two generations. When the young one is full, it becomes the old one.
type memo struct {
	mu         sync.RWMutex
	young, old map[string]remembered
	weight     int // of young

	buffers sync.Pool // of *[]byte, for keys
}

// Bounds of a memo, in bytes, about. An engine holds at most two generations.
const (
	maxGeneration = 4 << 20
	maxRemembered = 64 << 10
	memberWeight  = 128 // of a member of a set in a decision
)

type remembered struct {
	allowed     bool
	doc         ast.Value
	from, until time.Time // from belongs to it, until does not; zero: no bound
}

func (r *remembered) holds(t time.Time) bool {
	return !t.Before(r.from) && (r.until.IsZero() || t.Before(r.until))
}

func newMemo() *memo {
	m := &memo{young: map[string]remembered{}}
	m.buffers.New = func() any { b := make([]byte, 0, 512); return &b }
	return m
}

func (m *memo) get(key []byte, t time.Time) (remembered, bool) {
	m.mu.RLock()
	r, young := m.young[string(key)]
	old := false
	if !young {
		r, old = m.old[string(key)]
	}
	m.mu.RUnlock()
	if !young && !old || !r.holds(t) {
		return remembered{}, false
	}
	if old {
		m.put(string(key), r) // what is used stays
	}
	return r, true
}

func (m *memo) put(key string, r remembered) {
	weight := len(key) + memberWeight
	if doc, ok := r.doc.(ast.Object); ok {
		doc.Foreach(func(_, v *ast.Term) {
			if s, ok := v.Value.(ast.Set); ok {
				weight += memberWeight * s.Len()
			}
		})
	}
	if weight > maxRemembered {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.young[key]; !known {
		if m.weight+weight > maxGeneration {
			m.old, m.young, m.weight = m.young, map[string]remembered{}, 0
		}
		m.weight += weight
	}
	m.young[key] = r
}

// times is how the rules of an engine read the time, beside the expiry of the key.
type times struct {
	hours bool // request.hour_utc or request.weekday_utc
	spans []span
}

// ordinary says whether a time is one whose order as text is that of the calendar, here
// and in every zone. Results for other times are neither kept nor looked up.
func ordinary(t time.Time) bool { y := t.UTC().Year(); return y > 1 && y < 9999 }

// steady returns the span of time around the request's in which no result changes. The
// times are ordinary.
func (w *times) steady(in *Input) (from, until time.Time, ok bool) {
	t, expires := in.Request.Time.UTC(), in.Caller.KeyExpiresAt
	within := func(a, b time.Time) {
		if a.After(from) {
			from = a
		}
		if !b.IsZero() && (until.IsZero() || b.Before(until)) {
			until = b
		}
	}
	switch {
	case expires.IsZero():
	case t.Before(expires):
		within(from, expires)
	default:
		within(expires, time.Time{})
	}
	if w.hours {
		hour := t.Truncate(time.Hour)
		within(hour, hour.Add(time.Hour))
	}
	for i := range w.spans {
		a, b, ok := w.spans[i].steady(t)
		if !ok {
			return from, until, false
		}
		within(a, b)
	}
	return from, until, true
}

// steady returns a span of time around t in which holds does not change. It lies between two
// edges of the span on that day. The zone's offset does not change in it.
func (s *span) steady(t time.Time) (from, until time.Time, ok bool) {
	l, err := zone(s.zone)
	if err != nil {
		return from, until, false
	}
	t = t.In(l)
	clock := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
	before, after := time.Duration(0), 24*time.Hour
	if s.hours {
		for _, m := range [...]int{s.from, s.to} {
			edge := time.Duration(m) * time.Minute
			if edge <= clock {
				before = max(before, edge)
			} else {
				after = min(after, edge)
			}
		}
	}
	from, until = t.Add(before-clock), t.Add(after-clock)
	// Within these bounds the clock on the wall runs evenly.
	start, end := t.ZoneBounds()
	if start.After(from) {
		from = start
	}
	if !end.IsZero() && end.Before(until) {
		until = end
	}
	return from, until, true
}

// spans returns the spans of a condition.
func (c condition) spans() (out []span) {
	c.leaves(func(l condition) {
		if l.op == opWithin {
			out = append(out, l.span)
		}
	})
	return out
}

// remember makes the engine keep its results, if it can find out what they depend on.
func (e *engine) remember(spans []span) {
	if e.writer.all || e.writer.metadata == nil || e.writer.spends() {
		return // some rule reads what only evaluation can name, or what changes with each request
	}
	e.times.spans = spans
	for _, s := range e.writer.sections {
		for _, f := range s.fields {
			if f.name == "hour_utc" || f.name == "weekday_utc" {
				e.times.hours = true
			}
		}
	}
	e.memo = newMemo()
}

// answer is eval, or what eval answered before to an equal input.
func (e *engine) answer(ctx context.Context, in *Input, read func(allowed bool, doc ast.Value) error) error {
	if e.memo == nil || ctx.Err() != nil || !ordinary(in.Request.Time) || !in.Caller.KeyExpiresAt.IsZero() && !ordinary(in.Caller.KeyExpiresAt) {
		return e.eval(ctx, in, read)
	}
	buffer := e.memo.buffers.Get().(*[]byte)
	defer e.memo.buffers.Put(buffer)
	*buffer = e.writer.key((*buffer)[:0], in)
	if r, ok := e.memo.get(*buffer, in.Request.Time); ok {
		return read(r.allowed, r.doc)
	}
	return e.eval(ctx, in, func(allowed bool, doc ast.Value) error {
		err := read(allowed, doc)
		if from, until, ok := e.times.steady(in); ok && err == nil {
			e.memo.put(string(*buffer), remembered{allowed, doc, from, until})
		}
		return err
	})
}

// key appends every field that some rule reads, but the time. Two inputs with the same key
// differ in nothing else that rules read.
func (w *writer) key(b []byte, in *Input) []byte {
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	texts := func(ss []string) {
		b = binary.AppendUvarint(b, uint64(len(ss)))
		for _, s := range ss {
			text(s)
		}
	}
	for i := range w.sections {
		for _, f := range w.sections[i].fields {
			switch f.id {
			case "agent.id":
				text(in.Agent.ID)
			case "agent.name":
				text(in.Agent.Name)
			case "agent.team":
				text(in.Agent.Team)
			case "agent.environment":
				text(in.Agent.Environment)
			case "agent.tier":
				text(in.Agent.Tier)
			case "agent.status":
				text(in.Agent.Status)
			case "agent.allowed_models":
				texts(in.Agent.AllowedModels)
			case "agent.metadata":
				for _, k := range w.metadata {
					b = appendScalar(b, in.Agent.Metadata[k])
				}
			case "request.operation":
				text(in.Request.Operation)
			case "request.scope":
				text(in.Request.Scope)
			case "request.provider":
				text(in.Request.Provider)
			case "request.model":
				text(in.Request.Model)
			case "request.mode":
				text(in.Request.Mode)
			case "request.host":
				text(in.Request.Host)
			case "request.path":
				text(in.Request.Path)
			case "request.stream":
				b = append(b, truthByte(in.Request.Stream))
			case "request.max_tokens":
				b = binary.AppendVarint(b, in.Request.MaxTokens)
			case "request.input_tokens_estimate":
				b = binary.AppendVarint(b, in.Request.InputTokensEstimate)
			case "request.bytes":
				b = binary.AppendVarint(b, in.Request.Bytes)
			case "request.tools":
				texts(in.Request.Tools)
			case "request.tool_names":
				texts(in.Request.Tools)
				texts(in.Request.ToolFamilies)
			case "request.tool_families":
				texts(in.Request.ToolFamilies)
				b = append(b, truthByte(in.Request.ToolsOther))
			case "request.session_id":
				text(in.Request.SessionID)
			case "request.url_hosts":
				texts(in.Request.URLHosts)
			case "caller.key_id":
				text(in.Caller.KeyID)
			case "caller.key_status":
				text(in.Caller.KeyStatus)
			case "caller.key_scopes":
				texts(in.Caller.KeyScopes)
			case "caller.key_allowed_models":
				texts(in.Caller.KeyAllowedModels)
			case "caller.key_expires_at":
				if t := in.Caller.KeyExpiresAt; !t.IsZero() {
					b = binary.AppendVarint(b, t.Unix())
					b = binary.AppendUvarint(b, uint64(t.Nanosecond())+1)
				} else {
					b = append(b, 0, 0)
				}
			case "caller.key_rate_limit":
				b = binary.AppendVarint(b, in.Caller.KeyRateLimit)
			case "caller.ip":
				text(in.Caller.IP)
			case "caller.user_agent":
				text(in.Caller.UserAgent)
			case spendDay:
				b = appendAmount(b, in.Spend.Day)
			case spendMonth:
				b = appendAmount(b, in.Spend.Month)
			case "org.id":
				text(in.Org.ID)
			case "org.tier":
				text(in.Org.Tier)
			case "request.time", "request.hour_utc", "request.weekday_utc": // see times
			}
		}
	}
	return b
}

// timely are the fields that key leaves out.
var timely = map[string]bool{"request.time": true, "request.hour_utc": true, "request.weekday_utc": true}

func appendAmount(b []byte, nano *int64) []byte {
	if nano == nil {
		return append(b, 0)
	}
	return binary.AppendVarint(append(b, 1), *nano)
}

func truthByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// appendScalar appends a value of metadata with its type. What scalarOf takes for missing
// is alike.
func appendScalar(b []byte, v any) []byte {
	text := func(kind byte, s string) []byte {
		b = binary.AppendUvarint(append(b, kind), uint64(len(s)))
		return append(b, s...)
	}
	switch v := v.(type) {
	case string:
		return text('s', v)
	case json.Number:
		return text('n', string(v))
	case bool:
		return append(b, 'b', truthByte(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 'f'), math.Float64bits(v))
	case int:
		return binary.AppendVarint(append(b, 'i'), int64(v))
	case int64:
		return binary.AppendVarint(append(b, 'i'), v)
	}
	return append(b, 'x')
}
