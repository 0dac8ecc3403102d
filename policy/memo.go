package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// memo keeps the results of evaluations, so that equal inputs are evaluated once. A bundle
// has one memo for all of its engines. A key of a generated module has its facts. A key of a
// policy in Rego has every field that it reads.
//
// It holds what rules decided, not a Decision. The limits of a Decision are bound to the
// agent and key of each request, although no rule reads these.
//
// It has two generations. When the young one is full, it becomes the old one.
type memo struct {
	mu         sync.RWMutex
	young, old map[string]*outcome
	weight     int // of young

	rooms sync.Pool // of *room
	used  atomic.Uint64
	off   atomic.Bool // a result was wrong, so each input is evaluated
}

// Bounds of a memo, in bytes, about. A bundle holds at most two generations.
const (
	maxGeneration = 4 << 20
	maxRemembered = 64 << 10
	outcomeWeight = 256
	memberWeight  = 48 // of a policy or a reason in an outcome
)

// checkEvery says how often a result of the memo is evaluated again. If it differs, the
// request is denied and the memo of the bundle is not used any more.
const checkEvery = 4096

var errMemo = errors.New("the cached result differs from the evaluation: results of these policies are no longer cached")

func newMemo() *memo {
	m := &memo{young: map[string]*outcome{}}
	m.rooms.New = func() any { return &room{} }
	return m
}

func (m *memo) get(key []byte) *outcome {
	m.mu.RLock()
	o := m.young[string(key)]
	old := false
	if o == nil {
		o = m.old[string(key)]
		old = o != nil
	}
	m.mu.RUnlock()
	if old {
		m.put(string(key), o) // what is used stays
	}
	return o
}

func (m *memo) put(key string, o *outcome) {
	weight := len(key) + outcomeWeight + memberWeight*(len(o.refused)+len(o.allow)+len(o.deny)+len(o.governs)+len(o.approval))
	if weight > maxRemembered {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.young[key]; !known {
		if m.weight+weight > maxGeneration {
			m.old, m.young, m.weight = m.young, map[string]*outcome{}, 0
		}
		m.weight += weight
	}
	m.young[key] = o
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

// remember makes the engine keep its results in m. fs has the facts of a generated module.
// Without facts, keys have what rules read. If that cannot be found out, or changes with each
// request, nothing is kept.
func (e *engine) remember(m *memo, number int, fs *facts) {
	if fs == nil && (e.writer.all || e.writer.metadata == nil || e.writer.spends() || e.writer.writes("request", "time")) {
		return
	}
	e.memo, e.number, e.facts = m, uint64(number), fs
}

// reading makes an outcome of a decision document, which is only valid until it returns.
type reading interface {
	outcome(allowed bool, doc ast.Value) (*outcome, error)
}

// answer evaluates an input, or returns the result for an equal input.
func (e *engine) answer(ctx context.Context, in *Input, r reading) (*outcome, error) {
	if e.memo == nil || ctx.Err() != nil || e.memo.off.Load() {
		return e.evaluate(ctx, in, r)
	}
	w := e.memo.rooms.Get().(*room)
	defer e.memo.rooms.Put(w)
	defer w.forget()
	if !e.appendKey(w, in) {
		return e.evaluate(ctx, in, r)
	}
	known := e.memo.get(w.key)
	if known != nil && e.memo.used.Add(1)%checkEvery != 0 {
		return known, nil
	}
	o, err := e.evaluate(ctx, in, r)
	switch {
	case err != nil:
		return nil, err
	case known == nil:
		e.memo.put(string(w.key), o)
	case !reflect.DeepEqual(known, o):
		e.memo.off.Store(true)
		return nil, errMemo
	}
	return o, nil
}

// appendKey replaces the key in r. Two inputs with the same key have the same result. ok is
// false if an input has no key.
func (e *engine) appendKey(r *room, in *Input) (ok bool) {
	r.key = binary.AppendUvarint(r.key[:0], e.number)
	if e.facts != nil {
		return e.facts.appendKey(r, in)
	}
	for i := range e.writer.sections {
		s := &e.writer.sections[i]
		for j := range s.fields {
			r.key = s.fields[j].appendKey(r.key, in)
		}
	}
	return true
}

// forget drops the request from memory that is used again.
func (r *room) forget() {
	r.in = nil
	if cap(r.key) > maxRemembered {
		r.key = nil
	}
}

func (e *engine) evaluate(ctx context.Context, in *Input, r reading) (o *outcome, err error) {
	err = e.eval(ctx, in, func(allowed bool, doc ast.Value) error {
		var err error
		o, err = r.outcome(allowed, doc)
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}
