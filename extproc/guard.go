package extproc

import (
	"cmp"
	"sync"
)

// A request whose body has not arrived costs Envoy the body's memory, and costs the sender
// almost nothing. So a place is reserved at the headers, before any memory is. Each place
// counts the bytes that may still come: for the key, for the agent and for the whole
// process. It is released with the decision.

// WaitLimits bound the requests that wait for their bodies, and the bytes of those bodies.
// A body counts as declared, or as Config.MaxBody if the request does not declare its
// length. Zero fields take the defaults. Envoy's heap must be well above Bytes (see
// docs/operations.md, Limits).
type WaitLimits struct {
	Bytes      int64 // in total; 0: 512 MiB
	AgentBytes int64 // for one agent; 0: half of Bytes
	KeyBytes   int64 // for one key; 0: a quarter of Bytes

	Requests int // in total; 0: 8192
	PerAgent int // for one agent; 0: 512
	PerKey   int // for one key; 0: 256
}

func (l WaitLimits) withDefaults() WaitLimits {
	l.Bytes = cmp.Or(l.Bytes, 512<<20)
	l.AgentBytes = cmp.Or(l.AgentBytes, l.Bytes/2)
	l.KeyBytes = cmp.Or(l.KeyBytes, l.Bytes/4)
	l.Requests = cmp.Or(l.Requests, 8192)
	l.PerAgent = cmp.Or(l.PerAgent, 512)
	l.PerKey = cmp.Or(l.PerKey, 256)
	return l
}

// guard counts the waiting requests. It is safe for concurrent use.
type guard struct {
	limits WaitLimits

	mu     sync.Mutex
	all    load
	keys   map[string]*load
	agents map[string]*load // with their places, to find the heaviest
}

// load is what one key, one agent or the process holds.
type load struct {
	requests int
	bytes    int64
	places   map[*place]struct{} // for agents only
}

// place is one waiting request. A nil place is not counted.
type place struct {
	h          *handle
	key, agent string
	bytes      int64
	gone       bool // released, or evicted for another caller
}

func newGuard(l WaitLimits) *guard {
	return &guard{limits: l.withDefaults(), keys: map[string]*load{}, agents: map[string]*load{}}
}

// The reasons why enter returns no place.
const (
	admitted = ""
	tooMany  = "too_many_waiting" // the key or the agent holds too many already
	noRoom   = "overloaded"       // the process holds too many, and this caller's agent is the heaviest
)

// enter reserves a place for a request whose body has at most that many bytes. When the
// process has no room, the largest place of the heaviest agent is evicted and its request
// is cut. A caller of the heaviest agent gets no place.
func (g *guard) enter(h *handle, key, agent string, bytes int64) (*place, string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k, a := g.keys[key], g.agents[agent]
	if k == nil {
		k = &load{}
	}
	if a == nil {
		a = &load{places: map[*place]struct{}{}}
	}
	if k.requests >= g.limits.PerKey || k.bytes+bytes > g.limits.KeyBytes ||
		a.requests >= g.limits.PerAgent || a.bytes+bytes > g.limits.AgentBytes {
		return nil, tooMany
	}
	for g.all.requests >= g.limits.Requests || g.all.bytes+bytes > g.limits.Bytes {
		heaviest := g.heaviest()
		if heaviest == nil || heaviest == a || heaviest.bytes <= a.bytes+bytes && heaviest.requests <= a.requests+1 {
			return nil, noRoom
		}
		g.evictLocked(heaviest)
	}
	p := &place{h: h, key: key, agent: agent, bytes: bytes}
	g.keys[key], g.agents[agent] = k, a
	a.places[p] = struct{}{}
	for _, l := range []*load{&g.all, k, a} {
		l.requests++
		l.bytes += bytes
	}
	return p, admitted
}

// heaviest is the agent with the most bytes, and among equals with the most requests.
func (g *guard) heaviest() (most *load) {
	for _, l := range g.agents {
		if most == nil || l.bytes > most.bytes || l.bytes == most.bytes && l.requests > most.requests {
			most = l
		}
	}
	return most
}

// evictLocked removes the largest place of an agent.
func (g *guard) evictLocked(l *load) {
	var largest *place
	for p := range l.places {
		if largest == nil || p.bytes > largest.bytes {
			largest = p
		}
	}
	g.leaveLocked(largest)
	largest.h.cut(noRoom)
}

// arrived replaces the declared length of a body by its actual length.
func (g *guard) arrived(p *place, bytes int64) {
	if p == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.gone || bytes >= p.bytes {
		return
	}
	for _, l := range []*load{&g.all, g.keys[p.key], g.agents[p.agent]} {
		l.bytes -= p.bytes - bytes
	}
	p.bytes = bytes
}

// leave releases a place. Repeated calls have no effect.
func (g *guard) leave(p *place) {
	if p == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leaveLocked(p)
}

func (g *guard) leaveLocked(p *place) {
	if p.gone {
		return
	}
	p.gone = true
	k, a := g.keys[p.key], g.agents[p.agent]
	for _, l := range []*load{&g.all, k, a} {
		l.requests--
		l.bytes -= p.bytes
	}
	delete(a.places, p)
	if k.requests == 0 {
		delete(g.keys, p.key)
	}
	if a.requests == 0 {
		delete(g.agents, p.agent)
	}
}

// held returns what all places hold, for metrics.
func (g *guard) held() (requests int, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all.requests, g.all.bytes
}
